//! The kernel's firewall: replaces, changes, reads and removes our one table. Never touches another.

use crate::netlink::{Attributes, Message, Received};
use crate::nft_elements::{
    Element, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE, elements,
    read_elements, read_userdata,
};
use crate::nft_encode::{self, Counter, FAMILY, Step};
use crate::nft_socket::{NftError, NftSocket};
use crate::nft_verify::{Divergence, KernelChain, KernelRule, KernelSet, KernelTable, compare};
use crate::ruleset::{LEASED, Ruleset};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

// linux/netfilter/nf_tables.h
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_LEN: u16 = 5;

/// Sequence numbers one request may use up, retries included.
const SEQUENCES_PER_DUMP: u32 = 64;

/// A connection to the firewall of the network namespace it was opened in.
///
/// Calls are synchronous: when they return, the kernel has done it. They do not wait for anything but the
/// kernel's own work (milliseconds at 60,000 elements).
pub struct Nft {
    socket: NftSocket,
    sequence: u32,
}

/// What [`Nft::verify`] has to say.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The kernel's table is not the planned one.
    #[error("the firewall is not what was applied: {0}")]
    Diverged(Divergence),
    /// It could not be read.
    #[error(transparent)]
    Failed(#[from] NftError),
}

impl Nft {
    /// Opens the connection.
    pub fn open() -> Result<Self, NftError> {
        Ok(Nft { socket: NftSocket::open(0)?, sequence: 1 })
    }

    /// The netlink port of this connection; [`crate::watch::Watch`] ignores changes made through it.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Replaces our table by the plan, in one transaction: packets see the old table or the new one.
    /// Counters of rules that are in both go on from where they were.
    ///
    /// Where the send buffer cannot hold the leased addresses of one transaction (an unprivileged container
    /// with tens of thousands of them and a small `net.core.wmem_max`), the rest follows in further
    /// transactions before this returns.
    ///
    /// # Errors
    /// On a refusal nothing of the refused transaction took effect.
    pub fn apply(
        &mut self,
        ruleset: &Ruleset,
        leased: impl IntoIterator<Item = Ipv4Addr>,
    ) -> Result<(), NftError> {
        // Without the old counts nothing is lost but the counts.
        let counters = self.counters(&ruleset.table).unwrap_or_default();
        let mut steps = nft_encode::replace_table(ruleset, &counters);
        let leased: Vec<_> = leased.into_iter().map(Element::address).collect();
        steps.extend(elements(libc::NFT_MSG_NEWSETELEM, &ruleset.table, LEASED, &leased));
        self.transact(steps)
    }

    /// Adds and removes leased addresses. Those already there or already gone are fine; an address in both
    /// lists ends up removed.
    ///
    /// # Errors
    /// `ENOENT` if the table is not there: apply it first.
    pub fn change_leased(
        &mut self,
        table: &str,
        add: &[Ipv4Addr],
        remove: &[Ipv4Addr],
    ) -> Result<(), NftError> {
        let distinct = |addresses: &[Ipv4Addr]| {
            let distinct: BTreeSet<_> = addresses.iter().copied().collect();
            distinct.into_iter().map(Element::address).collect::<Vec<_>>()
        };
        let (add, remove) = (distinct(add), distinct(remove));
        let mut steps = elements(libc::NFT_MSG_NEWSETELEM, table, LEASED, &add);
        // Deleting what is not there would fail the whole transaction: each goes in before it goes out,
        // in the same message order so that a split transaction stays correct.
        let ensure = elements(libc::NFT_MSG_NEWSETELEM, table, LEASED, &remove);
        let delete = elements(libc::NFT_MSG_DELSETELEM, table, LEASED, &remove);
        steps.extend(ensure.into_iter().zip(delete).flat_map(|(ensure, delete)| [ensure, delete]));
        self.transact(steps)
    }

    /// Removes our table, whether it is there or not.
    pub fn remove(&mut self, table: &str) -> Result<(), NftError> {
        self.transact(nft_encode::delete_table(table))
    }

    /// Packets and bytes by rule id.
    pub fn counters(&mut self, table: &str) -> Result<BTreeMap<String, Counter>, NftError> {
        let rules = self.rules(table)?;
        Ok(rules.into_iter().filter_map(|rule| Some((rule.id?, rule.counter?))).collect())
    }

    /// The leased addresses the kernel has.
    pub fn leased(&mut self, table: &str) -> Result<BTreeSet<Ipv4Addr>, NftError> {
        let elements = self.elements(table, LEASED)?;
        let address = |element: Element| <[u8; 4]>::try_from(element.key).ok().map(Ipv4Addr::from);
        Ok(elements.into_iter().filter_map(address).collect())
    }

    /// Compares the kernel's table with the plan: chains and where they hook, every rule by id, fingerprint
    /// and place, sets and their elements.
    pub fn verify(
        &mut self,
        ruleset: &Ruleset,
        leased: impl IntoIterator<Item = Ipv4Addr>,
    ) -> Result<(), VerifyError> {
        let kernel = self.read_table(&ruleset.table)?;
        let divergence = compare(ruleset, leased, &kernel);
        if divergence.is_empty() { Ok(()) } else { Err(VerifyError::Diverged(divergence)) }
    }

    fn read_table(&mut self, table: &str) -> Result<KernelTable, NftError> {
        let request = Message::new(libc::NFT_MSG_GETTABLE, libc::NLM_F_DUMP, FAMILY);
        let flags = self.dump("list tables", &request, |message| {
            let attributes = message.attributes();
            (attributes.string(NFTA_TABLE_NAME)? == table)
                .then(|| attributes.u32(NFTA_TABLE_FLAGS).unwrap_or_default())
        })?;
        let Some(&flags) = flags.first() else { return Ok(KernelTable::default()) };
        let request = Message::new(libc::NFT_MSG_GETCHAIN, libc::NLM_F_DUMP, FAMILY);
        let chains = self.dump("list chains", &request, |message| read_chain(message, table))?;
        let rules = self.rules(table)?;
        let mut request = Message::new(libc::NFT_MSG_GETSET, libc::NLM_F_DUMP, FAMILY);
        request.put_str(NFTA_SET_TABLE, table);
        let mut sets = self.dump("list sets", &request, |message| read_set(message, table))?;
        for set in &mut sets {
            set.elements = match self.elements(table, &set.name) {
                Ok(elements) => elements.into_iter().collect(),
                // Deleted since it was listed: the same as empty.
                Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => BTreeSet::new(),
                Err(error) => return Err(error),
            };
        }
        Ok(KernelTable { exists: true, flags, chains, rules, sets })
    }

    fn rules(&mut self, table: &str) -> Result<Vec<KernelRule>, NftError> {
        let mut request = Message::new(libc::NFT_MSG_GETRULE, libc::NLM_F_DUMP, FAMILY);
        request.put_str(NFTA_RULE_TABLE, table);
        self.dump("list rules", &request, |message| read_rule(message, table))
    }

    fn elements(&mut self, table: &str, set: &str) -> Result<Vec<Element>, NftError> {
        let mut request = Message::new(libc::NFT_MSG_GETSETELEM, libc::NLM_F_DUMP, FAMILY);
        request.put_str(NFTA_SET_ELEM_LIST_TABLE, table);
        request.put_str(NFTA_SET_ELEM_LIST_SET, set);
        let batches = self.dump("list set elements", &request, |message| {
            Some(read_elements(message.attributes().find(NFTA_SET_ELEM_LIST_ELEMENTS)?))
        })?;
        Ok(batches.into_iter().flatten().collect())
    }

    fn dump<T>(
        &mut self,
        step: &str,
        request: &Message,
        read: impl FnMut(&Received<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NftError> {
        let sequence = self.take_sequences(SEQUENCES_PER_DUMP);
        self.socket.dump(sequence, step, request, read)
    }

    /// Sends the steps in as few transactions as the send buffer allows; one, nearly always.
    fn transact(&mut self, steps: Vec<Step>) -> Result<(), NftError> {
        let limit = self.socket.transaction_limit();
        let mut steps = steps.into_iter().peekable();
        while steps.peek().is_some() {
            let mut room = limit;
            let mut transaction = Vec::new();
            while let Some(step) =
                steps.next_if(|(_, message)| transaction.is_empty() || message.len() <= room)
            {
                room = room.saturating_sub(step.1.len());
                transaction.push(step);
            }
            let sequence = self.take_sequences(transaction.len() as u32 + 2);
            self.socket.transact(sequence, transaction)?;
        }
        Ok(())
    }

    fn take_sequences(&mut self, count: u32) -> u32 {
        let first = self.sequence;
        self.sequence = self.sequence.wrapping_add(count);
        first
    }
}

fn read_chain(message: &Received<'_>, table: &str) -> Option<KernelChain> {
    let attributes = message.attributes();
    if attributes.string(NFTA_CHAIN_TABLE)? != table {
        return None;
    }
    let hook = Attributes::nested(attributes.find(NFTA_CHAIN_HOOK).unwrap_or_default());
    Some(KernelChain {
        name: attributes.string(NFTA_CHAIN_NAME)?.to_owned(),
        kind: attributes.string(NFTA_CHAIN_TYPE).unwrap_or_default().to_owned(),
        hook: hook.u32(NFTA_HOOK_HOOKNUM),
        priority: hook.u32(NFTA_HOOK_PRIORITY).map(u32::cast_signed),
        policy: attributes.u32(NFTA_CHAIN_POLICY),
    })
}

fn read_rule(message: &Received<'_>, table: &str) -> Option<KernelRule> {
    let attributes = message.attributes();
    if attributes.string(NFTA_RULE_TABLE)? != table {
        return None;
    }
    let (id, fingerprint) = read_userdata(attributes.find(NFTA_RULE_USERDATA).unwrap_or_default());
    let mut expressions = Attributes::nested(attributes.find(NFTA_RULE_EXPRESSIONS).unwrap_or_default());
    let counter = expressions.find_map(|(_, expression)| {
        let expression = Attributes::nested(expression);
        if expression.string(NFTA_EXPR_NAME)? != "counter" {
            return None;
        }
        let data = Attributes::nested(expression.find(NFTA_EXPR_DATA)?);
        Some(Counter { packets: data.u64(NFTA_COUNTER_PACKETS)?, bytes: data.u64(NFTA_COUNTER_BYTES)? })
    });
    Some(KernelRule {
        chain: attributes.string(NFTA_RULE_CHAIN)?.to_owned(),
        handle: attributes.u64(NFTA_RULE_HANDLE).unwrap_or_default(),
        id,
        fingerprint,
        counter,
    })
}

fn read_set(message: &Received<'_>, table: &str) -> Option<KernelSet> {
    let attributes = message.attributes();
    if attributes.string(NFTA_SET_TABLE)? != table {
        return None;
    }
    Some(KernelSet {
        name: attributes.string(NFTA_SET_NAME)?.to_owned(),
        flags: attributes.u32(NFTA_SET_FLAGS).unwrap_or_default(),
        key_len: attributes.u32(NFTA_SET_KEY_LEN).unwrap_or_default(),
        elements: BTreeSet::new(),
    })
}
