//! The appliance from end to end. Run as `proximity-lab enter -- cargo test -p proximity-tests`.

mod cables;
mod clients;
mod command_line;
mod config;
mod crash;
mod durability;
mod explain;
mod firewall;
mod forwards;
mod forwards_proxied;
mod hanging_log;
mod metrics;
mod proxy_clients;
mod reservations;
mod seed;
mod services;
mod startup;
mod stream;
mod stream_load;
mod supervisor;
mod upgrade;
mod upgrade_api;
mod vhost_commands;
mod vhosts;
mod wan_dns;
mod wire_order;
