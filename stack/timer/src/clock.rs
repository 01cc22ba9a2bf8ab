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

    /// Compares the clock with a better one, if there is one, and steers it back. To be called
    /// about once a second by whoever owns the clock; moments never go back by it.
    fn check(&self) {}
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

    fn check(&self) {
        (**self).check();
    }
}

/// What a [`TscClock`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockSource {
    /// The time-stamp counter, which is invariant.
    Tsc,
    /// The system's monotonic clock: the counter is not invariant, or there is none.
    System,
    /// The system's monotonic clock, because the counter was seen to run away from it.
    SystemAfterDrift,
}

/// Between two checks at the least: in less time the reading itself would look like drift.
const CHECK_NANOS_MIN: u64 = 100_000_000;
/// A pair of readings of both clocks that took longer says nothing: something came between.
const PAIR_NANOS_MAX: u64 = 20_000;
/// How far the counter may run from the system's clock between two checks, in millionths, before it
/// is not believed any more. Calibration is good to some tens, and NTP steers by at most 500.
const DRIFT_PPM_MAX: u64 = 2_000;
/// Over how many nanoseconds an error is worked off; over twice the time between two checks if that is
/// longer, since what was set is steered with until the next.
const STEER_NANOS: i128 = 1_000_000_000;
/// The most that steering changes the rate, in millionths, as the kernel's own.
const STEER_PPM_MAX: i128 = 500;
/// The part of a rate behind the point.
const RATE_BITS: u32 = 32;

/// A line through time: at `raw` it is `nanos`, and each further count is `rate` / 2^32 ns more.
#[derive(Clone, Copy, Debug)]
struct Line {
    raw: u64,
    nanos: u64,
    rate: u64,
}

impl Line {
    #[inline]
    fn at(&self, raw: u64) -> u64 {
        if raw >= self.raw {
            self.nanos.saturating_add(scale(raw - self.raw, self.rate))
        } else {
            self.nanos.saturating_sub(scale(self.raw - raw, self.rate))
        }
    }
}

#[inline]
fn scale(counts: u64, rate: u64) -> u64 {
    ((u128::from(counts) * u128::from(rate)) >> RATE_BITS) as u64
}

/// Readings of both clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Pair {
    raw: u64,
    system_ns: u64,
}

/// The processor's time-stamp counter, scaled to nanoseconds since the clock was made.
///
/// A reading is one `rdtsc`, one multiplication and one shift. [`Clock::check`] measures the counter
/// against the system's monotonic clock over all the time since the start, and steers as slowly as
/// the kernel does. Where the counter does not run at a constant rate, or is caught running away,
/// the system's clock is read instead.
#[derive(Clone, Debug)]
pub struct TscClock {
    source: quanta::Clock,
    system_epoch: std::time::Instant,
    epoch: Pair,
    last: Cell<Pair>,
    line: Cell<Line>,
    /// Set once the counter is not believed: what the clock said then.
    fallen_back: Cell<Option<Pair>>,
    drift_ppb: Cell<i64>,
}

impl TscClock {
    /// Makes a clock whose epoch is now. The first one of a process calibrates the counter, which
    /// takes up to 200 ms.
    pub fn new() -> Self {
        let source = quanta::Clock::new();
        let system_epoch = std::time::Instant::now();
        let raw = source.raw();
        let epoch = Pair { raw, system_ns: 0 };
        let rate = source.delta_as_nanos(0, 1 << RATE_BITS);
        Self {
            source,
            system_epoch,
            epoch,
            last: Cell::new(epoch),
            line: Cell::new(Line { raw, nanos: 0, rate }),
            fallen_back: Cell::new(None),
            drift_ppb: Cell::new(0),
        }
    }

    /// The counter itself, for measuring how long something takes: cheaper than [`Clock::now`].
    #[inline]
    pub fn raw(&self) -> u64 {
        self.source.raw()
    }

    /// Nanoseconds between two readings of [`Self::raw`]; zero if they are in the wrong order.
    #[inline]
    pub fn nanos_between(&self, start_raw: u64, end_raw: u64) -> u64 {
        scale(end_raw.saturating_sub(start_raw), self.line.get().rate)
    }

    /// The moment of a reading of [`Self::raw`], as far as the counter is right.
    #[inline]
    pub fn instant_of(&self, raw: u64) -> Instant {
        Instant::from_nanos(self.line.get().at(raw))
    }

    /// What is read.
    pub fn source(&self) -> ClockSource {
        if self.fallen_back.get().is_some() {
            ClockSource::SystemAfterDrift
        } else if self.source.delta_as_nanos(0, 1 << RATE_BITS) == 1 << RATE_BITS {
            // One count a nanosecond: no counter runs at just that.
            ClockSource::System
        } else {
            ClockSource::Tsc
        }
    }

    /// How much the counter ran faster than the system's clock between the last two checks, in
    /// millionths.
    pub fn drift_ppm(&self) -> f64 {
        self.drift_ppb.get() as f64 / 1e3
    }

    fn system_ns(&self) -> u64 {
        u64::try_from(self.system_epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Reads both clocks at once, as well as that can be done.
    fn pair(&self) -> Option<Pair> {
        (0..4).find_map(|_| {
            let before = self.raw();
            let system_ns = self.system_ns();
            let took = self.raw().saturating_sub(before);
            let raw = before + took / 2;
            (scale(took, self.line.get().rate) < PAIR_NANOS_MAX).then_some(Pair { raw, system_ns })
        })
    }

    fn check_pair(&self, pair: Pair) {
        let (last, line) = (self.last.get(), self.line.get());
        let system = pair.system_ns.saturating_sub(last.system_ns);
        if system < CHECK_NANOS_MIN || self.fallen_back.get().is_some() {
            return;
        }
        let here = line.at(pair.raw);
        // Against the rate of the whole past, not that which is being steered with.
        let counted = scale(pair.raw.saturating_sub(last.raw), self.true_rate(last, line.rate));
        let drift = i128::from(counted) - i128::from(system);
        self.drift_ppb.set((drift * 1_000_000_000 / i128::from(system)) as i64);
        if drift.unsigned_abs() * 1_000_000 > u128::from(system) * u128::from(DRIFT_PPM_MAX) {
            self.fallen_back.set(Some(Pair { raw: here, system_ns: pair.system_ns }));
            return;
        }
        self.last.set(pair);
        let rate = self.true_rate(pair, line.rate);
        let error = i128::from(here) - i128::from(pair.system_ns);
        let most = i128::from(rate) * STEER_PPM_MAX / 1_000_000;
        let over = STEER_NANOS.max(2 * i128::from(system));
        let steer = (i128::from(rate) * error / over).clamp(-most, most);
        let rate = u64::try_from(i128::from(rate) - steer).unwrap_or(rate);
        self.line.set(Line { raw: pair.raw, nanos: here, rate });
    }

    /// Nanoseconds a count from the start until `until`, in [`Line::rate`]'s unit; `else_rate` if
    /// that is too short a time.
    fn true_rate(&self, until: Pair, else_rate: u64) -> u64 {
        let counts = until.raw.saturating_sub(self.epoch.raw);
        if until.system_ns < CHECK_NANOS_MIN || counts == 0 {
            return else_rate;
        }
        let rate = (u128::from(until.system_ns) << RATE_BITS) / u128::from(counts);
        u64::try_from(rate).unwrap_or(else_rate)
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
        if let Some(since) = self.fallen_back.get() {
            let passed = self.system_ns().saturating_sub(since.system_ns);
            return Instant::from_nanos(since.raw.saturating_add(passed));
        }
        self.instant_of(self.raw())
    }

    fn check(&self) {
        if let Some(pair) = self.pair() {
            self.check_pair(pair);
        }
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
        assert!(clock.now() >= clock.instant_of(clock.epoch.raw));
        assert_eq!(clock.nanos_between(2, 1), 0);
    }

    /// A clock whose counter runs at exactly `mhz`, read by hand.
    fn by_hand(mhz: u64) -> TscClock {
        let mut clock = TscClock::new();
        clock.epoch = Pair { raw: 1000, system_ns: 0 };
        clock.last.set(clock.epoch);
        let rate = (1_000 << RATE_BITS) / mhz;
        clock.line.set(Line { raw: 1000, nanos: 0, rate });
        clock
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_slow_error_of_calibration_is_steered_away() {
        // It counts 2500.1 MHz and is taken for 2500: 40 millionths too fast.
        let clock = by_hand(2500);
        let raw_at = |ns: u64| 1000 + (u128::from(ns) * 25_001 / 10_000) as u64;
        let mut last = Instant::ZERO;
        for second in 1..=20 {
            let system_ns = second * SECOND;
            let raw = raw_at(system_ns);
            let before = clock.instant_of(raw);
            assert!(before >= last, "it went back");
            clock.check_pair(Pair { raw, system_ns });
            assert!(clock.instant_of(raw).as_nanos().abs_diff(before.as_nanos()) <= 1, "it jumped");
            last = clock.instant_of(raw);
        }
        let end = clock.instant_of(raw_at(21 * SECOND)).as_nanos();
        assert!(end.abs_diff(21 * SECOND) < 1_000, "{end}");
        assert_ne!(clock.source(), ClockSource::SystemAfterDrift);
        assert!(clock.drift_ppm().abs() < 1.0, "{}", clock.drift_ppm());
    }

    /// An idle loop checks every eight seconds or so: it sleeps a second at a time.
    #[test]
    fn rare_checks_steer_no_further_than_need_be() {
        let clock = by_hand(2500);
        let raw_at = |ns: u64| 1000 + (u128::from(ns) * 25_001 / 10_000) as u64;
        for check in 1..=40 {
            let system_ns = check * 8 * SECOND;
            clock.check_pair(Pair { raw: raw_at(system_ns), system_ns });
        }
        let end = clock.instant_of(raw_at(328 * SECOND)).as_nanos();
        assert!(end.abs_diff(328 * SECOND) < 1_000, "{}", end as i64 - (328 * SECOND) as i64);
    }

    #[test]
    fn a_counter_that_runs_away_is_not_believed() {
        // A machine that was moved or put to sleep: the counter stands still for half a second, or
        // leaps ahead.
        for raw in [1000 + 2500 * 1_500_000, 1000 + 2500 * 9_000_000] {
            let clock = by_hand(2500);
            clock.check_pair(Pair { raw: 1000 + 2500 * 1_000_000, system_ns: SECOND });
            assert_ne!(clock.source(), ClockSource::SystemAfterDrift);
            let before = clock.instant_of(raw);
            clock.check_pair(Pair { raw, system_ns: 2 * SECOND });
            assert_eq!(clock.source(), ClockSource::SystemAfterDrift);
            assert!(clock.now() >= before, "it went back");
            let last = clock.now();
            clock.check();
            assert!(clock.now() >= last);
        }
    }

    #[test]
    fn checks_in_a_row_say_nothing() {
        let clock = by_hand(1000);
        clock.check_pair(Pair { raw: 1000 + 50_000_000, system_ns: 10_000_000 });
        assert_eq!(clock.drift_ppm(), 0.0);
        assert_ne!(clock.source(), ClockSource::SystemAfterDrift);
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
