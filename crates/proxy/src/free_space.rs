use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;

/// How often the file system is asked.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What must stay free on a file system: a share of it, but within two bounds.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Hundredths of the file system's size.
    pub percent: u64,
    /// Octets that stay free however small it is.
    pub least: u64,
    /// Octets that are enough however large it is.
    pub most: u64,
}

/// The room on the file system of a directory above what must stay free there.
///
/// Between two looks only what is taken here is known, so the room is counted down: no burst can use up what
/// is kept.
#[derive(Debug)]
pub struct FreeSpace {
    dir: PathBuf,
    keep: Keep,
    looked: Option<Instant>,
    /// Octets.
    room: u64,
}

impl FreeSpace {
    /// The file system of `dir`, which need not be there yet: its parent's is taken then.
    pub fn new(dir: PathBuf, keep: Keep) -> FreeSpace {
        FreeSpace { dir, keep, looked: None, room: 0 }
    }

    /// Whether so many octets may be written.
    pub fn take(&mut self, octets: usize, now: Instant) -> bool {
        if self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK_AGAIN) {
            self.looked = Some(now);
            self.room = self.look();
        }
        match self.room.checked_sub(octets as u64) {
            Some(left) => {
                self.room = left;
                true
            }
            None => false,
        }
    }

    /// A file system that does not say (or has no size, as those of the kernel) is no reason to hold back: a
    /// write that fails there says why.
    fn look(&self) -> u64 {
        let Some(there) = self.dir.ancestors().find_map(|path| statvfs(path).ok()) else { return u64::MAX };
        let octets = |blocks: u64| blocks.saturating_mul(there.fragment_size());
        // Not `blocks_free`: what is set aside for root is no room.
        room(octets(there.blocks()), octets(there.blocks_available()), self.keep)
    }
}

/// Octets above what is kept, on a file system of `size` with `free` octets.
fn room(size: u64, free: u64, keep: Keep) -> u64 {
    if size == 0 {
        return u64::MAX;
    }
    let share = (size / 100).saturating_mul(keep.percent);
    free.saturating_sub(share.min(keep.most).max(keep.least))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const KEEP: Keep = Keep { percent: 5, least: 64 * MIB, most: 1024 * MIB };

    #[test]
    fn a_share_is_kept_within_bounds() {
        let room = |size, free| room(size * MIB, free * MIB, KEEP) / MIB;
        assert_eq!(room(10_000, 1_000), 500, "5 %");
        assert_eq!(room(10_000, 500), 0);
        assert_eq!(room(10_000, 3), 0);
        assert_eq!(room(100, 100), 36, "a small one keeps the least");
        assert_eq!(room(1_000_000, 2_000), 976, "a large one keeps the most");
        assert_eq!(super::room(0, 0, KEEP), u64::MAX, "one without size keeps nothing");
    }

    #[test]
    fn room_is_counted_down_until_the_next_look() {
        let start = Instant::now();
        let nothing = Keep { percent: 0, least: 0, most: 0 };
        let mut space = FreeSpace {
            room: 10,
            looked: Some(start),
            ..FreeSpace::new(std::env::temp_dir().join("proximity-not-there"), nothing)
        };
        assert_eq!([6, 6, 4, 1].map(|octets| space.take(octets, start)), [true, false, true, false]);
        assert!(
            space.take(1, start + LOOK_AGAIN),
            "a directory that is still to be made has a parent with room"
        );
        let mut full = FreeSpace::new(std::env::temp_dir(), Keep { least: u64::MAX, ..nothing });
        assert!(!full.take(1, start));
    }
}
