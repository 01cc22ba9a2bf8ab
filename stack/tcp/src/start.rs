//! A start without slow start, where the rate of the path is known: the application says it
//! ([`PacingRate`](crate::PacingRate)), or an earlier connection has seen it.
//!
//! The first window is what the path holds at that rate, and it leaves at that rate. Until all of it
//! has been acknowledged the rate is no more than a claim: what is lost before that, or marked,
//! disproves it, and the connection goes on as if it had started without it, from no more than what
//! has arrived by then. So a path that became slower loses a part of one window, once.
//!
//! What is remembered counts half, as in draft-ietf-tsvwg-careful-resume, whose phases these are
//! (reconnaissance: the handshake; unvalidated and validating: until all is acknowledged; safe
//! retreat), since the path may be shared with others by now.

use crate::config::Clocking;
use crate::congestion::{CWND_MAX, Controller, RATE_MAX, initial_window};
use crate::tcb::{Env, Tcb};

/// How a start at a known rate went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KnownStart {
    /// There was none.
    #[default]
    None,
    /// Its first window is not acknowledged yet.
    Unproven,
    /// All of its first window arrived.
    Proven,
    /// Some of its first window was lost, or met congestion.
    Failed,
}

/// A start at a rate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Start {
    /// None so far.
    #[default]
    None,
    /// `bytes` are to be acknowledged beyond `from`; until then they leave at this rate.
    At { bytes_per_s: u64, from: u64, bytes: u32 },
    /// It was too fast. While the reduction that followed may be taken back: what it was.
    Failed { was: Option<(u64, u64, u32)> },
}

impl Start {
    /// The most that may be sent a second when so many bytes have been acknowledged.
    pub(crate) fn rate(&self, acked_total: u64) -> u64 {
        match *self {
            Self::At { bytes_per_s, from, bytes } if acked_total - from < u64::from(bytes) => {
                bytes_per_s
            }
            _ => RATE_MAX,
        }
    }

    pub(crate) fn outcome(&self, acked_total: u64) -> KnownStart {
        match *self {
            Self::None => KnownStart::None,
            Self::At { from, bytes, .. } if acked_total - from < u64::from(bytes) => {
                KnownStart::Unproven
            }
            Self::At { .. } => KnownStart::Proven,
            Self::Failed { .. } => KnownStart::Failed,
        }
    }
}

/// Bytes that a path holds: `bytes_per_s` for `rtt_us`.
fn volume(bytes_per_s: u64, rtt_us: u32) -> u64 {
    // Both are bounded: 2^40 and 2^26.
    (u128::from(bytes_per_s) * u128::from(rtt_us) / 1_000_000) as u64
}

impl Tcb {
    /// Starts at the rate that the application has set, if it may.
    pub(crate) fn start_at_fixed_rate(&mut self, env: &mut Env<'_>) {
        if let Some(rate) = self.fixed_pacing_rate()
            && self.acked_total == 0
        {
            self.start_at(env, rate.bytes_per_s(), None);
        }
    }

    /// Starts at a rate at which an earlier connection has sent to the same destination, with that
    /// round-trip time, in bytes a second and microseconds: with half of what the path then held. To be called
    /// before the first data is sent; returns whether it does so. It does not if
    /// [`Clocking`](crate::Clocking) does not ask for it, if the application has set a rate, if the
    /// path seems to be another one by its round-trip time (careful-resume section 3.2: below a
    /// half, or above ten times), or if there is nothing to win. Allocates.
    pub fn start_at_remembered_rate(
        &mut self,
        env: &mut Env<'_>,
        bytes_per_s: u64,
        rtt_us: u32,
    ) -> bool {
        let now_us = self.rtt.srtt_us();
        let same = now_us >= rtt_us / 2 && now_us <= rtt_us.saturating_mul(10);
        same && self.acked_total == 0
            && self.fixed_pacing_rate().is_none()
            && self.start_at(env, bytes_per_s / 2, Some(rtt_us))
    }

    /// The connection was idle: a rate that the application has set is as good as before.
    pub(crate) fn restart_at_fixed_rate(&mut self, env: &mut Env<'_>) {
        if let Some(rate) = self.fixed_pacing_rate() {
            self.start_at(env, rate.bytes_per_s(), None);
        }
    }

    /// `seen_rtt_us`: the round-trip time with which the rate is remembered, if it is.
    fn start_at(&mut self, env: &mut Env<'_>, bytes_per_s: u64, seen_rtt_us: Option<u32>) -> bool {
        let (mss, rtt_us) = (u32::from(self.mss), self.rtt.srtt_us());
        let idle = self.snd_una == self.snd_max && self.window.cwnd != 0;
        if env.config.clocking != Clocking::Rate || !idle || rtt_us == 0 {
            return false;
        }
        // A longer round trip than then may be a queue that is full already: no more than was seen
        // to be held (careful-resume: the jump is at most half of the saved window).
        let held = volume(bytes_per_s, seen_rtt_us.map_or(rtt_us, |seen| rtt_us.min(seen)));
        // An ACK for two segments comes a segment late, and a part of a segment is none.
        let spare = if seen_rtt_us.is_some() { 0 } else { held / 8 + 4 * u64::from(mss) };
        let bytes = (held + spare).min(u64::from(CWND_MAX)) as u32;
        let pacer = self.pacer.get_or_insert_default();
        if bytes <= self.window.cwnd || matches!(pacer.start, Start::Failed { .. }) {
            return false;
        }
        pacer.start = Start::At { bytes_per_s, from: self.acked_total, bytes };
        self.window.cwnd = bytes;
        self.congestion.set_rate(bytes_per_s);
        env.stats.known_starts += 1;
        true
    }

    /// The path shows congestion. If that disproves the rate at which the connection started, the
    /// window becomes what has arrived so far, or the usual first window, and that is returned:
    /// everything beyond it was a guess.
    pub(crate) fn retreat(&mut self, env: &mut Env<'_>) -> Option<u32> {
        let pacer = self.pacer.as_deref_mut()?;
        if matches!(pacer.start, Start::Failed { .. }) {
            // What is taken back from now on is another reduction.
            pacer.start = Start::Failed { was: None };
        }
        let Start::At { bytes_per_s, from, bytes } = pacer.start else { return None };
        if pacer.start.outcome(self.acked_total) != KnownStart::Unproven {
            return None;
        }
        pacer.start = Start::Failed { was: Some((bytes_per_s, from, bytes)) };
        let sacked =
            env.slices.flights.get(self.flight).map_or(0, |(flight, _)| flight.sacked_bytes);
        let arrived = self.acked_total.saturating_sub(from).saturating_add(u64::from(sacked));
        let usual = initial_window(env.config.initial_window_segments, u32::from(self.mss));
        let window = (arrived.min(u64::from(CWND_MAX)) as u32).max(usual).min(self.window.cwnd);
        self.window.cwnd = window;
        let rtt_us = u64::from(self.rtt.srtt_us().max(1));
        self.congestion.set_rate(u64::from(window) * 1_000_000 / rtt_us);
        env.stats.known_starts_failed += 1;
        Some(window)
    }

    /// The last reduction had no cause: if it was that of a start, the claim stands again.
    pub(crate) fn advance_again(&mut self, env: &mut Env<'_>) {
        let pipe = self.pipe();
        let Some(pacer) = self.pacer.as_deref_mut() else { return };
        let Start::Failed { was } = pacer.start else { return };
        let Some((bytes_per_s, from, bytes)) = was else {
            // The window before the reduction may be less than what is out since the start.
            self.window.cwnd = self.window.cwnd.max(pipe);
            return;
        };
        pacer.start = Start::At { bytes_per_s, from, bytes };
        // It may have grown before the reduction, and all of that is out.
        self.window.cwnd = self.window.cwnd.max(bytes).max(pipe);
        self.congestion.set_rate(bytes_per_s);
        env.stats.known_starts_failed -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_claim_until_its_window_is_acknowledged() {
        let start = Start::At { bytes_per_s: 5_000, from: 100, bytes: 50 };
        assert_eq!((start.rate(100), start.outcome(149)), (5_000, KnownStart::Unproven));
        assert_eq!((start.rate(150), start.outcome(150)), (RATE_MAX, KnownStart::Proven));
        assert_eq!(
            (Start::None.rate(9), Start::Failed { was: None }.rate(9)),
            (RATE_MAX, RATE_MAX)
        );
        assert_eq!(Start::Failed { was: None }.outcome(9), KnownStart::Failed);
    }

    #[test]
    fn volumes_do_not_overflow() {
        assert_eq!(volume(12_500_000, 100_000), 1_250_000);
        assert_eq!(volume(RATE_MAX, 1 << 26), 73_786_976_294_838);
    }
}
