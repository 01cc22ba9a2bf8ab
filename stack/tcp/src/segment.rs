//! A segment to be sent.

use arrayvec::ArrayVec;
use millstream_buf::IoBuf;
use millstream_wire::tcp::{Flags, Header, Options, SeqNumber};

/// Most slices that the payload of a segment is made of.
pub const MAX_SLICES: usize = 8;

/// What [`Tcb::transmit`](crate::Tcb::transmit) fills in. Made once and reused: it is written in
/// place.
#[derive(Debug, Default)]
pub struct Segment {
    /// Number of the first byte, or of the SYN.
    pub seq: SeqNumber,
    /// Number of the next byte wanted; counts with [`Flags::ACK`].
    pub ack: SeqNumber,
    /// Control bits.
    pub flags: Flags,
    /// The window field, scaled already.
    pub window: u16,
    /// The ECN codepoint of the IP header (RFC 3168 section 5): 0, or [`ECT_0`](crate::ECT_0).
    pub ecn: u8,
    /// Bytes of payload in each of the segments that this one is to be cut into, by the NIC or by
    /// the caller; 0: it is sent as it is. The last one may be shorter, and PSH is its alone.
    pub gso_bytes: u16,
    /// How many segments the caller lets be filled in at once, for it to cut: what one segment
    /// costs is then paid for a run of them. Not changed; 0 is taken for one.
    pub segments_max: u16,
    /// The options.
    pub options: Options,
    /// The payload.
    pub payload: ArrayVec<IoBuf, MAX_SLICES>,
}

impl Segment {
    /// Bytes of payload.
    #[inline]
    pub fn payload_len(&self) -> usize {
        self.payload.iter().map(|slice| slice.len()).sum()
    }
}

/// The answer to a segment that belongs to no connection (RFC 9293 section 3.10.7.1); `None` to a
/// reset, which gets no answer.
#[cold]
pub fn reset_reply(header: &Header<'_>, payload_len: usize) -> Option<Segment> {
    if header.flags.contains(Flags::RST) {
        return None;
    }
    let mut reply = Segment::default();
    if header.flags.contains(Flags::ACK) {
        reply.seq = header.ack;
        reply.flags = Flags::RST;
    } else {
        let syn = u32::from(header.flags.contains(Flags::SYN));
        let fin = u32::from(header.flags.contains(Flags::FIN));
        reply.ack = header.seq + (payload_len as u32).wrapping_add(syn + fin);
        reply.flags = Flags::RST | Flags::ACK;
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: Flags) -> Header<'static> {
        Header {
            src_port: 1,
            dst_port: 2,
            seq: SeqNumber(u32::MAX),
            ack: SeqNumber(77),
            flags,
            window: 0,
            urgent: 0,
            options: &[],
        }
    }

    #[test]
    fn replies_of_the_closed_state() {
        assert!(reset_reply(&header(Flags::RST), 0).is_none());
        let reply = reset_reply(&header(Flags::ACK | Flags::SYN), 5).unwrap();
        assert_eq!((reply.seq, reply.flags), (SeqNumber(77), Flags::RST));
        let reply = reset_reply(&header(Flags::SYN | Flags::FIN), 5).unwrap();
        assert_eq!(reply.flags, Flags::RST | Flags::ACK);
        assert_eq!((reply.seq, reply.ack), (SeqNumber(0), SeqNumber(6)));
    }
}
