//! Which names of others are not looked up for which client, and what is said instead.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwapOption;
use proximity_table::{Ipv4Net, Label, World};

use crate::answer::Asker;
use crate::blocklist::HashKey;
use crate::ede::Ede;
use crate::foreign::Foreign;
use crate::kept::end;
use crate::list_syntax::NameList;
use crate::reply::Rcode;

/// For how many seconds a client may keep that a name is blocked: who lets it through sees that soon.
const TTL: u32 = 10;

const A: u16 = 1;
const AAAA: u16 = 28;

/// Where the policy in force is published; `None`: nothing is blocked.
pub type PublishedPolicy = Arc<ArcSwapOption<Policy>>;

/// What is said about a blocked name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockAnswer {
    /// The addresses 0.0.0.0 and ::, where nobody is; of other types there is nothing.
    #[default]
    Zero,
    /// The name does not exist.
    NxDomain,
    /// REFUSED: a client with another server asks that one.
    Refused,
}

/// Names that are blocked for some clients.
#[derive(Clone, Debug, Default)]
pub struct BlockRule {
    /// Which names.
    pub list: Arc<NameList>,
    /// Clients in these networks. With `apps` empty too: all clients.
    pub networks: Vec<Ipv4Net>,
    /// Clients that are these apps.
    pub apps: Vec<Label>,
    /// What they are told.
    pub answer: BlockAnswer,
    /// Questions that it blocked.
    pub blocked: Arc<AtomicU64>,
}

/// All rules. What any rule lets through for a client is blocked by none.
#[derive(Debug)]
pub struct Policy {
    key: HashKey,
    rules: Vec<BlockRule>,
}

impl Policy {
    /// Rules whose lists were read with this key; the first that blocks a name answers.
    pub fn new(key: HashKey, rules: Vec<BlockRule>) -> Policy {
        Policy { key, rules }
    }

    /// Completes the reply in `out`, which is header and question, if the name is blocked for whoever asks. An alias
    /// of ours is the administrator's own word, and where it leads is not blocked.
    pub(crate) fn answer(
        &self,
        world: &World,
        asker: Asker,
        foreign: &Foreign,
        out: &mut Vec<u8>,
    ) -> Option<Rcode> {
        if foreign.aliased {
            return None;
        }
        let rule = self.key.suffixes(&foreign.name, |start, hash| {
            let blocks = |rule: &&BlockRule| rule.list.block.has(hash, start == 0);
            match self.rules.iter().find(|rule| blocks(rule) && rule.is_for(world, asker)) {
                Some(rule) => ControlFlow::Break(rule),
                None => ControlFlow::Continue(()),
            }
        })?;
        let allows = |rule: &BlockRule| rule.list.allow.contains(self.key, &foreign.name);
        if self.rules.iter().any(|rule| allows(rule) && rule.is_for(world, asker)) {
            return None;
        }
        rule.blocked.fetch_add(1, Relaxed);
        Some(write(rule.answer, foreign, out))
    }
}

impl BlockRule {
    fn is_for(&self, world: &World, asker: Asker) -> bool {
        if self.networks.is_empty() && self.apps.is_empty() {
            return true;
        }
        let in_network = match asker.client.to_canonical() {
            std::net::IpAddr::V4(ip) => self.networks.iter().any(|network| network.contains(ip)),
            std::net::IpAddr::V6(_) => false,
        };
        in_network
            || !self.apps.is_empty()
                && world.caller(asker.client).is_some_and(|caller| self.apps.contains(caller))
    }
}

fn write(answer: BlockAnswer, foreign: &Foreign, out: &mut Vec<u8>) -> Rcode {
    let address: &[u8] = match (answer, foreign.qtype) {
        (BlockAnswer::Zero, A) => &[0; 4],
        (BlockAnswer::Zero, AAAA) => &[0; 16],
        _ => &[],
    };
    let (counts, rcode) = match answer {
        BlockAnswer::Refused => ([0; 3], Rcode::Refused),
        BlockAnswer::Zero if !address.is_empty() => {
            record(out, foreign.qtype, address);
            ([1, 0, 0], Rcode::NoError)
        }
        BlockAnswer::Zero | BlockAnswer::NxDomain => {
            // RFC 2308 §3: without it nobody knows for how long there is nothing.
            record(out, 6, &soa());
            let is_nothing = answer == BlockAnswer::NxDomain;
            ([0, 1, 0], if is_nothing { Rcode::NxDomain } else { Rcode::NoError })
        }
    };
    // The shortest limit has room for the longest name and either record.
    end(out, foreign, counts, rcode, 0, Some(Ede::Blocked))
}

/// Writes a record of the name asked for.
fn record(out: &mut Vec<u8>, rtype: u16, rdata: &[u8]) {
    out.extend_from_slice(b"\xc0\x0c");
    out.extend_from_slice(&rtype.to_be_bytes());
    out.extend_from_slice(&[0, 1]);
    out.extend_from_slice(&TTL.to_be_bytes());
    out.extend_from_slice(&(rdata.len() as u16).to_be_bytes());
    out.extend_from_slice(rdata);
}

/// The SOA record of a zone that is as small as the name asked for, and whose server is the name itself.
fn soa() -> [u8; 38] {
    let mut rdata = [0; 38];
    let (names, numbers) = rdata.split_at_mut(18);
    names.copy_from_slice(b"\xc0\x0c\x06nobody\x07invalid\0");
    for (place, number) in numbers.chunks_exact_mut(4).zip([1, 3600, 600, 1_209_600, TTL]) {
        place.copy_from_slice(&number.to_be_bytes());
    }
    rdata
}
