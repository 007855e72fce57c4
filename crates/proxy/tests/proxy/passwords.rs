//! Passwords that wait to be checked, of clients that leave, guess, or have little time.

use futures_util::FutureExt;
use proximity_proxy::{Checking, Reason};
use proximity_table::{BasicAuth, BasicUser, Timeouts, Vhost, VhostPolicy};

use crate::auth::{BCRYPT, basic};
use crate::support::{Backend, Client, Proxy, Table, vhost, with};

fn guarded(app: &str, backend: &Backend, hash: &str, change: impl FnOnce(&mut VhostPolicy)) -> Vhost {
    let users = vec![BasicUser { name: "alice".to_owned(), hash: hash.to_owned() }];
    with(vhost(app, &[backend.addr]), |policy| {
        policy.basic_auth = Some(BasicAuth { realm: String::new(), users });
        change(policy);
    })
}

fn begin(mut client: Client, app: &str, password: &str) -> Client {
    let fields = basic(&format!("alice:{password}"));
    client.send(&format!("GET / HTTP/1.1\r\nHost: {app}.prox.local\r\n{fields}\r\n"));
    client
}

/// Holds every place in which passwords are checked.
fn hold(proxy: &Proxy) -> Vec<Checking> {
    let checks = &proxy.shared.password_checks;
    (1..).map_while(|vhost| checks.wait(vhost, [192, 0, 2, 1].into()).unwrap().now_or_never()).collect()
}

#[test]
fn who_leaves_while_its_password_waits_leaves_its_place() {
    let backend = Backend::answering("secret");
    let proxy = Proxy::start(&Table::of(vec![guarded("wiki", &backend, BCRYPT, |_| {})]));
    let held = hold(&proxy);
    let mut waiting = Vec::new();
    while proxy.count(Reason::AuthBusy) == 0 {
        waiting.push(begin(proxy.connect(), "wiki", "secret"));
        proxy.until("in the line or refused", |totals| {
            proxy.shared.password_checks.waiting() + totals.of(Reason::AuthBusy) as usize == waiting.len()
        });
    }
    assert_eq!(waiting.pop().unwrap().response().status, 503);
    assert!((4..100).contains(&waiting.len()), "{}", waiting.len());
    drop(waiting.pop());
    proxy.until("gone", |totals| totals.of(Reason::ClientGone) == 1);
    assert_eq!(proxy.shared.password_checks.waiting(), waiting.len());
    waiting.push(begin(proxy.connect(), "wiki", "secret"));
    proxy.until("in the line", |_| proxy.shared.password_checks.waiting() == waiting.len());
    drop(held);
    for client in &mut waiting {
        assert_eq!(client.response().text(), "secret");
    }
    assert_eq!(proxy.shared.password_checks.waiting(), 0);
}

#[test]
fn a_password_waits_no_longer_than_the_whole_may_take() {
    let backend = Backend::answering("secret");
    let limited = |policy: &mut VhostPolicy| policy.timeouts = Timeouts { total: 1, ..Timeouts::default() };
    let proxy = Proxy::start(&Table::of(vec![guarded("wiki", &backend, BCRYPT, limited)]));
    let held = hold(&proxy);
    assert_eq!(begin(proxy.connect(), "wiki", "secret").response().status, 504);
    assert_eq!((proxy.count(Reason::TotalTimeout), proxy.count(Reason::AuthBusy)), (1, 0));
    assert_eq!(proxy.shared.password_checks.waiting(), 0);
    drop(held);
    assert_eq!(begin(proxy.connect(), "wiki", "secret").response().text(), "secret");
}

#[test]
fn guessing_at_one_vhost_keeps_nobody_out_of_another() {
    let backend = Backend::answering("secret");
    // Dear enough that those who guess wait for each other.
    let hash = bcrypt::hash_with_salt("secret", 9, [7; 16]).unwrap().to_string();
    let vhosts = ["wiki", "other"].map(|app| guarded(app, &backend, &hash, |_| {}));
    let proxy = Proxy::start(&Table::of(vhosts.into()));
    let guesses = |last| (0..20).map(move |number| (last, format!("guess-{last}-{number}")));
    let guessing: Vec<Client> = (2..8)
        .flat_map(guesses)
        .map(|(last, guess)| begin(proxy.connect_from(last), "wiki", &guess))
        .collect();
    proxy.until("refused", |totals| {
        totals.of(Reason::AuthBusy) > 0 && proxy.shared.password_checks.waiting() > 20
    });
    for _ in 0..3 {
        assert_eq!(begin(proxy.connect(), "other", "secret").response().text(), "secret");
    }
    assert!(proxy.shared.password_checks.waiting() > 10, "they were served first");
    let mut wrong = begin(proxy.connect_from(9), "other", "wrong");
    assert_eq!(wrong.response().status, 401);
    drop(guessing);
    proxy.until("all gone", |totals| totals.open == 1);
    assert_eq!(proxy.shared.password_checks.waiting(), 0);
}
