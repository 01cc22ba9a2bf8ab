//! What controllers make of paths that lose at random: bounds far from what is measured, which stands
//! in the tables of `make report-tcp`, and far above what it was when something was wrong.

use millstream_tcp::Algorithm;
use millstream_tests_sim::measure::{Path, shared};

/// Megabits a second of one flow at a gigabit a second.
fn mbps(algorithm: Algorithm, rtt_us: u64, loss: f64, seed: u64, seconds: f64) -> f64 {
    let path = Path {
        bandwidth_bps: 1_000_000_000,
        rtt_us,
        loss,
        queue_bdp: 1.0,
        mark_frames: usize::MAX,
        seed,
    };
    shared(&path, &[algorithm], 1.0, seconds).total_mbps()
}

/// Flights of thousands of segments, of which some are lost: what is known of each must not be blurred
/// so much that round trips are measured that never were.
#[test]
fn bbr_fills_long_paths_whether_they_lose_or_not() {
    for rtt_us in [20_000, 100_000] {
        for loss in [0.0, 0.001, 0.01] {
            let mbps = mbps(Algorithm::Bbr, rtt_us, loss, 1, 2.0);
            assert!(mbps > 500.0, "{mbps} Mbit/s at {rtt_us} us and {loss}");
        }
    }
}

/// Every other segment is lost when the first slow start overshoots.
#[test]
fn an_overshoot_is_repaired_segment_by_segment() {
    for algorithm in [Algorithm::Cubic, Algorithm::NewReno] {
        let mbps = mbps(algorithm, 100_000, 0.0, 1, 4.0);
        assert!(mbps > 500.0, "{mbps} Mbit/s by {algorithm}");
    }
}

/// Where windows are small, CUBIC is in its Reno-friendly region (RFC 9438 section 4.3).
#[test]
fn cubic_is_no_slower_than_new_reno_where_windows_are_small() {
    for loss in [0.001, 0.01, 0.05] {
        let sum = |algorithm| -> f64 {
            (1..=3).map(|seed| mbps(algorithm, 1_000, loss, seed, 2.0)).sum::<f64>()
        };
        let (cubic, reno) = (sum(Algorithm::Cubic), sum(Algorithm::NewReno));
        assert!(cubic > 0.97 * reno, "{cubic} and {reno} Mbit/s at {loss}");
    }
}
