//! Streams arrive whole, whatever the pipe does.

mod common;

use common::{Faults, Pair, Rng, stream};
use millstream_tcp::{Config, State};

fn small_timeouts() -> Config {
    Config { data_retries: 200, syn_retries: 100, ..Config::default() }
}

#[test]
fn clean_pipe_both_ways() {
    let mut pair = Pair::connected(Config::default(), Config::default());
    let (there, back) = (stream(3_000_000, 1), stream(1_000_000, 2));
    pair.transfer([&there, &back], 60_000_000);
    for end in &pair.ends {
        assert_eq!(end.stats.retransmits, 0);
        assert_eq!(end.stats.rto_fired, 0);
        assert!(end.cwnd_excess <= 0, "flight exceeds cwnd by {}", end.cwnd_excess);
        assert!(end.shrunk_by <= 0, "a window went back by {}", end.shrunk_by);
    }
    assert!(pair.ends[1].stats.fast_path > 1_000);
    pair.release();
}

#[test]
fn lossy_reordering_duplicating_pipes() {
    for seed in 0..60 {
        let mut rng = Rng::new(seed + 1);
        let config = || Config {
            timestamps: seed % 3 != 0,
            sack: seed % 4 != 0,
            window_scaling: seed % 5 != 0,
            nagle: seed % 2 == 0,
            recv_buffer_bytes: [2_000, 16_000, 65_535, 300_000][(seed % 4) as usize],
            ..small_timeouts()
        };
        let mut pair = Pair::new(config(), config());
        pair.rng = Rng::new(seed + 100);
        pair.faults = Faults {
            delay_us: 1 + rng.below(30_000),
            jitter_us: rng.below(10_000),
            loss_per_mille: rng.below(150),
            duplicate_per_mille: rng.below(100),
        };
        // So that numbers wrap in the middle.
        pair.ends[0].isn = millstream_wire::tcp::SeqNumber(u32::MAX - 30_000);
        pair.ends[1].isn = millstream_wire::tcp::SeqNumber((1u32 << 31) - 20_000);
        pair.ends[0].connect(pair.now);
        let until = pair.now.plus_micros(4_000_000_000);
        while pair.ends[0].state() != State::Established
            || pair.ends[1].state() != State::Established
        {
            assert!(pair.step(until), "seed {seed}: no connection");
        }
        let (there, back) = (stream(120_000, seed), stream(60_000, seed + 1));
        pair.transfer([&there, &back], 4_000_000_000_000);
        for end in &pair.ends {
            assert!(
                end.cwnd_excess <= 0,
                "seed {seed}: flight exceeds cwnd by {}",
                end.cwnd_excess
            );
            if pair.faults.jitter_us == 0 {
                assert!(end.shrunk_by <= 0, "seed {seed}: window went back by {}", end.shrunk_by);
            }
        }
        pair.ends[0].close(pair.now);
        pair.ends[1].close(pair.now);
        let until = pair.now.plus_micros(40_000_000_000);
        while pair.step(until) {}
        for end in &pair.ends {
            assert_eq!(end.state(), State::Closed, "seed {seed}");
            // TIME-WAIT may be over at one end before the other has had its FIN acknowledged.
            assert_eq!(
                end.tcb.as_ref().unwrap().acked_total(),
                if end.isn.0 > 1 << 31 { 120_000 } else { 60_000 }
            );
        }
        pair.release();
    }
}

#[test]
fn tiny_windows_and_tiny_segments() {
    for buffer in [1, 10, 100, 600, 3_000] {
        let config = Config { recv_buffer_bytes: buffer, ..small_timeouts() };
        let mut pair = Pair::connected(config.clone(), config);
        let there = stream(2_000.min(buffer as usize * 40), 3);
        pair.transfer([&there, &[]], 4_000_000_000);
        assert!(pair.ends[1].shrunk_by <= 0);
        pair.release();
    }
}

#[test]
fn huge_window_with_the_largest_scale() {
    let config = Config {
        recv_buffer_bytes: 1 << 30,
        send_buffer_bytes: 8 << 20,
        recv_slices_max: u16::MAX,
        ..Config::default()
    };
    let mut pair = Pair::connected(config.clone(), config);
    assert_eq!(pair.ends[0].info().rcv_scale, 14);
    let there = stream(6_000_000, 3);
    pair.transfer([&there, &[]], 60_000_000);
    assert_eq!(pair.ends[0].stats.rto_fired, 0);
    pair.release();
}

#[test]
fn small_mss_and_many_slices() {
    let mut pair = Pair::new(small_timeouts(), small_timeouts());
    pair.ends[0].mss_limit = 20;
    pair.faults.loss_per_mille = 20;
    pair.ends[0].connect(pair.now);
    pair.run_for(3_000_000);
    let bytes = stream(20_000, 9);
    let mut at = 0;
    let until = pair.now.plus_micros(4_000_000_000);
    while pair.ends[1].read.len() < bytes.len() {
        // One slice of up to 7 bytes at a time: more of them in a segment than it can hold.
        while at < bytes.len() && pair.ends[0].slab.used() < 1_000 {
            let len = (1 + at % 7).min(bytes.len() - at);
            at += pair.ends[0].send(pair.now, &bytes[at..at + len]);
        }
        assert!(pair.step(until));
    }
    assert!(pair.ends[1].read == bytes);
    assert_eq!(pair.ends[0].info().mss_bytes, 88 - 12);
    pair.release();
}
