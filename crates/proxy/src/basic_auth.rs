use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, Params, PasswordHasher, PasswordVerifier};
use base64ct::{Base64, Encoding};
use blake2::Blake2sMac256;
use blake2::digest::{KeyInit, Mac};
use proximity_table::{BasicAuth, password_hash_trouble};
use thiserror::Error;

/// Longest credentials in octets, before decoding.
const LONGEST: usize = 1024;
/// Passwords that are remembered to be right.
const MOST_REMEMBERED: usize = 4096;

/// Those who may ask a vhost, by name and password (RFC 7617).
pub struct BasicUsers {
    challenge: String,
    users: HashMap<Box<[u8]>, StoredHash>,
    /// Checked for names that nobody has, so that they take as long.
    stand_in: StoredHash,
}

/// Passwords that were found right lately, so that only the first request of a browser is slow. What is kept
/// is a keyed hash of name, password and stored hash: a changed password is asked for at once.
pub struct VerifiedPasswords {
    key: [u8; 32],
    keep_ms: u64,
    known: Mutex<Known>,
}

/// What is known of a request's credentials at once.
#[derive(Debug)]
pub enum Answer {
    /// They were found right lately.
    Granted(String),
    /// They have to be checked, on a thread that may be kept busy.
    Ask(Attempt),
    /// There are none, or they cannot be read.
    Refused,
}

/// Credentials that have to be checked.
pub struct Attempt {
    users: Arc<BasicUsers>,
    name: String,
    password: Vec<u8>,
    tag: Tag,
}

/// Credentials that were found right.
pub struct RightPassword {
    name: String,
    tag: Tag,
}

/// Why users cannot be set up.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BasicAuthError {
    /// Nobody could ever pass.
    #[error("there are no users: add one, or remove the auth section")]
    NoUsers,
    /// RFC 7617 §2: the first colon ends the name.
    #[error("the user name `{0}` has a colon or a control character, or is empty: choose another one")]
    Name(String),
    /// A realm that cannot be quoted.
    #[error("the realm has a control character: remove it")]
    Realm,
    /// A hash that cannot be checked or would take too long, and what to do about it.
    #[error("the hash of `{0}` cannot be checked: {1}")]
    Hash(String, &'static str),
}

type Tag = [u8; 32];

enum StoredHash {
    Argon2(String),
    Bcrypt(String),
}

#[derive(Default)]
struct Known {
    until_ms: HashMap<Tag, u64>,
    order: VecDeque<Tag>,
}

impl BasicUsers {
    /// Users by name and stored hash.
    pub fn new<'a>(
        realm: &str,
        users: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<BasicUsers, BasicAuthError> {
        if realm.chars().any(char::is_control) {
            return Err(BasicAuthError::Realm);
        }
        let mut hashes = HashMap::new();
        let mut stand_in = None;
        for (name, hash) in users {
            if name.is_empty() || name.contains(':') || name.chars().any(char::is_control) {
                return Err(BasicAuthError::Name(name.to_owned()));
            }
            stand_in.get_or_insert(StoredHash::new(name, hash)?);
            hashes.insert(name.as_bytes().into(), StoredHash::new(name, hash)?);
        }
        let stand_in = stand_in.ok_or(BasicAuthError::NoUsers)?;
        let realm = realm.replace('\\', "\\\\").replace('"', "\\\"");
        // RFC 7617 §2.1: clients shall send UTF-8.
        let challenge = format!("Basic realm=\"{realm}\", charset=\"UTF-8\"");
        Ok(BasicUsers { challenge, users: hashes, stand_in })
    }

    /// The value of `WWW-Authenticate`.
    pub fn challenge(&self) -> &str {
        &self.challenge
    }

    /// Tells what is known of an `Authorization` field.
    pub fn ask(
        self: &Arc<BasicUsers>,
        field: Option<&[u8]>,
        verified: &VerifiedPasswords,
        now_ms: u64,
    ) -> Answer {
        let Some((name, password)) = field.and_then(credentials) else { return Answer::Refused };
        let tag = verified.tag(&name, &password, self.hash_of(&name));
        // Whoever was removed may have had the very hash that now stands in.
        if self.users.contains_key(name.as_bytes()) && verified.knows(&tag, now_ms) {
            return Answer::Granted(name);
        }
        Answer::Ask(Attempt { users: self.clone(), name, password, tag })
    }

    fn hash_of(&self, name: &str) -> &StoredHash {
        self.users.get(name.as_bytes()).unwrap_or(&self.stand_in)
    }
}

impl TryFrom<&BasicAuth> for BasicUsers {
    type Error = BasicAuthError;

    fn try_from(auth: &BasicAuth) -> Result<BasicUsers, BasicAuthError> {
        let users = auth.users.iter().map(|user| (user.name.as_str(), user.hash.as_str()));
        BasicUsers::new(&auth.realm, users)
    }
}

impl Attempt {
    /// Checks the password. This takes as long as the hash was made to take, and as long for a name that
    /// nobody has: not on a data thread, and not many at a time.
    pub fn verify(self) -> Option<RightPassword> {
        let is_right = self.users.hash_of(&self.name).matches(&self.password);
        let is_somebody = self.users.users.contains_key(self.name.as_bytes());
        (is_right && is_somebody).then_some(RightPassword { name: self.name, tag: self.tag })
    }

    /// The name that was given, whether anybody has it or not.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl RightPassword {
    /// Whose it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As [`RightPassword::name`], to keep.
    pub fn into_name(self) -> String {
        self.name
    }
}

impl VerifiedPasswords {
    /// Remembers for `keep_ms` milliseconds. The key is random and never leaves the process.
    pub fn new(key: [u8; 32], keep_ms: u64) -> VerifiedPasswords {
        VerifiedPasswords { key, keep_ms, known: Mutex::default() }
    }

    /// Notes that a password is right.
    pub fn remember(&self, right: &RightPassword, now_ms: u64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.until_ms.insert(right.tag, now_ms.saturating_add(self.keep_ms)).is_none() {
            known.order.push_back(right.tag);
        }
        while let Some(oldest) = known.order.front() {
            let is_over = known.until_ms.get(oldest).is_none_or(|&until| until <= now_ms);
            if !is_over && known.order.len() <= MOST_REMEMBERED {
                break;
            }
            if let Some(oldest) = known.order.pop_front() {
                known.until_ms.remove(&oldest);
            }
        }
    }

    /// How long the look-up takes says something about the tag only, and nobody without the key can tell which
    /// password has which tag.
    fn knows(&self, tag: &Tag, now_ms: u64) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.until_ms.get(tag).is_some_and(|&until| now_ms < until)
    }

    fn tag(&self, name: &str, password: &[u8], stored: &StoredHash) -> Tag {
        let mut mac = <Blake2sMac256 as KeyInit>::new(&self.key.into());
        for part in [name.as_bytes(), password, stored.text().as_bytes()] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

/// The Argon2id hash of a password, with a salt that nobody else has: what OWASP advises, 19 MiB and two passes.
pub fn hash_password(password: &[u8], salt: [u8; 16]) -> String {
    let params = Params::new(19_456, 2, 1, None).expect("these parameters are within bounds");
    let hasher = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let hash: PasswordHash =
        hasher.hash_password_with_salt(password, &salt).expect("a salt of 16 octets is long enough");
    hash.to_string()
}

/// Reads the value of `Authorization`; `None` for other schemes and what is not as RFC 7617 §2 has it.
fn credentials(field: &[u8]) -> Option<(String, Vec<u8>)> {
    let (scheme, rest) = field.split_at_checked(5)?;
    if !scheme.eq_ignore_ascii_case(b"basic") || !rest.starts_with(b" ") || rest.len() > LONGEST {
        return None;
    }
    let mut plain = [0; LONGEST];
    let plain = Base64::decode(rest.trim_ascii(), &mut plain).ok()?;
    let colon = plain.iter().position(|&byte| byte == b':')?;
    let (name, password) = (&plain[..colon], &plain[colon + 1..]);
    if plain.iter().any(u8::is_ascii_control) {
        return None;
    }
    Some((std::str::from_utf8(name).ok()?.to_owned(), password.to_vec()))
}

impl StoredHash {
    fn new(name: &str, text: &str) -> Result<StoredHash, BasicAuthError> {
        let refused = |hint| BasicAuthError::Hash(name.to_owned(), hint);
        if let Some(hint) = password_hash_trouble(text) {
            return Err(refused(hint));
        }
        // What was judged by its looks can be read; the last word has whoever is going to read it.
        let unreadable = || refused("make another one: `proximity hash-password` does");
        if text.starts_with("$argon2") {
            let hash = PasswordHash::new(text).map_err(|_| unreadable())?;
            Params::try_from(&hash).map_err(|_| unreadable())?;
            return Ok(StoredHash::Argon2(text.to_owned()));
        }
        text.parse::<bcrypt::HashParts>().map_err(|_| unreadable())?;
        Ok(StoredHash::Bcrypt(text.to_owned()))
    }

    /// Both libraries compare in constant time.
    fn matches(&self, password: &[u8]) -> bool {
        match self {
            StoredHash::Argon2(text) => PasswordHash::new(text)
                .is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok()),
            StoredHash::Bcrypt(text) => bcrypt::verify(password, text).unwrap_or(false),
        }
    }

    fn text(&self) -> &str {
        match self {
            StoredHash::Argon2(text) | StoredHash::Bcrypt(text) => text,
        }
    }
}

// Neither hashes nor passwords nor the key are shown.

impl fmt::Debug for BasicUsers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BasicUsers").field("users", &self.users.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for RightPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RightPassword").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for VerifiedPasswords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedPasswords").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "basic_auth_tests.rs"]
mod tests;
