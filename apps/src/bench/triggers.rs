//! `millstream bench triggers`: how far apart the trigger points of a shard lie under a load, where
//! they come from, and how late events fire. Tables 1 and 2 of the soft-timers paper (Aron and
//! Druschel, SOSP '99) in shape.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use millstream::dpdk_port::Eal;
use millstream::timer::{TriggerSource, TriggerStats};
use serde::Serialize;

use super::duo::{self, Load, Outcome, Setup};
use super::report::grouped;
use super::{BenchError, seconds};
use crate::output::say;

/// Between two events whose lateness is measured besides.
pub const EVENT_INTERVAL: Duration = Duration::from_micros(100);

/// Measures trigger points.
#[derive(Debug, Args)]
pub struct TriggersArgs {
    /// What the shard is given to do; all of it in turn, if not given.
    #[arg(long, value_enum)]
    load: Option<LoadName>,
    /// Seconds for which each load is measured.
    #[arg(long, default_value = "3", value_name = "SECONDS", value_parser = seconds)]
    duration: Duration,
    /// Write the numbers as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A load on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LoadName {
    /// Files of 6 KB over 64 connections.
    Http,
    /// Bytes over one connection, as fast as they go.
    Bulk,
    /// Datagrams that are sent back.
    Udp,
    /// Nothing.
    Idle,
    /// A task that computes without end and gives way when the backup ticks.
    Compute,
}

impl From<LoadName> for Load {
    fn from(name: LoadName) -> Self {
        match name {
            LoadName::Http => Self::Http,
            LoadName::Bulk => Self::Bulk,
            LoadName::Udp => Self::Udp,
            LoadName::Idle => Self::Idle,
            LoadName::Compute => Self::Compute,
        }
    }
}

/// What one load showed. Times in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// The load.
    pub load: &'static str,
    /// What it did, a second: requests, datagrams, blocks of 16 KiB, or turns of the loop.
    pub rate: f64,
    /// Trigger points a second.
    pub triggers_per_second: f64,
    /// Intervals between them.
    pub interval_mean_us: f64,
    /// Half of them are shorter.
    pub interval_median_us: f64,
    /// All but one in a hundred.
    pub interval_p99_us: f64,
    /// The longest.
    pub interval_max_us: f64,
    /// Those beyond 100 us, in percent.
    pub interval_over_100us_percent: f64,
    /// Trigger points of each source, in percent.
    pub source_percent: Vec<(&'static str, f64)>,
    /// How late events fired: half of them less.
    pub late_median_us: f64,
    /// All but one in a hundred.
    pub late_p99_us: f64,
    /// The latest.
    pub late_max_us: f64,
    /// Events that fired, a second.
    pub events_per_second: f64,
    /// The part of the time that the shard's thread held a CPU, in percent.
    pub cpu_percent: f64,
    /// Sleeps of the loop, a second.
    pub sleeps_per_second: f64,
    /// Ticks of the backup, and those of them before which the loop was held up for a period.
    pub backup_ticks: (u64, u64),
    /// Points of the distribution of intervals: microseconds, and the percent that are not longer.
    pub distribution: Vec<(f64, f64)>,
}

impl Measured {
    fn new(load: Load, outcome: &Outcome, stats: &TriggerStats, span: Duration) -> Self {
        let (intervals, late) = (stats.intervals_ns(), stats.late_ns());
        let us = |nanos: u64| nanos as f64 / 1e3;
        let total = stats.total().max(1) as f64;
        let beyond = intervals.len() - intervals.count_between(0, 100_000);
        let mut sum = 0;
        let distribution = intervals
            .iter_recorded()
            .map(|value| {
                sum += value.count_since_last_iteration();
                let percent = sum as f64 * 100.0 / intervals.len().max(1) as f64;
                (us(value.value_iterated_to()), percent)
            })
            .collect();
        Self {
            load: load.name(),
            rate: outcome.rate,
            triggers_per_second: total / span.as_secs_f64(),
            interval_mean_us: intervals.mean() / 1e3,
            interval_median_us: us(intervals.value_at_quantile(0.5)),
            interval_p99_us: us(intervals.value_at_quantile(0.99)),
            interval_max_us: us(intervals.max()),
            interval_over_100us_percent: beyond as f64 * 100.0 / intervals.len().max(1) as f64,
            source_percent: TriggerSource::ALL
                .iter()
                .map(|source| (source.name(), stats.count(*source) as f64 * 100.0 / total))
                .collect(),
            late_median_us: us(late.value_at_quantile(0.5)),
            late_p99_us: us(late.value_at_quantile(0.99)),
            late_max_us: us(late.max()),
            events_per_second: outcome.event_rate,
            cpu_percent: outcome.cpu * 100.0,
            sleeps_per_second: outcome.sleeps as f64 / span.as_secs_f64(),
            backup_ticks: outcome.backup.unwrap_or_default(),
            distribution,
        }
    }
}

/// Measures one load.
///
/// # Errors
/// [`BenchError`]
pub fn measure(eal: &'static Eal, load: Load, span: Duration) -> Result<Measured, BenchError> {
    let setup =
        Setup { trace: true, event_interval: Some(EVENT_INTERVAL), ..Setup::new(load, span) };
    let outcome = duo::run(eal, setup)?;
    let stats = outcome.triggers.clone().unwrap_or_default();
    Ok(Measured::new(load, &outcome, &stats, span))
}

/// Measures and prints.
///
/// # Errors
/// [`BenchError`]
pub fn run(args: &TriggersArgs) -> Result<(), BenchError> {
    let eal = duo::start()?;
    let chosen = args.load.map(Load::from);
    let wanted = |load: &Load| chosen.is_none_or(|chosen| chosen == *load);
    let loads: Vec<_> = Load::ALL.into_iter().filter(wanted).collect();
    let bar = super::progress::steps(loads.len());
    let mut rows = Vec::new();
    for load in loads {
        bar.set_message(load.name());
        rows.push(measure(eal, load, args.duration)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    say(Tables(&rows));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows).unwrap_or_default() + "\n";
        let written = std::fs::write(path, text);
        written.map_err(|source| BenchError::File { what: "write", path: path.clone(), source })?;
    }
    Ok(())
}

/// Rows for people.
struct Tables<'a>(&'a [Measured]);

impl fmt::Display for Tables<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "trigger points of a shard, by load\n")?;
        writeln!(
            f,
            "  {:<9}{:>13}{:>13}{:>9}{:>9}{:>9}{:>10}{:>11}",
            "load", "work/s", "points/s", "mean", "median", "p99", "max", ">100 us"
        )?;
        writeln!(
            f,
            "  {:<9}{:>13}{:>13}{:>9}{:>9}{:>9}{:>10}{:>11}",
            "", "", "", "us", "us", "us", "us", "%"
        )?;
        for row in self.0 {
            writeln!(
                f,
                "  {:<9}{:>13}{:>13}{:>9.2}{:>9.2}{:>9.2}{:>10.1}{:>11.4}",
                row.load,
                grouped(row.rate as u64),
                grouped(row.triggers_per_second as u64),
                row.interval_mean_us,
                row.interval_median_us,
                row.interval_p99_us,
                row.interval_max_us,
                row.interval_over_100us_percent,
            )?;
        }
        writeln!(f, "\nwhere they come from, in percent\n")?;
        write!(f, "  {:<9}", "load")?;
        for source in TriggerSource::ALL {
            write!(f, "{:>17}", source.name())?;
        }
        writeln!(f)?;
        for row in self.0 {
            write!(f, "  {:<9}", row.load)?;
            for (_, percent) in &row.source_percent {
                write!(f, "{percent:>17.1}")?;
            }
            writeln!(f)?;
        }
        let rate = 1.0 / EVENT_INTERVAL.as_secs_f64();
        writeln!(f, "\nhow late events fire of which {} come a second\n", grouped(rate as u64))?;
        writeln!(f, "  {:<9}{:>9}{:>9}{:>10}", "load", "median", "p99", "max")?;
        writeln!(f, "  {:<9}{:>9}{:>9}{:>10}", "", "us", "us", "us")?;
        for (at, row) in self.0.iter().enumerate() {
            write!(
                f,
                "  {:<9}{:>9.2}{:>9.2}{:>10.1}",
                row.load, row.late_median_us, row.late_p99_us, row.late_max_us
            )?;
            if at + 1 < self.0.len() {
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream::timer::Instant;

    #[test]
    fn a_row_adds_up() {
        let mut stats = TriggerStats::new();
        for (at_us, source) in [
            (0, TriggerSource::Idle),
            (2, TriggerSource::RxBurst),
            (4, TriggerSource::Task),
            (504, TriggerSource::Tx),
        ] {
            stats.pass(source, Instant::from_micros(at_us));
        }
        stats.fired(3_000);
        let outcome = Outcome {
            triggers: None,
            rate: 7.0,
            event_rate: 0.0,
            cpu: 1.0,
            sleeps: 0,
            backup: None,
        };
        let row = Measured::new(Load::Http, &outcome, &stats, Duration::from_secs(2));
        assert_eq!(row.triggers_per_second, 2.0);
        assert!((row.interval_median_us - 2.0).abs() < 0.05, "{}", row.interval_median_us);
        assert!((row.interval_over_100us_percent - 100.0 / 3.0).abs() < 1e-9);
        assert_eq!(row.source_percent.iter().map(|(_, percent)| percent).sum::<f64>(), 100.0);
        assert_eq!(row.distribution.last().unwrap().1, 100.0);
        let text = Tables(&[row]).to_string();
        assert!(text.contains("application task"), "{text}");
    }
}
