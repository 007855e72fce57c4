//! The appliance from end to end. Run as `proximity-lab enter -- cargo test -p proximity-tests`.

mod clients;
mod command_line;
mod config;
mod crash;
mod vhosts;
mod wire_order;
