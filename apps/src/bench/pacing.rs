//! `millstream bench pacing`: how far from its moment each segment leaves when streams have rates, on a
//! shard that has other things to do.
//!
//! Two shards in one thread over an in-memory link, in real time. A segment's moment is what the
//! server's TCP says after the segment before it; it leaves when the link takes it. What the machine
//! did to this thread is told apart: in a millisecond in which the thread did not have its CPU all
//! the time, and in the one behind it, samples count for themselves.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use millstream::buf::{Arena, ArenaConfig, IoBuf};
use millstream::core::{Ipv4Config, Shard, ShardConfig, Stack, TcpStream};
use millstream::disk::MemDisk;
use millstream::link::mem::{MemConfig, MemLink, pair};
use millstream::link::{Capabilities, Link, LinkStats, RxBurst, TxError, TxFrame};
use millstream::tcp::{Config, PacingRate};
use millstream::timer::{Clock, Instant, TscClock};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::{BenchError, plot, seconds};
use crate::error::AppError;
use crate::output::say;

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 2), 7);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Of what a stream sends; shorter payloads are the other connections'.
const PAYLOAD_MIN: usize = 1000;
/// How often the thread's CPU time is looked at.
const SLICE_NANOS: u64 = 1_000_000;
/// Time without a CPU in a slice from which on its samples count apart.
const GAP_NANOS: u64 = 5_000;
/// Greater errors count as this: a minute.
const ERROR_NANOS_MAX: u64 = 60_000_000_000;
/// Before samples count.
const WARM_UP_NANOS: u64 = 100_000_000;
/// Where the destination port stands in a frame over IPv4 without tag or options.
const PORT_OFFSET: usize = 36;

/// Measures how far from its moment each paced segment leaves, on a busy shard of this machine.
#[derive(Debug, Args)]
pub struct PacingArgs {
    /// Bits of payload a second of each stream; k, M and G are understood.
    #[arg(long, default_value = "100M", value_name = "BITS", value_parser = crate::config::bit_rate)]
    rate: PacingRate,
    /// Streams that have this rate.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    streams: u16,
    /// Other connections, which send one byte back and forth without a pause.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1024))]
    busy: u16,
    /// Seconds for which is measured.
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = seconds)]
    duration: Duration,
    /// Draw the error by percentile.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Write the numbers as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A link that notes when it takes a segment of a stream.
struct Noting {
    link: MemLink,
    clock: TscClock,
    /// The client's port, and the moment.
    left: Rc<RefCell<Vec<(u16, Instant)>>>,
}

impl Link for Noting {
    fn capabilities(&self) -> &Capabilities {
        self.link.capabilities()
    }
    fn rx_burst(&mut self, frames: &mut RxBurst) {
        self.link.rx_burst(frames);
    }
    fn tx_room(&mut self) -> usize {
        self.link.tx_room()
    }
    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
        let taken = self.link.tx(frame);
        let payload: usize = frame.payload.iter().map(|slice| slice.len()).sum();
        if taken.is_ok()
            && payload >= PAYLOAD_MIN
            && let Some([high, low]) = frame.header.get(PORT_OFFSET..PORT_OFFSET + 2)
        {
            let port = u16::from_be_bytes([*high, *low]);
            self.left.borrow_mut().push((port, self.clock.now()));
        }
        taken
    }
    fn flush(&mut self) {
        self.link.flush();
    }
    fn stats(&self) -> LinkStats {
        self.link.stats()
    }
}

/// A shard by `clock`: moments of two clocks cannot be compared, as each has an epoch of its own.
fn shard<L: Link>(
    address: Ipv4Addr,
    link: L,
    tcp: &Config,
    clock: &TscClock,
) -> Result<Shard<L, TscClock>, String> {
    let mut config = ShardConfig::new(Ipv4Config { address, prefix_len: 24, gateway: None });
    config.tcp = tcp.clone();
    let arena = Arena::new(&ArenaConfig::default()).map_err(|error| error.to_string())?;
    let disk = MemDisk::null(config.limits.disk_depth).map_err(|error| error.to_string())?;
    Ok(Shard::new(config, link, clock.clone(), arena, Box::new(disk)))
}

/// What one run told.
#[derive(Debug, Serialize)]
struct Report {
    what: String,
    segments: u64,
    /// Distance of a segment from its moment in microseconds, by percentile.
    error_us: Errors,
    /// The same in the milliseconds in which the machine took the CPU away, or had just done so.
    disturbed_segments: u64,
    disturbed_error_us: Errors,
    /// Time in which the thread did not have its CPU, in microseconds.
    machine_gaps_us: u64,
    /// The longest such time in a millisecond.
    machine_gap_max_us: u64,
    /// Turns of the server's loop a second.
    turns_per_second: u64,
    /// Rate of a stream over what was asked for.
    rate_kept: f64,
}

#[derive(Debug, Serialize)]
struct Errors {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Errors {
    fn of(errors_ns: &Histogram<u64>) -> Self {
        let at = |quantile| errors_ns.value_at_quantile(quantile) as f64 / 1e3;
        let max = if errors_ns.is_empty() { 0.0 } else { errors_ns.max() as f64 / 1e3 };
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max }
    }
}

/// Distances from moments, undisturbed and disturbed, in nanoseconds.
struct Samples {
    good: Histogram<u64>,
    disturbed: Histogram<u64>,
    /// Those of the slice that is not over.
    pending: Vec<u64>,
    gaps_nanos: u64,
    gap_nanos_max: u64,
    wall: Instant,
    cpu_nanos: u64,
    was_disturbed: bool,
}

fn cpu_nanos() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

impl Samples {
    fn new(now: Instant) -> Result<Self, String> {
        let histogram =
            || Histogram::new_with_bounds(1, ERROR_NANOS_MAX, 3).map_err(|e| e.to_string());
        Ok(Self {
            good: histogram()?,
            disturbed: histogram()?,
            pending: Vec::new(),
            gaps_nanos: 0,
            gap_nanos_max: 0,
            wall: now,
            cpu_nanos: cpu_nanos(),
            was_disturbed: false,
        })
    }

    /// Ends a slice if it is long enough.
    fn look(&mut self, now: Instant) {
        let wall = now.nanos_since(self.wall);
        if wall < SLICE_NANOS {
            return;
        }
        let cpu = cpu_nanos();
        let gap = wall.saturating_sub(cpu - self.cpu_nanos);
        self.take_slice(gap);
        (self.wall, self.cpu_nanos) = (now, cpu);
    }

    /// A slice is over in which the thread was without a CPU for so long.
    fn take_slice(&mut self, gap_nanos: u64) {
        let disturbed = gap_nanos >= GAP_NANOS;
        if disturbed {
            self.gaps_nanos += gap_nanos;
            self.gap_nanos_max = self.gap_nanos_max.max(gap_nanos);
        }
        let into =
            if disturbed || self.was_disturbed { &mut self.disturbed } else { &mut self.good };
        for error in self.pending.drain(..) {
            into.saturating_record(error);
        }
        self.was_disturbed = disturbed;
    }
}

/// Runs it and prints what came of it.
///
/// # Errors
/// [`BenchError`]
pub fn run(args: &PacingArgs) -> Result<(), BenchError> {
    let failed = |why: String| BenchError::Stack(AppError::runtime(why));
    let (report, errors) = measure(args).map_err(failed)?;
    say(show(&report, &errors));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).unwrap_or_default() + "\n";
        let written = std::fs::write(path, text);
        written.map_err(|source| BenchError::File { what: "write", path: path.clone(), source })?;
    }
    if let Some(path) = &args.plot {
        plot::draw(
            path,
            "Distance of paced segments from their moments",
            &report.what,
            "segments",
            &errors,
        )
        .map_err(BenchError::Plot)?;
        say(format_args!("  plot          {}", path.display()));
    }
    Ok(())
}

/// The report for people: a line a number, and the distribution by powers of two.
fn show(report: &Report, errors: &Histogram<u64>) -> String {
    let line = |name: &str, errors: &Errors| {
        format!(
            "  {name:<14}p50 {:.2} us, p90 {:.2}, p99 {:.2}, p99.9 {:.2}, max {:.1}",
            errors.p50, errors.p90, errors.p99, errors.p999, errors.max
        )
    };
    let mut lines = vec![
        report.what.clone(),
        format!("  segments      {}", super::grouped(report.segments)),
        line("error", &report.error_us),
        format!(
            "  disturbed     {} segments apart, when the machine took the CPU away ({:.1} ms in all, {:.2} ms at once)",
            super::grouped(report.disturbed_segments),
            report.machine_gaps_us as f64 / 1e3,
            report.machine_gap_max_us as f64 / 1e3
        ),
        line("", &report.disturbed_error_us),
        format!("  loop          {} turns/s", super::grouped(report.turns_per_second)),
        format!("  rate          {:.3} % of what was asked for", 100.0 * report.rate_kept),
    ];
    let total = errors.len().max(1) as f64;
    let (mut low, mut high) = (0, 250);
    while low <= errors.max() && !errors.is_empty() {
        let count = errors.count_between(low, high - 1);
        let share = count as f64 / total;
        let bar = "#".repeat((share * 50.0).round() as usize);
        let bound = high as f64 / 1e3;
        lines.push(format!("  < {bound:>8.2} us  {:>6.2} %  {bar}", 100.0 * share));
        (low, high) = (high, high * 2);
    }
    lines.join("\n")
}

fn measure(args: &PacingArgs) -> Result<(Report, Histogram<u64>), String> {
    let tcp = Config { nagle: false, ..Config::default() };
    let (near, far) = pair(MemConfig::default()).map_err(|error| error.to_string())?;
    let clock = TscClock::new();
    let left: Rc<RefCell<Vec<(u16, Instant)>>> = Rc::default();
    let noting = Noting { link: far, clock: clock.clone(), left: Rc::clone(&left) };
    let mut client = shard(CLIENT, near, &tcp, &clock)?;
    let mut server = shard(*SERVER.ip(), noting, &tcp, &clock)?;
    let streams: Rc<RefCell<HashMap<u16, Rc<TcpStream>>>> = Rc::default();
    let task = serve(server.stack().clone(), args.rate, Rc::clone(&streams));
    server.stack().spawn(task).map_err(|error| error.to_string())?;
    let refused: Rc<Cell<bool>> = Rc::default();
    for kind in (0..args.streams).map(|_| b's').chain((0..args.busy).map(|_| b'e')) {
        let task = talk(client.stack().clone(), kind, Rc::clone(&refused));
        client.stack().spawn(task).map_err(|error| error.to_string())?;
    }

    let begin = clock.now();
    let counts_from = begin.plus_nanos(WARM_UP_NANOS);
    let end = counts_from + args.duration;
    let mut samples = Samples::new(counts_from)?;
    let mut moments: HashMap<u16, Instant> = HashMap::new();
    let (mut turns, mut counting, mut segments, mut sent) = (0u64, false, 0u64, 0u64);
    loop {
        client.turn();
        server.turn();
        turns += 1;
        let now = clock.now();
        for (port, at) in left.borrow_mut().drain(..) {
            sent += u64::from(counting);
            // The first of several that left at once has a moment; the others have none of their own.
            if let Some(moment) = moments.remove(&port)
                && moment != Instant::ZERO
                && counting
            {
                segments += 1;
                samples.pending.push(at.nanos_since(moment).max(moment.nanos_since(at)));
            }
            if let Some(stream) = streams.borrow().get(&port) {
                moments.insert(port, stream.pacing_at());
            }
        }
        if !counting && now >= counts_from {
            (counting, turns) = (true, 0);
            samples = Samples::new(now)?;
        }
        if counting {
            samples.look(now);
        }
        if refused.get() {
            return Err("a connection over memory was refused".to_owned());
        }
        if now >= end {
            break;
        }
    }
    samples.take_slice(0);
    let seconds = args.duration.as_secs_f64();
    let payload = streams.borrow().values().next().and_then(|stream| stream.info());
    let payload = payload.map_or(0, |info| u64::from(info.mss_bytes));
    let wanted = args.rate.bytes_per_s() as f64 * f64::from(args.streams) * seconds;
    let report = Report {
        what: format!(
            "{} streams of {} Mbit/s each, {} connections that ping and pong, one thread",
            args.streams,
            args.rate.bytes_per_s() as f64 * 8e-6,
            args.busy
        ),
        segments,
        error_us: Errors::of(&samples.good),
        disturbed_segments: samples.disturbed.len(),
        disturbed_error_us: Errors::of(&samples.disturbed),
        machine_gaps_us: samples.gaps_nanos / 1000,
        machine_gap_max_us: samples.gap_nanos_max / 1000,
        turns_per_second: (turns as f64 / seconds) as u64,
        rate_kept: (sent * payload) as f64 / wanted,
    };
    Ok((report, samples.good))
}

/// Takes connections: the first byte says whether it is a stream or to be echoed.
async fn serve(stack: Stack, rate: PacingRate, streams: Rc<RefCell<HashMap<u16, Rc<TcpStream>>>>) {
    let Ok(listener) = stack.listen(SERVER, 1024) else { return };
    loop {
        let (stream, peer) = listener.accept().await;
        let streams = Rc::clone(&streams);
        let task = async move {
            let mut byte = [0];
            if !matches!(stream.read(&mut byte).await, Ok(1)) {
                return;
            }
            let stream = Rc::new(stream);
            if byte == *b"s" {
                stream.set_pacing_rate(Some(rate));
                streams.borrow_mut().insert(peer.port(), Rc::clone(&stream));
                let slice = IoBuf::from(vec![0x5a; 64 * 1024]);
                while stream.send_buf(slice.clone()).await.is_ok() {}
                return;
            }
            while stream.write_all(&byte).await.is_ok()
                && matches!(stream.read(&mut byte).await, Ok(1))
            {}
        };
        if stack.spawn(task).is_err() {
            return;
        }
    }
}

async fn talk(stack: Stack, kind: u8, refused: Rc<Cell<bool>>) {
    let Ok(stream) = stack.connect(SERVER).await else { return refused.set(true) };
    if kind == b's' {
        let _ = stream.write_all(b"s").await;
        while let Ok(Some(_)) = stream.read_buf().await {}
        return;
    }
    let mut byte = [kind];
    while stream.write_all(&byte).await.is_ok() && matches!(stream.read(&mut byte).await, Ok(1)) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_did_counts_apart() {
        let mut samples = Samples::new(Instant::ZERO).unwrap();
        // A gap spoils the slice in which it is seen and the one behind it.
        for (errors, gap) in [(100, 0), (200, 0), (90_000, 80_000), (300, 0), (400, 0), (500, 0)] {
            samples.pending.push(errors);
            samples.take_slice(gap);
        }
        assert_eq!((samples.good.len() + samples.disturbed.len(), samples.gaps_nanos), (6, 80_000));
        assert!(samples.good.max() < 1000 && samples.disturbed.max() >= 90_000);
    }

    #[test]
    fn segments_are_measured_and_shown() {
        let args = PacingArgs {
            rate: PacingRate::new(12_500_000).unwrap(),
            streams: 2,
            busy: 1,
            duration: Duration::from_millis(200),
            plot: None,
            json: None,
        };
        let (report, errors) = measure(&args).unwrap();
        // No bound on how well: the test may be descheduled between any two segments.
        assert!(report.segments > 100, "{report:?}");
        // But the moments are of the same clock.
        assert!(report.error_us.p50 < 10_000.0, "{report:?}");
        assert!(report.segments >= errors.len() + report.disturbed_segments);
        let text = show(&report, &errors);
        assert!(text.contains("2 streams of 100 Mbit/s each, 1 connections"), "{text}");
        assert!(text.contains("% of what was asked for"), "{text}");
    }
}
