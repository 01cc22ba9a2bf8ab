//! What to send now.

use millstream_timer::Instant;
use millstream_wire::tcp::{Flags, Options, SackBlocks, SeqNumber, Timestamp};

use crate::config::Config;
use crate::congestion::{Controller, initial_window};
use crate::ecn::ECT_0;
use crate::segment::Segment;
use crate::slab::NIL;
use crate::state::State;
use crate::tcb::{Env, Facts, Marks, TICK_NANOS, Tcb};

/// Most bytes of a run: with all headers it is an IP packet yet, for a NIC that cuts it.
const RUN_BYTES_MAX: u32 = u16::MAX as u32 - 128;

/// With less than this half of the buffer may be less than a segment.
const WINDOW_QUICK_MIN: u32 = 2 * u16::MAX as u32;

impl Tcb {
    /// Fills in the next segment to send now, if there is one, and goes on as if it had been sent.
    /// To be called until it returns `false` or the link takes no more.
    #[inline(always)]
    pub fn transmit(&mut self, env: &mut Env<'_>, out: &mut Segment) -> bool {
        // The straight path: new data of an open connection with nothing out of the ordinary, all
        // there is or a full segment, or else a plain ACK. It decides as `sendable` would.
        if self.state == State::Established
            && !self.facts.intersects(Facts::SLOW_TRANSMIT)
            && self.snd_nxt == self.snd_max
        {
            let rest = self.snd_end.bytes_since(self.snd_nxt);
            let flight = self.flight();
            let usable = self.window.cwnd.min(self.snd_wnd).saturating_sub(flight);
            let count = rest.min(u32::from(self.mss));
            if count != 0 {
                let whole = count < rest || count == u32::from(self.mss);
                if count <= usable && (whole || flight == 0 || self.facts.contains(Facts::NODELAY))
                {
                    self.transmit_plain(env, out, count, usable);
                    return true;
                }
            } else {
                if !self.facts.contains(Facts::TX_ACK) {
                    return false;
                }
                let seq = self.snd_nxt;
                self.fill_plain(env, out, seq, Flags::ACK);
                out.ecn = 0;
                return true;
            }
        }
        self.transmit_slow(env, out)
    }

    /// New data: a segment of `count` bytes, or a run of full ones if there is more and the caller
    /// takes it. `usable`: what the windows hold.
    #[inline(always)]
    fn transmit_plain(
        &mut self,
        env: &mut Env<'_>,
        out: &mut Segment,
        mut count: u32,
        mut usable: u32,
    ) {
        let seq = self.snd_nxt;
        let idle = self.snd_una == seq;
        if idle {
            self.restart_after_idle(env);
        }
        // An answer in the place of an ACK: the peer is waiting for answers, not for ACKs.
        if self.rcv_nxt != self.last_ack_sent {
            self.quick_acks = 0;
        }
        self.fill_plain(env, out, seq, Flags::ACK);
        out.ecn = self.facts.bits() as u8 & ECT_0;
        let mss = u32::from(self.mss);
        if out.segments_max > 1 && count == mss && usable >= 2 * mss {
            (count, usable) = self.run_bytes(env.config, u32::from(out.segments_max));
        }
        let payload = &mut out.payload;
        let (sent, count) = self.send_queue.gather_run(env.slices, seq, count, mss, payload);
        let end = seq + sent;
        // Fewer than there are: a record ends.
        if sent < count || self.push_due(env.config, end, sent, usable.saturating_sub(sent)) {
            out.flags = Flags::ACK.union(Flags::PSH);
        }
        env.stats.bytes_out += u64::from(sent);
        let mut segments = 1;
        if sent > mss {
            out.gso_bytes = self.mss;
            segments = sent.div_ceil(mss) as u16;
            env.stats.segments_out += u64::from(segments) - 1;
        }
        if idle && self.flight == NIL && segments == 1 {
            self.note_lone(env);
        } else {
            self.record_sent(env, end, segments);
        }
        self.snd_nxt = end;
        self.snd_max = end;
    }

    /// Bytes of a run of full segments, `segments_max` at most, and what the windows hold. A run
    /// ends where a burst does, so that PSH stands where it would if each were sent alone.
    #[inline(never)]
    fn run_bytes(&self, config: &Config, segments_max: u32) -> (u32, u32) {
        let mss = u32::from(self.mss);
        let rest = self.snd_end.bytes_since(self.snd_nxt);
        let usable = self.window.cwnd.min(self.snd_wnd).saturating_sub(self.flight());
        let most = rest.min(usable).min(RUN_BYTES_MAX).min(self.burst_left(config));
        ((most / mss).clamp(1, segments_max) * mss, usable)
    }

    /// All other cases, and all other segments.
    #[inline(never)]
    fn transmit_slow(&mut self, env: &mut Env<'_>, out: &mut Segment) -> bool {
        self.end_pace_wait(env);
        if self.facts.intersects(Facts::TX_SPECIAL) && self.transmit_special(env, out) {
            return true;
        }
        if self.can_resend() && self.resend_lost(env, out) {
            return true;
        }
        let limited = self.sendable() == 0 && self.is_window_limited();
        if limited != self.facts.contains(Facts::WINDOW_LIMITED) {
            self.note_window_limit(env, limited);
        }
        if self.snd_nxt != self.snd_limit() {
            let count = self.sendable();
            let resent = self.snd_nxt.lt(self.snd_max);
            if count != 0 && !(resent && self.lacks(env, self.snd_nxt)) {
                self.transmit_data(env, out, count);
                return true;
            }
            self.arm_persist_if_stalled(env);
            self.burst_bytes = 0;
        }
        if self.facts.contains(Facts::TX_ACK) {
            self.fill(env, out, self.snd_nxt_for_ack(), Flags::ACK);
            return true;
        }
        false
    }

    /// How many numbers (bytes, and the FIN) may be sent in a segment from `snd_nxt` on; 0 if it is
    /// better to wait (RFC 9293 section 3.8.6.2.1 and section 3.7.4).
    #[inline]
    pub(crate) fn sendable(&self) -> u32 {
        if !self.state.transmits() || self.marks.contains(Marks::PACE_WAIT) {
            return 0;
        }
        let rest = self.snd_limit().bytes_since(self.snd_nxt);
        let flight = self.flight();
        let usable = self.snd_wnd.saturating_sub(flight);
        let usable = usable.min(self.window.cwnd.saturating_sub(self.pipe()));
        let mss = u32::from(self.mss);
        let count = rest.min(usable);
        if count >= mss {
            // A full segment.
            return mss;
        }
        if count == rest {
            if self.facts.contains(Facts::FIN_QUEUED) || self.snd_nxt.lt(self.snd_max) {
                return count;
            }
            if self.marks.contains(Marks::FLUSH) {
                return count;
            }
            if self.facts.intersects(Facts::CORK | Facts::MORE) {
                return 0;
            }
            // Nagle: all there is, if nothing is out.
            if flight == 0 || self.facts.contains(Facts::NODELAY) {
                return count;
            }
            return 0;
        }
        // What was sent before goes again as far as the window lets it, or a time-out would send
        // nothing for ever.
        if count != 0 && flight == 0 && self.snd_nxt.lt(self.snd_max) {
            return count;
        }
        // A part, because of the windows: only if it is half of the largest window the peer has
        // ever had, so that a peer with a tiny buffer is served and a silly window is not.
        if count != 0
            && (flight == 0 || self.facts.contains(Facts::NODELAY))
            && count >= self.snd_wnd_max / 2
            && self.snd_wnd <= self.window.cwnd
        {
            return count;
        }
        0
    }

    pub(crate) fn transmit_data(&mut self, env: &mut Env<'_>, out: &mut Segment, count: u32) {
        if self.snd_una == self.snd_max {
            // `count` stands: even the restart window holds a segment.
            self.restart_after_idle(env);
        }
        let seq = self.snd_nxt;
        if self.rcv_nxt != self.last_ack_sent {
            self.quick_acks = 0;
        }
        self.fill(env, out, seq, Flags::ACK);
        let mut count = count;
        if out.options.len() != self.usual_options_len() {
            count = self.less_options(out, count);
        }
        let data = count.min(self.snd_end.distance(seq).max(0) as u32);
        let sent = self.send_queue.gather_next(env.slices, seq, data, &mut out.payload);
        let mut end = seq + sent;
        let room = self.snd_wnd.saturating_sub(self.flight() + sent);
        let room = room.min(self.window.cwnd.saturating_sub(self.pipe() + sent));
        if sent < data || (self.push_due(env.config, end, sent, room) && sent != 0) {
            out.flags |= Flags::PSH;
        }
        if end == self.snd_end {
            self.marks.remove(Marks::FLUSH);
            if sent < count && self.facts.contains(Facts::FIN_QUEUED) {
                out.flags |= Flags::FIN;
                end += 1;
            }
        }
        if sent != 0 && seq == self.snd_max {
            self.mark_new(out);
        }
        env.stats.bytes_out += u64::from(sent);
        if self.facts.contains(Facts::PACED) {
            self.pace(env, sent);
        }
        self.note_sent(env, seq, end);
    }

    /// Bytes of options that `mss` leaves room for.
    #[inline]
    pub(crate) fn usual_options_len(&self) -> usize {
        if self.facts.contains(Facts::TIMESTAMPS) { 12 } else { 0 }
    }

    /// Bytes left for payload when blocks take their place beside it (RFC 6691 section 2).
    #[cold]
    pub(crate) fn less_options(&self, out: &Segment, count: u32) -> u32 {
        let extra = out.options.len().saturating_sub(self.usual_options_len()) as u32;
        count.min(u32::from(self.mss).saturating_sub(extra).max(1))
    }

    /// What follows from having sent the numbers from `seq` up to `end`.
    pub(crate) fn note_sent(&mut self, env: &mut Env<'_>, seq: SeqNumber, end: SeqNumber) {
        if self.snd_una == seq && self.flight == NIL {
            self.note_lone(env);
        } else {
            self.record_sent(env, end, 1);
        }
        if seq.lt(self.snd_max) {
            // A probe had been here before: its number counts as sent, but is no flight.
            self.note_resent(env);
        }
        self.snd_nxt = end;
        self.snd_max = self.snd_max.max(end);
        if self.facts.contains(Facts::PERSIST) {
            self.facts.remove(Facts::PERSIST);
            self.arm_retransmit(env);
        }
    }

    /// New data is being sent and nothing else is in flight: this record says all there is to know.
    /// The segment is timed (RFC 6298 section 3), at most one in a tick, since a path with shorter
    /// round trips has no use for a sample of each.
    #[inline(always)]
    fn note_lone(&mut self, env: &Env<'_>) {
        let ticks = env.now_ticks();
        self.facts.set(Facts::TIMING, ticks != self.last_send_ticks);
        self.last_send_ticks = ticks;
        self.sent_64ns = env.now_64ns();
        // RFC 6298 section 5.1.
        self.arm_retransmit(env);
    }

    #[cold]
    pub(crate) fn note_resent(&mut self, env: &mut Env<'_>) {
        // Karn: an ACK might be of either.
        self.facts.remove(Facts::TIMING);
        self.retransmits = self.retransmits.saturating_add(1);
        env.stats.retransmits += 1;
    }

    /// RFC 5681 section 4.1: after a time-out's worth of silence the old window proves nothing.
    #[inline]
    fn restart_after_idle(&mut self, env: &mut Env<'_>) {
        let idle_ticks = env.now_ticks().wrapping_sub(self.last_send_ticks);
        if idle_ticks > self.rtt.rto_us >> 10 {
            self.shrink_to_restart_window(env, idle_ticks);
        }
    }

    #[cold]
    fn shrink_to_restart_window(&mut self, env: &mut Env<'_>, idle_ticks: u32) {
        if !env.config.slow_start_after_idle {
            return;
        }
        let initial = initial_window(env.config.initial_window_segments, u32::from(self.mss));
        let idle_us = u64::from(idle_ticks) * TICK_NANOS / 1000;
        self.congestion.on_idle(&mut self.window, initial, idle_us, env.now.as_micros());
        self.restart_at_fixed_rate(env);
    }

    /// The number of a segment without data: the next one, or, while data is being sent again, the
    /// highest (a peer that has all of it would take a lower one for old).
    #[inline]
    fn snd_nxt_for_ack(&self) -> SeqNumber {
        if self.facts.contains(Facts::PERSIST) { self.snd_nxt } else { self.snd_max }
    }

    /// Writes everything but the payload, with the ACK that every segment carries.
    pub(crate) fn fill(
        &mut self,
        env: &mut Env<'_>,
        out: &mut Segment,
        seq: SeqNumber,
        flags: Flags,
    ) {
        self.fill_plain(env, out, seq, flags);
        out.ecn = 0;
        if self.facts.contains(Facts::ECHO) {
            out.flags |= Flags::ECE;
        }
        if self.facts.intersects(Facts::OUT_OF_ORDER | Facts::DSACK) {
            self.fill_sack(env, out);
        }
    }

    /// As [`Self::fill`], with nothing out of order to be told.
    #[inline(always)]
    fn fill_plain(&mut self, env: &mut Env<'_>, out: &mut Segment, seq: SeqNumber, flags: Flags) {
        env.stats.segments_out += 1;
        out.seq = seq;
        out.ack = self.rcv_nxt;
        out.flags = flags;
        out.gso_bytes = 0;
        if !out.payload.is_empty() {
            out.payload.clear();
        }
        if self.facts.contains(Facts::TIMESTAMPS) {
            out.options.set_timestamp(self.timestamp(env));
        } else {
            out.options.clear();
        }
        out.window = self.announce(env.config);
        self.last_ack_sent = self.rcv_nxt;
        self.facts.remove(Facts::TX_ACK);
        self.ack_at = Instant::FAR_FUTURE;
    }

    #[inline]
    fn timestamp(&self, env: &Env<'_>) -> Timestamp {
        Timestamp { value: env.now_ticks().wrapping_add(self.ts_offset), echo: self.ts_recent }
    }

    /// A duplicate is reported once, before the ranges (RFC 2883 section 4).
    #[cold]
    fn fill_sack(&mut self, env: &mut Env<'_>, out: &mut Segment) {
        if !self.facts.contains(Facts::SACK) {
            self.facts.remove(Facts::DSACK);
            return;
        }
        let mut blocks = SackBlocks::EMPTY;
        if self.facts.contains(Facts::DSACK) {
            blocks.push(self.dsack.0, self.dsack.1);
            self.facts.remove(Facts::DSACK);
            env.stats.dsacks_out += 1;
        }
        self.reassembly.sack_blocks(env.slices, &mut blocks);
        let timestamp = self.facts.contains(Facts::TIMESTAMPS).then(|| self.timestamp(env));
        out.options.set_established(timestamp, &blocks);
    }

    /// The window field for the next segment. What was once allowed stays allowed (RFC 9293 section
    /// 3.8.6, SHLD-14).
    #[inline(always)]
    fn announce(&mut self, config: &Config) -> u16 {
        let held = self.rcv_adv.bytes_since(self.rcv_nxt);
        if self.receive_queue.bytes == 0
            && self.recv_buf_bytes.wrapping_sub(held) < u32::from(self.mss_limit)
            && self.recv_buf_bytes >= WINDOW_QUICK_MIN
        {
            // The usual case, in which the rules below leave the edge where it is: all was read,
            // and what the peer has used is less than what is worth a change.
            let scale = self.rcv_scale;
            let units = ((held + ((1 << scale) - 1)) >> scale).min(0xffff);
            self.rcv_adv = self.rcv_adv.max(self.rcv_nxt + (units << scale));
            return units as u16;
        }
        self.announce_anew(config, held)
    }

    fn announce_anew(&mut self, config: &Config, held: u32) -> u16 {
        let room = self.receive_room(config);
        let scale = self.rcv_scale;
        let unit = (1u32 << scale) - 1;
        // Rounded up, since rounding down would take back up to a unit (RFC 7323 section 2.4).
        let mut units = (held + unit) >> scale;
        // RFC 9293 section 3.8.6.2.2: the edge moves by a segment or half of the buffer, or stays.
        if room >= held.saturating_add(self.window_step()) {
            units = units.max(room >> scale);
        } else if units << scale > room.saturating_add(u32::from(self.mss_limit).max(64 << scale)) {
            // A peer that sends a byte at a time uses the rounding to push the edge further and
            // further: enough of it.
            units = held >> scale;
        }
        let units = units.min(0xffff);
        self.rcv_adv = self.rcv_adv.max(self.rcv_nxt + (units << scale));
        units as u16
    }

    /// Everything that is neither new data nor an ACK; `false` if there turned out to be nothing.
    #[cold]
    fn transmit_special(&mut self, env: &mut Env<'_>, out: &mut Segment) -> bool {
        if self.facts.contains(Facts::TX_RESET) {
            self.facts.remove(Facts::TX_ANY);
            // The peer takes only the very next number (RFC 5961 section 3.2). What was sent beyond
            // its window, a probe as a rule, it has not taken.
            let seq = self.snd_max.min(self.snd_una + self.snd_wnd).max(self.snd_nxt);
            self.fill(env, out, seq, Flags::RST | Flags::ACK);
            env.stats.resets_out += 1;
            return true;
        }
        if self.facts.contains(Facts::TX_REPLY) {
            self.facts.remove(Facts::TX_REPLY);
            if self.marks.contains(Marks::REPLY_IS_ACK) {
                self.transmit_ack_before(env, out);
                return true;
            }
            // RFC 9293 sections 3.10.7.3 and 3.10.7.4: <SEQ=SEG.ACK><CTL=RST>
            out.ecn = 0;
            out.seq = self.reply_seq;
            out.ack = SeqNumber(0);
            out.flags = Flags::RST;
            out.window = 0;
            out.gso_bytes = 0;
            out.options.clear();
            out.payload.clear();
            env.stats.segments_out += 1;
            env.stats.resets_out += 1;
            return true;
        }
        if self.facts.contains(Facts::TX_SYN) {
            self.facts.remove(Facts::TX_SYN);
            self.transmit_syn(env, out);
            return true;
        }
        if self.facts.contains(Facts::TX_AGAIN) {
            self.facts.remove(Facts::TX_AGAIN);
            if self.transmit_again(env, out) {
                return true;
            }
            if self.lacks_any(env) {
                self.facts.insert(Facts::TX_AGAIN);
            }
        }
        if self.facts.contains(Facts::TX_PROBE) {
            self.facts.remove(Facts::TX_PROBE);
            if self.transmit_probe(env, out) {
                return true;
            }
        }
        if self.facts.contains(Facts::TX_LARGER) && self.transmit_larger(env, out) {
            return true;
        }
        if self.facts.contains(Facts::TX_KEEPALIVE) {
            // RFC 9293 section 3.8.4: a number below the window makes the peer say where it is.
            self.facts.remove(Facts::TX_KEEPALIVE);
            self.fill(env, out, self.snd_una - 1, Flags::ACK);
            return true;
        }
        false
    }

    fn transmit_syn(&mut self, env: &mut Env<'_>, out: &mut Segment) {
        let flags = if self.state == State::SynSent { Flags::SYN } else { Flags::SYN | Flags::ACK };
        let resent = self.snd_max != self.snd_una;
        let flags = flags | self.syn_bits(resent);
        self.fill(env, out, self.snd_una, flags);
        if self.state == State::SynSent {
            out.ack = SeqNumber(0);
        }
        let timestamp = self.facts.contains(Facts::TIMESTAMPS).then(|| self.timestamp(env));
        let scale = self.facts.contains(Facts::WINDOW_SCALE).then_some(self.rcv_scale);
        let sack = self.facts.contains(Facts::SACK);
        // RFC 6691: the MSS option leaves options out of account.
        out.options = Options::syn(self.mss_limit, scale, sack, timestamp);
        // RFC 7323 section 2.2: the window of a SYN is never scaled.
        let window = self.first_window(env.config);
        out.window = window as u16;
        self.rcv_adv = self.rcv_nxt + window;
        self.snd_nxt = self.snd_una + 1;
        if resent {
            self.note_resent(env);
        } else {
            self.facts.insert(Facts::TIMING);
            self.sent_64ns = env.now_64ns();
        }
        self.snd_max = self.snd_nxt;
        if self.retransmit_at == Instant::FAR_FUTURE {
            self.arm_retransmit(env);
        }
    }

    /// Sends the oldest segment again.
    pub(crate) fn transmit_first(&mut self, env: &mut Env<'_>, out: &mut Segment) -> bool {
        let rest = self.snd_max.bytes_since(self.snd_una);
        if rest == 0 || !self.state.transmits() || self.lacks(env, self.snd_una) {
            return false;
        }
        self.fill(env, out, self.snd_una, Flags::ACK);
        let mss = self.less_options(out, u32::from(self.mss));
        let data = rest.min(mss).min(self.snd_end.distance(self.snd_una).max(0) as u32);
        let seq = self.snd_una;
        let sent = self.send_queue.gather_first(env.slices, seq, data, &mut out.payload);
        if seq + sent == self.snd_end && self.snd_max.gt(self.snd_end) {
            out.flags |= Flags::FIN;
        }
        env.stats.bytes_out += u64::from(sent);
        self.note_resent(env);
        if self.retransmit_at == Instant::FAR_FUTURE {
            self.arm_retransmit(env);
        }
        true
    }

    /// A closed window is asked (RFC 9293 section 3.8.6.1): as Linux does it, by a segment without data
    /// and with an old number, which every peer answers with its window (section 3.10.7.4). A byte of
    /// what waits would be thrown away by most, and some would count it as an attack. Only a FIN goes
    /// as it is, since it needs no window. An open window, too small for what silly-window avoidance
    /// wants, gets what it holds after the override time-out.
    fn transmit_probe(&mut self, env: &mut Env<'_>, out: &mut Segment) -> bool {
        let rest = self.snd_limit().bytes_since(self.snd_una);
        if rest == 0 || !self.state.transmits() {
            return false;
        }
        let seq = self.snd_una;
        let closed = self.snd_wnd == 0;
        // The peer may have taken its window back while data was in flight.
        let in_flight = self.snd_nxt != seq;
        if in_flight && !closed {
            return false;
        }
        if closed && !in_flight && self.snd_end.gt(seq) {
            self.facts.remove(Facts::TIMING);
            self.fill(env, out, seq - 1, Flags::ACK);
            return true;
        }
        if self.lacks(env, seq) {
            return false;
        }
        self.fill(env, out, seq, Flags::ACK);
        let mss = self.less_options(out, u32::from(self.mss));
        let count = if closed { 1 } else { rest.min(self.snd_wnd).min(mss) };
        let data = count.min(self.snd_end.distance(seq).max(0) as u32);
        let sent = self.send_queue.gather_first(env.slices, seq, data, &mut out.payload);
        if !in_flight {
            self.send_queue.rewind();
        }
        let mut end = seq + sent;
        if end == self.snd_end && sent < count && self.facts.contains(Facts::FIN_QUEUED) {
            out.flags |= Flags::FIN;
            end += 1;
        }
        if sent > 0 {
            out.flags |= Flags::PSH;
        }
        env.stats.bytes_out += u64::from(sent);
        if closed {
            self.facts.remove(Facts::TIMING);
            if in_flight {
                self.note_head_resent(env);
            } else {
                self.snd_nxt = seq;
                self.snd_max = self.snd_max.max(end);
            }
        } else {
            self.note_sent(env, seq, end);
        }
        true
    }
}
