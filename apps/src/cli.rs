//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::source::Place;

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
    /// Serve the files of a directory or an image over HTTP/1.1.
    ///
    /// Prints one line when it is ready. SIGINT or SIGTERM: takes no more connections, lets those
    /// that are open end, prints what was done, and exits with 0; a second one ends it at once. SIGHUP,
    /// or another image under the same name: serves that from then on, and what is being sent goes on
    /// from the old one.
    Serve(ServeArgs),
    /// Pack a directory into an image (EROFS, not compressed) for `serve --source image:FILE`.
    Image(ImageArgs),
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
    /// The directory with the files; the same as --source dir:DIR.
    #[arg(short, long, value_name = "DIR", required_unless_present = "source")]
    pub root: Option<PathBuf>,
    /// Where the files are: dir:PATH, or image:FILE, which `millstream image` makes.
    #[arg(short, long, value_name = "SOURCE", conflicts_with = "root")]
    pub source: Option<Place>,
    /// The port, in place of the profile's http.port.
    #[arg(short, long, value_name = "PORT")]
    pub listen: Option<u16>,
}

impl ServeArgs {
    /// Where the files are.
    pub fn place(&self) -> Place {
        match (&self.source, &self.root) {
            (Some(place), _) => place.clone(),
            // clap sees to it that there is one of them.
            (None, root) => Place::Dir(root.clone().unwrap_or_default()),
        }
    }
}

/// `millstream image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// The directory with the files.
    pub dir: PathBuf,
    /// The image: a file, which is replaced in one step, or a block device.
    pub file: PathBuf,
    /// Write over a block device; its name must then be typed too.
    #[arg(long)]
    pub overwrite_device: bool,
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
