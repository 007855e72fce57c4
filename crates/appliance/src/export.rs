//! The lease file that others read, in the form that dnsmasq writes.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use proximity_table::{Ledger, Timestamp, World};
use tokio::sync::watch;

use crate::log;

/// Name of the file below `state_dir`.
pub const FILE_NAME: &str = "dnsmasq.leases";
/// Least time between two writings: a burst of leases is one file.
const REST: Duration = Duration::from_millis(500);

/// Keeps the file equal to the ledger until `stop` says true; what is being written then is written out.
pub async fn run(
    directory: PathBuf,
    world: Arc<ArcSwap<World>>,
    mut published: watch::Receiver<u64>,
    mut stop: watch::Receiver<bool>,
) {
    let path = directory.join(FILE_NAME);
    let mut written = None;
    loop {
        published.mark_unchanged();
        let text = render(world.load().facts.ledger());
        if written.as_ref() != Some(&text) {
            let (target, content) = (path.clone(), text.clone());
            let result = tokio::task::spawn_blocking(move || replace(&target, &content)).await;
            match result {
                Ok(Ok(())) => written = Some(text),
                Ok(Err(error)) => log!(Warn, "export", "the lease file is not written", error = error),
                Err(_) => return,
            }
        }
        let changed = async {
            tokio::time::sleep(REST).await;
            published.changed().await.is_ok()
        };
        tokio::select! {
            changed = changed => if !changed { return },
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// The file's text: `expiry mac ip hostname client-id`, one line for each lease that is held.
fn render(ledger: &Ledger) -> String {
    let mut text = String::new();
    for lease in ledger.iter().filter(|lease| lease.is_bound()) {
        // dnsmasq writes 0 for a lease without end.
        let expiry = if lease.expires == Timestamp::NEVER { 0 } else { lease.expires.0 };
        let hostname = lease.hostname.as_ref().map_or("*", |name| name.as_str());
        let _ = write!(text, "{expiry} {} {} {hostname} ", lease.mac, lease.ip);
        match lease.client_id.as_deref() {
            Some(id) => {
                for (at, byte) in id.iter().enumerate() {
                    let _ = write!(text, "{}{byte:02x}", if at == 0 { "" } else { ":" });
                }
            }
            None => text.push('*'),
        }
        text.push('\n');
    }
    text
}

/// Replaces a file in one step: readers see the old one or the new one.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text)?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proximity_table::{Label, Lease, LeaseState, Mac};

    #[test]
    fn lines_are_as_dnsmasq_writes_them() {
        let lease = |last: u8, state| Lease {
            ip: [10, 20, 0, last].into(),
            mac: Mac([0xbc, 0x24, 0x11, 0, 0, last]),
            client_id: (last == 1).then(|| vec![1, 0xbc, 0x24]),
            hostname: (last == 1).then(|| Label::from_client(b"nginx-01").unwrap()),
            network: "apps".into(),
            state,
            expires: Timestamp(1_700_000_000),
            epoch: 1,
        };
        let ledger = Ledger::of([
            lease(1, LeaseState::Bound),
            lease(2, LeaseState::Bound),
            lease(3, LeaseState::Released),
        ]);
        assert_eq!(
            render(&ledger),
            "1700000000 bc:24:11:00:00:01 10.20.0.1 nginx-01 01:bc:24\n1700000000 bc:24:11:00:00:02 10.20.0.2 * *\n"
        );
    }
}
