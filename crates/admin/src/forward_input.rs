//! Port forwards as clients of the API write them: the keys of `[[forward]]` in the configuration file.

use proximity_config::{Spelling, forward_from_json};
use proximity_table::Forward;
use serde_json::{Map, Value};

use crate::Problem;

/// What is shown of a forward beside its settings; it is passed over, so that a forward may come back as it was
/// shown.
const SHOWN: [&str; 11] = [
    "source",
    "target",
    "targets",
    "connections",
    "taken",
    "counted_since",
    "bytes_received",
    "bytes_sent",
    "trouble",
    "notes",
    "warnings",
];

/// The forward that a body means, once it makes sense.
pub fn forward(mut body: Map<String, Value>, spelling: Spelling) -> Result<Forward, Problem> {
    body.retain(|key, _| !SHOWN.contains(&key.as_str()));
    forward_from_json(&body, spelling).map_err(|report| Problem::reported(&report))
}

#[cfg(test)]
mod tests {
    use proximity_table::{BackendTarget, Protocol};

    use super::*;

    fn build(json: &str) -> Result<Forward, Problem> {
        forward(serde_json::from_str(json).expect("the input is of the right shape"), Spelling::Json)
    }

    #[test]
    fn a_port_and_a_target_are_enough() {
        let target = BackendTarget::App { name: "gitea".parse().unwrap(), port: 22 };
        let plain = Forward::new(Protocol::Tcp, 2222, target);
        assert_eq!(build(r#"{"port": 2222, "to": "gitea:22"}"#).unwrap(), plain);
        assert_eq!(
            build(r#"{"protocol": "tcp", "port": 2222, "to": ["gitea:22"], "mode": null}"#).unwrap(),
            plain
        );
    }

    #[test]
    fn every_problem_of_a_body_is_told() {
        let error = build(r#"{"port": 0, "to": "gitea", "mod": "proxy"}"#).unwrap_err();
        assert_eq!(error.status, 422);
        for part in ["forward.port", "not a target", "forward.mod"] {
            assert!(error.detail.contains(part), "{error:?}");
        }
        assert!(error.hint.contains("`mode`"), "{error:?}");
        let error = build(r#"{"port": 2222, "to": ["a:1", "b:1"]}"#).unwrap_err();
        assert!(error.hint.contains("\"mode\": \"proxy\""), "{error:?}");
        let body: Value = serde_json::from_str(r#"{"port": 2222, "to": ["a:1", "b:1"]}"#).unwrap();
        let error = forward(body.as_object().unwrap().clone(), Spelling::Line).unwrap_err();
        assert!(error.hint.starts_with("add --mode proxy ("), "{error:?}");
        assert!(build("{}").unwrap_err().detail.contains("no port"));
    }
}
