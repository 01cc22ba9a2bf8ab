//! What nobody should ask of soft timers, and what clocks should not do.

use std::cell::Cell;

use millstream_timer::{Clock, Instant, SoftTimers, TICK_NANOS, TimerWheel, VirtualClock};
use proptest::prelude::*;

/// A clock that says what it was told, back and forth.
#[derive(Debug, Default)]
struct Wild(Cell<u64>);

impl Clock for Wild {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.get())
    }
}

#[test]
fn an_interval_of_zero_fires_in_the_next_tick_and_not_in_this_one() {
    let clock = VirtualClock::at(Instant::from_nanos(1000 * TICK_NANOS));
    let mut timers = SoftTimers::new(clock.clone(), 4, 1000);
    timers.schedule_soft_event(0, 7).unwrap();
    assert_eq!(timers.trigger(), None);
    clock.advance_nanos(TICK_NANOS - 1);
    assert_eq!(timers.trigger(), None, "T = 0 ticks must pass, and the one that had begun");
    clock.advance_nanos(1);
    assert_eq!(timers.trigger(), Some(7));
    // An event that schedules itself anew with zero never keeps a trigger point busy.
    timers.schedule_soft_event(0, 8).unwrap();
    assert_eq!(timers.trigger(), None);
}

#[test]
fn an_interval_beyond_the_horizon_waits_for_ever_and_can_be_cancelled() {
    let clock = VirtualClock::new();
    let mut timers = SoftTimers::new(clock.clone(), 4, 1000);
    let never = timers.schedule_soft_event(u64::MAX, 1).unwrap();
    let century = 100 * 365 * 86_400 * timers.measure_resolution();
    timers.schedule_soft_event(century, 2).unwrap();
    let days = 30 * 86_400 * timers.measure_resolution();
    timers.schedule_soft_event(days, 3).unwrap();
    clock.advance_nanos(days * TICK_NANOS);
    assert_eq!(timers.trigger(), None, "not before more than T ticks");
    clock.advance_nanos(TICK_NANOS);
    let mut fired = Vec::new();
    for _ in 0..4 {
        fired.extend(timers.trigger());
    }
    assert_eq!(fired, [3]);
    clock.advance_to(Instant::FAR_FUTURE);
    let mut fired = Vec::new();
    for _ in 0..8 {
        fired.extend(timers.trigger());
    }
    assert_eq!(fired, [2]);
    assert!(timers.cancel(never) && !timers.cancel(never));
    assert!(timers.wheel().is_empty());
}

#[test]
fn a_clock_that_stalls_fires_nothing_and_one_that_jumps_fires_all() {
    let clock = VirtualClock::new();
    let mut timers = SoftTimers::new(clock.clone(), 1000, 1000);
    for token in 0..1000 {
        timers.schedule_soft_event(u64::from(token) * 1_000_003, token).unwrap();
    }
    for _ in 0..10_000 {
        assert_eq!(timers.trigger(), None, "no time has passed");
    }
    let asked = timers.sleep_until();
    // Ten years at once: the sleeper is not asked to wait any more until all have fired.
    clock.advance_nanos(10 * 365 * 86_400 * 1_000_000_000);
    assert!(asked <= clock.now());
    let (mut fired, mut calls) = (Vec::new(), 0);
    while timers.sleep_until() <= clock.now() {
        fired.extend(timers.trigger());
        calls += 1;
    }
    fired.sort_unstable();
    assert_eq!(fired, (0..1000).collect::<Vec<_>>());
    assert!(calls <= 1000 + 1000 / 32 + 1, "{calls} calls");
}

/// Ten million timers at one instant: 240 MB. Each call does a bounded amount of work, and what has
/// to happen meanwhile happens between calls.
#[test]
fn ten_million_timers_at_one_instant_come_one_a_call() {
    const TIMERS: usize = 10_000_000;
    let start = Instant::from_micros(1);
    let mut wheel = TimerWheel::with_capacity(TIMERS + 1, start);
    // Far enough away that all of them begin in a high slot and have to move.
    let hour = 3_600_000_000;
    let at = start.plus_micros(hour);
    for token in 0..TIMERS as u32 {
        wheel.insert(at, token).unwrap();
    }
    let early = wheel.insert(start.plus_micros(1), u32::MAX).unwrap();
    assert!(wheel.insert(at, 0).is_none(), "full");
    assert!(wheel.cancel(early));
    // Shortly before: moves, at most 32 a call, and nothing fires.
    let before = start.plus_micros(hour - 10);
    let mut moved = wheel.cascaded();
    for _ in 0..1000 {
        assert_eq!(wheel.pop_expired(before), None);
        assert!(wheel.cascaded() - moved <= 32, "{} moves", wheel.cascaded() - moved);
        moved = wheel.cascaded();
    }
    // The time comes: one a call, and a newcomer that falls due meanwhile is not lost.
    let now = at.plus_micros(2);
    wheel.insert(at, u32::MAX).unwrap_or_else(|| panic!("room was made"));
    let mut count = 0_usize;
    while wheel.next_deadline() <= now {
        let cascaded = wheel.cascaded();
        count += usize::from(wheel.pop_expired(now).is_some());
        assert!(wheel.cascaded() - cascaded <= 32);
    }
    assert_eq!(count, TIMERS + 1);
}

proptest! {
    /// A clock that goes anywhere, back too: each event fires once, never before its ticks have
    /// passed on the furthest that the clock has been, and nothing is left behind at the end.
    #[test]
    fn a_wild_clock_loses_and_repeats_nothing(
        steps in prop::collection::vec((any::<bool>(), 0u64..1 << 40, 0u64..1 << 20), 1..200),
    ) {
        let mut timers = SoftTimers::new(Wild::default(), 256, 1000);
        let mut furthest = 0;
        let mut due = Vec::new();
        for (forward, distance, ticks) in steps {
            let now = timers.clock().0.get();
            let to = if forward { now.saturating_add(distance) } else { now.saturating_sub(distance) };
            timers.clock().0.set(to);
            furthest = furthest.max(to);
            let token = due.len() as u32;
            timers.schedule_soft_event(ticks, token).unwrap();
            due.push(Some(to + ticks * TICK_NANOS));
            for _ in 0..8 {
                if let Some(token) = timers.trigger() {
                    let due = due[token as usize].take();
                    prop_assert!(due.is_some_and(|due| furthest > due), "early, or twice");
                }
            }
        }
        timers.clock().0.set(1 << 62);
        while timers.sleep_until() <= timers.clock().now() {
            if let Some(token) = timers.trigger() {
                prop_assert!(due[token as usize].take().is_some(), "twice");
            }
        }
        prop_assert!(due.iter().all(Option::is_none));
    }
}
