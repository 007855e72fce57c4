use std::future::poll_fn;
use std::time::Duration;

use crate::decide::{Asked, Refusal};
use crate::exchange::{Exchange, Fate};
use crate::http1::write::push_field;
use crate::http1::{Kind, Length, Method, RequestHead};
use crate::side::Side;
use crate::ticket::Ticket;
use crate::up::Up;
use crate::{Answer, Reason};

/// What whoever was asked says.
pub enum Verdict {
    /// The request may go on, with these field lines in place of the client's own of those names.
    Passes(Vec<(String, Vec<u8>)>),
    /// It was answered in place of the app.
    Answered(Fate),
}

/// Asks for name and password where the vhost wants them (RFC 7617).
pub async fn by_password(ticket: &Ticket<'_>, asked: &Asked<'_>) -> Result<(), Refusal> {
    let Some(users) = &asked.visit.site.users else { return Ok(()) };
    let Some(users) = users else { return Err(Reason::Forbidden.into()) };
    let shared = &ticket.worker.shared;
    let now = shared.millis(ticket.start);
    let field = ticket.head.value(Kind::Authorization, ticket.bytes);
    let refused = || Refusal {
        reason: Reason::Unauthorized,
        fields: format!("WWW-Authenticate: {}\r\n", users.challenge()).into_bytes(),
    };
    match users.ask(field, &shared.passwords, now) {
        Answer::Granted(_) => Ok(()),
        Answer::Refused => Err(refused()),
        Answer::Ask(attempt) => {
            // Whoever guesses passwords keeps a blocking thread busy, and no data thread.
            let checked = tokio::task::spawn_blocking(move || attempt.verify()).await;
            let right = checked.ok().flatten().ok_or_else(refused)?;
            shared.passwords.remember(&right, now);
            Ok(())
        }
    }
}

impl Exchange<'_, '_, '_> {
    /// Asks the service that decides who may pass, where the vhost has one.
    pub async fn by_service(&mut self, asked: &Asked<'_>) -> Result<Verdict, Refusal> {
        let site = &asked.visit.site;
        let Some(auth) = &site.policy().forward_auth else { return Ok(Verdict::Passes(Vec::new())) };
        let Some(lane) = site.auth.as_ref().and_then(|ways| ways.lanes.first()) else {
            return Err(Reason::AuthUnavailable.into());
        };
        let worker = self.ticket.worker;
        let timeouts = site.policy().timeouts;
        let within = Duration::from_secs(u64::from(timeouts.connect.max(1)));
        let stream = match worker.pool.take(lane, false) {
            Some(stream) => stream,
            None => {
                worker.pool.connect(lane, within).await.map_err(|_| Refusal::from(Reason::AuthUnavailable))?
            }
        };
        let mut side = Side::new(stream, worker.buffers.clone());
        question(side.begin(false), &auth.path, self.ticket, asked);
        let mut up = Up::Http1(side);
        self.watch.extend(timeouts.header);
        let mut response = worker.response_head();
        let asking = poll_fn(|cx| self.poll_answer(cx, &mut up, &mut response)).await;
        let length = match asking {
            Ok(length) => length,
            Err(Reason::ClientGone) => return Err(Reason::ClientGone.into()),
            Err(_) => return Err(Reason::AuthUnavailable.into()),
        };
        if response.status >= 300 {
            let fate = self.pass_on(up, lane, &response, length, asked, None).await;
            worker.keep_response_head(response);
            return fate.map(Verdict::Answered).map_err(Refusal::from);
        }
        let mut copied = Vec::new();
        for name in &auth.copy_headers {
            let value = response.named(name.as_bytes(), up.head_bytes()).unwrap_or_default();
            copied.push((name.clone(), value.to_vec()));
        }
        // Its body is of no interest, and the connection is kept only if there is none.
        up.pass_head(length, response.delimiter);
        up.give_back(&worker.pool, lane, &response);
        worker.keep_response_head(response);
        Ok(Verdict::Passes(copied))
    }
}

/// What is asked: the client's own fields, and what it wants to do.
fn question(out: &mut Vec<u8>, path: &str, ticket: &Ticket<'_>, asked: &Asked<'_>) {
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
    push_field(out, b"X-Forwarded-Uri", asked.target);
    out.extend_from_slice(asked.identity());
    out.extend_from_slice(b"\r\n");
}
