//! DHCPv4 server and WAN client cores: pure state machines without sockets or clock.
