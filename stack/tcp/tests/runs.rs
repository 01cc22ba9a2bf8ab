//! Runs: what is sent at once is what would be sent segment by segment.

mod common;

use common::{Faults, Pair, Rng, stream};
use millstream_buf::IoBuf;
use millstream_tcp::{Algorithm, Clocking, Config, SliceSlab, State};
use millstream_wire::tcp::Flags;

/// Sends two megabytes in slices of a size over a good path; returns how many segments that took, how
/// many of them were short, and how many had PSH.
fn segments(segments_max: u16, slice: usize) -> (usize, usize, usize) {
    let mut pair = Pair::connected(Config::default(), Config::default());
    pair.faults = Faults { delay_us: 100, ..Faults::default() };
    pair.ends[0].segments_max = segments_max;
    let mut total = 0;
    while total < 2_000_000 {
        loop {
            let (now, end) = (pair.now, &mut pair.ends[0]);
            if end.tcb.as_ref().unwrap().send_room(&end.config) < slice
                || end.with(now, |tcb, env| tcb.send(env, IoBuf::from(vec![7; slice]))).is_err()
            {
                break;
            }
            total += slice;
        }
        pair.run_for(1_000);
    }
    pair.run_for(1_000_000);
    assert_eq!(pair.ends[1].read.len(), total);
    let sent = || {
        let ours =
            pair.log.iter().filter(|(_, from, frame)| *from == 0 && !frame.payload.is_empty());
        ours.map(|(_, _, frame)| frame)
    };
    let full = sent().map(|frame| frame.payload.len()).max().unwrap();
    let short = sent().filter(|frame| frame.payload.len() < full).count();
    let pushed = sent().filter(|frame| frame.parse().flags.contains(Flags::PSH)).count();
    let counts = (sent().count(), short, pushed);
    pair.ends.iter_mut().for_each(|end| end.release());
    counts
}

/// However the data lie in slices: no segment is cut short in the midst of a stream (RFC 9293 section
/// 3.8.6.2.1), and PSH stands where it would.
#[test]
fn slices_of_any_size_give_the_same_segments() {
    for slice in [182, 300, 2048, 4096, 7_777, 65_000] {
        let (count, short, pushed) = segments(1, slice);
        let (run_count, run_short, run_pushed) = segments(44, slice);
        assert!(run_count <= count + count / 100, "slices of {slice}: {run_count}, {count}");
        assert!(run_short <= short + 8, "slices of {slice}: {run_short}, {short} short ones");
        assert!(
            run_pushed <= pushed + pushed / 20,
            "slices of {slice}: {run_pushed}, {pushed} PSH"
        );
    }
}

/// Sends over a bad path; returns the microseconds, the retransmissions and the time-outs.
fn transfer(seed: u64, runs: bool) -> [u64; 3] {
    let mut rng = Rng::new(seed + 7);
    let config = Config {
        sack: !seed.is_multiple_of(3),
        rack: seed.is_multiple_of(2),
        timestamps: !seed.is_multiple_of(5),
        congestion: Algorithm::ALL[(seed % 4) as usize],
        nagle: !seed.is_multiple_of(7),
        clocking: Clocking::Ack,
        recv_buffer_bytes: [64_000, 500_000, 2_000_000][(seed % 3) as usize],
        send_buffer_bytes: 1 << 20,
        ..Config::default()
    };
    let mut pair = Pair::new(config.clone(), config);
    if seed.is_multiple_of(11) {
        pair.ends[0].slab = SliceSlab::with_capacity(24);
    }
    pair.rng = Rng::new(seed + 100);
    pair.connect();
    pair.faults = Faults {
        delay_us: 1 + rng.below(20_000),
        jitter_us: if seed % 4 == 1 { rng.below(3_000) } else { 0 },
        loss_per_mille: [0, 5, 20, 60][(seed / 4 % 4) as usize],
        duplicate_per_mille: if seed % 6 == 1 { 20 } else { 0 },
    };
    let bytes = stream(400_000, seed);
    let (start, until) = (pair.now, pair.now.plus_micros(4_000_000_000));
    let (mut at, mut limited) = (0, false);
    while pair.ends[1].read.len() < bytes.len() {
        pair.ends[0].segments_max = if runs { 1 + rng.below(64) as u16 } else { 1 };
        while at < bytes.len() {
            let most = if seed % 2 == 1 { 1 + rng.below(6_000) as usize } else { 20_000 };
            let now = pair.now;
            let sent = pair.ends[0].send(now, &bytes[at..bytes.len().min(at + most)]);
            if sent == 0 {
                break;
            }
            at += sent;
        }
        if seed % 5 == 3 && !limited && pair.ends[1].read.len() > 150_000 {
            // The path turns out to take less.
            limited = true;
            let (now, mss) = (pair.now, 700 + (seed % 500) as u16);
            pair.ends[0].with(now, |tcb, env| tcb.limit_segments(env, mss));
        }
        assert!(pair.step(until), "seed {seed} stalls at {}", pair.ends[1].read.len());
    }
    assert!(pair.ends[1].read == bytes, "seed {seed}");
    let took = pair.now.as_micros() - start.as_micros();
    let counts = [took, pair.ends[0].stats.retransmits, pair.ends[0].stats.rto_fired];
    for at in 0..2 {
        let now = pair.now;
        pair.ends[at].close(now);
    }
    let until = pair.now.plus_micros(40_000_000_000);
    while pair.step(until) {}
    for end in &mut pair.ends {
        assert_eq!(end.state(), State::Closed, "seed {seed}");
        end.release();
    }
    counts
}

/// Records of runs are coarser than those of segments; what is lost is found and repaired as well.
#[test]
fn losses_in_runs_are_repaired_as_well_as_losses_of_segments() {
    let (mut alone, mut runs) = ([0; 3], [0; 3]);
    for seed in 0..200 {
        let add = |sums: &mut [u64; 3], counts: [u64; 3]| {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        };
        add(&mut alone, transfer(seed, false));
        add(&mut runs, transfer(seed, true));
    }
    for (what, (alone, runs)) in
        ["microseconds", "retransmissions", "time-outs"].iter().zip(alone.iter().zip(runs))
    {
        assert!(runs <= alone + alone / 10, "{what}: {alone} by segments, {runs} in runs");
    }
}
