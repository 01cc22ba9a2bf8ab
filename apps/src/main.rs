//! The program `millstream`: serves files, packs them, echoes, measures, and says what a machine offers.

#![forbid(unsafe_code)]

mod bench;
mod cli;
mod config;
mod doctor;
mod echo;
mod error;
mod image;
mod logging;
mod memory;
mod node;
mod output;
mod serve;
mod signals;
mod source;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use error::AppError;

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init(cli.verbose);
    let outcome = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Echo(args) => echo::run(&args),
        Command::Doctor => doctor::run(),
        Command::Bench(args) => bench::run(args).map_err(AppError::from),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millstream: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
