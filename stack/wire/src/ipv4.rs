//! IPv4 headers (RFC 791).

use core::net::Ipv4Addr;

use crate::checksum::checksum;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

/// What a packet carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
    /// Nothing follows (RFC 8200 section 4.7).
    pub const NONE: Self = Self(59);
}

/// The ECN field (RFC 3168 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Ecn {
    /// The transport is not ECN-capable.
    #[default]
    NotEct = 0,
    /// ECN-capable, codepoint 1.
    Ect1 = 1,
    /// ECN-capable, codepoint 0: the usual one.
    Ect0 = 2,
    /// Congestion was experienced.
    Ce = 3,
}

impl Ecn {
    /// The ECN field of a type-of-service byte.
    #[inline]
    pub const fn of(tos: u8) -> Self {
        match tos & 3 {
            0 => Self::NotEct,
            1 => Self::Ect1,
            2 => Self::Ect0,
            _ => Self::Ce,
        }
    }
}

/// Why bytes are not an IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer bytes than the header.
    #[error("the packet is shorter than its IPv4 header")]
    Truncated,
    /// The version is not 4.
    #[error("the packet's IP version is not 4")]
    BadVersion,
    /// The header length is below 20 bytes.
    #[error("the IPv4 header length is below 20 bytes")]
    BadHeaderLen,
    /// The total length is below the header's length, or beyond what was received.
    #[error("the IPv4 total length does not fit the packet")]
    BadTotalLen,
}

/// A parsed header. Its lengths were checked against the bytes it was parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the header, options included: 20 to 60.
    pub header_len: u8,
    /// Type of service: DSCP in 6 bits, ECN in 2.
    pub tos: u8,
    /// Bytes of header and payload.
    pub total_len: u16,
    /// Identifies the packet whose fragments belong together.
    pub ident: u16,
    /// Flags in 3 bits, fragment offset in units of 8 bytes in 13.
    pub fragment: u16,
    /// Hops left.
    pub ttl: u8,
    /// What the payload is.
    pub protocol: Protocol,
    /// From whom.
    pub src: Ipv4Addr,
    /// To whom.
    pub dst: Ipv4Addr,
}

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

impl Header {
    /// Reads the header of a packet whose bytes are all there (link padding may follow).
    ///
    /// The header checksum is not looked at, since NICs verify it: see [`verify_checksum`].
    ///
    /// # Errors
    /// [`ParseError`]
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Self, ParseError> {
        let header = Self::parse_head(packet)?;
        if usize::from(header.total_len) > packet.len() {
            return Err(ParseError::BadTotalLen);
        }
        Ok(header)
    }

    /// Reads the header of a packet that may be cut short after it, as ICMP errors quote it.
    ///
    /// # Errors
    /// [`ParseError`]
    #[inline]
    pub fn parse_head(packet: &[u8]) -> Result<Self, ParseError> {
        let fixed: &[u8; HEADER_LEN] = packet.first_chunk().ok_or(ParseError::Truncated)?;
        let [vi, tos, l0, l1, i0, i1, f0, f1, ttl, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
            *fixed;
        let header = Self {
            header_len: (vi & 0x0f) * 4,
            tos,
            total_len: u16::from_be_bytes([l0, l1]),
            ident: u16::from_be_bytes([i0, i1]),
            fragment: u16::from_be_bytes([f0, f1]),
            ttl,
            protocol: Protocol(protocol),
            src: Ipv4Addr::new(s0, s1, s2, s3),
            dst: Ipv4Addr::new(d0, d1, d2, d3),
        };
        if vi >> 4 != 4 {
            return Err(ParseError::BadVersion);
        }
        if usize::from(header.header_len) < HEADER_LEN {
            return Err(ParseError::BadHeaderLen);
        }
        if usize::from(header.header_len) > packet.len() {
            return Err(ParseError::Truncated);
        }
        if header.total_len < u16::from(header.header_len) {
            return Err(ParseError::BadTotalLen);
        }
        Ok(header)
    }

    /// Whether the packet is one of several fragments.
    #[inline]
    pub const fn is_fragment(&self) -> bool {
        self.fragment & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    }

    /// Whether fragments follow this one.
    #[inline]
    pub const fn more_fragments(&self) -> bool {
        self.fragment & MORE_FRAGMENTS != 0
    }

    /// Where the payload belongs in the whole packet's payload, in bytes.
    #[inline]
    pub const fn fragment_offset(&self) -> usize {
        (self.fragment & OFFSET_MASK) as usize * 8
    }

    /// Whether routers may not fragment the packet.
    #[inline]
    pub const fn dont_fragment(&self) -> bool {
        self.fragment & DONT_FRAGMENT != 0
    }

    /// The ECN field.
    #[inline]
    pub const fn ecn(&self) -> Ecn {
        Ecn::of(self.tos)
    }

    /// Bytes of the payload.
    #[inline]
    pub const fn payload_len(&self) -> u16 {
        self.total_len.saturating_sub(self.header_len as u16)
    }

    /// The payload in the packet that the header was parsed from, link padding cut off.
    #[inline]
    pub fn payload<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        let end = packet.len().min(usize::from(self.total_len));
        packet.get(usize::from(self.header_len)..end).unwrap_or_default()
    }

    /// The options in the packet that the header was parsed from.
    #[inline]
    pub fn options<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        packet.get(HEADER_LEN..usize::from(self.header_len)).unwrap_or_default()
    }
}

/// Whether a packet with these options may be taken. None is acted on: they are skipped, but for
/// source routes, which would let a sender choose whose answers it gets (RFC 7126 sections 4.3 and
/// 4.4), and options that do not fit the header.
pub fn options_acceptable(options: &[u8]) -> bool {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_ROUTE: u8 = 0x83;
    const STRICT_ROUTE: u8 = 0x89;
    let mut rest = options;
    while let [kind, behind @ ..] = rest {
        rest = match (*kind, behind) {
            (END, _) => return true,
            (NO_OPERATION, _) => behind,
            (LOOSE_ROUTE | STRICT_ROUTE, _) => return false,
            (_, [len, ..]) if *len >= 2 => match rest.get(usize::from(*len)..) {
                Some(behind) => behind,
                None => return false,
            },
            _ => return false,
        };
    }
    true
}

/// Whether the header checksum of the packet that `header` was parsed from is right.
#[inline]
pub fn verify_checksum(header: &Header, packet: &[u8]) -> bool {
    packet.get(..usize::from(header.header_len)).is_some_and(|bytes| checksum(bytes) == 0)
}

/// A header to be sent, without options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Type of service: DSCP in 6 bits, ECN in 2.
    pub tos: u8,
    /// Identification; any number will do where `dont_fragment` is set (RFC 6864).
    pub ident: u16,
    /// Forbid routers to fragment the packet.
    pub dont_fragment: bool,
    /// Hops that it may make.
    pub ttl: u8,
    /// What the payload is.
    pub protocol: Protocol,
    /// From whom.
    pub src: Ipv4Addr,
    /// To whom.
    pub dst: Ipv4Addr,
    /// Bytes of the payload, at most 65,515; the total length saturates.
    pub payload_len: u16,
}

impl Repr {
    /// Writes 20 bytes with their checksum at the start of `buf`.
    ///
    /// # Panics
    /// If `buf` is shorter than [`HEADER_LEN`].
    #[inline]
    pub fn emit(&self, buf: &mut [u8]) {
        let mut bytes = self.to_bytes();
        let sum = checksum(&bytes).to_be_bytes();
        bytes[10..12].copy_from_slice(&sum);
        buf[..HEADER_LEN].copy_from_slice(&bytes);
    }

    /// Writes 20 bytes at the start of `buf` with a checksum of zero, for a NIC to fill in.
    ///
    /// # Panics
    /// If `buf` is shorter than [`HEADER_LEN`].
    #[inline]
    pub fn emit_for_offload(&self, buf: &mut [u8]) {
        buf[..HEADER_LEN].copy_from_slice(&self.to_bytes());
    }

    #[inline]
    fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [l0, l1] = self.payload_len.saturating_add(HEADER_LEN as u16).to_be_bytes();
        let [i0, i1] = self.ident.to_be_bytes();
        let [f0, f1] = (if self.dont_fragment { DONT_FRAGMENT } else { 0 }).to_be_bytes();
        let [s0, s1, s2, s3] = self.src.octets();
        let [d0, d1, d2, d3] = self.dst.octets();
        let Self { tos, ttl, protocol, .. } = self;
        [0x45, tos, l0, l1, i0, i1, f0, f1, ttl, protocol.0, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_repr(payload_len: u16) -> impl Strategy<Value = Repr> {
        any::<(u8, u16, bool, u8, u8, u32, u32)>().prop_map(
            move |(tos, ident, dont_fragment, ttl, protocol, src, dst)| Repr {
                tos,
                ident,
                dont_fragment,
                ttl,
                protocol: Protocol(protocol),
                src: src.into(),
                dst: dst.into(),
                payload_len,
            },
        )
    }

    const SAMPLE: Repr = Repr {
        tos: 0,
        ident: 7,
        dont_fragment: true,
        ttl: 64,
        protocol: Protocol::TCP,
        src: Ipv4Addr::new(192, 0, 2, 1),
        dst: Ipv4Addr::new(192, 0, 2, 2),
        payload_len: 4,
    };

    fn sample() -> [u8; 26] {
        let mut packet = [0xee; 26];
        SAMPLE.emit(&mut packet);
        packet
    }

    #[test]
    fn every_lie_about_length_is_caught() {
        for (at, value, error) in [
            (0, 0x65, ParseError::BadVersion),
            (0, 0x44, ParseError::BadHeaderLen),
            (0, 0x47, ParseError::Truncated),
            (3, 19, ParseError::BadTotalLen),
            (3, 27, ParseError::BadTotalLen),
        ] {
            let mut bad = sample();
            bad[at] = value;
            assert_eq!(Header::parse(&bad), Err(error), "byte {at} = {value}");
        }
        assert_eq!(Header::parse(&sample()[..19]), Err(ParseError::Truncated));
        assert_eq!(Header::parse(&sample()[..23]), Err(ParseError::BadTotalLen));
        assert!(Header::parse_head(&sample()[..20]).is_ok());
    }

    #[test]
    fn padding_is_no_payload() {
        let packet = sample();
        let header = Header::parse(&packet).unwrap();
        assert_eq!(header.payload(&packet), [0xee; 4]);
        assert_eq!(header.payload_len(), 4);
        assert!(header.options(&packet).is_empty());
    }

    #[test]
    fn fragments_are_known() {
        for (bytes, is_fragment, more, offset) in [
            ([0x40, 0x00], false, false, 0),
            ([0x20, 0x00], true, true, 0),
            ([0x00, 0x03], true, false, 24),
            ([0x20, 0xb9], true, true, 1480),
        ] {
            let mut packet = sample();
            packet[6..8].copy_from_slice(&bytes);
            let header = Header::parse(&packet).unwrap();
            assert_eq!(header.is_fragment(), is_fragment);
            assert_eq!(header.more_fragments(), more);
            assert_eq!(header.fragment_offset(), offset);
        }
    }

    #[test]
    fn options_are_kept_apart() {
        let mut packet = [0u8; 28];
        SAMPLE.emit(&mut packet);
        packet[0] = 0x46;
        packet[3] = 28;
        packet[20..24].copy_from_slice(&[1, 1, 1, 0]);
        let header = Header::parse(&packet).unwrap();
        assert_eq!(header.options(&packet), [1, 1, 1, 0]);
        assert_eq!(header.payload(&packet).len(), 4);
        assert!(!verify_checksum(&header, &packet));
        packet[10..12].fill(0);
        let sum = checksum(&packet[..24]).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        assert!(verify_checksum(&header, &packet));
    }

    #[test]
    fn source_routes_and_broken_options_are_refused() {
        for good in [&[][..], &[1, 1, 1, 1], &[0, 0x83, 9, 9], &[0x94, 4, 0, 0], &[7, 3, 4, 0]] {
            assert!(options_acceptable(good), "{good:?}");
        }
        let route = [0x83, 7, 4, 192, 0, 2, 1, 0];
        for bad in [&route[..], &[1, 0x89, 3, 4], &[0x94, 0, 0, 0], &[0x94, 5, 0, 0], &[1, 1, 1, 7]]
        {
            assert!(!options_acceptable(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(repr in any_repr(9), flip in 0usize..160) {
            let mut packet = [0xaa; 29];
            repr.emit(&mut packet);
            let header = Header::parse(&packet).unwrap();
            prop_assert!(verify_checksum(&header, &packet));
            let back = Repr {
                tos: header.tos,
                ident: header.ident,
                dont_fragment: header.dont_fragment(),
                ttl: header.ttl,
                protocol: header.protocol,
                src: header.src,
                dst: header.dst,
                payload_len: header.payload_len(),
            };
            prop_assert_eq!(back, repr);
            prop_assert_eq!(header.ecn() as u8, repr.tos & 3);

            let mut offloaded = [0xaa; 29];
            repr.emit_for_offload(&mut offloaded);
            prop_assert_eq!(&offloaded[10..12], &[0, 0]);
            offloaded[10..12].copy_from_slice(&packet[10..12]);
            prop_assert_eq!(offloaded, packet);

            packet[flip / 8] ^= 1 << (flip % 8);
            if let Ok(header) = Header::parse(&packet) {
                prop_assert!(!verify_checksum(&header, &packet), "one bit is always seen");
            }
        }

        #[test]
        fn random_bytes_do_no_harm(mut packet in prop::collection::vec(any::<u8>(), 0..80), version4: bool) {
            if version4 && !packet.is_empty() {
                packet[0] = 0x40 | packet[0] & 0x0f;
            }
            for header in [Header::parse(&packet), Header::parse_head(&packet)].into_iter().flatten() {
                let _ = (header.payload(&packet), header.fragment_offset());
                options_acceptable(header.options(&packet));
                verify_checksum(&header, &packet);
            }
        }
    }
}
