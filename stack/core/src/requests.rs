//! Requests to tasks that work for others, the most important first.
//!
//! Liu's multithreaded server: a request carries its client's priority through the queue, and who
//! works on it does so in the client's container and at its priority; whoever waits for a worker that
//! is busy with something less important lends it his own meanwhile. All is given back with the reply.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::container::{PRIORITIES, Standing};
use crate::stack::Stack;

/// Why a request had no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The queue is full.
    #[error("{0} requests wait already; add workers or make the queue longer")]
    Full(usize),
    /// The worker dropped it.
    #[error("the worker gave the request up without a reply")]
    Abandoned,
}

/// What a client waits for.
struct Reply<R> {
    value: Cell<Option<R>>,
    waker: Cell<Option<Waker>>,
    abandoned: Cell<bool>,
    /// The task that asked.
    client: Option<u32>,
    /// It waits no more.
    gone: Cell<bool>,
}

struct Waiting<Q, R> {
    value: Q,
    standing: Standing,
    reply: Rc<Reply<R>>,
}

struct Shared<Q, R> {
    stack: Stack,
    capacity: usize,
    waiting: usize,
    /// By priority.
    queues: Vec<VecDeque<Waiting<Q, R>>>,
    /// A bit for each queue that is not empty.
    occupied: u64,
    /// Workers that have nothing to do.
    idle: VecDeque<(Option<u32>, Waker)>,
    /// Workers that have, the longest first, with what they work on.
    busy: VecDeque<(u32, Rc<Reply<R>>)>,
}

/// The clients' end of a queue.
pub struct Requests<Q, R>(Rc<RefCell<Shared<Q, R>>>);

impl<Q, R> Clone for Requests<Q, R> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

/// The workers' end of a queue.
pub struct RequestQueue<Q, R>(Rc<RefCell<Shared<Q, R>>>);

impl<Q, R> Clone for RequestQueue<Q, R> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

/// A request that a worker has taken. While it lives the worker runs as its client would.
pub struct Request<Q, R> {
    /// What is asked for.
    pub value: Q,
    done: Working<Q, R>,
}

/// Gives back what the worker was lent.
struct Working<Q, R> {
    shared: Rc<RefCell<Shared<Q, R>>>,
    reply: Rc<Reply<R>>,
    worker: Option<u32>,
    /// The worker's container by itself.
    own: u16,
}

/// A queue for at most `capacity` requests that wait for a worker.
pub(crate) fn queue<Q, R>(stack: &Stack, capacity: usize) -> (Requests<Q, R>, RequestQueue<Q, R>) {
    let shared = Rc::new(RefCell::new(Shared {
        stack: stack.clone(),
        capacity,
        waiting: 0,
        queues: (0..PRIORITIES).map(|_| VecDeque::new()).collect(),
        occupied: 0,
        idle: VecDeque::new(),
        busy: VecDeque::new(),
    }));
    (Requests(Rc::clone(&shared)), RequestQueue(shared))
}

impl<Q, R> Shared<Q, R> {
    /// The most important request, and of those the oldest.
    fn pop(&mut self) -> Option<Waiting<Q, R>> {
        while self.occupied != 0 {
            let priority = 63 - self.occupied.leading_zeros();
            let queue = self.queues.get_mut(priority as usize)?;
            let next = queue.pop_front();
            if queue.is_empty() {
                self.occupied &= !(1 << priority);
            }
            let Some(next) = next else { continue };
            self.waiting -= 1;
            if !next.reply.gone.get() {
                return Some(next);
            }
        }
        None
    }
}

impl<Q, R> Requests<Q, R> {
    /// Asks, and waits for the reply.
    ///
    /// # Errors
    /// [`RequestError`]
    pub fn call(&self, value: Q) -> impl Future<Output = Result<R, RequestError>> + use<Q, R> {
        let shared = Rc::clone(&self.0);
        let mut value = Some(value);
        let mut call: Option<Call<Q, R>> = None;
        poll_fn(move |cx| {
            if let Some(value) = value.take() {
                match Call::start(&shared, value) {
                    Ok(started) => call = Some(started),
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            let Some(Call { reply, .. }) = &call else { return Poll::Pending };
            if let Some(value) = reply.value.take() {
                return Poll::Ready(Ok(value));
            }
            if reply.abandoned.get() {
                return Poll::Ready(Err(RequestError::Abandoned));
            }
            reply.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
    }
}

/// A client that waits. Dropped, it does no more.
struct Call<Q, R> {
    shared: Rc<RefCell<Shared<Q, R>>>,
    reply: Rc<Reply<R>>,
}

impl<Q, R> Call<Q, R> {
    fn start(shared: &Rc<RefCell<Shared<Q, R>>>, value: Q) -> Result<Self, RequestError> {
        let mut queue = shared.borrow_mut();
        if queue.waiting >= queue.capacity {
            return Err(RequestError::Full(queue.capacity));
        }
        let client = queue.stack.0.executor.current();
        let standing = queue.stack.state().standing_of(client);
        let reply = Rc::new(Reply {
            value: Cell::new(None),
            waker: Cell::new(None),
            abandoned: Cell::new(false),
            client,
            gone: Cell::new(false),
        });
        let waiting = Waiting { value, standing, reply: Rc::clone(&reply) };
        let priority = usize::from(standing.priority.min(PRIORITIES - 1));
        queue.queues[priority].push_back(waiting);
        queue.occupied |= 1 << priority;
        queue.waiting += 1;
        let worker = match queue.idle.pop_front() {
            Some((worker, waker)) => {
                waker.wake();
                worker
            }
            // All work for others: the one that has for longest is waited for.
            None => queue.busy.front().map(|(worker, _)| *worker),
        };
        if let (Some(client), Some(worker)) = (client, worker) {
            // So that it comes to its turn at all.
            let mut state = queue.stack.state();
            state.with_standings(|standings, changed| standings.wait(client, worker, changed));
        }
        drop(queue);
        Ok(Self { shared: Rc::clone(shared), reply })
    }
}

impl<Q, R> Drop for Call<Q, R> {
    fn drop(&mut self) {
        self.reply.gone.set(true);
        if let Some(client) = self.reply.client {
            let stack = self.shared.borrow().stack.clone();
            stack.state().with_standings(|standings, changed| standings.end_wait(client, changed));
        }
    }
}

impl<Q, R> RequestQueue<Q, R> {
    /// Waits for the most important request. Until it has its reply, the task runs as its client would.
    pub async fn next(&self) -> Request<Q, R> {
        let taken = poll_fn(|cx| {
            let mut shared = self.0.borrow_mut();
            match shared.pop() {
                Some(taken) => Poll::Ready(taken),
                None => {
                    if !shared.idle.iter().any(|(_, waker)| waker.will_wake(cx.waker())) {
                        let worker = shared.stack.0.executor.current();
                        shared.idle.push_back((worker, cx.waker().clone()));
                    }
                    Poll::Pending
                }
            }
        })
        .await;
        let Waiting { value, standing, reply } = taken;
        let mut shared = self.0.borrow_mut();
        let worker = shared.stack.0.executor.current();
        let mut own = standing.container;
        if let Some(worker) = worker {
            shared.busy.push_back((worker, Rc::clone(&reply)));
            let mut state = shared.stack.state();
            own = state.own_container_of(Some(worker));
            state.set_task_container(worker, standing.container);
            if let Some(client) = reply.client {
                state.with_standings(|standings, changed| standings.wait(client, worker, changed));
            }
        }
        drop(shared);
        let done = Working { shared: Rc::clone(&self.0), reply, worker, own };
        Request { value, done }
    }

    /// Requests that wait for a worker.
    pub fn waiting(&self) -> usize {
        self.0.borrow().waiting
    }
}

impl<Q, R> Request<Q, R> {
    /// Gives the client its reply.
    pub fn reply(self, value: R) {
        self.done.reply.value.set(Some(value));
    }
}

impl<Q, R> Drop for Working<Q, R> {
    fn drop(&mut self) {
        let value = self.reply.value.take();
        self.reply.abandoned.set(value.is_none());
        self.reply.value.set(value);
        if let Some(waker) = self.reply.waker.take() {
            waker.wake();
        }
        let mut shared = self.shared.borrow_mut();
        shared.busy.retain(|(_, reply)| !Rc::ptr_eq(reply, &self.reply));
        let mut state = shared.stack.state();
        if let Some(client) = self.reply.client {
            state.with_standings(|standings, changed| standings.end_wait(client, changed));
        }
        if let Some(worker) = self.worker {
            state.set_task_container(worker, self.own);
        }
    }
}
