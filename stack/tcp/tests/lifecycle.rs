//! Opening, closing, resets, silence.

mod common;

use common::{Frame, Pair, stream};
use millstream_tcp::{Config, ConnectionError, Events, KeepAlive, State, Unreachable};
use millstream_timer::Instant;
use millstream_wire::tcp::{Flags, SeqNumber, Timestamp};

fn plain() -> Config {
    Config { timestamps: false, sack: false, window_scaling: false, ..Config::default() }
}

fn pair() -> Pair {
    Pair::connected(Config::default(), Config::default())
}

#[test]
fn handshake_negotiates_what_both_want() {
    let mut pair = pair();
    assert!(pair.ends[0].events.contains(Events::ESTABLISHED));
    assert!(pair.ends[1].events.contains(Events::ESTABLISHED));
    let info = pair.ends[0].info();
    assert!(info.timestamps && info.sack);
    assert_eq!((info.snd_scale, info.rcv_scale, info.mss_bytes), (7, 7, 1448));
    // RFC 6928, and a measured round trip of 10 ms.
    assert_eq!(info.cwnd_bytes, 14_480);
    assert_eq!(info.srtt_us, 10_000);
    pair.release();

    let mut pair = Pair::connected(Config::default(), plain());
    let info = pair.ends[0].info();
    assert!(!info.timestamps && !info.sack);
    assert_eq!((info.snd_scale, info.rcv_scale, info.mss_bytes), (0, 0, 1460));
    pair.transfer([&stream(200_000, 1), &stream(100_000, 2)], 10_000_000);
    pair.release();
}

#[test]
fn both_open_at_once() {
    let mut pair = Pair::new(Config::default(), Config::default());
    for end in &mut pair.ends {
        end.connect(pair.now);
    }
    pair.run_for(100_000);
    for end in &pair.ends {
        assert_eq!(end.state(), State::Established);
        assert_eq!(end.info().snd_wnd_bytes, 65_535);
        assert_eq!(end.stats.rto_fired, 0);
    }
    pair.transfer([&stream(100_000, 1), &stream(100_000, 2)], 10_000_000);
    pair.release();
}

/// Every order in which two ends can close, with data in both directions.
#[test]
fn all_orders_of_closing() {
    for (first_us, second_us) in
        [(0, 0), (0, 100_000), (100_000, 0), (0, 3_000), (0, 5_000), (0, 7_000)]
    {
        let mut pair = pair();
        let now = pair.now;
        assert_eq!(pair.ends[0].send(now, b"request"), 7);
        assert_eq!(pair.ends[1].send(now, b"reply"), 5);
        let mut waits = [(first_us, 0), (second_us, 1)];
        waits.sort_unstable();
        let mut past = 0;
        for (at, end) in waits {
            pair.run_for(at - past);
            past = at;
            let now = pair.now;
            pair.ends[end].close(now);
        }
        pair.run_for(1_000_000);
        let states = [pair.ends[0].state(), pair.ends[1].state()];
        assert!(states.contains(&State::TimeWait), "{states:?}");
        assert!(states.iter().all(|state| matches!(state, State::TimeWait | State::Closed)));
        if first_us == second_us {
            assert_eq!(states, [State::TimeWait; 2], "simultaneous close ends in TIME-WAIT twice");
        }
        pair.run_for(59_500_000);
        for (end, read) in pair.ends.iter().zip([&b"reply"[..], b"request"]) {
            assert_eq!(end.read, read);
            assert_eq!(end.state(), State::Closed);
            assert!(end.events.contains(Events::PEER_CLOSED | Events::CLOSED));
            assert!(end.tcb.as_ref().unwrap().recv_finished());
            assert_eq!(end.tcb.as_ref().unwrap().error(), None);
            assert_eq!(end.tcb.as_ref().unwrap().deadline(), Instant::FAR_FUTURE);
        }
        pair.release();
    }
}

#[test]
fn half_closed_streams_go_on() {
    let mut pair = pair();
    let now = pair.now;
    pair.ends[0].close(now);
    pair.run_for(100_000);
    assert_eq!(pair.ends[0].state(), State::FinWait2);
    assert_eq!(pair.ends[1].state(), State::CloseWait);
    let back = stream(400_000, 5);
    pair.transfer([&[], &back], 30_000_000);
    let now = pair.now;
    pair.ends[1].close(now);
    assert_eq!(pair.ends[1].state(), State::LastAck);
    pair.run_for(100_000);
    assert_eq!(pair.ends[1].state(), State::Closed);
    assert_eq!(pair.ends[0].state(), State::TimeWait);
    assert!(pair.ends[0].events.contains(Events::TIME_WAIT));
    // FIN-WAIT-2 has no limit while somebody reads; TIME-WAIT lasts 60 s.
    assert_eq!(pair.ends[0].stats.rto_fired, 0);
    pair.release();
}

#[test]
fn a_lost_last_ack_is_sent_again() {
    let mut pair = pair();
    let now = pair.now;
    pair.ends[0].close(now);
    pair.run_for(100_000);
    pair.filter = Some(Box::new(|from, _| from != 0));
    let now = pair.now;
    pair.ends[1].close(now);
    pair.run_for(50_000);
    assert_eq!(pair.ends[0].state(), State::TimeWait);
    assert_eq!(pair.ends[1].state(), State::LastAck);
    pair.filter = None;
    let before = pair.ends[0].tcb.as_ref().unwrap().deadline();
    pair.run_for(1_000_000);
    assert_eq!(pair.ends[1].state(), State::Closed);
    assert!(pair.ends[0].tcb.as_ref().unwrap().deadline() > before, "TIME-WAIT starts anew");
    pair.release();
}

#[test]
fn abort_resets_the_peer() {
    let mut pair = pair();
    let now = pair.now;
    pair.ends[0].send(now, &[1; 50_000]);
    pair.run_for(7_000);
    let now = pair.now;
    pair.ends[0].with(now, |tcb, env| tcb.abort(env));
    assert_eq!(pair.ends[0].state(), State::Closed);
    assert_eq!(pair.ends[0].slab.used(), 0, "an abort frees what was queued");
    pair.run_for(100_000);
    assert_eq!(pair.ends[1].state(), State::Closed);
    assert!(pair.ends[1].events.contains(Events::RESET | Events::CLOSED));
    assert_eq!(pair.ends[1].tcb.as_ref().unwrap().error(), Some(ConnectionError::Reset));
    assert!(pair.ends[0].tcb.as_ref().unwrap().is_done());
    pair.release();
}

#[test]
fn data_that_nobody_reads_is_answered_by_a_reset() {
    let mut pair = pair();
    let now = pair.now;
    pair.ends[0].with(now, |tcb, env| {
        tcb.close(env);
        tcb.detach(env);
    });
    pair.run_for(100_000);
    let now = pair.now;
    pair.ends[1].send(now, b"too late");
    pair.run_for(100_000);
    assert_eq!(pair.ends[0].state(), State::Closed);
    assert!(pair.ends[0].events.contains(Events::CLOSED));
    assert!(pair.ends[1].events.contains(Events::RESET));
    pair.release();
}

#[test]
fn fin_wait_2_ends_once_the_application_is_gone() {
    let mut pair = pair();
    let now = pair.now;
    pair.ends[0].with(now, |tcb, env| {
        tcb.detach(env);
        tcb.close(env);
    });
    pair.run_for(59_000_000);
    assert_eq!(pair.ends[0].state(), State::FinWait2);
    pair.run_for(2_000_000);
    assert_eq!(pair.ends[0].state(), State::Closed);
    assert!(pair.ends[0].events.contains(Events::CLOSED));
    pair.release();
}

#[test]
fn syns_are_repeated_with_back_off_and_then_given_up() {
    let mut pair = Pair::new(Config::default(), Config::default());
    pair.filter = Some(Box::new(|_, _| false));
    pair.ends[0].connect(pair.now);
    let start = pair.now;
    pair.run_for(400_000_000);
    let at: Vec<u64> =
        pair.log.iter().map(|entry| entry.0.micros_since(start) / 1_000_000).collect();
    assert_eq!(at, [0, 1, 3, 7, 15, 31, 63]);
    assert_eq!(pair.ends[0].state(), State::Closed);
    assert!(pair.ends[0].events.contains(Events::TIMED_OUT | Events::CLOSED));
    assert_eq!(pair.ends[0].tcb.as_ref().unwrap().error(), Some(ConnectionError::TimedOut));
    pair.release();
}

#[test]
fn a_lost_syn_ack_costs_the_initial_window() {
    let mut pair = Pair::new(Config::default(), Config::default());
    let mut seen = 0;
    pair.filter = Some(Box::new(move |from, _| {
        seen += usize::from(from == 1);
        from == 0 || seen > 1
    }));
    pair.ends[0].connect(pair.now);
    pair.run_for(3_000_000);
    assert_eq!(pair.ends[0].state(), State::Established);
    assert_eq!(pair.ends[1].state(), State::Established);
    assert_eq!(pair.ends[1].info().cwnd_bytes, 1448);
    assert_eq!(pair.ends[1].info().rto_us, 3_000_000);
    pair.release();
}

#[test]
fn data_is_repeated_with_back_off_and_then_given_up() {
    let mut pair =
        Pair::connected(Config { data_retries: 6, ..Config::default() }, Config::default());
    pair.filter = Some(Box::new(|_, _| false));
    let start = pair.log.len();
    let now = pair.now;
    pair.ends[0].send(now, b"into the void");
    pair.run_for(100_000_000);
    let at: Vec<u64> =
        pair.log[start..].iter().map(|entry| entry.0.micros_since(now) / 1000).collect();
    let gaps: Vec<u64> = at.windows(2).map(|two| two[1] - two[0]).collect();
    // A probe for a lost tail comes first.
    assert_eq!(at.len(), 8);
    assert!((40..100).contains(&gaps[0]), "{gaps:?}");
    assert!((200..300).contains(&gaps[1]), "{gaps:?}");
    for two in gaps[1..].windows(2) {
        assert!(two[1].abs_diff(2 * two[0]) <= 2, "{gaps:?}");
    }
    assert_eq!(pair.ends[0].tcb.as_ref().unwrap().error(), Some(ConnectionError::TimedOut));
    pair.release();
}

#[test]
fn the_user_time_out_is_a_time() {
    let config = Config { user_timeout_us: 5_000_000, ..Config::default() };
    let mut pair = Pair::connected(config, Config::default());
    pair.filter = Some(Box::new(|_, _| false));
    let now = pair.now;
    pair.ends[0].send(now, b"into the void");
    pair.run_for(4_900_000);
    assert_eq!(pair.ends[0].state(), State::Established);
    pair.run_for(10_000_000);
    assert!(pair.ends[0].events.contains(Events::TIMED_OUT));
    pair.release();
}

#[test]
fn keep_alive_asks_and_gives_up() {
    let keepalive = KeepAlive { idle_us: 10_000_000, interval_us: 1_000_000, probes: 3 };
    let config = Config { keepalive: Some(keepalive), ..Config::default() };
    let mut pair = Pair::connected(config, Config::default());
    let start = pair.log.len();
    pair.run_for(9_000_000);
    assert_eq!(pair.log.len(), start);
    pair.run_for(35_000_000);
    assert_eq!(pair.ends[0].state(), State::Established);
    // Four questions 10 s apart, with as many answers.
    assert!(pair.sent(0, start).iter().all(|frame| frame.payload.is_empty()));
    let asked = pair.sent(0, start).len();
    assert!((3..=4).contains(&asked), "{asked}");
    assert_eq!(pair.sent(1, start).len(), asked);

    pair.filter = Some(Box::new(|_, _| false));
    let start = pair.log.len();
    pair.run_for(20_000_000);
    assert_eq!(pair.ends[0].tcb.as_ref().unwrap().error(), Some(ConnectionError::TimedOut));
    assert_eq!(pair.sent(0, start).len(), 4, "three questions and a reset");
    assert_eq!(pair.ends[0].stats.keepalive_probes as usize, asked + 3);
    pair.release();
}

/// What end 0 does with a frame made by hand; returns the frames it answers with.
fn poke(pair: &mut Pair, frame: &Frame) -> Vec<Frame> {
    let now = pair.now;
    pair.ends[0].input(now, frame);
    std::iter::from_fn(|| pair.ends[0].transmit(now)).collect()
}

/// The numbers that end 0 of a quiet pair expects next: theirs, its own.
fn numbers(pair: &Pair) -> (SeqNumber, SeqNumber) {
    (pair.ends[1].isn + 1, pair.ends[0].isn + 1)
}

#[test]
fn only_the_exact_reset_counts() {
    let mut pair = Pair::connected(plain(), plain());
    let (theirs, ours) = numbers(&pair);
    // In the window: a challenge (RFC 5961 section 3.2).
    let reset = |seq| Frame::make(seq, ours, Flags::RST, 0, &[], &[]);
    let answers = poke(&mut pair, &reset(theirs + 1000));
    assert_eq!(answers.len(), 1);
    let answer = answers[0].parse();
    assert_eq!((answer.flags, answer.seq, answer.ack), (Flags::ACK, ours, theirs));
    // Outside: silence.
    assert!(poke(&mut pair, &reset(theirs - 1)).is_empty());
    assert!(poke(&mut pair, &reset(theirs + 70_000)).is_empty());
    assert_eq!(pair.ends[0].state(), State::Established);
    assert_eq!(pair.ends[0].stats.bad_reset_drops, 3);
    // The exact one.
    assert!(poke(&mut pair, &reset(theirs)).is_empty());
    assert_eq!(pair.ends[0].state(), State::Closed);
    pair.release();
}

#[test]
fn a_syn_inside_a_connection_is_challenged() {
    let mut pair = Pair::connected(plain(), plain());
    let (theirs, ours) = numbers(&pair);
    for seq in [theirs, theirs + 100, theirs - 5_000, theirs + 1_000_000] {
        let answers = poke(&mut pair, &Frame::make(seq, ours, Flags::SYN, 0, &[], &[]));
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].parse().flags, Flags::ACK);
    }
    assert_eq!(pair.ends[0].state(), State::Established);
    pair.release();
}

#[test]
fn challenges_are_limited() {
    let mut pair = Pair::connected(plain(), plain());
    let (theirs, ours) = numbers(&pair);
    let mut answers = 0;
    for _ in 0..100 {
        answers += poke(&mut pair, &Frame::make(theirs, ours, Flags::SYN, 0, &[], &[])).len();
    }
    assert_eq!(answers, 10);
    assert_eq!(pair.ends[0].stats.challenge_acks_limited, 90);
    pair.run_for(1_100_000);
    assert_eq!(poke(&mut pair, &Frame::make(theirs, ours, Flags::SYN, 0, &[], &[])).len(), 1);
    pair.release();
}

#[test]
fn acks_of_the_future_and_of_the_far_past_are_challenged() {
    let mut pair = Pair::connected(plain(), plain());
    let (theirs, ours) = numbers(&pair);
    for ack in [ours + 1, ours + 1_000_000, ours - 70_000] {
        let frame = Frame::make(theirs, ack, Flags::ACK, 1000, &[], b"data");
        let answers = poke(&mut pair, &frame);
        assert_eq!(answers.len(), 1, "{ack}");
        assert_eq!(answers[0].parse().ack, theirs, "its data does not count");
    }
    assert_eq!(pair.ends[0].stats.bad_ack_drops, 3);
    // Within the largest window of the past the data counts (RFC 5961 section 5.2).
    let answers = poke(&mut pair, &Frame::make(theirs, ours - 1, Flags::ACK, 1000, &[], b"data"));
    assert_eq!(answers[0].parse().ack, theirs + 4);
    pair.release();
}

#[test]
fn timestamps_of_the_past_are_dropped() {
    let mut pair = pair();
    let (theirs, ours) = numbers(&pair);
    let stamped = |value: u32, seq| {
        let options = millstream_wire::tcp::Options::established(
            Some(Timestamp { value, echo: 0 }),
            &Default::default(),
        );
        Frame::make(seq, ours, Flags::ACK, 1000, options.as_slice(), b"x")
    };
    let clock = (pair.now.as_nanos() >> 20) as u32 + 2000;
    assert_eq!(poke(&mut pair, &stamped(clock, theirs))[0].parse().ack, theirs + 1);
    let answers = poke(&mut pair, &stamped(clock - 100, theirs + 1));
    assert_eq!(answers[0].parse().ack, theirs + 1);
    assert_eq!(pair.ends[0].stats.paws_drops, 1);
    // The same one again.
    poke(&mut pair, &stamped(clock, theirs + 1));
    assert_eq!(pair.ends[0].read.len(), 2);
    // Without a timestamp data is taken, as Linux does: middleboxes strip them.
    let bare = Frame::make(theirs + 2, ours, Flags::ACK, 1000, &[], b"x");
    assert_eq!(poke(&mut pair, &bare)[0].parse().ack, theirs + 3);
    assert_eq!(pair.ends[0].read.len(), 3);
    // After 24 days of silence the old clock proves nothing (RFC 7323 section 5.5).
    pair.now = pair.now.plus_micros(25 * 86_400 * 1_000_000);
    poke(&mut pair, &stamped(clock - 1000, theirs + 3));
    assert_eq!(pair.ends[0].read.len(), 4);
    pair.release();
}

#[test]
fn syn_sent_takes_only_what_answers_its_syn() {
    let fresh = || {
        let mut pair = Pair::new(plain(), plain());
        pair.ends[0].connect(pair.now);
        let now = pair.now;
        assert!(pair.ends[0].transmit(now).is_some());
        pair
    };
    let mut pair = fresh();
    let ours = pair.ends[0].isn + 1;
    let peer = SeqNumber(77);
    // A wrong ACK is reset, a wrong reset ignored.
    let answers =
        poke(&mut pair, &Frame::make(peer, ours + 5, Flags::SYN | Flags::ACK, 9, &[], &[]));
    assert_eq!(answers[0].parse().flags, Flags::RST);
    assert_eq!(answers[0].parse().seq, ours + 5);
    assert!(
        poke(&mut pair, &Frame::make(peer, ours + 5, Flags::RST | Flags::ACK, 9, &[], &[]))
            .is_empty()
    );
    assert!(poke(&mut pair, &Frame::make(peer, ours, Flags::RST, 9, &[], &[])).is_empty());
    assert!(poke(&mut pair, &Frame::make(peer, ours, Flags::ACK, 9, &[], &[])).is_empty());
    assert_eq!(pair.ends[0].state(), State::SynSent);
    // A right reset refuses.
    poke(&mut pair, &Frame::make(peer, ours, Flags::RST | Flags::ACK, 9, &[], &[]));
    assert_eq!(pair.ends[0].tcb.as_ref().unwrap().error(), Some(ConnectionError::Refused));
    assert!(pair.ends[0].events.contains(Events::REFUSED | Events::CLOSED));
    pair.release();

    // Data and FIN with the SYN-ACK count (RFC 9293 section 3.10.7.3).
    let mut pair = fresh();
    let frame = Frame::make(peer, ours, Flags::SYN | Flags::ACK | Flags::FIN, 9, &[], b"hello");
    let answers = poke(&mut pair, &frame);
    assert_eq!(answers[0].parse().ack, peer + 7);
    assert_eq!(pair.ends[0].read, b"hello");
    assert_eq!(pair.ends[0].state(), State::CloseWait);
    pair.release();
}

#[test]
fn icmp_errors_end_only_what_is_not_open() {
    let mut pair = Pair::new(plain(), plain());
    pair.ends[0].connect(pair.now);
    let now = pair.now;
    let syn = pair.ends[0].isn;
    assert!(pair.ends[0].transmit(now).is_some());
    let tell = |pair: &mut Pair, seq, kind| {
        pair.ends[0].with(now, |tcb, env| tcb.icmp_unreachable(env, seq, kind))
    };
    assert!(tell(&mut pair, syn, Unreachable::Soft).is_empty());
    assert!(tell(&mut pair, syn + 1, Unreachable::Hard).is_empty(), "not in flight");
    assert_eq!(pair.ends[0].state(), State::SynSent);
    assert_eq!(tell(&mut pair, syn, Unreachable::Hard), Events::REFUSED | Events::CLOSED);
    pair.release();

    let mut pair = Pair::connected(plain(), plain());
    pair.ends[0].send(pair.now, b"x");
    let now = pair.now;
    pair.ends[0].transmit(now);
    let seq = pair.ends[0].isn + 1;
    assert!(tell(&mut pair, seq, Unreachable::Hard).is_empty());
    assert_eq!(pair.ends[0].state(), State::Established);
    assert!(pair.ends[0].tcb.as_ref().unwrap().had_soft_error());
    pair.release();
}

#[test]
fn time_wait_makes_way_for_a_newer_syn() {
    let mut pair = Pair::connected(plain(), plain());
    let now = pair.now;
    pair.ends[0].close(now);
    pair.run_for(50_000);
    pair.ends[1].close(now);
    pair.run_for(50_000);
    assert_eq!(pair.ends[0].state(), State::TimeWait);
    let next = pair.ends[1].isn + 2;
    let syn = |seq, flags| Frame::make(seq, SeqNumber(0), flags, 9, &[], &[]);
    let may = |frame: &Frame| pair.ends[0].tcb.as_ref().unwrap().may_be_reopened_by(&frame.parse());
    assert!(may(&syn(next + 1, Flags::SYN)));
    assert!(!may(&syn(next - 1, Flags::SYN)));
    assert!(!may(&syn(next + 1, Flags::SYN | Flags::ACK)));
    // RFC 1337.
    poke(&mut pair, &Frame::make(next, next, Flags::RST, 0, &[], &[]));
    assert_eq!(pair.ends[0].state(), State::TimeWait);
    pair.release();
}

/// RFC 5482, for this side alone.
#[test]
fn the_user_time_out_of_one_connection_is_its_own() {
    let config = Config { user_timeout_us: 60_000_000, ..Config::default() };
    let mut pair = Pair::connected(config, Config::default());
    pair.ends[0].with(pair.now, |tcb, _| tcb.set_user_timeout(3_000_000));
    pair.filter = Some(Box::new(|_, _| false));
    let now = pair.now;
    pair.ends[0].send(now, b"into the void");
    pair.run_for(3_000_000);
    assert_eq!(pair.ends[0].state(), State::Established);
    // From the first repetition by a time-out on, to the millisecond.
    pair.run_for(500_000);
    assert!(pair.ends[0].events.contains(Events::TIMED_OUT));
    pair.release();
}
