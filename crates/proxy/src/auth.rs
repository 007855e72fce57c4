use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::caller::Caller;
use crate::decide::{Asked, Refusal};
use crate::exchange::{Exchange, Fate};
use crate::http1::write::push_field;
use crate::http1::{Delimiter, Kind, Length, Method, RequestHead};
use crate::side::Source;
use crate::ticket::Ticket;
use crate::up::Up;
use crate::{Answer, BasicUsers, NormalPath, Reason, split_target, with_path};

/// The field in which services name the user; logged where it is copied.
const USER_FIELD: &str = "Remote-User";
/// Octets of a service's answer that are passed over to keep its connection.
const MOST_PASSED_OVER: usize = 16 * 1024;

/// What whoever was asked says.
pub enum Judgement {
    /// The request may go on, with these field lines in place of the client's own of those names.
    Passes(Vec<(String, Vec<u8>)>),
    /// It was answered in place of the app.
    Answered(Fate),
}

/// How long a request may wait until its password is checked.
const CHECK_WITHIN: Duration = Duration::from_secs(5);

impl Exchange<'_, '_, '_> {
    /// Asks for name and password where the vhost wants them (RFC 7617).
    pub async fn by_password(&mut self, asked: &Asked<'_>) -> Result<(), Refusal> {
        let Some(users) = &asked.site.users else { return Ok(()) };
        let right = match self.known(users) {
            // Boxed, so that the many whose password is known do not hold room for it.
            Answer::Ask(_) => Box::pin(self.check(users, asked.site.scope)).await?,
            Answer::Granted(name) => Some(name),
            Answer::Refused => None,
        };
        match right {
            Some(name) => {
                self.ticket.user = name.into_bytes();
                Ok(())
            }
            None => Err(Refusal {
                reason: Reason::Unauthorized,
                fields: format!("WWW-Authenticate: {}\r\n", users.challenge()).into_bytes(),
            }),
        }
    }

    /// What is known of the request's name and password without checking them.
    fn known(&self, users: &Arc<BasicUsers>) -> Answer {
        let ticket = &self.ticket;
        let field = ticket.head.value(Kind::Authorization, ticket.bytes);
        users.ask(field, &ticket.worker.shared.passwords, ticket.worker.now_ms())
    }

    /// Checks the request's password when its turn has come. Returns whose it is, if it is right. Whoever guesses
    /// passwords keeps a blocking thread busy, and no data thread.
    async fn check(&mut self, users: &Arc<BasicUsers>, vhost: u64) -> Result<Option<String>, Reason> {
        let worker = self.ticket.worker;
        let shared = &worker.shared;
        let waiting = shared.password_checks.wait(vhost, self.ticket.client)?;
        let waiting = self.unless_gone(tokio::time::timeout(CHECK_WITHIN, waiting)).await?;
        let place = waiting.map_err(|_| Reason::AuthBusy)?;
        // Of several requests of one page only the first has to be checked.
        let attempt = match self.known(users) {
            Answer::Ask(attempt) => attempt,
            Answer::Granted(name) => return Ok(Some(name)),
            Answer::Refused => return Ok(None),
        };
        // The place is taken until the check is over, whether anybody waits for it or not.
        let checking = move || {
            let _place = place;
            attempt.verify()
        };
        let checked = self.unless_gone(tokio::task::spawn_blocking(checking)).await?;
        let Some(right) = checked.ok().flatten() else { return Ok(None) };
        shared.passwords.remember(&right, worker.now_ms());
        Ok(Some(right.into_name()))
    }
}

impl Exchange<'_, '_, '_> {
    /// Asks the service that decides who may pass, where the vhost has one.
    pub async fn by_service(&mut self, caller: &Caller, asked: &Asked<'_>) -> Result<Judgement, Refusal> {
        let site = &asked.site;
        let Some(auth) = &site.policy().forward_auth else { return Ok(Judgement::Passes(Vec::new())) };
        let way = site.auth.as_ref().and_then(|ways| Some((ways.lanes.first()?, ways.members.first()?)));
        let Some((lane, member)) = way else { return Err(Reason::AuthUnavailable.into()) };
        let worker = self.ticket.worker;
        // Until a backend takes its place: the answer may be the service's, or be missing because of it.
        self.ticket.lane = Some(lane.clone());
        // What a question that came to nothing means for the request.
        let unavailable = |reason: Reason| -> Refusal {
            if reason.is_of_backend() {
                member.state.met.note_failure(reason, worker.now_ms());
            }
            match reason {
                Reason::ClientGone | Reason::Stopping | Reason::TotalTimeout | Reason::BackendLeft => {
                    reason.into()
                }
                _ => Reason::AuthUnavailable.into(),
            }
        };
        let timeouts = site.policy().timeouts;
        let uri = judged_uri(asked.target)?;
        let mut response = worker.response_head();
        let mut kept = worker.pool.take(lane, false);
        let (mut up, length) = loop {
            let is_reused = kept.is_some();
            let reached = self.reach(caller, asked, lane, kept.take()).await;
            let mut up = reached.map_err(unavailable)?;
            if let Up::Http1(side) = &mut up {
                question(side.begin(false), &auth.path, self.ticket, &uri, asked);
            }
            self.watch.extend(timeouts.header);
            match poll_fn(|cx| self.poll_answer(cx, &mut up, &mut response)).await {
                Ok(length) => break (up, length),
                // It may have been closed meanwhile; a question may be asked twice.
                Err(Reason::BackendBroke) if is_reused => worker.counters.retried(),
                Err(Reason::BackendTimedOut) if is_reused => {
                    worker.pool.forget(lane);
                    worker.counters.retried();
                }
                Err(reason) => return Err(unavailable(reason)),
            }
        };
        member.state.met.note_answer();
        if response.status >= 300 {
            if self.ticket.head.method == Method::Head {
                // The question was not HEAD: what it was answered with stays behind, and so does its connection.
                response.delimiter = Delimiter::None;
                response.keep_alive = false;
            }
            let fate = self.pass_on(up, lane, &response, length, asked, None).await;
            worker.keep_response_head(response);
            return fate.map(Judgement::Answered).map_err(Refusal::from);
        }
        let mut copied = Vec::new();
        for name in &auth.copy_headers {
            let value = response.named(name.as_bytes(), up.head_bytes()).unwrap_or_default();
            if name.eq_ignore_ascii_case(USER_FIELD) && !value.is_empty() {
                self.ticket.user = value.to_vec();
            }
            copied.push((name.clone(), value.to_vec()));
        }
        // Its body is of no interest; the connection is kept only if all of it is there.
        up.pass_head(length, response.delimiter);
        poll_fn(|cx| {
            pass_over(cx, &mut up);
            Poll::Ready(())
        })
        .await;
        up.give_back(&worker.pool, lane, &response);
        worker.keep_response_head(response);
        self.ticket.lane = None;
        Ok(Judgement::Passes(copied))
    }
}

/// The target as it is judged: in the form in which the app gets it, so that no other spelling of a path is a way
/// around what the service knows of it.
fn judged_uri(target: &[u8]) -> Result<Vec<u8>, Reason> {
    if target == b"*" {
        return Ok(target.to_vec());
    }
    let (path, query) = split_target(target);
    Ok(with_path(NormalPath::new(path)?.as_bytes(), query))
}

/// Passes over what is there of a short body.
fn pass_over(cx: &mut Context<'_>, up: &mut Up) {
    let mut left = MOST_PASSED_OVER;
    while let Poll::Ready(Ok(octets @ 1..)) = up.poll_data(cx) {
        up.consume(octets);
        match left.checked_sub(octets) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// What is asked: the client's own fields, and what it wants to do.
fn question(out: &mut Vec<u8>, path: &str, ticket: &Ticket<'_>, uri: &[u8], asked: &Asked<'_>) {
    let as_get = RequestHead {
        method: Method::Get,
        length: Length::None,
        upgrade: None,
        expects_continue: false,
        ..ticket.head.clone()
    };
    let bytes = ticket.bytes;
    for part in [b"GET ", path.as_bytes(), b" HTTP/1.1\r\nHost: ", ticket.host, b"\r\n"] {
        out.extend_from_slice(part);
    }
    crate::http1::write::request_fields(&as_get, bytes, None, |name, value| {
        if !name.eq_ignore_ascii_case(b"content-length") {
            push_field(out, name, value);
        }
    });
    push_field(out, b"X-Forwarded-Method", ticket.head.method_text.in_(bytes));
    push_field(out, b"X-Forwarded-Uri", uri);
    out.extend_from_slice(&asked.identity);
    out.extend_from_slice(b"\r\n");
}
