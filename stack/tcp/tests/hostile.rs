//! Peers that mean harm, and honest ones that look like them.

mod common;

use common::{End, Frame, Pair, stream};
use millstream_buf::IoBuf;
use millstream_tcp::{Config, ConnectionError, Events, SliceSlab, State};
use millstream_timer::Instant;
use millstream_wire::tcp::{Flags, Options, SackBlocks, SeqNumber};

fn plain() -> Config {
    Config { timestamps: false, window_scaling: false, ..Config::default() }
}

/// Feeds end 0 bytes `from..to` of `bytes`, in segments of one byte.
fn feed(pair: &mut Pair, bytes: &[u8], places: impl IntoIterator<Item = usize>) {
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    let now = pair.now;
    for at in places {
        let seq = theirs + at as u32;
        let frame = Frame::make(seq, ours, Flags::ACK, 60_000, &[], &bytes[at..=at]);
        pair.ends[0].input(now, &frame);
    }
}

/// How much of the peer's stream end 0 has in order.
fn in_order(pair: &Pair) -> usize {
    let theirs = pair.ends[1].isn + 1;
    pair.ends[0].tcb.as_ref().unwrap().rcv_nxt().bytes_since(theirs) as usize
}

#[test]
fn a_gap_before_many_small_segments_is_filled() {
    for reads in [true, false] {
        let mut pair = Pair::connected(plain(), plain());
        pair.ends[0].reads = reads;
        let bytes = stream(2000, 1);
        feed(&mut pair, &bytes, 2..1000);
        assert_eq!(pair.ends[0].slab.used(), 512 - 512 / 8);
        assert!(pair.ends[0].stats.receive_bound_drops > 0);
        feed(&mut pair, &bytes, 0..2);
        assert_eq!(in_order(&pair), 2 + 448, "nothing that was kept had to be let go");
        assert_eq!(pair.ends[0].stats.reneged_drops, 0);
        let until = if reads { 2000 } else { 512 };
        feed(&mut pair, &bytes, 450..2000);
        assert_eq!(in_order(&pair), until);
        let now = pair.now;
        pair.ends[0].read_all(now);
        feed(&mut pair, &bytes, until..2000);
        pair.ends[0].read_all(now);
        feed(&mut pair, &bytes, (2 * until).min(2000)..2000);
        assert!(bytes.starts_with(&pair.ends[0].read) && pair.ends[0].read.len() >= 2 * 512);
        pair.release();
    }
}

#[test]
fn what_is_in_order_drives_out_what_is_ahead() {
    let mut pair = Pair::connected(plain(), Config { recv_slices_max: 16, ..plain() });
    pair.ends.swap(0, 1);
    pair.ends[0].reads = false;
    let bytes = stream(100, 1);
    feed(&mut pair, &bytes, (16..20).chain(30..50));
    assert_eq!(pair.ends[0].slab.ahead(), 14);
    for at in 0..16 {
        feed(&mut pair, &bytes, [at]);
        assert_eq!(in_order(&pair), at + 1);
        assert!(pair.ends[0].slab.used() <= 16);
    }
    assert!(pair.ends[0].stats.reneged_drops >= 14);
    // All is in order now, and unread: that is a bound that holds.
    feed(&mut pair, &bytes, 16..17);
    assert_eq!((in_order(&pair), pair.ends[0].slab.ahead()), (16, 0));
    let now = pair.now;
    pair.ends[0].read_all(now);
    pair.ends[0].reads = true;
    feed(&mut pair, &bytes, 16..100);
    assert_eq!(pair.ends[0].read, bytes);
    pair.release();
}

#[test]
fn the_window_counts_slices_ahead_of_order() {
    for (ahead, moves) in [(0, true), (30, false)] {
        let config = Config { recv_slices_max: 40, ..plain() };
        let mut pair = Pair::connected(config, plain());
        let bytes = stream(60_000, 1);
        feed(&mut pair, &bytes, (20_000..).step_by(2).take(ahead));
        let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
        let now = pair.now;
        let mut edges = Vec::new();
        for at in (0..19_000).step_by(1000) {
            let part = &bytes[at..at + 1000];
            let frame = Frame::make(theirs + at as u32, ours, Flags::ACK, 9, &[], part);
            pair.ends[0].input(now, &frame);
            while let Some(frame) = pair.ends[0].transmit(now) {
                let header = frame.parse();
                edges.push(header.ack + u32::from(header.window));
            }
        }
        assert_eq!(in_order(&pair), 19_000);
        // All was read, but what the ten slices left can hold is within the window already.
        assert_eq!(edges.first() != edges.last(), moves, "{edges:?}");
        pair.release();
    }
}

#[test]
fn gaps_cannot_take_the_slab_from_others() {
    let mut hostile: Vec<Pair> = (0..3).map(|_| Pair::connected(plain(), plain())).collect();
    let mut honest = Pair::connected(plain(), plain());
    let mut slab = SliceSlab::with_capacity(64);
    for pair in &mut hostile {
        std::mem::swap(&mut pair.ends[0].slab, &mut slab);
        feed(pair, &stream(100, 1), 1..100);
        std::mem::swap(&mut pair.ends[0].slab, &mut slab);
    }
    assert_eq!((slab.used(), slab.ahead()), (16, 16));
    std::mem::swap(&mut honest.ends[0].slab, &mut slab);
    honest.transfer([&stream(50_000, 1), &stream(50_000, 2)], 10_000_000);
    honest.run_for(1_000_000);
    std::mem::swap(&mut honest.ends[0].slab, &mut slab);
    honest.release();
    for pair in &mut hostile {
        std::mem::swap(&mut pair.ends[0].slab, &mut slab);
        pair.ends[0].tcb.take().unwrap().release(&mut pair.ends[0].slab);
        std::mem::swap(&mut pair.ends[0].slab, &mut slab);
        pair.release();
    }
    assert_eq!((slab.used(), slab.ahead()), (0, 0));
}

/// An end 0 with a slab of 16 slices, all taken, 4 of them by what is ahead of order.
fn full_slab() -> Pair {
    let mut pair = Pair::connected(plain(), plain());
    pair.ends[0].slab = SliceSlab::with_capacity(16);
    pair.filter = Some(Box::new(|_, _| false));
    feed(&mut pair, &stream(20, 1), 10..20);
    assert_eq!(pair.ends[0].slab.ahead(), 4);
    let now = pair.now;
    while pair.ends[0].send(now, &[7]) != 0 {}
    assert!(pair.ends[0].slab.is_full());
    pair
}

#[test]
fn a_full_slab_takes_in_order_data_for_data_ahead_of_order() {
    let mut pair = full_slab();
    feed(&mut pair, &stream(20, 1), 0..20);
    assert_eq!(pair.ends[0].read, stream(20, 1));
    assert!((1..=4).contains(&pair.ends[0].stats.reneged_drops));
    pair.release();
}

#[test]
fn a_fin_and_a_reset_need_no_slice() {
    // A FIN with data for which there is no slice waits for it.
    let mut pair = Pair::connected(plain(), plain());
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    let now = pair.now;
    pair.ends[0].slab = SliceSlab::with_capacity(0);
    let fin = Flags::ACK | Flags::FIN;
    let events = pair.ends[0].input(now, &Frame::make(theirs, ours, fin, 9, &[], b"x"));
    assert!(!events.intersects(Events::READABLE | Events::PEER_CLOSED));
    assert_eq!(pair.ends[0].state(), State::Established);
    pair.ends[0].slab = SliceSlab::with_capacity(1);
    let events = pair.ends[0].input(now, &Frame::make(theirs, ours, fin, 9, &[], b"x"));
    assert!(events.contains(Events::READABLE | Events::PEER_CLOSED));
    pair.release();

    let mut pair = Pair::connected(plain(), plain());
    pair.ends[0].slab = SliceSlab::with_capacity(0);
    let events = pair.ends[0].input(now, &Frame::make(theirs, ours, fin, 9, &[], &[]));
    assert!(events.contains(Events::PEER_CLOSED));
    assert_eq!(pair.ends[0].transmit(now).unwrap().parse().ack, theirs + 1);
    assert_eq!(pair.ends[0].state(), State::CloseWait);
    pair.release();

    let mut pair = full_slab();
    let events = pair.ends[0].input(now, &Frame::make(theirs, ours, Flags::RST, 9, &[], &[]));
    assert!(events.contains(Events::RESET | Events::CLOSED));
    assert_eq!(pair.ends[0].slab.used(), 0);
    pair.release();
}

/// A pair whose end 0 has more to send than end 1, which does not read, has room for.
fn stuffed(config: Config) -> Pair {
    let mut pair = Pair::connected(config, Config::default());
    pair.ends[1].reads = false;
    for _ in 0..100 {
        let now = pair.now;
        pair.ends[0].send(now, &[5; 8000]);
        pair.run_for(10_000);
    }
    assert_eq!(pair.ends[0].info().snd_wnd_bytes, 0);
    pair
}

fn let_go(pair: &mut Pair) {
    let now = pair.now;
    pair.ends[0].with(now, |tcb, env| {
        tcb.close(env);
        tcb.detach(env);
    });
}

#[test]
fn a_closed_window_does_not_hold_an_orphan_for_ever() {
    for (user_timeout_us, bound_us) in [(0, 60_000_000), (20_000_000, 20_000_000)] {
        for peer_closes in [false, true] {
            let config = Config { user_timeout_us, ..Config::default() };
            let mut pair = stuffed(config);
            if peer_closes {
                let now = pair.now;
                pair.ends[1].close(now);
                pair.run_for(100_000);
            }
            pair.run_for(300_000_000);
            let_go(&mut pair);
            let state = if peer_closes { State::LastAck } else { State::FinWait1 };
            pair.run_for(bound_us - 1_000_000);
            assert_eq!(pair.ends[0].state(), state);
            pair.run_for(2_000_000);
            assert_eq!(pair.ends[0].state(), State::Closed);
            assert!(pair.ends[0].events.contains(Events::TIMED_OUT | Events::CLOSED));
            assert!(pair.ends[1].events.contains(Events::RESET), "the reset is one that counts");
            assert_eq!(pair.ends[0].slab.used(), 0);
            pair.release();
        }
    }
}

#[test]
fn an_orphan_that_gets_on_is_left_alone() {
    let mut pair = stuffed(Config::default());
    let unread = pair.ends[1].tcb.as_ref().unwrap().readable_bytes();
    let all = pair.ends[0].tcb.as_ref().unwrap().queued_total() as usize;
    assert!(all > unread + 200_000);
    let_go(&mut pair);
    // It reads a little every 50 s.
    let mut read = 0;
    let mut rounds = 0;
    while pair.ends[0].state() == State::FinWait1 {
        pair.run_for(50_000_000);
        let now = pair.now;
        let mut out = [0; 30_000];
        read += pair.ends[1].with(now, |tcb, env| tcb.recv_into(env, &mut out));
        rounds += 1;
    }
    assert_eq!(pair.ends[0].state(), State::FinWait2);
    assert!(rounds > 5, "{rounds}");
    let unread = pair.ends[1].tcb.as_ref().unwrap().readable_bytes();
    assert_eq!(read + unread, all);
    pair.release();
}

#[test]
fn who_still_holds_a_connection_may_wait() {
    let mut pair = stuffed(Config::default());
    let now = pair.now;
    pair.ends[0].close(now);
    pair.run_for(3_600_000_000);
    assert_eq!(pair.ends[0].state(), State::FinWait1);
    pair.release();
}

/// Moves `bytes` from `end` to nobody: all that is sent is acknowledged at once.
fn pour(end: &mut End, now: Instant, mut next: SeqNumber, theirs: SeqNumber, bytes: u64) {
    let buf = IoBuf::from(vec![0; 1 << 24]);
    let mut poured = 0;
    while poured < bytes {
        end.with(now, |tcb, env| tcb.send(env, buf.clone())).unwrap();
        let until = next + buf.len() as u32;
        while next != until {
            let mut out = std::mem::take(&mut end.out);
            while end.with(now, |tcb, env| tcb.transmit(env, &mut out)) {
                next = out.seq + out.payload_len() as u32;
            }
            end.out = out;
            end.input(now, &Frame::make(theirs, next, Flags::ACK, 0xffff, &[], &[]));
        }
        poured += buf.len() as u64;
    }
}

#[test]
fn fast_retransmit_works_after_gigabytes_without_a_loss() {
    let config = Config { timestamps: false, sack: false, ..Config::default() };
    let mut pair = Pair::new(config.clone(), Config { recv_buffer_bytes: 1 << 30, ..config });
    pair.ends.iter_mut().for_each(|end| end.mss_limit = 65_000);
    pair.connect();
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    let now = pair.now;
    let total = (1u64 << 31) + (1 << 26);
    pour(&mut pair.ends[0], now, ours, theirs, total);
    let next = ours + total as u32;
    let end = &mut pair.ends[0];
    assert_eq!(end.tcb.as_ref().unwrap().acked_total(), total);
    let duplicate = Frame::make(theirs, next, Flags::ACK, 0xffff, &[], &[]);
    end.with(now, |tcb, env| tcb.send(env, vec![1; 650_000].into())).unwrap();
    while end.transmit(now).is_some() {}
    for _ in 0..3 {
        end.input(now, &duplicate);
    }
    assert_eq!(end.stats.fast_retransmits, 1);
    assert_eq!(end.transmit(now).unwrap().parse().seq, next);
    // Without SACK the state is held until more than was out then is acknowledged.
    end.input(now, &Frame::make(theirs, next + 650_000, Flags::ACK, 0xffff, &[], &[]));
    end.with(now, |tcb, env| tcb.send(env, vec![1; 1].into())).unwrap();
    while end.transmit(now).is_some() {}
    end.input(now, &Frame::make(theirs, next + 650_001, Flags::ACK, 0xffff, &[], &[]));
    assert!(!end.info().in_recovery);
    assert_eq!(end.slab.flights_used(), 0);
    pair.release();
}

#[test]
fn duplicates_of_what_was_in_flight_at_a_time_out_prove_nothing() {
    let mut pair = Pair::connected(Config { sack: false, ..plain() }, plain());
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    let now = pair.now;
    let end = &mut pair.ends[0];
    let ack = |bytes: u32| Frame::make(theirs, ours + bytes, Flags::ACK, 60_000, &[], &[]);
    end.send(now, &stream(14_600, 1));
    while end.transmit(now).is_some() {}
    let later = end.tcb.as_ref().unwrap().deadline();
    end.timer(later);
    assert_eq!(end.stats.rto_fired, 1);
    while end.transmit(later).is_some() {}
    for (acked, fast_retransmits) in [(1460, 0), (14_600, 0), (16_060, 1)] {
        end.input(later, &ack(acked));
        end.send(later, &stream(14_600, 1));
        while end.transmit(later).is_some() {}
        for _ in 0..3 {
            end.input(later, &ack(acked));
        }
        assert_eq!(end.stats.fast_retransmits, fast_retransmits, "{acked}");
    }
    pair.release();
}

#[test]
fn who_hears_of_the_end_can_still_send_the_reset() {
    // Data for which there is no reader.
    let mut pair = Pair::connected(plain(), plain());
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    let now = pair.now;
    let_go(&mut pair);
    while pair.ends[0].transmit(now).is_some() {}
    let frame = Frame::make(theirs, ours, Flags::ACK, 9, &[], b"late");
    check_reset(&mut pair, theirs, |end, now| end.input(now, &frame));

    // A peer that does not answer questions.
    let keepalive = millstream_tcp::KeepAlive { idle_us: 1_000_000, interval_us: 1000, probes: 1 };
    let mut pair =
        Pair::connected(Config { keepalive: Some(keepalive), ..plain() }, Config::default());
    while pair.ends[0].stats.keepalive_probes == 0 {
        pair.now = pair.ends[0].tcb.as_ref().unwrap().deadline();
        let now = pair.now;
        pair.ends[0].timer(now);
        while pair.ends[0].transmit(now).is_some() {}
    }
    pair.now = pair.ends[0].tcb.as_ref().unwrap().deadline();
    check_reset(&mut pair, theirs, |end, now| end.timer(now));
}

/// `act` ends the connection of end 0, and the reset is still to be had afterwards, once.
fn check_reset(pair: &mut Pair, ack: SeqNumber, act: impl Fn(&mut End, Instant) -> Events) {
    let now = pair.now;
    let end = &mut pair.ends[0];
    let events = act(end, now);
    assert!(events.contains(Events::CLOSED | Events::TRANSMIT), "{events:?}");
    let tcb = end.tcb.as_ref().unwrap();
    assert!(tcb.wants_transmit() && !tcb.is_done());
    assert!(matches!(tcb.error(), Some(ConnectionError::Aborted | ConnectionError::TimedOut)));
    // What comes in between does not cost it.
    end.input(now, &Frame::make(ack, end.isn + 1, Flags::ACK, 9, &[], b"more"));
    let reset = end.transmit(now).unwrap();
    assert!(reset.parse().flags.contains(Flags::RST));
    assert!(end.transmit(now).is_none() && end.tcb.as_ref().unwrap().is_done());
    pair.release();
}

/// RFC 7323 section 5.3: what acknowledges data that was never sent must not set the clock by which
/// the peer's own segments would then look old.
#[test]
fn a_forged_timestamp_behind_a_bad_ack_is_not_believed() {
    let mut pair = Pair::connected(Config::default(), Config::default());
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    let now = pair.now;
    let value = now.as_nanos() >> 20;
    let make = |value: u32, ack: u32, payload: &[u8]| {
        let timestamp = millstream_wire::tcp::Timestamp { value, echo: 1 };
        let options = millstream_wire::tcp::Options::established(
            Some(timestamp),
            &millstream_wire::tcp::SackBlocks::EMPTY,
        );
        Frame::make(theirs, ours + ack, Flags::ACK, 1000, options.as_slice(), payload)
    };
    let fresh = value as u32 + 2_000;
    pair.ends[0].input(now, &make(fresh + 1_000_000, 9_999, b""));
    assert_eq!(pair.ends[0].stats.bad_ack_drops, 1);
    pair.ends[0].input(now, &make(fresh, 0, b"real"));
    assert_eq!(pair.ends[0].stats.paws_drops, 0);
    assert_eq!(pair.ends[0].read, b"real");
    pair.release();
}

/// A peer that closes below what it has sent already: its FIN stands, and the rest never was.
#[test]
fn a_fin_below_what_came_before_ends_the_stream() {
    for ahead in [&[(4, 3)][..], &[(2, 8)], &[(3, 1), (5, 2), (9, 4)], &[(1, 30)]] {
        let mut pair = Pair::connected(plain(), plain());
        let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
        let bytes = stream(100, 1);
        let now = pair.now;
        let frame = |at: usize, len: usize, flags: Flags| {
            let seq = theirs + at as u32;
            Frame::make(seq, ours, flags | Flags::ACK, 1000, &[], &bytes[at..at + len])
        };
        for (at, len) in ahead {
            pair.ends[0].input(now, &frame(*at, *len, Flags::empty()));
        }
        pair.ends[0].input(now, &frame(0, 4, Flags::FIN));
        assert_eq!(pair.ends[0].read, &bytes[..4], "{ahead:?}");
        assert_eq!(pair.ends[0].state(), State::CloseWait, "{ahead:?}");
        assert_eq!(pair.ends[0].slab.ahead(), 0);

        // The same, with the FIN ahead of order.
        let mut pair = Pair::connected(plain(), plain());
        for (at, len) in ahead {
            pair.ends[0].input(now, &frame(*at, *len, Flags::empty()));
        }
        pair.ends[0].input(now, &frame(3, 1, Flags::FIN));
        pair.ends[0].input(now, &frame(0, 3, Flags::empty()));
        assert_eq!(pair.ends[0].read, &bytes[..4], "{ahead:?}");
        assert_eq!(pair.ends[0].state(), State::CloseWait, "{ahead:?}");
        pair.release();
    }
}

/// RFC 6093 section 6: urgent data is data, and the pointer means nothing.
#[test]
fn urgent_data_stays_in_line() {
    let mut pair = Pair::connected(plain(), plain());
    let (theirs, ours) = (pair.ends[1].isn + 1, pair.ends[0].isn + 1);
    let now = pair.now;
    for (at, urgent) in [(0, 1), (3, 0), (6, 0xffff)] {
        let flags = Flags::ACK | Flags::URG;
        let mut frame = Frame::make(theirs + at, ours, flags, 1000, &[], b"abc");
        frame.header[18..20].copy_from_slice(&u16::to_be_bytes(urgent));
        pair.ends[0].input(now, &frame);
    }
    assert_eq!(pair.ends[0].read, b"abcabcabc");
    pair.release();
}

/// A peer that selectively acknowledges every other byte gets no record for each of them: those of a
/// shard are shared by all its connections, and a walk along a flight passes each of its own.
#[test]
fn selective_acknowledgements_of_bytes_take_no_records() {
    let config = Config { timestamps: false, nagle: false, ..Config::default() };
    let mut pair = Pair::connected(config.clone(), config);
    let data = stream(600_000, 1);
    pair.transfer([&data, &[]], 60_000_000);
    pair.filter = Some(Box::new(|_, _| false));
    pair.ends[0].segments_max = 1;
    let una = pair.ends[0].tcb.as_ref().unwrap().acked_total() as u32;
    pair.ends[0].send(pair.now, &data[..100_000]);
    pair.pump();
    let out = pair.ends[0].info().flight_bytes;
    let before = pair.ends[0].slab.records_used();
    assert!(out > 50_000 && before >= 35);
    let (ours, theirs) = (pair.ends[0].isn + 1 + una, pair.ends[1].isn + 1);
    let now = pair.now.plus_micros(100);
    for at in (2..out - 8).step_by(6) {
        let mut sack = SackBlocks::EMPTY;
        for byte in [4, 2, 0] {
            sack.push(ours + at + byte, ours + at + byte + 1);
        }
        let options = Options::established(None, &sack);
        let ack = Frame::make(theirs, ours, Flags::ACK, 60_000, options.as_slice(), &[]);
        pair.ends[0].input(now, &ack);
        while pair.ends[0].transmit(now).is_some() {}
    }
    assert_eq!(pair.ends[0].slab.records_used(), before);
    pair.release();
}
