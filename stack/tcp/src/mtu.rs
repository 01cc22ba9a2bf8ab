//! The path's limit on segments: told by routers (RFC 1191, RFC 8201), or found out (RFC 4821).

use millstream_wire::tcp::SeqNumber;

use crate::state::{Events, State};
use crate::tcb::{Env, Facts, Tcb};

/// Payload and options that nearly every path carries: all of IPv6 do (RFC 8200 section 5), and it is
/// above the 1024 bytes to which RFC 4821 section 7.2 goes back.
const LIMIT_SAFE: u16 = 1280 - 60;

/// The least payload that a report leaves a connection: what 576-byte packets carry.
const LIMIT_MIN: u16 = 512;

impl Tcb {
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
