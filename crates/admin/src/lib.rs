//! Admin HTTP API over TCP with a token and over the unix socket.
