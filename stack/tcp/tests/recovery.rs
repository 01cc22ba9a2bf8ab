//! Losses, and what looks like them: found, repaired, and taken back.

mod common;

use common::{Faults, Frame, Pair, Rng, stream};
use millstream_tcp::{Algorithm, Config, CongestionState, SliceSlab, State};
use millstream_wire::tcp::{Flags, SackBlocks, SeqNumber};

fn with_rack(rack: bool) -> Config {
    Config { rack, data_retries: 200, syn_retries: 100, ..Config::default() }
}

fn without_sack() -> Config {
    Config { sack: false, ..with_rack(true) }
}

/// Drops the data segments of end 0 whose places (counted from 0) are in `places`.
fn drop_data(pair: &mut Pair, places: &'static [usize]) {
    let mut at = 0;
    pair.filter = Some(Box::new(move |from, frame| {
        if from == 1 || frame.payload.is_empty() {
            return true;
        }
        at += 1;
        !places.contains(&(at - 1))
    }));
}

/// An ACK with blocks, relative to the first byte of end 0.
fn sack_of(pair: &Pair, ack: u32, blocks: &[(u32, u32)]) -> Frame {
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    let mut sack = SackBlocks::EMPTY;
    for (start, end) in blocks {
        sack.push(ours + *start, ours + *end);
    }
    let options = millstream_wire::tcp::Options::established(None, &sack);
    Frame::make(theirs, ours + ack, Flags::ACK, 60_000, options.as_slice(), &[])
}

/// A pair without timestamps and scaling, with segments of 1000 bytes, whose pipe swallows all.
fn scripted(config: Config) -> Pair {
    let config = Config { timestamps: false, window_scaling: false, ..config };
    let mut pair = Pair::new(config.clone(), config);
    pair.ends.iter_mut().for_each(|end| end.mss_limit = 1000);
    pair.connect();
    pair.filter = Some(Box::new(|_, _| false));
    pair
}

/// Numbers and lengths of what end 0 sends now.
fn sends(pair: &mut Pair) -> Vec<(u32, usize)> {
    let ours = pair.ends[0].isn + 1;
    let now = pair.now;
    let mut sent = Vec::new();
    while let Some(frame) = pair.ends[0].transmit(now) {
        sent.push((frame.parse().seq.bytes_since(ours), frame.payload.len()));
    }
    sent
}

fn give(pair: &mut Pair, ack: u32, blocks: &[(u32, u32)]) -> Vec<(u32, usize)> {
    pair.now = pair.now.plus_micros(1_000);
    let (now, frame) = (pair.now, sack_of(pair, ack, blocks));
    pair.ends[0].input(now, &frame);
    sends(pair)
}

/// Flow completion time of `len` bytes in microseconds, with the data segments `lost` dropped.
fn completion_us(config: Config, len: usize, lost: &'static [usize], delay_us: u64) -> u64 {
    let mut pair = Pair::new(config.clone(), config);
    pair.faults.delay_us = delay_us;
    pair.connect();
    drop_data(&mut pair, lost);
    let start = pair.now;
    pair.transfer([&stream(len, 1), &[]], 60_000_000);
    let took = pair.now.micros_since(start);
    pair.release();
    took
}

/// `tcp.tail_loss.fct_ratio`: flows of 10 KB of which the last segment is lost, over round trips
/// between 2 and 40 ms.
#[test]
fn a_lost_tail_costs_half_with_probes() {
    let (mut product, mut count) = (1.0, 0);
    for delay_us in [1_000, 5_000, 10_000, 20_000] {
        // Seven segments, the last one short.
        let with = completion_us(with_rack(true), 10_000, &[6], delay_us);
        let without = completion_us(with_rack(false), 10_000, &[6], delay_us);
        let ratio = with as f64 / without as f64;
        println!(
            "tail loss, RTT {} ms: {with} us against {without} us, {ratio:.2}",
            delay_us / 500
        );
        product *= ratio;
        count += 1;
    }
    let mean = f64::powf(product, 1.0 / f64::from(count));
    println!("tcp.tail_loss.fct_ratio {mean:.3}");
    assert!(mean <= 0.5, "{mean}");
}

#[test]
fn a_lost_tail_is_repaired_without_a_time_out() {
    for lost in [&[9][..], &[8, 9], &[7, 8, 9]] {
        let mut pair = Pair::connected(with_rack(true), with_rack(true));
        let places: &'static [usize] = match lost.len() {
            1 => &[9],
            2 => &[8, 9],
            _ => &[7, 8, 9],
        };
        drop_data(&mut pair, places);
        pair.transfer([&stream(14_480, 1), &[]], 10_000_000);
        let stats = pair.ends[0].stats;
        assert_eq!(stats.rto_fired, 0, "{lost:?}");
        assert_eq!(stats.loss_probes, 1, "{lost:?}");
        assert_eq!(stats.retransmits as usize, lost.len());
        pair.release();
    }
}

/// RFC 8985 section 7.4: a probe that repaired a loss costs a reduction, a needless one nothing.
#[test]
fn a_probe_that_repaired_a_loss_reduces_the_window_once() {
    for needless in [false, true] {
        let mut pair = scripted(with_rack(true));
        pair.ends[0].send(pair.now, &stream(3_000, 1));
        assert_eq!(sends(&mut pair).len(), 3);
        let cwnd = pair.ends[0].info().cwnd_bytes;
        give(&mut pair, 2_000, &[]);
        pair.now = pair.ends[0].tcb.as_ref().unwrap().deadline();
        pair.ends[0].timer(pair.now);
        assert_eq!(sends(&mut pair), [(2_000, 1_000)]);
        give(&mut pair, 3_000, &[]);
        if needless {
            give(&mut pair, 3_000, &[(2_000, 3_000)]);
            assert_eq!(pair.ends[0].stats.loss_probes_needless, 1);
        }
        pair.ends[0].send(pair.now, &stream(2_000, 1));
        assert_eq!(sends(&mut pair).len(), 2);
        give(&mut pair, 5_000, &[]);
        let info = pair.ends[0].info();
        assert_eq!(info.ca_state, CongestionState::Open);
        assert_eq!(info.cwnd_bytes < cwnd, !needless, "{info:?}");
        assert_eq!(pair.ends[0].slab.flights_used(), 0);
        pair.release();
    }
}

/// RFC 5681 section 3.2 with RFC 3042: the first two SACKs let new data out, the third the lost
/// segment.
#[test]
fn limited_transmit_and_fast_retransmit() {
    for rack in [true, false] {
        let mut pair = scripted(with_rack(rack));
        pair.ends[0].send(pair.now, &stream(20_000, 1));
        assert_eq!(sends(&mut pair).len(), 10);
        assert_eq!(give(&mut pair, 0, &[(1_000, 2_000)]), [(10_000, 1_000)]);
        let info = pair.ends[0].tcb.as_ref().unwrap().info_in(&pair.ends[0].slab);
        assert_eq!((info.ca_state, info.sacked, info.lost), (CongestionState::Disorder, 1, 0));
        assert_eq!(give(&mut pair, 0, &[(1_000, 3_000)]), [(11_000, 1_000)]);
        assert_eq!(give(&mut pair, 0, &[(1_000, 4_000)]), [(0, 1_000)]);
        let info = pair.ends[0].tcb.as_ref().unwrap().info_in(&pair.ends[0].slab);
        assert_eq!((info.ca_state, info.sacked, info.lost), (CongestionState::Recovery, 3, 1));
        assert_eq!((info.retrans, info.unacked), (1, 12));
        assert!(info.cwnd_bytes >= info.flight_bytes);
        // All is there: the state is left, and the window is the threshold.
        give(&mut pair, 12_000, &[]);
        let info = pair.ends[0].info();
        assert_eq!(info.ca_state, CongestionState::Open);
        let grown = info.cwnd_bytes - info.ssthresh_bytes;
        assert!(grown <= 1_000, "{info:?}");
        pair.release();
    }
}

/// RFC 5682: the ACKs of a flight are late, not lost. The time-out is taken back.
#[test]
fn a_time_out_without_a_loss_is_taken_back() {
    for config in [with_rack(true), with_rack(false), without_sack()] {
        // With timestamps the first ACK tells (RFC 3522); without, new data does (RFC 5682).
        for timestamps in [true, false] {
            let config = Config { timestamps, ..config.clone() };
            let mut pair = Pair::connected(config.clone(), config.clone());
            // The delay jumps: what is out takes a second longer.
            pair.transfer([&stream(30_000, 1), &[]], 10_000_000);
            pair.run_for(100_000);
            let (cwnd, rto) = (pair.ends[0].info().cwnd_bytes, pair.ends[0].stats.rto_fired);
            pair.faults.delay_us = 600_000;
            let bytes = stream(200_000, 2);
            let until = pair.now.plus_micros(1_900_000);
            let mut queued = pair.ends[0].send(pair.now, &bytes);
            while pair.step(until) {
                queued += pair.ends[0].send(pair.now, &bytes[queued..]);
            }
            let (stats, info) = (pair.ends[0].stats, pair.ends[0].info());
            assert!(stats.rto_fired > rto);
            assert!(stats.undone > 0, "timestamps {timestamps} sack {} {info:?}", config.sack);
            assert!(info.cwnd_bytes >= cwnd, "{info:?} was {cwnd}");
            pair.release();
        }
    }
}

/// A path that reorders all the time: after the first surprises nothing is sent again for it (RFC
/// 8985 section 6.2, steps 3 and 4).
#[test]
fn reordering_is_learnt() {
    let mut pair = Pair::connected(with_rack(true), with_rack(true));
    pair.faults = Faults { delay_us: 10_000, jitter_us: 6_000, ..Faults::default() };
    let (mut resent, mut undone) = (Vec::new(), 0);
    for round in 0..6 {
        let before = pair.ends[0].stats.retransmits;
        pair.transfer([&stream(500_000, round), &[]], 100_000_000);
        resent.push(pair.ends[0].stats.retransmits - before);
        undone = pair.ends[0].stats.undone;
    }
    println!("sent again in each half megabyte: {resent:?}, {undone} episodes taken back");
    let late: u64 = resent[3..].iter().sum();
    assert!(late <= 8, "{resent:?}");
    assert_eq!(pair.ends[0].stats.rto_fired, 0);
    pair.release();
}

/// A receiver may drop what it has selectively acknowledged (RFC 2018 section 8).
#[test]
fn what_is_taken_back_is_sent_again() {
    let mut pair = scripted(with_rack(true));
    let bytes = stream(10_000, 1);
    pair.ends[0].send(pair.now, &bytes);
    assert_eq!(sends(&mut pair).len(), 10);
    give(&mut pair, 0, &[(1_000, 10_000)]);
    give(&mut pair, 1_000, &[]);
    // Everything above is sacked, yet the ACK stays where it is.
    for _ in 0..3 {
        pair.now = pair.ends[0].tcb.as_ref().unwrap().deadline();
        pair.ends[0].timer(pair.now);
        if pair.ends[0].stats.sack_reneged > 0 {
            break;
        }
        sends(&mut pair);
    }
    assert_eq!(pair.ends[0].stats.sack_reneged, 1);
    assert_eq!(sends(&mut pair), [(1_000, 1_000)]);
    assert_eq!(give(&mut pair, 2_000, &[]).first(), Some(&(2_000, 1_000)));
    give(&mut pair, 10_000, &[]);
    assert_eq!(pair.ends[0].slab.flights_used(), 0);
    pair.release();
}

/// Blocks that lie about what was never sent, overlap, or are old change nothing for the worse.
#[test]
fn blocks_that_make_no_sense_are_passed_over() {
    let mut pair = scripted(with_rack(true));
    pair.ends[0].send(pair.now, &stream(10_000, 1));
    sends(&mut pair);
    give(&mut pair, 3_000, &[]);
    let held = |pair: &Pair| {
        let end = &pair.ends[0];
        let info = end.tcb.as_ref().unwrap().info_in(&end.slab);
        (info.sacked, info.lost, info.flight_bytes)
    };
    for blocks in [[(9_000, 11_000)], [(50_000, 60_000)], [(6_000, 5_000)], [(5_000, 5_000)]] {
        give(&mut pair, 3_000, &blocks);
        assert_eq!(held(&pair), (0, 0, 7_000), "{blocks:?}");
    }
    // In the middle of segments, and twice: only the whole one in between counts.
    give(&mut pair, 3_000, &[(4_500, 6_500), (4_700, 5_200)]);
    give(&mut pair, 3_000, &[(4_500, 6_500)]);
    assert_eq!(held(&pair), (1, 0, 6_000));
    give(&mut pair, 10_000, &[]);
    assert_eq!(held(&pair), (0, 0, 0));
    pair.release();
}

/// Without memory for records they get coarse; without any at all, time-outs do the work.
#[test]
fn nothing_fails_without_memory_for_records() {
    for slices in [2, 3, 5, 9] {
        for rack in [true, false] {
            let mut pair = Pair::new(with_rack(rack), with_rack(rack));
            pair.ends[0].slab = SliceSlab::with_capacity(slices);
            pair.faults.loss_per_mille = 50;
            pair.rng = Rng::new(slices as u64);
            pair.ends[0].connect(pair.now);
            pair.run_for(10_000_000);
            assert_eq!(pair.ends[0].state(), State::Established);
            pair.transfer([&stream(300_000, 1), &[]], 4_000_000_000);
            pair.run_for(300_000);
            assert_eq!(pair.ends[0].slab.records_used(), 0);
            pair.release();
        }
    }
}

/// Any pattern of loss, reordering and duplication, with RACK and without: the stream arrives,
/// nothing is in flight beyond the window, nothing leaks; and a path that loses nothing costs no
/// time-out.
#[test]
fn any_path_with_rack_and_without() {
    let mut took = [0, 0];
    for seed in 0..80u64 {
        for rack in [true, false] {
            let mut rng = Rng::new(seed + 7);
            let config = Config {
                timestamps: seed % 3 != 0,
                sack: seed % 5 != 4,
                recv_buffer_bytes: [30_000, 65_535, 300_000, 1 << 20][(seed % 4) as usize],
                send_buffer_bytes: 1 << 20,
                ..with_rack(rack)
            };
            let mut pair = Pair::new(config.clone(), config);
            pair.rng = Rng::new(seed + 1_000);
            pair.faults = Faults {
                delay_us: 100 + rng.below(40_000),
                jitter_us: if seed % 2 == 0 { 0 } else { rng.below(20_000) },
                loss_per_mille: if seed % 7 == 0 { 0 } else { rng.below(120) },
                duplicate_per_mille: rng.below(60),
            };
            pair.ends[0].isn = SeqNumber(u32::MAX - 90_000);
            pair.ends[0].connect(pair.now);
            let until = pair.now.plus_micros(4_000_000_000);
            while pair.ends[0].state() != State::Established
                || pair.ends[1].state() != State::Established
            {
                assert!(pair.step(until), "seed {seed}: no connection");
            }
            let start = pair.now;
            let (there, back) = (stream(250_000, seed), stream(30_000, seed + 1));
            pair.transfer([&there, &back], 4_000_000_000_000);
            took[usize::from(rack)] += pair.now.micros_since(start);
            for end in &pair.ends {
                assert!(end.cwnd_excess <= 0, "seed {seed}: excess {}", end.cwnd_excess);
            }
            if pair.faults.loss_per_mille == 0 && pair.faults.jitter_us == 0 {
                assert_eq!(pair.ends[0].stats.rto_fired, 0, "seed {seed}");
            }
            pair.run_for(4_000_000_000);
            for end in &pair.ends {
                assert_eq!(end.slab.records_used(), 0, "seed {seed}: {:?}", end.tcb);
            }
            pair.release();
        }
    }
    println!(
        "all of it takes {} s with RACK, {} s without",
        took[1] / 1_000_000,
        took[0] / 1_000_000
    );
    assert!(took[1] < took[0]);
}

/// Takes all but `left` records of the slab of end 0 for connections whose peers are gone.
fn use_up_records(pair: &mut Pair, left: usize) {
    let capacity = 2 * pair.ends[0].slab.capacity();
    while capacity - pair.ends[0].slab.records_used() > left {
        let mut other = Pair::new(Config::default(), Config::default());
        std::mem::swap(&mut other.ends[0].slab, &mut pair.ends[0].slab);
        other.connect();
        other.filter = Some(Box::new(|_, _| false));
        for len in [1_000, 9 * 1_448] {
            let bytes = stream(len, 1);
            other.ends[0].send(other.now, &bytes);
            other.pump();
        }
        std::mem::swap(&mut other.ends[0].slab, &mut pair.ends[0].slab);
        assert!(pair.ends[0].slab.flights_used() < 8);
    }
}

/// Drops the first data segment of end 0 that is still to come.
fn drop_next(pair: &mut Pair) {
    let mut dropped = false;
    pair.filter = Some(Box::new(move |from, frame| {
        let drops = from == 0 && !frame.payload.is_empty() && !dropped;
        dropped |= drops;
        !drops
    }));
}

/// A flight was open, with nothing in it, when the last record was taken.
#[test]
fn what_has_no_record_is_sent_again() {
    for algorithm in [Algorithm::Cubic, Algorithm::Dctcp, Algorithm::Bbr] {
        for more in [0, 5_000] {
            let config = Config { congestion: algorithm, ..Config::default() };
            let mut pair = Pair::new(config.clone(), config);
            pair.ends[0].slab = SliceSlab::with_capacity(8);
            use_up_records(&mut pair, 0);
            pair.connect();
            if algorithm == Algorithm::Cubic {
                // A probe whose duplicate is not reported leaves a flight open.
                pair.faults.delay_us = 40_000;
                let mut acks = 0;
                pair.filter = Some(Box::new(move |from, _| {
                    acks += from;
                    from == 0 || acks == 1
                }));
                pair.ends[0].send(pair.now, &stream(1_000, 1));
                pair.run_for(1_000_000);
            }
            let read = pair.ends[1].read.len();
            drop_next(&mut pair);
            let start = pair.log.len();
            pair.ends[0].send(pair.now, &stream(1_000 + more, 1));
            pair.run_for(2_000_000);
            assert_eq!(pair.ends[1].read.len() - read, 1_000 + more, "{algorithm} {more}");
            let isn = pair.ends[0].isn;
            for frame in pair.sent(0, start) {
                let header = frame.parse();
                assert_eq!(header.ack, pair.ends[1].isn + 1, "a segment of another connection");
                assert!(header.seq.bytes_since(isn) < 10_000);
            }
        }
    }
}

/// Records are to be had again, but not for what was sent before: that comes first all the same.
#[test]
fn what_has_no_record_is_sent_before_what_has_one() {
    for algorithm in [Algorithm::Cubic, Algorithm::Bbr] {
        let config = Config { congestion: algorithm, nagle: false, ..Config::default() };
        let mut pair = Pair::new(config.clone(), config);
        pair.ends[0].slab = SliceSlab::with_capacity(8);
        pair.connect();
        let mut hog = Pair::new(Config::default(), Config::default());
        std::mem::swap(&mut hog.ends[0].slab, &mut pair.ends[0].slab);
        use_up_records(&mut hog, 10);
        hog.connect();
        hog.filter = Some(Box::new(|_, _| false));
        hog.ends[0].segments_max = 1;
        let now = hog.now;
        hog.ends[0].send(now, &stream(1_000, 1));
        hog.pump();
        hog.ends[0].send(now, &stream(9 * 1_448, 1));
        hog.pump();
        assert_eq!(hog.ends[0].slab.records_used(), 16);
        std::mem::swap(&mut hog.ends[0].slab, &mut pair.ends[0].slab);
        drop_next(&mut pair);
        pair.ends[0].send(pair.now, &stream(1_000, 1));
        pair.pump();
        // The other one ends.
        std::mem::swap(&mut hog.ends[0].slab, &mut pair.ends[0].slab);
        let mut gone = hog.ends[0].tcb.take().unwrap();
        gone.release(&mut hog.ends[0].slab);
        std::mem::swap(&mut hog.ends[0].slab, &mut pair.ends[0].slab);
        pair.ends[0].send(pair.now, &stream(500, 2));
        pair.run_for(2_000_000);
        assert_eq!(pair.ends[1].read.len(), 1_500, "{algorithm}");
    }
}

/// Less than a segment is new when a time-out is to be judged by new data (RFC 5682): Nagle's
/// algorithm does not keep it back, a window that takes none of it does, and then the lost goes first.
#[test]
fn a_time_out_is_judged_whatever_is_new() {
    for (nodelay, cork) in [(false, false), (true, false), (false, true)] {
        let mut pair = Pair::connected(Config::default(), Config::default());
        pair.ends[0].with(pair.now, |tcb, env| {
            tcb.set_nodelay(nodelay);
            tcb.set_cork(env, cork);
        });
        let mut count = 0;
        pair.filter = Some(Box::new(move |from, frame| {
            count += u32::from(from == 0 && !frame.payload.is_empty());
            // Three segments, the probe, and with NODELAY what is new.
            from == 1 || frame.payload.is_empty() || count > 4 + u32::from(nodelay)
        }));
        let bytes = stream(3 * 1448 + 100, 1);
        let start = pair.now;
        pair.ends[0].send(start, &bytes[..3 * 1448]);
        pair.run_for(100_000);
        pair.ends[0].send(pair.now, &bytes[3 * 1448..]);
        while pair.ends[1].read.len() < bytes.len() && pair.ends[0].stats.rto_fired < 2 {
            pair.run_for(1_000);
        }
        assert!(pair.ends[1].read == bytes);
        assert_eq!(pair.ends[0].stats.rto_fired, 1, "{nodelay} {cork}");
        assert!(pair.ends[0].info().ssthresh_bytes > 5 * 1448);
    }
}

#[test]
fn a_time_out_is_judged_by_what_the_window_takes() {
    let mut pair = scripted(Config { nagle: false, ..with_rack(false) });
    pair.ends[0].send(pair.now, &stream(4_000, 1));
    assert_eq!(sends(&mut pair).len(), 4);
    pair.now = pair.ends[0].tcb.as_ref().unwrap().deadline();
    pair.ends[0].timer(pair.now);
    assert_eq!(sends(&mut pair), [(0, 1_000)]);
    pair.ends[0].send(pair.now, &stream(5_000, 2));
    // The right edge moves by less than is worth a segment.
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    let ack = Frame::make(theirs, ours + 1_000, Flags::ACK, 3_010, &[], &[]);
    pair.now = pair.now.plus_micros(1_000);
    pair.ends[0].input(pair.now, &ack);
    assert_eq!(sends(&mut pair).first(), Some(&(1_000, 1_000)));
}

/// What was sent too recently to be lost (RFC 8985) is in flight behind a time-out; what is lost is
/// sent again all the same.
#[test]
fn a_time_out_sends_the_oldest_beside_what_is_recent() {
    for algorithm in [Algorithm::Cubic, Algorithm::Dctcp, Algorithm::Bbr] {
        let config = Config { congestion: algorithm, nagle: false, ..Config::default() };
        let mut pair = Pair::connected(config.clone(), config);
        let bytes = stream(3 * 1448, 1);
        pair.transfer([&bytes, &[]], 10_000_000);
        pair.run_for(20_000);
        let mut count = 0;
        pair.filter = Some(Box::new(move |from, frame| {
            count += u32::from(from == 0 && !frame.payload.is_empty());
            // A segment, its probe, and the late one.
            from == 1 || frame.payload.is_empty() || count > 3
        }));
        pair.ends[0].send(pair.now, &bytes[..1448]);
        pair.run_for(100_000);
        let due = pair.ends[0].tcb.as_ref().unwrap().deadline();
        pair.run_for(due.micros_since(pair.now) - 2_000);
        pair.ends[0].send(pair.now, &bytes[1448..2896]);
        pair.run_for(10_000);
        assert_eq!(pair.ends[0].stats.rto_fired, 1);
        assert_eq!(pair.ends[1].read.len(), 4 * 1448, "{algorithm}");
    }
}

/// A window that opens by a little is used after the override time-out, however long it was closed and
/// probed before (RFC 9293 section 3.8.6.2.1).
#[test]
fn a_silly_window_after_a_closed_one_waits_for_no_probe() {
    let mut pair = scripted(with_rack(true));
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    let window = |ack: u32, window| Frame::make(theirs, ours + ack, Flags::ACK, window, &[], &[]);
    pair.ends[0].send(pair.now, &stream(1_000, 1));
    assert_eq!(sends(&mut pair), [(0, 1_000)]);
    pair.ends[0].input(pair.now, &window(1_000, 0));
    pair.ends[0].send(pair.now, &stream(5_000, 2));
    assert_eq!(sends(&mut pair), []);
    for _ in 0..8 {
        pair.now = pair.ends[0].tcb.as_ref().unwrap().deadline();
        pair.ends[0].timer(pair.now);
        assert_eq!(sends(&mut pair), [(999, 0)]);
        pair.ends[0].input(pair.now, &window(1_000, 0));
        assert_eq!(sends(&mut pair), []);
    }
    let waits = pair.ends[0].tcb.as_ref().unwrap().deadline().micros_since(pair.now);
    assert!(waits > 10_000_000);
    pair.now = pair.now.plus_micros(1_000);
    pair.ends[0].input(pair.now, &window(1_000, 100));
    assert_eq!(sends(&mut pair), []);
    let due = pair.ends[0].tcb.as_ref().unwrap().deadline();
    assert_eq!(due.micros_since(pair.now), u64::from(pair.ends[0].config.override_us));
    pair.now = due;
    pair.ends[0].timer(pair.now);
    assert_eq!(sends(&mut pair), [(1_000, 100)]);
}
