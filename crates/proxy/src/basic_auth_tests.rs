use super::*;

// Made by other implementations: crypt(3), and `argon2 saltsaltsaltsalt -id -t 1 -k 64 -p 1 -l 32 -e`.
const BCRYPT: &str = "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW";
const ARGON2: &str =
    "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0c2FsdA$+v0rf6ETYAIpqJIjJyARZ3W3zqJlkf+0TRXzsLHmR6o";

fn users() -> Arc<BasicUsers> {
    Arc::new(BasicUsers::new("the \"wiki\"", [("alice", BCRYPT), ("bob", ARGON2)]).unwrap())
}

fn field(credentials: &str) -> Vec<u8> {
    format!("Basic {}", Base64::encode_string(credentials.as_bytes())).into_bytes()
}

fn verified() -> VerifiedPasswords {
    VerifiedPasswords::new([7; 32], 1000)
}

fn attempt(users: &Arc<BasicUsers>, verified: &VerifiedPasswords, credentials: &str, now: u64) -> Attempt {
    match users.ask(Some(&field(credentials)), verified, now) {
        Answer::Ask(attempt) => attempt,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_right_password_is_checked_once_and_then_known_for_a_while() {
    let (users, verified) = (users(), verified());
    for name in ["alice", "bob"] {
        let credentials = format!("{name}:secret");
        let first = attempt(&users, &verified, &credentials, 0);
        let right = first.verify().unwrap();
        assert_eq!(right.name(), name);
        verified.remember(&right, 0);
        let again = users.ask(Some(&field(&credentials)), &verified, 999);
        assert!(matches!(&again, Answer::Granted(who) if who == name), "{again:?}");
        assert!(attempt(&users, &verified, &credentials, 1000).verify().is_some());
    }
}

#[test]
fn wrong_passwords_and_unknown_names_do_not_pass() {
    let (users, verified) = (users(), verified());
    for wrong in
        ["alice:Secret", "alice:", "alice:secret ", "bob:secre", "carol:secret", ":secret", "Alice:secret"]
    {
        assert!(attempt(&users, &verified, wrong, 0).verify().is_none(), "{wrong}");
    }
}

#[test]
fn a_changed_password_is_asked_for_at_once() {
    let verified = verified();
    let old = users();
    verified.remember(&attempt(&old, &verified, "alice:secret", 0).verify().unwrap(), 0);
    let changed = Arc::new(BasicUsers::new("", [("alice", ARGON2)]).unwrap());
    attempt(&changed, &verified, "alice:secret", 1);
    // Nor does a name without an owner get at what is known of the one that stands in for it.
    attempt(&old, &verified, "carol:secret", 1);
}

#[test]
fn whoever_is_removed_is_out_at_once_though_another_has_the_same_hash() {
    let verified = verified();
    let both = Arc::new(BasicUsers::new("", [("alice", BCRYPT), ("bob", BCRYPT)]).unwrap());
    verified.remember(&attempt(&both, &verified, "alice:secret", 0).verify().unwrap(), 0);
    let left = Arc::new(BasicUsers::new("", [("bob", BCRYPT)]).unwrap());
    assert!(attempt(&left, &verified, "alice:secret", 1).verify().is_none());
}

#[test]
fn names_and_passwords_cannot_be_shifted_against_each_other() {
    let verified = verified();
    let stored = StoredHash::new("a", BCRYPT).unwrap();
    assert_ne!(verified.tag("ab", b"c", &stored), verified.tag("a", b"bc", &stored));
    assert_ne!(verified.tag("a", b"b", &stored), VerifiedPasswords::new([8; 32], 0).tag("a", b"b", &stored));
}

#[test]
fn memory_is_bounded() {
    fn right(
        users: &Arc<BasicUsers>,
        verified: &VerifiedPasswords,
        credentials: &str,
        now: u64,
    ) -> RightPassword {
        let Attempt { name, tag, .. } = attempt(users, verified, credentials, now);
        RightPassword { name, tag }
    }

    let (users, verified) = (users(), verified());
    for number in 0..3 * MOST_REMEMBERED {
        verified.remember(&right(&users, &verified, &format!("alice:{number}"), 0), 0);
    }
    let count = || verified.known.lock().unwrap().until_ms.len();
    assert_eq!(count(), MOST_REMEMBERED);
    verified.remember(&right(&users, &verified, "alice:x", 2000), 2000);
    assert_eq!(count(), 1, "what is over goes");
}

// RFC 7617 §2: "The user-id and password MUST NOT contain any control characters".
#[test]
fn what_is_no_basic_field_is_refused() {
    let (users, verified) = (users(), verified());
    assert!(matches!(users.ask(None, &verified, 0), Answer::Refused));
    let long = field(&format!("alice:{}", "x".repeat(LONGEST)));
    let fields: [&[u8]; 9] = [
        b"",
        b"Basic",
        b"Basic ",
        b"Basicx YTpi",
        b"Bearer YTpi",
        b"Basic YTp",
        b"Basic Y*pi",
        &field("no-colon"),
        &field("a:b\n"),
    ];
    for field in fields.into_iter().chain([&long[..], &field("\u{1}:b")[..]]) {
        assert!(matches!(users.ask(Some(field), &verified, 0), Answer::Refused), "{field:?}");
    }
    let odd: &[u8] = b"bAsIc  YWxpY2U6c2VjcmV0 ";
    let Answer::Ask(odd) = users.ask(Some(odd), &verified, 0) else { panic!("case and space do not matter") };
    assert!(odd.verify().is_some());
    let colons = attempt(&users, &verified, "alice:a:b", 0);
    assert_eq!((colons.name(), &colons.password[..]), ("alice", &b"a:b"[..]));
}

#[test]
fn users_are_checked_when_they_are_set_up() {
    let new = |name: &str, hash: &str| BasicUsers::new("", [(name, hash)]).unwrap_err();
    assert_eq!(BasicUsers::new("", []).unwrap_err(), BasicAuthError::NoUsers);
    assert_eq!(BasicUsers::new("a\n", [("a", BCRYPT)]).unwrap_err(), BasicAuthError::Realm);
    assert_eq!(new("a:b", BCRYPT), BasicAuthError::Name("a:b".into()));
    let dear = BCRYPT.replacen("$04$", "$20$", 1);
    for hash in ["", "secret", "$1$salt$hash", "$2b$10$short", &dear] {
        assert!(matches!(new("a", hash), BasicAuthError::Hash(name, _) if name == "a"), "{hash}");
    }
}

/// What the configuration takes, the libraries that check passwords take.
#[test]
fn a_hash_that_is_made_here_is_taken_here() {
    let hash = hash_password("pässword".as_bytes(), [7; 16]);
    assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
    assert_eq!(password_hash_trouble(&hash), None);
    assert_ne!(hash_password("pässword".as_bytes(), [8; 16]), hash);
    let users = Arc::new(BasicUsers::new("Apps", [("alice", hash.as_str())]).unwrap());
    let verified = verified();
    assert!(attempt(&users, &verified, "alice:pässword", 0).verify().is_some());
    assert!(attempt(&users, &verified, "alice:password", 0).verify().is_none());
}

#[test]
fn every_hash_that_is_taken_can_be_read() {
    for hash in [
        BCRYPT.to_owned(),
        BCRYPT.replacen("$2b$04$", "$2a$15$", 1),
        BCRYPT.replacen("$2b$", "$2y$", 1),
        format!("$2b$12${}", "u".repeat(53)),
        ARGON2.to_owned(),
        ARGON2.replacen("m=64,t=1,p=1", "m=262144,t=16,p=16", 1),
        ARGON2.replacen("m=64,t=1,p=1", "m=128,t=1,p=16", 1),
        format!("$argon2id$v=19$m=64,t=1,p=1${}${}", "A".repeat(11), "A".repeat(14)),
        format!("$argon2id$v=19$m=64,t=1,p=1${}${}", "A".repeat(64), "A".repeat(86)),
    ] {
        assert_eq!(proximity_table::password_hash_trouble(&hash), None, "{hash}");
        assert!(StoredHash::new("a", &hash).is_ok(), "{hash}");
    }
}

#[test]
fn the_challenge_quotes_the_realm() {
    assert_eq!(users().challenge(), "Basic realm=\"the \\\"wiki\\\"\", charset=\"UTF-8\"");
}

#[test]
fn secrets_are_not_shown() {
    let (users, verified) = (users(), verified());
    let attempt = attempt(&users, &verified, "alice:secret", 0);
    let shown = format!("{users:?} {attempt:?} {verified:?}");
    assert!(!shown.contains("secret") && !shown.contains("$2") && !shown.contains('7'), "{shown}");
}
