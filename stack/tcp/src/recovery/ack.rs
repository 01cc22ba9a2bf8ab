//! An ACK, from what it acknowledges to what the congestion window becomes.

use millstream_wire::tcp::{Header, SackBlocks, SeqNumber};

use crate::congestion::{Ack, Controller, Signal};
use crate::flight::{BLOCKS_MAX, Ranges};
use crate::recovery::CongestionState;
use crate::recovery::rack::REO_WINDOW_PERSIST;
use crate::recovery::scoreboard::{Progress, in_order};
use crate::slab::NIL;
use crate::tcb::{Env, Facts, Marks, TICK_NANOS, Tcb};

/// Most segments that reordering is taken to reach over.
const REORDERING_MAX: u32 = 300;

/// After how many 2^12 ticks the least round-trip time counts no more: five minutes.
const MIN_RTT_EPOCHS: u16 = (300 * 1_000_000_000 / (TICK_NANOS << 12)) as u16;

/// What was so before an ACK.
pub(crate) struct Before {
    pub(crate) una: SeqNumber,
    pub(crate) pipe: u32,
    /// RFC 5681 section 2: a duplicate ACK.
    pub(crate) duplicate: bool,
    /// It carries ECE, and ECN is in use.
    pub(crate) ece: bool,
}

impl Tcb {
    /// Takes a measurement of the round-trip time.
    #[inline]
    pub(crate) fn sample_rtt(&mut self, env: &Env<'_>, rtt_us: u32) {
        self.rtt.sample(rtt_us, env.config);
        self.note_lone_timeout(env);
        self.backoff = 0;
        let epoch = (env.now_ticks() >> 12) as u16;
        if rtt_us <= self.min_rtt_us
            || self.min_rtt_us == 0
            || epoch.wrapping_sub(self.min_rtt_epoch) > MIN_RTT_EPOCHS
        {
            self.min_rtt_us = rtt_us.max(1);
            self.min_rtt_epoch = epoch;
        }
    }

    /// Up to `snd_una` all has arrived, `acked` numbers of it just now, and there is nothing to be
    /// known about what was in flight but how long it took.
    #[inline(always)]
    pub(crate) fn settle_lone(&mut self, env: &mut Env<'_>, acked: u32) {
        let mut rtt_us = 0;
        if self.facts.contains(Facts::TIMING) {
            self.facts.remove(Facts::TIMING);
            rtt_us = self.since_sent_us(env.now);
            self.sample_rtt(env, rtt_us);
        }
        // RFC 6298 sections 5.2 and 5.3.
        if self.snd_una == self.snd_max {
            self.retransmit_at = millstream_timer::Instant::FAR_FUTURE;
        } else {
            self.arm_retransmit(env);
        }
        if self.window.cwnd < 2 * u32::from(self.mss) {
            self.tell_lone(env, acked, rtt_us);
        }
    }

    #[cold]
    fn tell_lone(&mut self, env: &Env<'_>, acked: u32, rtt_us: u32) {
        let flight = self.flight();
        let ack = Ack {
            now_us: env.now.as_micros(),
            delivered: acked,
            flight,
            prior_flight: flight.saturating_add(acked),
            mss: u32::from(self.mss),
            rtt_us,
            srtt_us: self.rtt.srtt_us(),
            min_rtt_us: self.min_rtt_us,
            cwnd_limited: self.window.cwnd < 2 * u32::from(self.mss),
            total_delivered: self.acked_total,
            ..Ack::default()
        };
        self.congestion.on_ack(&mut self.window, &ack);
    }

    /// As [`Self::settle_lone`] for a flight of several segments of which none was lost, sent again
    /// or selectively acknowledged.
    #[inline(never)]
    pub(crate) fn settle_flight(&mut self, env: &mut Env<'_>, acked: u32) {
        let now_us = env.now_us();
        let (una, min_rtt_us) = (self.snd_una, self.min_rtt_us);
        let mut progress = Progress::default();
        if let Some((flight, records)) = env.slices.flights.get_mut(self.flight) {
            let fack = flight.fack;
            flight.advance(records, una, fack, now_us, min_rtt_us, &mut progress);
        }
        let before =
            Before { una: una - acked, pipe: self.flight() + acked, duplicate: false, ece: false };
        let rtt_us = self.measure(env, &progress, None);
        self.control(env, &before, &progress, rtt_us);
        if self.snd_una == self.snd_max {
            self.retransmit_at = millstream_timer::Instant::FAR_FUTURE;
            self.rest_flight(env);
        } else {
            self.arm_retransmit(env);
        }
    }

    /// An ACK that is, or may be, about more than data that was sent once and arrived in order. Up
    /// to `ack` everything has arrived. Returns whether anything was acknowledged anew.
    pub(crate) fn judge_ack(
        &mut self,
        env: &mut Env<'_>,
        header: &Header<'_>,
        ack: SeqNumber,
        before: &Before,
    ) {
        if self.flight == NIL && self.snd_nxt == self.snd_max && self.snd_una != self.snd_max {
            self.open_flight(env);
        }
        let acked = ack.distance(self.snd_una).max(0) as u32;
        let known = self.flight != NIL;
        self.marks.remove(Marks::NEW_FIRST);
        let mut progress = Progress::default();
        // What this ACK acknowledges selectively is not earlier than what it acknowledges cumulatively
        // (RFC 8985 section 6.2, step 3: "in sequence order").
        let fack = env.slices.flights.get(self.flight).map_or(ack, |(flight, _)| flight.fack);
        if known && self.facts.contains(Facts::SACK) {
            let blocks = header.sack_blocks();
            if !blocks.is_empty() {
                self.take_blocks(env, header.ack, &blocks, &mut progress);
            }
        }
        if acked != 0 {
            self.advance_una(env, ack, acked);
        }
        if !known {
            if acked != 0 {
                self.settle_lone(env, acked);
            }
            self.sync_flight(env);
            return;
        }
        let (now_us, min_rtt_us) = (env.now_us(), self.min_rtt_us);
        let echo = self.echo(header);
        if let Some((flight, records)) = env.slices.flights.get_mut(self.flight)
            && acked != 0
        {
            flight.advance(records, ack, fack, now_us, min_rtt_us, &mut progress);
        }
        if acked != 0 && !self.facts.contains(Facts::SACK) {
            self.settle_guesses(env, acked, &mut progress);
        }
        self.note_lateness(env, before, &progress);
        let rtt_us = self.measure(env, &progress, if acked != 0 { echo } else { None });
        self.judge_probe(env, header.ack, before.duplicate, &progress);
        let dubious = progress.sacked
            || progress.dsack
            || before.ece
            || before.duplicate
            || self.ca_state != CongestionState::Open;
        if dubious {
            self.alert(env, before, echo, &mut progress);
        }
        self.control(env, before, &progress, rtt_us);
        self.judge_trial(env);
        self.rearm_after(env, acked, &progress);
        self.sync_flight(env);
    }

    /// The timestamp that the peer echoes, as this side's clock of timestamps gave it.
    fn echo(&self, header: &Header<'_>) -> Option<u32> {
        if !self.facts.contains(Facts::TIMESTAMPS) {
            return None;
        }
        header.timestamp().map(|timestamp| timestamp.echo).filter(|echo| *echo != 0)
    }

    /// RFC 2018 and RFC 2883.
    fn take_blocks(
        &mut self,
        env: &mut Env<'_>,
        ack: SeqNumber,
        blocks: &SackBlocks,
        progress: &mut Progress,
    ) {
        let (now_us, min_rtt_us) = (env.now_us(), self.min_rtt_us);
        let (mss, una, max) = (u32::from(self.mss), self.snd_una, self.snd_max);
        let mut blocks = blocks.as_slice();
        if let [(start, end), rest @ ..] = blocks
            && start.lt(*end)
        {
            let inside = rest.first().is_some_and(|(low, high)| start.ge(*low) && end.le(*high));
            if start.lt(ack) || inside {
                blocks = rest;
                self.take_dsack(env, *start, *end, mss, progress);
            }
        }
        let Some((flight, records)) = env.slices.flights.get_mut(self.flight) else { return };
        let mut ranges = Ranges::new();
        for (start, end) in blocks.iter().take(BLOCKS_MAX) {
            // What was never sent, or is acknowledged, was made up or is old.
            if start.lt(*end) && end.le(max) && start.lt(max) && end.gt(una) {
                ranges.push((start.max(una), *end));
            }
        }
        in_order(&mut ranges);
        flight.sack(records, &ranges, mss, now_us, min_rtt_us, progress);
    }

    fn take_dsack(
        &mut self,
        env: &mut Env<'_>,
        start: SeqNumber,
        end: SeqNumber,
        mss: u32,
        progress: &mut Progress,
    ) {
        if end.gt(self.snd_max) || end.distance(start) > 1 << 30 {
            return;
        }
        let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return };
        progress.dsack = true;
        env.stats.dsacks_in += 1;
        let segments = end.bytes_since(start).div_ceil(mss);
        // The network duplicates too: more than was ever sent again is not this side's doing.
        self.dsacks = self.dsacks.saturating_add(segments.min(0xffff) as u16);
        if u32::from(self.dsacks) > self.retransmits {
            return;
        }
        if flight.probe.resent && flight.probe.high_seq == Some(end) {
            progress.dsack_of_probe = true;
        } else if self.marks.contains(Marks::REORDERED) {
            flight.rack.dsack_seen = true;
        }
        flight.undo.note_duplicate(end, segments);
    }

    /// Without SACK: some of what is acknowledged was guessed to be there already.
    fn settle_guesses(&mut self, env: &mut Env<'_>, acked: u32, progress: &mut Progress) {
        let (mss, out) = (u32::from(self.mss), self.flight());
        let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return };
        let guessed = flight.sacked_bytes;
        progress.delivered = acked.saturating_sub(guessed).max(mss.min(acked));
        let segments = acked.div_ceil(mss) - 1;
        let left = flight.sacked_segments.saturating_sub(segments);
        Self::guess_sacked(flight, left, out, mss);
        if progress.resent {
            // It cannot be told whether it was the repetition that arrived.
            progress.original = false;
        }
    }

    /// What comes late tells how far the path reorders (RFC 8985 section 6.2, step 3).
    fn note_lateness(&mut self, env: &mut Env<'_>, before: &Before, progress: &Progress) {
        if !self.facts.contains(Facts::SACK) {
            return;
        }
        let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return };
        if let Some(late) = progress.late
            && (self.ca_state != CongestionState::Loss || flight.undo.marker.is_some())
        {
            let reach = flight.fack.distance(late).max(0) as u32;
            self.marks.insert(Marks::REORDERED);
            let segments = reach.div_ceil(u32::from(self.mss)).min(REORDERING_MAX) as u16;
            self.reordering = self.reordering.max(segments);
        }
        // RFC 8985 section 6.2, step 4: at most once in a round trip.
        let rack = &mut flight.rack;
        if progress.delivered == 0 && !progress.dsack {
            return;
        }
        let delivered = flight.rate.delivered as u32;
        if before.una.lt(self.snd_una) && (delivered.wrapping_sub(rack.round_delivered) as i32) < 0
        {
            rack.dsack_seen = false;
        }
        if rack.dsack_seen {
            rack.dsack_seen = false;
            rack.round_delivered = delivered.wrapping_add(self.snd_max.bytes_since(self.snd_una));
            self.reo_steps = self.reo_steps.saturating_add(1).max(2);
            self.reo_persist = REO_WINDOW_PERSIST;
        } else if self.reo_persist == 0 {
            self.reo_steps = 1;
        }
    }

    /// Takes what an ACK measures: the time of the oldest segment that it acknowledges and that was
    /// sent once (RFC 6298 section 3), or what a timestamp says if all were sent again. Returns the
    /// measurement that tells of the path alone: 0 if there is none.
    fn measure(&mut self, env: &Env<'_>, progress: &Progress, echo: Option<u32>) -> u32 {
        let now_us = env.now_us();
        self.facts.remove(Facts::TIMING);
        let Some((first, last)) = progress.acked_sent_us.or(progress.sacked_sent_us) else {
            if self.backoff != 0
                && let Some(echo) = echo
            {
                self.settle_backoff(env, echo);
            }
            return 0;
        };
        let path_us = now_us.wrapping_sub(last).max(1);
        let least_us = self.min_rtt_us;
        self.sample_rtt(env, now_us.wrapping_sub(first));
        if least_us != 0 && path_us < self.min_rtt_us {
            self.min_rtt_us = path_us;
        }
        path_us
    }

    /// State by state what an ACK means that is not plainly good.
    fn alert(
        &mut self,
        env: &mut Env<'_>,
        before: &Before,
        echo: Option<u32>,
        progress: &mut Progress,
    ) {
        use CongestionState::{Cwr, Disorder, Loss, Open, Recovery};
        let advanced = progress.advanced;
        let Some(high_seq) = env.slices.flights.get(self.flight).map(|(flight, _)| flight.high_seq)
        else {
            return;
        };
        if before.duplicate {
            env.stats.dup_acks_in += 1;
        }
        if before.ece
            && let Some((flight, _)) = env.slices.flights.get_mut(self.flight)
        {
            flight.undo.reduced = false;
        }
        let sack = self.facts.contains(Facts::SACK);
        if self.snd_una.ge(high_seq) {
            match self.ca_state {
                // The CWR bit must have reached the peer: something above it is acknowledged.
                Cwr if self.snd_una != high_seq => {
                    self.end_reduction(env);
                    self.ca_state = Open;
                }
                Recovery => {
                    if !sack {
                        self.forget_guesses(env);
                    }
                    if self.try_undo_recovery(env, echo) {
                        return;
                    }
                    self.end_reduction(env);
                    self.leave_recovery(env);
                }
                _ => {}
            }
        }
        match self.ca_state {
            Recovery => {
                if !advanced {
                    self.add_guess(env, before.duplicate, progress);
                } else if self.try_undo_partial(env, echo) {
                    return;
                }
                if self.try_undo_dsack(env) {
                    self.try_to_open(env, before.ece);
                }
                self.find_losses(env, before.duplicate, progress);
                if self.ca_state != Recovery && self.anything_lost(env) {
                    self.enter_recovery(env);
                }
            }
            Loss => {
                self.judge_loss(env, before, echo, progress);
                self.find_losses(env, before.duplicate, progress);
                if self.ca_state == Open || progress.lost_resent {
                    self.judge_anew(env, before.ece);
                }
            }
            Open | Disorder | Cwr => {
                if !sack {
                    if advanced {
                        self.forget_guesses(env);
                    }
                    self.add_guess(env, before.duplicate, progress);
                }
                if self.ca_state <= Disorder {
                    self.try_undo_dsack(env);
                }
                self.find_losses(env, before.duplicate, progress);
                self.judge_anew(env, before.ece);
            }
        }
    }

    fn judge_anew(&mut self, env: &mut Env<'_>, ece: bool) {
        if self.anything_lost(env) {
            if !self.trial_is_lost(env) {
                self.enter_recovery(env);
            }
        } else {
            self.try_to_open(env, ece);
        }
    }

    fn anything_lost(&self, env: &Env<'_>) -> bool {
        env.slices.flights.get(self.flight).is_some_and(|(flight, _)| flight.lost_bytes != 0)
    }

    /// Without SACK: one more duplicate is one more segment at the peer.
    fn add_guess(&mut self, env: &mut Env<'_>, duplicate: bool, progress: &mut Progress) {
        if self.facts.contains(Facts::SACK) || !duplicate {
            return;
        }
        let (mss, out) = (u32::from(self.mss), self.flight());
        let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return };
        let guessed = flight.sacked_bytes;
        let segments = flight.sacked_segments + 1;
        Self::guess_sacked(flight, segments, out, mss);
        progress.delivered += flight.sacked_bytes.saturating_sub(guessed);
    }

    fn forget_guesses(&mut self, env: &mut Env<'_>) {
        if let Some((flight, _)) = env.slices.flights.get_mut(self.flight) {
            flight.sacked_bytes = 0;
            flight.sacked_segments = 0;
        }
    }

    /// In [`CongestionState::Loss`]: forward RTO recovery (RFC 5682 section 3.1), and the end.
    fn judge_loss(
        &mut self,
        env: &mut Env<'_>,
        before: &Before,
        echo: Option<u32>,
        progress: &mut Progress,
    ) {
        let advanced = progress.advanced;
        let sack = self.facts.contains(Facts::SACK);
        let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return };
        let recovered = self.snd_una.ge(flight.high_seq);
        let (due, frto) = (flight.undo.is_due(echo), flight.undo.frto);
        if advanced && due {
            self.undo_loss(env, sack);
            return;
        }
        if frto {
            // Step 3.b: what was sent before the time-out, and never again, arrives.
            if progress.original {
                self.undo_loss(env, true);
                return;
            }
            let max = self.snd_max;
            let more =
                self.snd_nxt != self.snd_limit() && (self.snd_una + self.snd_wnd).gt(self.snd_nxt);
            let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return };
            if max.gt(flight.high_seq) {
                if progress.sacked || before.duplicate {
                    // Step 3.a: new data arrives while old does not.
                    flight.undo.frto = false;
                }
            } else if advanced && !recovered {
                flight.high_seq = max;
                if more {
                    // Step 2.b: two new segments will tell.
                    self.marks.insert(Marks::NEW_FIRST);
                    return;
                }
                flight.undo.frto = false;
            }
        }
        if recovered {
            if !self.try_undo_recovery(env, echo) {
                self.leave_recovery(env);
            }
            return;
        }
        if !sack {
            let beyond = env
                .slices
                .flights
                .get(self.flight)
                .is_some_and(|(flight, _)| self.snd_max.gt(flight.high_seq));
            if beyond && before.duplicate {
                self.add_guess(env, true, progress);
            } else if advanced {
                self.forget_guesses(env);
            }
        }
    }

    fn undo_loss(&mut self, env: &mut Env<'_>, open: bool) {
        self.undo_reduction(env, true);
        self.retries = 0;
        if open {
            self.leave_recovery(env);
        }
    }

    /// Everything that was out is acknowledged. Returns whether the state is held until more is:
    /// without SACK, duplicates of what was needlessly repeated would begin another recovery (RFC
    /// 6582 section 4).
    fn try_undo_recovery(&mut self, env: &mut Env<'_>, echo: Option<u32>) -> bool {
        let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return false };
        let at_the_edge = self.snd_una == flight.high_seq;
        if flight.undo.is_due(echo) {
            self.undo_reduction(env, false);
        } else {
            self.reo_persist = self.reo_persist.saturating_sub(1);
        }
        at_the_edge && !self.facts.contains(Facts::SACK)
    }

    fn leave_recovery(&mut self, env: &mut Env<'_>) {
        self.ca_state = CongestionState::Open;
        if let Some((flight, _)) = env.slices.flights.get_mut(self.flight) {
            flight.undo.marker = None;
            flight.undo.first_resent_at = None;
            flight.undo.frto = false;
        }
    }

    /// All that was sent again turned out to be needless.
    fn try_undo_dsack(&mut self, env: &mut Env<'_>) -> bool {
        let due = env
            .slices
            .flights
            .get(self.flight)
            .is_some_and(|(flight, _)| flight.undo.marker.is_some() && flight.undo.resent == 0);
        if due {
            self.reo_persist = self.reo_persist.saturating_add(1).min(REO_WINDOW_PERSIST);
            self.undo_reduction(env, false);
        }
        due
    }

    /// A part is acknowledged, and it was the first transmission that arrived. Returns whether to
    /// look no further.
    fn try_undo_partial(&mut self, env: &mut Env<'_>, echo: Option<u32>) -> bool {
        let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return false };
        if flight.undo.marker.is_none() || !flight.undo.echo_is_older(echo) {
            return false;
        }
        self.marks.insert(Marks::REORDERED);
        if flight.resent_bytes != 0 {
            // What was sent again is on its way; nothing more is taken for lost.
            return true;
        }
        self.undo_reduction(env, true);
        self.try_keep_open(env);
        false
    }

    fn try_to_open(&mut self, env: &mut Env<'_>, ece: bool) {
        if ece {
            self.enter_cwr(env);
        }
        if self.ca_state != CongestionState::Cwr {
            self.try_keep_open(env);
        }
    }

    /// A mark was echoed: once in a round trip the window is reduced (RFC 3168 section 6.1.2).
    pub(crate) fn enter_cwr(&mut self, env: &mut Env<'_>) {
        if self.ca_state < CongestionState::Cwr {
            if let Some((flight, _)) = env.slices.flights.get_mut(self.flight) {
                flight.undo.marker = None;
                flight.undo.reduced = false;
            }
            self.begin_reduction(env, Signal::Ecn);
            self.ca_state = CongestionState::Cwr;
        }
    }

    /// Open, unless something is missing at the peer.
    pub(crate) fn try_keep_open(&mut self, env: &mut Env<'_>) {
        let max = self.snd_max;
        let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return };
        let state =
            if flight.is_plain() { CongestionState::Open } else { CongestionState::Disorder };
        if flight.resent_bytes == 0 && flight.lost_bytes == 0 {
            flight.undo.first_resent_at = None;
        }
        if self.ca_state != state {
            self.ca_state = state;
            flight.high_seq = max;
        }
    }

    /// What the window becomes.
    fn control(&mut self, env: &mut Env<'_>, before: &Before, progress: &Progress, rtt_us: u32) {
        let now_us = env.now_us();
        let (mss, min_rtt_us) = (u32::from(self.mss), self.min_rtt_us);
        let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return };
        let mut rate = None;
        if progress.delivered != 0 {
            flight.rate.deliver(progress.delivered, now_us);
            rate = flight.rate.sample(progress.rate, now_us, min_rtt_us);
            if let Some(sample) = &rate
                && (!sample.app_limited
                    || sample.bytes_per_s >> 10 >= u64::from(self.delivery_kib_per_s))
            {
                self.delivery_kib_per_s =
                    (sample.bytes_per_s >> 10).min(u64::from(u32::MAX)) as u32;
            }
        }
        self.left_out = flight.left_out();
        let total_delivered = flight.rate.delivered;
        let slow_start = self.window.cwnd < self.window.ssthresh;
        let cwnd_limited =
            flight.window_full || (slow_start && self.window.cwnd < 2 * flight.out_max_bytes);
        let reducing = self.reducing();
        let every = self.facts.contains(Facts::EVERY_ACK);
        let pipe = self.pipe();
        if reducing && !self.congestion.owns_window() && progress.delivered != 0 {
            let safe = progress.advanced && progress.lost == 0;
            let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return };
            self.window.cwnd =
                flight.prr.window(pipe, self.window.ssthresh, mss, progress.delivered, safe);
        }
        // Outside of a reduction only what the window limits, and what moves on, makes it grow.
        let raises = !reducing
            && cwnd_limited
            && (progress.advanced
                || (self.reordering > super::DUPLICATE_THRESHOLD && progress.sacked));
        if (progress.delivered == 0 && progress.lost == 0) || !(every || raises) {
            return;
        }
        let ack = Ack {
            now_us: env.now.as_micros(),
            delivered: progress.delivered,
            lost: progress.lost,
            flight: pipe,
            prior_flight: before.pipe,
            mss,
            rtt_us,
            srtt_us: self.rtt.srtt_us(),
            min_rtt_us,
            cwnd_limited,
            in_recovery: reducing,
            ece_bytes: if before.ece { progress.delivered } else { 0 },
            total_delivered,
            rate,
        };
        self.congestion.on_ack(&mut self.window, &ack);
    }

    /// A timer, not an ACK, has found a loss: the first repetition goes out.
    pub(crate) fn reduce_for_timer(&mut self, env: &mut Env<'_>) {
        let (mss, ssthresh) = (u32::from(self.mss), self.window.ssthresh);
        let Some((flight, _)) = env.slices.flights.get_mut(self.flight) else { return };
        self.left_out = flight.left_out();
        if self.congestion.owns_window() {
            return;
        }
        let pipe = self.flight().wrapping_sub(self.left_out);
        self.window.cwnd = flight.prr.window(pipe, ssthresh, mss, mss, false);
    }

    /// The timer after an ACK. Only what moves on starts it anew, or a selective acknowledgement of
    /// something sent before the oldest segment was sent last: else the time-out would be put off for
    /// as long as a recovery lasts.
    fn rearm_after(&mut self, env: &mut Env<'_>, acked: u32, progress: &Progress) {
        if self.snd_una == self.snd_max {
            self.retransmit_at = millstream_timer::Instant::FAR_FUTURE;
            self.marks.remove(Marks::REO_TIMER);
            return;
        }
        let head_sent_us = env
            .slices
            .flights
            .get(self.flight)
            .and_then(|(flight, records)| records.get(flight.head))
            .map(|head| head.sent_us);
        let fresh = match (progress.sacked_sent_us, head_sent_us) {
            (Some((first, _)), Some(head)) => (first.wrapping_sub(head) as i32) < 0,
            _ => false,
        };
        if (acked != 0 || fresh) && !progress.timer_set {
            self.marks.remove(Marks::REO_TIMER);
            self.sync_flight(env);
            self.arm_retransmit(env);
        }
    }
}
