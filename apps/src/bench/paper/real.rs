//! Tables 1, 2, 3 and 8: trigger points, what events cost, and what polling is worth; in the real
//! world, on two shards of this machine ([`duo`]).
//!
//! The paper's machines are of 1999, so their shape is to be compared and not their numbers.

use std::time::Duration;

use super::Progress;
use super::chart::{Chart, Series};
use super::table::{Column, Row, Table, Value};
use crate::bench::BenchError;
use crate::bench::duo::{self, Load};
use crate::bench::polling;
use crate::bench::triggers::{self, Measured};

/// The tables that are made here.
pub const TABLES: &[u8] = &[1, 2, 3, 8];

/// How long a load is watched for tables 1 and 2.
const WATCH: Duration = Duration::from_secs(3);
/// How long a run is for tables 3 and 8.
const RUN: Duration = Duration::from_secs(1);

/// Makes a table.
///
/// # Errors
/// [`BenchError`]
pub fn make(number: u8, progress: &Progress) -> Result<Table, BenchError> {
    match number {
        1 => Ok(intervals(&watch(progress)?)),
        2 => Ok(sources(&watch(progress)?)),
        3 => events(),
        _ => quotas(),
    }
}

fn number(value: f64, decimals: usize) -> Value {
    Value::Number(value, decimals)
}

fn column(name: &'static str, unit: &'static str) -> Column {
    Column { name, unit }
}

fn watch(progress: &Progress) -> Result<Vec<Measured>, BenchError> {
    let eal = duo::start()?;
    progress.begin(Load::ALL.len());
    Load::ALL
        .into_iter()
        .map(|load| {
            let row = triggers::measure(eal, load, WATCH)?;
            progress.step(load.name());
            Ok(row)
        })
        .collect()
}

const HOW: &str = "server and client are a shard each, on a core each, joined by rings in memory";
const FILES: &str =
    "requests for a cached file of 6 KB over 64 connections; medians of three runs of 1 s in turn";

/// Table 1: how far apart trigger points lie.
fn intervals(rows: &[Measured]) -> Table {
    Table {
        title: "Table 1: intervals between trigger points".to_owned(),
        about: vec![
            HOW.to_owned(),
            format!("{} s of each load; an event every 100 us besides", WATCH.as_secs()),
        ],
        columns: vec![
            column("load", ""),
            column("points", "1/s"),
            column("mean", "us"),
            column("median", "us"),
            column("p99", "us"),
            column("max", "us"),
            column("over 100 us", "%"),
        ],
        rows: rows
            .iter()
            .map(|row| {
                Row::ours(vec![
                    Value::Text(row.load.to_owned()),
                    Value::Count(row.triggers_per_second as u64),
                    number(row.interval_mean_us, 2),
                    number(row.interval_median_us, 2),
                    number(row.interval_p99_us, 2),
                    number(row.interval_max_us, 1),
                    number(row.interval_over_100us_percent, 4),
                ])
            })
            .collect(),
        published: vec![
            "means of 5 to 30 us by load, about 6 % beyond 100 us, none beyond 1 ms (300 MHz Pentium II)"
                .to_owned(),
        ],
        chart: Chart {
            subtitle: "share of intervals that are not longer".to_owned(),
            x: "interval in us",
            y: "percent",
            logarithmic: true,
            series: rows
                .iter()
                .map(|row| Series {
                    name: row.load.to_owned(),
                    points: row
                        .distribution
                        .iter()
                        .copied()
                        .filter(|(us, percent)| *us > 0.0 && *percent > 0.0)
                        .collect(),
                })
                .collect(),
        },
    }
}

/// Table 2: where trigger points come from.
fn sources(rows: &[Measured]) -> Table {
    let mut columns = vec![column("load", "")];
    if let Some(first) = rows.first() {
        columns.extend(first.source_percent.iter().map(|(name, _)| column(name, "%")));
    }
    let of_row = |row: &Measured| {
        let shares = row.source_percent.iter().map(|(_, percent)| number(*percent, 1));
        std::iter::once(Value::Text(row.load.to_owned())).chain(shares).collect()
    };
    Table {
        title: "Table 2: sources of trigger points".to_owned(),
        about: vec![HOW.to_owned(), "a turn that finds nothing to do is an idle point".to_owned()],
        columns,
        rows: rows.iter().map(|row| Row::ours(of_row(row))).collect(),
        published: vec![
            "system calls, IP output, IP input and traps of FreeBSD 2.2.6: a loop that polls has none \
             of these; the numbers could not be verified"
                .to_owned(),
        ],
        chart: Chart {
            subtitle: "share of trigger points, by source in the order of the columns".to_owned(),
            x: "source",
            y: "percent",
            logarithmic: false,
            series: rows
                .iter()
                .map(|row| Series {
                    name: row.load.to_owned(),
                    points: (1..)
                        .zip(&row.source_percent)
                        .map(|(at, (_, percent))| (f64::from(at), *percent))
                        .collect(),
                })
                .collect(),
        },
    }
}

/// Table 3: what events cost a server, by soft timers and by signals.
fn events() -> Result<Table, BenchError> {
    let rows = polling::events(RUN)?;
    let series = |timers: &'static str| Series {
        name: timers.to_owned(),
        points: rows
            .iter()
            .filter(|row| row.timers == timers)
            .map(|row| (row.events_khz, row.cost_percent.max(0.0)))
            .collect(),
    };
    Ok(Table {
        title: "Table 3: what events that do nothing cost a server".to_owned(),
        about: vec![HOW.to_owned(), FILES.to_owned()],
        columns: vec![
            column("timers", ""),
            column("asked", "kHz"),
            column("fired", "kHz"),
            column("rate", "requests/s"),
            column("cost", "%"),
        ],
        rows: rows
            .iter()
            .map(|row| {
                Row::ours(vec![
                    Value::Text(row.timers.to_owned()),
                    number(row.events_khz, 0),
                    number(row.fired_khz, 1),
                    Value::Count(row.rate as u64),
                    number(row.cost_percent, 1),
                ])
            })
            .collect(),
        published: vec![
            "2 to 6 % for soft timers that clock packets out; the columns by hardware timer could not \
             be verified"
                .to_owned(),
        ],
        chart: Chart {
            subtitle: "requests lost to events, in percent".to_owned(),
            x: "events a second, in thousands",
            y: "percent",
            logarithmic: false,
            series: vec![series("soft"), series("signal")],
        },
    })
}

/// Table 8: what polling by a quota is worth.
fn quotas() -> Result<Table, BenchError> {
    let rows = polling::polling(RUN)?;
    let quota = |policy: &str| policy.strip_prefix("quota ").and_then(|q| q.parse::<f64>().ok());
    let points = rows.iter().filter_map(|row| Some((quota(&row.policy)?, row.over_wake))).collect();
    Ok(Table {
        title: "Table 8: a server that polls its network by a quota".to_owned(),
        about: vec![
            HOW.to_owned(),
            FILES.to_owned(),
            "wake: the server waits in poll() for an eventfd before each frame, as for an interrupt"
                .to_owned(),
        ],
        columns: vec![
            column("policy", ""),
            column("rate", "requests/s"),
            column("over wake", "times"),
            column("cpu", "%"),
            column("sleeps", "1/s"),
        ],
        rows: rows
            .iter()
            .map(|row| {
                Row::ours(vec![
                    Value::Text(row.policy.clone()),
                    Value::Count(row.rate as u64),
                    number(row.over_wake, 2),
                    number(row.cpu_percent, 0),
                    Value::Count(row.sleeps_per_second as u64),
                ])
            })
            .collect(),
        published: vec!["up to 25 % more than by interrupts".to_owned()],
        chart: Chart {
            subtitle: "requests a second over those with a wake for each frame".to_owned(),
            x: "quota in frames",
            y: "times",
            logarithmic: false,
            series: vec![Series { name: "quota".to_owned(), points }],
        },
    })
}
