//! Segments that differ from the one before in their data alone, as those of a bulk sender do. Their
//! headers are compared, not read (what elsewhere is called generic receive offload).

use std::ops::Range;

use millstream_link::{RxChecksum, RxFrame};
use millstream_wire::checksum::{Sum, checksum};
use millstream_wire::ethernet;
use millstream_wire::ipv4::{self, Protocol};
use millstream_wire::tcp::{self, Flags, SeqNumber};

use crate::channel::Packet;
use crate::demux::Station;

const IP: usize = ethernet::HEADER_LEN;
const TCP: usize = IP + ipv4::HEADER_LEN;
const OPTIONS: usize = TCP + tcp::HEADER_LEN;

/// Bytes of options that a segment with nothing but a timestamp has.
const TIMESTAMP_LEN: usize = 12;

/// Congestion experienced, in the IP header.
const CE: u8 = 3;

/// What of the headers must be the same, by words: addresses, types, type of service; flags and
/// offset of fragments, time to live, protocol; ports, acknowledgement, control bits, window, urgent
/// pointer. Lengths, sums, sequence number and PSH may differ.
const MASK: [u8; OPTIONS] = {
    let mut mask = [0xff; OPTIONS];
    let mut at = 0;
    while at < OPTIONS {
        if matches!(at, 16..20 | 24..26 | 38..42 | 50..52) {
            mask[at] = 0;
        }
        at += 1;
    }
    mask[TCP + 13] = !Flags::PSH.bits();
    mask
};

/// The headers of a segment that others may follow.
pub(crate) struct Pattern {
    headers: [u8; OPTIONS],
    options: [u8; TIMESTAMP_LEN],
    /// Bytes of all headers.
    len: usize,
}

impl Pattern {
    /// Of a segment with data and nothing out of the ordinary; `None` of all others.
    #[inline]
    pub fn of(packet: &Packet) -> Option<Self> {
        let headers: &[u8; OPTIONS] = packet.frame.first_chunk()?;
        let len = TCP + usize::from(headers[TCP + 12] >> 4) * 4;
        let flags = headers[TCP + 13] & MASK[TCP + 13];
        let usual = usize::from(packet.l4_offset) == TCP
            && usize::from(packet.end) > len
            && flags == Flags::ACK.bits()
            && headers[IP + 1] & CE != CE;
        let options = match len - OPTIONS.min(len) {
            0 => [0; TIMESTAMP_LEN],
            TIMESTAMP_LEN => *packet.frame.get(OPTIONS..)?.first_chunk()?,
            _ => return None,
        };
        usual.then_some(Self { headers: *headers, options, len })
    }

    /// The number and the place of a segment's data, if it differs from this one in that alone and is
    /// undamaged.
    #[inline]
    pub fn matches(&self, station: &Station, frame: &RxFrame) -> Option<(SeqNumber, Range<usize>)> {
        let headers: &[u8; OPTIONS] = frame.buf.first_chunk()?;
        let end = IP + usize::from(u16::from_be_bytes([headers[IP + 2], headers[IP + 3]]));
        if end <= self.len || end > frame.buf.len() || differ(&self.headers, headers) {
            return None;
        }
        if self.len != OPTIONS {
            let options: &[u8; TIMESTAMP_LEN] = frame.buf.get(OPTIONS..)?.first_chunk()?;
            if *options != self.options {
                return None;
            }
        }
        let good = match frame.checksum {
            RxChecksum::Good => true,
            RxChecksum::Unknown => {
                station.skip_checksums || sums_up(headers, frame.buf.get(TCP..end)?)
            }
            RxChecksum::Bad => false,
        };
        let [_, _, _, _, a, b, c, d] = *headers.get(TCP..)?.first_chunk::<8>()?;
        good.then_some((SeqNumber(u32::from_be_bytes([a, b, c, d])), self.len..end))
    }
}

/// Whether headers differ in what must be the same.
#[inline]
fn differ(one: &[u8; OPTIONS], other: &[u8; OPTIONS]) -> bool {
    // Words of eight bytes, the last of which overlap.
    const WORDS: [usize; 7] = [0, 8, 16, 24, 32, 40, OPTIONS - 8];
    let word = |bytes: &[u8; OPTIONS], at: usize| {
        u64::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]))
    };
    let mut difference = 0;
    for at in WORDS {
        difference |= (word(one, at) ^ word(other, at)) & word(&MASK, at);
    }
    difference != 0
}

/// Whether the checksums of a TCP segment are right.
#[inline]
fn sums_up(headers: &[u8; OPTIONS], l4: &[u8]) -> bool {
    let mut sum = Sum::new();
    sum.add_bytes(&headers[IP + 12..TCP]);
    sum.add_u32(u32::from(Protocol::TCP.0) << 16 | l4.len() as u32);
    sum.add_bytes(l4);
    checksum(&headers[IP..TCP]) == 0 && sum.finish() == 0
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use millstream_buf::IoBuf;

    use super::*;
    use crate::Ipv4Config;

    const OURS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

    fn station() -> Station {
        let ipv4 = Ipv4Config { address: OURS, prefix_len: 24, gateway: None };
        Station::new([2; 6], ipv4, None, None, false)
    }

    /// A segment with data, with a timestamp if `timestamp`.
    fn frame(seq: u32, timestamp: bool, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![2; 6];
        bytes.extend([4; 6]);
        bytes.extend([8, 0]);
        let options: &[u8] = if timestamp { &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { &[] };
        let len = (40 + options.len() + data.len()) as u16;
        bytes.extend([0x45, 0]);
        bytes.extend(len.to_be_bytes());
        bytes.extend([0, 7, 0x40, 0, 64, 6, 0, 0]);
        bytes.extend([198, 18, 0, 2]);
        bytes.extend(OURS.octets());
        let sum = checksum(&bytes[IP..TCP]);
        bytes[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend([0x30, 0x39, 0, 80]);
        bytes.extend(seq.to_be_bytes());
        bytes.extend([0, 0, 0, 5]);
        bytes.extend([(20 + options.len() as u8) << 2, 0x10, 1, 0, 0, 0, 0, 0]);
        bytes.extend(options);
        bytes.extend(data);
        let l4_len = u32::from(len) - 20;
        let mut sum = Sum::ipv4_pseudo(Ipv4Addr::new(198, 18, 0, 2), OURS, 6, l4_len as u16);
        sum.add_bytes(&bytes[TCP..]);
        bytes[TCP + 16..TCP + 18].copy_from_slice(&sum.finish().to_be_bytes());
        bytes
    }

    fn received(bytes: &[u8], checksum: RxChecksum) -> RxFrame {
        RxFrame { buf: IoBuf::from(bytes), checksum }
    }

    fn pattern_of(bytes: &[u8]) -> Option<Pattern> {
        let (_, packet) =
            crate::demux::classify(&station(), received(bytes, RxChecksum::Good)).ok()?;
        Pattern::of(&packet)
    }

    #[test]
    fn the_next_segment_matches_and_its_data_are_found() {
        for (timestamp, headers) in [(false, 54), (true, 66)] {
            let pattern = pattern_of(&frame(100, timestamp, b"first")).unwrap();
            let mut next = frame(105, timestamp, b"odd");
            let (seq, data) =
                pattern.matches(&station(), &received(&next, RxChecksum::Unknown)).unwrap();
            assert_eq!((seq, data), (SeqNumber(105), headers..headers + 3));
            // Padding of the frame is no data.
            next.extend([0; 9]);
            let (_, data) =
                pattern.matches(&station(), &received(&next, RxChecksum::Unknown)).unwrap();
            assert_eq!(data.end, headers + 3);
            let other = frame(105, !timestamp, b"odd");
            assert!(pattern.matches(&station(), &received(&other, RxChecksum::Good)).is_none());
        }
    }

    /// Whatever bit of a segment is not as before, it does not match, but for those that may differ;
    /// and if nobody has verified its checksums, none may.
    #[test]
    fn a_segment_that_differs_in_more_does_not_match() {
        let before = pattern_of(&frame(100, true, b"first")).unwrap();
        let next = frame(105, true, b"second");
        for bit in 0..next.len() * 8 {
            let mut bytes = next.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let lengths = (IP + 2..IP + 4).contains(&(bit / 8));
            let free =
                [18..20, 24..26, 38..42, 50..52, 66..72].iter().any(|r| r.contains(&(bit / 8)));
            let push = bit == (TCP + 13) * 8 + 3;
            let matches = |checksum| before.matches(&station(), &received(&bytes, checksum));
            if !lengths {
                let told = matches(RxChecksum::Good).is_some();
                assert_eq!(told, free || push, "bit {} of byte {}", bit % 8, bit / 8);
            }
            let damaged = bit / 8 >= IP;
            assert!(!damaged || matches(RxChecksum::Unknown).is_none(), "byte {}", bit / 8);
            assert!(matches(RxChecksum::Bad).is_none());
        }
    }

    #[test]
    fn only_plain_segments_with_data_are_patterns() {
        assert!(pattern_of(&frame(1, false, b"")).is_none(), "no data");
        for (at, value) in [(TCP + 13, 0x11), (TCP + 13, 0x30), (IP + 1, 3), (TCP + 12, 0x60)] {
            let mut bytes = frame(1, false, b"some data");
            bytes[at] = value;
            assert!(pattern_of(&bytes).is_none(), "{value:#x} at {at}");
        }
    }
}
