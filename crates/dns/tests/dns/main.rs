//! What clients and upstreams see, filed by what is asked of a name server.

mod aliases;
mod authority;
mod blocking;
mod cookies;
mod delegations;
mod encrypted_upstreams;
mod fixture;
mod forwarding;
mod hostile;
mod kept_answers;
mod messages;
mod transports;
mod upstream_faults;
mod wan;
