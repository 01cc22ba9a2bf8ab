//! The beginning: both opens, SYN-SENT, and what the two ends agree on.

use millstream_buf::IoBuf;
use millstream_timer::Instant;
use millstream_wire::tcp::{Flags, Header, SeqNumber};

use crate::congestion::{Controller, initial_window};
use crate::state::{ConnectionError, Events, State};
use crate::tcb::{Env, Facts, MSS_DEFAULT, MSS_MIN, Marks, Tcb};

/// The time-out of data after a SYN was lost and nothing was measured (RFC 6298 section 5.7).
const RTO_AFTER_SYN_LOSS_US: u32 = 3_000_000;

impl Tcb {
    /// Opens a connection (RFC 9293 section 3.10.1). The SYN goes out with the next
    /// [`Tcb::transmit`].
    ///
    /// `mss_limit` is what the link takes in bytes of payload and options: the MTU less 40 with
    /// IPv4.
    #[cold]
    pub fn active_open(env: &mut Env<'_>, isn: SeqNumber, ts_offset: u32, mss_limit: u16) -> Self {
        let mut tcb = Self::new(env, State::SynSent, isn, ts_offset, mss_limit);
        tcb.marks.insert(Marks::ACTIVE);
        tcb.offer_ecn(env);
        env.stats.active_opens += 1;
        tcb
    }

    /// Answers a SYN that came to a listener (RFC 9293 section 3.10.7.2). The SYN-ACK goes out with
    /// the next [`Tcb::transmit`]. Data in the SYN is left for the peer to send again.
    #[cold]
    pub fn passive_open(
        env: &mut Env<'_>,
        isn: SeqNumber,
        ts_offset: u32,
        mss_limit: u16,
        syn: &Header<'_>,
    ) -> Self {
        let mut tcb = Self::new(env, State::SynReceived, isn, ts_offset, mss_limit);
        env.stats.passive_opens += 1;
        env.stats.segments_in += 1;
        tcb.take_syn(env, syn);
        tcb.accept_ecn(env, syn);
        tcb
    }

    /// What a SYN says about its sender.
    fn take_syn(&mut self, env: &Env<'_>, header: &Header<'_>) {
        let options = header.syn_options();
        self.rcv_isn = header.seq;
        self.rcv_nxt = header.seq + 1;
        self.last_ack_sent = self.rcv_nxt;
        self.rcv_adv = self.rcv_nxt + self.first_window(env.config);
        match options.window_scale {
            Some(scale) if self.facts.contains(Facts::WINDOW_SCALE) => self.snd_scale = scale,
            // RFC 7323 section 2.2: both or neither.
            _ => {
                self.facts.remove(Facts::WINDOW_SCALE);
                self.rcv_scale = 0;
            }
        }
        if !options.sack_permitted {
            self.facts.remove(Facts::SACK);
        }
        match options.timestamp {
            Some(timestamp) if self.facts.contains(Facts::TIMESTAMPS) => {
                self.ts_recent = timestamp.value;
            }
            _ => self.facts.remove(Facts::TIMESTAMPS),
        }
        let mss = options.mss.unwrap_or(MSS_DEFAULT).max(MSS_MIN).min(self.mss_limit);
        // RFC 6691 section 2: the sender makes room for its options.
        self.mss = if self.facts.contains(Facts::TIMESTAMPS) { mss - 12 } else { mss };
        // RFC 7323 section 2.2: unscaled.
        self.snd_wnd = u32::from(header.window);
        self.snd_wnd_max = self.snd_wnd;
        self.snd_wl1 = header.seq;
        self.last_recv_ticks = env.now_ticks();
    }

    /// RFC 9293 section 3.10.7.3.
    pub(crate) fn input_syn_sent(
        &mut self,
        env: &mut Env<'_>,
        header: &Header<'_>,
        payload: Option<IoBuf>,
    ) -> Events {
        let flags = header.flags;
        // First: the ACK. Only the SYN can have been acknowledged.
        let acks = flags.contains(Flags::ACK);
        if acks && (header.ack != self.snd_una + 1 || self.snd_max == self.snd_una) {
            env.stats.bad_ack_drops += 1;
            if !flags.contains(Flags::RST) {
                self.reply_reset(header.ack);
            }
            return Events::empty();
        }
        // Second: a reset counts if it acknowledges the SYN.
        if flags.contains(Flags::RST) {
            if !acks {
                env.stats.bad_reset_drops += 1;
                return Events::empty();
            }
            env.stats.resets_in += 1;
            self.finish(env, Some(ConnectionError::Refused));
            return Events::REFUSED;
        }
        // Fourth: the SYN.
        if !flags.contains(Flags::SYN) {
            env.stats.no_ack_drops += 1;
            return Events::empty();
        }
        self.take_syn(env, header);
        if !acks {
            // Both opened at once (RFC 9293 section 3.5, figure 8).
            self.state = State::SynReceived;
            self.marks.remove(Marks::ECN_SYN);
            self.facts.insert(Facts::TX_SYN);
            return Events::empty();
        }
        self.settle_ecn(header);
        let mut events = self.establish(env, header);
        self.facts.insert(Facts::TX_ACK);
        events |= self.process_data(env, header.seq + 1, payload, flags.contains(Flags::FIN));
        events
    }

    /// The SYN of this side is acknowledged by `header`.
    pub(crate) fn establish(&mut self, env: &mut Env<'_>, header: &Header<'_>) -> Events {
        self.state = if self.facts.contains(Facts::FIN_QUEUED) {
            State::FinWait1
        } else {
            State::Established
        };
        self.snd_una = header.ack;
        self.snd_nxt = header.ack;
        self.set_window(header);
        if header.flags.contains(Flags::SYN) {
            // RFC 7323 section 2.2: unscaled.
            self.snd_wnd = u32::from(header.window);
        }
        self.snd_wnd_max = self.snd_wnd;
        let mss = u32::from(self.mss);
        self.window.cwnd = if self.facts.contains(Facts::TIMING) {
            self.sample_rtt(env, self.since_sent_us(env.now));
            initial_window(env.config.initial_window_segments, mss)
        } else {
            // The SYN was sent more than once: RFC 5681 section 3.1, RFC 6298 section 5.7.
            self.rtt.rto_us = self.rtt.rto_us.max(RTO_AFTER_SYN_LOSS_US);
            mss
        };
        self.congestion.on_open(&mut self.window, mss, env.now.as_micros());
        self.serve_controller(env);
        self.begin_ecn();
        self.begin_buffers(env);
        self.note_lone_timeout(env);
        self.start_at_fixed_rate(env);
        self.facts.remove(Facts::TIMING | Facts::TX_SYN);
        self.retransmit_at = Instant::FAR_FUTURE;
        self.backoff = 0;
        self.retries = 0;
        self.arm_keepalive(env);
        env.stats.established += 1;
        Events::ESTABLISHED | Events::WRITABLE
    }

    /// Whether a SYN for the addresses of this connection, which is in TIME-WAIT, is beyond doubt
    /// newer than everything of this connection, so that the record may make way for it (RFC 6191
    /// section 2, RFC 9293 section 3.6.1).
    pub fn may_be_reopened_by(&self, syn: &Header<'_>) -> bool {
        if self.state != State::TimeWait
            || syn.flags.intersection(Flags::SYN | Flags::ACK | Flags::RST) != Flags::SYN
        {
            return false;
        }
        match syn.timestamp() {
            Some(timestamp) if self.facts.contains(Facts::TIMESTAMPS) => {
                let newer = timestamp.value.wrapping_sub(self.ts_recent) as i32;
                newer > 0 || (newer == 0 && syn.seq.gt(self.rcv_nxt))
            }
            _ => syn.seq.gt(self.rcv_nxt),
        }
    }
}
