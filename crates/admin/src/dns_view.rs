//! Names of others and how they are asked about: what the API shows and takes.

use serde::{Deserialize, Serialize};

/// What is to be forgotten: a name with all below it, or everything.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct FlushInput {
    pub name: Option<String>,
}

/// How many answers were forgotten.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Flushed {
    pub answers: usize,
}

/// A question to the appliance's own name service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct QuestionInput {
    pub name: String,
    /// A when left out.
    #[serde(rename = "type")]
    pub rtype: Option<String>,
}

/// What the name service answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct DnsAnswerView {
    pub name: String,
    #[serde(rename = "type")]
    pub rtype: String,
    /// NOERROR, NXDOMAIN, SERVFAIL, …
    pub rcode: String,
    /// Of aa, tc, rd, ra, ad, cd those that are set.
    pub flags: Vec<String>,
    pub answers: Vec<AnsweredRecord>,
    pub authority: Vec<AnsweredRecord>,
    /// zone, cache, upstream or nobody.
    pub origin: String,
    /// Why there is no better answer, in the words of RFC 8914.
    pub error: Option<String>,
    pub microseconds: u64,
}

/// A record as it is given out.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct AnsweredRecord {
    pub name: String,
    pub ttl: u32,
    #[serde(rename = "type")]
    pub rtype: String,
    pub value: String,
}

/// A server that is asked about names of others.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct UpstreamView {
    pub upstream: String,
    /// The domain that it alone is asked about.
    pub domain: Option<String>,
    pub up: bool,
    pub answers: u64,
    pub failures: u64,
    /// How long its answers take at the moment, in microseconds.
    pub latency_us: Option<u64>,
    pub last_answer: Option<String>,
    pub last_failure: Option<String>,
}

/// Names that are blocked together.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct BlocklistView {
    /// The file; absent when the names stand in the configuration.
    pub list: Option<String>,
    pub names: usize,
    /// Names that are let through.
    pub allowed: usize,
    /// Of memory.
    pub octets: usize,
    /// Lines that were not understood.
    pub skipped: u64,
    /// The numbers of the first of them.
    pub first_skipped: Vec<u64>,
    /// Whether there was more than is read of a list.
    pub is_cut: bool,
    pub read: Option<String>,
    /// Questions that it blocked.
    pub blocked: u64,
    /// Why the file could not be read the last time; what was read before stays in force.
    pub error: Option<String>,
}
