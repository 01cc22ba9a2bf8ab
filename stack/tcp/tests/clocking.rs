//! Rate-based clocking, and buffers that grow.

mod common;

use common::{Pair, stream};
use millstream_tcp::{Clocking, Config, State};
use millstream_timer::Instant;

fn clocked(clocking: Clocking) -> Config {
    Config { clocking, ..Config::default() }
}

/// What is sent in any millisecond is no more than the rate allows, and a burst.
#[test]
fn segments_leave_at_the_rate() {
    let mut pair = Pair::connected(clocked(Clocking::Rate), Config::default());
    pair.faults.delay_us = 25_000;
    pair.transfer([&stream(400_000, 1), &[]], 60_000_000);
    let start = pair.log.len();
    pair.transfer([&stream(400_000, 2), &[]], 60_000_000);
    let info = pair.ends[0].info();
    assert!(info.pacing_rate > 0);
    let sent: Vec<(u64, usize)> = pair.log[start..]
        .iter()
        .filter(|entry| entry.1 == 0 && !entry.2.payload.is_empty())
        .map(|entry| (entry.0.as_micros(), entry.2.payload.len()))
        .collect();
    // The window leaves in as many portions as there are milliseconds in most of a round trip.
    let moments = sent.iter().map(|(at, _)| at / 1000).collect::<std::collections::BTreeSet<_>>();
    let least = 400_000 * 1000 / info.pacing_rate / 2;
    assert!(moments.len() as u64 >= least, "{} of {least}", moments.len());
    // No millisecond sees more than two bursts' worth.
    let burst = (info.pacing_rate / 1000).max(2 * u64::from(info.mss_bytes)) as usize;
    for first in 0..sent.len() {
        let bytes: usize =
            sent[first..].iter().take_while(|(at, _)| at - sent[first].0 < 1000).map(|s| s.1).sum();
        assert!(bytes <= 2 * burst + 2 * usize::from(info.mss_bytes), "{bytes} of {burst}");
    }
    assert_eq!(pair.ends[0].stats.retransmits, 0);
    pair.release();
}

#[test]
fn without_pacing_a_window_leaves_at_once() {
    for (clocking, at_once) in [(Clocking::Ack, 10), (Clocking::Auto, 10), (Clocking::Rate, 1)] {
        let mut pair = Pair::connected(clocked(clocking), Config::default());
        let start = pair.log.len();
        let now = pair.now;
        pair.ends[0].send(now, &stream(100_000, 1));
        pair.pump();
        let sent = pair.sent(0, start).len();
        assert!(sent == at_once, "{clocking:?}: {sent}");
        let tcb = pair.ends[0].tcb.as_ref().unwrap();
        let at = tcb.pacing_at();
        assert_eq!(at > now, clocking == Clocking::Rate);
        assert!(at == Instant::ZERO || tcb.deadline() <= at);
        pair.run_for(2_000_000);
        assert_eq!(pair.ends[1].read.len(), 100_000);
        pair.release();
    }
}

/// Losses, repairs and time-outs go by the same clock.
#[test]
fn paced_streams_survive_losses() {
    for seed in 0..10 {
        let mut pair = Pair::new(clocked(Clocking::Rate), clocked(Clocking::Rate));
        pair.rng = common::Rng::new(seed);
        pair.faults.loss_per_mille = 40;
        pair.ends[0].connect(pair.now);
        pair.run_for(10_000_000);
        assert_eq!(pair.ends[0].state(), State::Established);
        pair.transfer([&stream(300_000, 1), &stream(100_000, 2)], 4_000_000_000);
        pair.run_for(1_000_000);
        pair.release();
    }
}

/// A reader that keeps up gets a buffer that holds what a long path carries; one that does not gets
/// none.
#[test]
fn the_receive_buffer_grows_with_what_is_read() {
    let sender =
        Config { send_buffer_bytes: 1 << 20, send_buffer_max_bytes: 8 << 20, ..Config::default() };
    let receiver = Config {
        recv_buffer_bytes: 64 * 1024,
        recv_buffer_max_bytes: 2 << 20,
        ..Config::default()
    };
    let mut pair = Pair::new(sender.clone(), receiver.clone());
    pair.faults.delay_us = 50_000;
    pair.connect();
    assert_eq!(pair.ends[1].info().recv_buffer_bytes, 64 * 1024);
    assert_eq!(pair.ends[1].info().rcv_scale, 6, "of the largest buffer");
    let start = pair.now;
    pair.transfer([&stream(20_000_000, 1), &[]], 600_000_000);
    let grown = pair.ends[1].info().recv_buffer_bytes;
    assert!(grown > 1 << 20, "{grown}");
    // With 64 KiB in each 100 ms it would take 31 s.
    assert!(pair.now.micros_since(start) < 8_000_000, "{}", pair.now.micros_since(start));
    assert!(pair.ends[1].shrunk_by <= 0);
    pair.release();

    let mut pair = Pair::connected(sender, receiver);
    pair.ends[1].reads = false;
    let now = pair.now;
    pair.ends[0].send(now, &stream(500_000, 1));
    pair.run_for(1_000_000);
    assert_eq!(pair.ends[1].info().recv_buffer_bytes, 64 * 1024);
    pair.release();
}

#[test]
fn the_send_buffer_grows_with_the_window() {
    let config = Config { send_buffer_max_bytes: 1 << 20, ..Config::default() };
    let mut pair = Pair::connected(config.clone(), config.clone());
    let room = |pair: &Pair| pair.ends[0].tcb.as_ref().unwrap().send_room(&config);
    assert_eq!(room(&pair), 256 * 1024);
    pair.transfer([&stream(6_000_000, 1), &[]], 60_000_000);
    pair.run_for(100_000);
    let cwnd = pair.ends[0].info().cwnd_bytes as usize;
    assert!(cwnd > 200_000, "{cwnd}");
    assert_eq!(room(&pair), (2 * cwnd).clamp(256 * 1024, 1 << 20));
    pair.release();
}
