//! NewReno: slow start and congestion avoidance of RFC 5681, counted in bytes (RFC 3465), with
//! HyStart++ in the first slow start.

use super::hystart::{HyStart, slow_start};
use super::{Ack, CWND_MAX, Controller, Signal, Window};

/// The state of RFC 5681's controller with appropriate byte counting.
#[derive(Debug)]
pub struct NewReno {
    /// Bytes acknowledged since the window last grew in congestion avoidance.
    acked: u32,
    /// The window and the threshold before the last reduction; no window: it was taken back.
    prior: Window,
    hystart: HyStart,
    /// This is the first slow start.
    first_start: bool,
    /// Slow start follows a time-out: RFC 3465 section 2.3 then wants L = 1.
    after_timeout: bool,
}

impl NewReno {
    /// For a new connection whose window one ACK grows by so many segments in slow start at most;
    /// [`u8::MAX`]: by any number.
    pub fn new(growth_segments: u8) -> Self {
        Self {
            acked: 0,
            prior: Window { cwnd: 0, ssthresh: 0 },
            hystart: HyStart::new(growth_segments),
            first_start: true,
            after_timeout: false,
        }
    }

    /// A reduction begins.
    pub(super) fn remember(&mut self, window: &Window) {
        self.prior = *window;
        self.acked = 0;
        self.first_start = false;
    }
}

impl Controller for NewReno {
    #[inline]
    fn on_ack(&mut self, window: &mut Window, ack: &Ack) {
        if ack.in_recovery || !ack.cwnd_limited {
            return;
        }
        let mut delivered = ack.delivered;
        if window.cwnd < window.ssthresh {
            if self.first_start {
                self.first_start = !self.hystart.on_ack(window, ack);
                return;
            }
            // RFC 3465 section 2.2, with L = 2.
            let limit = if self.after_timeout { ack.mss } else { ack.mss.saturating_mul(2) };
            delivered = slow_start(window, delivered, limit);
            if window.cwnd < window.ssthresh {
                return;
            }
        }
        // RFC 3465 section 2.1: one segment for each window's worth of bytes.
        self.acked = self.acked.saturating_add(delivered);
        if self.acked >= window.cwnd {
            self.acked -= window.cwnd;
            window.cwnd = window.cwnd.saturating_add(ack.mss).min(CWND_MAX);
        }
    }

    fn on_congestion(
        &mut self,
        window: &Window,
        _why: Signal,
        flight: u32,
        mss: u32,
        _now_us: u64,
    ) -> u32 {
        self.remember(window);
        self.after_timeout = false;
        // RFC 5681 equation (4): half of what is out, which is not cwnd if the application or the
        // peer's window holds the sender back; and, section 3.2, without what limited transmit has
        // added to it.
        (flight.min(window.cwnd) / 2).max(mss.saturating_mul(2)).min(CWND_MAX)
    }

    fn on_timeout(
        &mut self,
        window: &mut Window,
        flight: u32,
        mss: u32,
        first: bool,
        _now_us: u64,
    ) {
        // RFC 5681 section 3.1: the threshold is held constant when the same segment times out
        // again.
        if first {
            self.remember(window);
            window.ssthresh = (flight / 2).max(mss.saturating_mul(2)).min(CWND_MAX);
        }
        self.acked = 0;
        self.after_timeout = true;
        window.cwnd = mss.min(CWND_MAX);
    }

    fn on_undo(&mut self, window: &mut Window) {
        if self.prior.cwnd == 0 {
            return;
        }
        window.cwnd = window.cwnd.max(self.prior.cwnd);
        window.ssthresh = window.ssthresh.max(self.prior.ssthresh);
        self.prior.cwnd = 0;
        self.after_timeout = false;
        if window.ssthresh == u32::MAX {
            self.hystart = HyStart::new(self.hystart.growth_segments());
            self.first_start = true;
        }
    }

    fn on_idle(&mut self, window: &mut Window, initial_window: u32, _idle_us: u64, _now_us: u64) {
        restart(window, initial_window);
        self.acked = 0;
    }
}

/// The restart window of RFC 5681 section 4.1. The threshold keeps three quarters of what was
/// proven (RFC 2861 section 3.1), so that slow start leads back there and not beyond.
pub(super) fn restart(window: &mut Window, initial_window: u32) {
    if window.cwnd > initial_window {
        window.ssthresh = window.ssthresh.max(window.cwnd / 4 * 3);
        window.cwnd = initial_window;
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim::{Link, Sim};
    use super::super::{Algorithm, Congestion};
    use super::*;

    fn ack(delivered: u32) -> Ack {
        Ack { delivered, mss: 1000, cwnd_limited: true, ..Ack::default() }
    }

    #[test]
    fn slow_start_counts_bytes_with_a_limit() {
        let mut reno = NewReno::new(8);
        let mut window = Window { cwnd: 10_000, ssthresh: u32::MAX };
        reno.on_ack(&mut window, &ack(300));
        assert_eq!(window.cwnd, 10_300);
        reno.on_ack(&mut window, &ack(9_000));
        assert_eq!(window.cwnd, 18_300, "RFC 9406: L = 8");
        reno.on_timeout(&mut window, 8_000, 1000, true, 0);
        assert_eq!(window, Window { cwnd: 1000, ssthresh: 4000 });
        reno.on_ack(&mut window, &ack(9_000));
        assert_eq!(window.cwnd, 2000);
        window.cwnd = 40_000;
        // What limited transmit has added does not count.
        window.ssthresh = reno.on_congestion(&window, Signal::Loss, 42_000, 1000, 0);
        window.cwnd = 2000;
        reno.on_ack(&mut window, &ack(9_000));
        assert_eq!(window, Window { cwnd: 4000, ssthresh: 20_000 });
    }

    #[test]
    fn avoidance_adds_a_segment_a_window() {
        let mut reno = NewReno::new(8);
        let mut window = Window { cwnd: 10_000, ssthresh: 10_000 };
        for _ in 0..9 {
            reno.on_ack(&mut window, &ack(1000));
        }
        assert_eq!(window.cwnd, 10_000);
        reno.on_ack(&mut window, &ack(1000));
        assert_eq!(window.cwnd, 11_000);
    }

    #[test]
    fn a_second_time_out_keeps_the_threshold() {
        let mut reno = NewReno::new(8);
        let before = Window { cwnd: 20_000, ssthresh: u32::MAX };
        let mut window = before;
        reno.on_timeout(&mut window, 20_000, 1000, true, 0);
        reno.on_timeout(&mut window, 1_000, 1000, false, 0);
        assert_eq!(window, Window { cwnd: 1000, ssthresh: 10_000 });
        reno.on_undo(&mut window);
        assert_eq!(window, before, "what the first one took is given back");
    }

    #[test]
    fn a_spurious_reduction_is_taken_back_once() {
        let mut reno = NewReno::new(8);
        let before = Window { cwnd: 20_000, ssthresh: u32::MAX };
        let mut window = before;
        window.ssthresh = reno.on_congestion(&window, Signal::Loss, 20_000, 1000, 0);
        window.cwnd = window.ssthresh;
        assert_eq!(window, Window { cwnd: 10_000, ssthresh: 10_000 });
        reno.on_undo(&mut window);
        assert_eq!(window, before);
        window.cwnd = 5_000;
        reno.on_undo(&mut window);
        assert_eq!(window.cwnd, 5_000);
    }

    #[test]
    fn silence_costs_the_window_but_not_the_way_back() {
        let mut reno = NewReno::new(8);
        let mut window = Window { cwnd: 40_000, ssthresh: 20_000 };
        reno.on_idle(&mut window, 10_000, 1_000_000, 0);
        assert_eq!(window, Window { cwnd: 10_000, ssthresh: 30_000 });
        window.cwnd = 5_000;
        reno.on_idle(&mut window, 10_000, 1_000_000, 0);
        assert_eq!(window, Window { cwnd: 5_000, ssthresh: 30_000 });
    }

    #[test]
    fn recovery_and_an_idle_application_grow_nothing() {
        let mut reno = NewReno::new(8);
        for ssthresh in [10_000, u32::MAX] {
            let mut window = Window { cwnd: 10_000, ssthresh };
            for _ in 0..100 {
                reno.on_ack(&mut window, &Ack { in_recovery: true, ..ack(1000) });
                reno.on_ack(&mut window, &Ack { cwnd_limited: false, ..ack(1000) });
            }
            assert_eq!(window.cwnd, 10_000);
        }
    }

    #[test]
    fn the_window_never_overflows() {
        let mut reno = NewReno::new(8);
        let mut window = Window { cwnd: CWND_MAX - 1, ssthresh: u32::MAX };
        reno.on_ack(&mut window, &Ack { mss: 60_000, ..ack(u32::MAX) });
        assert_eq!(window.cwnd, CWND_MAX);
    }

    /// On a path of 10 Mbit/s and 40 ms (34 segments) with as long a queue the window is a saw: a
    /// segment each round trip, half of it at a loss.
    #[test]
    fn on_a_path_it_is_a_saw() {
        let link = Link { bytes_per_s: 1_250_000, rtt_us: 40_000, ..Link::default() }.queue_bdps(1);
        let mut sim = Sim::new(link, 1);
        let flow = sim.add(Congestion::new(Algorithm::NewReno, 8));
        sim.run_until(10_000_000);
        let mut reductions = 0;
        let mut increments = 0;
        let mut last = sim.flow(flow).window;
        for step in 1..2000 {
            sim.run_until(10_000_000 + step * 40_000);
            let window = sim.flow(flow).window;
            if window.cwnd < last.cwnd {
                reductions += 1;
                let ratio = f64::from(window.cwnd) / f64::from(last.cwnd);
                assert!((0.4..0.62).contains(&ratio), "{ratio}");
            } else {
                increments += window.cwnd - last.cwnd;
            }
            last = window;
        }
        assert!((5..60).contains(&reductions), "{reductions}");
        // At most a segment a round trip; and the queue makes those longer than 40 ms.
        assert!(increments <= 2000 * sim.link.mss);
        assert!(increments >= 2000 * sim.link.mss / 3, "{increments}");
        assert!(sim.utilisation(flow) > 0.95);
    }
}
