//! Explicit congestion notification: asked for, marked, echoed, answered (RFC 3168, RFC 8257).

mod common;

use common::{Frame, Pair, stream};
use millstream_tcp::{Algorithm, CE, Config, CongestionState, ECT_0, Ecn, State};
use millstream_wire::tcp::Flags;

fn with(ecn: Ecn) -> Config {
    Config { ecn, ..Config::default() }
}

#[test]
fn it_is_used_if_one_asks_and_the_other_accepts() {
    for (client, server, used) in [
        (Ecn::Request, Ecn::Accept, true),
        (Ecn::Request, Ecn::Request, true),
        (Ecn::Request, Ecn::Off, false),
        (Ecn::Accept, Ecn::Accept, false),
        (Ecn::Off, Ecn::Request, false),
    ] {
        let mut pair = Pair::connected(with(client), with(server));
        assert_eq!(pair.ends[0].info().ecn, used, "{client:?} {server:?}");
        assert_eq!(pair.ends[1].info().ecn, used, "{client:?} {server:?}");
        let bits = Flags::ECE | Flags::CWR;
        let asked = if client == Ecn::Request { bits } else { Flags::empty() };
        assert_eq!(pair.log[0].2.parse().flags, Flags::SYN | asked);
        let agreed = if used { Flags::ECE } else { Flags::empty() };
        assert_eq!(pair.log[1].2.parse().flags, Flags::SYN | Flags::ACK | agreed);
        pair.transfer([&stream(20_000, 1), &[]], 1_000_000);
        // Data alone may be marked (RFC 3168 section 6.1.4).
        for (_, _, frame) in &pair.log {
            let ecn = if used && !frame.payload.is_empty() { ECT_0 } else { 0 };
            assert_eq!(frame.ecn, ecn);
        }
        pair.release();
    }
}

/// RFC 3168 section 6.1.1.1: something on the path may drop SYNs that ask.
#[test]
fn a_syn_that_is_repeated_does_not_ask() {
    let mut pair = Pair::new(with(Ecn::Request), with(Ecn::Accept));
    let mut dropped = false;
    pair.filter = Some(Box::new(move |from, _| {
        let first = from == 0 && !dropped;
        dropped = true;
        !first
    }));
    pair.ends[0].connect(pair.now);
    pair.run_for(3_000_000);
    assert_eq!(pair.ends[0].state(), State::Established);
    assert!(!pair.ends[0].info().ecn && !pair.ends[1].info().ecn);
    pair.release();
}

/// RFC 3168 section 6.1: a mark is echoed until the sender says that it has reduced its window,
/// which it does once in a round trip, without sending anything again.
#[test]
fn a_mark_is_echoed_and_answered_once() {
    let mut pair = Pair::connected(with(Ecn::Request), with(Ecn::Accept));
    pair.transfer([&stream(100_000, 1), &[]], 10_000_000);
    let cwnd = pair.ends[0].info().cwnd_bytes;
    let start = pair.log.len();
    pair.mark_per_mille = 1000;
    let now = pair.now;
    pair.ends[0].send(now, &stream(2_000, 2));
    pair.pump();
    pair.mark_per_mille = 0;
    pair.run_for(20_000);
    let bytes = stream(60_000, 3);
    pair.transfer([&bytes, &[]], 10_000_000);
    let echoes = |frame: &&Frame| frame.parse().flags.contains(Flags::ECE);
    let acks = pair.sent(1, start);
    assert!(echoes(&acks[0]), "at once");
    assert!(!echoes(acks.last().unwrap()), "until it is answered");
    let answers = pair.sent(0, start);
    let answers = answers.iter().filter(|frame| frame.parse().flags.contains(Flags::CWR));
    assert_eq!(answers.count(), 1);
    let (info, stats) = (pair.ends[0].info(), pair.ends[0].stats);
    assert!(info.cwnd_bytes < cwnd, "{} was {cwnd}", info.cwnd_bytes);
    assert_eq!((info.ca_state, stats.retransmits), (CongestionState::Open, 0));
    pair.release();
}

/// RFC 8257 section 3.2: each ACK tells of segments that were all marked, or all not.
#[test]
fn dctcp_echoes_exactly() {
    let config = || Config {
        congestion: Algorithm::Dctcp,
        quick_acks: 0,
        nagle: false,
        ..Config::default()
    };
    let mut pair = Pair::connected(config(), config());
    assert!(pair.ends[0].info().ecn, "it is asked for whatever is configured");
    let start = pair.log.len();
    for marked in [false, true, true, false, false, false] {
        pair.mark_per_mille = if marked { 1000 } else { 0 };
        let now = pair.now;
        pair.ends[0].send(now, &stream(100, 1));
        pair.pump();
    }
    pair.run_for(100_000);
    let ours = pair.ends[0].isn + 1;
    let acks: Vec<(u32, bool)> = pair
        .sent(1, start)
        .iter()
        .map(|frame| frame.parse())
        .map(|header| (header.ack.bytes_since(ours), header.flags.contains(Flags::ECE)))
        .collect();
    // Before each change what came so far is acknowledged as it was.
    let mut told = 0;
    for (ack, echo) in &acks {
        let marked: Vec<bool> =
            (told / 100..ack / 100).map(|segment| [1, 2].contains(&segment)).collect();
        assert!(marked.iter().all(|marked| marked == echo), "{acks:?}");
        told = *ack;
    }
    assert_eq!(told, 600, "{acks:?}");
    pair.release();
}

/// Marks in place of losses: the whole stream arrives, and nothing is sent twice.
#[test]
fn streams_pass_through_a_marking_pipe() {
    for algorithm in Algorithm::ALL {
        let config = || Config { congestion: algorithm, ..with(Ecn::Request) };
        let mut pair = Pair::connected(config(), config());
        pair.mark_per_mille = 50;
        let bytes = stream(2_000_000, 1);
        pair.transfer([&bytes, &bytes], 60_000_000);
        let stats = pair.ends[0].stats;
        assert_eq!((stats.retransmits, stats.rto_fired), (0, 0), "{algorithm}");
        assert!(pair.log.iter().any(|(_, _, frame)| frame.ecn == CE));
        pair.run_for(1_000_000);
        pair.release();
    }
}
