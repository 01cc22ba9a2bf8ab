//! Rate-based clocking: when each event of a train is to come, so that a rate holds although timers
//! are late.

use std::time::Duration;

use crate::Instant;

/// Intervals are no longer than this.
const INTERVAL_NANOS_MAX: u64 = 3_600_000_000_000;

/// How far a train may be behind and still catch up with all of it. What is further behind, because
/// the clock jumped or the core was away, is given up: nobody waits for it any more.
const BEHIND_NANOS_MAX: u64 = 100_000_000;

/// The clock of a train of events, packets as a rule (Aron and Druschel, Soft Timers, SOSP'99:
/// rate-based clocking).
///
/// It has two parameters. Events come at the *target interval*. A timer that fires late puts the
/// train behind; then events come at the *minimum burst interval*, which is shorter, until the
/// average is back at the target:
///
/// ```
/// # use std::time::Duration;
/// # use millstream_timer::{Instant, RateClock};
/// let at = Instant::from_micros;
/// let mut clock = RateClock::new(Duration::from_micros(40), Duration::from_micros(12))?;
/// clock.begin(at(1000));
/// clock.fire(at(1000));
/// assert_eq!(clock.next_at(), at(1040));
/// // Late by 50 us: two more follow closely, and then the average is back.
/// clock.fire(at(1090));
/// assert_eq!(clock.next_at(), at(1102));
/// clock.fire(at(1102));
/// assert_eq!(clock.next_at(), at(1120));
/// # Ok::<(), millstream_timer::RateClockError>(())
/// ```
///
/// It reads no clock and sets no timer: whoever has it asks [`next_at`](Self::next_at), sees to
/// being called then, and says with [`fire`](Self::fire) when the event came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateClock {
    target_nanos: u64,
    min_burst_nanos: u64,
    /// When the next event is due if none was ever late.
    due: Instant,
    /// When it may come: never before it is due, nor sooner after the last one than the minimum
    /// burst interval.
    next: Instant,
}

/// Two intervals that make no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateClockError {
    /// No time between events.
    #[error("a target interval of zero is no rate; give at least a nanosecond")]
    Zero,
    /// More than an hour between events.
    #[error("a target interval of {} s is too long; give at most 3600 s", .0.as_secs())]
    TooLong(Duration),
    /// It could never catch up.
    #[error(
        "the minimum burst interval ({min_burst:?}) is longer than the target interval ({target:?}); \
         make it as long or shorter"
    )]
    BurstTooLong {
        /// The target interval.
        target: Duration,
        /// The minimum burst interval.
        min_burst: Duration,
    },
}

impl RateClock {
    /// A clock whose first train has not begun: its first event may come at any time.
    ///
    /// # Errors
    /// [`RateClockError`] if the target interval is zero or above an hour, or the minimum burst
    /// interval is longer than it.
    pub fn new(target: Duration, min_burst: Duration) -> Result<Self, RateClockError> {
        if target.is_zero() {
            return Err(RateClockError::Zero);
        }
        if target > Duration::from_nanos(INTERVAL_NANOS_MAX) {
            return Err(RateClockError::TooLong(target));
        }
        if min_burst > target {
            return Err(RateClockError::BurstTooLong { target, min_burst });
        }
        Ok(Self {
            target_nanos: target.as_nanos() as u64,
            min_burst_nanos: min_burst.as_nanos() as u64,
            ..Self::for_sizes()
        })
    }

    /// A clock for events of different sizes, to be told of by [`Self::fire_for`].
    pub const fn for_sizes() -> Self {
        Self { target_nanos: 0, min_burst_nanos: 0, due: Instant::ZERO, next: Instant::ZERO }
    }

    /// The target interval.
    pub const fn target_interval(&self) -> Duration {
        Duration::from_nanos(self.target_nanos)
    }

    /// The minimum burst interval.
    pub const fn min_burst_interval(&self) -> Duration {
        Duration::from_nanos(self.min_burst_nanos)
    }

    /// Begins a train at `now`, or goes on with one that had nothing to send: what was not sent
    /// because there was nothing is not made up for. An event comes no sooner than it would have.
    #[inline]
    pub fn begin(&mut self, now: Instant) {
        self.due = self.due.max(now);
        self.next = self.next.max(now);
    }

    /// When the next event may come.
    #[inline]
    pub const fn next_at(&self) -> Instant {
        self.next
    }

    /// Nanoseconds by which the train is behind at `now`, as far as it will catch up.
    #[inline]
    pub fn behind_nanos(&self, now: Instant) -> u64 {
        now.nanos_since(self.due).min(BEHIND_NANOS_MAX)
    }

    /// The event came at `now`, or if that is before [`Self::next_at`], counts as having come then.
    #[inline]
    pub fn fire(&mut self, now: Instant) {
        self.fire_for(now, self.target_nanos, self.min_burst_nanos);
    }

    /// As [`Self::fire`], for an event with intervals of its own behind it: a packet of so many
    /// bytes at a rate, and at the highest rate. Intervals above an hour are taken for an hour, and a
    /// minimum burst interval above the target for the target.
    #[inline]
    pub fn fire_for(&mut self, now: Instant, target_nanos: u64, min_burst_nanos: u64) {
        let target_nanos = target_nanos.min(INTERVAL_NANOS_MAX);
        let at = now.max(self.next);
        if at.nanos_since(self.due) > BEHIND_NANOS_MAX {
            self.due = Instant::from_nanos(at.as_nanos() - BEHIND_NANOS_MAX);
        }
        self.due = self.due.plus_nanos(target_nanos);
        self.next = self.due.max(at.plus_nanos(min_burst_nanos.min(target_nanos)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nanos(nanos: u64) -> Duration {
        Duration::from_nanos(nanos)
    }

    fn clock(target: u64, min_burst: u64) -> RateClock {
        RateClock::new(nanos(target), nanos(min_burst)).unwrap()
    }

    #[test]
    fn intervals_that_make_no_clock_are_refused_in_one_sentence() {
        let hours = Duration::from_secs(7200);
        for (target, burst, says) in [
            (nanos(0), nanos(0), "a target interval of zero is no rate"),
            (hours, nanos(1), "a target interval of 7200 s is too long"),
            (Duration::MAX, nanos(1), "is too long"),
            (nanos(1000), nanos(1001), "the minimum burst interval (1.001µs) is longer than"),
        ] {
            let error = RateClock::new(target, burst).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains('\n'), "{error}");
        }
        assert_eq!(clock(1000, 0).target_interval(), nanos(1000));
        assert_eq!(clock(1000, 1000).min_burst_interval(), nanos(1000));
    }

    /// What was not sent for want of data is not made up for, unlike what was sent late.
    #[test]
    fn a_pause_is_no_delay() {
        let at = Instant::from_micros;
        let mut late = clock(100_000, 10_000);
        late.begin(at(1000));
        late.fire(at(1000));
        let mut paused = late;
        late.fire(at(5000));
        assert_eq!((late.next_at(), late.behind_nanos(at(5000))), (at(5010), 3_800_000));
        paused.begin(at(5000));
        paused.fire(at(5000));
        assert_eq!((paused.next_at(), paused.behind_nanos(at(5000))), (at(5100), 0));
        // Beginning anew does not get around the clock.
        paused.begin(at(5050));
        assert_eq!(paused.next_at(), at(5100));
    }

    /// After a jump of the clock the train does not run at the burst interval for ever.
    #[test]
    fn what_is_far_behind_is_given_up() {
        let mut clock = clock(1_000_000, 100_000);
        clock.begin(Instant::ZERO);
        let mut now = Instant::from_micros(3_600_000_000);
        let mut close = 0;
        for _ in 0..1000 {
            clock.fire(now);
            close += u32::from(clock.next_at().nanos_since(now) < 1_000_000);
            now = clock.next_at();
        }
        // 100 ms behind, of which each event makes good 0.9 ms.
        assert!((111..=113).contains(&close), "{close}");
        // The end of time is no end of it.
        clock.fire(Instant::FAR_FUTURE);
        clock.fire(Instant::FAR_FUTURE);
        assert_eq!(clock.next_at(), Instant::FAR_FUTURE);
    }

    proptest! {
        /// However late timers fire: no event is early or too close to the one before, the mean
        /// interval is the target, and the train is never behind for longer than it takes to catch
        /// up at the minimum burst interval.
        #[test]
        fn the_average_holds(
            target in 1_000_u64..2_000_000,
            share in 0_u64..95,
            lateness in prop::collection::vec((0_u8..20, 0_u64..2_000_000), 1..400),
        ) {
            let min_burst = target * share / 100;
            let mut clock = clock(target, min_burst);
            let start = Instant::from_micros(1);
            clock.begin(start);
            let (mut last, mut behind_before) = (None::<Instant>, 0);
            for (n, (die, late)) in lateness.into_iter().enumerate() {
                let ideal = start.plus_nanos(n as u64 * target);
                // One timer in twenty is late.
                let now = clock.next_at().plus_nanos(if die == 0 { late } else { 0 });
                prop_assert!(now >= ideal, "never early");
                if let Some(last) = last {
                    prop_assert!(now.nanos_since(last) >= min_burst);
                }
                let behind = now.nanos_since(ideal);
                prop_assert_eq!(behind, clock.behind_nanos(now).max(behind.saturating_sub(BEHIND_NANOS_MAX)));
                if die != 0 {
                    // It makes good what a burst allows, to the nanosecond.
                    let made_good = if n == 0 { 0 } else { target - min_burst };
                    prop_assert_eq!(behind, u64::saturating_sub(behind_before, made_good));
                }
                prop_assume!(behind < BEHIND_NANOS_MAX);
                behind_before = behind;
                last = Some(now);
                clock.fire(now);
            }
        }

        /// No sequence of moments, forward or back, and no sizes break it.
        #[test]
        fn nothing_breaks_it(calls in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>()), 1..200)) {
            let mut clock = RateClock::for_sizes();
            let mut next = Instant::ZERO;
            for (now, target, burst, begins) in calls {
                let now = Instant::from_nanos(now);
                if begins {
                    clock.begin(now);
                }
                clock.fire_for(now, target, burst);
                prop_assert!(clock.next_at() >= next, "time does not go back");
                let at = now.max(next);
                prop_assert!(clock.next_at() >= at.plus_nanos(burst.min(target).min(INTERVAL_NANOS_MAX)));
                prop_assert!(clock.next_at().nanos_since(at) <= INTERVAL_NANOS_MAX.max(clock.due.nanos_since(at)));
                next = clock.next_at();
            }
        }
    }
}
