//! NewReno: slow start and congestion avoidance of RFC 5681, counted in bytes (RFC 3465).

use super::{CWND_MAX, Controller, Window};

/// The state of RFC 5681's controller with appropriate byte counting.
#[derive(Debug, Default)]
pub struct NewReno {
    /// Bytes acknowledged since the window last grew in congestion avoidance.
    acked: u32,
    /// Slow start follows a time-out: RFC 3465 section 2.3 then wants L = 1.
    after_timeout: bool,
}

impl Controller for NewReno {
    #[inline]
    fn on_ack(&mut self, window: &mut Window, acked: u32, mss: u32) {
        if window.cwnd < window.ssthresh {
            // RFC 3465 section 2.2, with L = 2.
            let limit = if self.after_timeout { mss } else { 2 * mss };
            window.cwnd = (window.cwnd + acked.min(limit)).min(CWND_MAX);
        } else {
            // RFC 3465 section 2.1: one segment for each window's worth of bytes.
            self.acked = self.acked.saturating_add(acked);
            if self.acked >= window.cwnd {
                self.acked -= window.cwnd;
                window.cwnd = (window.cwnd + mss).min(CWND_MAX);
            }
        }
    }

    fn on_loss(&mut self, _window: &Window, flight: u32, mss: u32) -> u32 {
        self.acked = 0;
        self.after_timeout = false;
        // RFC 5681 equation (4): half of what is out, which is not cwnd if the application or the
        // peer's window holds the sender back.
        (flight / 2).max(2 * mss)
    }

    fn on_timeout(&mut self, window: &mut Window, flight: u32, mss: u32, first: bool) {
        self.acked = 0;
        self.after_timeout = true;
        // RFC 5681 section 3.1: the threshold is held constant when the same segment times out
        // again.
        if first {
            window.ssthresh = (flight / 2).max(2 * mss);
        }
        window.cwnd = mss;
    }

    fn on_idle(&mut self, window: &mut Window, initial_window: u32) {
        // RFC 5681 section 4.1: the restart window.
        window.cwnd = window.cwnd.min(initial_window);
        self.acked = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_start_counts_bytes_with_a_limit() {
        let mut reno = NewReno::default();
        let mut window = Window { cwnd: 10_000, ssthresh: u32::MAX };
        reno.on_ack(&mut window, 300, 1000);
        assert_eq!(window.cwnd, 10_300);
        reno.on_ack(&mut window, 9_000, 1000);
        assert_eq!(window.cwnd, 12_300);
        reno.on_timeout(&mut window, 8_000, 1000, true);
        assert_eq!(window, Window { cwnd: 1000, ssthresh: 4000 });
        reno.on_ack(&mut window, 9_000, 1000);
        assert_eq!(window.cwnd, 2000);
    }

    #[test]
    fn avoidance_adds_a_segment_a_window() {
        let mut reno = NewReno::default();
        let mut window = Window { cwnd: 10_000, ssthresh: 10_000 };
        for _ in 0..9 {
            reno.on_ack(&mut window, 1000, 1000);
        }
        assert_eq!(window.cwnd, 10_000);
        reno.on_ack(&mut window, 1000, 1000);
        assert_eq!(window.cwnd, 11_000);
    }

    #[test]
    fn a_second_time_out_keeps_the_threshold() {
        let mut reno = NewReno::default();
        let mut window = Window { cwnd: 20_000, ssthresh: u32::MAX };
        reno.on_timeout(&mut window, 20_000, 1000, true);
        reno.on_timeout(&mut window, 1_000, 1000, false);
        assert_eq!(window, Window { cwnd: 1000, ssthresh: 10_000 });
    }

    #[test]
    fn the_window_never_overflows() {
        let mut reno = NewReno::default();
        let mut window = Window { cwnd: CWND_MAX - 1, ssthresh: u32::MAX };
        reno.on_ack(&mut window, u32::MAX, 60_000);
        assert_eq!(window.cwnd, CWND_MAX);
    }
}
