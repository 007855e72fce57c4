//! The kernel edge against a real kernel, in network namespaces of its own: nothing of the machine's
//! network is touched and all tests run at once.
//!
//! Needs root, or a user namespace: `unshare --user --map-root-user --net cargo test`. Without privilege the
//! tests fail; `PROXIMITY_SKIP_KERNEL_TESTS=1` lets them pass unrun.

mod host;
mod links;
mod packet;
mod table;
mod traffic;
mod watch;
