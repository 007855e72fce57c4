use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use crate::authority::{Authority, AuthorityError, Stamp};

/// Files that are remembered; beyond them any of them is forgotten.
const MOST: usize = 256;
/// Files that are looked at a time: a disk that hangs keeps no more threads than this.
const MOST_LOOKS: usize = 4;

/// What was made of the files that `tls_ca` names. A file that is lost, or broken by whoever renews it, takes no
/// backend away: what it last said counts until it says something else. One for all who ask the same backends: a thread
/// that meets a file for the first time after it was lost goes on like the others.
pub struct KeptAuthorities<T = TlsConnector> {
    files: Mutex<HashMap<String, Kept<T>>>,
    tell: Option<Tell>,
    looks: Arc<Semaphore>,
}

type Tell = Box<dyn Fn(&str) + Send + Sync>;

struct Kept<T> {
    stamp: Stamp,
    made: T,
    /// Whether the file could not be used when it was last looked at.
    is_lost: bool,
}

impl<T> Default for KeptAuthorities<T> {
    fn default() -> KeptAuthorities<T> {
        KeptAuthorities { files: Mutex::default(), tell: None, looks: Arc::new(Semaphore::new(MOST_LOOKS)) }
    }
}

impl<T> KeptAuthorities<T> {
    /// Nothing is known yet. `tell` gets a sentence when a file can no longer be used and what it last said goes on to
    /// count; once until it can be used again.
    pub fn telling(tell: impl Fn(&str) + Send + Sync + 'static) -> KeptAuthorities<T> {
        KeptAuthorities { tell: Some(Box::new(tell)), ..KeptAuthorities::default() }
    }
}

impl<T: Clone + Send + 'static> KeptAuthorities<T> {
    /// What is made of a file; `None` when it was never good. Whether it is still the same is asked each time: it costs a
    /// fraction of a handshake, and whoever renews an authority need not tell anybody. The disk is waited for on a thread
    /// of its own, not by whoever asks.
    pub(crate) async fn ready(
        self: &Arc<KeptAuthorities<T>>,
        path: &str,
        make: impl FnOnce(Authority) -> T + Send + 'static,
    ) -> Option<T> {
        let look = self.looks.clone().acquire_owned().await.ok()?;
        let (kept, path) = (self.clone(), path.to_owned());
        let looking = move || {
            let _look = look;
            kept.get(&path, make)
        };
        tokio::task::spawn_blocking(looking).await.ok()?.ok()
    }
}

impl<T: Clone> KeptAuthorities<T> {
    /// As [`KeptAuthorities::ready`], on this thread. The error is that of a file that was never good.
    fn get(&self, path: &str, make: impl FnOnce(Authority) -> T) -> Result<T, AuthorityError> {
        // Disks are waited for outside the lock.
        let found = Stamp::of(path).and_then(|stamp| match self.same(path, stamp) {
            Some(made) => Ok((stamp, made)),
            None => Ok((stamp, make(Authority::read(path)?))),
        });
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok((stamp, made)) => {
                if files.len() >= MOST
                    && !files.contains_key(path)
                    && let Some(any) = files.keys().next().cloned()
                {
                    files.remove(&any);
                }
                files.insert(path.to_owned(), Kept { stamp, made: made.clone(), is_lost: false });
                Ok(made)
            }
            Err(error) => {
                let Some(kept) = files.get_mut(path) else { return Err(error) };
                let was_lost = std::mem::replace(&mut kept.is_lost, true);
                let made = kept.made.clone();
                drop(files);
                if let Some(tell) = self.tell.as_ref().filter(|_| !was_lost) {
                    tell(&format!(
                        "tls_ca: {error}; until then what it last said counts, but not after a restart"
                    ));
                }
                Ok(made)
            }
        }
    }

    fn same(&self, path: &str, stamp: Stamp) -> Option<T> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(path).filter(|kept| kept.stamp == stamp).map(|kept| kept.made.clone())
    }
}

impl<T> fmt::Debug for KeptAuthorities<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeptAuthorities")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ONE: &[u8] = include_bytes!("../tests/proxy/certificates/self_signed.pem");

    #[test]
    fn a_lost_file_is_told_of_once_and_what_it_said_counts() {
        let path = std::env::temp_dir().join(format!("proximity-kept-authority-{}.pem", std::process::id()));
        let name = path.to_str().unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = told.clone();
        let kept = KeptAuthorities::telling(move |text: &str| heard.lock().unwrap().push(text.to_owned()));
        let count = || kept.get(name, |authority| authority.certificates.len());
        assert!(matches!(count(), Err(AuthorityError::Unreadable(..))), "it was never there");
        assert!(told.lock().unwrap().is_empty(), "whoever asked knows");
        fs::write(&path, ONE).unwrap();
        assert_eq!(count().unwrap(), 1);
        fs::remove_file(&path).unwrap();
        assert_eq!([count().unwrap(), count().unwrap()], [1, 1]);
        let sentence = told.lock().unwrap()[0].clone();
        assert!(sentence.contains(name) && sentence.contains("cannot be read"), "{sentence}");
        assert_eq!(told.lock().unwrap().len(), 1);
        fs::write(&path, [ONE, ONE].concat()).unwrap();
        assert_eq!(count().unwrap(), 2, "another one counts at once");
        // Half written, and a directory in its place.
        fs::write(&path, &ONE[..100]).unwrap();
        assert_eq!([count().unwrap(), count().unwrap()], [2, 2]);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!((count().unwrap(), told.lock().unwrap().len()), (2, 2));
        fs::remove_dir(&path).unwrap();
    }

    #[tokio::test]
    async fn who_asks_does_not_wait_for_the_disk_itself() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/proxy/certificates/self_signed.pem");
        let kept = Arc::new(KeptAuthorities::default());
        let made = kept.ready(file, |_| std::thread::current().id()).await;
        assert!(made.is_some_and(|thread| thread != std::thread::current().id()));
        assert_eq!(kept.ready("/nowhere/ca.pem", |_| std::thread::current().id()).await, None);
        assert_eq!(kept.looks.available_permits(), MOST_LOOKS);
    }

    #[test]
    fn no_more_files_are_remembered_than_fit() {
        let dir = std::env::temp_dir().join(format!("proximity-kept-authorities-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let kept = KeptAuthorities::default();
        for at in 0..MOST + 3 {
            let path = dir.join(at.to_string());
            fs::write(&path, ONE).unwrap();
            kept.get(path.to_str().unwrap(), |_| at).unwrap();
        }
        assert_eq!(kept.files.lock().unwrap().len(), MOST);
        fs::remove_dir_all(&dir).unwrap();
    }
}
