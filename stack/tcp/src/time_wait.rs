//! What must be remembered of a connection in TIME-WAIT, and nothing else (RFC 9293 section 3.6.2):
//! enough to acknowledge a FIN that comes again, to ignore what is old, and to tell a SYN that is
//! beyond doubt newer.

use millstream_timer::Instant;
use millstream_wire::tcp::{Flags, Header, SackBlocks, SeqNumber, Timestamp};

use crate::segment::Segment;
use crate::state::State;
use crate::tcb::{Env, Facts, Tcb};

/// A second in ticks of the timestamp clock, about.
const SECOND_TICKS: u16 = 954;

/// The record of a connection in TIME-WAIT.
#[derive(Clone, Debug)]
pub struct TimeWait {
    snd_nxt: SeqNumber,
    rcv_nxt: SeqNumber,
    ts_recent: u32,
    ts_offset: u32,
    /// The window field of its ACKs.
    window: u16,
    /// When the second began in which answers are counted, in ticks.
    answers_ticks: u16,
    answers: u8,
    timestamps: bool,
}

/// What is to be done about a segment of a connection in TIME-WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Ignore,
    /// An ACK, see [`TimeWait::ack`].
    Answer,
    /// An ACK, and the wait begins anew: the peer has not seen the last one.
    Restart,
    /// The SYN is that of a new connection, for which the record makes way.
    Reopen,
}

impl TimeWait {
    /// Takes a segment.
    pub fn input(&mut self, env: &mut Env<'_>, header: &Header<'_>, payload_len: u32) -> Verdict {
        let flags = header.flags;
        env.stats.segments_in += 1;
        // RFC 1337: a reset must not cut TIME-WAIT short.
        if flags.contains(Flags::RST) {
            env.stats.bad_reset_drops += 1;
            return Verdict::Ignore;
        }
        let timestamp = if self.timestamps { header.timestamp() } else { None };
        if flags.contains(Flags::SYN) && !flags.contains(Flags::ACK) {
            // RFC 6191 section 2, RFC 9293 section 3.6.1.
            let newer = match timestamp.map(|it| it.value.wrapping_sub(self.ts_recent) as i32) {
                Some(0) | None => header.seq.gt(self.rcv_nxt),
                Some(later) => later > 0,
            };
            if newer {
                return Verdict::Reopen;
            }
            env.stats.bad_syn_drops += 1;
            return self.limited(env);
        }
        if timestamp.is_some_and(|it| (it.value.wrapping_sub(self.ts_recent) as i32) < 0) {
            // RFC 7323 section 5.3, R1.
            env.stats.paws_drops += 1;
            return self.limited(env);
        }
        let fin = u32::from(flags.contains(Flags::FIN));
        let numbers = payload_len.saturating_add(fin);
        if numbers == 0 && header.seq == self.rcv_nxt {
            // An ACK in its place; the peer's last.
            return Verdict::Ignore;
        }
        env.stats.bad_seq_drops += 1;
        if fin != 0 && header.seq + numbers == self.rcv_nxt {
            return match self.limited(env) {
                Verdict::Answer => Verdict::Restart,
                other => other,
            };
        }
        self.limited(env)
    }

    /// Two ends that disagree must not answer each other for ever (RFC 5961 section 7).
    fn limited(&mut self, env: &mut Env<'_>) -> Verdict {
        let ticks = env.now_ticks() as u16;
        if ticks.wrapping_sub(self.answers_ticks) >= SECOND_TICKS {
            self.answers_ticks = ticks;
            self.answers = 0;
        }
        if self.answers >= env.config.challenge_acks_per_second {
            env.stats.challenge_acks_limited += 1;
            return Verdict::Ignore;
        }
        self.answers += 1;
        Verdict::Answer
    }

    /// See [`Tcb::isn_beyond`].
    pub fn isn_beyond(&self, isn: SeqNumber) -> SeqNumber {
        beyond(self.snd_nxt, isn)
    }

    /// The ACK that says where this side is.
    pub fn ack(&self, env: &mut Env<'_>, out: &mut Segment) {
        env.stats.segments_out += 1;
        let stamp = self.timestamps.then(|| Timestamp {
            value: env.now_ticks().wrapping_add(self.ts_offset),
            echo: self.ts_recent,
        });
        *out = Segment {
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            flags: Flags::ACK,
            window: self.window,
            ..Segment::default()
        };
        out.options.set_established(stamp, &SackBlocks::EMPTY);
    }
}

/// Old duplicates of what was sent up to `used` are no part of the first window, unscaled, of a
/// connection that begins there.
fn beyond(used: SeqNumber, isn: SeqNumber) -> SeqNumber {
    isn.max(used + 0x1_0001)
}

impl Tcb {
    /// The initial sequence number of a connection that takes the place of this one, which is in
    /// TIME-WAIT: `isn`, unless that is not larger than all that this one has used (RFC 9293 section
    /// 3.6.1), as when it sent faster than the clock of `isn` counts.
    pub fn isn_beyond(&self, isn: SeqNumber) -> SeqNumber {
        beyond(self.snd_max, isn)
    }

    /// What must be remembered of this connection if it is in TIME-WAIT, until when, and whether an
    /// ACK is due. The connection itself can then be forgotten.
    #[cold]
    pub fn to_time_wait(&self) -> Option<(TimeWait, Instant, bool)> {
        if self.state != State::TimeWait {
            return None;
        }
        let window = self.rcv_adv.bytes_since(self.rcv_nxt) >> self.rcv_scale;
        let record = TimeWait {
            snd_nxt: self.snd_max,
            rcv_nxt: self.rcv_nxt,
            ts_recent: self.ts_recent,
            ts_offset: self.ts_offset,
            window: window.min(0xffff) as u16,
            answers_ticks: 0,
            answers: 0,
            timestamps: self.facts.contains(Facts::TIMESTAMPS),
        };
        Some((record, self.idle_at, self.wants_transmit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, SliceSlab, TcpStats};
    use millstream_wire::tcp::Options;

    const RECORD: TimeWait = TimeWait {
        snd_nxt: SeqNumber(1000),
        rcv_nxt: SeqNumber(5000),
        ts_recent: u32::MAX - 10,
        ts_offset: 3,
        window: 7,
        answers_ticks: 0,
        answers: 0,
        timestamps: true,
    };

    fn stamp(offset: i32) -> Options {
        let value = RECORD.ts_recent.wrapping_add_signed(offset);
        Options::established(Some(Timestamp { value, echo: 0 }), &SackBlocks::EMPTY)
    }

    fn verdict(
        record: &mut TimeWait,
        seq: u32,
        flags: Flags,
        stamp: &Options,
        len: u32,
    ) -> Verdict {
        let mut slices = SliceSlab::with_capacity(0);
        let (config, mut stats) = (Config::default(), TcpStats::default());
        let now = Instant::from_micros(1);
        let mut env = Env { now, config: &config, slices: &mut slices, stats: &mut stats };
        let header = Header {
            src_port: 1,
            dst_port: 2,
            seq: SeqNumber(seq),
            ack: SeqNumber(1000),
            flags,
            window: 0,
            urgent: 0,
            options: stamp.as_slice(),
        };
        record.input(&mut env, &header, len)
    }

    #[test]
    fn each_segment_has_its_verdict() {
        let ack = Flags::ACK;
        for (seq, flags, offset, len, expected) in [
            (5000, ack, 1, 0, Verdict::Ignore),
            (4999, ack | Flags::FIN, 1, 0, Verdict::Restart),
            (4899, ack | Flags::FIN, 1, 100, Verdict::Restart),
            (4000, ack, 1, 100, Verdict::Answer),
            (4999, ack, 1, 0, Verdict::Answer),
            // Old by its timestamp.
            (4999, ack | Flags::FIN, -1, 0, Verdict::Answer),
            (5000, Flags::RST, 1, 0, Verdict::Ignore),
            (5000, ack | Flags::RST, 1, 0, Verdict::Ignore),
            // Newer by its timestamp, whatever its number.
            (1, Flags::SYN, 1, 0, Verdict::Reopen),
            // Newer by its number, within one tick.
            (5001, Flags::SYN, 0, 0, Verdict::Reopen),
            (5000, Flags::SYN, 0, 0, Verdict::Answer),
            (9999, Flags::SYN, -1, 0, Verdict::Answer),
            (9999, Flags::SYN | ack, 1, 0, Verdict::Answer),
        ] {
            let mut record = RECORD;
            let found = verdict(&mut record, seq, flags, &stamp(offset), len);
            assert_eq!(found, expected, "{seq} {flags:?} {offset} {len}");
        }
    }

    #[test]
    fn without_timestamps_the_number_decides() {
        let mut record = TimeWait { timestamps: false, ..RECORD };
        for (seq, expected) in [(5001, Verdict::Reopen), (5000, Verdict::Answer)] {
            assert_eq!(verdict(&mut record, seq, Flags::SYN, &Options::EMPTY, 0), expected);
        }
    }

    #[test]
    fn the_next_one_begins_beyond_it() {
        for (isn, expected) in [(500, 66_537), (1_001, 66_537), (66_600, 66_600)] {
            assert_eq!(RECORD.isn_beyond(SeqNumber(isn)), SeqNumber(expected));
        }
    }

    #[test]
    fn answers_are_limited() {
        let mut record = RECORD;
        let answered = (0..100)
            .filter(|_| verdict(&mut record, 1, Flags::ACK, &stamp(1), 0) == Verdict::Answer)
            .count();
        assert_eq!(answered, usize::from(Config::default().challenge_acks_per_second));
    }
}
