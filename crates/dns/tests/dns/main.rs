//! What clients and upstreams see, filed by what is asked of a name server.

mod aliases;
mod authority;
mod fixture;
mod forwarding;
mod hostile;
mod messages;
mod transports;
