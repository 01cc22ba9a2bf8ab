//! SYN cookies (RFC 4987 section 3.6): the answer to a SYN holds all that must be known of the
//! connection, so that nothing is kept until the peer has shown that it gets what is sent to it.
//!
//! The initial sequence number is the cookie, after D. J. Bernstein:
//!
//! ```text
//! bits  31..27            26..24             23..0
//!       period modulo 32  index of the MSS   keyed hash of addresses, ports, peer's number and index
//! ```
//!
//! The key changes with each period and is derived from the one before by a hash that does not go
//! backwards. A cookie is good in its period and in the next: for one to two minutes.
//!
//! What else a SYN agrees on fits into the six low bits of the timestamp that goes with the answer
//! and comes back with the ACK, as Linux does it: four for the window scale, one for SACK, one for ECN.
//! A peer without timestamps has a connection without any of them.

use std::hash::Hasher;
use std::net::SocketAddr;

use millstream_buf::IoBuf;
use millstream_timer::Instant;
use millstream_wire::tcp::{Flags, Header, MAX_WINDOW_SCALE, Options, SeqNumber, Timestamp};
use siphasher::sip::SipHasher24;

use crate::congestion::{Controller, initial_window};
use crate::ecn::{asks_for_ecn, may_use_ecn};
use crate::rtt::RttEstimator;
use crate::segment::Segment;
use crate::state::{Events, State};
use crate::tcb::{Env, Facts, MSS_DEFAULT, MSS_MIN, Tcb};

/// What a period lasts.
const PERIOD_MICROS: u64 = 64_000_000;
/// Periods that can be told apart.
const PERIODS: u64 = 32;
/// The values of MSS that a cookie can carry; the greatest that is not above the peer's counts. Those
/// of links and tunnels as they are common: as with Linux, none with IPv4 is above Ethernet's.
const MSS_TABLE_V4: [u16; 8] = [MSS_MIN, 536, 1220, 1300, 1360, 1400, 1440, 1460];
/// With IPv6, whose least MTU is 1280.
const MSS_TABLE_V6: [u16; 8] = [MSS_MIN, 536, 1220, 1360, 1400, 1420, 1440, 8940];
const MAC_MASK: u32 = 0x00ff_ffff;

/// The bits of a timestamp that carry options.
const OPTION_BITS: u32 = 6;
const OPTION_MASK: u32 = (1 << OPTION_BITS) - 1;
/// No window scaling.
const NO_SCALE: u32 = 0xf;
const SACK_BIT: u32 = 1 << 4;
const ECN_BIT: u32 = 1 << 5;

/// Makes cookies and knows them again.
#[derive(Clone)]
pub struct SynCookies {
    /// From which the next key is derived.
    chain: [u8; 16],
    period: u64,
    current: [u8; 16],
    /// The key of the period before, if there was one.
    previous: Option<[u8; 16]>,
    last_sent: Option<Instant>,
}

impl SynCookies {
    /// From a secret, which must be random.
    pub fn new(secret: [u8; 16]) -> Self {
        let (chain, current) = next_keys(&secret, 0);
        Self { chain, period: 0, current, previous: None, last_sent: None }
    }

    /// Answers a SYN without keeping anything of it: `out` is the SYN-ACK. `names` are the local and
    /// the remote end; the rest is as in [`Tcb::passive_open`].
    #[cold]
    pub fn answer(
        &mut self,
        env: &mut Env<'_>,
        names: (SocketAddr, SocketAddr),
        ts_offset: u32,
        mss_limit: u16,
        syn: &Header<'_>,
        out: &mut Segment,
    ) {
        self.advance(env.now);
        self.last_sent = Some(env.now);
        let options = syn.syn_options();
        let table = mss_table(names);
        let mss = options.mss.map_or(MSS_DEFAULT, |mss| mss.min(mss_limit));
        let index = table.iter().rposition(|&entry| entry <= mss).unwrap_or(0) as u32;
        let mac = mac(&self.current, names, syn.seq, index);
        let cookie = ((self.period % PERIODS) as u32) << 27 | index << 24 | mac;
        let stamped = options.timestamp.is_some() && env.config.timestamps;
        // What cannot be remembered must not be agreed on.
        let scale = options.window_scale.filter(|_| stamped && env.config.window_scaling);
        let sack = options.sack_permitted && stamped && env.config.sack;
        let ecn = stamped
            && asks_for_ecn(syn)
            && may_use_ecn(env.config, env.config.congestion.uses_ecn());
        let bits = scale.map_or(NO_SCALE, u32::from)
            | if sack { SACK_BIT } else { 0 }
            | if ecn { ECN_BIT } else { 0 };
        let ticks = env.now_ticks();
        // A timestamp must not be of the future, or the next one would lie before it.
        let mut stamp = (ticks & !OPTION_MASK) | bits;
        if stamp.wrapping_sub(ticks) as i32 > 0 {
            stamp = stamp.wrapping_sub(1 << OPTION_BITS);
        }
        let timestamp = options
            .timestamp
            .filter(|_| stamped)
            .map(|theirs| Timestamp { value: stamp.wrapping_add(ts_offset), echo: theirs.value });
        // As `transmit_syn` would have it.
        *out = Segment {
            seq: SeqNumber(cookie),
            ack: syn.seq + 1,
            flags: Flags::SYN | Flags::ACK | if ecn { Flags::ECE } else { Flags::empty() },
            window: crate::stream::first_window(env.config, mss_limit) as u16,
            options: Options::syn(
                mss_limit,
                scale.map(|_| env.config.window_scale()),
                sack,
                timestamp,
            ),
            ..Segment::default()
        };
        env.stats.segments_in += 1;
        env.stats.segments_out += 1;
    }

    /// Whether a cookie could come back now. If not, an ACK without a connection need not be looked
    /// at.
    pub fn may_come(&self, now: Instant) -> bool {
        self.last_sent.is_some_and(|sent| now.micros_since(sent) < 2 * PERIOD_MICROS)
    }

    /// The connection that a segment opens, if what it acknowledges is a cookie that was sent to
    /// where it comes from. It has taken the segment; what that caused comes along.
    #[cold]
    pub fn accept(
        &mut self,
        env: &mut Env<'_>,
        names: (SocketAddr, SocketAddr),
        ts_offset: u32,
        mss_limit: u16,
        header: &Header<'_>,
        payload: Option<IoBuf>,
    ) -> Option<(Tcb, Events)> {
        if header.flags.intersection(Flags::ACK | Flags::SYN | Flags::RST) != Flags::ACK {
            return None;
        }
        self.advance(env.now);
        let (cookie, peer_isn) = (header.ack - 1, header.seq - 1);
        let age = self.period.wrapping_sub(u64::from(cookie.0 >> 27)) % PERIODS;
        let key = match age {
            0 => Some(&self.current),
            1 => self.previous.as_ref(),
            _ => None,
        };
        let index = cookie.0 >> 24 & 7;
        if mac(key?, names, peer_isn, index) != cookie.0 & MAC_MASK {
            return None;
        }
        let mut tcb = Tcb::new(env, State::SynReceived, cookie, ts_offset, mss_limit);
        tcb.take_cookie(env, header, mss_table(names)[index as usize]);
        env.stats.passive_opens += 1;
        let events = tcb.input(env, header, payload);
        if !events.contains(Events::ESTABLISHED) {
            tcb.release(env.slices);
            return None;
        }
        // Nothing was measured, and nothing was lost either.
        let mss = u32::from(tcb.mss);
        tcb.rtt = RttEstimator::new(env.config);
        tcb.window.cwnd = initial_window(env.config.initial_window_segments, mss);
        tcb.congestion.on_open(&mut tcb.window, mss, env.now.as_micros());
        tcb.serve_controller(env);
        tcb.note_lone_timeout(env);
        Some((tcb, events))
    }

    /// Changes keys if the period is over.
    fn advance(&mut self, now: Instant) {
        let period = now.as_micros() / PERIOD_MICROS;
        if period <= self.period {
            return;
        }
        self.previous = (period == self.period + 1).then_some(self.current);
        (self.chain, self.current) = next_keys(&self.chain, period);
        self.period = period;
    }
}

impl std::fmt::Debug for SynCookies {
    /// Without the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SynCookies").field("period", &self.period).finish_non_exhaustive()
    }
}

impl Tcb {
    /// What the SYN has said, as far as it came back with the ACK.
    fn take_cookie(&mut self, env: &Env<'_>, ack: &Header<'_>, peer_mss: u16) {
        let timestamp = ack.timestamp().filter(|_| env.config.timestamps);
        let bits = timestamp.map_or(NO_SCALE, |timestamp| {
            timestamp.echo.wrapping_sub(self.ts_offset) & OPTION_MASK
        });
        let scale = bits & NO_SCALE;
        let scaled = timestamp.is_some() && scale != NO_SCALE && env.config.window_scaling;
        let sack = timestamp.is_some() && bits & SACK_BIT != 0 && env.config.sack;
        self.facts.set(Facts::TIMESTAMPS, timestamp.is_some());
        self.facts.set(Facts::WINDOW_SCALE, scaled);
        self.facts.set(Facts::SACK, sack);
        self.facts.remove(Facts::TX_SYN);
        self.resume_ecn(env, timestamp.is_some() && bits & ECN_BIT != 0);
        self.ts_recent = timestamp.map_or(0, |timestamp| timestamp.value);
        self.snd_scale = if scaled { (scale as u8).min(MAX_WINDOW_SCALE) } else { 0 };
        if !scaled {
            self.rcv_scale = 0;
        }
        let mss = peer_mss.min(self.mss_limit);
        self.mss = if timestamp.is_some() { mss - 12 } else { mss };
        self.rcv_nxt = ack.seq;
        self.last_ack_sent = ack.seq;
        self.rcv_adv = ack.seq + self.first_window(env.config);
        // The SYN-ACK has been sent.
        self.snd_nxt = self.snd_una + 1;
        self.snd_max = self.snd_nxt;
        self.snd_wl1 = ack.seq;
    }
}

fn mss_table(names: (SocketAddr, SocketAddr)) -> &'static [u16; 8] {
    if names.0.is_ipv4() { &MSS_TABLE_V4 } else { &MSS_TABLE_V6 }
}

/// The key of the chain for the period after `period`, and the key of cookies in it.
fn next_keys(chain: &[u8; 16], period: u64) -> ([u8; 16], [u8; 16]) {
    let word = |purpose: u8| {
        let mut hasher = SipHasher24::new_with_key(chain);
        // The secret serves others too; their purposes are lower.
        hasher.write_u8(0x40 | purpose);
        hasher.write_u64(period);
        hasher.finish().to_le_bytes()
    };
    let pair = |first: u8| {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&word(first));
        key[8..].copy_from_slice(&word(first + 1));
        key
    };
    (pair(0), pair(2))
}

fn mac(key: &[u8; 16], names: (SocketAddr, SocketAddr), peer_isn: SeqNumber, index: u32) -> u32 {
    let mut hasher = SipHasher24::new_with_key(key);
    for address in [names.0, names.1] {
        match address {
            SocketAddr::V4(v4) => hasher.write(&v4.ip().octets()),
            SocketAddr::V6(v6) => hasher.write(&v6.ip().octets()),
        }
        hasher.write(&address.port().to_be_bytes());
    }
    hasher.write_u32(peer_isn.0);
    hasher.write_u32(index);
    hasher.finish() as u32 & MAC_MASK
}

#[cfg(test)]
mod tests;
