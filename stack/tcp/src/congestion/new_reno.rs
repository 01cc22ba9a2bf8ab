//! NewReno: slow start and congestion avoidance of RFC 5681, counted in bytes (RFC 3465).

use super::{Ack, CWND_MAX, Controller, Signal, Window};

/// The state of RFC 5681's controller with appropriate byte counting.
#[derive(Debug, Default)]
pub struct NewReno {
    /// Bytes acknowledged since the window last grew in congestion avoidance.
    acked: u32,
    /// Slow start follows a time-out: RFC 3465 section 2.3 then wants L = 1.
    after_timeout: bool,
    /// The window and the threshold before the last reduction.
    prior: Option<Window>,
}

impl NewReno {
    fn remember(&mut self, window: &Window) {
        self.prior = Some(*window);
        self.acked = 0;
    }
}

impl Controller for NewReno {
    #[inline]
    fn on_ack(&mut self, window: &mut Window, ack: &Ack) {
        if ack.in_recovery || !ack.cwnd_limited {
            return;
        }
        if window.cwnd < window.ssthresh {
            // RFC 3465 section 2.2, with L = 2.
            let limit = if self.after_timeout { ack.mss } else { ack.mss.saturating_mul(2) };
            window.cwnd = window.cwnd.saturating_add(ack.delivered.min(limit)).min(CWND_MAX);
        } else {
            // RFC 3465 section 2.1: one segment for each window's worth of bytes.
            self.acked = self.acked.saturating_add(ack.delivered);
            if self.acked >= window.cwnd {
                self.acked -= window.cwnd;
                window.cwnd = window.cwnd.saturating_add(ack.mss).min(CWND_MAX);
            }
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
        // peer's window holds the sender back.
        (flight / 2).max(mss.saturating_mul(2))
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
            window.ssthresh = (flight / 2).max(mss.saturating_mul(2));
        }
        self.acked = 0;
        self.after_timeout = true;
        window.cwnd = mss;
    }

    fn on_undo(&mut self, window: &mut Window) {
        if let Some(prior) = self.prior.take() {
            window.cwnd = window.cwnd.max(prior.cwnd);
            window.ssthresh = window.ssthresh.max(prior.ssthresh);
            self.after_timeout = false;
        }
    }

    fn on_idle(&mut self, window: &mut Window, initial_window: u32, _idle_us: u64, _now_us: u64) {
        // RFC 5681 section 4.1: the restart window.
        window.cwnd = window.cwnd.min(initial_window);
        self.acked = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(delivered: u32) -> Ack {
        Ack { delivered, mss: 1000, cwnd_limited: true, ..Ack::default() }
    }

    #[test]
    fn slow_start_counts_bytes_with_a_limit() {
        let mut reno = NewReno::default();
        let mut window = Window { cwnd: 10_000, ssthresh: u32::MAX };
        reno.on_ack(&mut window, &ack(300));
        assert_eq!(window.cwnd, 10_300);
        reno.on_ack(&mut window, &ack(9_000));
        assert_eq!(window.cwnd, 12_300);
        reno.on_timeout(&mut window, 8_000, 1000, true, 0);
        assert_eq!(window, Window { cwnd: 1000, ssthresh: 4000 });
        reno.on_ack(&mut window, &ack(9_000));
        assert_eq!(window.cwnd, 2000);
    }

    #[test]
    fn avoidance_adds_a_segment_a_window() {
        let mut reno = NewReno::default();
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
        let mut reno = NewReno::default();
        let mut window = Window { cwnd: 20_000, ssthresh: u32::MAX };
        reno.on_timeout(&mut window, 20_000, 1000, true, 0);
        reno.on_timeout(&mut window, 1_000, 1000, false, 0);
        assert_eq!(window, Window { cwnd: 1000, ssthresh: 10_000 });
    }

    #[test]
    fn a_spurious_reduction_is_taken_back_once() {
        let mut reno = NewReno::default();
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
    fn the_window_never_overflows() {
        let mut reno = NewReno::default();
        let mut window = Window { cwnd: CWND_MAX - 1, ssthresh: u32::MAX };
        reno.on_ack(&mut window, &Ack { mss: 60_000, ..ack(u32::MAX) });
        assert_eq!(window.cwnd, CWND_MAX);
    }
}
