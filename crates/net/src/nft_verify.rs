//! Kernel table against planned table. Pure.

use crate::nft_elements::{Element, planned_elements};
use crate::nft_encode::Counter;
use crate::ruleset::{Chain, Ruleset, SetContent};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

/// How the kernel's table differs from the plan. At most [`Divergence::LIMIT`] findings are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Divergence {
    findings: Vec<Finding>,
    further: usize,
}

impl Divergence {
    /// Findings kept; the rest is only counted.
    pub const LIMIT: usize = 32;

    /// The first findings.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    fn note(&mut self, finding: Finding) {
        if self.findings.len() < Self::LIMIT { self.findings.push(finding) } else { self.further += 1 }
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, finding) in self.findings.iter().enumerate() {
            write!(f, "{}{finding}", if i == 0 { "" } else { "; " })?;
        }
        if self.further > 0 {
            write!(f, "; and {} more", self.further)?;
        }
        Ok(())
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// The whole table is gone.
    #[error("the table is gone")]
    TableMissing,
    /// The table has flags (dormant: its chains are switched off).
    #[error("the table has flags {0:#x}; 0x1 means its chains are switched off")]
    TableFlags(u32),
    /// A planned chain is gone.
    #[error("chain {0} is gone")]
    ChainMissing(String),
    /// Type, hook, priority or policy is another.
    #[error("chain {0} has another type, hook, priority or policy")]
    ChainChanged(String),
    /// A chain nobody planned.
    #[error("chain {0} was added")]
    ChainUnexpected(String),
    /// A planned rule is gone.
    #[error("rule {id} of chain {chain} is gone")]
    RuleMissing {
        /// Chain it belongs to.
        chain: String,
        /// Rule id.
        id: String,
    },
    /// A rule goes by a planned id but is not what was planned.
    #[error("rule {id} of chain {chain} was replaced")]
    RuleChanged {
        /// Chain it is in.
        chain: String,
        /// Rule id.
        id: String,
    },
    /// A rule nobody planned.
    #[error("a rule (handle {handle}) was added to chain {chain}")]
    RuleUnexpected {
        /// Chain it is in.
        chain: String,
        /// Kernel's handle, for `nft delete rule … handle N`.
        handle: u64,
    },
    /// The planned rules are there in another order.
    #[error("the rules of chain {0} are in another order")]
    RuleOrder(String),
    /// A planned set is gone.
    #[error("set {0} is gone")]
    SetMissing(String),
    /// A set has another type.
    #[error("set {0} has another type")]
    SetChanged(String),
    /// A set nobody planned.
    #[error("set {0} was added")]
    SetUnexpected(String),
    /// Elements differ.
    #[error("set {set}: {missing} elements are gone, {unexpected} were added")]
    Elements {
        /// Set name.
        set: String,
        /// Planned and not there.
        missing: usize,
        /// There and not planned.
        unexpected: usize,
    },
}

#[derive(Debug, Clone, Default)]
pub(crate) struct KernelTable {
    pub(crate) exists: bool,
    pub(crate) flags: u32,
    pub(crate) chains: Vec<KernelChain>,
    pub(crate) rules: Vec<KernelRule>,
    pub(crate) sets: Vec<KernelSet>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelChain {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) hook: Option<u32>,
    pub(crate) priority: Option<i32>,
    pub(crate) policy: Option<u32>,
}

#[derive(Debug, Clone)]
pub(crate) struct KernelRule {
    pub(crate) chain: String,
    pub(crate) handle: u64,
    pub(crate) id: Option<String>,
    pub(crate) fingerprint: Option<u64>,
    pub(crate) counter: Option<Counter>,
}

#[derive(Debug, Clone)]
pub(crate) struct KernelSet {
    pub(crate) name: String,
    pub(crate) flags: u32,
    pub(crate) key_len: u32,
    pub(crate) elements: BTreeSet<Element>,
}

pub(crate) fn compare(
    planned: &Ruleset,
    leased: impl IntoIterator<Item = Ipv4Addr>,
    kernel: &KernelTable,
) -> Divergence {
    let mut divergence = Divergence::default();
    if !kernel.exists {
        divergence.note(Finding::TableMissing);
        return divergence;
    }
    if kernel.flags != 0 {
        divergence.note(Finding::TableFlags(kernel.flags));
    }
    for chain in &planned.chains {
        let expected = KernelChain {
            name: chain.name.to_owned(),
            kind: chain.hook.chain_type().to_owned(),
            hook: Some(chain.hook.number()),
            priority: Some(chain.hook.priority()),
            policy: Some(libc::NF_ACCEPT as u32),
        };
        match kernel.chains.iter().find(|found| found.name == chain.name) {
            None => {
                divergence.note(Finding::ChainMissing(chain.name.to_owned()));
                continue;
            }
            Some(found) if *found != expected => {
                divergence.note(Finding::ChainChanged(chain.name.to_owned()));
            }
            Some(_) => {}
        }
        compare_rules(chain, &kernel.rules, &mut divergence);
    }
    for found in &kernel.chains {
        if !planned.chains.iter().any(|chain| chain.name == found.name) {
            divergence.note(Finding::ChainUnexpected(found.name.clone()));
        }
    }
    compare_sets(planned, leased, &kernel.sets, &mut divergence);
    divergence
}

fn compare_rules(chain: &Chain, rules: &[KernelRule], divergence: &mut Divergence) {
    let mut expected: BTreeMap<&str, u64> =
        chain.rules.iter().map(|rule| (rule.id.as_str(), rule.fingerprint())).collect();
    let found: Vec<_> = rules.iter().filter(|rule| rule.chain == chain.name).collect();
    let mut known = Vec::new();
    for rule in &found {
        let chain = || chain.name.to_owned();
        // Taken out once seen, so that a copy of a planned rule is unexpected.
        match rule.id.as_deref().and_then(|id| expected.remove_entry(id)) {
            None => divergence.note(Finding::RuleUnexpected { chain: chain(), handle: rule.handle }),
            Some((id, fingerprint)) => {
                known.push(id);
                if rule.fingerprint != Some(fingerprint) {
                    divergence.note(Finding::RuleChanged { chain: chain(), id: id.to_owned() });
                }
            }
        }
    }
    for id in expected.keys() {
        divergence.note(Finding::RuleMissing { chain: chain.name.to_owned(), id: (*id).to_owned() });
    }
    let order = chain.rules.iter().map(|rule| rule.id.as_str()).filter(|id| !expected.contains_key(id));
    if !order.eq(known) {
        divergence.note(Finding::RuleOrder(chain.name.to_owned()));
    }
}

fn compare_sets(
    planned: &Ruleset,
    leased: impl IntoIterator<Item = Ipv4Addr>,
    sets: &[KernelSet],
    divergence: &mut Divergence,
) {
    let mut leased: BTreeSet<_> = leased.into_iter().map(Element::address).collect();
    for set in &planned.sets {
        let name = || set.name.to_owned();
        let Some(found) = sets.iter().find(|found| found.name == set.name) else {
            divergence.note(Finding::SetMissing(name()));
            continue;
        };
        let (flags, key_len) = match set.content {
            SetContent::Leased { .. } | SetContent::Addresses(_) => (0, 4),
            SetContent::Ranges(_) => (libc::NFT_SET_INTERVAL as u32, 4),
            SetContent::Interfaces(_) => (0, 16),
        };
        if (found.flags, found.key_len) != (flags, key_len) {
            divergence.note(Finding::SetChanged(name()));
            continue;
        }
        let expected = match set.content {
            SetContent::Leased { .. } => std::mem::take(&mut leased),
            _ => planned_elements(set).into_iter().collect(),
        };
        let missing = expected.difference(&found.elements).count();
        let unexpected = found.elements.difference(&expected).count();
        if missing + unexpected > 0 {
            divergence.note(Finding::Elements { set: name(), missing, unexpected });
        }
    }
    for found in sets {
        if !planned.sets.iter().any(|set| set.name == found.name) {
            divergence.note(Finding::SetUnexpected(found.name.clone()));
        }
    }
}
