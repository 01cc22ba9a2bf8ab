//! A single-threaded executor inside the poll loop.
//!
//! Waking a task from its own thread costs a few plain stores: the queue of runnable tasks is a ring
//! of atomics that only this thread touches with relaxed loads and stores. Wakers are `Send` all the
//! same; a wake from another thread goes through a queue of its own.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam::queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};

/// A number for the calling thread that is cheap to read.
fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static NUMBER: Cell<u64> = const { Cell::new(0) });
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

/// Tasks that want to run.
struct ReadyQueue {
    thread: u64,
    /// Ring of task numbers; head and tail are touched by the executor's thread only.
    ring: Box<[AtomicU32]>,
    head: AtomicU32,
    tail: AtomicU32,
    remote: SegQueue<u32>,
    remote_pending: AtomicBool,
    /// The executor's thread sleeps, or is about to.
    asleep: AtomicBool,
    /// An eventfd that ends its sleep; made when it first sleeps.
    doorbell: OnceLock<Option<OwnedFd>>,
}

impl ReadyQueue {
    /// Ends the sleep of the executor's thread.
    #[cold]
    fn ring(&self) {
        if let Some(Some(doorbell)) = self.doorbell.get() {
            // Refused only if it has been rung 2^64 - 2 times unheard.
            let _ = rustix::io::write(doorbell, &1_u64.to_ne_bytes());
        }
    }

    #[inline]
    fn push_local(&self, task: u32) {
        let tail = self.tail.load(Ordering::Relaxed);
        let mask = self.ring.len() - 1;
        self.ring[tail as usize & mask].store(task, Ordering::Relaxed);
        self.tail.store(tail.wrapping_add(1), Ordering::Relaxed);
    }

    #[inline]
    fn len_local(&self) -> u32 {
        self.tail.load(Ordering::Relaxed).wrapping_sub(self.head.load(Ordering::Relaxed))
    }

    #[inline]
    fn pop_local(&self) -> u32 {
        let head = self.head.load(Ordering::Relaxed);
        let mask = self.ring.len() - 1;
        self.head.store(head.wrapping_add(1), Ordering::Relaxed);
        self.ring[head as usize & mask].load(Ordering::Relaxed)
    }
}

/// The half of a task that its wakers hold.
struct TaskHandle {
    task: u32,
    ready: Arc<ReadyQueue>,
    /// In the ring; touched by the executor's thread only.
    in_ring: AtomicBool,
    /// In the remote queue.
    in_remote: AtomicBool,
    done: AtomicBool,
}

impl Wake for TaskHandle {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    #[inline]
    fn wake_by_ref(self: &Arc<Self>) {
        if self.done.load(Ordering::Relaxed) {
            return;
        }
        if self.ready.thread == thread_number() {
            if !self.in_ring.load(Ordering::Relaxed) {
                self.in_ring.store(true, Ordering::Relaxed);
                self.ready.push_local(self.task);
            }
        } else if !self.in_remote.swap(true, Ordering::AcqRel) {
            self.ready.remote.push(self.task);
            // In one order with `Executor::falls_asleep`: one of the two sees the other.
            self.ready.remote_pending.store(true, Ordering::SeqCst);
            if self.ready.asleep.load(Ordering::SeqCst) {
                self.ready.ring();
            }
        }
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    handle: Arc<TaskHandle>,
    waker: Waker,
}

enum Slot {
    Free {
        next: Option<u32>,
    },
    /// In a box, so that a poll moves one word out of the slot and back.
    Idle(Box<Task>),
    Running,
}

/// Tasks that one [`Executor::run`] polls at most: then the link is looked at again.
const TASKS_A_RUN: u32 = 256;

/// Datagrams that a task receives in one poll at most.
pub(crate) const RECEIVES_A_RUN: u32 = 16;

/// No task.
const NOBODY: u32 = u32::MAX;

/// Runs tasks on the thread that made it.
pub(crate) struct Executor {
    /// The task that is being polled.
    current: Cell<u32>,
    /// Datagrams that it may still receive in this poll.
    receives_left: Cell<u32>,
    receives: Cell<u32>,
    slots: RefCell<Slots>,
    ready: Arc<ReadyQueue>,
    polls: Cell<u64>,
}

struct Slots {
    slots: Vec<Slot>,
    free: Option<u32>,
    tasks: usize,
    tasks_max: usize,
}

/// No task can be added: `tasks_max` are alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {0} tasks are in use; raise `limits.tasks`")]
pub struct TooManyTasks(pub usize);

impl Executor {
    pub fn new(tasks_max: usize) -> Self {
        let ring = (0..(tasks_max + 1).next_power_of_two()).map(|_| AtomicU32::new(0)).collect();
        Self {
            current: Cell::new(NOBODY),
            receives_left: Cell::new(RECEIVES_A_RUN),
            receives: Cell::new(RECEIVES_A_RUN),
            slots: RefCell::new(Slots { slots: Vec::new(), free: None, tasks: 0, tasks_max }),
            ready: Arc::new(ReadyQueue {
                thread: thread_number(),
                ring,
                head: AtomicU32::new(0),
                tail: AtomicU32::new(0),
                remote: SegQueue::new(),
                remote_pending: AtomicBool::new(false),
                asleep: AtomicBool::new(false),
                doorbell: OnceLock::new(),
            }),
            polls: Cell::new(0),
        }
    }

    /// Adds a task, runnable at once.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) -> Result<u32, TooManyTasks> {
        let mut slots = self.slots.borrow_mut();
        if slots.tasks >= slots.tasks_max {
            return Err(TooManyTasks(slots.tasks_max));
        }
        slots.tasks += 1;
        Ok(self.add(&mut slots, future))
    }

    /// Adds the root task, for which a place beyond the bound is kept.
    pub fn spawn_root(&self, future: impl Future<Output = ()> + 'static) {
        let mut slots = self.slots.borrow_mut();
        slots.tasks += 1;
        self.add(&mut slots, future);
    }

    /// The task that is being polled.
    #[inline]
    pub fn current(&self) -> Option<u32> {
        let current = self.current.get();
        (current != NOBODY).then_some(current)
    }

    /// Sets how many datagrams a task may receive in one poll.
    pub fn set_receives(&self, receives: u32) {
        self.receives.set(receives);
    }

    /// Whether the task may receive one more datagram in this poll; else it is to give way.
    #[inline]
    pub fn take_receive(&self) -> bool {
        let left = self.receives_left.get();
        self.receives_left.set(left.saturating_sub(1));
        // Who is no task has nobody to give way to.
        left > 0 || self.current.get() == NOBODY
    }

    /// Hands out all tasks that want to run; each is to be given to [`Self::run_queued`] or
    /// [`Self::requeue`].
    pub fn drain_ready(&self, mut give: impl FnMut(u32)) {
        if self.ready.remote_pending.load(Ordering::Relaxed) {
            self.take_remote();
        }
        while self.ready.len_local() > 0 {
            give(self.ready.pop_local());
        }
    }

    /// Polls a task that was handed out. Returns whether it has ended.
    pub fn run_queued(&self, task: u32) -> bool {
        self.poll(task)
    }

    /// Takes a task back that was handed out.
    pub fn requeue(&self, task: u32) {
        self.ready.push_local(task);
    }

    /// Polls the task that has wanted to run longest. Returns it, and whether it has ended.
    pub fn run_one(&self) -> Option<(u32, bool)> {
        if self.ready.remote_pending.load(Ordering::Relaxed) {
            self.take_remote();
        }
        if self.ready.len_local() == 0 {
            return None;
        }
        let task = self.ready.pop_local();
        Some((task, self.poll(task)))
    }

    fn add(&self, slots: &mut Slots, future: impl Future<Output = ()> + 'static) -> u32 {
        let number = match slots.free {
            Some(number) => {
                if let Slot::Free { next } = slots.slots[number as usize] {
                    slots.free = next;
                }
                number
            }
            None => {
                slots.slots.push(Slot::Running);
                slots.slots.len() as u32 - 1
            }
        };
        let handle = Arc::new(TaskHandle {
            task: number,
            ready: Arc::clone(&self.ready),
            in_ring: AtomicBool::new(true),
            in_remote: AtomicBool::new(false),
            done: AtomicBool::new(false),
        });
        let waker = Waker::from(Arc::clone(&handle));
        let task = Box::new(Task { future: Box::pin(future), handle, waker });
        slots.slots[number as usize] = Slot::Idle(task);
        self.ready.push_local(number);
        number
    }

    /// Whether a task wants to run.
    #[inline]
    pub fn has_ready(&self) -> bool {
        self.ready.len_local() > 0 || self.ready.remote_pending.load(Ordering::Relaxed)
    }

    /// Polls each task that was runnable when the call came, once, up to a bound. Returns how many
    /// there were.
    /// `between` is called between two of them.
    #[inline]
    pub fn run(&self, mut between: impl FnMut()) -> usize {
        if self.ready.remote_pending.load(Ordering::Relaxed) {
            self.take_remote();
        }
        let count = self.ready.len_local().min(TASKS_A_RUN);
        let mut left = count;
        while left > 0 {
            let number = self.ready.pop_local();
            self.poll(number);
            left -= 1;
            if left == 0 {
                break;
            }
            between();
        }
        count as usize
    }

    /// From here on a wake from another thread rings the doorbell. `false`: one has come already.
    pub fn falls_asleep(&self) -> bool {
        self.ready.doorbell.get_or_init(|| {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            // Without one, a wake from another thread waits for the sleep's end.
            eventfd(0, flags).ok()
        });
        self.ready.asleep.store(true, Ordering::SeqCst);
        let awake = self.ready.remote_pending.load(Ordering::SeqCst);
        if awake {
            self.ready.asleep.store(false, Ordering::Relaxed);
        }
        !awake
    }

    /// What becomes readable when another thread wakes a task.
    pub fn doorbell(&self) -> Option<BorrowedFd<'_>> {
        self.ready.doorbell.get()?.as_ref().map(AsFd::as_fd)
    }

    /// The sleep is over; `rung`: the doorbell was readable. It is silenced even if no task is pending:
    /// who found the executor asleep may ring when it has long run the task, and a bell that rings on
    /// would end every sleep.
    pub fn wakes_up(&self, rung: bool) {
        self.ready.asleep.store(false, Ordering::Relaxed);
        if (rung || self.ready.remote_pending.load(Ordering::Relaxed))
            && let Some(doorbell) = self.doorbell()
        {
            // Empty if the wake came just before the sleep's end.
            let _ = rustix::io::read(doorbell, &mut [0; 8]);
        }
    }

    #[cold]
    fn take_remote(&self) {
        self.ready.remote_pending.store(false, Ordering::Release);
        while let Some(number) = self.ready.remote.pop() {
            let slots = self.slots.borrow();
            if let Some(Slot::Idle(task)) = slots.slots.get(number as usize) {
                // A swap, so that what was written before a wake that found the flag set is seen.
                task.handle.in_remote.swap(false, Ordering::AcqRel);
                if !task.handle.in_ring.load(Ordering::Relaxed) {
                    task.handle.in_ring.store(true, Ordering::Relaxed);
                    self.ready.push_local(number);
                }
            }
        }
    }

    #[inline]
    fn poll(&self, number: u32) -> bool {
        // The task leaves its slot while it runs, so that it may spawn others.
        let mut slots = self.slots.borrow_mut();
        let Some(slot @ Slot::Idle(_)) = slots.slots.get_mut(number as usize) else { return false };
        let Slot::Idle(mut task) = std::mem::replace(slot, Slot::Running) else { return false };
        drop(slots);
        task.handle.in_ring.store(false, Ordering::Relaxed);
        self.polls.set(self.polls.get() + 1);
        self.receives_left.set(self.receives.get());
        self.current.set(number);
        let outcome = task.future.as_mut().poll(&mut Context::from_waker(&task.waker));
        self.current.set(NOBODY);
        if outcome.is_pending() {
            self.slots.borrow_mut().slots[number as usize] = Slot::Idle(task);
        } else {
            self.finish(number, task);
        }
        outcome.is_ready()
    }

    #[cold]
    fn finish(&self, number: u32, task: Box<Task>) {
        task.handle.done.store(true, Ordering::Relaxed);
        let stale = task.handle.in_ring.load(Ordering::Relaxed);
        // Its drop may run code that wakes or spawns: not while the slots are borrowed.
        drop(task);
        let mut slots = self.slots.borrow_mut();
        slots.tasks -= 1;
        if stale {
            // It woke itself and then ended: its number is still in the ring, which has room for one
            // entry a slot.
            self.remove_from_ring(number);
        }
        slots.slots[number as usize] = Slot::Free { next: slots.free };
        slots.free = Some(number);
    }

    fn remove_from_ring(&self, number: u32) {
        let mut count = self.ready.len_local();
        let mut removed = false;
        while count > 0 {
            let next = self.ready.pop_local();
            if next == number && !removed {
                removed = true;
            } else {
                self.ready.push_local(next);
            }
            count -= 1;
        }
    }

    /// Tasks alive.
    #[cfg(test)]
    pub fn tasks(&self) -> usize {
        self.slots.borrow().tasks
    }

    /// Polls of tasks since start.
    pub fn polls(&self) -> u64 {
        self.polls.get()
    }

    /// Drops all tasks.
    pub fn clear(&self) {
        loop {
            let taken = std::mem::take(&mut self.slots.borrow_mut().slots);
            if taken.is_empty() {
                break;
            }
            drop(taken);
        }
        let mut slots = self.slots.borrow_mut();
        slots.free = None;
        slots.tasks = 0;
    }
}

/// A future whose output somebody else may wait for.
pub struct JoinHandle<T>(std::rc::Rc<JoinState<T>>);

pub(crate) struct JoinState<T> {
    value: Cell<Option<T>>,
    waker: Cell<Option<Waker>>,
    task: Cell<u32>,
}

impl<T> JoinHandle<T> {
    pub(crate) fn new() -> (Self, std::rc::Rc<JoinState<T>>) {
        let state = std::rc::Rc::new(JoinState {
            value: Cell::new(None),
            waker: Cell::new(None),
            task: Cell::new(NOBODY),
        });
        (Self(std::rc::Rc::clone(&state)), state)
    }

    /// The number of the task.
    pub(crate) fn task(&self) -> u32 {
        self.0.task.get()
    }

    pub(crate) fn set_task(&self, task: u32) {
        self.0.task.set(task);
    }

    /// The output, if the task has ended and nobody took it yet.
    pub fn take(&self) -> Option<T> {
        self.0.value.take()
    }
}

impl<T> JoinState<T> {
    pub fn complete(&self, value: T) {
        self.value.set(Some(value));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match self.0.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                self.0.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    async fn yield_now() {
        let mut yielded = false;
        std::future::poll_fn(|cx| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    #[test]
    fn tasks_take_turns() {
        let executor = Executor::new(4);
        let trace = Rc::new(RefCell::new(Vec::new()));
        for name in ["a", "b"] {
            let trace = Rc::clone(&trace);
            executor
                .spawn(async move {
                    for i in 0..2 {
                        trace.borrow_mut().push((name, i));
                        yield_now().await;
                    }
                })
                .unwrap();
        }
        while executor.tasks() > 0 {
            assert!(executor.run(|| ()) > 0);
        }
        assert_eq!(*trace.borrow(), [("a", 0), ("b", 0), ("a", 1), ("b", 1)]);
    }

    #[test]
    fn a_full_executor_refuses_and_recovers() {
        let executor = Executor::new(1);
        executor.spawn(async {}).unwrap();
        assert_eq!(executor.spawn(async {}), Err(TooManyTasks(1)));
        executor.run(|| ());
        for _ in 0..10 {
            // Wakes itself in its last poll: the stale entry must not pile up in the ring.
            executor
                .spawn(std::future::poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    Poll::Ready(())
                }))
                .unwrap();
            assert_eq!(executor.run(|| ()), 1);
        }
        assert!(!executor.has_ready());
    }

    #[test]
    fn a_wake_from_another_thread_arrives() {
        let executor = Executor::new(2);
        let slot: Rc<RefCell<Option<Waker>>> = Rc::default();
        let done = Rc::new(Cell::new(false));
        let (their_slot, their_done) = (Rc::clone(&slot), Rc::clone(&done));
        let mut polled = false;
        executor
            .spawn(async move {
                std::future::poll_fn(move |cx| {
                    if polled {
                        return Poll::Ready(());
                    }
                    polled = true;
                    *their_slot.borrow_mut() = Some(cx.waker().clone());
                    Poll::Pending
                })
                .await;
                their_done.set(true);
            })
            .unwrap();
        executor.run(|| ());
        assert!(!executor.has_ready());
        let waker = slot.borrow_mut().take().unwrap();
        std::thread::spawn(move || waker.wake()).join().unwrap();
        assert!(executor.has_ready());
        executor.run(|| ());
        assert!(done.get());
    }

    #[test]
    fn a_wake_from_another_thread_ends_a_sleep() {
        let executor = Executor::new(1);
        let slot: Rc<RefCell<Option<Waker>>> = Rc::default();
        let theirs = Rc::clone(&slot);
        executor
            .spawn(std::future::poll_fn(move |cx| {
                *theirs.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }))
            .unwrap();
        executor.run(|| ());
        let waker = slot.borrow_mut().take().unwrap();
        assert!(executor.falls_asleep());
        let woken = std::thread::spawn(move || waker.wake());
        let doorbell = executor.doorbell().unwrap();
        let mut fds = [rustix::event::PollFd::new(&doorbell, rustix::event::PollFlags::IN)];
        // Without a bound: a wake that is lost hangs.
        while rustix::event::poll(&mut fds, None).unwrap_or(0) == 0 {}
        woken.join().unwrap();
        executor.wakes_up(true);
        assert!(!executor.falls_asleep(), "a task wants to run");
        executor.run(|| ());
        assert!(executor.falls_asleep());
        executor.wakes_up(false);
    }

    /// Who wakes a task finds the executor asleep, and rings when the task has run already.
    #[test]
    fn a_doorbell_that_rings_late_ends_one_sleep() {
        let executor = Executor::new(1);
        assert!(executor.falls_asleep());
        executor.wakes_up(false);
        executor.ready.ring();
        for rings in [true, false] {
            assert!(executor.falls_asleep());
            let doorbell = executor.doorbell().unwrap();
            let mut fds = [rustix::event::PollFd::new(&doorbell, rustix::event::PollFlags::IN)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut fds, Some(&now)).unwrap_or(0) > 0, rings);
            executor.wakes_up(rings);
        }
    }

    #[test]
    fn there_is_a_trigger_point_between_tasks() {
        let executor = Executor::new(3);
        for _ in 0..3 {
            executor.spawn(async {}).unwrap();
        }
        let mut between = 0;
        assert_eq!(executor.run(|| between += 1), 3);
        assert_eq!(between, 2);
    }

    #[test]
    fn join_handle_gives_the_output() {
        let executor = Executor::new(2);
        let (handle, state) = JoinHandle::new();
        executor
            .spawn(async move {
                yield_now().await;
                state.complete(7);
            })
            .unwrap();
        let got = Rc::new(Cell::new(false));
        let flag = Rc::clone(&got);
        executor
            .spawn(async move {
                flag.set(handle.await == 7);
            })
            .unwrap();
        for _ in 0..4 {
            executor.run(|| ());
        }
        assert!(got.get());
    }
}
