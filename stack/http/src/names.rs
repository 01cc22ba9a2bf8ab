//! Names that are being looked up by helper threads, and the requests that wait for them.

use std::task::{Context, Poll, Waker};

use millstream_disk::{Lookups, Source};

/// The looking up of names by helpers, if there are any.
pub(crate) struct Names {
    helpers: Option<Lookups>,
    waits: Vec<Option<Wait>>,
    free: Vec<u32>,
}

struct Wait {
    waker: Option<Waker>,
    done: bool,
}

/// A request that waits. Goes with [`Names::forget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u32);

impl Names {
    /// `threads` helpers; 0, or none to be had: names are looked up where they are asked for.
    pub fn new(threads: usize) -> Self {
        let helpers = (threads > 0).then(|| Lookups::start(threads)).and_then(|started| {
            started
                .inspect_err(
                    |error| tracing::warn!(%error, "no thread to look names up: the loop does"),
                )
                .ok()
        });
        Self { helpers, waits: Vec::new(), free: Vec::new() }
    }

    /// Whether what waits for a disk is left to helpers.
    pub fn have_helpers(&self) -> bool {
        self.helpers.is_some()
    }

    /// Has a helper look `name` up; `None` if too many wait already.
    pub fn ask(&mut self, source: &Source, name: &[u8]) -> Option<Ticket> {
        let helpers = self.helpers.as_mut()?;
        let number = self.free.pop().unwrap_or_else(|| {
            self.waits.push(None);
            self.waits.len() as u32 - 1
        });
        if !helpers.ask(source, name, u64::from(number)) {
            self.free.push(number);
            return None;
        }
        if let Some(wait) = self.waits.get_mut(number as usize) {
            *wait = Some(Wait { waker: None, done: false });
        }
        Some(Ticket(number))
    }

    /// Ready when the name was looked up; the ticket is used up then.
    pub fn poll(&mut self, ticket: Ticket, cx: &Context<'_>) -> Poll<()> {
        let Some(Some(wait)) = self.waits.get_mut(ticket.0 as usize) else {
            return Poll::Ready(());
        };
        if wait.done {
            self.release(ticket.0);
            return Poll::Ready(());
        }
        wait.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Nobody waits any more. The number is free again when its notice has come.
    pub fn forget(&mut self, ticket: Ticket) {
        match self.waits.get_mut(ticket.0 as usize) {
            Some(Some(wait)) if !wait.done => wait.waker = None,
            _ => self.release(ticket.0),
        }
    }

    fn release(&mut self, number: u32) {
        if let Some(wait) = self.waits.get_mut(number as usize)
            && wait.take().is_some()
        {
            self.free.push(number);
        }
    }

    /// Takes notices and wakes who waits for them.
    pub fn take_notices(&mut self) {
        while let Some(token) = self.helpers.as_mut().and_then(Lookups::notice) {
            let Some(Some(wait)) = self.waits.get_mut(token as usize) else { continue };
            wait.done = true;
            match wait.waker.take() {
                Some(waker) => waker.wake(),
                None => self.release(token as u32),
            }
        }
    }

    pub fn is_idle(&self) -> bool {
        self.helpers.as_ref().is_none_or(|helpers| helpers.in_flight() == 0)
    }
}
