//! `make report-tcp`: measures TCP in virtual time and writes docs/tcp.md.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use millstream_tests_sim::report::report;

/// Measures throughput and fairness of all controllers.
#[derive(Debug, Parser)]
struct Arguments {
    /// What is written.
    #[arg(long, default_value = "docs/tcp.md")]
    output: PathBuf,
    /// What `make bench ONLY=tcp.goodput.cells` measured beside Linux, if it was run.
    #[arg(long, default_value = "target/bench/tcp-linux.json")]
    linux: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} [{wide_bar}] {pos} of {len}")
    {
        bar.set_style(style);
    }
    let text = report(Some(&arguments.linux), |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let written = arguments
        .output
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&arguments.output, text));
    match written {
        Ok(()) => {
            println!("written to {}", arguments.output.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cannot write {}: {error}", arguments.output.display());
            ExitCode::FAILURE
        }
    }
}
