//! `millstream bench splice`: what it is worth that the disk and the network meet without the
//! application.

pub mod measure;

use std::fs::File as SystemFile;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use millstream::disk::File;

use crate::error::AppError;
use crate::output::say;
use measure::{Disk, Rig, Setup, TSO_BYTES, Way};

/// Bytes of the file that is made if none is given.
const FILE_BYTES: u64 = 256 << 20;

/// Runs of each way, in turn with the others, so that what slows the machine down hits all.
const ROUNDS: u32 = 8;

#[derive(Debug, Args)]
pub struct SpliceArgs {
    /// The file to send, of at least a MiB. Without one, 256 MiB are written to the directory for
    /// temporary files.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Bytes of a request.
    #[arg(long, default_value_t = 65_536, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    request: u64,
    /// Connections at a time.
    #[arg(long, default_value_t = 16, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=10_000))]
    connections: u16,
    /// Seconds in all.
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = super::seconds)]
    duration: Duration,
    /// The card does not cut segments: each frame is of 1500 bytes.
    #[arg(long)]
    no_tso: bool,
}

/// Something that is measured.
struct Row {
    name: &'static str,
    what: What,
    /// Bytes that take about the time of a round.
    step: u64,
    gbps: Vec<f64>,
}

enum What {
    Ours(Box<Rig>),
    Sendfile,
}

impl Row {
    fn new(name: &'static str, what: What) -> Self {
        Self { name, what, step: 16 << 20, gbps: Vec::new() }
    }
}

/// A file that was made for the benchmark.
struct Made(PathBuf);

impl Drop for Made {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Measures and prints a table.
pub fn run(args: &SpliceArgs) -> Result<(), AppError> {
    let made = match &args.file {
        Some(_) => None,
        None => Some(make().map_err(AppError::runtime)?),
    };
    let path: &Path = match (&args.file, &made) {
        (Some(path), _) => path,
        (None, Some(made)) => &made.0,
        (None, None) => Path::new(""),
    };
    let file = File::open(path)
        .map_err(|error| AppError::usage(format!("cannot read `{}`: {error}", path.display())))?;
    let request_bytes = args.request.min(file.len());
    if file.len() < 1 << 20 {
        return Err(AppError::usage(format!(
            "`{}` has {} bytes; give a file of a MiB at least",
            path.display(),
            file.len()
        )));
    }
    let setup = |way, disk| Setup {
        way,
        disk,
        request_bytes,
        peers: args.connections,
        tso_bytes_max: if args.no_tso { 0 } else { TSO_BYTES },
    };
    let rig = |name, way, disk: Disk| -> Result<Row, AppError> {
        let rig = Rig::new(&setup(way, disk)).map_err(AppError::runtime)?;
        Ok(Row::new(name, What::Ours(Box::new(rig))))
    };
    let kernel = || Disk::Kernel(file.clone());
    let mut rows = vec![
        rig("null disk, spliced", Way::Spliced, Disk::Null)?,
        rig("null disk, read and send", Way::ReadSend, Disk::Null)?,
        rig("null disk, read and hand over", Way::ReadSendUncopied, Disk::Null)?,
        rig("file, spliced", Way::Spliced, kernel())?,
        rig("file, read and send", Way::ReadSend, kernel())?,
        rig("file, read and hand over", Way::ReadSendUncopied, kernel())?,
        Row::new("kernel sendfile", What::Sendfile),
    ];
    measure_all(&mut rows, args.duration, path, request_bytes).map_err(AppError::runtime)?;
    say(table(&rows, args, request_bytes));
    Ok(())
}

fn make() -> std::io::Result<Made> {
    let made =
        Made(std::env::temp_dir().join(format!("millstream-bench-splice-{}", std::process::id())));
    let mut file = SystemFile::create_new(&made.0)?;
    let block: Vec<u8> =
        (0..1_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for _ in 0..FILE_BYTES >> 20 {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(made)
}

fn measure_all(
    rows: &mut [Row],
    duration: Duration,
    path: &Path,
    request_bytes: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let steps = u64::from(ROUNDS) * rows.len() as u64;
    let bar = ProgressBar::with_draw_target(Some(steps), target);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar:.cyan/238} {percent:>3}%  {msg}") {
        bar.set_style(style.progress_chars("━╸─"));
    }
    let slice = duration.div_f64(steps as f64).as_secs_f64();
    for round in 0..ROUNDS {
        for row in &mut *rows {
            bar.set_message(row.name);
            let start = Instant::now();
            let (bytes, cpu_ns) = match &mut row.what {
                What::Ours(rig) => rig.run(row.step)?,
                What::Sendfile => measure::sendfile(path, request_bytes, row.step)?,
            };
            let took = start.elapsed().as_secs_f64();
            // The first round finds out how much fits.
            let fits = bytes as f64 * (slice / took.max(1e-6)).clamp(0.1, 64.0);
            row.step = (fits as u64).clamp(1 << 20, 1 << 36);
            if round > 0 {
                row.gbps.push(bytes as f64 * 8.0 / cpu_ns.max(1) as f64);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn table(rows: &[Row], args: &SpliceArgs, request_bytes: u64) -> String {
    let median = |row: &Row| {
        let mut sorted = row.gbps.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let least = |row: &Row| row.gbps.iter().copied().fold(f64::INFINITY, f64::min);
    let most = |row: &Row| row.gbps.iter().copied().fold(0.0, f64::max);
    let mut lines = vec![
        format!(
            "requests of {request_bytes} bytes over {} connections, {}",
            args.connections,
            if args.no_tso { "1500-byte frames" } else { "a card that cuts segments" }
        ),
        format!(
            "{:<32}{:>10}{:>10}{:>10}{:>10}{:>14}{:>14}",
            "G bit/s a CPU", "median", "least", "most", "ratio", "copied/byte", "bytes/frame"
        ),
    ];
    let base = rows.first().map_or(f64::NAN, median);
    for row in rows {
        let (copied, frame) = match &row.what {
            What::Ours(rig) => {
                let copied = rig.copied_bytes() as f64 / rig.received_bytes().max(1) as f64;
                (format!("{copied:.3}"), format!("{:.0}", rig.bytes_a_frame()))
            }
            What::Sendfile => ("-".to_owned(), "-".to_owned()),
        };
        lines.push(format!(
            "{:<32}{:>10.1}{:>10.1}{:>10.1}{:>10.2}{copied:>14}{frame:>14}",
            row.name,
            median(row),
            least(row),
            most(row),
            median(row) / base,
        ));
    }
    lines.push(
        "ours end in a card without a network, and waiting for the disk is not counted; the sender of sendfile has \
         the file in the page cache and does most of its receiver's work on loopback"
            .to_owned(),
    );
    lines.join("\n")
}
