//! Loss recovery: what is lost, when to say so, and what to send again.
//!
//! | file | concern |
//! |---|---|
//! | `scoreboard` | what ACKs and losses do to the records of a flight (RFC 2018, RFC 6675) |
//! | `ack` | an ACK, from its selective part to the congestion window |
//! | `rack` | losses by time (RFC 8985) |
//! | `tlp` | probes for a lost tail (RFC 8985) |
//! | `prr` | the window while a loss is repaired (RFC 9937) |
//! | `undo` | losses that were none (RFC 3522, RFC 4015, RFC 5682) |
//!
//! The states and the order of things are those of Linux's TCP, which is what peers are tuned to.
//! Without SACK, duplicate ACKs stand for segments that the peer has, and the rest is the same.

mod ack;
mod prr;
mod rack;
mod scoreboard;
mod tlp;
mod undo;

use millstream_timer::Instant;
use millstream_wire::tcp::{Flags, SeqNumber};

pub(crate) use ack::Before;
pub(crate) use prr::Prr;
pub(crate) use rack::Rack;
pub(crate) use tlp::Probe;
pub(crate) use undo::Undo;

use crate::congestion::{Controller, Signal};
use crate::flight::{Fate, Flight, Record, Records};
use crate::mtu::Trial;
use crate::recovery::scoreboard::Progress;
use crate::segment::Segment;
use crate::slab::NIL;
use crate::tcb::{Env, Facts, Marks, Tcb};

/// Segments that the peer must have above one that is lost (RFC 5681 section 3.2), unless the path
/// is known to reorder more.
pub(crate) const DUPLICATE_THRESHOLD: u16 = 3;

/// What a sender makes of the ACKs that come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum CongestionState {
    /// All is well.
    #[default]
    Open,
    /// Something is missing at the peer, which may have been reordered.
    Disorder,
    /// The window is being reduced though nothing is lost: the peer echoes a mark, or a probe
    /// repaired a loss.
    Cwr,
    /// A loss is being repaired.
    Recovery,
    /// A retransmission time-out is being recovered from.
    Loss,
}

impl Flight {
    /// What is lost was not lost to congestion: it is repaired without a reduction, until all that was
    /// sent before `max` is acknowledged.
    pub(crate) fn begin_repair(&mut self, max: SeqNumber) {
        self.high_seq = max;
        self.undo = Undo::default();
        self.probe = Probe::default();
    }
}

impl Tcb {
    /// Numbers in flight: sent, and neither acknowledged in any way nor lost (RFC 6675, "pipe").
    #[inline]
    pub(crate) fn pipe(&self) -> u32 {
        // Never below zero, whatever was made of duplicate ACKs.
        let pipe = self.flight().wrapping_sub(self.left_out);
        if pipe as i32 >= 0 { pipe } else { 0 }
    }

    /// Whether the window is being reduced step by step.
    #[inline]
    pub(crate) fn reducing(&self) -> bool {
        matches!(self.ca_state, CongestionState::Cwr | CongestionState::Recovery)
    }

    /// Whether a lost segment may be sent again now.
    #[inline]
    pub(crate) fn can_resend(&self) -> bool {
        self.facts.contains(Facts::TX_LOST) && self.resend_fits()
    }

    #[cold]
    fn resend_fits(&self) -> bool {
        let pipe = self.pipe();
        self.state.transmits()
            && self.snd_wnd != 0
            && !self.facts.contains(Facts::PERSIST)
            && !self.marks.contains(Marks::PACE_WAIT)
            && (pipe == 0 || pipe.saturating_add(u32::from(self.mss)) <= self.window.cwnd)
    }

    /// Sees to it that there is a flight for what is out; `false` if there is no memory for one.
    pub(crate) fn open_flight(&mut self, env: &mut Env<'_>) -> bool {
        if self.flight != NIL {
            return true;
        }
        let flights = &mut env.slices.flights;
        self.flight = flights.open(self.snd_una);
        let Some((flight, records)) = flights.get_mut(self.flight) else {
            env.stats.flight_full += 1;
            return false;
        };
        let out = self.snd_nxt.bytes_since(self.snd_una);
        let since_us = if out == 0 { 0 } else { self.since_sent_us(env.now) };
        let sent_us = (env.now.as_micros() as u32).wrapping_sub(since_us);
        flight.rate.begin(self.acked_total, sent_us);
        flight.high_seq = self.snd_max;
        flight.usage_seq = self.snd_max;
        flight.out_max_bytes = out;
        if out == 0 {
            return true;
        }
        let segments = out.div_ceil(u32::from(self.mss)).min(0xffff) as u16;
        flight.push(records, (self.snd_una, self.snd_nxt), segments, sent_us, out);
        if flight.head == NIL {
            flights.close(self.flight);
            self.flight = NIL;
            env.stats.flight_full += 1;
            return false;
        }
        true
    }

    /// As [`Self::open_flight`], and the flight tells of the oldest number that is out: one that was
    /// open and empty when no record was to be had does not.
    pub(crate) fn open_whole_flight(&mut self, env: &mut Env<'_>) -> bool {
        let una = self.snd_una;
        if let Some((flight, records)) = env.slices.flights.get(self.flight)
            && records.get(flight.head).is_none_or(|head| head.start != una)
        {
            self.close_flight(env);
        }
        self.open_flight(env)
    }

    /// Sees to what the congestion controller wants to be told.
    pub(crate) fn serve_controller(&mut self, env: &mut Env<'_>) {
        let every = self.congestion.wants_every_ack() || self.congestion.wants_rate_samples();
        self.facts.set(Facts::EVERY_ACK, every);
        self.begin_pacing(env);
        if every {
            self.open_flight(env);
        }
    }

    /// Forgets all that is known about the flight.
    pub(crate) fn close_flight(&mut self, env: &mut Env<'_>) {
        if self.flight != NIL {
            env.slices.flights.close(self.flight);
            self.flight = NIL;
            self.left_out = 0;
            self.ca_state = CongestionState::Open;
            self.facts.remove(Facts::REPAIR | Facts::TX_LOST);
            self.marks.remove(Marks::PROBED | Marks::REO_TIMER);
        }
    }

    /// All is acknowledged, and nothing is left to find out about it.
    #[inline]
    pub(crate) fn rest_flight(&mut self, env: &mut Env<'_>) {
        // Controllers that measure rates measure on.
        if !self.facts.contains(Facts::EVERY_ACK) {
            self.close_flight(env);
        } else {
            self.left_out = 0;
            self.facts.remove(Facts::REPAIR | Facts::TX_LOST);
            self.marks.remove(Marks::PROBED | Marks::REO_TIMER);
        }
    }

    /// Records that the numbers from `snd_nxt`, which was `snd_max`, up to `end` were sent for the
    /// first time, in so many segments, while others are in flight.
    #[inline(never)]
    pub(crate) fn record_sent(&mut self, env: &mut Env<'_>, end: SeqNumber, segments: u16) {
        self.record(env, end, segments);
        self.last_send_ticks = env.now_ticks();
        // RFC 6298 section 5.1; and RFC 8985 section 7.2 for as long as nothing is lost: the time
        // for a probe starts anew with what is sent.
        if self.retransmit_at == Instant::FAR_FUTURE || !self.facts.contains(Facts::REPAIR) {
            self.arm_retransmit(env);
        }
    }

    fn record(&mut self, env: &mut Env<'_>, end: SeqNumber, segments: u16) {
        let (start, now_us) = (self.snd_nxt, env.now_us());
        if !self.open_flight(env) {
            self.sent_64ns = env.now_64ns();
            self.facts.remove(Facts::TIMING);
            return;
        }
        let count = end.bytes_since(start);
        let tx_flight = self.pipe() + count;
        let mss = u32::from(self.mss);
        let last = end.ge(self.snd_end);
        let idle = self.snd_una == start;
        let Some((flight, records)) = env.slices.flights.get_mut(self.flight) else { return };
        if idle {
            flight.rate.begin(flight.rate.delivered, now_us);
        }
        // RFC 7661: whether the window limits, and for how long that counts.
        let out = end.bytes_since(self.snd_una);
        let full = tx_flight + mss > self.window.cwnd;
        if self.snd_una.ge(flight.usage_seq)
            || full
            || (!flight.window_full && out > flight.out_max_bytes)
        {
            flight.window_full = full;
            flight.out_max_bytes = out;
            flight.usage_seq = end;
        }
        flight.push(records, (start, end), segments, now_us, tx_flight);
        if flight.head == NIL {
            // As if there were no memory for a flight: what comes next would stand for the oldest.
            self.close_flight(env);
            env.stats.flight_full += 1;
            self.sent_64ns = env.now_64ns();
            self.facts.remove(Facts::TIMING);
            return;
        }
        flight.prr.out = flight.prr.out.saturating_add(count);
        if last && !full && flight.waiting_bytes == 0 {
            flight.rate.limited_by_application(tx_flight);
        }
        if self.facts.contains(Facts::EVERY_ACK) {
            self.congestion.on_sent(count, tx_flight, env.now.as_micros());
        }
    }

    /// Brings the connection's record in line with its flight.
    pub(crate) fn sync_flight(&mut self, env: &mut Env<'_>) {
        let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else {
            self.left_out = 0;
            return;
        };
        // A probe is judged by what comes after it.
        if self.snd_una == self.snd_max
            && self.ca_state == CongestionState::Open
            && !flight.probe.is_out()
        {
            self.rest_flight(env);
            return;
        }
        self.left_out = flight.left_out();
        debug_assert!(
            self.flight().wrapping_sub(self.left_out) as i32 >= 0,
            "{} of {} {} {}",
            self.flight(),
            flight.sacked_bytes,
            flight.lost_bytes,
            flight.resent_bytes
        );
        let new_first = self.marks.contains(Marks::NEW_FIRST);
        self.facts.set(Facts::TX_LOST, flight.waiting_bytes != 0 && !new_first);
        let repair = self.ca_state != CongestionState::Open
            || !flight.is_plain()
            || flight.probe.is_out()
            || flight.trial.end.is_some()
            || flight.undo.marker.is_some();
        self.facts.set(Facts::REPAIR, repair);
        self.marks.set(Marks::PROBED, flight.probe.is_out());
    }

    /// The reordering window (RFC 8985 section 6.2, step 4).
    pub(crate) fn reo_window_us(&self, flight: &Flight) -> u32 {
        if !self.marks.contains(Marks::REORDERED)
            && (self.ca_state >= CongestionState::Recovery
                || flight.sacked_segments >= u32::from(self.reordering))
        {
            return 0;
        }
        let settle_us = (self.min_rtt_us / 4).saturating_mul(u32::from(self.reo_steps.max(1)));
        settle_us.min(self.rtt.srtt_us())
    }

    /// Finds what is lost; sets the timer if more will be known in a while.
    pub(crate) fn find_losses(
        &mut self,
        env: &mut Env<'_>,
        duplicate: bool,
        progress: &mut Progress,
    ) {
        let mss = u32::from(self.mss);
        let rack = self.facts.contains(Facts::SACK) && env.config.rack;
        let (now_us, out) = (env.now_us(), self.flight());
        let Some((flight, records)) = env.slices.flights.get_mut(self.flight) else { return };
        if rack {
            if !flight.rack.advanced {
                return;
            }
            flight.rack.advanced = false;
            let reo_window_us = self.reo_window_us(flight);
            let timeout = flight.detect_losses(records, now_us, reo_window_us, progress);
            if let Some(timeout_us) = timeout {
                self.arm_reorder(env, timeout_us);
                progress.timer_set = true;
            }
        } else if self.facts.contains(Facts::SACK) {
            let threshold = u32::from(DUPLICATE_THRESHOLD);
            flight.mark_lost_by_count(records, mss, threshold, progress);
        } else {
            let recovery = self.ca_state >= CongestionState::Recovery;
            if (!recovery && flight.sacked_segments >= u32::from(DUPLICATE_THRESHOLD))
                || (self.ca_state == CongestionState::Recovery && progress.advanced && !duplicate)
            {
                flight.mark_head_lost(records, mss, progress);
                let segments = flight.sacked_segments;
                Self::guess_sacked(flight, segments, out, mss);
            }
        }
    }

    /// Begins an episode of window reduction (RFC 9937 section 6.1).
    pub(crate) fn begin_reduction(&mut self, env: &mut Env<'_>, why: Signal) {
        let (mss, mut flight_bytes) = (u32::from(self.mss), self.flight());
        let now_us = env.now.as_micros();
        let cwnd = self.window.cwnd;
        if let Some(window) = self.retreat(env) {
            flight_bytes = flight_bytes.min(window);
        }
        self.window.ssthresh =
            self.congestion.on_congestion(&self.window, why, flight_bytes, mss, now_us);
        if let Some((flight, _)) = env.slices.flights.get_mut(self.flight) {
            flight.prr.begin(cwnd);
            flight.high_seq = self.snd_max;
            flight.probe = Probe::default();
        }
        self.queue_cwr();
    }

    /// Begins to repair a loss.
    pub(crate) fn enter_recovery(&mut self, env: &mut Env<'_>) {
        let reducing = self.reducing();
        let una = self.snd_una;
        let mss = u32::from(self.mss);
        if let Some((flight, _)) = env.slices.flights.get_mut(self.flight) {
            flight.undo.begin(una, flight.resent_bytes.div_ceil(mss));
            flight.undo.reduced = !reducing;
            flight.undo.frto = false;
        }
        if !reducing {
            self.begin_reduction(env, Signal::Loss);
        }
        self.ca_state = CongestionState::Recovery;
        env.stats.fast_retransmits += 1;
    }

    /// The episode is over: the window is what it was to become.
    pub(crate) fn end_reduction(&mut self, env: &mut Env<'_>) {
        let undone = env
            .slices
            .flights
            .get(self.flight)
            .is_some_and(|(flight, _)| flight.undo.marker.is_none());
        if !self.congestion.owns_window()
            && self.window.ssthresh != u32::MAX
            && (self.ca_state == CongestionState::Cwr || !undone)
        {
            self.window.cwnd = self.window.ssthresh;
        }
        self.congestion.on_recovered(&mut self.window, env.now.as_micros());
    }

    /// Takes the reduction back, since nothing was lost.
    pub(crate) fn undo_reduction(&mut self, env: &mut Env<'_>, unmark: bool) {
        let reducing = self.ca_state;
        let Some((flight, records)) = env.slices.flights.get_mut(self.flight) else { return };
        if unmark {
            flight.unmark_lost(records);
        }
        let reduced = flight.undo.reduced;
        flight.undo.marker = None;
        flight.undo.reduced = false;
        flight.rack.advanced = true;
        self.left_out = flight.left_out();
        if reduced {
            self.congestion.on_undo(&mut self.window);
            self.advance_again(env);
            self.facts.remove(Facts::CWR_DUE);
        }
        if reducing == CongestionState::Recovery {
            // What was taken for lost was late: from now on there is a reordering window.
            self.marks.insert(Marks::REORDERED);
        }
        env.stats.undone += 1;
    }

    /// RFC 6298 sections 5.4 to 5.6: all is lost, and one segment is sent. What the peer has
    /// selectively acknowledged it keeps (RFC 6675 section 5.1).
    pub(crate) fn on_retransmit_timeout(&mut self, env: &mut Env<'_>) {
        let repeated = self.retries != 0;
        if !repeated {
            self.stalled_ticks = env.now_ticks();
        }
        let (mss, now_us) = (u32::from(self.mss), env.now_us());
        let most = if repeated { None } else { self.retreat(env) }.unwrap_or(u32::MAX);
        let flight_bytes = self.flight().min(most);
        self.facts.remove(Facts::TIMING);
        self.marks.remove(Marks::NEW_FIRST);
        self.reo_persist = self.reo_persist.saturating_sub(u8::from(!repeated));
        let state = self.ca_state;
        if !self.open_whole_flight(env) {
            let now_us = env.now.as_micros();
            self.congestion.on_timeout(&mut self.window, flight_bytes, mss, !repeated, now_us);
            self.facts.insert(Facts::TX_AGAIN);
            self.retries = self.retries.saturating_add(1);
            self.backoff = self.backoff.saturating_add(1);
            return;
        }
        let rack = self.facts.contains(Facts::SACK) && env.config.rack;
        let una = self.snd_una;
        let mut progress = Progress::default();
        let mut reduces = true;
        if let Some((flight, records)) = env.slices.flights.get_mut(self.flight) {
            if !self.facts.contains(Facts::SACK) {
                flight.sacked_bytes = 0;
                flight.sacked_segments = 0;
            }
            let (latest, known) = (flight.rack, flight.rack.rtt_us != 0);
            let too_recent = |record: &Record| {
                rack && known && latest.remaining_us(record.sent_us, now_us, 0) > 0
            };
            let resent = flight.resent_bytes;
            if flight.mark_lost_by_timeout(records, too_recent, &mut progress) {
                env.stats.sack_reneged += 1;
            }
            reduces = state <= CongestionState::Disorder
                || flight.high_seq.le(una)
                || (state == CongestionState::Loss && !repeated);
            if reduces {
                flight.undo.begin(una, resent.div_ceil(mss));
            }
            // RFC 5682 section 2.1, step 1: not while another loss is being repaired.
            flight.undo.frto = state < CongestionState::Recovery || repeated;
            flight.high_seq = self.snd_max;
            flight.probe = Probe::default();
            flight.trial = Trial::default();
            self.left_out = flight.left_out();
        }
        self.congestion.on_timeout(
            &mut self.window,
            flight_bytes,
            mss,
            reduces,
            env.now.as_micros(),
        );
        // What was sent too recently to be lost is in flight still, and one segment goes beside it,
        // whoever owns the window.
        self.window.cwnd = self.pipe() + mss;
        self.ca_state = CongestionState::Loss;
        self.queue_cwr();
        self.retries = self.retries.saturating_add(1);
        self.backoff = self.backoff.saturating_add(1);
        self.sync_flight(env);
    }

    /// New data is to tell whether a time-out was spurious: Nagle's algorithm and a cork do not keep it
    /// back. If the window does, the lost goes first after all (RFC 5682 section 2.1, step 2.b).
    #[cold]
    pub(crate) fn push_new(&mut self, env: &mut Env<'_>) {
        if self.marks.contains(Marks::PACE_WAIT) || self.sendable() != 0 {
            return;
        }
        let flush = self.marks.contains(Marks::FLUSH);
        self.marks.insert(Marks::FLUSH);
        if self.sendable() == 0 {
            self.marks.set(Marks::FLUSH, flush);
            self.marks.remove(Marks::NEW_FIRST);
            if let Some((flight, _)) = env.slices.flights.get_mut(self.flight) {
                flight.undo.frto = false;
            }
            self.sync_flight(env);
        }
    }

    /// The path carries no more than `mss`: what is larger did not arrive, though not for congestion.
    #[cold]
    pub(crate) fn resend_too_large(&mut self, env: &mut Env<'_>) {
        self.facts.remove(Facts::TIMING);
        self.marks.remove(Marks::NEW_FIRST);
        if !self.open_flight(env) {
            self.facts.insert(Facts::TX_AGAIN);
            return;
        }
        let (mss, max) = (u32::from(self.mss), self.snd_max);
        let mut progress = Progress::default();
        let Some((flight, records)) = env.slices.flights.get_mut(self.flight) else { return };
        if !self.facts.contains(Facts::SACK) {
            flight.sacked_bytes = 0;
            flight.sacked_segments = 0;
        }
        let mut index = flight.head;
        while let Some(&record) = records.get(index) {
            if record.len() > mss {
                flight.mark_lost(records, index, &mut progress);
            }
            index = record.next;
        }
        if progress.lost != 0 && self.ca_state != CongestionState::Loss {
            flight.begin_repair(max);
            self.ca_state = CongestionState::Loss;
        }
        self.sync_flight(env);
    }

    /// Sends a lost segment again; `false` if there turned out to be none.
    #[cold]
    pub(crate) fn resend_lost(&mut self, env: &mut Env<'_>, out: &mut Segment) -> bool {
        let Some((flight, records)) = env.slices.flights.get_mut(self.flight) else {
            self.facts.remove(Facts::TX_LOST);
            return false;
        };
        let Some(index) = flight.next_lost(records) else {
            self.facts.remove(Facts::TX_LOST);
            return false;
        };
        self.resend(env, out, index)
    }

    /// Sends a record again, or as much of it as a segment holds; `false` if there is none.
    #[must_use]
    pub(crate) fn resend(&mut self, env: &mut Env<'_>, out: &mut Segment, index: u32) -> bool {
        let Some(record) = env.slices.flights.records.get(index).copied() else { return false };
        let seq = record.start;
        if self.lacks(env, seq) {
            return false;
        }
        self.fill(env, out, seq, Flags::ACK);
        let room = self.less_options(out, u32::from(self.mss));
        let data = record.end.min(self.snd_end).distance(seq).max(0) as u32;
        let sent = self.send_queue.gather_first(env.slices, seq, data.min(room), &mut out.payload);
        let mut end = seq + sent;
        if end == self.snd_end && record.end.gt(self.snd_end) {
            out.flags |= Flags::FIN;
            end += 1;
        }
        let last = seq + sent == self.snd_end;
        // A run that is lost as a whole, and for which there is room, is one again, as in Linux.
        let run_ends = record.is(Fate::RUN_END) && end == record.end;
        let run = end != record.end
            && (record.is(Fate::RUN_END) || self.pipe() + record.len() <= self.window.cwnd);
        let pushed = last || run_ends || self.send_queue.record_ends_at(env.slices, seq + sent);
        if sent != 0 && pushed {
            out.flags |= Flags::PSH;
        }
        env.stats.bytes_out += u64::from(sent);
        let stamp = env.now_ticks().wrapping_add(self.ts_offset);
        let (now_us, tx_flight) = (env.now_us(), self.pipe() + end.bytes_since(seq));
        let mut first = false;
        if let Some((flight, records)) = env.slices.flights.get_mut(self.flight) {
            let coarse = end != record.end && !flight.split(records, index, end);
            let next = records.get(index).map_or(NIL, |record| record.next);
            if run
                && !coarse
                && let Some(rest) = records.get_mut(next)
            {
                rest.fate.insert(Fate::RUN_END);
            }
            flight.resend(records, index, coarse, now_us, tx_flight);
            flight.prr.out = flight.prr.out.saturating_add(end.bytes_since(seq));
            flight.undo.note_resent(stamp);
            first = flight.head == index;
        }
        if self.marks.contains(Marks::DCTCP) {
            out.ecn = crate::ecn::ECT_0;
        }
        if self.facts.contains(Facts::PACED) {
            self.pace(env, sent);
        }
        self.note_resent(env);
        self.last_send_ticks = env.now_ticks();
        self.sync_flight(env);
        if first && !self.marks.contains(Marks::REO_TIMER) {
            self.arm_retransmit(env);
        }
        true
    }

    /// A part of the oldest segment was sent again as a window probe: an ACK of it measures nothing.
    #[cold]
    pub(crate) fn note_head_resent(&mut self, env: &mut Env<'_>) {
        if let Some((flight, records)) = env.slices.flights.get_mut(self.flight)
            && let Some(head) = records.get_mut(flight.head)
        {
            head.fate.insert(Fate::EVER_RESENT);
        }
        self.note_resent(env);
    }

    /// What a flight without SACK is taken to have at the peer: `segments` of it.
    pub(crate) fn guess_sacked(flight: &mut Flight, segments: u32, out: u32, mss: u32) {
        // One is missing at the least, or there would be no duplicates.
        let most = out.saturating_sub(flight.lost_bytes.max(mss.min(out)));
        flight.sacked_bytes = segments.saturating_mul(mss).min(most);
        flight.sacked_segments = if flight.sacked_bytes == 0 { 0 } else { segments };
    }
}

/// Segments for people: how many are sacked, lost, and sent again.
pub(crate) fn count_segments(flight: &Flight, records: &Records, sack: bool) -> [u32; 4] {
    let mut counts = [0; 4];
    let mut index = flight.head;
    while let Some(record) = records.get(index) {
        for (count, fate) in counts.iter_mut().zip([Fate::SACKED, Fate::LOST, Fate::RESENT]) {
            *count += if record.is(fate) { u32::from(record.segments) } else { 0 };
        }
        counts[3] += u32::from(record.segments);
        index = record.next;
    }
    if !sack {
        counts[0] = flight.sacked_segments;
    }
    counts
}
