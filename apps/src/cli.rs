//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::bench::BenchArgs;

/// A userspace TCP/IP stack on DPDK that carries bytes from disk to wire without copying them.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, max_term_width = 100)]
pub struct Cli {
    /// Say more on standard error; twice: much more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the files of a directory over HTTP/1.1.
    ///
    /// Prints one line when it is ready. SIGINT or SIGTERM: takes no more connections, lets those
    /// that are open end, prints what was done, and exits with 0; a second one ends it at once.
    Serve(ServeArgs),
    /// Send back whatever is received over TCP.
    Echo(EchoArgs),
    /// Measure a server: rates and latencies.
    Bench(BenchArgs),
    /// Say what this machine offers, and how to mend what is missing.
    Doctor,
}

/// The stack's settings.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// The profile: a TOML file as in config/, where every key is explained.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Set one key of the profile, such as link.iface=dtap1; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `millstream serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub node: NodeArgs,
    /// The directory with the files.
    #[arg(short, long, value_name = "DIR")]
    pub root: PathBuf,
    /// The port, in place of the profile's http.port.
    #[arg(short, long, value_name = "PORT")]
    pub listen: Option<u16>,
}

/// `millstream echo`.
#[derive(Debug, Args)]
pub struct EchoArgs {
    #[command(flatten)]
    pub node: NodeArgs,
    /// The port.
    #[arg(short, long, value_name = "PORT", default_value_t = 7)]
    pub listen: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
