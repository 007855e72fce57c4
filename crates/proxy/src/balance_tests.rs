use std::net::{Ipv4Addr, SocketAddrV4};

use super::*;
use crate::backend_state::Passive;

const NOW: u64 = 1_000_000;
const PASSIVE: Passive = Passive { failures: 1, window_ms: 1000, pause_ms: 1000 };

fn members(count: u8) -> Vec<Member> {
    let member = |last| Member {
        key: BackendKey { addr: SocketAddrV4::new(Ipv4Addr::new(10, 20, 0, last), 80), epoch: 1 },
        state: Arc::new(BackendState::new(0)),
    };
    (1..=count).map(member).collect()
}

fn ask(turn: usize) -> Ask<'static> {
    Ask { turn, entropy: mix(turn as u64), now_ms: NOW, sticky: Sticky::Free, tried: Tried::default() }
}

fn rules(spread: Balance) -> Rules {
    Rules { spread, pause_ms: 1000, ..Rules::default() }
}

fn chosen(choice: Choice) -> Chosen {
    match choice {
        Choice::Chosen(chosen) => chosen,
        other => panic!("{other:?}"),
    }
}

/// How many of `requests` each member gets when none of them lasts.
fn shares(members: &[Member], rules: &Rules, requests: usize) -> Vec<usize> {
    let mut shares = vec![0; members.len()];
    (0..requests).for_each(|turn| shares[chosen(choose(members, rules, &ask(turn))).index] += 1);
    shares
}

#[test]
fn backends_take_turns() {
    let members = members(3);
    let index = |turn| chosen(choose(&members, &rules(Balance::RoundRobin), &ask(turn))).index;
    assert_eq!([0, 1, 2, 3, 4].map(index), [0, 1, 2, 0, 1]);
    assert_eq!(index(usize::MAX), usize::MAX % 3);
}

#[test]
fn the_policy_of_a_vhost_has_its_times_in_seconds() {
    let mut policy = VhostPolicy { balance: Balance::RandomTwo, slow_start: 7, ..VhostPolicy::default() };
    policy.limits.backend_connections = 9;
    let rules = Rules::of(&policy);
    assert_eq!((rules.spread, rules.limit), (Balance::RandomTwo, 9));
    assert_eq!((rules.pause_ms, rules.slow_start_ms), (10_000, 7000));
    let passive = Passive::from(policy.passive);
    assert_eq!(passive, Passive { failures: 3, window_ms: 30_000, pause_ms: 10_000 });
}

#[test]
fn round_robin_is_even_also_when_one_is_paused() {
    let members = members(4);
    assert_eq!(shares(&members, &rules(Balance::RoundRobin), 40), [10, 10, 10, 10]);
    members[1].state.failed(false, &PASSIVE, NOW);
    assert_eq!(shares(&members, &rules(Balance::RoundRobin), 30), [10, 0, 10, 10]);
}

#[test]
fn least_connections_goes_to_the_idlest_and_equals_take_turns() {
    let members = members(3);
    let rules = rules(Balance::LeastConnections);
    assert_eq!(shares(&members, &rules, 30), [10, 10, 10]);
    let _busy: Vec<_> = [0, 0, 1].map(|at: usize| members[at].state.enter(0).unwrap()).into();
    assert_eq!(shares(&members, &rules, 30), [0, 0, 30]);
    let _more: Vec<_> = (0..2).map(|_| members[2].state.enter(0).unwrap()).collect();
    assert_eq!(shares(&members, &rules, 30), [0, 30, 0]);
}

#[test]
fn random_two_is_nearly_even_and_never_takes_the_worst() {
    let members = members(4);
    let rules = rules(Balance::RandomTwo);
    let even = shares(&members, &rules, 4000);
    assert!(even.iter().all(|share| (800..1200).contains(share)), "{even:?}");
    let _busy = members[2].state.enter(0).unwrap();
    let shares = shares(&members, &rules, 4000);
    assert_eq!(shares[2], 0);
    assert!(shares.iter().sum::<usize>() == 4000);
}

/// Of three pairs the idlest wins two and the middle one the third. Whoever compared all three would leave the middle
/// one without any, and who compared none would send the busiest some.
#[test]
fn random_two_compares_two_and_not_all() {
    let members = members(3);
    let _busy: Vec<_> = [1, 2, 2].map(|at: usize| members[at].state.enter(0).unwrap()).into();
    let shares = shares(&members, &rules(Balance::RandomTwo), 3000);
    assert!((1850..2150).contains(&shares[0]), "{shares:?}");
    assert!((850..1150).contains(&shares[1]), "{shares:?}");
    assert_eq!(shares[2], 0);
}

#[test]
fn a_backend_that_starts_slowly_gets_less() {
    let members = members(2);
    members[1].state.became_usable(NOW - 500);
    let slow = |spread| Rules { slow_start_ms: 1000, ..rules(spread) };
    // Every second request is its turn, and half of those it gives away.
    let shares = shares(&members, &slow(Balance::RoundRobin), 4000);
    assert!((900..1100).contains(&shares[1]), "{shares:?}");
    let mut held = Vec::new();
    for turn in 0..90 {
        held.push(chosen(choose(&members, &slow(Balance::LeastConnections), &ask(turn))));
    }
    let on_slow = held.iter().filter(|one| one.index == 1).count();
    assert!((29..=31).contains(&on_slow), "{on_slow}");
}

#[test]
fn full_and_tried_backends_are_passed_over() {
    let members = members(3);
    let rules = Rules { limit: 1, ..rules(Balance::RoundRobin) };
    let first = chosen(choose(&members, &rules, &ask(0)));
    let second = chosen(choose(&members, &rules, &ask(0)));
    assert_eq!((first.index, second.index), (0, 1));
    let mut tried = Tried::default();
    tried.add(2);
    let all_but_tried_full = choose(&members, &rules, &Ask { tried, ..ask(0) });
    assert!(matches!(all_but_tried_full, Choice::Full(0)), "{all_but_tried_full:?}");
    let _line = members[0].state.wait(1, 9).unwrap();
    let shortest = choose(&members, &rules, &Ask { tried, ..ask(0) });
    assert!(matches!(shortest, Choice::Full(1)), "{shortest:?}");
    drop(second);
    assert_eq!(chosen(choose(&members, &rules, &Ask { tried, ..ask(0) })).index, 1);
    [0, 1].into_iter().for_each(|at| tried.add(at));
    assert!(matches!(choose(&members, &rules, &Ask { tried, ..ask(0) }), Choice::Nobody));
    assert!(matches!(choose(&[], &rules, &ask(0)), Choice::Nobody));
}

#[test]
fn what_was_tried_is_remembered_within_bounds() {
    let mut tried = Tried::default();
    assert!(!tried.contains(0));
    for index in 0..100 {
        tried.add(index);
        assert!(index >= MOST_TRIED || tried.contains(index));
    }
    assert!(!tried.contains(usize::MAX - 1));
}

#[test]
fn a_sole_backend_is_never_paused() {
    let members = members(1);
    members[0].state.failed(false, &PASSIVE, NOW);
    let rules = Rules { limit: 1, ..rules(Balance::RoundRobin) };
    let one = chosen(choose(&members, &rules, &ask(0)));
    assert!(one.trial);
    assert!(matches!(choose(&members, &rules, &ask(0)), Choice::Full(0)));
    members[0].state.succeeded(one.trial, NOW + 1);
    drop(one);
    assert!(!chosen(choose(&members, &rules, &ask(0))).trial);
    let mut tried = Tried::default();
    tried.add(0);
    assert!(matches!(choose(&members, &rules, &Ask { tried, ..ask(0) }), Choice::Nobody));
}

#[test]
fn pauses_count_only_while_somebody_is_better() {
    let members = members(2);
    members.iter().for_each(|member| assert!(member.state.failed(false, &PASSIVE, NOW)));
    let rules = rules(Balance::RoundRobin);
    assert!(chosen(choose(&members, &rules, &ask(0))).trial);
    assert_eq!(shares(&members, &rules, 10), [5, 5]);
    // The only one that is not paused was tried.
    members[0].state.succeeded(true, NOW);
    let mut tried = Tried::default();
    assert_eq!(shares(&members, &rules, 10), [10, 0]);
    tried.add(0);
    assert_eq!(chosen(choose(&members, &rules, &Ask { tried, ..ask(0) })).index, 1);
}

#[test]
fn after_its_pause_a_backend_gets_one_request() {
    let members = members(2);
    members[1].state.failed(false, &PASSIVE, NOW - 1000);
    let rules = rules(Balance::RoundRobin);
    let picks: Vec<_> = (0..10).map(|turn| chosen(choose(&members, &rules, &ask(turn)))).collect();
    let trials: Vec<_> = picks.iter().filter(|one| one.index == 1).map(|one| one.trial).collect();
    assert_eq!(trials, [true]);
}

#[test]
fn a_client_stays_where_it_is() {
    let members = members(5);
    let rules = rules(Balance::RoundRobin);
    let of = |members: &[Member], client: u32| {
        let sticky = Sticky::Client(Ipv4Addr::from(client).into());
        members[chosen(choose(members, &rules, &Ask { sticky, ..ask(client as usize) })).index].key
    };
    let before: Vec<_> = (0..1000).map(|client| of(&members, client)).collect();
    for member in &members {
        let share = before.iter().filter(|key| **key == member.key).count();
        assert!((140..260).contains(&share), "{share}");
    }
    // One that goes moves only its own clients.
    let gone = members[2].key;
    let left: Vec<Member> = members.iter().filter(|member| member.key != gone).cloned().collect();
    for (client, key) in before.iter().enumerate() {
        assert!(*key == gone || of(&left, client as u32) == *key);
    }
    // While it is paused they go elsewhere, and then they are back.
    members[2].state.failed(false, &PASSIVE, NOW);
    assert!((0..1000).all(|client| of(&members, client) != gone));
    members[2].state.succeeded(true, NOW);
    assert!((0..1000).all(|client| of(&members, client) == before[client as usize]));
}

#[test]
fn addresses_of_one_ipv6_network_and_values_of_a_header_are_each_one_client() {
    let members = members(7);
    fn of(members: &[Member], sticky: Sticky<'_>) -> usize {
        chosen(choose(members, &rules(Balance::RoundRobin), &Ask { sticky, ..ask(0) })).index
    }
    let ip = |text: &str| of(&members, Sticky::Client(text.parse().unwrap()));
    assert_eq!(ip("2001:db8::1"), ip("2001:db8::ffff:1"));
    assert_eq!(ip("10.0.0.1"), ip("::ffff:10.0.0.1"));
    let places: std::collections::HashSet<_> =
        (0..50).map(|user: u32| of(&members, Sticky::Header(Some(user.to_string().as_bytes())))).collect();
    assert_eq!(places.len(), 7);
    assert_eq!(of(&members, Sticky::Header(None)), 0);
}

#[test]
fn a_cookie_names_the_backend() {
    let members = members(3);
    let rules = Rules { limit: 1, ..rules(Balance::RoundRobin) };
    let with = |value, turn| Ask { sticky: Sticky::Cookie { value, salt: 7 }, ..ask(turn) };
    let first = chosen(choose(&members, &rules, &with(None, 1)));
    assert_eq!(first.index, 1);
    let cookie = first.set_cookie.unwrap();
    // Full: the session waits for its backend.
    let waits = choose(&members, &rules, &with(Some(cookie.as_bytes()), 0));
    assert!(matches!(waits, Choice::Full(1)), "{waits:?}");
    drop(first);
    let again = chosen(choose(&members, &rules, &with(Some(cookie.as_bytes()), 0)));
    assert_eq!((again.index, again.set_cookie), (1, None));
    drop(again);
    // Paused or unknown: another one, and its name.
    let unknown = chosen(choose(&members, &rules, &with(Some(b"0123"), 0)));
    assert!(unknown.set_cookie.is_some());
    members[1].state.failed(false, &PASSIVE, NOW);
    drop(unknown);
    let other = chosen(choose(&members, &rules, &with(Some(cookie.as_bytes()), 0)));
    assert_eq!(other.index, 0);
    assert_eq!(other.set_cookie, Some(CookieValue::of(&members[0].key, 7)));
    assert_ne!(CookieValue::of(&members[0].key, 7), CookieValue::of(&members[0].key, 8));
}

#[test]
fn cookies_are_found_and_written() {
    let field = b"a=1; backend=0123; xbackend=no; quoted=\"q\"; empty=";
    assert_eq!(cookie_value(field, b"backend"), Some(&b"0123"[..]));
    assert_eq!(cookie_value(field, b"quoted"), Some(&b"q"[..]));
    assert_eq!(cookie_value(field, b"empty"), Some(&b""[..]));
    assert_eq!(cookie_value(field, b"back"), None);
    assert_eq!(cookie_value(b"", b"a"), None);
    let value = CookieValue(*b"0123456789abcdef");
    assert_eq!(value.set_cookie("b", "/", false), "b=0123456789abcdef; Path=/; HttpOnly; SameSite=Lax");
    assert!(value.set_cookie("b", "/", true).ends_with("; Secure"));
}

#[test]
fn who_stood_in_line_of_a_backend_that_was_paused_meanwhile_goes_there_only_if_nobody_else_is_left() {
    let members = members(1);
    let (member, rules) = (&members[0], rules(Balance::RoundRobin));
    let pass_after_the_wait = |now_ms, is_last| {
        let slot = member.state.enter(0).unwrap();
        let trial =
            pass(0, member, &rules, &Ask { now_ms, ..ask(0) }, slot, is_last).map(|chosen| chosen.trial);
        // Whoever was sent away holds no slot.
        assert_eq!(member.state.in_flight(), 0);
        trial
    };
    assert_eq!(pass_after_the_wait(NOW, false), Some(false));
    member.state.failed(false, &PASSIVE, NOW);
    assert_eq!(pass_after_the_wait(NOW, false), None);
    assert_eq!(pass_after_the_wait(NOW, true), Some(true), "the circuit hangs on it");
    assert_eq!(pass_after_the_wait(NOW + 1000, false), Some(true), "the pause is over");
    assert_eq!(pass_after_the_wait(NOW + 1000, false), None, "one tries it");
}
