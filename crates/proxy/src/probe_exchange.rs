use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header, uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use proximity_table::{BackendProtocol, BackendTls, HealthPolicy, ProbeKind};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::Outcome;
use crate::health::is_expected;
use crate::targets::ProbePlan;
use crate::tls::{NoTls, Tls};

/// Octets of a body that are looked through for the text that must be there.
const LONGEST_BODY: usize = 64 * 1024;

/// Probes after which a backend that goes on to answer like one of TLS is asked again whether it is one.
const ASK_AGAIN: u32 = 20;

/// What a backend answered without TLS although it does not speak TLS: the same answer says so again, so that an app
/// that is well and answers 400 does not get a handshake with each probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpeaksClear {
    outcome: Outcome,
    /// Probes since it was asked, itself included.
    probes: u32,
}

impl SpeaksClear {
    /// What is known after another probe.
    pub fn next(before: Option<SpeaksClear>, outcome: Outcome) -> Option<SpeaksClear> {
        let holds = |known: &SpeaksClear| known.tells(outcome);
        let probes = before.filter(holds).map_or(1, |known| known.probes + 1);
        may_be_tls(outcome).then_some(SpeaksClear { outcome, probes })
    }

    fn tells(&self, outcome: Outcome) -> bool {
        self.outcome == outcome && self.probes < ASK_AGAIN
    }
}

/// Servers of TLS close what does not begin with a handshake, or say 400.
fn may_be_tls(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Broke | Outcome::Answered(400))
}

/// One probe: a request on a connection of its own, or nothing but the connection. The backend is spoken to as
/// it is when requests are carried to it.
pub async fn ask(addr: SocketAddrV4, plan: &ProbePlan, tls: &Tls, known: Option<SpeaksClear>) -> Outcome {
    let end = Instant::now() + Duration::from_secs(u64::from(plan.policy.timeout.max(1)));
    let addr = SocketAddrV4::new(*addr.ip(), plan.policy.port.unwrap_or(addr.port()));
    match timeout_at(end, TcpStream::connect(addr)).await {
        Ok(Ok(stream)) => {
            match timeout_at(end, exchange(stream, addr, plan, tls)).await.unwrap_or(Outcome::TimedOut) {
                outcome
                    if plan.protocol == BackendProtocol::Http
                        && may_be_tls(outcome)
                        && !known.is_some_and(|known| known.tells(outcome))
                        && timeout_at(end, speaks_tls(addr, tls)).await == Ok(true) =>
                {
                    Outcome::SpeaksTls
                }
                outcome => outcome,
            }
        }
        Ok(Err(error)) => why_not(&error),
        Err(_) => Outcome::Unconnected,
    }
}

async fn exchange(stream: TcpStream, addr: SocketAddrV4, plan: &ProbePlan, tls: &Tls) -> Outcome {
    if plan.policy.kind == ProbeKind::Connect {
        return Outcome::Connected;
    }
    let host = plan.host.as_ref().map_or_else(|| addr.to_string(), ToString::to_string);
    match plan.protocol {
        BackendProtocol::Http => http1(stream, &host, &plan.policy).await,
        BackendProtocol::H2c => http2(stream, &host, &plan.policy).await,
        BackendProtocol::Https => match tls.connect(stream, &plan.tls, (*addr.ip()).into()).await {
            Ok(stream) => http1(stream, &host, &plan.policy).await,
            Err(NoTls::Handshake) => Outcome::Tls,
            Err(NoTls::Untrusted(why)) => Outcome::Untrusted(why),
        },
    }
}

/// Whether a port makes encrypted connections, whatever its certificate.
async fn speaks_tls(addr: SocketAddrV4, tls: &Tls) -> bool {
    let Ok(stream) = TcpStream::connect(addr).await else { return false };
    let any = BackendTls { verify: false, ..BackendTls::default() };
    tls.connect(stream, &any, (*addr.ip()).into()).await.is_ok()
}

async fn http1<S>(stream: S, host: &str, policy: &HealthPolicy) -> Outcome
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = request(policy)
        .uri(policy.uri.as_str())
        .header(header::HOST, host)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    // A path that cannot be asked for is the configuration's fault; config validation refuses it.
    let Ok(request) = request else { return Outcome::Broke };
    let Ok((mut sender, connection)) = http1::handshake(TokioIo::new(stream)).await else {
        return Outcome::Broke;
    };
    let answer = async {
        let Ok(response) = sender.send_request(request).await else { return Outcome::Broke };
        let (answered, mut body) = take_apart(response);
        let Some(mut search) = Search::of(answered, policy) else { return Outcome::Answered(answered) };
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Outcome::Broke };
            if let Some(data) = frame.data_ref()
                && search.is_over(data)
            {
                break;
            }
        }
        search.outcome()
    };
    let (mut answer, mut connection) = (std::pin::pin!(answer), std::pin::pin!(connection));
    tokio::select! {
        biased;
        outcome = &mut answer => outcome,
        // The connection may end in the same moment in which it delivers the answer.
        _ = &mut connection => answer.await,
    }
}

/// By prior knowledge (RFC 9113 §3.3).
async fn http2(stream: TcpStream, host: &str, policy: &HealthPolicy) -> Outcome {
    let target =
        uri::Builder::new().scheme("http").authority(host).path_and_query(policy.uri.as_str()).build();
    let Ok(request) =
        target.and_then(|target| request(policy).version(http::Version::HTTP_2).uri(target).body(()))
    else {
        return Outcome::Broke;
    };
    let Ok((sender, connection)) = h2::client::handshake(stream).await else { return Outcome::Broke };
    let answer = async {
        let Ok(mut sender) = sender.ready().await else { return Outcome::Broke };
        let Ok((response, _)) = sender.send_request(request, true) else { return Outcome::Broke };
        let Ok(response) = response.await else { return Outcome::Broke };
        let (answered, mut body) = take_apart(response);
        let Some(mut search) = Search::of(answered, policy) else { return Outcome::Answered(answered) };
        while let Some(data) = body.data().await {
            let Ok(data) = data else { return Outcome::Broke };
            // What was looked through makes room for more; where that fails nothing more comes.
            let _ = body.flow_control().release_capacity(data.len());
            if search.is_over(&data) {
                break;
            }
        }
        search.outcome()
    };
    let (mut answer, mut connection) = (std::pin::pin!(answer), std::pin::pin!(connection));
    tokio::select! {
        biased;
        outcome = &mut answer => outcome,
        // What has come is there at once, and nothing more can come. h2 does not tell requests of every way in which
        // a connection ends, so waiting on would be for nothing.
        _ = &mut connection => tokio::select! {
            biased;
            outcome = &mut answer => outcome,
            () = std::future::ready(()) => Outcome::Broke,
        },
    }
}

fn request(policy: &HealthPolicy) -> http::request::Builder {
    // The configuration takes three methods only.
    let method = Method::from_bytes(policy.method.as_bytes()).unwrap_or_default();
    Request::builder()
        .method(method)
        .header(header::USER_AGENT, "Proximity-Health/1")
        .header(header::ACCEPT, "*/*")
}

fn take_apart<B>(response: Response<B>) -> (u16, B) {
    (response.status().as_u16(), response.into_body())
}

/// Looks for a text in the beginning of a body.
struct Search<'a> {
    answered: u16,
    text: &'a [u8],
    seen: Vec<u8>,
    found: bool,
}

impl<'a> Search<'a> {
    /// `None` when the body does not matter.
    fn of(answered: u16, policy: &'a HealthPolicy) -> Option<Search<'a>> {
        let text = policy.body.as_ref().filter(|_| is_expected(answered, policy))?.as_bytes();
        Some(Search { answered, text, seen: Vec::new(), found: false })
    }

    /// Takes the next piece; whether there is nothing more to look for.
    fn is_over(&mut self, piece: &[u8]) -> bool {
        let from = self.seen.len().saturating_sub(self.text.len());
        let room = LONGEST_BODY - self.seen.len();
        self.seen.extend_from_slice(&piece[..piece.len().min(room)]);
        self.found = memchr::memmem::find(&self.seen[from..], self.text).is_some();
        self.found || self.seen.len() == LONGEST_BODY
    }

    fn outcome(&self) -> Outcome {
        if self.found { Outcome::Answered(self.answered) } else { Outcome::Lacks }
    }
}

fn why_not(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Outcome::Refused,
        io::ErrorKind::TimedOut => Outcome::Unconnected,
        _ => Outcome::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_across_pieces_and_within_bounds() {
        let policy = HealthPolicy { body: Some("needle".to_owned()), ..HealthPolicy::default() };
        let search = |pieces: &[&[u8]]| {
            let mut search = Search::of(200, &policy).unwrap();
            let _ = pieces.iter().any(|piece| search.is_over(piece));
            search.outcome()
        };
        assert_eq!(search(&[b"hay nee", b"dle hay"]), Outcome::Answered(200));
        assert_eq!(search(&[b"n", b"e", b"e", b"d", b"l", b"e"]), Outcome::Answered(200));
        assert_eq!(search(&[b"needl", b"hay"]), Outcome::Lacks);
        assert_eq!(search(&[]), Outcome::Lacks);
        let mut late = vec![b' '; LONGEST_BODY - 6];
        late.extend_from_slice(b"needle");
        assert_eq!(search(&[&late]), Outcome::Answered(200));
        late.insert(0, b' ');
        assert_eq!(search(&[&late, b"needle"]), Outcome::Lacks, "too late");
        assert!(Search::of(500, &policy).is_none(), "the status says enough");
        assert!(Search::of(200, &HealthPolicy::default()).is_none());
    }
    #[test]
    fn what_speaks_without_tls_is_asked_for_it_again_after_some_probes_and_when_its_answer_changes() {
        let (strict, broken) = (Outcome::Answered(400), Outcome::Broke);
        let mut known = None;
        let mut asked = Vec::new();
        for probe in 0..2 * ASK_AGAIN {
            if !known.is_some_and(|known: SpeaksClear| known.tells(strict)) {
                asked.push(probe);
            }
            known = SpeaksClear::next(known, strict);
        }
        assert_eq!(asked, [0, ASK_AGAIN]);
        assert!(!known.unwrap().tells(broken));
        assert!(SpeaksClear::next(known, broken).unwrap().tells(broken));
        for other in [Outcome::Answered(200), Outcome::Refused, Outcome::SpeaksTls] {
            assert_eq!(SpeaksClear::next(known, other), None);
        }
    }
}
