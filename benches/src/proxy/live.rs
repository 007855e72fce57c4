//! How soon a new vhost is served.

use super::{FEW, MANY, Stand};
use crate::error::BenchError;
use crate::load::said_by_self;
use crate::measure::Spread;
use crate::report::Report;

/// Vhosts that are added, one after the other.
const ADDED: usize = 200;

pub async fn run(stand: &Stand, report: &mut Report) -> Result<(), BenchError> {
    let few = measure(stand, FEW).await?;
    let many = measure(stand, MANY).await?;
    let part = report.part(
        "Proxy, adding a vhost",
        &format!(
            "{ADDED} times; from the end of its durable commit to the end of the first answer, on an open connection"
        ),
        "vhost",
        "",
        &[],
    );
    part.figure("ms at 10,000 vhosts", Spread::of(many.iter().copied()), Some(1.0));
    part.figure("ms at 10,000 vhosts, 99th of 100", Spread::of([percentile(many, 99)]), Some(1.0));
    part.figure("ms at 10 vhosts", Spread::of(few), None);
    Ok(())
}

/// Milliseconds for each vhost that is added to `vhosts`.
async fn measure(stand: &Stand, vhosts: usize) -> Result<Vec<f64>, BenchError> {
    eprintln!("proxy, adding {ADDED} vhosts to {vhosts}");
    let state = tempfile::tempdir_in(stand.dir.path())?;
    let words = [
        "add-vhosts".to_owned(),
        stand.backend.to_string(),
        vhosts.to_string(),
        ADDED.to_string(),
        stand.logs("live")?.display().to_string(),
        state.path().display().to_string(),
    ];
    let output = said_by_self(&words).await?;
    let micros: Vec<f64> = output.lines().filter_map(|line| line.parse().ok()).collect();
    match micros.len() {
        ADDED => Ok(micros.into_iter().map(|micros| micros / 1e3).collect()),
        _ => Err(BenchError::Unreadable { program: "bench", output }),
    }
}

/// The figure that so many of a hundred do not exceed.
fn percentile(mut figures: Vec<f64>, of_hundred: usize) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[(figures.len() * of_hundred).div_ceil(100) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninety_nine_of_a_hundred_do_not_exceed_the_percentile() {
        let figures: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(figures, 99), 198.0);
        assert_eq!(percentile(vec![7.0], 99), 7.0);
    }
}
