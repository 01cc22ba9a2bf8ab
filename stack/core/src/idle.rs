//! What the loop does when it finds nothing to do: it spins for a while, then sleeps until the next
//! deadline, or until the device interrupts it where it can.

use std::os::fd::{AsFd, BorrowedFd};

use millstream_link::Link;
use millstream_timer::{Clock, Instant};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::shard::{Shard, Turn};

/// How long an adaptive loop polls in vain after the last frame before it sleeps.
const SPIN_NANOS: u64 = 200_000;
/// Not worth a sleep: it takes the system about as long to end one.
const SLEEP_NANOS_MIN: u64 = 5_000;
/// Sleeps of a loop that nothing wakes when a frame comes grow with the time for which none has:
/// to an eighth of it, at least and at most so long.
const NAP_NANOS_MIN: u64 = 50_000;
const NAP_NANOS_MAX: u64 = 1_000_000;
const NAP_PART: u64 = 8;
/// The longest sleep that an interrupt can end; one that was lost costs no more than this.
const SLEEP_NANOS_MAX: u64 = 1_000_000_000;
/// How late the system may end a sleep for company's sake. By default it is 50 us.
const SLACK_NANOS: u64 = 1_000;

/// Where the loop stands between working and sleeping.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    /// When the last frame came.
    active_at: Option<Instant>,
    /// The device was asked to interrupt.
    armed: bool,
    /// When a frame ended the last sleep, and the segments sent by then, until an answer is sent.
    pub woke: Option<(Instant, u64)>,
    slack_set: bool,
}

impl<L: Link, C: Clock> Shard<L, C> {
    /// After a turn that may have found nothing.
    pub(crate) fn rest(&mut self, turn: Turn) {
        let now = self.stack.state().now;
        let since = *self.rest.active_at.get_or_insert(now);
        if turn.frames > 0 {
            self.rest.active_at = Some(now);
        }
        if turn.work > 0 {
            return self.disarm();
        }
        let (deadline, disk_busy, blocked) = {
            let state = self.stack.state();
            let blocked = !state.output.is_empty() || !state.raw.is_empty();
            let deadline = state.wheel.next_deadline().min(state.containers.next_deadline());
            (deadline, state.splices.in_disk > 0, blocked)
        };
        // What was sent last may have woken a task, which is no work of this turn.
        if disk_busy || blocked || self.stack.0.executor.has_ready() {
            return std::hint::spin_loop();
        }
        if let Some(next) = self.poller.as_ref().and_then(|poller| poller.next()) {
            // Between two polls: nothing but time ends this.
            let nanos = deadline.min(next).nanos_since(self.clock.now());
            return if nanos < SLEEP_NANOS_MIN { std::hint::spin_loop() } else { self.nap(nanos) };
        }
        let quiet = now.nanos_since(since);
        if quiet < SPIN_NANOS && !self.interrupts() {
            return std::hint::spin_loop();
        }
        let nanos = deadline.nanos_since(now);
        if nanos < SLEEP_NANOS_MIN {
            return std::hint::spin_loop();
        }
        if self.link.rx_event().is_none() {
            return self.nap(nanos.min((quiet / NAP_PART).clamp(NAP_NANOS_MIN, NAP_NANOS_MAX)));
        }
        if !self.rest.armed {
            // One more turn: what came before the device was asked brings no interrupt.
            self.link.arm_rx();
            self.rest.armed = true;
            return;
        }
        let woken = self.sleep(nanos.min(SLEEP_NANOS_MAX), true);
        self.disarm();
        let mut state = self.stack.state();
        state.metrics.rx_wakes += u64::from(woken);
        self.rest.woke = woken.then(|| (self.clock.now(), state.metrics.tcp_segments_out));
    }

    /// As [`Self::rest`] for a loop that waits for each frame (`polling = interrupt`).
    pub(crate) fn rest_for_each(&mut self, turn: Turn) {
        if turn.work == 0 {
            self.rest.active_at = None;
            return self.rest(turn);
        }
        self.disarm();
        if turn.frames > 0 {
            // There may be more: the device says so at once, but it is asked for each.
            self.link.arm_rx();
            self.sleep(0, true);
            self.link.disarm_rx();
        }
    }

    fn disarm(&mut self) {
        if std::mem::take(&mut self.rest.armed) {
            self.link.disarm_rx();
        }
    }

    fn nap(&mut self, nanos: u64) {
        self.sleep(nanos, false);
    }

    /// Sleeps; whether a frame ended it. Wakes of tasks from other threads end it too.
    fn sleep(&mut self, nanos: u64, for_frames: bool) -> bool {
        if !std::mem::replace(&mut self.rest.slack_set, true) {
            // Refused, sleeps are as late as they are by default.
            let _ = rustix::thread::set_current_timer_slack(SLACK_NANOS.try_into().ok());
        }
        let inner = &*self.stack.0;
        if !inner.executor.falls_asleep() {
            return false;
        }
        let backup = inner.backup.get().filter(|backup| {
            // For a short sleep the two system calls would cost more than the ticks.
            nanos > 2_000_000_000 / u64::from(backup.hz())
        });
        if let Some(backup) = backup {
            backup.pause();
        }
        let doorbell = inner.executor.doorbell();
        let event = self.link.rx_event().filter(|_| for_frames);
        let (came, rung) = wait(event, doorbell, nanos);
        if let Some(backup) = backup {
            backup.resume();
        }
        inner.executor.wakes_up(rung);
        if nanos > 0 {
            let mut state = inner.state.borrow_mut();
            state.metrics.sleeps += 1;
            let now = self.clock.now();
            if let Some(stats) = &mut state.triggers {
                stats.resume(now);
            }
        }
        came
    }
}

/// Waits until one of the descriptors is readable, or so long; which of them are. A signal ends it
/// early, which does no harm.
fn wait(
    event: Option<BorrowedFd<'_>>,
    doorbell: Option<BorrowedFd<'_>>,
    nanos: u64,
) -> (bool, bool) {
    let timeout = Timespec {
        tv_sec: (nanos / 1_000_000_000) as i64,
        tv_nsec: (nanos % 1_000_000_000) as i64,
    };
    let mut fds: arrayvec::ArrayVec<PollFd<'_>, 2> = event
        .iter()
        .chain(&doorbell)
        .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN))
        .collect();
    let ready = poll(&mut fds, Some(&timeout)).unwrap_or(0);
    let is_up =
        |fd: Option<&PollFd<'_>>| ready > 0 && fd.is_some_and(|fd| !fd.revents().is_empty());
    (event.is_some() && is_up(fds.first()), doorbell.is_some() && is_up(fds.last()))
}
