//! Tables 4 and 5: how well rate-based clocking keeps a target interval when the core is busy with
//! something else, and looks at its timers only in trigger states.

use std::cell::RefCell;
use std::rc::Rc;

use millstream::buf::IoBuf;
use millstream::core::Stack;
use millstream::tcp::{Clocking, Config, PacingRate};
use millstream::timer::Instant;
use millstream_sim::Direction;

use super::Progress;
use super::chart::{Chart, Series};
use super::table::{Column, Row, Table, Value};
use super::world::{PAYLOAD_BYTES, Path, SERVER, Setup, Turning, World, unbounded};
use crate::bench::BenchError;
use crate::error::AppError;

/// The tables that this makes.
pub const TABLES: &[u8] = &[4, 5];

/// Minimum burst intervals: from what a packet takes at 1 Gbit/s on.
const MIN_BURST_US: [u64; 6] = [12, 15, 20, 25, 30, 35];
/// Mean intervals between trigger states; 0: the loop polls.
const TRIGGER_MEANS_US: [u64; 4] = [0, 5, 10, 30];
/// Packets that are measured, and those before them in which windows open.
const PACKETS: usize = 20_000;
const WARM_UP: usize = 2_000;

/// Intervals between packets as they left.
#[derive(Clone, Copy, Debug)]
struct Kept {
    mean_us: f64,
    deviation_us: f64,
    least_us: f64,
}

fn measure(target_us: u64, min_burst_us: u64, trigger_mean_us: u64) -> Result<Kept, BenchError> {
    let failed = |why: String| {
        let what = format!("an interval of {target_us} us, at least {min_burst_us} us: {why}");
        BenchError::Stack(AppError::runtime(what))
    };
    let per_s = |interval_us: u64| PAYLOAD_BYTES * 1_000_000 / interval_us;
    let rate = PacingRate::new(per_s(target_us))
        .and_then(|rate| rate.with_burst(per_s(min_burst_us)))
        .map_err(|error| failed(error.to_string()))?;
    let server_tcp = Config { clocking: Clocking::Rate, ..unbounded(Config::default()) };
    let turning = match trigger_mean_us {
        0 => Turning::Always,
        mean => Turning::Triggered { mean_nanos: mean * 1000 },
    };
    let setup = Setup {
        path: Path { bits_per_s: 1_000_000_000, rtt_us: 200, queue_packets: 1000 },
        client: unbounded(Config::default()),
        server: server_tcp,
        turning,
        packets: 1 << 14,
    };
    let mut world = World::new(&setup)?;
    let departures: Rc<RefCell<Vec<Instant>>> = Rc::default();
    let seen = Rc::clone(&departures);
    world.wire.set_trace(move |now, direction, _, frame| {
        if direction == Direction::BToA && frame.len() as u64 > PAYLOAD_BYTES {
            seen.borrow_mut().push(now);
        }
    });
    let (server, client) = (world.server(), world.client());
    server.spawn(send(server.clone(), rate)).map_err(|error| failed(error.to_string()))?;
    client.spawn(receive(client.clone())).map_err(|error| failed(error.to_string()))?;
    let seconds = 2 + (PACKETS + WARM_UP) as u64 * target_us / 500_000;
    if !world.run(seconds, || departures.borrow().len() > PACKETS + WARM_UP) {
        return Err(failed(format!("only {} packets left", departures.borrow().len())));
    }
    let departures = departures.borrow();
    let gaps =
        departures[WARM_UP..].windows(2).map(|pair| pair[1].nanos_since(pair[0]) as f64 / 1e3);
    let gaps: Vec<_> = gaps.collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
    Ok(Kept {
        mean_us: mean,
        deviation_us: variance.sqrt(),
        least_us: gaps.iter().copied().fold(f64::INFINITY, f64::min),
    })
}

async fn send(stack: Stack, rate: PacingRate) {
    let Ok(listener) = stack.listen(SERVER, 1) else { return };
    let (stream, _) = listener.accept().await;
    stream.set_pacing_rate(Some(rate));
    let slice = IoBuf::from(vec![0x5a; 64 * 1024]);
    while stream.send_buf(slice.clone()).await.is_ok() {}
}

async fn receive(stack: Stack) {
    let Ok(stream) = stack.connect(SERVER).await else { return };
    while let Ok(Some(_)) = stream.read_buf().await {}
}

/// Makes table 4 or 5.
///
/// # Errors
/// [`BenchError`]
pub fn make(table: u8, progress: &Progress) -> Result<Table, BenchError> {
    let target_us = if table == 4 { 40 } else { 60 };
    progress.begin(MIN_BURST_US.len() * TRIGGER_MEANS_US.len());
    let mut rows = Vec::new();
    let mut lines = Vec::new();
    for trigger in TRIGGER_MEANS_US {
        let mut points = Vec::new();
        for min_burst in MIN_BURST_US {
            progress.step(&format!("triggers each {trigger} us, bursts of {min_burst} us"));
            let kept = measure(target_us, min_burst, trigger)?;
            points.push((min_burst as f64, kept.mean_us));
            rows.push(Row::ours(vec![
                Value::Count(trigger),
                Value::Count(min_burst),
                Value::Number(kept.mean_us, 2),
                Value::Number(100.0 * (kept.mean_us - target_us as f64) / target_us as f64, 2),
                Value::Number(kept.deviation_us, 1),
                Value::Number(kept.least_us, 1),
            ]));
        }
        let name = match trigger {
            0 => "polling".to_owned(),
            mean => format!("triggers each {mean} us"),
        };
        lines.push(Series { name, points });
    }
    Ok(Table {
        title: format!("Table {table}: rate-based clocking with a target interval of {target_us} us"),
        about: vec![
            "the whole stack in virtual time, packets of 1500 bytes over 1 Gbit/s".into(),
            "triggers   mean interval between looks at the timers (exponential, at most 1 ms); 0: the loop polls".into(),
            "burst      minimum burst interval, at which the train catches up".into(),
            "interval   mean, deviation and least of what 20,000 packets kept".into(),
        ],
        columns: vec![
            Column { name: "triggers", unit: "us" },
            Column { name: "burst", unit: "us" },
            Column { name: "interval", unit: "us" },
            Column { name: "error", unit: "%" },
            Column { name: "deviation", unit: "us" },
            Column { name: "least", unit: "us" },
        ],
        rows,
        published: vec!["no row of this table could be verified, so none is shown".into()],
        chart: Chart {
            subtitle: "mean interval of 20,000 packets, by how often timers are looked at".into(),
            x: "minimum burst interval (us)",
            y: "mean interval (us)",
            logarithmic: false,
            series: lines,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_kept_as_long_as_bursts_can_catch_up() {
        let polled = measure(40, 12, 0).unwrap();
        assert!((polled.mean_us - 40.0).abs() < 0.1 && polled.deviation_us < 1.0, "{polled:?}");
        let triggered = measure(40, 12, 10).unwrap();
        assert!((triggered.mean_us - 40.0).abs() < 0.4, "{triggered:?}");
        assert!(triggered.deviation_us > 5.0 && triggered.least_us >= 11.9, "{triggered:?}");
        // The nearer the burst interval comes to the target, the less it makes good.
        let slow = measure(40, 35, 30).unwrap();
        assert!(slow.mean_us > 44.0, "{slow:?}");
    }
}
