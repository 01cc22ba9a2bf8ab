//! `millstream bench polling` and `millstream bench events`: what polling by a quota is worth, and
//! what events cost a server by soft timers and by signals. Tables 8 and 3 of the soft-timers paper
//! (Aron and Druschel, SOSP '99) in shape, on two shards of this machine.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use millstream::core::{Polling, Quota, TimerSource};
use serde::Serialize;

use super::duo::{self, Load, Outcome, Setup};
use super::report::grouped;
use super::{BenchError, seconds};
use crate::output::say;

/// Runs of each row, all rows in turn.
const ROUNDS: usize = 3;
/// Quotas: the paper's, and the longest burst.
const QUOTAS: [u8; 6] = [1, 2, 5, 10, 15, 32];
/// Event rates in kilohertz.
const RATES_KHZ: [u32; 3] = [20, 50, 100];

/// Compares rows that take turns.
#[derive(Debug, Args)]
pub struct TurnsArgs {
    /// Seconds of each run; a row has three.
    #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = seconds)]
    duration: Duration,
    /// Write the numbers as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A row of [`polling`].
#[derive(Clone, Debug, Serialize)]
pub struct PollingRow {
    /// When the link is polled: `wake`, `quota N`, `quota auto`, `spin`.
    pub policy: String,
    /// Requests a second.
    pub rate: f64,
    /// As a multiple of the rate with a wake for each frame.
    pub over_wake: f64,
    /// The part of the time that the server's thread held a CPU, in percent.
    pub cpu_percent: f64,
    /// Its sleeps, a second.
    pub sleeps_per_second: f64,
}

/// A row of [`events`].
#[derive(Clone, Debug, Serialize)]
pub struct EventsRow {
    /// What fires them: `none`, `soft`, `signal`.
    pub timers: &'static str,
    /// Events asked for, in kilohertz.
    pub events_khz: f64,
    /// Events that fired, in kilohertz.
    pub fired_khz: f64,
    /// Requests a second.
    pub rate: f64,
    /// Requests lost to the events, in percent.
    pub cost_percent: f64,
}

/// Runs of several set-ups in turn: of each the outcome with the median rate.
fn in_turn(setups: &[(String, Setup)]) -> Result<Vec<Outcome>, BenchError> {
    let eal = duo::start()?;
    let mut runs: Vec<Vec<Outcome>> = vec![Vec::new(); setups.len()];
    let bar = super::progress::steps(setups.len() * ROUNDS);
    for _ in 0..ROUNDS {
        for ((name, setup), runs) in setups.iter().zip(&mut runs) {
            bar.set_message(name.clone());
            runs.push(duo::run(eal, *setup)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let median = |mut runs: Vec<Outcome>| {
        runs.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        runs.swap_remove(ROUNDS / 2)
    };
    Ok(runs.into_iter().map(median).collect())
}

/// Requests a second by when the link is polled. Table 8 in shape.
///
/// # Errors
/// [`BenchError`]
pub fn polling(span: Duration) -> Result<Vec<PollingRow>, BenchError> {
    let with = |polling| Setup { polling, ..Setup::new(Load::Http, span) };
    let mut setups = vec![("wake".to_owned(), with(Polling::Interrupt))];
    for frames in QUOTAS {
        let polling = Polling::Quota(Quota::Frames(frames));
        setups.push((format!("quota {frames}"), with(polling)));
    }
    setups.push(("quota auto".to_owned(), with(Polling::Quota(Quota::Auto))));
    setups.push(("spin".to_owned(), with(Polling::Spin)));
    let outcomes = in_turn(&setups)?;
    let wake = outcomes.first().map_or(f64::NAN, |outcome| outcome.rate);
    let rows = setups.into_iter().zip(outcomes).map(|((policy, _), outcome)| PollingRow {
        policy,
        rate: outcome.rate,
        over_wake: outcome.rate / wake,
        cpu_percent: outcome.cpu * 100.0,
        sleeps_per_second: outcome.sleeps as f64 / span.as_secs_f64(),
    });
    Ok(rows.collect())
}

/// Requests a second while events fire that do nothing. Table 3 in shape.
///
/// # Errors
/// [`BenchError`]
pub fn events(span: Duration) -> Result<Vec<EventsRow>, BenchError> {
    let base = Setup::new(Load::Http, span);
    let mut setups = vec![("no events".to_owned(), base)];
    for khz in RATES_KHZ {
        for (name, timers) in [("soft", TimerSource::Soft), ("signal", TimerSource::Signal)] {
            let event_interval = Some(Duration::from_nanos(1_000_000 / u64::from(khz)));
            setups.push((format!("{name} {khz} kHz"), Setup { timers, event_interval, ..base }));
        }
    }
    let outcomes = in_turn(&setups)?;
    let alone = outcomes.first().map_or(f64::NAN, |outcome| outcome.rate);
    let rows = setups.iter().zip(&outcomes).map(|((_, setup), outcome)| EventsRow {
        timers: match (setup.event_interval, setup.timers) {
            (None, _) => "none",
            (Some(_), TimerSource::Soft) => "soft",
            (Some(_), TimerSource::Signal) => "signal",
        },
        events_khz: setup.event_interval.map_or(0.0, |interval| 1e-3 / interval.as_secs_f64()),
        fired_khz: outcome.event_rate / 1e3,
        rate: outcome.rate,
        cost_percent: (1.0 - outcome.rate / alone) * 100.0,
    });
    Ok(rows.collect())
}

/// Measures and prints what polling by a quota is worth.
///
/// # Errors
/// [`BenchError`]
pub fn run_polling(args: &TurnsArgs) -> Result<(), BenchError> {
    let rows = polling(args.duration)?;
    say(PollingTable(&rows));
    write(args, &rows)
}

/// Measures and prints what events cost.
///
/// # Errors
/// [`BenchError`]
pub fn run_events(args: &TurnsArgs) -> Result<(), BenchError> {
    let rows = events(args.duration)?;
    say(EventsTable(&rows));
    write(args, &rows)
}

fn write(args: &TurnsArgs, rows: &impl Serialize) -> Result<(), BenchError> {
    let Some(path) = &args.json else { return Ok(()) };
    let text = serde_json::to_string_pretty(rows).unwrap_or_default() + "\n";
    std::fs::write(path, text).map_err(|source| BenchError::File {
        what: "write",
        path: path.clone(),
        source,
    })
}

const LOAD: &str = "requests for a cached file of 6 KB over 64 connections; server and client are a shard each, on a core\n  \
    each, joined by rings in memory; medians of three runs, all rows in turn";

struct PollingTable<'a>(&'a [PollingRow]);

impl fmt::Display for PollingTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "a server that polls its network by a quota\n  {LOAD}")?;
        writeln!(
            f,
            "  wake: it waits in poll() for an eventfd before each frame, as for an interrupt\n"
        )?;
        writeln!(
            f,
            "  {:<11}{:>13}{:>12}{:>7}{:>10}",
            "policy", "requests/s", "over wake", "cpu %", "sleeps/s"
        )?;
        for row in self.0 {
            writeln!(
                f,
                "  {:<11}{:>13}{:>12.2}{:>7.0}{:>10}",
                row.policy,
                grouped(row.rate as u64),
                row.over_wake,
                row.cpu_percent,
                grouped(row.sleeps_per_second as u64)
            )?;
        }
        write!(f, "\n  published: up to 25 % more than by interrupts (Aron and Druschel, SOSP '99)")
    }
}

struct EventsTable<'a>(&'a [EventsRow]);

impl fmt::Display for EventsTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "what events that do nothing cost a server\n  {LOAD}\n")?;
        writeln!(
            f,
            "  {:<8}{:>10}{:>10}{:>13}{:>8}",
            "timers", "asked kHz", "fired kHz", "requests/s", "cost %"
        )?;
        for row in self.0 {
            writeln!(
                f,
                "  {:<8}{:>10.0}{:>10.1}{:>13}{:>8.1}",
                row.timers,
                row.events_khz,
                row.fired_khz,
                grouped(row.rate as u64),
                row.cost_percent
            )?;
        }
        write!(
            f,
            "\n  published: 2 to 6 % by soft timers that clock packets out (Aron and Druschel, SOSP '99)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_name_their_units() {
        let row = PollingRow {
            policy: "quota 5".to_owned(),
            rate: 123_456.0,
            over_wake: 2.5,
            cpu_percent: 99.6,
            sleeps_per_second: 0.0,
        };
        let text = PollingTable(&[row]).to_string();
        assert!(text.contains("quota 5          123,456        2.50    100         0"), "{text}");
        let row = EventsRow {
            timers: "soft",
            events_khz: 100.0,
            fired_khz: 99.95,
            rate: 4_000.0,
            cost_percent: 0.5,
        };
        let text = EventsTable(&[row]).to_string();
        assert!(text.contains("soft           100     100.0        4,000     0.5"), "{text}");
    }
}
