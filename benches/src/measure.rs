use std::path::PathBuf;
use std::time::Duration;

use crate::error::BenchError;
use crate::load::Load;
use crate::process::Server;

/// Answers that may be lost or wrong before a figure is worthless: one in a thousand.
const TOLERATED: u64 = 1000;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rounds.
    pub rounds: u32,
    /// Seconds of load for each subject in each round.
    pub seconds: u32,
}

/// A server, the load that is put on it and what was seen.
#[derive(Debug)]
pub struct Subject<'a> {
    /// What the table calls it.
    pub label: String,
    /// The process that is measured.
    pub server: &'a Server,
    /// What it has to do.
    pub load: Load,
    /// Where it writes logs, which are emptied after each turn.
    pub logs: Option<PathBuf>,
    /// One for each round.
    pub samples: Vec<Sample>,
}

/// One turn of one subject.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Requests or queries answered.
    pub units: u64,
    /// CPU time of the server.
    pub cpu: Duration,
    /// Seconds.
    pub seconds: f64,
    /// See [`crate::load::Outcome::latency_ms`].
    pub latency_ms: f64,
    /// Resident memory after the turn.
    pub rss_kib: u64,
    /// Questions without answer.
    pub lost: u64,
}

/// Middle, least and greatest of some figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

impl<'a> Subject<'a> {
    /// A subject that has not been measured.
    pub fn new(server: &'a Server, load: Load, logs: Option<PathBuf>) -> Subject<'a> {
        Subject { label: server.name().to_owned(), server, load, logs, samples: Vec::new() }
    }

    async fn turn(&self, seconds: u32) -> Result<Sample, BenchError> {
        let before = self.server.cpu()?;
        let outcome = self.load.run(seconds).await?;
        let cpu = self.server.cpu()?.saturating_sub(before);
        if outcome.units == 0 || (outcome.failed + outcome.lost) > outcome.units / TOLERATED {
            let failed = outcome.failed + outcome.lost;
            return Err(BenchError::Failed { server: self.label.clone(), failed, units: outcome.units });
        }
        if let Some(logs) = &self.logs {
            empty(logs)?;
        }
        Ok(Sample {
            units: outcome.units,
            cpu,
            seconds: outcome.seconds,
            latency_ms: outcome.latency_ms,
            rss_kib: self.server.rss_kib()?,
            lost: outcome.lost,
        })
    }
}

impl Sample {
    /// Microseconds of CPU for each request or query.
    pub fn micros_per_unit(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.units as f64
    }

    /// Requests or queries in a second.
    pub fn rate(&self) -> f64 {
        self.units as f64 / self.seconds
    }
}

impl Spread {
    /// The spread of some figures, of which there must be one.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Spread {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let median = match figures.len() % 2 {
            1 => figures[middle],
            _ => f64::midpoint(figures[middle - 1], figures[middle]),
        };
        Spread { median, least: figures[0], greatest: figures[figures.len() - 1] }
    }
}

/// Lets the subjects take turns. Every other round goes backwards, so that what slowly changes on the machine
/// does not favour one of two neighbours.
pub async fn take_turns(part: &str, subjects: &mut [Subject<'_>], plan: Plan) -> Result<(), BenchError> {
    for subject in subjects.iter() {
        // Fills caches, opens files and makes connections; not counted.
        subject.turn(1).await?;
    }
    for round in 0..plan.rounds {
        let mut order: Vec<usize> = (0..subjects.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let subject = &mut subjects[at];
            let sample = subject.turn(plan.seconds).await?;
            eprintln!(
                "{part}, round {} of {}: {:<34} {:>8.2} µs CPU each, {:>7.0} per second",
                round + 1,
                plan.rounds,
                subject.label,
                sample.micros_per_unit(),
                sample.rate(),
            );
            subject.samples.push(sample);
        }
    }
    Ok(())
}

/// Empties log files, which would fill the disk; the server goes on writing at their new end.
fn empty(directory: &PathBuf) -> Result<(), BenchError> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        std::fs::File::options()
            .write(true)
            .truncate(true)
            .open(&path)
            .map_err(|source| BenchError::File { path, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 9.0]), Spread { median: 3.0, least: 1.0, greatest: 9.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]).median, 3.0);
        assert_eq!(Spread::of([7.0]).median, 7.0);
    }

    #[test]
    fn cpu_is_counted_for_each_unit() {
        let sample = Sample {
            units: 100_000,
            cpu: Duration::from_millis(1600),
            seconds: 2.0,
            latency_ms: 1.0,
            rss_kib: 1,
            lost: 0,
        };
        assert_eq!(sample.micros_per_unit(), 16.0);
        assert_eq!(sample.rate(), 50_000.0);
    }

    #[test]
    fn logs_are_emptied_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        std::fs::write(&path, "lines").unwrap();
        empty(&dir.path().to_path_buf()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }
}
