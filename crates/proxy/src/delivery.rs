use std::future::poll_fn;
use std::task::{Context, Poll};

use proximity_table::{Affinity, HostPolicy};

use crate::attempt::is_long_upload;
use crate::balance::Chosen;
use crate::decide::Asked;
use crate::encode::{self, Coding, Encoded, Encoding, VARY};
use crate::exchange::{Exchange, Fate};
use crate::http1::write::{self, Back};
use crate::http1::{Delimiter, Length, ResponseHead, Version};
use crate::pool::{Lane, unacknowledged};
use crate::relay::{Relay, Stopped};
use crate::relocation::{LOCATION, Visited, relocated};
use crate::site::Ways;
use crate::up::Up;
use crate::{Reason, Scheme};

impl Exchange<'_, '_, '_> {
    /// Passes an answer on to the client.
    pub async fn pass_on(
        &mut self,
        mut up: Up,
        lane: &Lane,
        response: &ResponseHead,
        length: usize,
        asked: &Asked<'_>,
        chosen: Option<(&Chosen, &Ways)>,
    ) -> Result<Fate, Reason> {
        let worker = self.ticket.worker;
        let head = self.ticket.head;
        let site = &asked.site;
        let depends =
            site.policy().compress && encode::depends_on_client(head.method, response, up.head_bytes());
        let coding = if depends { Coding::choose(head, self.ticket.bytes, response) } else { None };
        // What is compressed is as long as it turns out to be.
        let delimiter = match (response.delimiter, coding, head.version) {
            (Delimiter::Known(octets), None, _) => Delimiter::Known(octets),
            (Delimiter::None, None, _) => Delimiter::None,
            (_, _, Version::Http10) => Delimiter::Close,
            _ => Delimiter::Chunked,
        };
        let upload_is_over = self.upload.is_done || (chosen.is_none() && self.down.is_over());
        let keep_alive =
            head.keep_alive && delimiter != Delimiter::Close && !worker.draining.get() && upload_is_over;
        let mut extra = Vec::new();
        if let (Some((value, ways)), Some(Affinity::Cookie(name))) =
            (chosen.and_then(|(chosen, ways)| Some((chosen.set_cookie?, ways))), &site.policy().affinity)
        {
            write::push_field(
                &mut extra,
                b"Set-Cookie",
                value.set_cookie(name, &ways.path, false).as_bytes(),
            );
        }
        let location =
            chosen.and_then(|(_, ways)| self.relocated(asked, lane, ways, response, up.head_bytes()));
        if let Some(location) = &location {
            write::push_field(&mut extra, LOCATION, location);
        }
        if worker.settings().via {
            extra.extend_from_slice(response.version.via());
        }
        // Whoever edits what the answer varies by has the last word.
        let edited = site.response_edits.as_ref().is_some_and(|edits| edits.is_removed(VARY));
        let vary = if depends && !edited { encode::vary(response, up.head_bytes()) } else { None };
        extra.extend_from_slice(vary.as_deref().unwrap_or_default());
        if let Some(coding) = coding {
            extra.extend_from_slice(&coding.fields(response.named(b"etag", up.head_bytes())));
        }
        let back = Back {
            version: head.version,
            keep_alive,
            delimiter,
            date: &worker.clock.date(),
            extra: &extra,
            edits: site.response_edits.as_ref(),
            recoded: coding.is_some(),
            varies: vary.is_some(),
            relocated: location.is_some(),
        };
        self.down.respond(response, up.head_bytes(), &back);
        up.pass_head(length, response.delimiter);
        self.ticket.status = response.status;
        self.watch.extend(self.timeouts.idle);
        self.watch.set_pace(self.timeouts.idle);
        let mut download = Relay::of_response().by_pipes(&worker.pipes);
        if chosen.is_none() {
            // The answer of somebody else than the app: the app's upload is not begun.
            self.upload.is_done = true;
        }
        // Boxed, so that the many that are not compressed do not hold room for it.
        let passed = match coding.map(Encoding::new).transpose() {
            Ok(encoding) => {
                let mut encoding = encoding.map(Box::new);
                poll_fn(|cx| self.poll_bodies(cx, &mut up, &mut download, encoding.as_deref_mut())).await
            }
            Err(_) => Err(Reason::BackendCut),
        };
        self.watch.no_pace();
        self.ticket.received = self.upload.moved;
        self.ticket.sent = download.moved;
        worker.counters.stopped_by(Reason::HeaderName, u64::from(self.upload.ambiguous));
        if let Err(reason) = passed {
            self.ticket.break_off(reason);
            if delimiter == Delimiter::Close {
                // The end of such an answer is the end of the connection: a reset says that this is not it.
                self.down.reset();
            }
            return Ok(Fate::Cut);
        }
        if self.upload.is_done && site.policy().send_proxy_protocol.is_none() {
            if is_long_upload(head) {
                up.limit_unacknowledged(Some(unacknowledged(lane, self.connect_within())));
            }
            up.give_back(&worker.pool, lane, response);
        }
        Ok(if keep_alive { Fate::Stay } else { Fate::Close })
    }

    fn poll_bodies(
        &mut self,
        cx: &mut Context<'_>,
        up: &mut Up,
        download: &mut Relay,
        encoding: Option<&mut Encoding>,
    ) -> Poll<Result<(), Reason>> {
        // Who has not said how much there is to send may have nothing to send for the moment, as in a conversation.
        let promised = matches!(self.ticket.head.length, Length::Known(_));
        let is_upload_due = |upload: &Relay| promised && !upload.is_done && !upload.is_held_up;
        let overdue = || match download.is_held_up {
            true => Reason::ClientSlow,
            false if is_upload_due(&self.upload) => Reason::UploadSlow,
            false => Reason::BackendCut,
        };
        if let Some(reason) = self.watch.must_stop(overdue) {
            return Poll::Ready(Err(reason));
        }
        let before = self.upload.moved + download.moved;
        if !self.upload.is_done {
            match self.upload.poll(cx, self.down, up) {
                Poll::Ready(Err(Stopped::Source(cut))) => return Poll::Ready(Err(cut.of_request())),
                Poll::Ready(Err(Stopped::TooLarge)) => return Poll::Ready(Err(Reason::BodyTooLarge)),
                // The backend has said what it had to say without reading all.
                Poll::Ready(Err(Stopped::Sink)) | Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        let polled = match encoding {
            None => download.poll(cx, up, self.down),
            Some(encoding) => download.poll(cx, &mut Encoded { source: up, encoding }, self.down),
        };
        let moved = self.upload.moved + download.moved - before;
        if moved > 0 {
            self.watch.extend(self.timeouts.idle);
        }
        self.watch.keep_pace(moved, download.is_held_up || is_upload_due(&self.upload));
        match polled {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(Stopped::Source(_) | Stopped::TooLarge)) => Poll::Ready(Err(Reason::BackendCut)),
            Poll::Ready(Err(Stopped::Sink)) => Poll::Ready(Err(Reason::ClientGone)),
            Poll::Pending if self.upload.is_done && self.down.is_gone(cx) => {
                Poll::Ready(Err(Reason::ClientGone))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Where a backend sends the client that was told another name than the client's, when that is to itself.
    fn relocated(
        &self,
        asked: &Asked<'_>,
        lane: &Lane,
        ways: &Ways,
        response: &ResponseHead,
        bytes: &[u8],
    ) -> Option<Vec<u8>> {
        let site = &asked.site;
        let may_send_on = response.status == 201 || (300..400).contains(&response.status);
        let is_edited = || site.response_edits.as_ref().is_some_and(|edits| edits.is_removed(LOCATION));
        if !may_send_on || site.policy().host != HostPolicy::Backend || is_edited() {
            return None;
        }
        let origin = asked.origin.as_ref();
        let host =
            origin.and_then(|origin| origin.host.as_ref()).map_or(self.ticket.host, |host| host.as_bytes());
        let visited = Visited {
            scheme: origin.and_then(|origin| origin.scheme).unwrap_or(Scheme::Http),
            host,
            prefix: if ways.strips { &ways.path } else { "" },
        };
        relocated(response.named(LOCATION, bytes)?, &lane.host, visited)
    }
}
