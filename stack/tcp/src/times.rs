//! How long a connection had something to send, and what held it back.

use millstream_timer::Instant;

use crate::tcb::{Env, Facts, TICK_NANOS, Tcb};

/// Times of a sender, to a tick of 1.05 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendTimes {
    /// Microseconds in which data was queued or in flight.
    pub busy_us: u64,
    /// Of these, microseconds in which the peer's window held it back.
    pub window_limited_us: u64,
}

fn micros(ticks: u32) -> u64 {
    u64::from(ticks) * TICK_NANOS / 1000
}

impl Tcb {
    /// What the sender spent its time with, up to `now`.
    pub fn send_times(&self, now: Instant) -> SendTimes {
        let ticks = (now.as_nanos() / TICK_NANOS) as u32;
        let (mut busy, mut limited) = (self.busy_ticks, self.limited_ticks);
        if self.unacked_bytes() != 0 {
            busy = busy.wrapping_add(ticks.wrapping_sub(self.busy_since_ticks));
        }
        if self.facts.contains(Facts::WINDOW_LIMITED) {
            limited = limited.wrapping_add(self.limited_span(ticks));
        }
        SendTimes { busy_us: micros(busy), window_limited_us: micros(limited) }
    }

    /// Ticks since the window began to hold data back: for spans below a minute, after which it is
    /// counted anew with each probe.
    fn limited_span(&self, ticks: u32) -> u32 {
        u32::from((ticks as u16).wrapping_sub(self.limited_since_ticks))
    }

    /// Something waits, and it is the peer's window that holds it back, or not.
    #[cold]
    pub(crate) fn note_window_limit(&mut self, env: &Env<'_>, limited: bool) {
        let ticks = env.now_ticks();
        if self.facts.contains(Facts::WINDOW_LIMITED) {
            self.limited_ticks = self.limited_ticks.wrapping_add(self.limited_span(ticks));
        }
        self.facts.set(Facts::WINDOW_LIMITED, limited);
        self.limited_since_ticks = ticks as u16;
    }

    /// Whether the window holds back what waits.
    pub(crate) fn is_window_limited(&self) -> bool {
        let rest = self.snd_limit().bytes_since(self.snd_nxt);
        let count = rest.min(u32::from(self.mss));
        count != 0
            && self.snd_wnd.saturating_sub(self.flight()) < count
            && self.pipe().saturating_add(count) <= self.window.cwnd
    }
}
