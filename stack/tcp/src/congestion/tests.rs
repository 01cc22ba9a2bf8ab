//! What holds for every controller.

use proptest::prelude::*;

use super::*;

#[test]
fn initial_window_is_that_of_rfc_6928() {
    assert_eq!(initial_window(10, 1460), 14_600);
    assert_eq!(initial_window(10, 536), 5_360);
    assert_eq!(initial_window(10, 8_960), 17_920);
    assert_eq!(initial_window(0, 1_000), 1_000);
}

#[test]
fn pacing_fills_a_growing_window() {
    let mut window = Window { cwnd: 10_000, ssthresh: u32::MAX };
    assert_eq!(window_pacing_rate(&window, 0), 0);
    assert_eq!(window_pacing_rate(&window, 10_000), 2_000_000);
    window.ssthresh = 20_000;
    assert_eq!(window_pacing_rate(&window, 10_000), 1_200_000);
}

#[test]
fn a_controller_knows_its_name() {
    for algorithm in Algorithm::ALL {
        let congestion = Congestion::new(algorithm, u8::MAX);
        assert_eq!(congestion.algorithm(), algorithm);
        let ecn = if algorithm == Algorithm::Dctcp { EcnUse::Dctcp } else { EcnUse::Classic };
        assert_eq!(congestion.uses_ecn(), ecn);
    }
}

/// What can be told to a controller, with any numbers.
#[derive(Clone, Copy, Debug)]
enum Told {
    Ack(Ack),
    Congestion(Signal, u32),
    Recovered,
    Timeout(u32, bool),
    Undo,
    Idle(u64),
    Rate(u64),
    Sent(u32, u32),
}

/// Numbers of all magnitudes.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), 1..100_000u32, any::<u32>(), Just(u32::MAX)]
}

fn wide() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1..10_000_000u64, any::<u64>(), Just(u64::MAX)]
}

fn rate() -> impl Strategy<Value = RateSample> {
    (wide(), any::<bool>(), wide(), number(), number(), number(), number()).prop_map(
        |(bytes_per_s, app_limited, prior_delivered, delivered, interval_us, lost, tx_flight)| {
            RateSample {
                bytes_per_s,
                app_limited,
                prior_delivered,
                delivered,
                interval_us,
                lost,
                tx_flight,
            }
        },
    )
}

fn ack() -> impl Strategy<Value = Ack> {
    let bytes = (number(), number(), number(), number(), number(), wide());
    let times = (wide(), number(), number(), number());
    let facts = (any::<bool>(), prop::bool::weighted(0.2), prop::option::of(rate()));
    (bytes, times, facts).prop_map(|(bytes, times, facts)| Ack {
        now_us: times.0,
        delivered: bytes.0,
        lost: bytes.1,
        flight: bytes.2,
        prior_flight: bytes.3,
        mss: 0,
        rtt_us: times.1,
        srtt_us: times.2,
        min_rtt_us: times.3,
        cwnd_limited: facts.0,
        in_recovery: facts.1,
        ece_bytes: bytes.4,
        total_delivered: bytes.5,
        rate: facts.2,
    })
}

fn told() -> impl Strategy<Value = Told> {
    prop_oneof![
        12 => ack().prop_map(Told::Ack),
        2 => (any::<bool>(), number()).prop_map(|(loss, flight)| {
            Told::Congestion(if loss { Signal::Loss } else { Signal::Ecn }, flight)
        }),
        1 => Just(Told::Recovered),
        1 => (number(), any::<bool>()).prop_map(|(flight, first)| Told::Timeout(flight, first)),
        1 => Just(Told::Undo),
        1 => wide().prop_map(Told::Idle),
        1 => wide().prop_map(Told::Rate),
        2 => (number(), number()).prop_map(|(bytes, flight)| Told::Sent(bytes, flight)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever is told, in whatever order and with whatever clock: no panic, a window of at least
    /// a segment, and a rate that a clock can work with.
    #[test]
    fn nothing_breaks_a_controller(
        which in 0..Algorithm::ALL.len(),
        growth_segments: u8,
        mss in 88..=65_535u32,
        segments in 1..=10u8,
        clock: bool,
        told in prop::collection::vec(told(), 1..150),
    ) {
        let mut controller = Congestion::new(Algorithm::ALL[which], growth_segments);
        let mut window = Window { cwnd: initial_window(segments, mss), ssthresh: u32::MAX };
        controller.on_open(&mut window, mss, 0);
        let mut now_us = 0u64;
        for told in told {
            match told {
                Told::Ack(mut ack) => {
                    ack.mss = mss;
                    if clock {
                        now_us = now_us.saturating_add(ack.now_us % 20_000_000);
                        ack.now_us = now_us;
                    }
                    now_us = ack.now_us;
                    controller.on_ack(&mut window, &ack);
                }
                Told::Congestion(why, flight) => {
                    let ssthresh =
                        controller.on_congestion(&window, why, flight, mss, now_us);
                    prop_assert!((2 * mss..=CWND_MAX).contains(&ssthresh), "{}", ssthresh);
                    window.ssthresh = ssthresh;
                    if !controller.owns_window() {
                        window.cwnd = ssthresh;
                    }
                }
                Told::Recovered => controller.on_recovered(&mut window, now_us),
                Told::Timeout(flight, first) => {
                    controller.on_timeout(&mut window, flight, mss, first, now_us);
                }
                Told::Undo => controller.on_undo(&mut window),
                Told::Idle(idle_us) => {
                    let initial = initial_window(segments, mss);
                    controller.on_idle(&mut window, initial, idle_us, now_us);
                }
                Told::Rate(bytes_per_s) => controller.set_rate(bytes_per_s),
                Told::Sent(bytes, flight) => controller.on_sent(bytes, flight, now_us),
            }
            prop_assert!((mss..=CWND_MAX).contains(&window.cwnd), "{:?} {:?}", told, window);
            for srtt_us in [0, 1, 50_000, u32::MAX] {
                let rate = controller.pacing_rate(&window, srtt_us, mss);
                prop_assert!(rate <= RATE_MAX, "{}", rate);
                if !controller.owns_window() {
                    prop_assert_eq!(rate == 0, srtt_us == 0);
                }
            }
        }
    }
}
