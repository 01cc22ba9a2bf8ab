//! Rate-based clocking: segments leave at a rate, and not as ACKs come in.
//!
//! The rate is the congestion controller's, or a lower one that the application has set
//! ([`PacingRate`]). Each segment is an event of a [`RateClock`]: it leaves at its moment, and a
//! timer that was late is made up for. What is known of a path before the first segment (`start`)
//! takes the place of slow start.

use millstream_timer::{Instant, RateClock};

use crate::config::Clocking;
use crate::congestion::{Controller, RATE_MAX};
use crate::start::{KnownStart, Start};
use crate::stats::TcpStats;
use crate::tcb::{Env, Facts, Marks, Tcb};

/// A moment so close is now: above three gigabits a second several segments leave at once, so that no
/// connection wants more than a quarter of a million turns a second.
const GRAIN_NANOS: u64 = 4_000;

/// Rates that cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacingRateError {
    /// Nothing would ever be sent.
    #[error("a pacing rate of 0 would send nothing; give at least {least} bytes a second", least = PacingRate::MIN)]
    Zero,
    /// A segment would take longer than time-outs allow.
    #[error("a pacing rate of {0} bytes a second is too low; give at least {least}", least = PacingRate::MIN)]
    TooLow(u64),
    /// Beyond any link.
    #[error("a pacing rate of {0} bytes a second is beyond any link; give at most {most}", most = PacingRate::MAX)]
    TooHigh(u64),
    /// It could never catch up.
    #[error(
        "the burst rate ({burst} bytes a second) is below the pacing rate ({rate}); make it as high \
         or higher"
    )]
    BurstTooLow {
        /// The rate.
        rate: u64,
        /// The burst rate.
        burst: u64,
    },
}

/// The most that a connection sends (`SO_MAX_PACING_RATE`), and how fast it catches up: the two
/// parameters of rate-based clocking, in bytes of payload a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacingRate {
    bytes_per_s: u64,
    burst_bytes_per_s: u64,
}

impl PacingRate {
    /// Least rate: a segment takes a second and a half.
    pub const MIN: u64 = 1000;
    /// Highest rate: beyond any link.
    pub const MAX: u64 = RATE_MAX;

    /// So many bytes of payload a second, and twice as many while it catches up with late timers.
    ///
    /// # Errors
    /// [`PacingRateError`] for rates below [`Self::MIN`] or above [`Self::MAX`].
    pub const fn new(bytes_per_s: u64) -> Result<Self, PacingRateError> {
        match bytes_per_s {
            0 => Err(PacingRateError::Zero),
            rate if rate < Self::MIN => Err(PacingRateError::TooLow(rate)),
            rate if rate > Self::MAX => Err(PacingRateError::TooHigh(rate)),
            _ => Ok(Self { bytes_per_s, burst_bytes_per_s: 2 * bytes_per_s }),
        }
    }

    /// As it is, but catching up at another rate: a segment at this rate is the minimum burst
    /// interval. As high as the rate itself: it never catches up.
    ///
    /// # Errors
    /// [`PacingRateError::BurstTooLow`]: below the rate.
    pub const fn with_burst(self, burst_bytes_per_s: u64) -> Result<Self, PacingRateError> {
        if burst_bytes_per_s < self.bytes_per_s {
            let (rate, burst) = (self.bytes_per_s, burst_bytes_per_s);
            return Err(PacingRateError::BurstTooLow { rate, burst });
        }
        Ok(Self { burst_bytes_per_s, ..self })
    }

    /// Bytes of payload a second.
    pub const fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    /// Bytes of payload a second while it catches up.
    pub const fn burst_bytes_per_s(&self) -> u64 {
        self.burst_bytes_per_s
    }
}

/// What a connection has that is clocked out; in a box of its own, since most are not.
#[derive(Debug)]
pub(crate) struct Pacer {
    clock: RateClock,
    /// When its last wait ended, as the loop saw it.
    waited_until: Instant,
    /// What the application has set.
    pub(crate) fixed: Option<PacingRate>,
    pub(crate) start: Start,
}

impl Default for Pacer {
    fn default() -> Self {
        Self {
            clock: RateClock::for_sizes(),
            waited_until: Instant::ZERO,
            fixed: None,
            start: Start::default(),
        }
    }
}

impl Pacer {
    /// The rate that is left of what the controller wants (0: it does not know), when so many bytes
    /// have been acknowledged.
    fn limit(&self, wanted: u64, acked_total: u64) -> u64 {
        let fixed = self.fixed.map_or(RATE_MAX, |rate| rate.bytes_per_s);
        let most = fixed.min(self.start.rate(acked_total));
        match wanted {
            0 if most == RATE_MAX => 0,
            0 => most,
            wanted => wanted.min(most),
        }
    }
}

/// Nanoseconds that `bytes` take at a rate, rounded up: no rate is exceeded.
fn nanos_of(bytes: u32, bytes_per_s: u64) -> u64 {
    (u64::from(bytes) * 1_000_000_000).div_ceil(bytes_per_s.max(1))
}

impl TcpStats {
    /// A segment could leave `late_nanos` after its moment, since the loop was elsewhere.
    fn count_late(&mut self, late_nanos: u64) {
        let bucket = (u64::BITS - (late_nanos / 1000).leading_zeros()) as usize;
        let last = self.pacing_late.len() - 1;
        self.pacing_late[bucket.min(last)] += 1;
    }
}

impl Tcb {
    /// The earliest moment of the next segment with data; [`Instant::ZERO`] if it need not wait.
    /// [`Tcb::transmit`] sends no data before, and [`Tcb::deadline`] is no later.
    pub fn pacing_at(&self) -> Instant {
        if self.marks.contains(Marks::PACE_WAIT) { self.pace_at() } else { Instant::ZERO }
    }

    #[cold]
    pub(crate) fn pace_at(&self) -> Instant {
        self.pacer.as_ref().map_or(Instant::ZERO, |pacer| pacer.clock.next_at())
    }

    /// Bytes a second at which segments are clocked out, or would be; 0: not known yet.
    pub fn pacing_rate(&self) -> u64 {
        let (srtt_us, mss) = (self.rtt.srtt_us(), u32::from(self.mss));
        let wanted = self.congestion.pacing_rate(&self.window, srtt_us, mss);
        match &self.pacer {
            Some(pacer) => pacer.limit(wanted, self.acked_total),
            None => wanted,
        }
    }

    /// Sends no faster than this (`SO_MAX_PACING_RATE`), whatever the windows allow; `None`: as the
    /// congestion controller wants. With [`Clocking::Rate`] a connection that has not sent yet
    /// takes this for the path's rate and starts with it, without slow start. Allocates.
    pub fn set_pacing_rate(&mut self, env: &mut Env<'_>, rate: Option<PacingRate>) {
        if rate.is_none() && self.pacer.is_none() {
            return;
        }
        self.pacer.get_or_insert_default().fixed = rate;
        self.begin_pacing(env);
        self.start_at_fixed_rate(env);
    }

    /// What the application has set.
    pub fn fixed_pacing_rate(&self) -> Option<PacingRate> {
        self.pacer.as_ref().and_then(|pacer| pacer.fixed)
    }

    /// Whether segments are to be clocked out.
    pub(crate) fn begin_pacing(&mut self, env: &Env<'_>) {
        let fixed = self.fixed_pacing_rate().is_some();
        let paced = match env.config.clocking {
            Clocking::Auto => fixed || self.congestion.owns_window(),
            Clocking::Rate => true,
            Clocking::Ack => fixed,
        };
        self.facts.set(Facts::PACED, paced);
        if paced {
            self.pacer.get_or_insert_default();
        } else {
            self.marks.remove(Marks::PACE_WAIT);
        }
    }

    /// `count` bytes are sent.
    #[cold]
    pub(crate) fn pace(&mut self, env: &Env<'_>, count: u32) {
        let rate = self.pacing_rate();
        let Some(pacer) = self.pacer.as_deref_mut() else { return };
        if rate == 0 {
            return;
        }
        if pacer.waited_until != env.now {
            // It was not the clock that held this segment back: no time is made up for.
            pacer.clock.begin(env.now);
        }
        let burst = match pacer.fixed {
            Some(fixed) if fixed.bytes_per_s == rate => fixed.burst_bytes_per_s,
            _ => 2 * rate,
        };
        pacer.clock.fire_for(env.now, nanos_of(count, rate), nanos_of(count, burst));
        if pacer.clock.next_at() > env.now.plus_nanos(GRAIN_NANOS) {
            self.marks.insert(Marks::PACE_WAIT);
        }
    }

    /// Ends a wait whose time has come.
    #[inline]
    pub(crate) fn end_pace_wait(&mut self, env: &mut Env<'_>) {
        if self.marks.contains(Marks::PACE_WAIT) {
            self.end_wait(env);
        }
    }

    #[cold]
    fn end_wait(&mut self, env: &mut Env<'_>) {
        let Some(pacer) = self.pacer.as_deref_mut() else { return };
        let at = pacer.clock.next_at();
        if at <= env.now {
            pacer.waited_until = env.now;
            env.stats.count_late(env.now.nanos_since(at));
            self.marks.remove(Marks::PACE_WAIT);
        }
    }

    /// How a start at a known rate went.
    pub fn known_start(&self) -> KnownStart {
        self.pacer.as_ref().map_or(KnownStart::None, |pacer| pacer.start.outcome(self.acked_total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_that_cannot_be_kept_are_refused_in_one_sentence() {
        for (rate, says) in [
            (0, "a pacing rate of 0 would send nothing; give at least 1000 bytes a second"),
            (999, "a pacing rate of 999 bytes a second is too low; give at least 1000"),
            (
                u64::MAX,
                "a pacing rate of 18446744073709551615 bytes a second is beyond any link; give at \
                 most 1099511627776",
            ),
        ] {
            assert_eq!(PacingRate::new(rate).unwrap_err().to_string(), says);
        }
        let rate = PacingRate::new(1_000_000).unwrap();
        assert_eq!((rate.bytes_per_s(), rate.burst_bytes_per_s()), (1_000_000, 2_000_000));
        assert_eq!(
            rate.with_burst(999_999).unwrap_err().to_string(),
            "the burst rate (999999 bytes a second) is below the pacing rate (1000000); make it as \
             high or higher"
        );
        assert_eq!(rate.with_burst(1_000_000).unwrap().burst_bytes_per_s(), 1_000_000);
        assert!(
            PacingRate::new(PacingRate::MAX).is_ok() && PacingRate::new(PacingRate::MIN).is_ok()
        );
    }

    #[test]
    fn lateness_is_counted_by_powers_of_two() {
        let mut stats = TcpStats::default();
        for nanos in [0, 999, 1000, 1999, 2000, 4000, 1_000_000_000, u64::MAX] {
            stats.count_late(nanos);
        }
        assert_eq!(stats.pacing_late[..4], [2, 2, 1, 1]);
        assert_eq!(stats.pacing_late[15], 2);
    }

    #[test]
    fn the_lowest_of_all_limits_counts() {
        let mut pacer = Pacer::default();
        assert_eq!((pacer.limit(0, 0), pacer.limit(7_000, 0)), (0, 7_000));
        pacer.fixed = Some(PacingRate::new(5_000).unwrap());
        assert_eq!(
            (pacer.limit(0, 0), pacer.limit(7_000, 0), pacer.limit(3, 0)),
            (5_000, 5_000, 3)
        );
    }
}
