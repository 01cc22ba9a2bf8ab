//! One core: the poll loop.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use arrayvec::ArrayVec;
use millstream_buf::Arena;
use millstream_disk::{Completion, DiskQueue};
use millstream_link::{Link, LinkStats, RxBurst};
use millstream_timer::{Clock, Instant};

use crate::config::ShardConfig;
use crate::executor::Executor;
use crate::schedule::Done;
use crate::stack::{Inner, Stack};
use crate::state::State;

/// What the loop does when it finds nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Polls on at full speed.
    Spin,
    /// Polls for a while, then sleeps for short times, so that an idle shard leaves the core to others.
    #[default]
    Adaptive,
}

/// Turns from one look at the link's buffers to the next: at most 32 frames come in a turn.
const SCARCITY_TURNS: u64 = 16;
/// The part of the link's buffers of which less is few.
pub(crate) const SCARCE_PART: usize = 4;

/// How long an adaptive loop polls in vain before it sleeps.
const SPIN_NANOS: u64 = 200_000;
/// How long it sleeps at most: what an unexpected frame may have to wait.
const SLEEP_NANOS_MAX: u64 = 50_000;

/// What a turn found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Frames, timers, completions and tasks that were served.
    pub work: usize,
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
        let state = State::new(config, link.capabilities().clone(), arena, disk, now);
        let clock_spends = clock.spends();
        let scheduled = Cell::new(false);
        let inner = Inner { state: RefCell::new(state), executor, scheduled, clock_spends };
        let stack = Stack(Rc::new(inner));
        stack.schedule_as_configured();
        Self {
            stack,
            done: Done::default(),
            link,
            clock,
            burst: RxBurst::new(),
            completions: ArrayVec::new(),
        }
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
        self.link.rx_burst(&mut self.burst);
        let now = self.clock.now();
        let inner = &*self.stack.0;
        let mut work = self.burst.len();
        {
            let mut state = inner.state.borrow_mut();
            let state = &mut *state;
            state.now = now;
            if work == 1
                && state.ready.is_empty()
                && let Some(frame) = self.burst.pop()
            {
                state.serve_lone(frame);
            } else if work > 0 {
                state.receive(&mut self.burst);
                state.serve();
            }
            if state.wheel.next_deadline() <= now {
                work += state.fire_timers();
            }
            if state.splices.in_disk > 0 {
                state.disk.poll(&mut self.completions);
                work += self.completions.len();
                for completion in self.completions.drain(..) {
                    state.disk_completed(completion);
                }
            }
            if !state.splices.parked.is_empty() {
                state.resume_parked();
            }
        }
        if inner.executor.has_ready() {
            work += inner.executor.run();
        }
        let mut state = inner.state.borrow_mut();
        let state = &mut *state;
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
        }
        state.metrics.turns += 1;
        state.metrics.busy_turns += u64::from(work > 0);
        Turn { work }
    }

    /// The earliest moment at which a timer wants to fire.
    pub fn next_deadline(&self) -> Instant {
        let state = self.stack.state();
        state.wheel.next_deadline().min(state.containers.next_deadline())
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
        let mut idle_since = None;
        // Without containers all that a busy turn takes is charged to one, at the start of the next.
        let mut busy_since: Option<Instant> = None;
        loop {
            let turn = self.turn();
            let began = self.stack.state().now;
            if let Some(since) = busy_since {
                self.stack.state().charge_alone(began.nanos_since(since), began);
            }
            let alone = !self.stack.0.scheduled.get();
            busy_since = (alone && turn.work > 0).then_some(began);
            if turn.work > 0 {
                idle_since = None;
                if let Some(value) = output.borrow_mut().take() {
                    return value;
                }
            } else if idle == Idle::Adaptive {
                self.rest(&mut idle_since);
            }
        }
    }

    /// Nothing to do: sleeps if that has been so for a while.
    fn rest(&self, idle_since: &mut Option<Instant>) {
        let (now, deadline, disk_busy, blocked) = {
            let state = self.stack.state();
            let blocked = !state.output.is_empty() || !state.raw.is_empty();
            let deadline = state.wheel.next_deadline().min(state.containers.next_deadline());
            (state.now, deadline, state.splices.in_disk > 0, blocked)
        };
        let since = *idle_since.get_or_insert(now);
        if now.nanos_since(since) < SPIN_NANOS || disk_busy || blocked {
            std::hint::spin_loop();
            return;
        }
        let nanos = deadline.nanos_since(now).min(SLEEP_NANOS_MAX);
        if nanos > 1_000 {
            std::thread::sleep(Duration::from_nanos(nanos));
        }
    }
}

impl<L: Link, C: Clock> Drop for Shard<L, C> {
    fn drop(&mut self) {
        // Tasks hold handles on the shard; without this neither would ever be freed.
        self.stack.0.executor.clear();
    }
}
