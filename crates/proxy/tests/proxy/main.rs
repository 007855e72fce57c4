//! The proxy as a client and a backend see it: real sockets on ephemeral ports, scripted backends.

mod announced;
mod auth;
mod backends;
mod balancing;
mod bodies;
mod compression;
mod forward_support;
mod forwards;
mod forwards_udp;
mod framing;
mod headers;
mod health;
mod http2;
mod https;
mod keep_alive;
mod lifetime;
mod paths;
mod probes;
mod protection;
mod retries;
mod routing;
mod smuggling;
mod splitting;
mod streaming;
mod support;
mod wiretap;
