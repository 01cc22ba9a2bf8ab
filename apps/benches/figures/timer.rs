//! Soft timers: what a check costs, what an event costs, beside a signal, and the paper's bound.

use std::error::Error;
use std::hint::black_box;

use millstream::timer::{
    Clock, Instant, SignalTimer, SoftTimers, TICK_NANOS, TimerId, TimerWheel, TscClock,
    VirtualClock,
};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::figure::{Figure, Runs, round};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const RUNS: usize = 31;
/// Trigger points in a turn of the loop that serves something, for one reading of the clock.
const POINTS_A_TURN: u32 = 6;
/// Timers that are set meanwhile.
const LIVE: usize = 1_000_000;
/// Between two events at 100 kHz.
const INTERVAL_NANOS: u64 = 10_000;
const EVENTS_A_SECOND: f64 = 1e5;

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn least(runs: &Runs) -> f64 {
    runs.0.iter().copied().fold(f64::INFINITY, f64::min)
}

/// `timer.check_ns` and `timer.insert_cancel_cycles`.
pub fn costs() -> Result<Vec<Figure>> {
    let clock = TscClock::new();
    let check = check_ns(&clock)?;
    let (own, random) = insert_cancel_cycles(&clock)?;
    Ok(vec![check, own.with("cancelling_a_random_one_cycles", json!(round(random)))])
}

fn check_ns(clock: &TscClock) -> Result<Figure> {
    const TURNS: u32 = 200_000;
    let mut timers = SoftTimers::new(TscClock::new(), 16, 1000);
    // An hour away: it is looked for and not found.
    timers.schedule_soft_event(3_600 * timers.measure_resolution(), 1).ok_or("no room")?;
    let (mut amortised, mut bare, mut with_clock) =
        (Runs::default(), Runs::default(), Runs::default());
    for _ in 0..RUNS {
        let start = clock.raw();
        for _ in 0..TURNS {
            let now = black_box(&timers).clock().now();
            for _ in 0..POINTS_A_TURN {
                if let Some(token) = black_box(&mut timers).trigger_at(now) {
                    return Err(format!("event {token} fired an hour early").into());
                }
            }
        }
        let nanos = clock.nanos_between(start, clock.raw()) as f64;
        amortised.0.push(nanos / f64::from(TURNS * POINTS_A_TURN));
        let now = timers.clock().now();
        let start = clock.raw();
        for _ in 0..TURNS {
            black_box(black_box(&mut timers).trigger_at(now));
        }
        bare.0.push(clock.nanos_between(start, clock.raw()) as f64 / f64::from(TURNS));
        let start = clock.raw();
        for _ in 0..TURNS {
            black_box(black_box(&mut timers).trigger());
        }
        with_clock.0.push(clock.nanos_between(start, clock.raw()) as f64 / f64::from(TURNS));
    }
    let figure = Figure::new("timer.check_ns", &amortised)
        .with("trigger_points_a_reading", json!(POINTS_A_TURN))
        .with("comparison_alone_ns", json!(round(bare.median())))
        .with("with_a_reading_each_ns", json!(round(with_clock.median())))
        .note(
            "SoftTimers::trigger_at with an event that is not due, six times for each reading of \
             the time-stamp counter, as in a turn of the loop that serves something",
        );
    Ok(figure)
}

/// The figure, and what it costs to cancel another than the one just set.
fn insert_cancel_cycles(clock: &TscClock) -> Result<(Figure, f64)> {
    const PAIRS: u64 = 100_000;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let now = Instant::from_micros(1_000_000);
    let mut wheel = TimerWheel::with_capacity(LIVE + 1, now);
    // From a microsecond to a minute ahead, as many of each order of magnitude.
    let mut deadline = || {
        let order = random.next() % 26;
        now.plus_nanos(1_000 + random.next() % (1_000 << order))
    };
    let mut live: Vec<TimerId> = Vec::with_capacity(LIVE);
    for token in 0..LIVE as u32 {
        live.push(wheel.insert(deadline(), token).ok_or("the wheel is full")?);
    }
    let deadlines: Vec<Instant> = (0..PAIRS).map(|_| deadline()).collect();
    let mut choice = Random(0x2545_f491_4f6c_dd1d);
    let victims: Vec<usize> = (0..PAIRS).map(|_| (choice.next() % LIVE as u64) as usize).collect();
    let (mut own, mut other) = (Runs::default(), Runs::default());
    for _ in 0..RUNS {
        let start = clock.raw();
        for (at, deadline) in deadlines.iter().enumerate() {
            let set = black_box(wheel.insert(*deadline, at as u32)).ok_or("the wheel is full")?;
            black_box(wheel.cancel(set));
        }
        own.0.push((clock.raw() - start) as f64 / PAIRS as f64);
        let start = clock.raw();
        for (victim, deadline) in victims.iter().zip(&deadlines) {
            let slot = &mut live[*victim];
            let set = wheel.insert(*deadline, 0).ok_or("the wheel is full")?;
            black_box(wheel.cancel(std::mem::replace(slot, set)));
        }
        other.0.push((clock.raw() - start) as f64 / PAIRS as f64);
    }
    if wheel.len() != LIVE {
        return Err(format!("{} timers are left of {LIVE}", wheel.len()).into());
    }
    let figure = Figure::new("timer.insert_cancel_cycles", &own)
        .with("live", json!(LIVE))
        .with("bytes_a_timer", json!(TimerWheel::BYTES_A_TIMER))
        .note(
            "a timer set at a moment between a microsecond and a minute ahead and taken back, while a \
             million others are set: 24 MB, beyond the caches of a core",
        );
    Ok((figure, other.median()))
}

/// What the core does besides: some hundred nanoseconds of arithmetic, and a reading of the clock.
fn work(clock: &TscClock, state: &mut u64) -> Instant {
    for _ in 0..64 {
        *state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    }
    black_box(*state);
    clock.now()
}

fn thread_cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// `timer.100khz.core_percent` and `timer.100khz.signal_core_percent`.
pub fn rate() -> Result<Vec<Figure>> {
    const ROUNDS: u32 = 100_000;
    let clock = TscClock::new();
    let mut state = 1;
    // One epoch for both: moments of the one are handed to the other.
    let mut soft_timers = SoftTimers::new(clock.clone(), 4, 1000);
    let interval = INTERVAL_NANOS * soft_timers.measure_resolution() / 1_000_000_000;
    let mut signal = SignalTimer::new()?;
    let (mut soft, mut signals) = (Runs::default(), Runs::default());
    let (mut soft_rate, mut signal_rate) = (Runs::default(), Runs::default());
    for _ in 0..RUNS {
        let start = thread_cpu_ns();
        for _ in 0..ROUNDS {
            work(&clock, &mut state);
        }
        let alone = thread_cpu_ns() - start;

        soft_timers.schedule_soft_event(interval, 0).ok_or("no room")?;
        let (start, wall, mut events) = (thread_cpu_ns(), clock.now(), 0_u32);
        for _ in 0..ROUNDS {
            let now = work(&clock, &mut state);
            while soft_timers.trigger_at(now).is_some() {
                events += 1;
                soft_timers.schedule_soft_event(interval, 0).ok_or("no room")?;
            }
        }
        let (took, span) = (thread_cpu_ns() - start, clock.now().nanos_since(wall));
        soft.0.push((took - alone) / f64::from(events.max(1)) * EVENTS_A_SECOND / 1e7);
        soft_rate.0.push(f64::from(events) * 1e9 / span as f64);
        // None is left over for the next run.
        while !soft_timers.wheel().is_empty() {
            soft_timers.trigger();
        }

        let tenth = ROUNDS / 10;
        signal.set(std::time::Duration::from_nanos(INTERVAL_NANOS))?;
        let (start, wall, mut events) = (thread_cpu_ns(), clock.now(), 0_u32);
        for _ in 0..tenth {
            work(&clock, &mut state);
            if signal.take() {
                events += 1;
                signal.set(std::time::Duration::from_nanos(INTERVAL_NANOS))?;
            }
        }
        let (took, span) = (thread_cpu_ns() - start, clock.now().nanos_since(wall));
        let beyond = took - alone * f64::from(tenth) / f64::from(ROUNDS);
        signals.0.push(beyond / f64::from(events.max(1)) * EVENTS_A_SECOND / 1e7);
        signal_rate.0.push(f64::from(events) * 1e9 / span as f64);
        while !signal.take() {
            std::hint::spin_loop();
        }
    }
    let how = "an event that does nothing and sets itself again, on a core that computes and reads its \
               clock every 0.1 us or so: thread CPU time beyond that of the same work without events, \
               for each event, times 100,000 a second; the three in turn";
    let soft_figure = Figure::new("timer.100khz.core_percent", &soft)
        .against(signals.median())
        .with("events_a_second", json!(round(soft_rate.median())))
        .with("least", json!(round(least(&soft))))
        .note(how);
    let signal_figure = Figure::new("timer.100khz.signal_core_percent", &signals)
        .with("events_a_second", json!(round(signal_rate.median())))
        .with("what", json!("a POSIX timer set anew for each event, SIGALRM to the thread"))
        .note(how);
    Ok(vec![soft_figure, signal_figure])
}

/// `timer.bound_violations`.
pub fn bound() -> Result<Vec<Figure>> {
    const EVENTS: u32 = 10_000_000;
    const PENDING: usize = 100_000;
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut violations = 0_u64;
    let mut fired = 0_u32;
    for (backup_hz, events) in [(1_000, EVENTS / 2), (100, EVENTS / 4), (30_000, EVENTS / 4)] {
        let clock = VirtualClock::at(Instant::from_nanos(random.next() >> 14));
        let mut timers = SoftTimers::new(clock.clone(), PENDING, backup_hz);
        let x = timers.measure_resolution() / timers.interrupt_clock_resolution();
        // When each was scheduled, and for how many ticks.
        let mut pending: Vec<Option<(Instant, u64)>> = vec![None; PENDING];
        let mut free: Vec<u32> = (0..PENDING as u32).collect();
        let (mut scheduled, mut due) = (0, 0_u32);
        while due < events {
            let batch = random.next() % 200;
            for _ in 0..batch {
                if scheduled == events {
                    break;
                }
                let Some(token) = free.pop() else { break };
                let ticks = match random.next() % 4 {
                    0 => random.next() % 64,
                    1 => random.next() % 4_096,
                    2 => random.next() % 500_000,
                    _ => random.next() % 5_000_000,
                };
                timers.schedule_soft_event(ticks, token).ok_or("no room")?;
                pending[token as usize] = Some((clock.now(), ticks));
                scheduled += 1;
            }
            // Trigger points come at random, or not at all until the backup's.
            let longest = x * TICK_NANOS;
            let pause =
                if random.next().is_multiple_of(4) { longest } else { random.next() % longest };
            clock.advance_nanos(pause);
            while timers.sleep_until() <= clock.now() {
                let Some(token) = timers.trigger() else { continue };
                let Some((since, ticks)) = pending[token as usize].take() else {
                    violations += 1;
                    continue;
                };
                let nanos = clock.now().nanos_since(since);
                let early = nanos <= ticks * TICK_NANOS;
                let late = nanos >= (ticks + x + 1) * TICK_NANOS;
                violations += u64::from(early || late);
                free.push(token);
                due += 1;
            }
        }
        fired += due;
        violations += pending.iter().flatten().count() as u64;
    }
    let figure = Figure::exact("timer.bound_violations", violations as f64)
        .with("events", json!(fired))
        .with("backup_hz", json!([1_000, 100, 30_000]))
        .note(
            "T < fired < T + X + 1 ticks in virtual time: events of random length, up to 100,000 of \
             them pending, trigger points at random moments and at the latest when the backup ticks",
        );
    Ok(vec![figure])
}
