//! The tables of `docs/tcp.md`.

use std::fmt::Write as _;
use std::path::Path as FilePath;
use std::sync::Mutex;

use millstream_tcp::Algorithm;
use serde_json::Value;

use crate::measure::{Path, Shared, shared};

/// The controllers, by the names that tables and the results file use.
pub const CONTROLLERS: [(&str, Algorithm); 4] = [
    ("cubic", Algorithm::Cubic),
    ("newreno", Algorithm::NewReno),
    ("bbr", Algorithm::Bbr),
    ("dctcp", Algorithm::Dctcp),
];
/// Round-trip times of the throughput table, in milliseconds.
const RTTS_MS: [u64; 3] = [1, 20, 100];
/// Random losses of the throughput table, in per cent.
const LOSSES_PERCENT: [f64; 5] = [0.0, 0.01, 0.1, 1.0, 5.0];
/// Rate of the throughput table.
const BANDWIDTH_BPS: u64 = 1_000_000_000;

/// What one cell of a table takes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cell {
    Throughput { controller: usize, rtt_ms: u64, loss_percent: f64 },
    Pair { one: usize, other: usize },
}

/// Rate and round-trip time of the fairness matrix.
const PAIR_PATH: (u64, u64) = (100_000_000, 20);

impl Cell {
    fn measure(self) -> Shared {
        match self {
            Self::Throughput { controller, rtt_ms, loss_percent } => {
                let path = Path {
                    bandwidth_bps: BANDWIDTH_BPS,
                    rtt_us: 1000 * rtt_ms,
                    loss: loss_percent / 100.0,
                    queue_bdp: 1.0,
                    mark_frames: usize::MAX,
                    seed: 1,
                };
                shared(&path, &[CONTROLLERS[controller].1], 1.0, 10.0)
            }
            Self::Pair { one, other } => {
                let path = Path {
                    bandwidth_bps: PAIR_PATH.0,
                    rtt_us: 1000 * PAIR_PATH.1,
                    loss: 0.0,
                    queue_bdp: 1.0,
                    mark_frames: usize::MAX,
                    seed: 1,
                };
                shared(&path, &[CONTROLLERS[one].1, CONTROLLERS[other].1], 10.0, 60.0)
            }
        }
    }
}

/// Measures all tables on all cores. `done` is told how many cells are done, and how many there are.
pub fn report(linux: Option<&FilePath>, done: impl Fn(usize, usize) + Sync) -> String {
    let mut cells = Vec::new();
    for controller in 0..CONTROLLERS.len() {
        for rtt_ms in RTTS_MS {
            for loss_percent in LOSSES_PERCENT {
                cells.push(Cell::Throughput { controller, rtt_ms, loss_percent });
            }
        }
    }
    for one in 0..CONTROLLERS.len() {
        for other in one..CONTROLLERS.len() {
            cells.push(Cell::Pair { one, other });
        }
    }
    let results = measure_all(&cells, done);
    let result_of = |cell: Cell| {
        let at = cells.iter().position(|other| *other == cell);
        at.and_then(|at| results.get(at)?.as_ref())
    };
    let linux = linux.and_then(read_linux);

    let mut text = String::from(HEAD);
    text.push_str("\n## Throughput\n\n");
    let _ = writeln!(
        text,
        "One flow at 1 Gbit/s for 10 s of virtual time, after one second to begin in; random loss of data frames; a \
         drop-tail queue of one\nbandwidth-delay product (50 frames at the least). Goodput in Mbit/s{}.\n",
        if linux.is_some() {
            ", in brackets that of Linux between two namespaces over the same impairments"
        } else {
            ""
        }
    );
    text.push_str("| RTT | loss |");
    for (name, _) in CONTROLLERS {
        let _ = write!(text, " {name} |");
    }
    text.push_str("\n|---|---|");
    text.push_str(&"---:|".repeat(CONTROLLERS.len()));
    text.push('\n');
    for rtt_ms in RTTS_MS {
        for loss_percent in LOSSES_PERCENT {
            let _ = write!(text, "| {rtt_ms} ms | {loss_percent} % |");
            for (controller, (name, _)) in CONTROLLERS.iter().enumerate() {
                let cell = Cell::Throughput { controller, rtt_ms, loss_percent };
                match result_of(cell) {
                    Some(result) => {
                        let _ = write!(text, " {}", rounded(result.total_mbps()));
                    }
                    None => text.push_str(" -"),
                }
                let theirs = linux.as_ref();
                if let Some(mbps) = theirs.and_then(|l| linux_mbps(l, name, rtt_ms, loss_percent)) {
                    let _ = write!(text, " ({})", rounded(mbps));
                }
                text.push_str(" |");
            }
            text.push('\n');
        }
    }
    text.push_str("\n## Two controllers at one bottleneck\n\n");
    let _ = writeln!(
        text,
        "Two flows at {} Mbit/s and {} ms with a drop-tail queue of one bandwidth-delay product, for 60 s of virtual \
         time after 10 s to begin\nin. The share of the row's flow when it meets the column's, in per cent; in brackets \
         what both use of the path, and the mean time a frame\nwaits in the queue.\n",
        PAIR_PATH.0 / 1_000_000,
        PAIR_PATH.1
    );
    text.push_str("| |");
    for (name, _) in CONTROLLERS {
        let _ = write!(text, " {name} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---:|".repeat(CONTROLLERS.len()));
    text.push('\n');
    for (row, (name, _)) in CONTROLLERS.iter().enumerate() {
        let _ = write!(text, "| {name} |");
        for column in 0..CONTROLLERS.len() {
            let cell = Cell::Pair { one: row.min(column), other: row.max(column) };
            let Some(result) = result_of(cell) else {
                text.push_str(" - |");
                continue;
            };
            let own = result.mbps(usize::from(row > column));
            let total = result.total_mbps();
            let _ = write!(
                text,
                " {:.0} ({:.0} %, {:.1} ms) |",
                100.0 * own / total.max(f64::MIN_POSITIVE),
                100.0 * total * 1e6 / PAIR_PATH.0 as f64,
                result.queue.waited_nanos_mean() as f64 / 1e6
            );
        }
        text.push('\n');
    }
    text
}

const HEAD: &str = "# TCP in figures

Written by `make report-tcp`. Both ends are millstream, in virtual time: every run gives the same figures on every machine.
";

fn measure_all(cells: &[Cell], done: impl Fn(usize, usize) + Sync) -> Vec<Option<Shared>> {
    let results = Mutex::new(vec![None; cells.len()]);
    let next = Mutex::new((0, 0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = {
                        let Ok(mut next) = next.lock() else { return };
                        next.0 += 1;
                        next.0 - 1
                    };
                    let Some(cell) = cells.get(at) else { return };
                    let result = cell.measure();
                    if let Ok(mut results) = results.lock() {
                        results[at] = Some(result);
                    }
                    if let Ok(mut next) = next.lock() {
                        next.1 += 1;
                        done(next.1, cells.len());
                    }
                }
            });
        }
    });
    results.into_inner().unwrap_or_default()
}

/// What was measured of Linux: a list of objects with `controller`, `rtt_ms`, `loss_percent`, `mbps`.
fn read_linux(path: &FilePath) -> Option<Vec<Value>> {
    let text = std::fs::read_to_string(path).ok()?;
    match serde_json::from_str(&text).ok()? {
        Value::Array(rows) => Some(rows),
        _ => None,
    }
}

fn linux_mbps(rows: &[Value], controller: &str, rtt_ms: u64, loss_percent: f64) -> Option<f64> {
    let row = rows.iter().find(|row| {
        row["controller"] == controller
            && row["rtt_ms"].as_f64() == Some(rtt_ms as f64)
            && row["loss_percent"].as_f64() == Some(loss_percent)
    })?;
    row["mbps"].as_f64()
}

fn rounded(mbps: f64) -> String {
    if mbps < 10.0 { format!("{mbps:.2}") } else { format!("{mbps:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_rows_are_found_by_their_three_keys() {
        let rows = r#"[{"controller": "cubic", "rtt_ms": 20, "loss_percent": 0.1, "mbps": 12.5},
                       {"controller": "bbr", "rtt_ms": 20, "loss_percent": 0.1, "mbps": 800}]"#;
        let Ok(Value::Array(rows)) = serde_json::from_str(rows) else { panic!("not a list") };
        assert_eq!(linux_mbps(&rows, "cubic", 20, 0.1), Some(12.5));
        assert_eq!(linux_mbps(&rows, "bbr", 20, 0.1), Some(800.0));
        assert_eq!(linux_mbps(&rows, "bbr", 100, 0.1), None);
    }
}
