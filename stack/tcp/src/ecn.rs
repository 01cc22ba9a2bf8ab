//! Explicit congestion notification (RFC 3168), and its exact echo for DCTCP (RFC 8257).

use millstream_timer::Instant;
use millstream_wire::tcp::{Flags, Header};

use crate::config::{Config, Ecn};
use crate::congestion::{Controller, EcnUse};
use crate::segment::Segment;
use crate::state::State;
use crate::tcb::{Env, Facts, Marks, Tcb};

/// The codepoint of data that may be marked instead of dropped: ECT(0).
pub const ECT_0: u8 = 0b10;

/// The codepoint of what was marked: CE.
pub const CE: u8 = 0b11;

/// Whether ECN is used if the peer asks for it.
pub(crate) fn may_use_ecn(config: &Config, how: EcnUse) -> bool {
    match how {
        EcnUse::None => false,
        EcnUse::Classic => config.ecn != Ecn::Off,
        EcnUse::Dctcp => true,
    }
}

/// Whether a SYN asks for ECN (RFC 3168 section 6.1.1).
pub(crate) fn asks_for_ecn(syn: &Header<'_>) -> bool {
    syn.flags.contains(Flags::ECE | Flags::CWR)
}

impl Tcb {
    /// To be called before [`Tcb::input`] with a segment whose IP header says that it met
    /// congestion ([`CE`]).
    #[cold]
    pub fn note_ce(&mut self) {
        if self.facts.contains(Facts::ECN) {
            // What echoes marks takes the slow path, and there this one is found.
            self.facts.insert(Facts::ECHO);
            self.marks.insert(Marks::CE);
        }
    }

    /// Whether ECN is in use.
    #[inline]
    pub fn uses_ecn(&self) -> bool {
        self.facts.contains(Facts::ECN)
    }

    /// Asks for ECN with the SYN (RFC 3168 section 6.1.1). DCTCP is nothing without it.
    pub(crate) fn offer_ecn(&mut self, env: &Env<'_>) {
        let offers = match self.congestion.uses_ecn() {
            EcnUse::None => false,
            EcnUse::Classic => env.config.ecn == Ecn::Request,
            EcnUse::Dctcp => true,
        };
        self.marks.set(Marks::ECN_SYN, offers);
    }

    /// Takes up what the peer's SYN asks for.
    pub(crate) fn accept_ecn(&mut self, env: &Env<'_>, syn: &Header<'_>) {
        let accepts = may_use_ecn(env.config, self.congestion.uses_ecn());
        self.marks.set(Marks::ECN_SYN, accepts && asks_for_ecn(syn));
    }

    /// A cookie says that the peer had asked for it, and was told yes.
    pub(crate) fn resume_ecn(&mut self, env: &Env<'_>, agreed: bool) {
        let accepts = may_use_ecn(env.config, self.congestion.uses_ecn());
        self.marks.set(Marks::ECN_SYN, accepts && agreed);
    }

    /// What the answer to this side's SYN says.
    pub(crate) fn settle_ecn(&mut self, answer: &Header<'_>) {
        if answer.flags.intersection(Flags::ECE | Flags::CWR) != Flags::ECE {
            self.marks.remove(Marks::ECN_SYN);
        }
    }

    /// The handshake is done.
    pub(crate) fn begin_ecn(&mut self) {
        self.facts.set(Facts::ECN, self.marks.contains(Marks::ECN_SYN));
        self.settle_dctcp();
    }

    /// Marks are echoed as the controller wants them.
    pub(crate) fn settle_dctcp(&mut self) {
        let ecn = self.facts.contains(Facts::ECN);
        self.marks.set(Marks::DCTCP, ecn && self.congestion.uses_ecn() == EcnUse::Dctcp);
    }

    /// The bits of a SYN. One that is sent again does without: there may be something on the path
    /// that drops those that ask (RFC 3168 section 6.1.1.1).
    pub(crate) fn syn_bits(&mut self, resent: bool) -> Flags {
        if !self.marks.contains(Marks::ECN_SYN) {
            return Flags::empty();
        }
        if self.state != State::SynSent {
            return Flags::ECE;
        }
        if resent {
            self.marks.remove(Marks::ECN_SYN);
            return Flags::empty();
        }
        Flags::ECE | Flags::CWR
    }

    /// New data may be marked, and the first of it after a reduction says that there was one.
    #[inline]
    pub(crate) fn mark_new(&mut self, out: &mut Segment) {
        if self.facts.contains(Facts::ECN) {
            out.ecn = ECT_0;
            if self.facts.contains(Facts::CWR_DUE) {
                self.facts.remove(Facts::CWR_DUE);
                out.flags |= Flags::CWR;
            }
        }
    }

    /// The window was reduced: the peer is told, so that it stops echoing marks (RFC 3168 section
    /// 6.1.2).
    pub(crate) fn queue_cwr(&mut self) {
        if self.facts.contains(Facts::ECN) && !self.marks.contains(Marks::DCTCP) {
            self.facts.insert(Facts::CWR_DUE);
        }
    }

    /// What a segment says about congestion on its own way.
    pub(crate) fn take_mark(&mut self, header: &Header<'_>, len: u32) {
        let marked = self.marks.contains(Marks::CE);
        self.marks.remove(Marks::CE);
        if !self.marks.contains(Marks::DCTCP) {
            // RFC 3168 section 6.1.3: until the peer says that it has heard.
            if header.flags.contains(Flags::CWR) {
                self.facts.remove(Facts::ECHO);
            }
            if marked {
                self.facts.insert(Facts::ECHO);
                // The peer's window may be about to get small: it is not kept waiting.
                self.quick_acks = self.quick_acks.max(2);
            }
            return;
        }
        // RFC 8257 section 3.2: each ACK tells of segments that were all marked, or all not.
        if len != 0 && marked != self.marks.contains(Marks::CE_STATE) {
            if self.ack_at != Instant::FAR_FUTURE || self.facts.contains(Facts::TX_ACK) {
                self.reply_seq = self.rcv_nxt;
                self.marks.insert(Marks::REPLY_IS_ACK);
                self.facts.insert(Facts::TX_REPLY);
            }
            self.marks.set(Marks::CE_STATE, marked);
            self.facts.insert(Facts::TX_ACK);
        }
        self.facts.set(Facts::ECHO, self.marks.contains(Marks::CE_STATE));
    }

    /// The ACK of what came before a change of marks.
    pub(crate) fn transmit_ack_before(&mut self, env: &mut Env<'_>, out: &mut Segment) {
        self.marks.remove(Marks::REPLY_IS_ACK);
        let before = self.reply_seq;
        self.fill(env, out, self.snd_max, Flags::ACK);
        // Of that, too, it says where the window ends.
        let behind = self.rcv_nxt.bytes_since(before);
        let window = u32::from(out.window) + (behind >> self.rcv_scale);
        out.window = window.min(0xffff) as u16;
        out.ack = before;
        out.flags.set(Flags::ECE, !self.marks.contains(Marks::CE_STATE));
        self.last_ack_sent = before;
        self.facts.insert(Facts::TX_ACK);
    }
}
