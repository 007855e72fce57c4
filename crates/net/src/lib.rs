//! The network's kernel side: the ruleset plan as plain data, and the edge that makes the kernel match it:
//! nftables, links, sysctl, raw frames. And the channel by which descriptors go to another process.
//!
//! [`policy`] (what) → [`plan`] → [`ruleset`] (how, typed and printable) → [`nft`] (one atomic transaction) →
//! verify, by reading the kernel back. The first three are pure.

pub mod fd_channel;
pub mod link_watch;
pub mod links;
mod netlink;
pub mod nft;
mod nft_elements;
mod nft_encode;
mod nft_socket;
mod nft_verify;
pub mod packet;
pub mod plan;
pub mod policy;
pub mod ruleset;
pub mod sysctl;
pub mod watch;

pub use fd_channel::FdChannel;
pub use link_watch::{LinkChange, LinkWatch};
pub use links::{Link, LinkError, Links};
pub use nft::{Nft, VerifyError};
pub use nft_encode::Counter;
pub use nft_socket::NftError;
pub use nft_verify::{Divergence, Finding};
pub use packet::{Frame, PacketError, PacketSocket};
pub use sysctl::{Setting, SysctlError};
pub use watch::{TableChanged, Watch};
