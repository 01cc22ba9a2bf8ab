//! `millstream bench paper`: the tables of the soft-timers paper (Aron and Druschel, Soft Timers,
//! SOSP'99) by this stack, beside what was published.
//!
//! | file | tables | world |
//! |---|---|---|
//! | `accuracy` | 4, 5: how well a rate is kept | virtual |
//! | `response` | 6, 7: response times by acknowledgements and by rate | virtual |
//! | `real` | 1, 2, 3, 8: trigger points, events, polling | this machine |
//! | `world` | two hosts in virtual time | |
//! | `table`, `chart` | how they are shown | |
//!
//! A table is an entry of [`MODULES`]: its numbers, and a function that makes it.

mod accuracy;
mod chart;
mod real;
mod response;
mod table;
mod world;

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::BenchError;
use crate::output::say;
use table::Table;

/// Reproduces tables of the soft-timers paper.
#[derive(Debug, Args)]
pub struct PaperArgs {
    /// Number of the table in the paper.
    #[arg(long, value_name = "N", value_parser = table_number)]
    table: u8,
    /// Draw it.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Write the numbers as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What makes some of the tables.
struct Module {
    tables: &'static [u8],
    make: fn(u8, &Progress) -> Result<Table, BenchError>,
}

const MODULES: &[Module] = &[
    Module { tables: accuracy::TABLES, make: accuracy::make },
    Module { tables: response::TABLES, make: response::make },
    Module { tables: real::TABLES, make: real::make },
];

fn table_number(text: &str) -> Result<u8, String> {
    let known = || MODULES.iter().flat_map(|module| module.tables);
    match text.parse::<u8>() {
        Ok(number) if known().any(|table| *table == number) => Ok(number),
        _ => {
            let mut tables: Vec<_> = known().collect();
            tables.sort();
            let tables: Vec<_> = tables.into_iter().map(u8::to_string).collect();
            Err(format!("the tables that can be reproduced are {}", tables.join(", ")))
        }
    }
}

/// How far the making of a table is; shown where somebody looks.
pub struct Progress(ProgressBar);

impl Progress {
    fn new() -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{wide_bar:.cyan/238} {pos}/{len}  {msg}") {
            bar.set_style(style.progress_chars("━╸─"));
        }
        Self(bar)
    }

    /// There are so many steps.
    pub fn begin(&self, steps: usize) {
        self.0.set_length(steps as u64);
        self.0.tick();
    }

    /// One more is done; `next` comes now.
    pub fn step(&self, next: &str) {
        self.0.set_message(next.to_owned());
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Makes a table and shows it.
///
/// # Errors
/// [`BenchError`]
pub fn run(args: &PaperArgs) -> Result<(), BenchError> {
    let module = MODULES.iter().find(|module| module.tables.contains(&args.table));
    // The command line knows the numbers.
    let Some(module) = module else { return Ok(()) };
    let table = (module.make)(args.table, &Progress::new())?;
    say(&table);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&table).unwrap_or_default() + "\n";
        let written = std::fs::write(path, text);
        written.map_err(|source| BenchError::File { what: "write", path: path.clone(), source })?;
    }
    if let Some(path) = &args.plot {
        chart::draw(path, &table.title, &table.chart).map_err(BenchError::Plot)?;
        say(format_args!("plot  {}", path.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_without_a_table_is_told_which_there_are() {
        assert_eq!(table_number("6"), Ok(6));
        for bad in ["0", "9", "six", "-1", "256"] {
            let told = table_number(bad).unwrap_err();
            assert!(told.starts_with("the tables that can be reproduced are "), "{told}");
        }
        let mut tables: Vec<_> = MODULES.iter().flat_map(|module| module.tables).collect();
        let count = tables.len();
        tables.sort();
        tables.dedup();
        assert_eq!(tables.len(), count, "no table is made twice");
    }
}
