//! Random operations on the arena against a naive model: `oracle [OPERATIONS [SEED]]`.
//!
//! Prints how many were made without a difference, and their rate. A difference ends it with a panic; the
//! same seed finds it again.

#[path = "../tests/oracle/mod.rs"]
mod oracle;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Instant;

/// Operations of one seed.
const OPS_A_SEED: u64 = 10_000_000;

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|text| text.replace('_', "").parse::<u64>());
    let (Some(Ok(ops)), seed) = (numbers.next().or(Some(Ok(1_000_000_000))), numbers.next()) else {
        eprintln!("oracle: give a number of operations, and a seed if you like");
        return ExitCode::FAILURE;
    };
    let Ok(first) = seed.unwrap_or(Ok(1)) else {
        eprintln!("oracle: the seed must be a number");
        return ExitCode::FAILURE;
    };
    let start = Instant::now();
    let mut done = 0;
    let mut seed = first;
    while done < ops {
        let count = OPS_A_SEED.min(ops - done);
        let mut oracle = oracle::Oracle::new(seed);
        for _ in 0..count {
            oracle.step();
        }
        done += count;
        seed += 1;
        if std::io::stderr().is_terminal() {
            eprint!("\r{:>3} %  seed {seed}", done * 100 / ops);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    if std::io::stderr().is_terminal() {
        eprint!("\r");
    }
    println!(
        "oracle.ops {done}: no difference, seeds {first} to {}, {seconds:.0} s, {:.1} million a second",
        seed - 1,
        done as f64 / seconds / 1e6
    );
    ExitCode::SUCCESS
}
