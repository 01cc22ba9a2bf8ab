//! Packets that wait for a neighbour's link address.
//!
//! They have a place of their own, so that silent neighbours hold up nothing else, and no neighbour
//! has more than a few of them (RFC 1122 section 2.3.2.2, RFC 4861 section 7.2.2).

use std::collections::VecDeque;
use std::net::IpAddr;

use millstream_timer::Instant;

use crate::output::RawFrame;

/// Packets at most; the oldest gives way.
pub(crate) const WAITING_MAX: usize = 64;
/// Packets for one neighbour at most; the oldest gives way, as RFC 4861 recommends.
const EACH_MAX: usize = 3;

struct Waiter {
    ip: IpAddr,
    frame: RawFrame,
    /// Dropped if it waits longer.
    until: Instant,
}

/// The packets, in the order in which they came; never grows beyond what was taken at start.
pub(crate) struct Waiting {
    waiters: VecDeque<Waiter>,
}

impl Waiting {
    pub fn new() -> Self {
        Self { waiters: VecDeque::with_capacity(WAITING_MAX) }
    }

    /// Keeps a packet for `ip`; returns the one that gave way to it, if any had to.
    #[must_use]
    pub fn push(&mut self, ip: IpAddr, frame: RawFrame, until: Instant) -> Option<RawFrame> {
        let theirs = || self.waiters.iter().enumerate().filter(|(_, waiter)| waiter.ip == ip);
        let goes = if theirs().count() >= EACH_MAX {
            theirs().next().map(|(at, _)| at)
        } else {
            (self.waiters.len() >= WAITING_MAX).then_some(0)
        };
        let gone = goes.and_then(|at| self.waiters.remove(at));
        self.waiters.push_back(Waiter { ip, frame, until });
        gone.map(|waiter| waiter.frame)
    }

    /// The oldest packet for `ip`.
    pub fn pop(&mut self, ip: IpAddr) -> Option<RawFrame> {
        let at = self.waiters.iter().position(|waiter| waiter.ip == ip)?;
        self.waiters.remove(at).map(|waiter| waiter.frame)
    }

    /// The next packet that has waited too long.
    pub fn expire(&mut self, now: Instant) -> Option<RawFrame> {
        let oldest = self.waiters.front()?;
        (oldest.until <= now).then(|| self.waiters.pop_front()).flatten().map(|waiter| waiter.frame)
    }

    /// For whom the packet at `at` waits.
    pub fn neighbor_of(&self, at: usize) -> Option<IpAddr> {
        self.waiters.get(at).map(|waiter| waiter.ip)
    }

    /// When [`Self::expire`] has something to do: all wait equally long.
    pub fn next_deadline(&self) -> Instant {
        self.waiters.front().map_or(Instant::FAR_FUTURE, |waiter| waiter.until)
    }
}
