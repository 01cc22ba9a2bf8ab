//! When what is sent: windows, probes, ACKs, small segments, recovery.

mod common;

use common::{Frame, Pair, stream};
use millstream_tcp::{Algorithm, Config, State};
use millstream_wire::tcp::{Flags, SeqNumber};

fn plain() -> Config {
    Config { timestamps: false, sack: false, window_scaling: false, ..Config::default() }
}

fn pair() -> Pair {
    Pair::connected(Config::default(), Config::default())
}

#[test]
fn a_closed_window_is_probed_until_it_opens() {
    let config = || Config { recv_buffer_max_bytes: 0, ..Config::default() };
    let mut pair = Pair::connected(config(), config());
    pair.ends[1].reads = false;
    let bytes = stream(600_000, 1);
    let mut queued = 0;
    for _ in 0..100 {
        let now = pair.now;
        queued += pair.ends[0].send(now, &bytes[queued..]);
        pair.run_for(10_000);
    }
    assert_eq!(pair.ends[0].info().snd_wnd_bytes, 0);
    let full = pair.ends[1].tcb.as_ref().unwrap().readable_bytes();
    assert!((256 * 1024..=256 * 1024 + 1460).contains(&full), "{full}");
    // Probes back off, and the connection stays as long as they are answered.
    let start = pair.log.len();
    pair.run_for(3_600_000_000);
    let probes = pair.sent(0, start);
    assert!((20..60).contains(&probes.len()), "{}", probes.len());
    // As Linux asks: without data, and with an old number.
    let asked = pair.ends[0].tcb.as_ref().unwrap().acked_total() as u32;
    let asked = pair.ends[0].isn + asked;
    assert!(probes.iter().all(|frame| frame.payload.is_empty() && frame.parse().seq == asked));
    assert_eq!(pair.ends[0].state(), State::Established);
    // All window updates are lost: the next probe's answer tells.
    let mut updates = 0;
    pair.filter = Some(Box::new(move |from, frame| {
        updates += u32::from(from == 1 && frame.payload.is_empty());
        from == 0 || updates > 3
    }));
    let now = pair.now;
    pair.ends[1].read_all(now);
    pair.ends[1].reads = true;
    let until = pair.now.plus_micros(1_000_000_000);
    while pair.ends[1].read.len() < bytes.len() {
        let now = pair.now;
        queued += pair.ends[0].send(now, &bytes[queued..]);
        assert!(pair.step(until));
    }
    assert!(pair.ends[1].read == bytes);
    assert!(pair.ends[1].shrunk_by <= 0);
    pair.release();
}

#[test]
fn a_peer_that_never_answers_probes_is_given_up() {
    let mut pair = Pair::connected(Config { data_retries: 5, ..plain() }, plain());
    let now = pair.now;
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    pair.ends[0].input(now, &Frame::make(theirs, ours, Flags::ACK, 0, &[], &[]));
    pair.filter = Some(Box::new(|_, _| false));
    pair.ends[0].send(now, b"x");
    pair.run_for(60_000_000);
    assert_eq!(pair.ends[0].state(), State::Closed);
    assert_eq!(pair.ends[0].stats.window_probes, 5);
    pair.release();
}

#[test]
fn a_fin_needs_no_window() {
    let mut pair = Pair::connected(plain(), Config { recv_buffer_bytes: 1000, ..plain() });
    pair.ends[1].reads = false;
    let now = pair.now;
    pair.ends[0].send(now, &[7; 1000]);
    pair.ends[0].close(now);
    pair.run_for(100_000);
    assert_eq!(pair.ends[0].state(), State::FinWait1);
    assert_eq!(pair.ends[0].info().snd_wnd_bytes, 0);
    pair.run_for(2_000_000);
    assert_eq!(pair.ends[0].state(), State::FinWait2);
    assert_eq!(pair.ends[1].state(), State::CloseWait);
    assert_eq!(pair.ends[1].info().rcv_wnd_bytes, 0);
    let now = pair.now;
    pair.ends[1].read_all(now);
    assert_eq!(pair.ends[1].read.len(), 1000);
    pair.release();
}

#[test]
fn a_window_taken_back_is_survived() {
    let mut pair = Pair::connected(plain(), plain());
    let now = pair.now;
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    pair.ends[0].send(now, &stream(5_000, 1));
    pair.filter = Some(Box::new(|_, _| false));
    pair.run_for(1_000);
    pair.ends[0].input(now, &Frame::make(theirs, ours, Flags::ACK, 0, &[], &[]));
    pair.run_for(300_000);
    let probe = pair.log.last().unwrap().2.clone();
    assert_eq!((probe.payload.len(), probe.parse().seq), (1, ours));
    pair.filter = None;
    pair.run_for(30_000_000);
    assert!(pair.ends[1].read == stream(5_000, 1));
    pair.release();
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

#[test]
fn one_loss_is_repaired_without_a_time_out() {
    let mut pair = pair();
    drop_data(&mut pair, &[3]);
    let bytes = stream(100_000, 1);
    pair.transfer([&bytes, &[]], 10_000_000);
    let stats = pair.ends[0].stats;
    assert_eq!((stats.fast_retransmits, stats.rto_fired, stats.retransmits), (1, 0, 1));
    assert!(pair.ends[1].stats.out_of_order > 0);
    pair.release();
}

#[test]
fn several_losses_in_a_window_are_repaired_without_a_time_out() {
    let mut pair = pair();
    drop_data(&mut pair, &[12, 14, 15, 18]);
    pair.transfer([&stream(200_000, 1), &[]], 10_000_000);
    let stats = pair.ends[0].stats;
    assert_eq!((stats.fast_retransmits, stats.rto_fired, stats.retransmits), (1, 0, 4));
    pair.release();
}

#[test]
fn a_lost_tail_costs_time_outs_without_probes_and_halves_the_threshold_once() {
    let config = Config { congestion: Algorithm::NewReno, rack: false, ..Config::default() };
    let mut pair = Pair::connected(config, Config::default());
    let mut lost = 0;
    // The last segment, and its first repetition.
    let last = pair.ends[0].isn + 1 + 9 * 1448;
    pair.filter = Some(Box::new(move |from, frame| {
        let tail = from == 0 && frame.parse().seq == last;
        lost += u32::from(tail);
        !tail || lost > 2
    }));
    pair.transfer([&stream(14_480, 1), &[]], 10_000_000);
    pair.run_for(100_000);
    let (stats, info) = (pair.ends[0].stats, pair.ends[0].info());
    assert_eq!((stats.rto_fired, stats.retransmits), (2, 2));
    assert_eq!(info.ssthresh_bytes, 2 * 1448);
    assert_eq!(info.backoff, 0, "a timestamp settles the back-off");
    pair.release();
}

#[test]
fn without_timestamps_back_off_stays_until_a_measurement() {
    let mut pair = Pair::connected(plain(), plain());
    drop_data(&mut pair, &[0]);
    let now = pair.now;
    pair.ends[0].send(now, b"x");
    pair.run_for(1_000_000);
    assert_eq!(pair.ends[0].info().backoff, 1);
    let srtt = pair.ends[0].info().srtt_us;
    assert_eq!(srtt, 10_000, "Karn: what was repeated is not measured");
    let now = pair.now;
    pair.ends[0].send(now, b"y");
    pair.run_for(1_000_000);
    assert_eq!(pair.ends[0].info().backoff, 0);
    pair.release();
}

#[test]
fn limited_transmit_sends_new_data() {
    let config = Config { congestion: Algorithm::NewReno, ..plain() };
    let mut pair = Pair::connected(config, plain());
    pair.filter = Some(Box::new(|_, _| false));
    let now = pair.now;
    pair.ends[0].send(now, &stream(100_000, 1));
    pair.run_for(1_000);
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    let start = pair.log.len();
    let duplicate = Frame::make(theirs, ours, Flags::ACK, 65_535, &[], &[]);
    for count in 1..=2 {
        pair.ends[0].input(now, &duplicate);
        pair.pump();
        let sent = pair.sent(0, start);
        assert_eq!(sent.len(), count);
        assert_eq!(sent[count - 1].parse().seq, ours + 14_600 + (count as u32 - 1) * 1460);
    }
    pair.ends[0].input(now, &duplicate);
    pair.pump();
    assert_eq!(pair.sent(0, start)[2].parse().seq, ours);
    // RFC 5681 section 3.2: half of what was out before.
    assert_eq!(pair.ends[0].info().ssthresh_bytes, 14_600 / 2);
    pair.release();
}

#[test]
fn sack_blocks_come_newest_first_and_duplicates_are_reported() {
    let mut pair = Pair::connected(
        Config { timestamps: false, ..Config::default() },
        Config { timestamps: false, ..Config::default() },
    );
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    let mut poke = |at: u32, len: usize| {
        let now = pair.now;
        let frame = Frame::make(theirs + at, ours, Flags::ACK, 1000, &[], &vec![at as u8; len]);
        pair.ends[0].input(now, &frame);
        let frame = pair.ends[0].transmit(now).expect("an ACK at once");
        let header = frame.parse();
        let blocks: Vec<(u32, u32)> = header
            .sack_blocks()
            .as_slice()
            .iter()
            .map(|(start, end)| (start.bytes_since(theirs), end.bytes_since(theirs)))
            .collect();
        (header.ack.bytes_since(theirs), blocks)
    };
    assert_eq!(poke(100, 50), (0, vec![(100, 150)]));
    assert_eq!(poke(300, 50), (0, vec![(300, 350), (100, 150)]));
    assert_eq!(poke(150, 50), (0, vec![(100, 200), (300, 350)]));
    assert_eq!(poke(310, 10), (0, vec![(310, 320), (300, 350), (100, 200)]));
    assert_eq!(poke(0, 100), (200, vec![(300, 350)]));
    assert_eq!(poke(50, 100), (200, vec![(50, 150), (300, 350)]));
    assert_eq!(poke(200, 100), (350, vec![]));
    pair.release();
}

#[test]
fn acks_are_delayed_and_every_second_segment_gets_one() {
    let mut pair = Pair::connected(plain(), Config { quick_acks: 0, ..plain() });
    let start = pair.log.len();
    let now = pair.now;
    pair.ends[0].send(now, b"x");
    pair.run_for(20_000);
    assert_eq!(pair.sent(1, start).len(), 0);
    pair.run_for(30_000);
    assert_eq!(pair.sent(1, start).len(), 1);
    assert_eq!(pair.log.last().unwrap().0.micros_since(now), 5_000 + 40_000);
    let start = pair.log.len();
    pair.transfer([&stream(146_000, 1), &[]], 10_000_000);
    let (data, acks) = (pair.sent(0, start).len(), pair.sent(1, start).len());
    assert!(acks * 2 >= data - 2 && acks * 2 <= data + 6, "{acks} ACKs of {data}");
    pair.release();
}

#[test]
fn a_connection_begins_with_quick_acks() {
    let mut pair = Pair::connected(plain(), plain());
    let start = pair.log.len();
    for _ in 0..20 {
        let now = pair.now;
        pair.ends[0].send(now, b"x");
        pair.run_for(20_000);
    }
    let early = pair.sent(1, start).iter().filter(|frame| frame.payload.is_empty()).count();
    assert!((8..=16).contains(&early), "{early}");
    pair.release();
}

#[test]
fn nagle_holds_small_segments_and_nodelay_does_not() {
    for nodelay in [false, true] {
        let mut pair = pair();
        pair.ends[0].with(pair.now, |tcb, _| tcb.set_nodelay(nodelay));
        let start = pair.log.len();
        for byte in 0..5 {
            let now = pair.now;
            pair.ends[0].send(now, &[byte]);
            pair.pump();
        }
        assert_eq!(pair.sent(0, start).len(), if nodelay { 5 } else { 1 });
        pair.run_for(1_000_000);
        assert_eq!(pair.ends[1].read, [0, 1, 2, 3, 4]);
        let data = pair.sent(0, start).iter().filter(|frame| !frame.payload.is_empty()).count();
        assert_eq!(data, if nodelay { 5 } else { 2 });
        pair.release();
    }
}

#[test]
fn cork_holds_until_it_is_drawn_or_time_is_up() {
    let mut pair = pair();
    let now = pair.now;
    pair.ends[0].with(now, |tcb, env| tcb.set_cork(env, true));
    pair.ends[0].send(now, b"head");
    let start = pair.log.len();
    pair.run_for(100_000);
    assert_eq!(pair.sent(0, start).len(), 0);
    let now = pair.now;
    pair.ends[0].send(now, b"body");
    pair.ends[0].with(now, |tcb, env| tcb.set_cork(env, false));
    pair.pump();
    assert_eq!(pair.sent(0, start)[0].payload, b"headbody");
    pair.run_for(100_000);

    let now = pair.now;
    pair.ends[0].with(now, |tcb, env| tcb.send_more(env, b"more"[..].into()).unwrap());
    pair.run_for(199_000);
    assert_eq!(pair.ends[1].read, b"headbody");
    pair.run_for(20_000);
    assert_eq!(pair.ends[1].read, b"headbodymore");
    assert_eq!(pair.ends[0].stats.rto_fired, 0);
    pair.release();
}

#[test]
fn a_silly_window_is_not_filled() {
    let mut pair = Pair::connected(plain(), plain());
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    let now = pair.now;
    pair.ends[0].input(now, &Frame::make(theirs, ours, Flags::ACK, 100, &[], &[]));
    pair.ends[0].send(now, &[1; 3000]);
    assert!(pair.ends[0].transmit(now).is_none());
    // The override time-out lets go what fits.
    let later = pair.now.plus_micros(200_000);
    pair.ends[0].timer(later);
    assert_eq!(pair.ends[0].transmit(later).unwrap().payload.len(), 100);
    pair.release();
}

#[test]
fn a_silly_window_is_not_announced() {
    let mut pair = Pair::connected(plain(), Config { recv_buffer_bytes: 8760, ..plain() });
    pair.ends[1].reads = false;
    let now = pair.now;
    pair.ends[0].send(now, &[1; 20_000]);
    pair.run_for(300_000);
    assert_eq!(pair.ends[0].info().snd_wnd_bytes, 0);
    let start = pair.log.len();
    let now = pair.now;
    let mut out = [0; 1000];
    assert_eq!(pair.ends[1].with(now, |tcb, env| tcb.recv_into(env, &mut out)), 1000);
    pair.pump();
    assert_eq!(pair.sent(1, start).len(), 0, "1000 bytes are less than a segment");
    assert_eq!(pair.ends[1].with(now, |tcb, env| tcb.recv_into(env, &mut out)), 1000);
    pair.pump();
    assert_eq!(pair.sent(1, start)[0].parse().window, 2000);
    pair.release();
}

#[test]
fn the_window_grows_only_when_it_limits() {
    let mut pair = pair();
    let initial = pair.ends[0].info().cwnd_bytes;
    for _ in 0..200 {
        let now = pair.now;
        pair.ends[0].send(now, &[1; 2000]);
        pair.run_for(30_000);
    }
    assert_eq!(pair.ends[0].info().cwnd_bytes, initial);
    pair.run_for(1_000_000);
    pair.transfer([&stream(300_000, 1), &[]], 10_000_000);
    assert!(pair.ends[0].info().cwnd_bytes > 4 * initial);
    // RFC 5681 section 4.1.
    pair.run_for(1_000_000);
    let now = pair.now;
    pair.ends[0].send(now, b"x");
    pair.pump();
    assert_eq!(pair.ends[0].info().cwnd_bytes, initial);
    pair.release();
}

#[test]
fn the_first_flight_is_ten_segments_and_slow_start_doubles() {
    let mut pair = Pair::connected(
        Config { send_buffer_bytes: 1 << 20, ..plain() },
        Config { recv_buffer_bytes: 1 << 20, window_scaling: true, ..plain() },
    );
    let mut pair2 = Pair::connected(
        Config { send_buffer_bytes: 1 << 20, ..Config::default() },
        Config { recv_buffer_bytes: 1 << 20, ..Config::default() },
    );
    for (pair, mss) in [(&mut pair, 1460), (&mut pair2, 1448)] {
        let start = pair.log.len();
        let now = pair.now;
        pair.ends[0].send(now, &stream(900_000, 1));
        pair.pump();
        assert_eq!(pair.sent(0, start).len(), 10);
        assert!(pair.sent(0, start).iter().all(|frame| frame.payload.len() == mss));
        pair.run_for(10_500);
        let second = pair.sent(0, start).len() - 10;
        assert!((18..=20).contains(&second), "{second}");
        pair.release();
    }
}

#[test]
fn tiny_segments_cannot_pin_without_bound() {
    let mut pair = Pair::connected(plain(), Config { recv_slices_max: 40, ..plain() });
    pair.ends[1].reads = false;
    pair.ends[0].with(pair.now, |tcb, _| tcb.set_nodelay(true));
    let bytes = stream(300, 1);
    for byte in &bytes {
        let now = pair.now;
        pair.ends[0].send(now, &[*byte]);
        pair.pump();
    }
    pair.run_for(20_000);
    assert!(pair.ends[1].slab.used() <= 40);
    assert!(pair.ends[1].stats.receive_bound_drops > 0);
    // Nothing that was acknowledged is lost.
    pair.ends[1].reads = true;
    let now = pair.now;
    pair.ends[1].read_all(now);
    pair.run_for(60_000_000);
    assert!(pair.ends[1].read == bytes);
    pair.release();
}

#[test]
fn a_full_slab_refuses_and_drops_but_loses_nothing() {
    let mut pair = Pair::connected(plain(), plain());
    pair.ends[1].slab = millstream_tcp::SliceSlab::with_capacity(3);
    pair.ends[1].reads = false;
    let bytes = stream(14_600, 1);
    let now = pair.now;
    pair.ends[0].send(now, &bytes);
    pair.run_for(50_000);
    assert!(pair.ends[1].stats.slab_full_drops > 0);
    pair.ends[1].reads = true;
    pair.ends[1].read_all(now);
    pair.run_for(60_000_000);
    assert!(pair.ends[1].read == bytes);
    pair.ends[0].slab = millstream_tcp::SliceSlab::with_capacity(0);
    let now = pair.now;
    assert_eq!(pair.ends[0].send(now, b"x"), 0);
    pair.release();
}

#[test]
fn numbers_of_the_application_add_up() {
    let mut pair = pair();
    let now = pair.now;
    pair.ends[0].send(now, &[1; 30_000]);
    let look = |pair: &Pair| {
        let tcb = pair.ends[0].tcb.as_ref().unwrap();
        (
            tcb.unsent_bytes(),
            tcb.unacked_bytes(),
            tcb.acked_total(),
            tcb.queued_total(),
            tcb.window_room(),
        )
    };
    assert_eq!(look(&pair), (30_000, 30_000, 0, 30_000, 0));
    pair.pump();
    assert_eq!(look(&pair), (15_520, 30_000, 0, 30_000, 0));
    pair.run_for(200_000);
    let room = pair.ends[0].info().cwnd_bytes.min(pair.ends[0].info().snd_wnd_bytes) as usize;
    assert_eq!(look(&pair), (0, 0, 30_000, 30_000, room));
    pair.ends[0].close(pair.now);
    pair.run_for(200_000);
    assert_eq!(look(&pair), (0, 0, 30_000, 30_000, 0));
    pair.release();
}

#[test]
fn an_old_segment_beside_the_wrap_is_old() {
    let mut pair = Pair::new(plain(), plain());
    pair.ends[1].isn = SeqNumber(u32::MAX);
    pair.connect();
    let ours = pair.ends[0].isn + 1;
    let now = pair.now;
    pair.ends[0]
        .input(now, &Frame::make(SeqNumber(u32::MAX - 3), ours, Flags::ACK, 1, &[], b"old"));
    assert_eq!(pair.ends[0].read.len(), 0);
    pair.ends[0]
        .input(now, &Frame::make(SeqNumber(u32::MAX - 3), ours, Flags::ACK, 1, &[], b"oldXnew"));
    assert_eq!(pair.ends[0].read, b"new");
    pair.release();
}

#[test]
fn window_updates_are_no_duplicate_acks() {
    let mut pair = Pair::connected(plain(), plain());
    pair.filter = Some(Box::new(|_, _| false));
    let now = pair.now;
    pair.ends[0].send(now, &stream(5_000, 1));
    pair.run_for(1_000);
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    for window in [20_000, 30_000, 40_000, 50_000] {
        let update = Frame::make(theirs, ours, Flags::ACK, window, &[], &[]);
        pair.ends[0].input(now, &update);
    }
    assert_eq!((pair.ends[0].stats.dup_acks_in, pair.ends[0].stats.fast_retransmits), (0, 0));
    assert_eq!(pair.ends[0].info().snd_wnd_bytes, 50_000);
    pair.release();
}

#[test]
fn rounding_takes_nothing_back() {
    let mut pair = pair();
    pair.ends[1].reads = false;
    pair.ends[0].with(pair.now, |tcb, _| tcb.set_nodelay(true));
    for len in 1..120 {
        let now = pair.now;
        pair.ends[0].send(now, &vec![1; len]);
        pair.run_for(60_000);
    }
    assert_eq!(pair.ends[1].shrunk_by, 0);
    assert_eq!(pair.ends[1].tcb.as_ref().unwrap().readable_bytes(), 119 * 60);
    pair.release();
}

/// What a transfer over each controller has to get right: every byte, in the face of losses, and
/// the controller that was asked for, per stack or per connection.
#[test]
fn every_controller_carries_a_stream_through_losses() {
    for algorithm in Algorithm::ALL {
        let config = Config { congestion: algorithm, ..Config::default() };
        for per_connection in [false, true] {
            let ours = if per_connection { Config::default() } else { config.clone() };
            let mut pair = Pair::connected(ours, Config::default());
            if per_connection {
                let now = pair.now;
                pair.ends[0].with(now, |tcb, env| tcb.set_congestion(env, algorithm));
            }
            assert_eq!(pair.ends[0].info().congestion, algorithm);
            drop_data(&mut pair, &[12, 14, 15, 18, 90, 130]);
            pair.transfer([&stream(400_000, 1), &[]], 60_000_000);
            // Too late for another one.
            let now = pair.now;
            for other in Algorithm::ALL {
                pair.ends[0].with(now, |tcb, env| tcb.set_congestion(env, other));
            }
            assert_eq!(pair.ends[0].info().congestion, algorithm);
            assert!(pair.ends[0].info().ssthresh_bytes < 1 << 30);
            pair.release();
        }
    }
}

/// A window that is closed for 100 ms, twice.
#[test]
fn times_of_a_sender_are_told() {
    let config = Config { recv_buffer_bytes: 10_000, recv_buffer_max_bytes: 0, ..plain() };
    let mut pair = Pair::connected(plain(), config);
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    let times = |pair: &Pair| pair.ends[0].tcb.as_ref().unwrap().send_times(pair.now);
    pair.filter = Some(Box::new(|_, _| false));
    pair.run_for(50_000);
    assert_eq!(times(&pair), Default::default());
    for round in 0..2 {
        let at = round * 1_000;
        let now = pair.now;
        let ack = |ack: u32, window| Frame::make(theirs, ours + ack, Flags::ACK, window, &[], &[]);
        pair.ends[0].input(now, &ack(at, 0));
        pair.ends[0].send(now, &[1; 1_000]);
        pair.pump();
        pair.run_for(100_000);
        let told = times(&pair).window_limited_us;
        assert!(told.abs_diff(100_000 * u64::from(round + 1)) < 5_000, "{told}");
        let now = pair.now;
        pair.ends[0].input(now, &ack(at, 2_000));
        pair.pump();
        pair.run_for(30_000);
        let now = pair.now;
        pair.ends[0].input(now, &ack(at + 1_000, 2_000));
        pair.run_for(50_000);
    }
    let times = times(&pair);
    assert!(times.window_limited_us.abs_diff(200_000) < 5_000, "{times:?}");
    assert!(times.busy_us.abs_diff(260_000) < 5_000, "{times:?}");
    pair.release();
}
