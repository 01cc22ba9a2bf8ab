//! The tables of `docs/tcp.md`.

use std::fmt::Write as _;
use std::path::Path as FilePath;
use std::sync::Mutex;

use millstream_tcp::Algorithm;
use serde::Deserialize;

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
    let mut text = String::from(HEAD);
    text.push_str("\n## Throughput\n\n");
    let _ = writeln!(
        text,
        "One flow at 1 Gbit/s for 10 s of virtual time, after one second to begin in; random loss of data frames; a \
         drop-tail queue of one\nbandwidth-delay product (50 frames at the least). Goodput in Mbit/s.\n"
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
            for controller in 0..CONTROLLERS.len() {
                let cell = Cell::Throughput { controller, rtt_ms, loss_percent };
                match result_of(cell) {
                    Some(result) => {
                        let _ = write!(text, " {}", rounded(result.total_mbps()));
                    }
                    None => text.push_str(" -"),
                }
                text.push_str(" |");
            }
            text.push('\n');
        }
    }
    if let Some(cells) = linux.and_then(read_cells) {
        text.push_str(&beside_linux(&cells));
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

/// A cell of the table that `make bench ONLY=tcp.goodput.cells` measures, in real time.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Measured {
    loss: f64,
    rtt_ms: u64,
    controller: String,
    who: String,
    mbit_s: f64,
}

fn read_cells(path: &FilePath) -> Option<Vec<Measured>> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

/// The table of both stacks over the same impaired paths.
fn beside_linux(cells: &[Measured]) -> String {
    let mut text = String::from("\n## Beside Linux\n\n");
    let _ = writeln!(
        text,
        "In real time: four flows over a relay of 100 Mbit/s that loses in both directions, to Linux's receiver; \
         sent by millstream, and in\nbrackets by Linux, over the same seeds. Goodput of all four in Mbit/s. \
         Linux's BBR is version 1.\n"
    );
    let mut names: Vec<&str> = Vec::new();
    let mut paths: Vec<(u64, f64)> = Vec::new();
    for cell in cells {
        if !names.contains(&cell.controller.as_str()) {
            names.push(&cell.controller);
        }
        if !paths.contains(&(cell.rtt_ms, cell.loss)) {
            paths.push((cell.rtt_ms, cell.loss));
        }
    }
    paths.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let _ = writeln!(text, "| RTT | loss | {} |", names.join(" | "));
    let _ = writeln!(text, "|---|---|{}", "---:|".repeat(names.len()));
    for (rtt_ms, loss) in paths {
        let _ = write!(text, "| {rtt_ms} ms | {} % |", 100.0 * loss);
        for name in &names {
            let mbps = |who: &str| {
                let found = cells.iter().find(|cell| {
                    cell.controller == *name
                        && cell.who == who
                        && (cell.rtt_ms, cell.loss) == (rtt_ms, loss)
                });
                found.map_or("-".to_owned(), |cell| rounded(cell.mbit_s))
            };
            let _ = write!(text, " {} ({}) |", mbps("millstream"), mbps("linux"));
        }
        text.push('\n');
    }
    text
}

fn rounded(mbps: f64) -> String {
    if mbps < 10.0 { format!("{mbps:.2}") } else { format!("{mbps:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_stacks_stand_beside_each_other() {
        let cells = r#"[{"loss": 0.001, "rtt_ms": 20, "controller": "cubic", "who": "millstream", "mbit_s": 88.4},
            {"loss": 0.001, "rtt_ms": 20, "controller": "cubic", "who": "linux", "mbit_s": 85.0},
            {"loss": 0.0, "rtt_ms": 20, "controller": "bbr", "who": "linux", "mbit_s": 9.0}]"#;
        let text = beside_linux(&serde_json::from_str::<Vec<Measured>>(cells).unwrap());
        assert!(text.contains("| RTT | loss | cubic | bbr |"), "{text}");
        assert!(text.contains("| 20 ms | 0 % | - (-) | - (9.00) |"), "{text}");
        assert!(text.contains("| 20 ms | 0.1 % | 88 (85) | - (-) |"), "{text}");
    }
}
