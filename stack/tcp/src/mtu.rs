//! The path's limit on segments: told by routers (RFC 1191, RFC 8201), or found out (RFC 4821).
//!
//! Larger segments are tried one at a time, when whoever keeps account of paths says so. The segment
//! that is tried carries data, so that it costs nothing if it passes; if it is lost, and nothing else
//! is, that is no congestion (RFC 4821 section 7.5), and its data is sent again in smaller ones.

use millstream_wire::tcp::{Flags, SeqNumber};

use crate::recovery::CongestionState;
use crate::segment::Segment;
use crate::slab::SliceSlab;
use crate::state::{Events, State};
use crate::tcb::{Env, Facts, Marks, Tcb};

/// Payload and options that nearly every path carries: all of IPv6 do (RFC 8200 section 5), and it is
/// above the 1024 bytes to which RFC 4821 section 7.2 goes back.
const LIMIT_SAFE: u16 = 1280 - 60;

/// The least payload that a report leaves a connection: what 576-byte packets carry.
const LIMIT_MIN: u16 = 512;

/// Segments that must follow one that is tried, so that its loss is told of (RFC 4821 section 7.4).
const FOLLOWERS: u32 = 4;

/// A segment larger than those that are known to pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trial {
    /// Its payload and options; 0: there is none.
    limit: u16,
    /// Behind its last byte, once it is sent.
    pub(crate) end: Option<SeqNumber>,
    /// How often segments had been sent again then.
    retransmits: u32,
}

impl Tcb {
    /// Has one segment of so many bytes of payload and options sent, more than
    /// [`Self::segment_limit`], as soon as it can be. If it arrives, others may be as large. Returns
    /// whether there is data enough under way and waiting for that. The caller sees to it that the
    /// peer takes such segments.
    #[cold]
    pub fn try_segments(&mut self, env: &mut Env<'_>, limit: u16) -> bool {
        let can = self.can_try(limit);
        let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return false };
        if !can || self.snd_una == self.snd_max {
            return false;
        }
        flight.trial = Trial { limit, ..Trial::default() };
        self.facts.insert(Facts::TX_LARGER);
        true
    }

    /// Segments of so many bytes of payload and options pass, as another connection to the same host
    /// has found out.
    #[cold]
    pub fn raise_segments(&mut self, limit: u16) {
        let ours = self.mss + self.usual_options_len() as u16;
        // Where the peer takes no more, nothing is gained.
        if self.state != State::Closed && limit > self.mss_limit && ours == self.mss_limit {
            self.mss_limit = limit;
            self.mss = limit - self.usual_options_len() as u16;
        }
    }

    /// Whether what [`Self::try_segments`] began is not over yet. When it is, [`Self::segment_limit`]
    /// tells if it passed, and [`TcpStats::larger_lost`](crate::TcpStats::larger_lost) if it was lost;
    /// else it cannot be told.
    pub fn is_trying(&self, slices: &SliceSlab) -> bool {
        slices.flights.get(self.flight).is_some_and(|(flight, _)| flight.trial.limit != 0)
    }

    /// The most payload and options that segments have.
    pub fn segment_most(&self) -> u16 {
        self.mss + self.usual_options_len() as u16
    }

    fn can_try(&self, limit: u16) -> bool {
        let waits = self.unsent_bytes() as u64;
        self.state.transmits()
            && self.ca_state == CongestionState::Open
            && self.backoff == 0
            && self.snd_nxt == self.snd_max
            && !self.facts.contains(Facts::PERSIST)
            && limit > self.mss_limit
            && waits >= u64::from(limit) + u64::from(FOLLOWERS) * u64::from(self.mss)
    }

    /// Sends the segment that is to be tried; `false` if not now, or not any more.
    pub(crate) fn transmit_larger(&mut self, env: &mut Env<'_>, out: &mut Segment) -> bool {
        let trial = env.slices.flights.get(self.flight).map(|(flight, _)| flight.trial);
        let limit = trial.map_or(0, |trial| trial.limit);
        if !self.can_try(limit) {
            self.end_trial(env);
            return false;
        }
        let payload = u32::from(limit) - self.usual_options_len() as u32;
        // It counts as one segment for the congestion window, as in Linux, but the peer's is its own.
        let room = self.snd_wnd.saturating_sub(self.flight()) >= payload
            && self.pipe().saturating_add(u32::from(self.mss)) <= self.window.cwnd
            && !self.marks.contains(Marks::PACE_WAIT);
        if !room {
            return false;
        }
        let seq = self.snd_nxt;
        self.fill(env, out, seq, Flags::ACK);
        let extra = out.options.len().saturating_sub(self.usual_options_len()) as u32;
        let wanted = payload.saturating_sub(extra);
        let sent = self.send_queue.gather_next(env.slices, seq, wanted, &mut out.payload);
        let end = seq + sent;
        self.mark_new(out);
        env.stats.bytes_out += u64::from(sent);
        if self.facts.contains(Facts::PACED) {
            self.pace(env, sent);
        }
        self.note_sent(env, seq, end);
        self.facts.remove(Facts::TX_LARGER);
        let retransmits = self.retransmits;
        if let Some((flight, _)) = env.slices.flights.get_mut(self.flight) {
            // A record ended, or there were too many slices: an ordinary segment.
            flight.trial = if sent < wanted {
                Trial::default()
            } else {
                env.stats.larger_tried += 1;
                Trial { limit, end: Some(end), retransmits }
            };
        }
        self.sync_flight(env);
        true
    }

    fn end_trial(&mut self, env: &mut Env<'_>) {
        self.facts.remove(Facts::TX_LARGER);
        if let Some((flight, _)) = env.slices.flights.get_mut(self.flight) {
            flight.trial = Trial::default();
        }
    }

    /// After an ACK: whether what was tried has passed. If anything was sent again meanwhile it cannot
    /// be told.
    pub(crate) fn judge_trial(&mut self, env: &mut Env<'_>) {
        let trial = env.slices.flights.get(self.flight).map(|(flight, _)| flight.trial);
        if let Some(Trial { limit, end: Some(end), retransmits }) = trial
            && self.snd_una.ge(end)
        {
            self.end_trial(env);
            if retransmits == self.retransmits {
                env.stats.larger_passed += 1;
                self.mss_limit = limit;
                self.mss = limit - self.usual_options_len() as u16;
            }
        }
    }

    /// Whether what is lost is the segment that was tried, and nothing else. It is cut anew, and the
    /// window stays.
    pub(crate) fn trial_is_lost(&mut self, env: &mut Env<'_>) -> bool {
        let max = self.snd_max;
        let Some((flight, records)) = env.slices.flights.get_mut(self.flight) else { return false };
        let Some(end) = flight.trial.end else { return false };
        let lost = flight.next_lost(records).and_then(|index| records.get(index));
        if !lost.is_some_and(|lost| lost.end == end && lost.len() == flight.lost_bytes) {
            return false;
        }
        flight.begin_repair(max);
        self.ca_state = CongestionState::Loss;
        self.end_trial(env);
        env.stats.larger_lost += 1;
        true
    }

    /// Whether a segment with the number `seq` is under way: who quotes such a one has seen it, or
    /// guessed one number in 2^32 / window (RFC 5927 section 4).
    pub fn is_in_flight(&self, seq: SeqNumber) -> bool {
        self.state != State::Closed && !seq.lt(self.snd_una) && seq.lt(self.snd_max)
    }

    /// The most payload and options that a segment may have on the link or the path, as far as that
    /// is known.
    pub fn segment_limit(&self) -> u16 {
        self.mss_limit
    }

    /// The path carries no more than `limit` bytes of payload and options in a segment. What is
    /// under way is cut anew and sent again; it was not lost to congestion, so the window stays (RFC
    /// 1191 section 6.5, RFC 8201 section 5.4).
    #[cold]
    pub fn limit_segments(&mut self, env: &mut Env<'_>, limit: u16) -> Events {
        let limit = limit.max(LIMIT_MIN);
        if self.state == State::Closed || limit >= self.mss_limit {
            return Events::empty();
        }
        self.mss_limit = limit;
        let options = if self.facts.contains(Facts::TIMESTAMPS) { 12 } else { 0 };
        let mss = limit - options;
        if mss >= self.mss {
            return Events::empty();
        }
        self.mss = mss;
        env.stats.path_limits += 1;
        if self.state.transmits() && self.snd_una != self.snd_max {
            self.resend_too_large(env);
            self.arm_retransmit(env);
        }
        let mut events = Events::empty();
        events.set(Events::TRANSMIT, self.wants_transmit());
        events
    }

    /// Data was sent again and again, and nothing came back: large segments may vanish on a path whose
    /// routers tell nobody. Costs little if something else is wrong.
    #[cold]
    pub(crate) fn suspect_black_hole(&mut self, env: &mut Env<'_>) {
        let under_way = self.snd_max.bytes_since(self.snd_una).min(u32::from(self.mss));
        if under_way > u32::from(LIMIT_SAFE) {
            env.stats.black_holes += 1;
            self.limit_segments(env, LIMIT_SAFE);
        }
    }
}
