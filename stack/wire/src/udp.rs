//! UDP (RFC 768).

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::checksum::Sum;
use crate::ipv4::Protocol;

/// Bytes of a header.
pub const HEADER_LEN: usize = 8;

/// Why bytes are not a UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer than 8 bytes.
    #[error("the UDP datagram is cut short")]
    Truncated,
    /// The length is below 8, or beyond what was received.
    #[error("the UDP length does not fit the packet")]
    BadLen,
}

/// A parsed header. Its length was checked against the bytes it was parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Sender's port; 0 if it wants no answer.
    pub src_port: u16,
    /// Receiver's port.
    pub dst_port: u16,
    /// Bytes of header and payload.
    pub len: u16,
    /// The checksum; 0 if the sender computed none.
    pub checksum: u16,
}

impl Header {
    /// Reads the header of a datagram: an IPv4 packet's payload. Bytes beyond the UDP length are
    /// no part of it.
    ///
    /// # Errors
    /// [`ParseError`]
    #[inline]
    pub fn parse(datagram: &[u8]) -> Result<Self, ParseError> {
        let fixed: &[u8; HEADER_LEN] = datagram.first_chunk().ok_or(ParseError::Truncated)?;
        let [s0, s1, d0, d1, l0, l1, c0, c1] = *fixed;
        let header = Self {
            src_port: u16::from_be_bytes([s0, s1]),
            dst_port: u16::from_be_bytes([d0, d1]),
            len: u16::from_be_bytes([l0, l1]),
            checksum: u16::from_be_bytes([c0, c1]),
        };
        let len = usize::from(header.len);
        if len < HEADER_LEN || len > datagram.len() {
            return Err(ParseError::BadLen);
        }
        Ok(header)
    }

    /// The payload in the datagram that the header was parsed from.
    #[inline]
    pub fn payload<'a>(&self, datagram: &'a [u8]) -> &'a [u8] {
        datagram.get(HEADER_LEN..usize::from(self.len)).unwrap_or_default()
    }

    /// Whether the checksum of the datagram that the header was parsed from is right or absent.
    #[inline]
    pub fn verify_checksum(&self, src: Ipv4Addr, dst: Ipv4Addr, datagram: &[u8]) -> bool {
        self.checksum == 0
            || self.sums_up(Sum::ipv4_pseudo(src, dst, Protocol::UDP.0, self.len), datagram)
    }

    /// Whether the checksum of the datagram that the header was parsed from is right. Over IPv6 it
    /// may not be absent (RFC 8200 section 8.1).
    #[inline]
    pub fn verify_checksum_v6(&self, src: Ipv6Addr, dst: Ipv6Addr, datagram: &[u8]) -> bool {
        let pseudo = Sum::ipv6_pseudo(src, dst, Protocol::UDP.0, u32::from(self.len));
        self.checksum != 0 && self.sums_up(pseudo, datagram)
    }

    #[inline]
    fn sums_up(&self, pseudo: Sum, datagram: &[u8]) -> bool {
        let Some(bytes) = datagram.get(..usize::from(self.len)) else { return false };
        let mut sum = pseudo;
        sum.add_bytes(bytes);
        sum.finish() == 0
    }
}

/// A header to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Sender's port.
    pub src_port: u16,
    /// Receiver's port.
    pub dst_port: u16,
    /// Bytes of the payload, at most 65,507 over IPv4; the length saturates.
    pub payload_len: u16,
}

impl Repr {
    /// Bytes of header and payload.
    #[inline]
    pub const fn datagram_len(&self) -> u16 {
        self.payload_len.saturating_add(HEADER_LEN as u16)
    }

    /// Writes 8 bytes with the checksum at the start of `buf`. `payload` is the sum of the payload
    /// alone, which may lie in any number of slices.
    ///
    /// # Panics
    /// If `buf` is shorter than [`HEADER_LEN`].
    #[inline]
    pub fn emit(&self, buf: &mut [u8], src: Ipv4Addr, dst: Ipv4Addr, payload: Sum) {
        self.emit_summed(buf, self.pseudo_sum(src, dst), payload);
    }

    /// [`Self::emit`] for a datagram over IPv6.
    ///
    /// # Panics
    /// If `buf` is shorter than [`HEADER_LEN`].
    #[inline]
    pub fn emit_v6(&self, buf: &mut [u8], src: Ipv6Addr, dst: Ipv6Addr, payload: Sum) {
        let len = u32::from(self.datagram_len());
        self.emit_summed(buf, Sum::ipv6_pseudo(src, dst, Protocol::UDP.0, len), payload);
    }

    #[inline]
    fn emit_summed(&self, buf: &mut [u8], pseudo: Sum, payload: Sum) {
        let mut sum = pseudo;
        sum.add_bytes(&self.to_bytes(0));
        sum.add_known(payload.fold(), usize::from(self.payload_len));
        // Zero means "no checksum", so a computed zero is sent as its other form.
        let checksum = match sum.finish() {
            0 => 0xffff,
            checksum => checksum,
        };
        buf[..HEADER_LEN].copy_from_slice(&self.to_bytes(checksum));
    }

    /// Writes 8 bytes at the start of `buf` with the pseudo-header's sum in the checksum field, for
    /// a NIC to finish.
    ///
    /// # Panics
    /// If `buf` is shorter than [`HEADER_LEN`].
    #[inline]
    pub fn emit_for_offload(&self, buf: &mut [u8], src: Ipv4Addr, dst: Ipv4Addr) {
        let checksum = self.pseudo_sum(src, dst).fold();
        buf[..HEADER_LEN].copy_from_slice(&self.to_bytes(checksum));
    }

    #[inline]
    fn pseudo_sum(&self, src: Ipv4Addr, dst: Ipv4Addr) -> Sum {
        Sum::ipv4_pseudo(src, dst, Protocol::UDP.0, self.datagram_len())
    }

    #[inline]
    fn to_bytes(self, checksum: u16) -> [u8; HEADER_LEN] {
        let [s0, s1] = self.src_port.to_be_bytes();
        let [d0, d1] = self.dst_port.to_be_bytes();
        let [l0, l1] = self.datagram_len().to_be_bytes();
        let [c0, c1] = checksum.to_be_bytes();
        [s0, s1, d0, d1, l0, l1, c0, c1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SRC: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const DST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn datagram(repr: Repr, payload: &[u8]) -> Vec<u8> {
        let mut sum = Sum::new();
        sum.add_bytes(payload);
        let mut bytes = vec![0xaa; HEADER_LEN];
        repr.emit(&mut bytes, SRC, DST, sum);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn a_computed_zero_is_sent_as_all_ones() {
        let repr = Repr { src_port: 9, dst_port: 9, payload_len: 2 };
        let zeroes = (0..=u16::MAX).find(|word| {
            let bytes = datagram(repr, &word.to_be_bytes());
            bytes[6..8] == [0xff, 0xff]
        });
        let bytes = datagram(repr, &zeroes.unwrap().to_be_bytes());
        let header = Header::parse(&bytes).unwrap();
        assert!(header.checksum != 0 && header.verify_checksum(SRC, DST, &bytes));
    }

    #[test]
    fn lengths_are_checked() {
        let mut bytes = datagram(Repr { src_port: 1, dst_port: 2, payload_len: 3 }, b"abc");
        bytes.push(0);
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.payload(&bytes), b"abc");
        assert_eq!(Header::parse(&bytes[..7]), Err(ParseError::Truncated));
        assert_eq!(Header::parse(&bytes[..10]), Err(ParseError::BadLen));
        bytes[5] = 7;
        assert_eq!(Header::parse(&bytes), Err(ParseError::BadLen));
    }

    #[test]
    fn no_checksum_is_taken_as_right() {
        let mut bytes = datagram(Repr { src_port: 1, dst_port: 2, payload_len: 3 }, b"abc");
        bytes[8] ^= 1;
        let header = Header::parse(&bytes).unwrap();
        assert!(!header.verify_checksum(SRC, DST, &bytes));
        bytes[6..8].fill(0);
        assert!(Header::parse(&bytes).unwrap().verify_checksum(SRC, DST, &bytes));
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(src_port: u16, dst_port: u16, payload in prop::collection::vec(any::<u8>(), 0..90)) {
            let repr = Repr { src_port, dst_port, payload_len: payload.len() as u16 };
            let mut bytes = datagram(repr, &payload);
            let header = Header::parse(&bytes).unwrap();
            prop_assert!(header.verify_checksum(SRC, DST, &bytes));
            prop_assert!(!header.verify_checksum(SRC, SRC, &bytes));
            prop_assert_eq!(header.payload(&bytes), &payload);
            prop_assert_eq!((header.src_port, header.dst_port), (src_port, dst_port));

            let (src, dst) = (SRC.to_ipv6_mapped(), DST.to_ipv6_mapped());
            prop_assert!(!header.verify_checksum_v6(DST.to_ipv6_mapped(), dst, &bytes));
            let mut sum = Sum::new();
            sum.add_bytes(&payload);
            repr.emit_v6(&mut bytes, src, dst, sum);
            let header6 = Header::parse(&bytes).unwrap();
            prop_assert!(header6.verify_checksum_v6(src, dst, &bytes));
            bytes[6..8].fill(0);
            let header6 = Header::parse(&bytes).unwrap();
            prop_assert!(!header6.verify_checksum_v6(src, dst, &bytes), "absent");

            // What a NIC does: sum the datagram with the pseudo-header's sum in it.
            repr.emit_for_offload(&mut bytes, SRC, DST);
            let sum = crate::checksum::checksum(&bytes);
            prop_assert!(sum == header.checksum || (sum == 0 && header.checksum == 0xffff));
        }

        #[test]
        fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..60), small: bool) {
            let mut bytes = bytes;
            if small && bytes.len() > 5 {
                bytes[4] = 0;
            }
            if let Ok(header) = Header::parse(&bytes) {
                let _ = header.payload(&bytes);
                header.verify_checksum(SRC, DST, &bytes);
            }
        }
    }
}
