use proximity_table::{App, World};
use serde::{Deserialize, Serialize};

use crate::AppView;

/// Why an app answers or does not: what a visitor meets, in the words of the page, and the way there step by step.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ExplainView {
    pub name: String,
    pub url: Option<String>,
    /// `ok`, or the word that the page and the counters have.
    pub verdict: String,
    pub title: String,
    pub why: String,
    pub advice: String,
    pub steps: Vec<StepView>,
}

/// One step on the way from a container to a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct StepView {
    /// lease, name, vhost, or backend.
    pub step: String,
    pub ok: bool,
    pub says: String,
}

/// What the proxy says of an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The word of the reason; `None` when requests are answered.
    pub reason: Option<&'static str>,
    /// The title of the page.
    pub title: &'static str,
    /// What happened.
    pub why: &'static str,
    /// What to do.
    pub advice: &'static str,
    /// What requests found out of each backend: its address, whether it answers, and what was seen.
    pub backends: Vec<(String, bool, String)>,
}

impl ExplainView {
    /// Joins what the table and what the proxy know of an app.
    pub fn of(world: &World, app: &App, said: Said) -> ExplainView {
        let view = AppView::of(world, app);
        let step = |step: &str, ok, says: String| StepView { step: step.to_owned(), ok, says };
        let mut steps = Vec::new();
        let address = view.ip.map_or_else(|| "no address".to_owned(), |ip| ip.to_string());
        steps.push(match view.state.as_str() {
            "active" => {
                let until = view.lease_expires.as_deref().unwrap_or("its end");
                step("lease", true, format!("it holds {address} until {until}"))
            }
            "reserved" => {
                step("lease", false, format!("{address} is reserved for it, and it has not asked for it"))
            }
            "stopped" => {
                step("lease", false, "its lease ended: the container is not on the network".to_owned())
            }
            _ => step("lease", true, "it has no lease here: its backends are fixed addresses".to_owned()),
        });
        match (&view.fqdn, &app.host) {
            (Some(fqdn), Some(_)) => steps.push(step("name", true, format!("{fqdn} leads to {address}"))),
            _ => {
                steps.push(step("name", app.route.is_some(), "the table has no host of this name".to_owned()))
            }
        }
        match &view.vhost {
            None => steps.push(step("vhost", false, "no vhost leads to it".to_owned())),
            Some(vhost) => {
                let is_ready = vhost.verdict == "ready";
                steps.push(step("vhost", is_ready, format!("{} is {}", vhost.hostname, vhost.verdict)));
                for check in &vhost.health.backends {
                    let says = match &check.reason {
                        Some(reason) => format!("{}: probes say {} ({reason})", check.backend, check.state),
                        None => format!("{}: probes say {}", check.backend, check.state),
                    };
                    steps.push(step("backend", check.state == "healthy", says));
                }
            }
        }
        let requests = said.backends.into_iter();
        steps.extend(requests.map(|(backend, ok, seen)| step("requests", ok, format!("{backend}: {seen}"))));
        ExplainView {
            name: view.name,
            url: view.url,
            verdict: said.reason.unwrap_or("ok").to_owned(),
            title: said.title.to_owned(),
            why: said.why.to_owned(),
            advice: said.advice.to_owned(),
            steps,
        }
    }
}
