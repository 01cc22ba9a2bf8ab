//! Ethernet II frames, with or without VLAN tags (IEEE 802.3, 802.1Q).

use core::fmt;

/// Bytes of a header without a tag.
pub const HEADER_LEN: usize = 14;
/// Bytes that one VLAN tag adds.
pub const VLAN_TAG_LEN: usize = 4;

/// A station's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u8; 6]);

impl Address {
    /// Every station.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// No station.
    pub const UNSPECIFIED: Self = Self([0; 6]);

    /// Whether it is every station.
    #[inline]
    pub const fn is_broadcast(self) -> bool {
        matches!(self.0, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
    }

    /// Whether it is a group of stations (broadcast included).
    #[inline]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it names one station.
    #[inline]
    pub const fn is_unicast(self) -> bool {
        !self.is_multicast() && !matches!(self.0, [0, 0, 0, 0, 0, 0])
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4.
    pub const IPV4: Self = Self(0x0800);
    /// ARP.
    pub const ARP: Self = Self(0x0806);
    /// IPv6.
    pub const IPV6: Self = Self(0x86dd);
    /// A customer VLAN tag follows (802.1Q).
    pub const VLAN: Self = Self(0x8100);
    /// A service VLAN tag follows (802.1ad).
    pub const SERVICE_VLAN: Self = Self(0x88a8);
}

/// Why bytes are not an Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The frame ends inside the header.
    #[error("the frame is shorter than its Ethernet header")]
    Truncated,
    /// More than two VLAN tags.
    #[error("the frame has more than two VLAN tags")]
    TooManyTags,
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// To whom.
    pub dst: Address,
    /// From whom.
    pub src: Address,
    /// The innermost tag's control word: priority in 3 bits, drop hint in 1, VLAN number in 12.
    pub vlan: Option<u16>,
    /// What follows the header.
    pub ethertype: EtherType,
    /// Bytes of the header as parsed, 14, 18 or 22; [`Self::emit`] goes by `vlan` alone.
    pub len: u8,
}

impl Header {
    /// A header without a tag.
    #[inline]
    pub const fn new(dst: Address, src: Address, ethertype: EtherType) -> Self {
        Self { dst, src, vlan: None, ethertype, len: HEADER_LEN as u8 }
    }

    /// A header with one tag.
    #[inline]
    pub const fn with_vlan(self, control: u16) -> Self {
        Self { vlan: Some(control), len: (HEADER_LEN + VLAN_TAG_LEN) as u8, ..self }
    }

    /// Reads the header of a frame, at most two VLAN tags included.
    ///
    /// # Errors
    /// [`ParseError`]
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<Self, ParseError> {
        let fixed: &[u8; HEADER_LEN] = frame.first_chunk().ok_or(ParseError::Truncated)?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *fixed;
        let header = Self {
            dst: Address([d0, d1, d2, d3, d4, d5]),
            src: Address([s0, s1, s2, s3, s4, s5]),
            vlan: None,
            ethertype: EtherType(u16::from_be_bytes([t0, t1])),
            len: HEADER_LEN as u8,
        };
        if matches!(header.ethertype, EtherType::VLAN | EtherType::SERVICE_VLAN) {
            return header.skip_tags(frame);
        }
        Ok(header)
    }

    /// Apart from [`Self::parse`], so that frames without tags pay nothing for them.
    fn skip_tags(mut self, frame: &[u8]) -> Result<Self, ParseError> {
        while matches!(self.ethertype, EtherType::VLAN | EtherType::SERVICE_VLAN) {
            if usize::from(self.len) >= HEADER_LEN + 2 * VLAN_TAG_LEN {
                return Err(ParseError::TooManyTags);
            }
            let tag = frame.get(usize::from(self.len)..).and_then(|rest| rest.first_chunk());
            let [c0, c1, t0, t1]: [u8; VLAN_TAG_LEN] = *tag.ok_or(ParseError::Truncated)?;
            self.vlan = Some(u16::from_be_bytes([c0, c1]));
            self.ethertype = EtherType(u16::from_be_bytes([t0, t1]));
            self.len += VLAN_TAG_LEN as u8;
        }
        Ok(self)
    }

    /// What follows the header in the frame that it was parsed from.
    #[inline]
    pub fn payload<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(usize::from(self.len)..).unwrap_or_default()
    }

    /// Bytes that [`Self::emit`] writes: 14, or 18 with a tag.
    #[inline]
    pub const fn emitted_len(&self) -> usize {
        if self.vlan.is_some() { HEADER_LEN + VLAN_TAG_LEN } else { HEADER_LEN }
    }

    /// Writes the header at the start of `buf`; returns its length.
    ///
    /// # Panics
    /// If `buf` is shorter than [`Self::emitted_len`].
    #[inline]
    pub fn emit(&self, buf: &mut [u8]) -> usize {
        let len = self.emitted_len();
        let buf = &mut buf[..len];
        buf[..6].copy_from_slice(&self.dst.0);
        buf[6..12].copy_from_slice(&self.src.0);
        if let Some(control) = self.vlan {
            buf[12..14].copy_from_slice(&EtherType::VLAN.0.to_be_bytes());
            buf[14..16].copy_from_slice(&control.to_be_bytes());
        }
        buf[len - 2..].copy_from_slice(&self.ethertype.0.to_be_bytes());
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_header() -> impl Strategy<Value = Header> {
        (any::<[u8; 6]>(), any::<[u8; 6]>(), any::<Option<u16>>(), any::<u16>())
            .prop_filter("a tag is no payload", |(_, _, _, t)| ![0x8100, 0x88a8].contains(t))
            .prop_map(|(dst, src, vlan, ethertype)| {
                let header = Header::new(Address(dst), Address(src), EtherType(ethertype));
                vlan.map_or(header, |control| header.with_vlan(control))
            })
    }

    #[test]
    fn addresses_know_their_kind() {
        assert!(Address::BROADCAST.is_multicast() && Address::BROADCAST.is_broadcast());
        let station = Address([2, 0, 0, 0, 0, 0x1f]);
        assert!(station.is_unicast() && !station.is_multicast());
        assert!(!Address::UNSPECIFIED.is_unicast());
        assert_eq!(station.to_string(), "02:00:00:00:00:1f");
    }

    #[test]
    fn two_tags_are_skipped_and_three_refused() {
        let mut frame = vec![0u8; 12];
        frame.extend([0x88, 0xa8, 0, 7, 0x81, 0, 0x20, 9, 0x08, 0x00, 0x45]);
        let header = Header::parse(&frame).unwrap();
        assert_eq!(
            (header.vlan, header.ethertype, header.len),
            (Some(0x2009), EtherType::IPV4, 22)
        );
        assert_eq!(header.payload(&frame), [0x45]);
        let mut frame = vec![0u8; 12];
        frame.extend([0x81, 0, 0, 7, 0x81, 0, 0, 8, 0x81, 0, 0, 9, 8, 0, 0]);
        assert_eq!(Header::parse(&frame), Err(ParseError::TooManyTags));
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(header in any_header(), tail in prop::collection::vec(any::<u8>(), 0..9)) {
            let mut frame = vec![0xaa; header.emitted_len()];
            prop_assert_eq!(header.emit(&mut frame), frame.len());
            frame.extend(&tail);
            prop_assert_eq!(Header::parse(&frame), Ok(header));
            prop_assert_eq!(header.payload(&frame), tail);
            for len in 0..header.emitted_len() {
                prop_assert_eq!(Header::parse(&frame[..len]), Err(ParseError::Truncated));
            }
        }

        #[test]
        fn random_bytes_do_no_harm(mut frame in prop::collection::vec(any::<u8>(), 0..30), tagged: bool) {
            if tagged && frame.len() > 13 {
                frame[12..14].copy_from_slice(&[0x81, 0]);
            }
            if let Ok(header) = Header::parse(&frame) {
                prop_assert!(usize::from(header.len) <= frame.len());
            }
        }
    }
}
