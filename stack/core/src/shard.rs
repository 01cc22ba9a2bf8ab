//! One core: the poll loop.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use arrayvec::ArrayVec;
use millstream_buf::Arena;
use millstream_disk::{Completion, DiskQueue};
use millstream_link::{Link, LinkStats, RxBurst};
use millstream_timer::{Backup, Clock, Instant, SignalTimer, TriggerSource};

use crate::config::{Polling, ShardConfig, TimerSource};
use crate::executor::Executor;
use crate::idle::Rest;
use crate::poll::Poller;
use crate::schedule::Done;
use crate::stack::{Inner, Stack};
use crate::state::State;

/// What the loop does when it finds nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Polls on at full speed.
    Spin,
    /// Polls for a while, then sleeps: until the device interrupts it where it can, else for short
    /// times. So an idle shard leaves the core to others.
    #[default]
    Adaptive,
}

/// Turns from one look at the link's buffers to the next: at most 32 frames come in a turn.
const SCARCITY_TURNS: u64 = 16;
/// The part of the link's buffers of which less is few.
pub(crate) const SCARCE_PART: usize = 4;

/// The time that a turn may take before its reading of the clock is out of date: if the earliest
/// deadline is further away, a trigger point within the turn need not look.
const NEAR_NANOS: u64 = 50_000;
/// Between two looks whether the clock runs right.
pub(crate) const CLOCK_CHECK_NANOS: u64 = 1_000_000_000;

/// What a turn found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Frames, timers, completions and tasks that were served.
    pub work: usize,
    /// The frames among them.
    pub frames: usize,
}

/// A shard: one link queue, one disk queue, one clock, and all connections, timers, and tasks that
/// live on them. Shares nothing with other shards.
///
/// Each [`turn`](Self::turn) does what there is to do once:
/// frames in, channels, timers, disk completions, tasks, segments out.
pub struct Shard<L: Link, C: Clock> {
    pub(crate) stack: Stack,
    pub(crate) link: L,
    pub(crate) clock: C,
    pub(crate) burst: RxBurst,
    pub(crate) completions: ArrayVec<Completion, 32>,
    /// What the clock has been told of.
    pub(crate) done: Done,
    pub(crate) clock_check_at: Instant,
    /// The turn is one with statistics, a quota, or a baseline: everything but the straight way.
    special: bool,
    /// Decides when to poll, if not in each turn.
    pub(crate) poller: Option<Box<Poller>>,
    /// Frames that wait for turns of their own, if each gets one.
    one_by_one: Option<Box<RxBurst>>,
    /// The link was asked in this turn.
    asked: bool,
    /// When a turn with a quota began.
    began: Instant,
    alarm: Option<Box<Alarm>>,
    pub(crate) rest: Rest,
}

/// Timers by signals, the baseline.
struct Alarm {
    timer: SignalTimer,
    set_for: Instant,
}

impl<L: Link, C: Clock> Shard<L, C> {
    /// Puts a shard together. All memory is taken here.
    pub fn new(
        config: ShardConfig,
        link: L,
        clock: C,
        arena: Arena,
        disk: Box<dyn DiskQueue>,
    ) -> Self {
        let executor = Executor::new(config.limits.tasks);
        let now = clock.now();
        let poller = match config.polling {
            Polling::Quota(quota) => Some(Box::new(Poller::new(quota, now))),
            Polling::Spin | Polling::Interrupt => None,
        };
        let one_by_one = (config.polling == Polling::Interrupt).then(Box::default);
        let alarm = match config.timers {
            TimerSource::Soft => None,
            TimerSource::Signal => Alarm::new(),
        };
        let special =
            config.trace_triggers || poller.is_some() || one_by_one.is_some() || alarm.is_some();
        let state = State::new(config, link.capabilities().clone(), arena, disk, now);
        let clock_spends = clock.spends();
        let scheduled = Cell::new(false);
        let inner = Inner {
            state: RefCell::new(state),
            executor,
            scheduled,
            clock_spends,
            backup: OnceCell::new(),
        };
        let stack = Stack(Rc::new(inner));
        stack.schedule_as_configured();
        Self {
            stack,
            done: Done::default(),
            link,
            clock,
            burst: RxBurst::new(),
            completions: ArrayVec::new(),
            clock_check_at: now.plus_nanos(CLOCK_CHECK_NANOS),
            special,
            poller,
            one_by_one,
            asked: false,
            began: now,
            alarm,
            rest: Rest::default(),
        }
    }

    /// Gives the loop of [`Self::block_on`] a backup, once: ticks while application code holds it up.
    pub fn set_backup(&mut self, backup: Backup) {
        // A second one ends at once.
        let _ = self.stack.0.backup.set(backup);
    }

    /// The application's handle.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// The link's counters.
    pub fn link_stats(&self) -> LinkStats {
        self.link.stats()
    }

    /// The link.
    pub fn link(&mut self) -> &mut L {
        &mut self.link
    }

    /// One turn of the loop.
    #[inline]
    pub fn turn(&mut self) -> Turn {
        if self.stack.0.scheduled.get() {
            return self.turn_scheduled();
        }
        // Of each thing that is done there is one place in the code, so that it can be inlined: what
        // is special is decided at one bit that is known beforehand.
        let special = self.special;
        if !special || self.is_time_to_poll() {
            self.link.rx_burst(&mut self.burst);
        }
        let now = self.clock.now();
        if special {
            self.polled(now);
        }
        let inner = &*self.stack.0;
        let frames = self.burst.len();
        let mut work = frames;
        {
            let mut state = inner.state.borrow_mut();
            let state = &mut *state;
            state.now = now;
            if frames == 1
                && state.ready.is_empty()
                && let Some(frame) = self.burst.pop()
            {
                state.serve_lone(frame);
            } else if frames > 0 && state.ready.is_empty() {
                state.serve_burst(&mut self.burst);
            } else if frames > 0 {
                state.receive(&mut self.burst);
                state.serve();
            }
            if frames > 1 || special {
                pass(state, &self.clock, TriggerSource::Channel, frames > 0);
            }
            if state.wheel.next_deadline() <= state.now
                && !(special && self.alarm.as_deref_mut().is_some_and(Alarm::is_silent))
            {
                work += state.fire_timers();
            }
            if state.splices.in_disk > 0 {
                state.disk.poll(&mut self.completions);
                let completed = self.completions.len();
                work += completed;
                for completion in self.completions.drain(..) {
                    state.disk_completed(completion);
                }
                pass(state, &self.clock, TriggerSource::Disk, completed > 0);
            }
            work += state.splices_again();
            if state.is_waited_for() {
                state.resume_parked();
            }
        }
        if inner.executor.has_ready() {
            work += inner.executor.run(|| self.between_tasks());
            if special {
                pass(&mut inner.state.borrow_mut(), &self.clock, TriggerSource::Task, true);
            }
        }
        let mut guard = inner.state.borrow_mut();
        let state = &mut *guard;
        if !state.output.is_empty() || !state.raw.is_empty() {
            // What waits for room on the link or for a neighbour's address is no work: the loop may sleep
            // meanwhile, and a driver of virtual time sees an end of it.
            work += state.transmit(&mut self.link) + usize::from(inner.executor.has_ready());
        }
        self.link.flush();
        if state.splices.in_disk > 0 {
            state.disk.kick();
        }
        if state.metrics.turns.is_multiple_of(SCARCITY_TURNS) {
            state.look_at_buffers(self.link.rx_buffers());
            if now >= self.clock_check_at {
                self.clock.check();
                self.clock_check_at = now.plus_nanos(CLOCK_CHECK_NANOS);
            }
        }
        state.metrics.turns += 1;
        state.metrics.busy_turns += u64::from(work > 0);
        drop(guard);
        if special {
            self.end_special_turn(frames);
        }
        Turn { work, frames }
    }

    /// Whether the link is to be asked now. Not, if frames wait here that came with an earlier one.
    #[cold]
    fn is_time_to_poll(&mut self) -> bool {
        if let Some(waiting) = &mut self.one_by_one
            && !waiting.is_empty()
        {
            self.burst.extend(waiting.pop_at(0));
            return false;
        }
        self.asked = self.poller.as_ref().is_none_or(|poller| poller.is_due(self.clock.now()));
        self.asked
    }

    /// The trigger point between two tasks of the application, which may run for long.
    #[cold]
    fn between_tasks(&self) {
        let inner = &*self.stack.0;
        let mut state = inner.state.borrow_mut();
        if inner.backup.get().is_some_and(Backup::take) {
            state.now = self.clock.now();
        }
        pass(&mut state, &self.clock, TriggerSource::Task, true);
        if state.wheel.next_deadline() <= state.now && self.alarm.is_none() {
            state.fire_timers();
        }
    }

    /// Notes what the link had.
    #[cold]
    fn polled(&mut self, now: Instant) {
        self.began = now;
        if let (Some(poller), true) = (&mut self.poller, self.asked) {
            poller.found(self.burst.len(), now);
        }
        if let Some(waiting) = &mut self.one_by_one {
            waiting.extend(self.burst.drain(1.min(self.burst.len())..));
        }
        if let Some(stats) = &mut self.stack.state().triggers {
            let found = !self.burst.is_empty();
            stats.pass(if found { TriggerSource::RxBurst } else { TriggerSource::Idle }, now);
        }
    }

    #[cold]
    fn end_special_turn(&mut self, frames: usize) {
        let mut state = self.stack.0.state.borrow_mut();
        let state = &mut *state;
        if frames > 0 && (self.poller.is_some() || state.triggers.is_some()) {
            let now = self.clock.now();
            if let Some(poller) = &mut self.poller {
                poller.served(frames, now.nanos_since(self.began));
            }
            if let Some(stats) = &mut state.triggers {
                stats.pass(TriggerSource::Tx, now);
                let sent = state.metrics.tcp_segments_out;
                if let Some((woke, _)) = self.rest.woke.take_if(|(_, before)| *before != sent) {
                    stats.answered(now.nanos_since(woke));
                }
            }
        }
        if let Some(alarm) = &mut self.alarm {
            alarm.set_for(state.wheel.next_deadline(), &self.clock);
        }
    }

    /// The earliest moment at which a timer wants to fire, or the link is to be polled after a turn
    /// that did not.
    pub fn next_deadline(&self) -> Instant {
        let state = self.stack.state();
        let poll = self.poller.as_ref().and_then(|poller| poller.next());
        let timers = state.wheel.next_deadline().min(state.containers.next_deadline());
        timers.min(poll.unwrap_or(Instant::FAR_FUTURE))
    }

    /// Turns the loop until `future` has ended, and returns its output. Real time only: in a
    /// simulation the driver calls [`Self::turn`].
    pub fn block_on<T: 'static>(
        &mut self,
        idle: Idle,
        future: impl Future<Output = T> + 'static,
    ) -> T {
        let output: Rc<RefCell<Option<T>>> = Rc::default();
        let slot = Rc::clone(&output);
        let task = async move {
            let value = future.await;
            *slot.borrow_mut() = Some(value);
        };
        self.stack.0.executor.spawn_root(task);
        // Without containers all that a busy turn takes is charged to one, at the start of the next.
        let mut busy_since: Option<Instant> = None;
        loop {
            let turn = self.turn();
            busy_since = self.charge_alone(busy_since, turn);
            if turn.work > 0
                && let Some(value) = output.borrow_mut().take()
            {
                return value;
            }
            if let Some(backup) = self.stack.0.backup.get() {
                backup.take();
            }
            if self.one_by_one.is_some() {
                self.rest_for_each(turn);
            } else if idle == Idle::Adaptive {
                self.rest(turn);
            }
        }
    }

    /// Charges the turn before, if it did something and there is but one container. Returns when the
    /// one that has just ended began, if it did.
    #[inline]
    fn charge_alone(&self, busy_since: Option<Instant>, turn: Turn) -> Option<Instant> {
        let mut state = self.stack.state();
        let began = state.now;
        if let Some(since) = busy_since {
            state.charge_alone(began.nanos_since(since), began);
        }
        (turn.work > 0 && !self.stack.0.scheduled.get()).then_some(began)
    }

    /// Whether the loop waits for a signal of the device instead of spinning.
    pub(crate) fn interrupts(&self) -> bool {
        self.one_by_one.is_some()
    }
}

/// A trigger point within a turn: reads the clock if a deadline may have come meanwhile, which is
/// one comparison as a rule. `done`: something was done that is worth recording.
#[inline]
fn pass(state: &mut State, clock: &impl Clock, source: TriggerSource, done: bool) {
    if state.triggers.is_some() || state.wheel.next_deadline() <= state.now.plus_nanos(NEAR_NANOS) {
        look(state, clock, source, done);
    }
}

#[cold]
fn look(state: &mut State, clock: &impl Clock, source: TriggerSource, done: bool) {
    state.now = clock.now();
    if let Some(stats) = state.triggers.as_mut().filter(|_| done) {
        stats.pass(source, state.now);
    }
}

impl Alarm {
    /// With signals refused by the system, soft timers do.
    fn new() -> Option<Box<Self>> {
        match SignalTimer::new() {
            Ok(timer) => Some(Box::new(Self { timer, set_for: Instant::FAR_FUTURE })),
            Err(error) => {
                tracing::warn!("no timer signals can be had ({error}): soft timers are used");
                None
            }
        }
    }

    /// Whether no signal has come for the timer that is due.
    fn is_silent(&mut self) -> bool {
        if self.timer.take() {
            self.set_for = Instant::FAR_FUTURE;
        }
        self.set_for != Instant::FAR_FUTURE
    }

    /// Asks for a signal at `deadline`.
    fn set_for(&mut self, deadline: Instant, clock: &impl Clock) {
        if deadline != self.set_for && deadline != Instant::FAR_FUTURE {
            let nanos = deadline.nanos_since(clock.now());
            // Refused, the next turn looks as if a signal had come.
            let set = self.timer.set(Duration::from_nanos(nanos)).is_ok();
            self.set_for = if set { deadline } else { Instant::FAR_FUTURE };
        }
    }
}

impl<L: Link, C: Clock> Drop for Shard<L, C> {
    fn drop(&mut self) {
        // Tasks hold handles on the shard; without this neither would ever be freed.
        self.stack.0.executor.clear();
    }
}
