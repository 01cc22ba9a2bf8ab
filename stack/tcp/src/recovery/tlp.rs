//! Tail loss probes: what to do when the last segments of a flight may be lost, so that no later
//! one can tell (RFC 8985 section 7).

use millstream_wire::tcp::SeqNumber;

use crate::congestion::Signal;
use crate::recovery::CongestionState;
use crate::recovery::scoreboard::Progress;
use crate::segment::Segment;
use crate::tcb::{Env, Facts, Marks, Tcb};

/// A probe.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Probe {
    /// Behind the highest number sent when it was sent; none: there is no probe out.
    pub(crate) high_seq: Option<SeqNumber>,
    /// It repeated a segment.
    pub(crate) resent: bool,
}

impl Probe {
    pub(crate) fn is_out(&self) -> bool {
        self.high_seq.is_some()
    }
}

impl Tcb {
    /// Whether the timer of a flight is that of a probe and not the retransmission time-out (RFC
    /// 8985 section 7.2).
    #[inline]
    pub(crate) fn probes(&self, env: &Env<'_>) -> bool {
        self.facts.contains(Facts::SACK)
            && env.config.rack
            && self.backoff == 0
            && matches!(self.ca_state, CongestionState::Open | CongestionState::Cwr)
            && !self.marks.contains(Marks::PROBED)
            && self.state.transmits()
    }

    /// Microseconds after which a probe is due: two round trips, and what the peer may hold back
    /// the ACK of a lone segment.
    pub(crate) fn probe_timeout_us(&self, env: &Env<'_>) -> u32 {
        if self.is_lone(env) {
            return self.lone_timeout_us;
        }
        // A tick of a coarse clock at the peer.
        (2 * self.rtt.srtt_us()).saturating_add(2_000)
    }

    /// Works out anew how long a lone segment is waited for.
    pub(crate) fn note_lone_timeout(&mut self, env: &Env<'_>) {
        let mut timeout_us = self.rtt.rto_us;
        if self.facts.contains(Facts::SACK) && env.config.rack && self.rtt.srtt_us() != 0 {
            let patience_us = if self.marks.contains(Marks::PATIENT) {
                env.config.min_rto_us
            } else {
                env.config.probe_ack_delay_us
            };
            timeout_us = timeout_us.min((2 * self.rtt.srtt_us()).saturating_add(patience_us));
        }
        self.lone_timeout_us = timeout_us;
    }

    fn is_lone(&self, env: &Env<'_>) -> bool {
        env.slices.flights.get(self.flight).is_some_and(|(flight, records)| {
            flight.head == flight.last_index()
                && records.get(flight.head).is_none_or(|record| record.segments == 1)
        })
    }

    /// The time for a probe has come.
    pub(crate) fn on_probe_timeout(&mut self, env: &mut Env<'_>) {
        env.stats.loss_probes += 1;
        self.facts.insert(Facts::TX_AGAIN);
        self.arm_time_out(env);
    }

    /// Sends one segment out of turn: a probe; or the oldest one if there was no memory to keep
    /// account of the flight. `false` if there is nothing to send.
    pub(crate) fn transmit_again(&mut self, env: &mut Env<'_>, out: &mut Segment) -> bool {
        if self.snd_una == self.snd_max || !self.state.transmits() {
            return false;
        }
        if self.retries != 0 || !self.open_whole_flight(env) {
            return self.transmit_first(env, out);
        }
        // New data is the better probe (RFC 8985 section 7.3), if the peer takes it.
        let rest = self.snd_limit().bytes_since(self.snd_nxt);
        let mut count = rest.min(u32::from(self.mss));
        count = count.min((self.snd_una + self.snd_wnd).distance(self.snd_nxt).max(0) as u32);
        let resent = count == 0;
        if resent {
            let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return false };
            let last = flight.last_index();
            if !self.resend_last(env, out, last) {
                return false;
            }
        } else {
            self.transmit_data(env, out, count);
        }
        let high_seq = Some(self.snd_max);
        if let Some((flight, _)) = env.slices.flights.get_mut(self.flight) {
            flight.probe = Probe { high_seq, resent };
        }
        self.sync_flight(env);
        self.arm_time_out(env);
        true
    }

    /// Sends the last segment again, and no more of the last record than that.
    #[must_use]
    fn resend_last(&mut self, env: &mut Env<'_>, out: &mut Segment, mut index: u32) -> bool {
        let mss = u32::from(self.mss);
        if let Some((flight, records)) = env.slices.flights.get_mut(self.flight)
            && let Some(last) = flight.last(records).copied()
            && last.len() > mss
        {
            let whole = (last.len() - 1) / mss * mss;
            if flight.split(records, index, last.start + whole) {
                index = flight.last_index();
            }
        }
        self.resend(env, out, index)
    }

    /// What an ACK up to `ack` tells about a probe (RFC 8985 section 7.4).
    pub(crate) fn judge_probe(
        &mut self,
        env: &mut Env<'_>,
        ack: SeqNumber,
        duplicate: bool,
        progress: &Progress,
    ) {
        let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return };
        let Some(high_seq) = flight.probe.high_seq else { return };
        if ack.lt(high_seq) {
            return;
        }
        if !flight.probe.resent {
            flight.probe = Probe::default();
        } else if progress.dsack_of_probe {
            // Both arrived. The peer takes its time with ACKs.
            flight.probe = Probe::default();
            self.marks.insert(Marks::PATIENT);
            self.note_lone_timeout(env);
            env.stats.loss_probes_needless += 1;
        } else if ack.gt(high_seq) {
            // No report of a duplicate by the time that more is acknowledged: there was a loss,
            // which the probe repaired. One reduction for it.
            self.begin_reduction(env, Signal::Loss);
            self.ca_state = CongestionState::Cwr;
            self.end_reduction(env);
            self.try_keep_open(env);
        } else if duplicate && !progress.sacked {
            flight.probe = Probe::default();
        }
    }
}
