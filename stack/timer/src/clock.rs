//! Clocks: the processor's, and one that moves only when told.

use std::cell::Cell;
use std::rc::Rc;

use crate::{Instant, Stage};

/// Where moments come from.
pub trait Clock {
    /// This moment. Never earlier than what the same clock said before on the same core.
    fn now(&self) -> Instant;

    /// Whether time passes by what is done ([`Self::spend`]) rather than by itself.
    #[inline]
    fn spends(&self) -> bool {
        false
    }

    /// Something was done `count` times. Asked for only if [`Self::spends`].
    #[inline]
    fn spend(&self, _stage: Stage, _count: u64) {}
}

impl<C: Clock + ?Sized> Clock for &C {
    #[inline]
    fn now(&self) -> Instant {
        (**self).now()
    }

    #[inline]
    fn spends(&self) -> bool {
        (**self).spends()
    }

    #[inline]
    fn spend(&self, stage: Stage, count: u64) {
        (**self).spend(stage, count);
    }
}

/// The processor's time-stamp counter, scaled to nanoseconds since the clock was made.
///
/// A reading is one `rdtsc`, one multiplication and one shift. Where the counter does not run at a
/// constant rate the operating system's monotonic clock is read instead.
#[derive(Clone, Debug)]
pub struct TscClock {
    source: quanta::Clock,
    epoch_raw: u64,
}

impl TscClock {
    /// Makes a clock whose epoch is now. The first one of a process calibrates the counter, which
    /// takes up to 200 ms.
    pub fn new() -> Self {
        let source = quanta::Clock::new();
        let epoch_raw = source.raw();
        Self { source, epoch_raw }
    }

    /// The counter itself, for measuring how long something takes: cheaper than [`Clock::now`].
    #[inline]
    pub fn raw(&self) -> u64 {
        self.source.raw()
    }

    /// Nanoseconds between two readings of [`Self::raw`]; zero if they are in the wrong order.
    #[inline]
    pub fn nanos_between(&self, start_raw: u64, end_raw: u64) -> u64 {
        self.source.delta_as_nanos(start_raw, end_raw)
    }

    /// The moment of a reading of [`Self::raw`].
    #[inline]
    pub fn instant_of(&self, raw: u64) -> Instant {
        Instant::from_nanos(self.nanos_between(self.epoch_raw, raw))
    }
}

impl Default for TscClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TscClock {
    #[inline]
    fn now(&self) -> Instant {
        self.instant_of(self.raw())
    }
}

/// A clock that stands still until it is advanced. Clones are handles on the same clock.
#[derive(Clone, Debug, Default)]
pub struct VirtualClock(Rc<Cell<Instant>>);

impl VirtualClock {
    /// A clock at its epoch.
    pub fn new() -> Self {
        Self::default()
    }

    /// A clock at a moment.
    pub fn at(now: Instant) -> Self {
        Self(Rc::new(Cell::new(now)))
    }

    /// Moves to `then`, unless that is in the past: the clock never goes back.
    pub fn advance_to(&self, then: Instant) {
        self.0.set(self.0.get().max(then));
    }

    /// Moves on by `nanos` nanoseconds.
    pub fn advance_nanos(&self, nanos: u64) {
        self.0.set(self.0.get().plus_nanos(nanos));
    }
}

impl Clock for VirtualClock {
    #[inline]
    fn now(&self) -> Instant {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_clock_moves_on_with_the_system_clock() {
        let clock = TscClock::new();
        let (start, system) = (clock.now(), std::time::Instant::now());
        let mut last = start;
        while system.elapsed().as_millis() < 20 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
        // No upper bound: the test may be descheduled between any two readings.
        let nanos = clock.now().nanos_since(start);
        assert!(nanos > 15_000_000, "{nanos} ns");
        assert!(clock.now() >= clock.instant_of(clock.epoch_raw));
        assert_eq!(clock.nanos_between(2, 1), 0);
    }

    #[test]
    fn handles_share_a_virtual_clock_that_never_goes_back() {
        let clock = VirtualClock::at(Instant::from_micros(5));
        let handle = clock.clone();
        clock.advance_to(Instant::from_micros(7));
        clock.advance_to(Instant::from_micros(6));
        clock.advance_nanos(1);
        assert_eq!(handle.now(), Instant::from_nanos(7_001));
    }
}
