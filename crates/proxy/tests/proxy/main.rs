//! The proxy as a client and a backend see it: real sockets on ephemeral ports, scripted backends.

mod backends;
mod compression;
mod framing;
mod health;
mod http2;
mod keep_alive;
mod lifetime;
mod routing;
mod streaming;
mod support;
