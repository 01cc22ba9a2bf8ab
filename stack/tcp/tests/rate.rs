//! Rates that the application sets, and starts at rates that are known.

mod common;

use common::{Pair, stream};
use millstream_tcp::{Algorithm, Clocking, Config, KnownStart, PacingRate};
use millstream_timer::Instant;

const MSS: u64 = 1448;

/// The server, which sends, since what a client may send before the first ACK is bounded by the window
/// of the SYN-ACK, which is never scaled.
const S: usize = 1;
/// The client.
const C: usize = 0;

fn rate(bytes_per_s: u64) -> PacingRate {
    PacingRate::new(bytes_per_s).unwrap()
}

fn config(clocking: Clocking, congestion: Algorithm) -> Config {
    Config {
        clocking,
        congestion,
        recv_buffer_bytes: 8 << 20,
        send_buffer_bytes: 8 << 20,
        nagle: false,
        ..Config::default()
    }
}

/// A pair whose server has a rate.
fn pair(config: &Config, one_way_us: u64, bytes_per_s: Option<u64>) -> Pair {
    let mut pair = Pair::new(config.clone(), config.clone());
    pair.faults.delay_us = one_way_us;
    pair.connect();
    let now = pair.now;
    pair.ends[S].with(now, |tcb, env| tcb.set_pacing_rate(env, bytes_per_s.map(rate)));
    pair
}

/// When the server sent data since `start` of the log.
fn departures(pair: &Pair, start: usize) -> Vec<Instant> {
    let sent = pair.log[start..].iter().filter(|entry| entry.1 == S);
    sent.filter(|entry| !entry.2.payload.is_empty()).map(|entry| entry.0).collect()
}

fn known_start(pair: &Pair) -> KnownStart {
    pair.ends[S].tcb.as_ref().unwrap().known_start()
}

#[test]
fn a_rate_that_is_set_spaces_every_segment() {
    for clocking in [Clocking::Auto, Clocking::Rate, Clocking::Ack] {
        for algorithm in Algorithm::ALL {
            let mut pair = pair(&config(clocking, algorithm), 5_000, Some(1_000_000));
            assert_eq!(pair.ends[S].info().pacing_rate, 1_000_000);
            let start = pair.log.len();
            pair.transfer([&[], &stream(400_000, 1)], 10_000_000);
            let at = departures(&pair, start);
            assert_eq!(at.len(), 277);
            for gap in at.windows(2).map(|pair| pair[1].nanos_since(pair[0])) {
                assert!(gap >= MSS * 1000 - 1, "{gap} {clocking:?} {algorithm:?}");
            }
            // Not slower either, once the window allows it.
            let half = at[276].nanos_since(at[138]) / 138;
            assert!(half <= MSS * 1000 * 103 / 100, "{half} {clocking:?} {algorithm:?}");
            pair.release();
        }
    }
}

/// Timers that fire late do not lower the rate: segments follow at the burst interval.
#[test]
fn late_timers_are_made_up_for() {
    let config = config(Clocking::Auto, Algorithm::Cubic);
    let config = Config { initial_window_segments: 200, ..config };
    let mut pair = pair(&config, 50_000, Some(1_448_000));
    let start = pair.now;
    pair.ends[S].send(start, &stream(100_000, 1));
    let mut sent = Vec::new();
    // A millisecond each; the loop is away from 2.5 to 6 ms.
    for micros in (0..2_500).chain(6_000..9_500).step_by(10) {
        let now = start.plus_micros(micros);
        pair.ends[S].timer(now);
        while pair.ends[S].transmit(now).is_some() {
            sent.push(micros);
        }
    }
    assert_eq!(sent, [0, 1000, 2000, 6000, 6500, 7000, 7500, 8000, 8500, 9000]);
    let late = pair.ends[S].stats.pacing_late;
    // 3 ms are between 2048 and 4096 us.
    assert_eq!((late[12], late.iter().sum::<u64>()), (1, 9));

    // A pause of the application is none of the clock's.
    let mut pair = self::pair(&config, 50_000, Some(1_448_000));
    let start = pair.now;
    let mut sent = Vec::new();
    for micros in (0..9_500).step_by(10) {
        let now = start.plus_micros(micros);
        if micros == 0 || micros == 6_000 {
            pair.ends[S].send(now, &stream(3 * MSS as usize, 1));
        }
        pair.ends[S].timer(now);
        while pair.ends[S].transmit(now).is_some() {
            sent.push(micros);
        }
    }
    assert_eq!(sent, [0, 1000, 2000, 6000, 7000, 8000]);
}

#[test]
fn a_rate_can_be_taken_back() {
    let config = config(Clocking::Auto, Algorithm::Cubic);
    let mut pair = pair(&config, 5_000, Some(10_000));
    let (now, start) = (pair.now, pair.log.len());
    pair.ends[S].send(now, &stream(100_000, 1));
    pair.pump();
    assert_eq!(pair.sent(S, start).len(), 1);
    let info = |pair: &Pair| pair.ends[S].info().pacing_rate;
    assert_eq!(info(&pair), 10_000);
    pair.ends[S].with(now, |tcb, env| tcb.set_pacing_rate(env, None));
    assert!(info(&pair) > 1_000_000);
    pair.pump();
    assert_eq!(pair.sent(S, start).len(), 10, "the window leaves at once");
    pair.run_for(2_000_000);
    assert_eq!(pair.ends[C].read.len(), 100_000);
    pair.release();
}

/// The window that a path holds leaves at the path's rate in the first round trip.
#[test]
fn a_known_rate_takes_the_place_of_slow_start() {
    for algorithm in Algorithm::ALL {
        for initial_window_segments in [1, 10] {
            let config = Config { initial_window_segments, ..config(Clocking::Rate, algorithm) };
            // 50 Mbit/s.
            let mut pair = pair(&config, 50_000, Some(6_250_000));
            assert_eq!(known_start(&pair), KnownStart::Unproven);
            assert!(pair.ends[S].info().cwnd_bytes >= 625_000, "{:?}", pair.ends[S].info());
            let start = (pair.now, pair.log.len());
            pair.transfer([&[], &stream(2_000_000, 1)], 10_000_000);
            let took = pair.now.micros_since(start.0);
            let ideal = 50_000 + 2_000_000 * 10 / 625 * 10 + 4;
            assert!(took <= ideal * 102 / 100, "{took} of {ideal} {algorithm:?}");
            assert_eq!(pair.ends[S].stats.retransmits, 0);
            assert_eq!(known_start(&pair), KnownStart::Proven);
            let gaps = departures(&pair, start.1);
            let gaps = gaps.windows(2).map(|pair| pair[1].nanos_since(pair[0]));
            assert!(gaps.min() >= Some(231_679), "no burst");

            // After a pause it is as known as before.
            pair.run_for(5_000_000);
            let start = pair.now;
            pair.transfer([&[], &stream(200_000, 2)], 10_000_000);
            let took = pair.now.micros_since(start);
            assert!(took <= (50_000 + 32_000) * 102 / 100, "{took} {algorithm:?}");
            pair.release();
        }
    }
}

#[test]
fn without_rate_clocking_a_rate_is_only_a_bound() {
    for clocking in [Clocking::Auto, Clocking::Ack] {
        let pair = pair(&config(clocking, Algorithm::Cubic), 50_000, Some(6_250_000));
        assert_eq!(known_start(&pair), KnownStart::None);
        assert_eq!(pair.ends[S].info().cwnd_bytes, 10 * MSS as u32);
    }
}

/// A path that has become slower: what is beyond what arrived was a guess.
#[test]
fn a_start_that_was_too_fast_is_taken_back() {
    for algorithm in Algorithm::ALL {
        let config = config(Clocking::Rate, algorithm);
        let mut pair = pair(&config, 50_000, Some(6_250_000));
        let (start, began) = (pair.log.len(), pair.now);
        // Of the first round trip six segments and each fortieth one pass.
        let mut seen = 0;
        pair.filter = Some(Box::new(move |from, frame| {
            if from != S || frame.payload.is_empty() {
                return true;
            }
            seen += 1;
            seen <= 6 || seen > 420 || seen % 40 == 0
        }));
        let now = pair.now;
        pair.ends[S].send(now, &stream(2_000_000, 1));
        while pair.ends[S].stats.known_starts_failed == 0 {
            assert!(pair.step(Instant::FAR_FUTURE));
        }
        assert_eq!(known_start(&pair), KnownStart::Failed);
        let sent = departures(&pair, start).len();
        // A round trip until the first gap is seen, and what it takes to tell it from reordering.
        assert!((400..550).contains(&sent), "{sent}");
        assert!(pair.now.micros_since(began) < 140_000);
        let info = pair.ends[S].info();
        if algorithm != Algorithm::Bbr {
            assert!(info.ssthresh_bytes <= 10 * MSS as u32, "{info:?}");
        }
        assert!(info.cwnd_bytes <= info.flight_bytes + 2 * MSS as u32, "{info:?}");
        pair.run_for(60_000_000);
        assert_eq!(pair.ends[C].read, stream(2_000_000, 1));
        // Nor is it tried again.
        pair.transfer([&[], &stream(200_000, 2)], 60_000_000);
        assert_eq!(pair.ends[S].stats.known_starts, 1);
        assert_eq!(pair.ends[S].stats.known_starts_failed, 1);
        assert!(pair.ends[S].cwnd_excess <= 0, "{}", pair.ends[S].cwnd_excess);
        pair.release();
    }
}

/// All of the first window is lost: the time-out finds nothing to believe in.
#[test]
fn a_start_into_nothing_ends_with_one_segment() {
    let config = config(Clocking::Rate, Algorithm::Cubic);
    let mut pair = pair(&config, 50_000, Some(6_250_000));
    let now = pair.now;
    pair.filter = Some(Box::new(|from, frame| from != S || frame.payload.is_empty()));
    pair.ends[S].send(now, &stream(2_000_000, 1));
    pair.run_for(1_000_000);
    let info = pair.ends[S].info();
    assert_eq!(known_start(&pair), KnownStart::Failed);
    assert!(
        info.ssthresh_bytes <= 10 * MSS as u32 && info.cwnd_bytes <= 2 * MSS as u32,
        "{info:?}"
    );
    pair.filter = None;
    pair.run_for(60_000_000);
    assert_eq!(pair.ends[C].read, stream(2_000_000, 1));
    pair.release();
}

/// A mark is as good as a loss.
#[test]
fn a_mark_takes_a_start_back_too() {
    let config =
        Config { ecn: millstream_tcp::Ecn::Request, ..config(Clocking::Rate, Algorithm::Cubic) };
    let mut pair = pair(&config, 50_000, Some(6_250_000));
    pair.mark_per_mille = 1000;
    let now = pair.now;
    pair.ends[S].send(now, &stream(300_000, 1));
    pair.run_for(110_000);
    pair.mark_per_mille = 0;
    assert_eq!(known_start(&pair), KnownStart::Failed);
    assert!(pair.ends[S].info().ssthresh_bytes <= 10 * MSS as u32);
    pair.run_for(60_000_000);
    assert_eq!(pair.ends[C].read.len(), 300_000);
    pair.release();
}

#[test]
fn a_remembered_rate_counts_half_and_only_on_the_same_path() {
    let config = config(Clocking::Rate, Algorithm::Cubic);
    let start = |config: &Config, rtt_us: u32, bytes_per_s: u64| {
        let mut pair = pair(config, 50_000, None);
        let now = pair.now;
        let started = pair.ends[S]
            .with(now, |tcb, env| tcb.start_at_remembered_rate(env, bytes_per_s, rtt_us));
        (started, pair.ends[S].info().cwnd_bytes, pair)
    };
    let (started, cwnd, mut pair) = start(&config, 100_000, 12_500_000);
    assert_eq!((started, cwnd), (true, 625_000));
    pair.transfer([&[], &stream(500_000, 1)], 10_000_000);
    // Half the rate: 80 ms.
    let at = departures(&pair, 0);
    let span = at[at.len() - 1].micros_since(at[0]);
    assert!((78_000..82_000).contains(&span), "{span}");
    // It goes on growing as in slow start.
    pair.transfer([&[], &stream(2_000_000, 1)], 10_000_000);
    assert_eq!(known_start(&pair), KnownStart::Proven);
    assert!(pair.ends[S].info().cwnd_bytes > 1_200_000, "{:?}", pair.ends[S].info());
    pair.release();

    for (rtt_us, starts) in [(9_000, false), (11_000, true), (190_000, true), (210_000, false)] {
        assert_eq!(start(&config, rtt_us, 12_500_000).0, starts, "{rtt_us}");
    }
    // A queue may be full that was empty: not ten times what the path held, but half of it.
    assert_eq!(start(&config, 11_000, 12_500_000).1, 68_750);
    assert!(!start(&config, 100_000, 200_000).0, "less than the usual window");
    let auto = Config { clocking: Clocking::Auto, ..config };
    assert!(!start(&auto, 100_000, 12_500_000).0);
}

/// The path only stood still for a while: what the time-out took back is given again.
#[test]
fn a_time_out_without_a_loss_leaves_the_start_as_it_was() {
    let config = config(Clocking::Rate, Algorithm::Cubic);
    let mut pair = pair(&config, 50_000, Some(6_250_000));
    pair.faults.delay_us = 900_000;
    let now = pair.now;
    pair.ends[S].send(now, &stream(300_000, 1));
    pair.run_for(800_000);
    assert_eq!(pair.ends[S].stats.known_starts_failed, 1, "a time-out, as nothing came");
    pair.faults.delay_us = 50_000;
    pair.run_for(3_000_000);
    assert!(pair.ends[S].stats.undone > 0);
    assert_eq!(pair.ends[S].stats.known_starts_failed, 0);
    assert_ne!(known_start(&pair), KnownStart::Failed);
    assert!(pair.ends[S].info().cwnd_bytes >= 625_000, "{:?}", pair.ends[S].info());
    assert_eq!(pair.ends[C].read.len(), 300_000);
    pair.release();
}
