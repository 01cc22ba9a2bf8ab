//! What handles, data semantics and their thresholds cost; and the oracle that watches them.

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use millstream::buf::{
    Arena, ArenaConfig, DataSemantics, HugePages, SIZES_BYTES, SizeClass, Thresholds,
};
use millstream::timer::TscClock;
use serde_json::json;

use crate::Measured;
use crate::figure::{Figure, Runs, round};
use crate::oracle::Oracle;
use crate::transfers::{Case, Transfers};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// `buf.clone_drop_ns`.
pub fn clone_drop() -> Measured {
    const RUNS: usize = 201;
    const CLONES: u64 = 20_000;
    let arena = Arena::new(&ArenaConfig { frames: 64, blocks: 16, huge_pages: HugePages::Try })?;
    let clock = TscClock::new();
    let buf = arena.alloc(SizeClass::Block).ok_or("no buffer")?.freeze(0..1460);
    let mut runs = Runs::default();
    for _ in 0..RUNS {
        let start = clock.raw();
        for _ in 0..CLONES {
            drop(black_box(black_box(&buf).clone()));
        }
        runs.0.push(clock.nanos_between(start, clock.raw()) as f64 / CLONES as f64);
    }
    let figure = Figure::new("buf.clone_drop_ns", &runs).note(
        "a handle on a buffer of the own shard is cloned and dropped; the optimiser sees neither",
    );
    Ok(vec![figure])
}

const LEN: usize = 64 << 10;

/// The semantics' figures over transfers of 64 KiB.
pub fn semantics() -> Measured {
    const RUNS: usize = 301;
    let mut world = Transfers::new()?;
    let case = |semantics, cold| Case { semantics, len: LEN, cold, touches: false };
    let warm = [DataSemantics::EmulatedCopy, DataSemantics::EmulatedShare].map(|s| case(s, false));
    let cold = [DataSemantics::EmulatedCopy, DataSemantics::Copy].map(|s| case(s, true));
    let mut all: [Runs; 4] = Default::default();
    for round in 0..RUNS + 20 {
        // Each comes after each other one equally often: what went before is still in the caches.
        for turn in 0..4 {
            let at = ((turn + round) % 4) ^ ((round / 4) % 2);
            let (runs, case) = (&mut all[at], &[warm[0], warm[1], cold[0], cold[1]][at]);
            let cost = world.run(*case)?;
            let wanted = if case.semantics == DataSemantics::Copy { LEN as u64 } else { 0 };
            if cost.copied_bytes != wanted {
                return Err(format!("{} copied {} bytes", case.semantics, cost.copied_bytes).into());
            }
            if round >= 20 {
                runs.0.push(cost.ns);
            }
        }
    }
    let [emulated_copy, emulated_share, cold_emulated, cold_copy] = all;
    let threshold = world.thresholds().copy_below_bytes;
    let how = "64 KiB sent by one shard to another over a link that looks as a card with DMA and \
        checksum offload; time of the sending shard from the call until the memory is free; nobody \
        touches the buffer; runs of all kinds in turn";
    let share =
        Figure::ratio("semantics.emulated_copy_vs_share.64k", &emulated_copy, &emulated_share)
            .with("unit_of_ours_and_theirs", json!("ns a transfer, warm"))
            .with("copy_below_bytes", json!(threshold))
            .note(how);
    let copy =
        Figure::ratio("semantics.emulated_copy_vs_cold_copy.64k", &cold_copy, &cold_emulated)
            .with(
                "unit_of_ours_and_theirs",
                json!("ns a transfer: copy, emulated copy; data not in cache"),
            )
            .note(how);
    Ok(vec![share, copy, regret()?])
}

/// `semantics.threshold_regret_percent`: thresholds from one calibration, costs from another.
fn regret() -> Result<Figure> {
    let arena = Arena::new(&ArenaConfig { frames: 64, blocks: 16, huge_pages: HugePages::Try })?;
    let mut runs = Runs::default();
    let mut thresholds = Vec::new();
    for _ in 0..15 {
        let calibrated = Thresholds::measure(&arena).copy_below_bytes;
        let costs = Thresholds::measure(&arena);
        let fixed = SIZES_BYTES.iter().chain([&0, &usize::MAX]).map(|&at| costs.regret(at));
        let best = fixed.fold(f64::INFINITY, f64::min);
        let ours = costs.regret(calibrated);
        runs.0.push(((1.0 + ours) / (1.0 + best) - 1.0) * 100.0);
        thresholds.push(calibrated as f64);
    }
    let threshold = round(Runs(thresholds).median());
    Ok(Figure::new("semantics.threshold_regret_percent", &runs)
        .with("copy_below_bytes", json!(threshold))
        .with("lengths_bytes", json!(SIZES_BYTES))
        .note(
            "cost of an output with the calibrated threshold over that with the best fixed one, mean of \
             lengths from 16 B to 16 KiB in proportion to the cheaper way; calibrated by one \
             measurement, judged by the next",
        ))
}

/// `oracle.ops`.
pub fn oracle() -> Measured {
    const SPAN: Duration = Duration::from_secs(20);
    const OPS_A_SEED: u64 = 1_000_000;
    let start = Instant::now();
    let (mut seed, mut ops) = (1_000, 0);
    while start.elapsed() < SPAN {
        let mut oracle = Oracle::new(seed);
        for _ in 0..OPS_A_SEED {
            oracle.step();
        }
        ops += OPS_A_SEED;
        seed += 1;
    }
    Ok(vec![
        Figure::exact("oracle.ops", ops as f64)
            .with("seconds", json!(SPAN.as_secs()))
            .note("random operations on the arena against a naive model, no difference; `make soak` makes 10^9"),
    ])
}
