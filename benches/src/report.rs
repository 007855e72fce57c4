use std::fmt::Write;

use serde_json::{Value, json};

use crate::measure::{Plan, Sample, Spread, Subject};

/// What `ours` is, in the words of the report.
const OURS: &str = "\
Ours is the appliance's data plane in a process of its own: one data thread, routing table, counters, health\n\
checks, JSON access log with its writer's thread. Peers have one worker and their usual settings. CPU is utime +\n\
stime of all threads of the server. Ratios are taken within each round; below 1 is better than the peer.";

/// Everything that was measured, beside what is to be reached.
#[derive(Debug)]
pub struct Report {
    plan: Plan,
    parts: Vec<Part>,
    skipped: Vec<String>,
}

/// Servers that did the same work.
#[derive(Debug)]
pub struct Part {
    title: String,
    method: String,
    unit: &'static str,
    latency: &'static str,
    rows: Vec<Row>,
    claims: Vec<Claim>,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// CPU time for each unit.
    Cpu,
    /// Time for an answer.
    Latency,
    /// Units in a second.
    Rate,
    /// Resident memory in MiB.
    Rss,
}

#[derive(Debug)]
struct Row {
    label: String,
    cpu: Spread,
    rate: Spread,
    latency: Spread,
    rss_mib: f64,
    lost: u64,
}

/// A figure that must not be greater than its target.
#[derive(Debug)]
struct Claim {
    name: &'static str,
    value: Spread,
    target: Option<f64>,
}

impl Report {
    /// A report without figures.
    pub fn new(plan: Plan) -> Report {
        Report { plan, parts: Vec::new(), skipped: Vec::new() }
    }

    /// Adds a part about these subjects; `unit` is what they did, `latency` heads the column of times.
    pub fn part(
        &mut self,
        title: &str,
        method: &str,
        unit: &'static str,
        latency: &'static str,
        subjects: &[Subject<'_>],
    ) -> &mut Part {
        let rows = subjects.iter().map(|subject| Row::of(&subject.label, &subject.samples)).collect();
        let (title, method) = (title.to_owned(), method.to_owned());
        self.parts.push(Part { title, method, unit, latency, rows, claims: Vec::new() });
        let last = self.parts.len() - 1;
        &mut self.parts[last]
    }

    /// Tells at once and at the end what is not measured, and why.
    pub fn skip(&mut self, words: String) {
        eprintln!("NOT MEASURED: {words}");
        self.skipped.push(words);
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("\n{OURS}\n");
        for part in &self.parts {
            part.write(&mut text, self.plan);
        }
        if !self.skipped.is_empty() {
            text.push_str("\nNOT MEASURED\n");
            self.skipped.iter().for_each(|words| text.extend(["  ", words, "\n"]));
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> String {
        let parts: Vec<Value> = self.parts.iter().map(Part::json).collect();
        let report = json!({
            "rounds": self.plan.rounds,
            "seconds": self.plan.seconds,
            "parts": parts,
            "not_measured": self.skipped,
        });
        format!("{report:#}\n")
    }
}

impl Part {
    /// Claims that `ours` takes at most `target` times what `peer` takes, round by round. Without a target
    /// it is only told, without a peer there is nothing to tell.
    pub fn ratio(
        &mut self,
        name: &'static str,
        figure: Figure,
        ours: &Subject<'_>,
        peer: Option<&Subject<'_>>,
        target: Option<f64>,
    ) {
        let Some(peer) = peer else { return };
        let value = ratios(figure, &ours.samples, &peer.samples);
        self.claims.push(Claim { name, value, target });
    }

    /// Claims that a figure is at most `target`.
    pub fn limit(&mut self, name: &'static str, figure: Figure, ours: &Subject<'_>, target: f64) {
        let value = Spread::of(ours.samples.iter().map(|sample| figure.of(sample)));
        self.claims.push(Claim { name, value, target: Some(target) });
    }

    /// Claims that a figure that was measured elsewhere is at most `target`. Without a target it is only told.
    pub fn figure(&mut self, name: &'static str, value: Spread, target: Option<f64>) {
        self.claims.push(Claim { name, value, target });
    }

    fn write(&self, text: &mut String, plan: Plan) {
        // Writing to a String does not fail.
        if self.rows.is_empty() {
            let _ = writeln!(text, "\n{} ({})", self.title, self.method);
        } else {
            let Plan { rounds, seconds } = plan;
            let rounds = format!("{rounds} rounds of {seconds} s, medians");
            let _ = writeln!(text, "\n{} ({}; {rounds})", self.title, self.method);
            let (cpu, rate) = (format!("CPU µs/{}", self.unit), format!("{}/s", self.unit));
            let heads = format!("{cpu:>15}{rate:>12}{:>10}{:>10}{:>8}", self.latency, "RSS MiB", "lost");
            let _ = writeln!(text, "  {:<38}{heads}", "");
        }
        for row in &self.rows {
            let _ = writeln!(
                text,
                "  {:<38}{:>15.2}{:>12.0}{:>10.2}{:>10.1}{:>8}",
                row.label, row.cpu.median, row.rate.median, row.latency.median, row.rss_mib, row.lost
            );
        }
        let _ = writeln!(text, "  {:<38}{:>9}{:>17}{:>10}", "", "figure", "(least–greatest)", "target");
        for claim in &self.claims {
            let Spread { median, least, greatest } = claim.value;
            let range = format!("({least:.2}–{greatest:.2})");
            let target = claim.target.map_or(String::new(), |target| format!("≤ {target:.2}"));
            let _ = writeln!(
                text,
                "  {:<38}{median:>9.2}{range:>17}{target:>10}  {}",
                claim.name,
                claim.verdict().unwrap_or_default()
            );
        }
    }

    fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "server": row.label,
                    "cpu_us_per_unit": spread(row.cpu),
                    "units_per_second": spread(row.rate),
                    "latency_ms": spread(row.latency),
                    "rss_mib": row.rss_mib,
                    "lost": row.lost,
                })
            })
            .collect();
        let claims: Vec<Value> = self
            .claims
            .iter()
            .map(|claim| {
                json!({
                    "name": claim.name,
                    "figure": spread(claim.value),
                    "target": claim.target,
                    "met": claim.is_met(),
                })
            })
            .collect();
        json!({
            "title": self.title,
            "method": self.method,
            "unit": self.unit,
            "latency": self.latency,
            "servers": rows,
            "claims": claims,
        })
    }
}

impl Figure {
    fn of(self, sample: &Sample) -> f64 {
        match self {
            Figure::Cpu => sample.micros_per_unit(),
            Figure::Latency => sample.latency_ms,
            Figure::Rate => sample.rate(),
            Figure::Rss => sample.rss_kib as f64 / 1024.0,
        }
    }
}

impl Row {
    fn of(label: &str, samples: &[Sample]) -> Row {
        let spread = |figure: Figure| Spread::of(samples.iter().map(|sample| figure.of(sample)));
        Row {
            label: label.to_owned(),
            cpu: spread(Figure::Cpu),
            rate: spread(Figure::Rate),
            latency: spread(Figure::Latency),
            rss_mib: spread(Figure::Rss).greatest,
            lost: samples.iter().map(|sample| sample.lost).sum(),
        }
    }
}

impl Claim {
    fn is_met(&self) -> Option<bool> {
        self.target.map(|target| self.value.median <= target)
    }

    fn verdict(&self) -> Option<&'static str> {
        self.is_met().map(|met| if met { "met" } else { "not met yet" })
    }
}

/// What `ours` takes of what `peer` takes, in each round.
fn ratios(figure: Figure, ours: &[Sample], peer: &[Sample]) -> Spread {
    Spread::of(ours.iter().zip(peer).map(|(ours, peer)| figure.of(ours) / figure.of(peer)))
}

fn spread(spread: Spread) -> Value {
    json!({ "median": spread.median, "least": spread.least, "greatest": spread.greatest })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sample(cpu_ms: u64) -> Sample {
        Sample {
            units: 1000,
            cpu: Duration::from_millis(cpu_ms),
            seconds: 1.0,
            latency_ms: 1.0,
            rss_kib: 2048,
            lost: 1,
        }
    }

    fn report(target: Option<f64>) -> Report {
        let (ours, peer) = ([sample(8), sample(30), sample(9)], [sample(10), sample(60), sample(10)]);
        let claim = Claim { name: "ours / peer", value: ratios(Figure::Cpu, &ours, &peer), target };
        let part = Part {
            title: "Work".to_owned(),
            method: "by hand".to_owned(),
            unit: "request",
            latency: "p99 ms",
            rows: vec![Row::of("ours", &ours), Row::of("peer", &peer)],
            claims: vec![claim],
        };
        Report { plan: Plan { rounds: 3, seconds: 1 }, parts: vec![part], skipped: Vec::new() }
    }

    // A round in which the whole machine was slow is slow for both: the ratio stays.
    #[test]
    fn ratios_are_taken_within_a_round() {
        let report = report(None);
        let value = report.parts[0].claims[0].value;
        assert_eq!(value, Spread { median: 0.8, least: 0.5, greatest: 0.9 });
    }

    #[test]
    fn a_target_is_met_by_the_median() {
        assert!(report(Some(0.8)).text().contains("≤ 0.80  met\n"));
        assert!(report(Some(0.79)).text().contains("not met yet"));
        assert!(!report(None).text().contains("met"));
    }

    #[test]
    fn what_is_not_measured_is_told_at_the_end() {
        let mut report = report(None);
        assert!(!report.text().contains("NOT MEASURED"));
        report.skip("caddy is missing".to_owned());
        assert!(report.text().ends_with("NOT MEASURED\n  caddy is missing\n"));
        assert!(report.json().contains("\"caddy is missing\""));
    }

    #[test]
    fn json_holds_what_the_table_shows() {
        let json: Value = serde_json::from_str(&report(Some(0.79)).json()).unwrap();
        let part = &json["parts"][0];
        assert_eq!(part["servers"][0]["cpu_us_per_unit"]["median"], 9.0);
        assert_eq!(part["servers"][1]["rss_mib"], 2.0);
        assert_eq!(part["servers"][1]["lost"], 3);
        assert_eq!(part["claims"][0]["figure"]["median"], 0.8);
        assert_eq!(part["claims"][0]["met"], false);
    }
}
