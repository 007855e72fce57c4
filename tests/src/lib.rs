//! What the end-to-end tests share: an appliance in its emulated host, and probes that speak to it as
//! clients do, on the wire and through the API.
//!
//! The tests are in `e2e/`. They need private namespaces: `proximity-lab enter -- cargo test -p
//! proximity-tests`.

#![forbid(unsafe_code)]

pub mod admin_api;
pub mod appliance_binary;
pub mod counting_backend;
pub mod dhcp_probe;
pub mod dns_probe;
pub mod http_exchange;
pub mod load_connection;
pub mod load_http2;
pub mod open_connection;
pub mod polling;
pub mod site;
pub mod stream_backend;
pub mod test_backend;

pub use site::{PATIENCE, Site, fetch};
