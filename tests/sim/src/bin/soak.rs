//! `make soak`: seeds for hours, or one again.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use millstream_tests_sim::{Grid, Scenario, run, run_against_smoltcp, run_traced};

/// Plays random scenarios in virtual time.
#[derive(Debug, Parser)]
struct Arguments {
    /// For how long.
    #[arg(long, default_value_t = 1.0)]
    hours: f64,
    /// Only this seed, and what it stands for.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints the frames of that seed, too.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Against smoltcp at the other end.
    #[arg(long)]
    smoltcp: bool,
    /// The first seed; else one that depends on the time.
    #[arg(long)]
    from: Option<u64>,
    /// So many seeds, instead of hours.
    #[arg(long)]
    count: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return one(seed, &arguments);
    }
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let from = arguments.from.unwrap_or(clock.map_or(0, |time| time.as_secs()) << 24);
    let span = Duration::from_secs_f64(arguments.hours.max(0.0) * 3600.0);
    let total = arguments.count.unwrap_or(span.as_secs());
    let bar = ProgressBar::new(total);
    let template = if arguments.count.is_some() {
        "{elapsed_precise} [{wide_bar}] {pos} of {len} seeds {msg}"
    } else {
        "{elapsed_precise} [{wide_bar}] of {len} s {msg}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let start = Instant::now();
    let counts = std::sync::Mutex::new((0u64, 0u64));
    let seeds = from..from + arguments.count.unwrap_or(1 << 24);
    let grid = if arguments.smoltcp { Grid::new(run_against_smoltcp) } else { Grid::default() };
    let summary = grid.play(seeds, |seed, outcome| {
        let Ok(mut counts) = counts.lock() else { return false };
        counts.0 += 1;
        counts.1 += u64::from(outcome.is_ok());
        if let Err(what) = outcome {
            bar.suspend(|| eprintln!("seed {seed}: {what}\n  again: make soak SEED={seed}"));
        }
        let position = arguments.count.map_or(start.elapsed().as_secs(), |_| counts.0);
        bar.set_position(position.min(total));
        bar.set_message(format!("{} of {} seeds ok", counts.1, counts.0));
        arguments.count.is_some() || start.elapsed() < span
    });
    bar.finish_and_clear();
    println!(
        "{} of {} seeds ok from {from} on in {:.0} s: {} frames, {} dropped, {:.0} hours of virtual time",
        summary.seeds_ok,
        summary.seeds,
        start.elapsed().as_secs_f64(),
        summary.frames,
        summary.dropped,
        summary.virtual_seconds / 3600.0
    );
    if summary.seeds_ok == summary.seeds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    let scenario = Scenario::from_seed(seed);
    println!("{scenario}");
    let start = Instant::now();
    let outcome = if arguments.smoltcp {
        run_against_smoltcp(seed)
    } else {
        let outcome = if arguments.trace { run_traced(&scenario) } else { run(&scenario) };
        outcome.map_err(|failure| format!("{}: {}", failure.oracle, failure.what))
    };
    let took = start.elapsed();
    match outcome {
        Ok(measured) => {
            println!("ok in {took:.2?}: {measured:?}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}
