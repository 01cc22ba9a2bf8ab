//! What follows from duplicate ACKs and time-outs: NewReno's recovery (RFC 6582).

use crate::congestion::{Ack, CWND_MAX, Controller, Signal};
use crate::tcb::{Env, Facts, Tcb};

/// Duplicate ACKs that show a loss (RFC 5681 section 3.2).
const DUPLICATE_ACKS: u8 = 3;

impl Tcb {
    /// Numbers acknowledged since the connection was opened, the SYN's and the FIN's included. It
    /// does not wrap, as sequence numbers do when nothing is lost for 2 GiB.
    fn acked_numbers(&self) -> u64 {
        1 + self.acked_total + u64::from(self.fin_acked())
    }

    /// RFC 5681 section 3.2 and RFC 6582 section 3.2.
    pub(crate) fn on_duplicate_ack(&mut self, env: &mut Env<'_>) {
        env.stats.dup_acks_in += 1;
        self.dup_acks = self.dup_acks.saturating_add(1);
        let mss = u32::from(self.mss);
        if self.facts.contains(Facts::IN_RECOVERY) {
            // A segment has left the network.
            self.window.cwnd = (self.window.cwnd + mss).min(CWND_MAX);
            return;
        }
        // After a time-out, duplicates of what was in flight then prove nothing.
        if self.dup_acks != DUPLICATE_ACKS || self.acked_numbers() <= self.recover {
            return;
        }
        let flight = self.snd_max.bytes_since(self.snd_una);
        self.window.ssthresh = self.congestion.on_congestion(
            &self.window,
            Signal::Loss,
            flight,
            mss,
            env.now.as_micros(),
        );
        self.window.cwnd = (self.window.ssthresh + u32::from(DUPLICATE_ACKS) * mss).min(CWND_MAX);
        self.recover = self.acked_numbers() + u64::from(flight);
        self.facts.remove(Facts::TIMING);
        self.facts.insert(Facts::IN_RECOVERY | Facts::TX_FIRST);
        env.stats.fast_retransmits += 1;
    }

    /// Tells the controller that `acked` numbers were acknowledged outside of recovery while the
    /// congestion window was what held this side back.
    #[inline]
    pub(crate) fn tell_controller(&mut self, env: &Env<'_>, acked: u32) {
        let flight = self.flight();
        let ack = Ack {
            now_us: env.now.as_micros(),
            delivered: acked,
            flight,
            prior_flight: flight.saturating_add(acked),
            mss: u32::from(self.mss),
            srtt_us: self.rtt.srtt_us(),
            cwnd_limited: true,
            total_delivered: self.acked_total,
            ..Ack::default()
        };
        self.congestion.on_ack(&mut self.window, &ack);
    }

    /// `acked` numbers were acknowledged in recovery.
    pub(crate) fn on_ack_in_recovery(&mut self, env: &Env<'_>, acked: u32) {
        let mss = u32::from(self.mss);
        if self.acked_numbers() >= self.recover {
            // All that was out is there. The smaller one, so that no burst follows.
            let flight = self.snd_max.bytes_since(self.snd_una);
            self.window.cwnd = self.window.ssthresh.min(flight.max(mss) + mss);
            self.facts.remove(Facts::IN_RECOVERY);
            self.congestion.on_recovered(&mut self.window, env.now.as_micros());
            return;
        }
        // A partial one: the next segment is missing too.
        self.facts.insert(Facts::TX_FIRST);
        let mut cwnd = self.window.cwnd.saturating_sub(acked);
        if acked >= mss {
            cwnd += mss;
        }
        self.window.cwnd = cwnd.max(mss);
    }

    /// RFC 6298 sections 5.4 to 5.6, RFC 5681 section 3.1: back to the oldest byte, with one
    /// segment.
    pub(crate) fn on_retransmit_timeout(&mut self, env: &mut Env<'_>) {
        let first = self.retries == 0;
        if first {
            self.stalled_ticks = env.now_ticks();
        }
        let flight = self.snd_max.bytes_since(self.snd_una);
        let (mss, now_us) = (u32::from(self.mss), env.now.as_micros());
        self.congestion.on_timeout(&mut self.window, flight, mss, first, now_us);
        self.recover = self.acked_numbers() + u64::from(flight);
        self.dup_acks = 0;
        self.facts.remove(Facts::IN_RECOVERY | Facts::TIMING | Facts::TX_FIRST);
        self.snd_nxt = self.snd_una;
        self.send_queue.rewind();
        self.retries = self.retries.saturating_add(1);
        self.backoff = self.backoff.saturating_add(1);
    }
}
