//! Segments of a connection.
//!
//! [`Tcb::input`] begins with header prediction: the next segment of an established connection
//! with nothing out of the ordinary takes a straight path. All else goes through `input_slow`,
//! which makes the checks of RFC 9293 section 3.10.7.4 in their order, with those of RFC 7323 and
//! RFC 5961 in their places.

use millstream_buf::IoBuf;
use millstream_timer::Instant;
use millstream_wire::tcp::{Flags, Header, SeqNumber};

use crate::receive_queue::Inserted;
use crate::recovery::Before;
use crate::slab::NIL;
use crate::state::{ConnectionError, Events, State};
use crate::tcb::{Env, Facts, Marks, TICK_NANOS, Tcb};

/// Control bits that header prediction looks at: all but PSH.
const PREDICTED: Flags = Flags::PSH.complement();

/// 24 days in ticks: after so long a silence a timestamp is not judged (RFC 7323 section 5.5).
const PAWS_IDLE_TICKS: u32 = (24 * 24 * 3600 * 1_000_000_000 / TICK_NANOS) as u32;

/// A second in ticks.
const SECOND_TICKS: u16 = (1_000_000_000 / TICK_NANOS) as u16;

impl Tcb {
    /// Takes a segment of this connection. `payload` is what follows the header, `None` if nothing
    /// does.
    #[inline(always)]
    pub fn input(
        &mut self,
        env: &mut Env<'_>,
        header: &Header<'_>,
        payload: Option<IoBuf>,
    ) -> Events {
        env.stats.segments_in += 1;
        let len = payload.as_ref().map_or(0, |payload| payload.len() as u32);
        let acked = header.ack.bytes_since(self.snd_una);
        if self.state != State::Established
            || header.flags.intersection(PREDICTED) != Flags::ACK
            || header.seq != self.rcv_nxt
            || self.facts.intersects(Facts::SLOW)
            || acked > self.snd_max.bytes_since(self.snd_una)
            || self.snd_nxt != self.snd_max
            || (acked | len) == 0
            || len > self.rcv_adv.bytes_since(self.rcv_nxt)
            || self.backoff != 0
        {
            return self.input_slow(env, header, payload);
        }
        if self.facts.contains(Facts::TIMESTAMPS) {
            match header.lone_timestamp() {
                Some(timestamp) if timestamp.value.wrapping_sub(self.ts_recent) as i32 >= 0 => {
                    // RFC 7323 section 4.3: the segment that the next ACK is about.
                    if self.last_ack_sent == self.rcv_nxt {
                        self.ts_recent = timestamp.value;
                    }
                }
                _ => return self.input_slow(env, header, payload),
            }
        } else if !header.options.is_empty() {
            return self.input_slow(env, header, payload);
        }
        if len != 0 && (!self.has_slice_left(env) || env.slices.is_full()) {
            return self.input_slow(env, header, payload);
        }

        env.stats.fast_path += 1;
        self.last_recv_ticks = env.now_ticks();
        let mut events = Events::empty();
        if acked != 0 {
            self.advance_una(env, header.ack, acked);
            if self.flight == NIL {
                self.settle_lone(env, acked);
            } else {
                self.settle_flight(env, acked);
            }
            events = Events::ACKED | Events::WRITABLE;
        }
        self.set_window(header);
        if let Some(payload) = payload
            && len != 0
        {
            self.receive_queue.push(env.slices, payload, header.seq);
            self.rcv_nxt += len;
            env.stats.bytes_in += u64::from(len);
            self.schedule_ack(env, len);
            events |= Events::READABLE;
        }
        if self.snd_nxt != self.snd_limit() {
            self.arm_persist_if_stalled(env);
        }
        if self.wants_transmit() {
            events |= Events::TRANSMIT;
        }
        events
    }

    /// Whether a segment whose headers are those of one that was taken just now, but for its number,
    /// can be given to [`Self::take_next`].
    #[inline]
    pub fn takes_next(&self, env: &Env<'_>, seq: SeqNumber, len: usize) -> bool {
        self.state == State::Established
            && seq == self.rcv_nxt
            && !self.facts.intersects(Facts::SLOW)
            && len <= self.rcv_adv.bytes_since(self.rcv_nxt) as usize
            && self.has_slice_left(env)
            && !env.slices.is_full()
    }

    /// The data of a segment that tells nothing else that is new. [`Tcb::wants_transmit`] says whether
    /// there is something to send now.
    #[inline]
    pub fn take_next(&mut self, env: &mut Env<'_>, payload: IoBuf) {
        let len = payload.len() as u32;
        env.stats.segments_in += 1;
        env.stats.fast_path += 1;
        env.stats.bytes_in += u64::from(len);
        self.receive_queue.push(env.slices, payload, self.rcv_nxt);
        // RFC 9293 section 3.10.7.4, fifth check: of the window, this is the latest word.
        self.snd_wl1 = self.rcv_nxt;
        self.rcv_nxt += len;
        self.schedule_ack(env, len);
    }

    #[inline]
    fn has_slice_left(&self, env: &Env<'_>) -> bool {
        self.receive_queue.slices < self.recv_slices_max(env.config)
    }

    /// RFC 9293 section 3.10.7.4, fifth check: the window of a segment that is the latest so far.
    #[inline]
    pub(crate) fn set_window(&mut self, header: &Header<'_>) {
        self.snd_wnd = u32::from(header.window) << self.snd_scale;
        self.snd_wl1 = header.seq;
        if self.snd_wnd > self.snd_wnd_max {
            self.snd_wnd_max = self.snd_wnd;
        }
    }

    /// Everything before `ack`, which are `acked` numbers, has arrived.
    #[inline(always)]
    pub(crate) fn advance_una(&mut self, env: &mut Env<'_>, ack: SeqNumber, acked: u32) {
        let fin = u32::from(ack.gt(self.snd_end));
        self.acked_total += u64::from(acked - fin);
        self.retries = 0;
        if ack.ge(self.snd_end) && acked != fin {
            let ticks = env.now_ticks().wrapping_sub(self.busy_since_ticks);
            self.busy_ticks = self.busy_ticks.wrapping_add(ticks);
        }
        self.snd_una = ack;
        self.send_queue.release_until(env.slices, ack);
    }

    /// RFC 9293 section 3.8.6.3: at least every second full-sized segment gets an ACK, and none
    /// waits long.
    #[inline(always)]
    fn schedule_ack(&mut self, env: &Env<'_>, len: u32) {
        if len > u32::from(self.rcv_mss) {
            self.rcv_mss = len.min(u32::from(self.mss_limit)) as u16;
        }
        let waiting = self.rcv_nxt.bytes_since(self.last_ack_sent);
        if self.quick_acks != 0 {
            self.quick_acks -= 1;
            self.facts.insert(Facts::TX_ACK);
        } else if waiting >= 2 * u32::from(self.rcv_mss) {
            self.facts.insert(Facts::TX_ACK);
        } else {
            self.delay_ack(env);
        }
    }

    /// An ACK is due, but may wait for company.
    #[inline]
    fn delay_ack(&mut self, env: &Env<'_>) {
        if self.ack_at == Instant::FAR_FUTURE {
            self.ack_at = env.now.plus_nanos(u64::from(env.config.delayed_ack_us) * 1000);
        }
    }

    /// What header prediction does not take.
    #[cold]
    fn input_slow(
        &mut self,
        env: &mut Env<'_>,
        header: &Header<'_>,
        payload: Option<IoBuf>,
    ) -> Events {
        let mut events = match self.state {
            State::Closed => {
                env.stats.closed_drops += 1;
                Events::empty()
            }
            State::SynSent => self.input_syn_sent(env, header, payload),
            _ => self.input_synchronised(env, header, payload),
        };
        if self.state != State::Closed {
            self.arm_persist_if_stalled(env);
        } else if self.facts.contains(Facts::TOLD_CLOSED) {
            events.remove(Events::CLOSED);
        } else {
            self.facts.insert(Facts::TOLD_CLOSED);
            events |= Events::CLOSED;
        }
        events.set(Events::TRANSMIT, self.wants_transmit());
        events
    }

    fn input_synchronised(
        &mut self,
        env: &mut Env<'_>,
        header: &Header<'_>,
        payload: Option<IoBuf>,
    ) -> Events {
        let mut flags = header.flags;
        let mut seq = header.seq;
        if self.facts.contains(Facts::ECN) {
            self.take_mark(header, payload.as_ref().map_or(0, |payload| payload.len() as u32));
        }
        if self.state == State::SynReceived
            && flags.contains(Flags::SYN)
            && !flags.contains(Flags::RST)
            && seq == self.rcv_nxt - 1
        {
            if !flags.contains(Flags::ACK) {
                // The peer's SYN again: it has not seen the answer.
                if self.challenge(env) {
                    self.facts.remove(Facts::TX_ACK);
                    self.facts.insert(Facts::TX_SYN);
                }
                return Events::empty();
            }
            // SYNs crossed, and this is the answer to this side's (RFC 9293 figure 8): all but the
            // SYN, which is known, counts.
            flags.remove(Flags::SYN);
            seq += 1;
        }
        let len = payload.as_ref().map_or(0, |payload| payload.len() as u32);
        let numbers =
            len + u32::from(flags.contains(Flags::SYN)) + u32::from(flags.contains(Flags::FIN));
        let end = seq + numbers;

        // RFC 7323 section 5.3, R1, before the check of numbers. Resets carry no timestamp that
        // could be trusted.
        let mut timestamp = None;
        if self.facts.contains(Facts::TIMESTAMPS) && !flags.contains(Flags::RST) {
            timestamp = header.timestamp();
            let silent = env.now_ticks().wrapping_sub(self.last_recv_ticks);
            if let Some(timestamp) = timestamp
                && (timestamp.value.wrapping_sub(self.ts_recent) as i32) < 0
                && silent < PAWS_IDLE_TICKS
            {
                env.stats.paws_drops += 1;
                self.challenge(env);
                return Events::empty();
            }
        }

        // First: the numbers. RFC 9293's table, but for a segment that stands right behind the
        // window: without data it is a good ACK from a peer that has filled the window, and with
        // data it is a window probe, whose data is cut off below.
        let acceptable = seq.le(self.rcv_adv)
            && if numbers == 0 { seq.ge(self.rcv_nxt) } else { end.gt(self.rcv_nxt) };
        if !acceptable {
            if let Some(timestamp) = timestamp
                && end == self.rcv_nxt
                && numbers != 0
                && seq.le(self.last_ack_sent)
            {
                // The last one again, since its ACK was lost: echoed as RFC 7323 section 4.3 says, or
                // the sender would take the time since it first sent it for a round trip. Numbers that
                // are older need not be right, and are not believed.
                self.ts_recent = timestamp.value;
            }
            return self.unacceptable(env, flags, seq, numbers, len);
        }
        // Second: resets, RFC 5961 section 3.2.
        if flags.contains(Flags::RST) {
            return self.input_reset(env, seq);
        }
        // Fourth: a SYN in the window, RFC 5961 section 4.2.
        if flags.contains(Flags::SYN) {
            env.stats.bad_syn_drops += 1;
            self.challenge(env);
            return Events::empty();
        }
        // Fifth: the ACK.
        if !flags.contains(Flags::ACK) {
            env.stats.no_ack_drops += 1;
            return Events::empty();
        }
        let mut events = Events::empty();
        if self.state == State::SynReceived {
            if header.ack != self.snd_una + 1 || self.snd_max == self.snd_una {
                env.stats.bad_ack_drops += 1;
                self.reply_reset(header.ack);
                return Events::empty();
            }
            events |= self.establish(env, header);
        } else if !self.process_ack(env, header, seq, len, &mut events) {
            return events;
        }
        if let Some(timestamp) = timestamp
            && seq.le(self.last_ack_sent)
        {
            // RFC 7323 section 4.3, (2); not before the acknowledgement was found good: a segment
            // that somebody made up must not make all that the peer sends look old.
            self.ts_recent = timestamp.value;
        }
        self.last_recv_ticks = env.now_ticks();

        match self.state {
            State::FinWait1 if self.fin_acked() => {
                self.state = State::FinWait2;
                self.idle_at = Instant::FAR_FUTURE;
                if self.facts.contains(Facts::DETACHED) {
                    self.idle_at = env.now.plus_micros(env.config.fin_wait_2_us);
                } else {
                    self.arm_keepalive(env);
                }
            }
            State::Closing if self.fin_acked() => events |= self.enter_time_wait(env),
            State::LastAck if self.fin_acked() => {
                self.finish(env, None);
                return events;
            }
            _ => {}
        }
        events | self.process_data(env, seq, payload, flags.contains(Flags::FIN))
    }

    /// RFC 9293 section 3.10.7.4: a segment outside of the window is answered with an ACK, unless
    /// it is a reset.
    fn unacceptable(
        &mut self,
        env: &mut Env<'_>,
        flags: Flags,
        seq: SeqNumber,
        numbers: u32,
        len: u32,
    ) -> Events {
        if flags.contains(Flags::RST) {
            env.stats.bad_reset_drops += 1;
            return Events::empty();
        }
        env.stats.bad_seq_drops += 1;
        if flags.contains(Flags::SYN) || numbers == 0 {
            // It may be an ACK in answer to an ACK: without a limit two ends that disagree would
            // go on for ever.
            self.challenge(env);
            return Events::empty();
        }
        if len != 0 && seq.lt(self.rcv_nxt) {
            self.note_duplicate(seq, seq + len);
        }
        if self.state == State::TimeWait && flags.contains(Flags::FIN) {
            // The last ACK was lost: wait from now on.
            self.idle_at = env.now.plus_micros(env.config.time_wait_us);
        }
        self.facts.insert(Facts::TX_ACK);
        Events::empty()
    }

    /// RFC 5961 section 3.2: only a reset with the very next number counts. One elsewhere in the
    /// window may be a guess: a peer that meant it will answer the challenge with a right one.
    fn input_reset(&mut self, env: &mut Env<'_>, seq: SeqNumber) -> Events {
        if seq != self.rcv_nxt {
            env.stats.bad_reset_drops += 1;
            self.challenge(env);
            return Events::empty();
        }
        // RFC 1337: a reset must not cut TIME-WAIT short.
        if self.state == State::TimeWait {
            env.stats.bad_reset_drops += 1;
            return Events::empty();
        }
        env.stats.resets_in += 1;
        if self.state == State::SynReceived && self.marks.contains(Marks::ACTIVE) {
            self.finish(env, Some(ConnectionError::Refused));
            return Events::REFUSED;
        }
        self.finish(env, Some(ConnectionError::Reset));
        Events::RESET
    }

    /// Asks for an ACK that tells the peer where this side is, if this second's share of them is
    /// not used up (RFC 5961 section 7). The count is the connection's own: a shared one could be
    /// probed from outside.
    #[cold]
    pub(crate) fn challenge(&mut self, env: &mut Env<'_>) -> bool {
        let ticks = env.now_ticks();
        let ticks = ticks as u16;
        if ticks.wrapping_sub(self.challenge_ticks) >= SECOND_TICKS {
            self.challenge_ticks = ticks;
            self.challenges = 0;
        }
        if self.challenges >= env.config.challenge_acks_per_second {
            env.stats.challenge_acks_limited += 1;
            return false;
        }
        self.challenges += 1;
        env.stats.challenge_acks += 1;
        self.facts.insert(Facts::TX_ACK);
        true
    }

    /// Makes a reset due that answers a segment acknowledging `ack`.
    pub(crate) fn reply_reset(&mut self, ack: SeqNumber) {
        self.reply_seq = ack;
        self.facts.insert(Facts::TX_REPLY);
    }

    /// `false` if the segment is to be dropped.
    fn process_ack(
        &mut self,
        env: &mut Env<'_>,
        header: &Header<'_>,
        seq: SeqNumber,
        len: u32,
        events: &mut Events,
    ) -> bool {
        let ack = header.ack;
        // RFC 5961 section 5.2. The upper bound is the highest number ever sent: after a time-out
        // SND.NXT is behind it.
        if ack.gt(self.snd_max) || ack.lt(self.snd_una - self.snd_wnd_max) {
            env.stats.bad_ack_drops += 1;
            self.challenge(env);
            return false;
        }
        let window = u32::from(header.window) << self.snd_scale;
        let advances = ack.gt(self.snd_una);
        let before = Before {
            una: self.snd_una,
            pipe: self.pipe(),
            // RFC 5681 section 2: what a duplicate ACK is.
            duplicate: ack == self.snd_una
                && len == 0
                && !header.flags.contains(Flags::FIN)
                && self.snd_una != self.snd_max
                && window == self.snd_wnd
                && !self.facts.contains(Facts::PERSIST),
            ece: header.flags.contains(Flags::ECE) && self.facts.contains(Facts::ECN),
        };
        let data = ack.min(self.snd_end).distance(self.snd_una);
        self.judge_ack(env, header, ack.max(self.snd_una), &before);
        if ack.lt(before.una) {
            return true;
        }
        if ack != before.una {
            if self.snd_nxt.lt(ack) {
                self.snd_nxt = ack;
            }
            self.marks.remove(Marks::SOFT_ERROR);
            // An ACK lets go what waits for more, as in Linux.
            self.facts.remove(Facts::MORE);
            if self.is_orphan() {
                // Progress: what is left of the connection's time starts anew.
                self.idle_at = Instant::FAR_FUTURE;
            }
            if data > 0 {
                *events |= Events::ACKED | Events::WRITABLE;
            }
        }
        // RFC 9293 section 3.10.7.4, fifth check, and besides: what acknowledges more than anything
        // before is the latest word on the window, even if its data is old. Kept as it was, the window
        // would move on with SND.UNA, beyond what the peer has allowed.
        let (wl1, closed) = (self.snd_wl1, self.snd_wnd == 0);
        if advances || wl1.lt(seq) || (wl1 == seq && ack == self.snd_una) {
            self.set_window(header);
            self.snd_wl1 = wl1.max(seq);
        }
        if self.marks.contains(Marks::NEW_FIRST) {
            self.push_new(env);
        }
        if self.facts.contains(Facts::PERSIST) {
            // The peer answers: it may keep its window closed as long as it likes (RFC 9293 section
            // 3.8.6.1, MUST-37).
            self.retries = 0;
            if self.snd_wnd != 0
                && (self.snd_una != self.snd_nxt
                    || self.sendable() != 0
                    || self.snd_nxt == self.snd_limit())
            {
                self.facts.remove(Facts::PERSIST);
                self.backoff = 0;
                self.retransmit_at = Instant::FAR_FUTURE;
                if self.is_orphan() {
                    // Retransmission bounds its time now.
                    self.idle_at = Instant::FAR_FUTURE;
                }
                if self.snd_una != self.snd_max && self.snd_nxt == self.snd_max {
                    self.arm_retransmit(env);
                }
            } else if closed && self.snd_wnd != 0 {
                // Too little to be used at once: from now on the override time-out counts (RFC 9293
                // section 3.8.6.2.1), and not that of probes, which may be minutes.
                self.backoff = 0;
                self.retransmit_at = Instant::FAR_FUTURE;
            }
            self.bound_orphan(env);
        }
        true
    }

    /// An ACK moves things on after a time-out, and echoes `echo`. That tells which of the segments
    /// sent it is about, so that it is a measurement (RFC 7323 section 4), and the time-out is what
    /// it was; without timestamps it stays backed off until there is one (RFC 6298 section 5.7,
    /// Karn). An echo from before the last repetition is none: a peer that had the segment already,
    /// and whose ACK was lost, repeats what it echoed then.
    pub(crate) fn settle_backoff(&mut self, env: &Env<'_>, echo: u32) {
        let clock = env.now_ticks().wrapping_add(self.ts_offset);
        let ticks = clock.wrapping_sub(echo);
        // Nor is one from the future, or from long ago.
        if ticks >= 1 << 16 {
            return;
        }
        self.backoff = 0;
        if ticks <= env.now_ticks().wrapping_sub(self.last_send_ticks) + 1 {
            self.sample_rtt(env, (u64::from(ticks) * TICK_NANOS / 1000) as u32);
        }
    }

    /// Seventh and eighth: text and FIN.
    pub(crate) fn process_data(
        &mut self,
        env: &mut Env<'_>,
        mut seq: SeqNumber,
        payload: Option<IoBuf>,
        mut fin: bool,
    ) -> Events {
        let len = payload.as_ref().map_or(0, |payload| payload.len() as u32);
        if len == 0 && !fin {
            return Events::empty();
        }
        if !self.state.receives() {
            // Behind the peer's FIN there is nothing.
            if len != 0 {
                env.stats.closed_drops += 1;
            }
            self.facts.insert(Facts::TX_ACK);
            return Events::empty();
        }
        let mut payload = payload.filter(|payload| !payload.is_empty());
        if let Some(payload) = &mut payload {
            let old = self.rcv_nxt.distance(seq).clamp(0, len as i32) as u32;
            if old > 0 {
                self.note_duplicate(seq, seq + old);
                payload.advance(old as usize);
                seq += old;
                self.facts.insert(Facts::TX_ACK);
            }
            // Beyond the window nothing counts, the FIN included. Neither does data behind a FIN.
            let mut edge = self.rcv_adv;
            if self.facts.contains(Facts::RCV_FIN_KNOWN) {
                edge = edge.min(self.rcv_fin);
            }
            let room = edge.distance(seq).max(0) as usize;
            if payload.len() > room && !self.takes_beyond(seq) {
                payload.truncate(room);
                fin = false;
                env.stats.bad_seq_drops += 1;
                self.facts.insert(Facts::TX_ACK);
            }
        }
        let len = payload.as_ref().map_or(0, |payload| payload.len() as u32);
        if fin && !self.facts.contains(Facts::RCV_FIN_KNOWN) && seq.ge(self.rcv_nxt) {
            // It takes no room, so a FIN is welcome right behind the window too.
            self.facts.insert(Facts::RCV_FIN_KNOWN);
            self.rcv_fin = seq + len;
            // Behind it there is nothing, whatever came before said.
            let dropped = self.reassembly.cut(env.slices, self.rcv_fin);
            env.stats.closed_drops += u64::from(dropped);
            self.facts.set(Facts::OUT_OF_ORDER, !self.reassembly.is_empty());
        }
        let mut events = Events::empty();
        if len != 0
            && let Some(payload) = payload
        {
            if self.facts.contains(Facts::DETACHED) {
                env.stats.closed_drops += 1;
                // Nobody will read it: <SEQ=SEG.ACK><CTL=RST>.
                self.finish(env, Some(ConnectionError::Aborted));
                self.reply_reset(self.snd_una);
                return Events::empty();
            }
            events = self.accept(env, seq, payload, len);
        }
        if self.facts.contains(Facts::RCV_FIN_KNOWN)
            && self.rcv_nxt == self.rcv_fin
            && !self.facts.contains(Facts::RCV_FIN)
        {
            events |= self.process_fin(env);
        } else if fin {
            self.facts.insert(Facts::TX_ACK);
        }
        events
    }

    /// Whether a segment may go beyond the window: when nothing else is held, it takes no more memory
    /// than it has already, and some senders, of a FIN or of merged segments, overstep a little.
    fn takes_beyond(&self, seq: SeqNumber) -> bool {
        seq == self.rcv_nxt
            && self.receive_queue.bytes == 0
            && self.reassembly.is_empty()
            && !self.facts.contains(Facts::RCV_FIN_KNOWN)
    }

    /// Data inside the window.
    fn accept(&mut self, env: &mut Env<'_>, seq: SeqNumber, payload: IoBuf, len: u32) -> Events {
        if seq == self.rcv_nxt {
            return self.accept_in_order(env, payload);
        }
        // RFC 5681 section 4.2: out of order: an ACK at once.
        self.facts.insert(Facts::TX_ACK);
        // The rest is for what is in order, so that a gap can be filled without loss of what is
        // behind it.
        let slices_max = self.recv_slices_max(env.config);
        let slices_max = (slices_max - slices_max / 8).saturating_sub(self.receive_queue.slices);
        let ranges_max = env.config.reassembly_ranges_max;
        match self.reassembly.insert(env.slices, seq, &payload, slices_max, ranges_max) {
            Inserted::Kept => env.stats.out_of_order += 1,
            Inserted::Duplicate => self.note_duplicate(seq, seq + len),
            Inserted::Bound => env.stats.receive_bound_drops += 1,
            Inserted::SlabFull => env.stats.slab_full_drops += 1,
        }
        self.facts.set(Facts::OUT_OF_ORDER, !self.reassembly.is_empty());
        Events::empty()
    }

    /// Data from the next number wanted on. What came ahead of order never keeps it out.
    fn accept_in_order(&mut self, env: &mut Env<'_>, mut payload: IoBuf) -> Events {
        let first = self.rcv_nxt;
        let gap = !self.reassembly.is_empty();
        while !payload.is_empty() {
            let until = self.reassembly.first(env.slices);
            let fits = until.map_or(usize::MAX, |until| until.bytes_since(self.rcv_nxt) as usize);
            let piece = payload.split_to(payload.len().min(fits));
            let len = piece.len() as u32;
            if !self.receive_queue.join(env.slices, &piece) {
                if !self.make_room(env) {
                    break;
                }
                self.receive_queue.push(env.slices, piece, self.rcv_nxt);
            }
            let piece_end = self.rcv_nxt + len;
            self.rcv_nxt = self.reassembly.deliver(env.slices, &mut self.receive_queue, piece_end);
            let known = self.rcv_nxt.bytes_since(piece_end).min(payload.len() as u32);
            if known != 0 && !self.facts.contains(Facts::DSACK) {
                // RFC 2883 section 4.2: the first part that came twice.
                self.note_duplicate(piece_end, piece_end + known);
            }
            payload.advance(known as usize);
        }
        let beyond = self.rcv_nxt.gt(self.rcv_adv);
        self.rcv_adv = self.rcv_adv.max(self.rcv_nxt);
        self.facts.set(Facts::OUT_OF_ORDER, !self.reassembly.is_empty());
        let len = self.rcv_nxt.bytes_since(first);
        if gap {
            // RFC 5681 section 4.2: it fills a gap, or a part of one: an ACK at once.
            self.facts.insert(Facts::TX_ACK);
        } else if beyond {
            // There is no window left to tell of.
            self.delay_ack(env);
        } else if len != 0 {
            self.schedule_ack(env, len);
        }
        env.stats.bytes_in += u64::from(len);
        if len != 0 { Events::READABLE } else { Events::empty() }
    }

    /// Sees to it that a slice in order can be queued, at the cost of what is ahead of order.
    fn make_room(&mut self, env: &mut Env<'_>) -> bool {
        let slices_max = self.recv_slices_max(env.config);
        if !self.has_slice_left(env) {
            env.stats.receive_bound_drops += 1;
            return false;
        }
        while self.receive_queue.slices + self.reassembly.slices >= slices_max
            || env.slices.is_full()
        {
            let freed = self.reassembly.renege(env.slices);
            if freed == 0 {
                env.stats.slab_full_drops += 1;
                return false;
            }
            env.stats.reneged_drops += u64::from(freed);
        }
        true
    }

    /// To be reported with the next ACK (RFC 2883).
    fn note_duplicate(&mut self, start: SeqNumber, end: SeqNumber) {
        if self.facts.contains(Facts::SACK) {
            self.dsack = (start, end);
            self.facts.insert(Facts::DSACK);
        }
    }

    /// Eighth: the FIN, in order.
    fn process_fin(&mut self, env: &mut Env<'_>) -> Events {
        // A FIN that follows data may wait for this side's, as in Linux: often the answer is a FIN too.
        if self.state == State::Established
            && self.rcv_nxt != self.rcv_isn + 1
            && self.rcv_adv.gt(self.rcv_nxt)
        {
            self.delay_ack(env);
        } else {
            self.facts.insert(Facts::TX_ACK);
        }
        self.rcv_nxt += 1;
        self.rcv_adv = self.rcv_adv.max(self.rcv_nxt);
        // Behind it there is nothing to be told of.
        self.reassembly.clear(env.slices);
        self.facts.remove(Facts::OUT_OF_ORDER | Facts::DSACK);
        self.facts.insert(Facts::RCV_FIN);
        let events = Events::PEER_CLOSED;
        match self.state {
            State::Established => self.state = State::CloseWait,
            // Its ACK would have made this FIN-WAIT-2 already.
            State::FinWait1 => self.state = State::Closing,
            State::FinWait2 => return events | self.enter_time_wait(env),
            _ => {}
        }
        events
    }
}
