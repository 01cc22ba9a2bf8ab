//! CUBIC (RFC 9438), in integers.
//!
//! After a reduction the window follows `W(t) = C (t - K)^3 + W_max`, so that it comes back fast,
//! dwells where it was when something was lost, and then searches further. Where NewReno would have
//! a larger window, this is at least as large.
//!
//! As in Linux, and as the RFC allows: the multiplicative decrease is 717/1024 of the window, not of
//! what is in flight (section 4.6; windows grow only while they limit), in slow start an ACK adds
//! what it delivers without RFC 3465's limit of two segments (eight if nothing is paced, by RFC
//! 9406), and after a reduction that is taken back a new epoch begins from the window that was:
//! below `W_max` that is the same curve.

use super::hystart::{HyStart, growth_max, slow_start};
use super::new_reno::restart;
use super::{Ack, CWND_MAX, Controller, Signal, Window};

/// beta_cubic, 0.7, in 1/1024.
const BETA: u64 = 717;
const BETA_SHIFT: u32 = 10;

/// Steps in time are those of the clock of the epoch: a millisecond. The largest distance from K
/// that is told apart, almost nine minutes, is above the K of the largest window of the smallest
/// segments; and its cube times 2^16 bytes is below 2^64.
const SPAN_MAX_MS: u32 = (1 << 19) - 1;

/// One stage of congestion avoidance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Epoch {
    /// When it began, in milliseconds, less the times in which the window was not used.
    start_ms: u32,
    /// When the window was last held against the curve.
    last_ms: u32,
    /// Time from the beginning to `W_max`.
    k_ms: u32,
    /// NewReno's window (section 4.3).
    w_est: u32,
    /// What is left of a byte's growth of `w_est` and of the window, in parts of the window.
    est_carry: u32,
    carry: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first slow start.
    Start(HyStart),
    /// Another slow start, or the beginning of avoidance.
    Between,
    Avoidance(Epoch),
}

/// CUBIC's state.
#[derive(Debug)]
pub struct Cubic {
    phase: Phase,
    /// Window before the last reduction, or what fast convergence made of it; 0: none, so that the
    /// next epoch begins on its plateau.
    w_max: u32,
    /// The window and the threshold before the last reduction, and the `w_max` of then. The window
    /// is also section 4.3's `cwnd_prior`.
    prior: Window,
    prior_w_max: u32,
    /// There is a reduction that can be taken back.
    undoable: bool,
    growth_segments: u8,
}

impl Cubic {
    /// For a new connection whose window one ACK grows by so many segments in slow start at most;
    /// [`u8::MAX`]: by any number.
    pub fn new(growth_segments: u8) -> Self {
        Self {
            phase: Phase::Start(HyStart::new(growth_segments)),
            w_max: 0,
            prior: Window { cwnd: 0, ssthresh: 0 },
            prior_w_max: 0,
            undoable: false,
            growth_segments,
        }
    }

    /// The reduced window.
    fn reduce(&mut self, window: &Window, mss: u32) -> u32 {
        self.prior = *window;
        self.prior_w_max = self.w_max;
        self.undoable = true;
        self.phase = Phase::Between;
        // Section 4.7, fast convergence: who loses before it is back where it was leaves room.
        self.w_max = if window.cwnd < self.w_max {
            scale(window.cwnd, 1024 + BETA, BETA_SHIFT + 1)
        } else {
            window.cwnd
        };
        scale(window.cwnd, BETA, BETA_SHIFT).max(mss.saturating_mul(2)).min(CWND_MAX)
    }

    /// Section 4.2: where the curve begins, and when it will be at `W_max`.
    fn begin_epoch(&mut self, window: &Window, mss: u32, now_ms: u32) -> Epoch {
        let missing = self.w_max.saturating_sub(window.cwnd);
        if missing == 0 {
            self.w_max = window.cwnd;
        }
        Epoch {
            start_ms: now_ms,
            last_ms: now_ms,
            // K = cbrt(missing segments / 0.4) seconds.
            k_ms: cube_root(u64::from(missing) * 2_500_000_000 / u64::from(mss)),
            w_est: window.cwnd,
            est_carry: 0,
            carry: 0,
        }
    }

    /// Congestion avoidance (section 4.2): `delivered` bytes bring the window closer to where the
    /// curve is in a round trip.
    fn avoid(&mut self, window: &mut Window, ack: &Ack, delivered: u32) {
        let mss = ack.mss.max(1);
        let now_ms = (ack.now_us / 1000) as u32;
        let rtt_ms = ack.srtt_us / 1000;
        let mut epoch = match self.phase {
            Phase::Avoidance(epoch) => epoch,
            _ => self.begin_epoch(window, mss, now_ms),
        };
        // Section 4.2: time in which the window was not used, for want of data or of the peer's
        // window, does not count. ACKs of a window that is used come at most a round trip apart.
        let pause_ms = now_ms.wrapping_sub(epoch.last_ms);
        if pause_ms > rtt_ms.saturating_mul(2).saturating_add(2) {
            epoch.start_ms = epoch.start_ms.wrapping_add(pause_ms);
        }
        epoch.last_ms = now_ms;

        let elapsed_ms = now_ms.wrapping_sub(epoch.start_ms);
        let target = curve(self.w_max, epoch.k_ms, elapsed_ms.saturating_add(rtt_ms), mss)
            .clamp(window.cwnd, window.cwnd.saturating_add(window.cwnd / 2));
        // (target - cwnd) / cwnd for each byte. What is less than a byte is kept.
        let cwnd = u64::from(window.cwnd.max(1));
        let growth = u64::from(target - window.cwnd) * u64::from(delivered.min(window.cwnd))
            + u64::from(epoch.carry);
        epoch.carry = (growth % cwnd) as u32;
        let mut next = window.cwnd.saturating_add((growth / cwnd) as u32);

        // Section 4.3: alpha_cubic = 3 (1 - 0.7) / (1 + 0.7) = 9/17 of a segment for each window,
        // until the window is what it was before the reduction; then a whole one, as NewReno.
        // Byte by byte: where windows are small and losses frequent, a step of a segment would often
        // not be reached before the next reduction.
        let whole = if epoch.w_est < self.prior.cwnd { cwnd * 17 / 9 } else { cwnd };
        let growth =
            u64::from(delivered.min(window.cwnd)) * u64::from(mss) + u64::from(epoch.est_carry);
        epoch.est_carry = (growth % whole) as u32;
        epoch.w_est = epoch.w_est.saturating_add((growth / whole) as u32);
        let now = curve(self.w_max, epoch.k_ms, elapsed_ms, mss);
        if now < epoch.w_est {
            next = next.max(epoch.w_est);
        }
        window.cwnd = next.min(CWND_MAX);
        self.phase = Phase::Avoidance(epoch);
    }
}

impl Controller for Cubic {
    fn on_ack(&mut self, window: &mut Window, ack: &Ack) {
        if ack.in_recovery || !ack.cwnd_limited {
            return;
        }
        let mut delivered = ack.delivered;
        if window.cwnd < window.ssthresh {
            if let Phase::Start(hystart) = &mut self.phase {
                if hystart.on_ack(window, ack) {
                    self.phase = Phase::Between;
                }
                return;
            }
            self.phase = Phase::Between;
            let limit = growth_max(self.growth_segments, ack.mss);
            delivered = slow_start(window, delivered, limit);
            if delivered == 0 {
                return;
            }
        }
        self.avoid(window, ack, delivered);
    }

    fn on_congestion(
        &mut self,
        window: &Window,
        _why: Signal,
        _flight: u32,
        mss: u32,
        _now_us: u64,
    ) -> u32 {
        self.reduce(window, mss)
    }

    fn on_timeout(
        &mut self,
        window: &mut Window,
        _flight: u32,
        mss: u32,
        first: bool,
        _now_us: u64,
    ) {
        // RFC 5681 section 3.1: the threshold is held constant when the same segment times out
        // again.
        if first {
            window.ssthresh = self.reduce(window, mss);
        }
        // Section 4.8: the epoch after it begins on its plateau.
        self.w_max = 0;
        self.phase = Phase::Between;
        window.cwnd = mss.min(CWND_MAX);
    }

    fn on_undo(&mut self, window: &mut Window) {
        if !self.undoable {
            return;
        }
        // Section 4.9.
        self.undoable = false;
        self.w_max = self.prior_w_max;
        window.cwnd = window.cwnd.max(self.prior.cwnd);
        window.ssthresh = window.ssthresh.max(self.prior.ssthresh);
        self.phase = if window.ssthresh == u32::MAX {
            Phase::Start(HyStart::new(self.growth_segments))
        } else {
            Phase::Between
        };
    }

    fn on_idle(&mut self, window: &mut Window, initial_window: u32, _idle_us: u64, _now_us: u64) {
        restart(window, initial_window);
    }
}

/// `bytes * factor / 2^shift`; the result is to fit.
fn scale(bytes: u32, factor: u64, shift: u32) -> u32 {
    ((u64::from(bytes) * factor) >> shift) as u32
}

/// `C (t - K)^3 + W_max` in bytes (section 4.2), with C = 0.4 segments / s^3.
fn curve(w_max: u32, k_ms: u32, at_ms: u32, mss: u32) -> u32 {
    let span_ms = u64::from(at_ms.abs_diff(k_ms).min(SPAN_MAX_MS));
    // 0.4 / 1000^3, in two steps, so that nothing overflows. What the first one drops is less than
    // a thousandth of 0.4 segments.
    let bytes = span_ms * span_ms * span_ms / 1_000_000 * u64::from(mss.min(1 << 16)) * 4 / 10_000;
    let bytes = bytes.min(u64::from(u32::MAX)) as u32;
    if at_ms < k_ms { w_max.saturating_sub(bytes) } else { w_max.saturating_add(bytes) }
}

/// The largest number whose cube is not above `of`.
fn cube_root(of: u64) -> u32 {
    // Two powers of two above and below it: Newton's method from above falls until it is there.
    if of == 0 {
        return 0;
    }
    let mut root = 1u64 << (64 - of.leading_zeros()).div_ceil(3);
    loop {
        let next = (2 * root + of / (root * root)) / 3;
        if next >= root {
            return root as u32;
        }
        root = next;
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim::{Link, Sim};
    use super::super::{Algorithm, Congestion, Kind};
    use super::*;
    use proptest::prelude::*;

    const MSS: u32 = 1000;

    fn cubic() -> Cubic {
        Cubic::new(8)
    }

    fn ack(now_us: u64, srtt_us: u32, delivered: u32) -> Ack {
        Ack { now_us, delivered, mss: MSS, srtt_us, cwnd_limited: true, ..Ack::default() }
    }

    /// A reduction from `cwnd`, complete.
    fn reduced(cubic: &mut Cubic, cwnd: u32) -> Window {
        let mut window = Window { cwnd, ssthresh: u32::MAX };
        window.ssthresh = cubic.on_congestion(&window, Signal::Loss, cwnd, MSS, 0);
        window.cwnd = window.ssthresh;
        window
    }

    /// All of a window is acknowledged in each round trip, from `from_us` to `to_us`.
    fn run(cubic: &mut Cubic, window: &mut Window, rtt_us: u32, from_us: u64, to_us: u64) {
        let mut now_us = from_us;
        while now_us < to_us {
            for _ in 0..window.cwnd / MSS {
                cubic.on_ack(window, &ack(now_us, rtt_us, MSS));
            }
            now_us += u64::from(rtt_us);
        }
    }

    #[test]
    fn the_window_follows_the_curve() {
        for (segments, rtt_us) in [(1_000, 100_000), (10_000, 50_000), (50_000, 20_000)] {
            let mut cubic = cubic();
            let w_max = segments * MSS;
            let mut window = reduced(&mut cubic, w_max);
            let beta = f64::from(window.cwnd) / f64::from(w_max);
            assert!((beta - 0.7).abs() < 0.001);
            let k = (f64::from(segments) * (1.0 - beta) / 0.4).cbrt();
            let mut at = 0.0;
            while at < 1.6 * k {
                let next = at + k / 20.0;
                run(&mut cubic, &mut window, rtt_us, (at * 1e6) as u64, (next * 1e6) as u64);
                at = next;
                let wanted = f64::from(segments) + 0.4 * (at - k).powi(3);
                let is = f64::from(window.cwnd) / f64::from(MSS);
                let error = (is - wanted).abs() / f64::from(segments);
                assert!(error < 0.01, "at {at:.2} s of K = {k:.2} s: {is}, not {wanted}");
            }
        }
    }

    #[test]
    fn on_short_paths_it_is_as_fast_as_new_reno() {
        // 100 segments, 1 ms: K is 4.2 s, in which NewReno would gain thousands of segments.
        let mut cubic = cubic();
        let mut window = reduced(&mut cubic, 100 * MSS);
        run(&mut cubic, &mut window, 1000, 0, 50_000);
        let gained = window.cwnd - 70 * MSS - 200;
        // 9/17 of a segment in each of 50 rounds.
        assert!(gained.abs_diff(26 * MSS) <= 2 * MSS, "{gained}");
        // From the old window on, a segment each round.
        run(&mut cubic, &mut window, 1000, 50_000, 60_000);
        let before = window.cwnd;
        assert!(before > 100 * MSS);
        run(&mut cubic, &mut window, 1000, 60_000, 80_000);
        assert!((window.cwnd - before).abs_diff(20 * MSS) <= MSS);
    }

    #[test]
    fn fast_convergence_leaves_room() {
        let mut cubic = cubic();
        let window = reduced(&mut cubic, 1000 * MSS);
        assert_eq!(cubic.w_max, 1000 * MSS);
        // Lost before it was back there: 0.85 of it.
        cubic.on_congestion(&window, Signal::Loss, 0, MSS, 0);
        assert_eq!(cubic.w_max / MSS, 700 * 17 / 20);
        let window = Window { cwnd: 700 * MSS, ssthresh: 490 * MSS };
        cubic.on_congestion(&window, Signal::Loss, 0, MSS, 0);
        assert_eq!(cubic.w_max, 700 * MSS);
    }

    #[test]
    fn thresholds_are_those_of_linux() {
        for (cwnd, ssthresh) in [(10, 7), (20, 14), (13, 9), (3, 2), (2, 2), (1, 2), (100, 70)] {
            let window = Window { cwnd: cwnd * MSS, ssthresh: u32::MAX };
            let got = cubic().on_congestion(&window, Signal::Loss, 0, MSS, 0);
            assert_eq!(got / MSS, ssthresh, "{cwnd}");
        }
    }

    #[test]
    fn slow_start_adds_what_is_delivered() {
        let mut cubic = cubic();
        let mut window = Window { cwnd: 10 * MSS, ssthresh: u32::MAX };
        for acked in [1, 2, 4] {
            cubic.on_ack(&mut window, &ack(0, 10_000, acked * MSS));
        }
        assert_eq!(window.cwnd, 17 * MSS);
    }

    #[test]
    fn time_without_use_does_not_count() {
        // Without the pause, the same: the curve is shifted by it.
        let mut windows = [0, 3_600_000_000].map(|pause_us| {
            let mut cubic = cubic();
            let mut window = reduced(&mut cubic, 2000 * MSS);
            run(&mut cubic, &mut window, 50_000, 0, 5_000_000);
            if pause_us > 0 {
                // ACKs that the application limits are no use either.
                let idle = Ack { cwnd_limited: false, ..ack(6_000_000, 50_000, MSS) };
                cubic.on_ack(&mut window, &idle);
            }
            run(&mut cubic, &mut window, 50_000, 5_000_000 + pause_us, 8_000_000 + pause_us);
            window.cwnd
        });
        windows.sort();
        assert!(windows[1] - windows[0] < windows[1] / 100, "{windows:?}");
    }

    #[test]
    fn after_a_time_out_the_epoch_begins_on_its_plateau() {
        let mut cubic = cubic();
        let mut window = Window { cwnd: 1000 * MSS, ssthresh: u32::MAX };
        cubic.on_timeout(&mut window, 0, MSS, true, 0);
        cubic.on_timeout(&mut window, 0, MSS, false, 0);
        assert_eq!((window.cwnd, window.ssthresh / MSS), (MSS, 700));
        run(&mut cubic, &mut window, 100_000, 0, 1_200_000);
        assert!(window.cwnd >= window.ssthresh);
        assert!(window.cwnd < window.ssthresh + 10 * MSS, "{}", window.cwnd);
        assert!(matches!(cubic.phase, Phase::Avoidance(Epoch { k_ms: 0, .. })));
    }

    #[test]
    fn a_reduction_that_is_taken_back_leaves_the_curve_as_it_was() {
        let mut windows = [false, true].map(|spurious| {
            let mut cubic = cubic();
            let mut window = reduced(&mut cubic, 2000 * MSS);
            run(&mut cubic, &mut window, 50_000, 0, 5_000_000);
            if spurious {
                let before = window;
                window.ssthresh = cubic.on_congestion(&window, Signal::Loss, 0, MSS, 0);
                window.cwnd = window.ssthresh;
                cubic.on_undo(&mut window);
                assert_eq!(window, before);
                cubic.on_undo(&mut window);
                assert_eq!(window, before);
            }
            run(&mut cubic, &mut window, 50_000, 5_000_000, 9_000_000);
            window.cwnd
        });
        windows.sort();
        assert!(windows[1] - windows[0] < windows[1] / 100, "{windows:?}");
    }

    #[test]
    fn an_undo_of_the_first_reduction_resumes_the_first_slow_start() {
        let mut cubic = cubic();
        let mut window = Window { cwnd: 50 * MSS, ssthresh: u32::MAX };
        cubic.on_timeout(&mut window, 0, MSS, true, 0);
        cubic.on_undo(&mut window);
        assert_eq!(window, Window { cwnd: 50 * MSS, ssthresh: u32::MAX });
        assert!(matches!(cubic.phase, Phase::Start(_)));
    }

    #[test]
    fn the_state_is_small() {
        assert!(size_of::<Cubic>() <= 56, "{}", size_of::<Cubic>());
    }

    proptest! {
        #[test]
        fn cube_roots_are_exact(of: u64) {
            let root = u128::from(cube_root(of));
            prop_assert!(root.pow(3) <= u128::from(of));
            prop_assert!((root + 1).pow(3) > u128::from(of));
        }

        #[test]
        fn the_curve_grows_with_time(w_max in 0..=CWND_MAX, k_ms: u32, at_ms: u32, more: u32, mss in 1..65_536u32) {
            let later = at_ms.saturating_add(more);
            prop_assert!(curve(w_max, k_ms, at_ms, mss) <= curve(w_max, k_ms, later, mss));
        }
    }

    #[test]
    fn small_cube_roots_are_exact() {
        for root in 0..2000u64 {
            let cube = root.pow(3);
            assert_eq!(u64::from(cube_root(cube)), root);
            assert_eq!(u64::from(cube_root(cube + 3 * root * root + 3 * root)), root);
        }
        assert_eq!(cube_root(u64::MAX), 2_642_245);
    }

    /// Segments lost in the first slow start, with HyStart++ and without.
    fn slow_start_losses(link: Link) -> [u64; 2] {
        [Phase::Start(HyStart::new(u8::MAX)), Phase::Between].map(|phase| {
            let mut sim = Sim::new(link, 7);
            let cubic = Cubic { phase, ..Cubic::new(u8::MAX) };
            let flow = sim.add(Congestion(Box::new(Kind::Cubic(cubic))));
            let mut now_us = 0;
            while sim.flow(flow).window.ssthresh == u32::MAX {
                now_us += 10_000;
                assert!(now_us < 60_000_000);
                sim.run_until(now_us);
            }
            // Until what was sent by then has shown itself.
            sim.run_until(now_us + 3 * u64::from(link.rtt_us));
            sim.flow(flow).lost / u64::from(link.mss)
        })
    }

    /// What a delay tells is a round old, in which the window has doubled: with RFC 9406 too a queue
    /// of one bandwidth-delay product overflows, but by much less, and a deep one does not.
    #[test]
    fn hystart_bounds_what_slow_start_loses() {
        for (queue_bdps, share) in [(1, 0.75), (3, 0.26), (14, 0.0)] {
            let mut lost = [0, 0];
            for rtt_us in [40_000, 100_000, 200_000] {
                for mbps in [10, 20, 50, 70, 100, 150, 200] {
                    let link = Link { bytes_per_s: mbps * 125_000, rtt_us, ..Link::default() };
                    let [with, without] = slow_start_losses(link.queue_bdps(queue_bdps));
                    assert!(without > 0 && with <= without, "{mbps} Mbit/s, {rtt_us} us");
                    lost = [lost[0] + with, lost[1] + without];
                }
            }
            let is = lost[0] as f64 / lost[1] as f64;
            assert!(is <= share, "a queue of {queue_bdps} BDP: {is}");
        }
    }

    /// A sender that never fills its window does not learn that it could.
    #[test]
    fn an_application_that_limits_keeps_the_window() {
        let mut sim = Sim::new(Link::default().queue_bdps(1), 2);
        let flow = sim.add(Congestion::new(Algorithm::Cubic, 8));
        sim.bound(flow, 5 * sim.link.mss);
        sim.run_until(20_000_000);
        assert_eq!(sim.flow(flow).window.cwnd, 10 * sim.link.mss);
        sim.bound(flow, u32::MAX);
        sim.run_until(40_000_000);
        assert!(sim.flow(flow).window.cwnd > sim.link.bdp() / 2);
        sim.stop(flow, true);
        sim.run_until(50_000_000);
        sim.stop(flow, false);
        assert_eq!(sim.flow(flow).window.cwnd, 10 * sim.link.mss);
        assert!(sim.flow(flow).window.ssthresh > 10 * sim.link.mss);
    }

    #[test]
    fn two_flows_converge() {
        let link =
            Link { bytes_per_s: 12_500_000, rtt_us: 40_000, ..Link::default() }.queue_bdps(1);
        let mut sim = Sim::new(link, 3);
        let first = sim.add(Congestion::new(Algorithm::Cubic, 8));
        sim.run_until(20_000_000);
        let second = sim.add(Congestion::new(Algorithm::Cubic, 8));
        sim.run_until(80_000_000);
        let before = [first, second].map(|flow| sim.flow(flow).delivered);
        sim.run_until(180_000_000);
        let shares =
            [first, second].map(|flow| (sim.flow(flow).delivered - before[flow]) as f64 / 1e6);
        let jain =
            (shares[0] + shares[1]).powi(2) / (2.0 * (shares[0].powi(2) + shares[1].powi(2)));
        assert!(jain > 0.95, "{shares:?}: {jain}");
        let used = (shares[0] + shares[1]) / (f64::from(link.bytes_per_s) * 100.0 / 1e6);
        assert!(used > 0.95, "{used}");
    }
}
