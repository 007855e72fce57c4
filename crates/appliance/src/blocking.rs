//! Blocked names: reads the lists of the configuration, off the data threads, and publishes what they say.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proximity_admin::{BlocklistView, MetricKind, MetricsText, rfc3339};
use proximity_config::{Block, Blocked, Config};
use proximity_dns::{
    BlockAnswer, BlockRule, HashKey, ListLimits, ListReader, NameList, Policy, PublishedPolicy,
};
use proximity_table::{Ipv4Net, Timestamp};
use tokio::sync::Notify;

use crate::{clock, log};

/// How long a file that cannot be read is left alone: whoever fetches it may come after us.
const AFTER_ERROR: Duration = Duration::from_secs(60);

/// Blocklists: what is wanted, what was read, and what is published of it.
pub struct Blocking {
    key: HashKey,
    published: PublishedPolicy,
    rules: Mutex<Vec<Arc<Mutex<Rule>>>>,
    changed: Notify,
}

/// One `[[dns.block]]`.
struct Rule {
    block: Block,
    networks: Vec<Ipv4Net>,
    list: Arc<NameList>,
    /// Of the file that was read last.
    file: Option<FileState>,
    read: Option<Timestamp>,
    /// Why the last attempt failed.
    error: Option<String>,
    /// When to look at the file again.
    due: Instant,
    blocked: Arc<AtomicU64>,
}

/// By what a file is known to be the one that was read.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileState {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Blocking {
    /// What a configuration wants; nothing is blocked until [`Blocking::run`] has read it.
    pub fn new(config: &Config) -> Blocking {
        let blocking = Blocking {
            key: HashKey::random(),
            published: PublishedPolicy::default(),
            rules: Mutex::default(),
            changed: Notify::new(),
        };
        blocking.follow(config);
        blocking
    }

    /// Where the policy is published.
    pub fn published(&self) -> PublishedPolicy {
        self.published.clone()
    }

    /// Wants what another configuration says. A rule that stays keeps its list, whose file is looked at again.
    pub fn follow(&self, config: &Config) {
        let mut rules = lock(&self.rules);
        let mut old = std::mem::take(&mut *rules);
        *rules = config
            .dns
            .block
            .iter()
            .map(|block| {
                let is_named = |name: &str| block.networks.iter().any(|wanted| wanted.as_str() == name);
                let networks = config.intent.networks.iter().filter(|network| is_named(&network.name));
                let networks = networks.map(|network| network.address).collect();
                let stays = old.iter().position(|rule| lock(rule).block == *block);
                let Some(rule) = stays.map(|at| old.swap_remove(at)) else {
                    return Arc::new(Mutex::new(Rule::new(block.clone(), networks, self.key)));
                };
                let mut kept = lock(&rule);
                (kept.networks, kept.due) = (networks, Instant::now());
                drop(kept);
                rule
            })
            .collect();
        drop(rules);
        self.changed.notify_one();
    }

    /// Reads lists whenever it is time to, and publishes them.
    pub async fn run(self: Arc<Self>) {
        loop {
            let blocking = self.clone();
            // The lists of a million names take a second, and a mount may hang.
            let next = tokio::task::spawn_blocking(move || blocking.read()).await;
            let wait = match next {
                Ok(Some(next)) => tokio::time::sleep_until(next.into()),
                Ok(None) => tokio::time::sleep(Duration::MAX),
                Err(error) => {
                    log!(Error, "dns", "the blocklists were not read", error = error);
                    tokio::time::sleep(Duration::from_secs(60))
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Reads what is due and publishes all; returns when something is due again.
    fn read(&self) -> Option<Instant> {
        let rules = lock(&self.rules).clone();
        let mut next = None;
        for rule in &rules {
            let now = Instant::now();
            let (wanted, file, is_due) = {
                let rule = lock(rule);
                (rule.block.clone(), rule.file, rule.due <= now)
            };
            if is_due {
                // The lock is not held while the disk is waited for.
                let read = read_list(&wanted, self.key, file);
                lock(rule).take(read, now);
            }
            let due = wanted.list.is_some().then(|| lock(rule).due);
            next = next.into_iter().chain(due).min();
        }
        // Others may be wanted by now; then this is done again.
        let rules: Vec<_> = rules.iter().map(|rule| lock(rule).as_block_rule()).collect();
        let policy = (!rules.is_empty()).then(|| Arc::new(Policy::new(self.key, rules)));
        self.published.store(policy);
        next
    }

    /// The rules as the API shows them.
    pub fn views(&self) -> Vec<BlocklistView> {
        lock(&self.rules).iter().map(|rule| lock(rule).view()).collect()
    }

    /// What cannot be read.
    pub fn troubles(&self) -> Vec<String> {
        let views = self.views();
        let failed = views.into_iter().filter_map(|view| view.error.map(|error| (view.list, error)));
        failed
            .map(|(list, error)| {
                let list = list.unwrap_or_default();
                format!("the blocklist {list} is not read: {error}: correct the file and reload")
            })
            .collect()
    }

    /// What blocking adds to the page of figures.
    pub fn figures(&self, page: &mut MetricsText) {
        let views = self.views();
        let mut family = |name, kind, help, value: &dyn Fn(&BlocklistView) -> u64| {
            let mut family = page.family(name, kind, help);
            for (number, view) in views.iter().enumerate() {
                let (number, list) = ((number + 1).to_string(), view.list.as_deref().unwrap_or_default());
                family.sample(&[("rule", &number), ("list", list)], value(view));
            }
        };
        let help = "Questions about names that a rule blocks.";
        family("proximity_dns_rule_blocked_total", MetricKind::Counter, help, &|view| view.blocked);
        let help = "Names that a rule blocks.";
        family("proximity_dns_rule_names", MetricKind::Gauge, help, &|view| view.names as u64);
        let help = "Lines of a list that were not understood.";
        family("proximity_dns_rule_skipped_lines", MetricKind::Gauge, help, &|view| view.skipped);
    }
}

impl Rule {
    /// Until its file is read it has the names that stand in the configuration itself.
    fn new(block: Block, networks: Vec<Ipv4Net>, key: HashKey) -> Rule {
        let list = Arc::new(named(&block, key).finish());
        Rule {
            block,
            networks,
            list,
            file: None,
            read: None,
            error: None,
            due: Instant::now(),
            blocked: Arc::default(),
        }
    }

    /// Takes what was read; of a file that cannot be read the last list stays.
    fn take(&mut self, read: io::Result<Option<(NameList, Option<FileState>)>>, now: Instant) {
        self.due = now + Duration::from_secs(self.block.refresh.into());
        let path = self.block.list.as_deref().unwrap_or(Path::new("")).display().to_string();
        match read {
            Ok(None) => self.error = None,
            Ok(Some((list, file))) => {
                let (names, skipped) = (list.block.len(), list.skipped);
                log!(Info, "dns", "names are blocked", list = path, names = names, skipped_lines = skipped);
                (self.list, self.file) = (Arc::new(list), file);
                (self.read, self.error) = (Some(clock::now()), None);
            }
            Err(error) => {
                let error = Some(error.to_string());
                if self.error != error {
                    log!(
                        Error,
                        "dns",
                        "a blocklist is not read",
                        list = path,
                        error = error.as_deref().unwrap_or_default()
                    );
                }
                self.error = error;
                self.due = self.due.min(now + AFTER_ERROR);
            }
        }
    }

    fn as_block_rule(&self) -> BlockRule {
        BlockRule {
            list: self.list.clone(),
            networks: self.networks.clone(),
            apps: self.block.apps.clone(),
            answer: match self.block.answer {
                Blocked::Zero => BlockAnswer::Zero,
                Blocked::NxDomain => BlockAnswer::NxDomain,
                Blocked::Refused => BlockAnswer::Refused,
            },
            blocked: self.blocked.clone(),
        }
    }

    fn view(&self) -> BlocklistView {
        BlocklistView {
            list: self.block.list.as_ref().map(|list| list.display().to_string()),
            names: self.list.block.len(),
            allowed: self.list.allow.len(),
            octets: self.list.block.size() + self.list.allow.size(),
            skipped: self.list.skipped,
            first_skipped: self.list.first_skipped.clone(),
            is_cut: self.list.is_cut,
            read: self.read.and_then(rfc3339),
            blocked: self.blocked.load(Relaxed),
            error: self.error.clone(),
        }
    }
}

/// A reader that has the names of the configuration already.
fn named(block: &Block, key: HashKey) -> ListReader {
    let mut reader = ListReader::new(key, ListLimits::default());
    block.names.iter().for_each(|name| reader.block(name.as_wire()));
    block.allow.iter().for_each(|name| reader.allow(name.as_wire()));
    reader
}

/// Reads all that a rule blocks; `None` when the file is the one of `before`.
fn read_list(
    block: &Block,
    key: HashKey,
    before: Option<FileState>,
) -> io::Result<Option<(NameList, Option<FileState>)>> {
    let mut reader = named(block, key);
    let Some(path) = &block.list else { return Ok(Some((reader.finish(), None))) };
    // A pipe would be waited for.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    let file = File::open(path)?;
    let meta = file.metadata()?;
    let state =
        FileState { inode: meta.ino(), length: meta.len(), modified: (meta.mtime(), meta.mtime_nsec()) };
    if before == Some(state) {
        return Ok(None);
    }
    reader.read(BufReader::with_capacity(64 << 10, file))?;
    Ok(Some((reader.finish(), Some(state))))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(block: &str) -> Config {
        Config::parse(block).unwrap()
    }

    /// A changed file is read at a reload, one that is gone leaves what was read before, and is told.
    #[test]
    fn a_list_follows_its_file() {
        let path = std::env::temp_dir().join(format!("proximity-blocklist-{}", std::process::id()));
        std::fs::write(&path, "a.example\n/x/\n").unwrap();
        let text = format!("[[dns.block]]\nlist = \"{}\"\nnames = [\"b.example\"]\n", path.display());
        let blocking = Blocking::new(&config(&text));
        let names = || blocking.views()[0].names;
        assert_eq!(names(), 1);
        assert!(blocking.published.load().is_none());
        let next = blocking.read().unwrap();
        assert!(next > Instant::now() + Duration::from_secs(86_000));
        assert!(blocking.published.load().is_some());
        let view = blocking.views().remove(0);
        assert_eq!((view.names, view.skipped, &view.first_skipped[..]), (2, 1, &[2][..]));

        std::fs::write(&path, "a.example\nc.example\nd.example\n").unwrap();
        blocking.read();
        assert_eq!(names(), 2, "it is not time yet");
        blocking.follow(&config(&text));
        blocking.read();
        assert_eq!((names(), blocking.troubles().len()), (4, 0));

        std::fs::remove_file(&path).unwrap();
        blocking.follow(&config(&text));
        let next = blocking.read().unwrap();
        assert!(next <= Instant::now() + AFTER_ERROR, "it is tried again soon");
        assert_eq!((names(), blocking.troubles().len()), (4, 1));

        blocking.follow(&config(""));
        assert_eq!(blocking.read(), None);
        assert!(blocking.published.load().is_none() && blocking.views().is_empty());
    }
}
