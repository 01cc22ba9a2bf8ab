//! Rate-based clocking: segments leave at the rate that the congestion controller wants, in bursts
//! of a millisecond, and not as ACKs come in.

use millstream_timer::Instant;

use crate::config::Pacing;
use crate::congestion::Controller;
use crate::tcb::{Env, Facts, Marks, Tcb};

/// Length of a burst at high rates.
const BURST_NANOS: u64 = 1_000_000;

/// Most bytes of a burst.
const BURST_BYTES_MAX: u64 = 64 * 1024;

impl Tcb {
    /// The earliest moment of the next segment with data; [`Instant::ZERO`] if it need not wait.
    /// [`Tcb::transmit`] sends no data before, and [`Tcb::deadline`] is no later.
    pub fn pacing_at(&self) -> Instant {
        if self.marks.contains(Marks::PACE_WAIT) { self.pace_at } else { Instant::ZERO }
    }

    /// Bytes a second at which segments are clocked out, or would be; 0: not known yet.
    pub fn pacing_rate(&self) -> u64 {
        self.congestion.pacing_rate(&self.window, self.rtt.srtt_us(), u32::from(self.mss))
    }

    /// Whether segments are to be clocked out.
    pub(crate) fn begin_pacing(&mut self, env: &Env<'_>) {
        let paced = match env.config.pacing {
            Pacing::Auto => self.congestion.owns_window(),
            Pacing::On => true,
            Pacing::Off => false,
        };
        self.facts.set(Facts::PACED, paced);
    }

    /// `count` bytes are sent.
    #[cold]
    pub(crate) fn pace(&mut self, env: &Env<'_>, count: u32) {
        let rate = self.pacing_rate();
        if rate == 0 {
            return;
        }
        let nanos = |bytes: u64| bytes.saturating_mul(1_000_000_000) / rate;
        let least = 2 * u64::from(self.mss);
        let burst = (rate.saturating_mul(BURST_NANOS) / 1_000_000_000)
            .clamp(least, BURST_BYTES_MAX.max(least));
        // What was not sent while there was nothing to send is not made up for.
        self.pace_at = self.pace_at.max(env.now).plus_nanos(nanos(u64::from(count)));
        if self.pace_at.nanos_since(env.now) >= nanos(burst) {
            self.marks.insert(Marks::PACE_WAIT);
        }
    }

    /// Ends a wait whose time has come.
    #[inline]
    pub(crate) fn end_pace_wait(&mut self, env: &Env<'_>) {
        if self.marks.contains(Marks::PACE_WAIT) && self.pace_at <= env.now {
            self.marks.remove(Marks::PACE_WAIT);
        }
    }
}
