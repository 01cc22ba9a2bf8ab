//! Figures of the virtual world: the same on every machine.

use serde_json::json;

use millstream::tcp::Algorithm;
use millstream_tests_sim::measure::{Path, shared, tail_loss};
use millstream_tests_sim::{Grid, regressions};

use crate::Measured;
use crate::figure::{Figure, Runs};

/// Seeds of the grid of `make test`.
const SEEDS: u64 = 10_000;

/// Seeds without an oracle failing.
pub fn seeds() -> Measured {
    let summary = Grid::default().play(0..SEEDS, |_, _| true);
    let again = Grid::default().play(regressions(), |_, _| true);
    for failures in [&summary, &again] {
        eprint!("{}", failures.report());
    }
    let figure = Figure::exact("sim.seeds_ok", summary.seeds_ok as f64)
        .with("seeds", json!(summary.seeds))
        .with("regressions", json!(again.seeds))
        .with("regressions_ok", json!(again.seeds_ok))
        .with("frames", json!(summary.frames))
        .with("frames_dropped", json!(summary.dropped))
        .with("virtual_hours", json!((summary.virtual_seconds / 3600.0).round()));
    Ok(vec![figure])
}

/// Jain's index of 8 CUBIC flows that share a bottleneck for a minute.
pub fn fairness() -> Measured {
    let path = Path {
        bandwidth_bps: 100_000_000,
        rtt_us: 20_000,
        loss: 0.0,
        queue_bdp: 1.0,
        mark_frames: usize::MAX,
        seed: 1,
    };
    let runs =
        [1, 2, 3].map(|seed| shared(&Path { seed, ..path }, &[Algorithm::Cubic; 8], 5.0, 60.0));
    let jain = Runs(runs.iter().map(|run| run.jain()).collect());
    let mbps: Vec<_> = (0..8).map(|flow| (10.0 * runs[0].mbps(flow)).round() / 10.0).collect();
    let figure = Figure::new("tcp.fairness.jain", &jain)
        .with("path", json!("100 Mbit/s, 20 ms, drop-tail queue of one bandwidth-delay product"))
        .with("virtual_seconds", json!(60))
        .with("mbps", json!(mbps))
        .with("queue_mean_ms", json!(runs[0].queue.waited_nanos_mean() as f64 / 1e6));
    Ok(vec![figure])
}

/// Completion time of 10 KB with the last segment lost once: with RACK-TLP over without. The
/// geometric mean over three round-trip times.
pub fn tail() -> Measured {
    let rtts_ms = [1, 20, 100];
    let times = rtts_ms.map(|rtt_ms| {
        let path = Path {
            bandwidth_bps: 100_000_000,
            rtt_us: 1000 * rtt_ms,
            loss: 0.0,
            queue_bdp: 1.0,
            mark_frames: usize::MAX,
            seed: 1,
        };
        (tail_loss(&path, 10_000, true), tail_loss(&path, 10_000, false))
    });
    let ratios = times.map(|(with, without)| with / without);
    let mean = ratios.iter().product::<f64>().powf(1.0 / ratios.len() as f64);
    let figure = Figure::exact("tcp.tail_loss.fct_ratio", mean)
        .with("rtt_ms", json!(rtts_ms))
        .with("with_ms", json!(times.map(|(with, _)| (with * 1e5).round() / 100.0)))
        .with("without_ms", json!(times.map(|(_, without)| (without * 1e5).round() / 100.0)));
    Ok(vec![figure])
}
