use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use proximity_admin::{BASE, COMMAND_LINE, Problem, SPELLING_FIELD};
use serde_json::Value;
use tokio::net::UnixStream;

/// Longest answer that is read, in octets.
const LONGEST_ANSWER: usize = 256 << 20;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client of the running appliance.
pub struct ApiClient {
    socket: PathBuf,
}

impl ApiClient {
    /// A client that uses this socket.
    pub fn new(socket: PathBuf) -> ApiClient {
        ApiClient { socket }
    }

    /// Asks and reads the answer; errors are one line that says what to do.
    pub fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, String> {
        match self.ask(method, path, body)? {
            (status, bytes) if status.is_success() => read(&bytes),
            (status, bytes) => Err(refusal(status, &bytes)),
        }
    }

    /// Reads an object; `None` when there is none.
    pub fn find(&self, path: &str) -> Result<Option<Value>, String> {
        match self.ask(Method::GET, path, None)? {
            (status, bytes) if status.is_success() => read(&bytes).map(Some),
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, bytes) => Err(refusal(status, &bytes)),
        }
    }

    fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Bytes), String> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        let asked = async {
            let asked = until_taken(|| exchange(&self.socket, method.clone(), path, body));
            tokio::time::timeout(PATIENCE, asked).await
        };
        runtime
            .block_on(asked)
            .map_err(|_| format!("no answer within {} s on {}", PATIENCE.as_secs(), self.socket.display()))?
    }
}

/// An answer that is there, or the time after which to ask again.
enum Answer {
    Given(StatusCode, Bytes),
    Later(Duration),
}

/// Asks again as long as that is what the answer says: another process takes over, and nothing was done yet.
async fn until_taken<F: Future<Output = Result<Answer, String>>>(
    ask: impl Fn() -> F,
) -> Result<(StatusCode, Bytes), String> {
    loop {
        match ask().await? {
            Answer::Given(status, bytes) => return Ok((status, bytes)),
            Answer::Later(wait) => tokio::time::sleep(wait).await,
        }
    }
}

async fn exchange(socket: &Path, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, String> {
    let absent = |error: std::io::Error| {
        format!(
            "no appliance answers on {}: {error}: start it with `proximity run`, or name its socket with --socket",
            socket.display()
        )
    };
    let broken = |error: hyper::Error| format!("the appliance on {} broke off: {error}", socket.display());
    let stream = UnixStream::connect(socket).await.map_err(absent)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(format!("{BASE}{path}"))
        .header("host", "appliance")
        .header("content-type", "application/json")
        .header(SPELLING_FIELD, COMMAND_LINE)
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let later =
        response.headers().get(header::RETRY_AFTER).filter(|_| status == StatusCode::SERVICE_UNAVAILABLE);
    let seconds = later.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
    if let Some(seconds) = seconds {
        return Ok(Answer::Later(Duration::from_secs(seconds)));
    }
    let read = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
    let bytes = read.map_err(|error| format!("the answer cannot be read: {error}"))?.to_bytes();
    Ok(Answer::Given(status, bytes))
}

fn read(bytes: &[u8]) -> Result<Value, String> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes).map_err(|error| format!("the answer is not JSON: {error}"))
}

/// One line, or of several problems one line each.
fn refusal(status: StatusCode, bytes: &[u8]) -> String {
    match serde_json::from_slice::<Problem>(bytes) {
        Ok(problem) if problem.problems.is_empty() => format!("{}; {}", problem.detail, problem.hint),
        Ok(Problem { problems, .. }) => {
            let lines = problems.iter().map(|flaw| format!("\n  {}; {}", flaw.message, flaw.hint));
            format!("{} problems:{}", problems.len(), lines.collect::<String>())
        }
        Err(_) => format!("the appliance answers {status}"),
    }
}
