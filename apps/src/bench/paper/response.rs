//! Tables 6 and 7: how long a client waits for a response of so many packets over a path with a
//! long round trip, when the server's segments are clocked out by acknowledgements and when by a
//! rate that is known.

use std::cell::Cell;
use std::rc::Rc;

use millstream::buf::IoBuf;
use millstream::core::Stack;
use millstream::tcp::{Algorithm, Clocking, Config, PacingRate};
use millstream::timer::Instant;
use millstream_sim::Direction;

use super::Progress;
use super::chart::{Chart, Series};
use super::table::{Column, Row, Table, Value};
use super::world::{PAYLOAD_BYTES, Path, SERVER, Setup, Turning, World, unbounded};
use crate::bench::BenchError;
use crate::error::AppError;

/// The tables that this makes.
pub const TABLES: &[u8] = &[6, 7];

/// Round-trip time of the paths.
const RTT_US: u64 = 100_000;
/// Packets that a queue holds where a rate is kept: more would hide that it is not.
const QUEUE_PACKETS: usize = 5;
/// Packets of the responses.
const PACKETS: [u64; 5] = [5, 100, 1_000, 10_000, 100_000];
/// Virtual seconds after which a response is given up.
const SECONDS_MAX: u64 = 600;

/// What clocks the server's segments out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    /// The rate of the path, which is known.
    Rate,
    /// Acknowledgements, as in the paper's time: an initial window of one segment, slow start by
    /// one segment an acknowledgement (RFC 5681 section 3.1), acknowledgements delayed by 200 ms from the first one
    /// on.
    Acks1999,
    /// Acknowledgements, as today: this stack's defaults with an initial window of ten segments.
    Acks,
}

/// One response.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    millis: f64,
    /// Packets that found the queue full.
    overflow: u64,
    /// Segments that were sent again.
    sent_again: u64,
}

fn tcp(sender: Sender) -> (Config, Config) {
    let base = unbounded(Config::default());
    match sender {
        Sender::Rate => (base.clone(), Config { clocking: Clocking::Rate, ..base }),
        Sender::Acks => (base.clone(), Config { clocking: Clocking::Ack, ..base }),
        Sender::Acks1999 => {
            let client = Config { quick_acks: 0, delayed_ack_us: 200_000, ..base.clone() };
            let server = Config {
                clocking: Clocking::Ack,
                congestion: Algorithm::NewReno,
                initial_window_segments: 1,
                slow_start_segments: 1,
                ..base
            };
            (client, server)
        }
    }
}

/// Milliseconds from the request to the last byte of the response, over a connection that is open.
fn respond(bits_per_s: u64, packets: u64, sender: Sender) -> Result<Outcome, BenchError> {
    // What starts slowly is given every chance: nothing is lost.
    let queue_packets = if sender == Sender::Rate { QUEUE_PACKETS } else { usize::MAX };
    let path = Path { bits_per_s, rtt_us: RTT_US, queue_packets };
    let (client_tcp, server_tcp) = tcp(sender);
    let setup = Setup {
        path,
        client: client_tcp,
        server: server_tcp,
        turning: Turning::Always,
        packets: packets as usize,
    };
    let mut world = World::new(&setup)?;
    let rate = (sender == Sender::Rate).then(|| PacingRate::new(path.payload_per_s()));
    let rate = rate.transpose().map_err(|error| BenchError::Stack(AppError::usage(error)))?;
    let server = world.server();
    let failed = |why: &str| {
        let what = format!("a response of {packets} packets at {bits_per_s} bit/s {why}");
        BenchError::Stack(AppError::runtime(what))
    };
    let task = serve(server.clone(), packets * PAYLOAD_BYTES, rate);
    server.spawn(task).map_err(|_| failed("found no task"))?;
    let client = world.client();
    let took: Rc<Cell<Option<u64>>> = Rc::default();
    let task = ask(client.clone(), packets * PAYLOAD_BYTES, Rc::clone(&took));
    client.spawn(task).map_err(|_| failed("found no task"))?;
    if !world.run(SECONDS_MAX, || took.get().is_some()) {
        return Err(failed("did not come in time"));
    }
    let queue = world.wire.stats(Direction::BToA);
    Ok(Outcome {
        millis: took.get().unwrap_or(0) as f64 / 1e6,
        overflow: queue.dropped(),
        sent_again: server.tcp_stats().retransmits,
    })
}

/// Answers one request with so many bytes.
async fn serve(stack: Stack, bytes: u64, rate: Option<PacingRate>) {
    const SLICE_BYTES: u64 = 64 * 1024;
    let Ok(listener) = stack.listen(SERVER, 1) else { return };
    let (stream, _) = listener.accept().await;
    let mut request = [0];
    if stream.read(&mut request).await.is_err() {
        return;
    }
    stream.set_pacing_rate(rate);
    let slice = IoBuf::from(vec![0x5a; SLICE_BYTES as usize]);
    let mut left = bytes;
    while left > 0 {
        let count = left.min(SLICE_BYTES);
        if stream.send_buf(slice.slice(0..count as usize)).await.is_err() {
            return;
        }
        left -= count;
    }
    // The connection stays open: its end is none of the response.
    let _ = stream.read(&mut request).await;
}

async fn ask(stack: Stack, bytes: u64, took: Rc<Cell<Option<u64>>>) {
    let Ok(stream) = stack.connect(SERVER).await else { return };
    // What a handshake leaves behind is over.
    stack.sleep(std::time::Duration::from_millis(500)).await;
    let start: Instant = stack.now();
    if stream.write_all(b"?").await.is_err() {
        return;
    }
    let mut left = bytes;
    while left > 0 {
        match stream.read_buf().await {
            Ok(Some(data)) => left = left.saturating_sub(data.len() as u64),
            _ => return,
        }
    }
    took.set(Some(stack.now().nanos_since(start)));
}

/// Names of the columns that figures read.
const COLUMNS: [Column; 10] = [
    Column { name: "link", unit: "Mbit/s" },
    Column { name: "packets", unit: "" },
    Column { name: "ideal", unit: "ms" },
    Column { name: "rate", unit: "ms" },
    Column { name: "error", unit: "%" },
    Column { name: "acks IW1", unit: "ms" },
    Column { name: "cut IW1", unit: "%" },
    Column { name: "acks IW10", unit: "ms" },
    Column { name: "cut IW10", unit: "%" },
    Column { name: "overflow", unit: "packets" },
];

/// Makes table 6 or 7.
///
/// # Errors
/// [`BenchError`]
pub fn make(table: u8, progress: &Progress) -> Result<Table, BenchError> {
    // Table 7 goes on where the paper ends.
    let links: &[u64] = if table == 6 { &[50] } else { &[100, 1_000, 10_000] };
    progress.begin(links.len() * PACKETS.len() * 3);
    let mut rows = Vec::new();
    let mut lines = Vec::new();
    for link in links {
        let [mut by_rate, mut by_acks, mut by_acks_1999] = [const { Vec::new() }; 3];
        for packets in PACKETS {
            let run = |sender, name| {
                progress.step(&format!("{link} Mbit/s, {packets} packets, by {name}"));
                respond(link * 1_000_000, packets, sender)
            };
            let rate = run(Sender::Rate, "rate")?;
            let old = run(Sender::Acks1999, "acknowledgements, one segment at first")?;
            let new = run(Sender::Acks, "acknowledgements, ten segments at first")?;
            let path = Path { bits_per_s: link * 1_000_000, rtt_us: RTT_US, queue_packets: 0 };
            let ideal = RTT_US as f64 / 1e3 + packets as f64 * path.packet_nanos() / 1e6;
            let cut = |than: f64| Value::Number(100.0 * (than - rate.millis) / than, 1);
            let x = packets as f64;
            by_rate.push((x, rate.millis));
            by_acks.push((x, new.millis));
            by_acks_1999.push((x, old.millis));
            rows.push(Row::ours(vec![
                Value::Count(*link),
                Value::Count(packets),
                Value::Number(ideal, 1),
                Value::Number(rate.millis, 1),
                Value::Number(100.0 * (rate.millis - ideal) / ideal, 2),
                Value::Number(old.millis, 1),
                cut(old.millis),
                Value::Number(new.millis, 1),
                cut(new.millis),
                Value::Count(rate.overflow + rate.sent_again),
            ]));
        }
        let name = |by: &str| match links.len() {
            1 => by.to_owned(),
            _ => format!("{link} Mbit/s {by}"),
        };
        lines.push(Series { name: name("acks, IW 1"), points: by_acks_1999 });
        lines.push(Series { name: name("acks, IW 10"), points: by_acks });
        lines.push(Series { name: name("rate"), points: by_rate });
    }
    let title = match table {
        6 => "Table 6: response time at 50 Mbit/s, round trip 100 ms",
        _ => "Table 7: response time at 100 Mbit/s and above, round trip 100 ms",
    };
    Ok(Table {
        title: title.into(),
        about: vec![
            "the whole stack in virtual time, packets of 1500 bytes; from the request to the last byte".into(),
            "ideal      a round trip, and the packets at the link's rate".into(),
            "rate       clocked out at the link's rate, which is known, into a queue of 5 packets".into(),
            "acks IW1   as in the paper's time: one segment at first, ACKs delayed by up to 200 ms; no queue overflows".into(),
            "acks IW10  as today: CUBIC, ten segments at first; no queue overflows".into(),
            "overflow   packets lost or sent again when clocked by rate".into(),
        ],
        columns: COLUMNS.to_vec(),
        rows,
        published: vec![
            "rate-based clocking cuts response times by up to 89 % (abstract)".into(),
            "no single row of this table could be verified, so none is shown".into(),
        ],
        chart: Chart {
            subtitle: "by acknowledgements with 1 and 10 segments at first, and by a known rate".into(),
            x: "packets of the response",
            y: "response time (ms)",
            logarithmic: true,
            series: lines,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smaller cells, as the whole table is for `make bench`.
    #[test]
    fn a_known_rate_is_as_fast_as_the_path_and_fills_no_queue() {
        for (link, packets) in [(50, 5), (50, 100), (100, 1_000), (1_000, 1_000), (10_000, 1_000)] {
            let outcome = respond(link * 1_000_000, packets, Sender::Rate).unwrap();
            let path = Path { bits_per_s: link * 1_000_000, rtt_us: RTT_US, queue_packets: 0 };
            let ideal = 100.0 + packets as f64 * path.packet_nanos() / 1e6;
            let error = (outcome.millis - ideal) / ideal;
            assert!((0.0..0.02).contains(&error), "{link} {packets}: {outcome:?}, not {ideal}");
            assert_eq!((outcome.overflow, outcome.sent_again), (0, 0), "{link} {packets}");
        }
    }

    /// The baselines are what they claim: a model of slow start says 501, 1208 and 409 ms.
    #[test]
    fn acknowledgements_are_as_slow_as_the_model_says() {
        for (packets, sender, model) in [
            (5, Sender::Acks1999, 501.0),
            (100, Sender::Acks1999, 1208.0),
            (100, Sender::Acks, 409.0),
        ] {
            let outcome = respond(50_000_000, packets, sender).unwrap();
            let error = (outcome.millis - model).abs() / model;
            assert!(error < 0.06, "{packets} {sender:?}: {outcome:?}, not {model}");
        }
    }
}
