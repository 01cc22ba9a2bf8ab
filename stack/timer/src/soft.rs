//! Soft timers (Aron and Druschel, SOSP'99): events without interrupts.

use crate::wheel::{TICK_NANOS, TimerId, TimerWheel};
use crate::{Clock, Instant};

/// The soft-timer facility: the four operations of the paper, and cancelling.
///
/// The caller's loop passes trigger points: places where checking for a due event costs next to
/// nothing. At each it calls [`Self::trigger`] until that says `None`. A backup (a sleep that ends
/// in time, or a periodic interrupt) makes sure that trigger points are at most X = measure
/// resolution / interrupt clock resolution ticks apart. An event that is scheduled T ticks ahead
/// then fires after more than T and less than T + X + 1 ticks: one tick more, because scheduling
/// need not fall on the beginning of a tick.
#[derive(Debug)]
pub struct SoftTimers<C> {
    clock: C,
    wheel: TimerWheel,
    backup_ticks: u64,
}

impl<C: Clock> SoftTimers<C> {
    /// A facility for `events` pending events, whose backup runs `backup_hz` times a second (the
    /// paper's is 1000). A rate of 0 or above the measuring clock's is taken as the nearest one
    /// that makes sense.
    pub fn new(clock: C, events: usize, backup_hz: u64) -> Self {
        let wheel = TimerWheel::with_capacity(events, clock.now());
        let backup_ticks = MEASURE_HZ / backup_hz.clamp(1, MEASURE_HZ);
        Self { clock, wheel, backup_ticks }
    }

    /// Ticks a second of the measuring clock: one tick is 512 ns.
    pub fn measure_resolution(&self) -> u64 {
        MEASURE_HZ
    }

    /// The measuring clock in ticks. Its epoch is the underlying clock's.
    #[inline]
    pub fn measure_time(&self) -> u64 {
        self.clock.now().as_nanos() / TICK_NANOS
    }

    /// The lowest rate at which events are looked for, in hertz: that of the backup.
    pub fn interrupt_clock_resolution(&self) -> u64 {
        MEASURE_HZ / self.backup_ticks
    }

    /// X of the bound: the ticks that the backup may at most leave between trigger points.
    pub fn backup_ticks(&self) -> u64 {
        self.backup_ticks
    }

    /// Gives `token` back from [`Self::trigger`] after at least `ticks` ticks. `None`: there are as
    /// many pending events as there is room for.
    #[inline]
    pub fn schedule_soft_event(&mut self, ticks: u64, token: u32) -> Option<TimerId> {
        // The tick that has begun does not count: `ticks` whole ones must pass.
        let due = self.measure_time().saturating_add(ticks).saturating_add(1);
        self.wheel.insert(Instant::from_nanos(due.saturating_mul(TICK_NANOS)), token)
    }

    /// Takes an event back. `false`: it has fired, or was cancelled before.
    #[inline]
    pub fn cancel(&mut self, event: TimerId) -> bool {
        self.wheel.cancel(event)
    }

    /// A trigger point: one due event, if there is any. Call until `None`.
    ///
    /// A call's work is bounded. After a `None` it may be unfinished, if very many events were
    /// pending: then [`Self::sleep_until`] lies in the past, and the caller comes back in its next
    /// turn without sleeping.
    #[inline]
    pub fn trigger(&mut self) -> Option<u32> {
        self.trigger_at(self.clock.now())
    }

    /// A trigger point whose moment the caller has read from the same clock.
    #[inline]
    pub fn trigger_at(&mut self, now: Instant) -> Option<u32> {
        self.wheel.pop_expired(now)
    }

    /// Until when a caller without work may sleep: the next event, at most X ticks away.
    #[inline]
    pub fn sleep_until(&self) -> Instant {
        let backup = self.clock.now().plus_nanos(self.backup_ticks.saturating_mul(TICK_NANOS));
        self.wheel.next_deadline().min(backup)
    }

    /// The wheel underneath.
    pub fn wheel(&self) -> &TimerWheel {
        &self.wheel
    }

    /// The clock underneath.
    pub fn clock(&self) -> &C {
        &self.clock
    }
}

const MEASURE_HZ: u64 = 1_000_000_000 / TICK_NANOS;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VirtualClock;
    use proptest::prelude::*;

    #[test]
    fn resolutions_are_those_of_the_paper() {
        let timers = SoftTimers::new(VirtualClock::new(), 1, 1000);
        assert_eq!(timers.measure_resolution(), 1_953_125);
        assert_eq!(timers.interrupt_clock_resolution(), 1000);
        assert_eq!(timers.backup_ticks(), 1953);
        let extremes = SoftTimers::new(VirtualClock::new(), 1, 0);
        assert_eq!(extremes.interrupt_clock_resolution(), 1);
        let extremes = SoftTimers::new(VirtualClock::new(), 1, u64::MAX);
        assert_eq!(extremes.backup_ticks(), 1);
    }

    #[test]
    fn sleep_ends_for_the_next_event_or_the_backup() {
        let clock = VirtualClock::at(Instant::from_nanos(10 * TICK_NANOS + 1));
        let mut timers = SoftTimers::new(clock.clone(), 2, 1000);
        let backup = clock.now().plus_nanos(1953 * TICK_NANOS);
        assert_eq!(timers.sleep_until(), backup);
        let event = timers.schedule_soft_event(3, 1).unwrap();
        assert_eq!(timers.sleep_until(), Instant::from_nanos(14 * TICK_NANOS));
        assert!(timers.cancel(event));
        timers.schedule_soft_event(5000, 2).unwrap();
        assert_eq!(timers.sleep_until(), backup);
    }

    proptest! {
        /// The paper's bound, with trigger points at random moments and a backup that never sleeps
        /// longer than X ticks. Times in nanoseconds, so that parts of a tick count.
        #[test]
        fn an_event_fires_after_t_and_before_t_plus_x_plus_1(
            start in 0u64..1 << 50,
            backup_hz in prop::sample::select(vec![100u64, 1_000, 30_000, 900_000]),
            turns in prop::collection::vec((
                prop::collection::vec(prop_oneof![0u64..40, 0u64..3000, 0u64..100_000], 0..4),
                prop_oneof![Just(u64::MAX), 0u64..3000, 0u64..200_000],
                prop::bool::weighted(0.1),
            ), 1..150),
        ) {
            let clock = VirtualClock::at(Instant::from_nanos(start));
            let mut timers = SoftTimers::new(clock.clone(), 1000, backup_hz);
            let x = timers.measure_resolution() / timers.interrupt_clock_resolution();
            let mut events = Vec::new();
            let mut pending = 0;
            let mut turns = turns.into_iter();
            loop {
                let turn = turns.next();
                if turn.is_none() && pending == 0 {
                    break;
                }
                let (schedule, pause_nanos, cancel) = turn.unwrap_or((vec![], u64::MAX, false));
                for ticks in schedule {
                    let id = timers.schedule_soft_event(ticks, events.len() as u32).unwrap();
                    events.push(Some((id, clock.now(), ticks)));
                    pending += 1;
                }
                if cancel && let Some(Some((id, _, _))) = events.last() {
                    prop_assert!(timers.cancel(*id));
                    *events.last_mut().unwrap() = None;
                    pending -= 1;
                }
                let longest = clock.now().plus_nanos(x * TICK_NANOS);
                clock.advance_to(clock.now().plus_nanos(pause_nanos).min(longest));
                // Further turns at the same moment, as long as there is no leave to sleep.
                while timers.sleep_until() <= clock.now() {
                    let Some(token) = timers.trigger() else { continue };
                    let Some((_, since, ticks)) = events[token as usize].take() else {
                        panic!("event {token} fired twice, or was cancelled");
                    };
                    pending -= 1;
                    let nanos = clock.now().nanos_since(since);
                    prop_assert!(nanos > ticks * TICK_NANOS);
                    prop_assert!(nanos < (ticks + x + 1) * TICK_NANOS);
                }
                prop_assert_eq!(timers.wheel().len(), pending);
                for (_, since, ticks) in events.iter().flatten() {
                    let nanos = clock.now().nanos_since(*since);
                    prop_assert!(nanos < (ticks + x + 1) * TICK_NANOS, "an event is overdue");
                }
            }
        }
    }
}
