//! The proxy as a client and a backend see it: real sockets on ephemeral ports, scripted backends.

mod backends;
mod framing;
mod health;
mod keep_alive;
mod lifetime;
mod routing;
mod smuggling;
mod splitting;
mod streaming;
mod support;
mod wiretap;
