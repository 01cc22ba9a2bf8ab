//! `millstream bench`: load generators, what mechanisms are worth, and tables of papers.

mod duo;
mod kernel;
mod load;
mod pacing;
mod paper;
mod plot;
mod polling;
mod progress;
mod report;
mod response;
mod semantics;
mod session;
mod splice;
mod stack;
mod tally;
mod transfers;
mod triggers;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand, ValueEnum};

use crate::error::AppError;
use crate::output::say;
use load::{Limits, Schedule};
use report::Report;
pub use report::{grouped, nanos};
use session::Run;
use tally::Tally;

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Measures a server, or this machine.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Asks an HTTP/1.1 server for files and measures rate and latency.
    Http(HttpArgs),
    /// Compares copying with the other ways to send a buffer: the eight data semantics.
    Semantics(semantics::SemanticsArgs),
    /// Measures how far apart the moments are at which soft timers may fire, under several loads.
    Triggers(triggers::TriggersArgs),
    /// Compares a server that polls its network by a quota with one that is woken for each frame.
    Polling(polling::TurnsArgs),
    /// Compares what 20,000 to 100,000 events a second cost a server, by soft timers and by signals.
    Events(polling::TurnsArgs),
    /// Sends a file through TCP into a card without a network, spliced and by the task's own reads,
    /// and by the kernel's sendfile, and compares what a CPU carries.
    Splice(splice::SpliceArgs),
    /// Reproduces tables of the soft-timers paper with this stack, beside what was published.
    Paper(paper::PaperArgs),
    /// Measures how far from its moment each paced segment leaves, on a busy shard of this machine.
    Pacing(pacing::PacingArgs),
}

/// Whose TCP carries the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Via {
    /// millstream's own; needs --config.
    Stack,
    /// The kernel's.
    Kernel,
}

#[derive(Debug, Args)]
struct HttpArgs {
    /// What to ask for, `http://ADDRESS[:PORT]/PATH`; several are asked for in turn.
    #[arg(long = "url", required = true, value_name = "URL")]
    urls: Vec<String>,
    /// A file with further paths on that server, one a line.
    #[arg(long, value_name = "FILE")]
    paths: Option<PathBuf>,
    /// Whose TCP carries the requests.
    #[arg(long, value_enum, default_value = "kernel")]
    via: Via,
    /// The profile of the link that our own stack uses (with --via stack).
    #[arg(long, value_name = "FILE", required_if_eq("via", "stack"))]
    config: Option<PathBuf>,
    /// Connections that are open at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    connections: u32,
    /// Seconds for which requests are sent.
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    duration: Duration,
    /// Stop after this many requests, if that comes first.
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// Open loop: send this many requests a second whatever the answers do. Latency then counts
    /// from the time at which a request should have been sent. Else a connection sends its next
    /// request as soon as it may.
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// Requests that a connection may have unanswered at a time.
    #[arg(long, default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pipeline: u16,
    /// Seconds to wait behind the end for answers that are missing.
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,
    /// Draw latency by percentile.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Write a histogram log with an interval a second.
    #[arg(long, value_name = "FILE")]
    histogram: Option<PathBuf>,
    /// Write the numbers as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 86_400.0 => Ok(Duration::from_secs_f64(value)),
        _ => Err("give seconds, more than 0 and at most 86400".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1e8 => Ok(value),
        _ => Err("give requests a second, more than 0 and at most 100 million".to_owned()),
    }
}

/// What a generator needs to know of a run.
#[derive(Clone, Copy, Debug)]
struct Plan {
    remote: SocketAddr,
    connections: usize,
    pipeline: usize,
    timeout: Duration,
}

/// Why a benchmark failed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A URL that is none.
    #[error(
        "`{0}` is not a URL of the form http://198.18.0.2:80/path or http://[2001:db8::2]:80/path with a numeric address"
    )]
    Url(String),
    /// More than one server.
    #[error("all URLs must be of one server: {0} and {1} are two")]
    TwoServers(SocketAddr, SocketAddr),
    /// A path that does not begin with a slash or has blanks in it.
    #[error("`{0}` in the list of paths must begin with `/` and have no blanks")]
    Path(String),
    /// A file that cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// Read or write.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The server cannot be reached.
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, String),
    /// Our own stack could not be started.
    #[error(transparent)]
    Stack(#[from] AppError),
    /// The plot.
    #[error("{0}")]
    Plot(String),
    /// Transfers between two shards of this process.
    #[error("cannot compare the data semantics: {0}")]
    Transfer(String),
    /// Requests without a good answer.
    #[error("{failed} requests failed, {answered} were answered; the table above says how")]
    Failed {
        /// Without a good answer.
        failed: u64,
        /// With one.
        answered: u64,
    },
}

impl From<BenchError> for AppError {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Stack(error) => error,
            BenchError::Url(_)
            | BenchError::TwoServers(..)
            | BenchError::Path(_)
            | BenchError::File { what: "read", .. } => Self::usage(error),
            _ => Self::runtime(error),
        }
    }
}

/// Runs a benchmark and prints its table.
///
/// # Errors
/// [`BenchError`]; also if some requests had no good answer.
pub fn run(args: BenchArgs) -> Result<(), BenchError> {
    match args.what {
        What::Http(args) => http(&args),
        What::Semantics(args) => semantics::run(&args),
        What::Triggers(args) => triggers::run(&args),
        What::Polling(args) => polling::run_polling(&args),
        What::Events(args) => polling::run_events(&args),
        What::Splice(args) => splice::run(&args).map_err(BenchError::Stack),
        What::Paper(args) => paper::run(&args),
        What::Pacing(args) => pacing::run(&args),
    }
}

fn http(args: &HttpArgs) -> Result<(), BenchError> {
    let (remote, paths) = targets(args)?;
    let limits = Limits { duration: args.duration, requests: args.requests };
    let plan = Plan {
        remote,
        connections: args.connections as usize,
        pipeline: usize::from(args.pipeline),
        timeout: args.timeout,
    };
    let tally = Tally::new(args.histogram.is_some());
    let schedule = Schedule::new(limits, args.rate);
    let mut state = Run::new(schedule, tally, &remote.to_string(), &paths);
    let epoch = SystemTime::now();
    match (args.via, &args.config) {
        (Via::Stack, Some(config)) => {
            state = via_stack(config, plan, state)?;
        }
        _ => kernel::run(&plan, &mut state)
            .map_err(|error| BenchError::Connect(remote, error.to_string()))?,
    }

    let title = match paths.as_slice() {
        [path] => format!("GET http://{remote}{path}"),
        paths => format!("GET of {} files from http://{remote}", paths.len()),
    };
    let what = describe(args);
    let report = Report::new(format!("{title}, {what}"), &state);
    say(format_args!("{title}\n{what}\n{report}"));
    let write = |path: &PathBuf, result: std::io::Result<()>| {
        result.map_err(|source| BenchError::File { what: "write", path: path.clone(), source })
    };
    if let Some(path) = &args.histogram {
        write(path, state.tally.write_log(path, &report.what, epoch))?;
        say(format_args!("  histogram     {}", path.display()));
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).unwrap_or_default();
        write(path, std::fs::write(path, text + "\n"))?;
    }
    if let Some(path) = &args.plot {
        let rate = grouped(report.requests_per_second as u64);
        let requests = grouped(report.requests);
        let subtitle = format!("{what}: {requests} requests, {rate} requests/s");
        plot::draw(path, &title, &subtitle, "requests", &state.tally.latency)
            .map_err(BenchError::Plot)?;
        say(format_args!("  plot          {}", path.display()));
    }
    match report.failed() {
        0 => Ok(()),
        failed => Err(BenchError::Failed { failed, answered: report.requests }),
    }
}

/// How the run was made, for people.
fn describe(args: &HttpArgs) -> String {
    let via = match args.via {
        Via::Stack => "millstream's stack",
        Via::Kernel => "kernel sockets",
    };
    let connections = match args.connections {
        1 => "1 connection".to_owned(),
        n => format!("{n} connections"),
    };
    let pipeline = match args.pipeline {
        1 => String::new(),
        n => format!(", {n} requests in flight on each"),
    };
    let load = match args.rate {
        None => "closed loop".to_owned(),
        Some(rate) => format!("open loop at {} requests/s", grouped(rate as u64)),
    };
    format!("{connections}{pipeline}, {load}, over {via}")
}

fn via_stack(config: &std::path::Path, plan: Plan, run: Run) -> Result<Run, BenchError> {
    let node = crate::node::open(config)?;
    node.block_on(|stack| stack::run(stack, plan, run))
        .map_err(|why| BenchError::Connect(plan.remote, why))
}

/// The server and the paths that are asked for.
fn targets(args: &HttpArgs) -> Result<(SocketAddr, Vec<String>), BenchError> {
    let mut paths = Vec::new();
    let mut server = None;
    for url in &args.urls {
        let (address, path) = parse_url(url).ok_or_else(|| BenchError::Url(url.clone()))?;
        match server {
            Some(first) if first != address => return Err(BenchError::TwoServers(first, address)),
            _ => server = Some(address),
        }
        paths.push(path);
    }
    if let Some(file) = &args.paths {
        let text = std::fs::read_to_string(file).map_err(|source| BenchError::File {
            what: "read",
            path: file.clone(),
            source,
        })?;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if !is_path(line) {
                return Err(BenchError::Path(line.to_owned()));
            }
            paths.push(line.to_owned());
        }
    }
    let server = server.ok_or_else(|| BenchError::Url(String::new()))?;
    Ok((server, paths))
}

fn parse_url(url: &str) -> Option<(SocketAddr, String)> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let address = match authority.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => {
            let inside = authority.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let ip = match inside {
                Some(ip) => IpAddr::V6(ip.parse::<Ipv6Addr>().ok()?),
                // Without brackets an address would run into the port.
                None => IpAddr::V4(authority.parse().ok()?),
            };
            SocketAddr::new(ip, 80)
        }
    };
    is_path(path).then(|| (address, path.to_owned()))
}

/// Whether it can stand in a request line: it cannot end it.
fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (got, path) = parse_url("http://198.18.0.2/a/b?c").unwrap();
        assert_eq!((got, path.as_str()), (address("198.18.0.2:80"), "/a/b?c"));
        let (got, path) = parse_url("http://198.18.0.2:8080").unwrap();
        assert_eq!((got, path.as_str()), (address("198.18.0.2:8080"), "/"));
        let (got, path) = parse_url("http://[2001:db8::2]/a").unwrap();
        assert_eq!((got, path.as_str()), (address("[2001:db8::2]:80"), "/a"));
        let (got, _) = parse_url("http://[2001:db8::2]:8080").unwrap();
        assert_eq!(got, address("[2001:db8::2]:8080"));
        for bad in [
            "http://2001:db8::2/",
            "http://[198.18.0.2]/",
            "https://198.18.0.2/",
            "198.18.0.2/",
            "http://host/",
            "http://198.18.0.2/a b",
        ] {
            assert!(parse_url(bad).is_none(), "{bad}");
        }
        assert!(parse_url("http://198.18.0.2/a\r\nX: y").is_none());
    }

    #[test]
    fn limits_are_bounded() {
        assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
        for bad in ["0", "-1", "nan", "inf", "1e9", "x"] {
            assert!(seconds(bad).is_err(), "{bad}");
            assert!(rate(bad).is_err() || bad == "1e9", "{bad}");
        }
        assert!(rate("1e9").is_err());
    }
}
