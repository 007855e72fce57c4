//! HTTP/1 as octets: heads are parsed in place and written anew, bodies are followed to their end.
//!
//! Nothing here has a socket. A head is a list of [`Field`]s that say where in its octets a name and a value
//! lie, so that what is forwarded is copied once and nothing is allocated for it.

pub mod chunked;
pub mod field;
pub mod request;
pub mod response;
pub mod trailers;
pub mod write;

pub use chunked::{Chunked, Step};
pub use field::Kind;
pub use request::{Length, Method, RequestHead, Version};
pub use response::{Delimiter, ResponseHead};
