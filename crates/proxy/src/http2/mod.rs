//! HTTP/2 by way of `h2`: messages take the same form as those of HTTP/1, so that everything that is decided
//! about them is decided once.

pub mod body;
pub mod connection;
pub mod front;
pub mod message;
mod tally;
