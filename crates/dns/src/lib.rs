//! Authoritative zones answered from the World, and a private forwarder for the rest.
