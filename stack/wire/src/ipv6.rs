//! IPv6 headers (RFC 8200 section 3) and the addresses that every node knows (RFC 4291).

use core::net::Ipv6Addr;

use crate::ethernet::Address;
use crate::ipv4::{Ecn, Protocol};

/// Bytes of a header without extension headers.
pub const HEADER_LEN: usize = 40;
/// The largest packet that every link carries whole (RFC 8200 section 5).
pub const MTU_MIN: u16 = 1280;
/// Every node on the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Every router on the link.
pub const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Why bytes are not an IPv6 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer than 40 bytes.
    #[error("the packet is shorter than its IPv6 header")]
    Truncated,
    /// The version is not 6.
    #[error("the packet's IP version is not 6")]
    BadVersion,
    /// The payload length is beyond what was received.
    #[error("the IPv6 payload length does not fit the packet")]
    BadPayloadLen,
}

/// A header, received or to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Traffic class: DSCP in 6 bits, ECN in 2.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Bytes behind the header, extension headers included.
    pub payload_len: u16,
    /// What follows: an extension header or the upper layer.
    pub next_header: Protocol,
    /// Hops left.
    pub hop_limit: u8,
    /// From whom.
    pub src: Ipv6Addr,
    /// To whom.
    pub dst: Ipv6Addr,
}

impl Header {
    /// Reads the header of a packet whose bytes are all there (link padding may follow).
    ///
    /// # Errors
    /// [`ParseError`]
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Self, ParseError> {
        let header = Self::parse_head(packet)?;
        if header.packet_len() > packet.len() {
            return Err(ParseError::BadPayloadLen);
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
        let [w0, w1, w2, w3, l0, l1, next_header, hop_limit, addresses @ ..] = *fixed;
        let word = u32::from_be_bytes([w0, w1, w2, w3]);
        if word >> 28 != 6 {
            return Err(ParseError::BadVersion);
        }
        let [src, dst] = split_addresses(&addresses);
        Ok(Self {
            traffic_class: (word >> 20) as u8,
            flow_label: word & 0xf_ffff,
            payload_len: u16::from_be_bytes([l0, l1]),
            next_header: Protocol(next_header),
            hop_limit,
            src,
            dst,
        })
    }

    /// Bytes of header and payload.
    #[inline]
    pub const fn packet_len(&self) -> usize {
        HEADER_LEN + self.payload_len as usize
    }

    /// The ECN field.
    #[inline]
    pub const fn ecn(&self) -> Ecn {
        Ecn::of(self.traffic_class)
    }

    /// What follows the header in the packet that it was parsed from, link padding cut off.
    #[inline]
    pub fn payload<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        let end = packet.len().min(self.packet_len());
        packet.get(HEADER_LEN..end).unwrap_or_default()
    }

    /// Writes 40 bytes at the start of `buf`.
    ///
    /// # Panics
    /// If `buf` is shorter than [`HEADER_LEN`].
    #[inline]
    pub fn emit(&self, buf: &mut [u8]) {
        let buf = &mut buf[..HEADER_LEN];
        let word = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
        buf[..4].copy_from_slice(&word.to_be_bytes());
        buf[4..6].copy_from_slice(&self.payload_len.to_be_bytes());
        buf[6] = self.next_header.0;
        buf[7] = self.hop_limit;
        buf[8..24].copy_from_slice(&self.src.octets());
        buf[24..].copy_from_slice(&self.dst.octets());
    }
}

/// Source and destination from their 32 bytes.
#[inline]
pub fn split_addresses(bytes: &[u8; 32]) -> [Ipv6Addr; 2] {
    let (halves, _) = bytes.as_chunks::<16>();
    match *halves {
        [src, dst] => [src.into(), dst.into()],
        _ => [Ipv6Addr::UNSPECIFIED; 2],
    }
}

/// The group that a node with `address` listens to for questions about it (RFC 4291 2.7.1).
pub const fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let (high, low) = (0xff00 | a as u16, (b as u16) << 8 | c as u16);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, high, low)
}

/// The stations of a multicast group (RFC 2464 section 7).
pub const fn multicast_mac(group: Ipv6Addr) -> Address {
    let [.., a, b, c, d] = group.octets();
    Address([0x33, 0x33, a, b, c, d])
}

/// The interface identifier that a station's address makes (RFC 2464 section 4).
pub const fn interface_id(mac: Address) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The link-local address with an interface identifier (RFC 4291 section 2.5.6).
pub const fn link_local(interface_id: u64) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfe80 << 112 | interface_id as u128)
}

/// Whether both addresses agree in the first `prefix_len` bits.
pub const fn same_prefix(a: Ipv6Addr, b: Ipv6Addr, prefix_len: u8) -> bool {
    if prefix_len == 0 {
        return true;
    }
    let shift = if prefix_len > 128 { 0 } else { 128 - prefix_len as u32 };
    (a.to_bits() ^ b.to_bits()) >> shift == 0
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_header(payload_len: u16) -> impl Strategy<Value = Header> {
        any::<(u8, u32, u8, u8, u128, u128)>().prop_map(
            move |(traffic_class, label, next_header, hop_limit, src, dst)| Header {
                traffic_class,
                flow_label: label & 0xf_ffff,
                payload_len,
                next_header: Protocol(next_header),
                hop_limit,
                src: src.into(),
                dst: dst.into(),
            },
        )
    }

    #[test]
    fn groups_and_identifiers_are_those_of_the_rfcs() {
        // RFC 4291 2.7.1.
        let address: Ipv6Addr = "4037::1:800:200e:8c6c".parse().unwrap();
        let group: Ipv6Addr = "ff02::1:ff0e:8c6c".parse().unwrap();
        assert_eq!(solicited_node(address), group);
        assert_eq!(multicast_mac(group), Address([0x33, 0x33, 0xff, 0x0e, 0x8c, 0x6c]));
        // RFC 2464 section 4.
        let id = interface_id(Address([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]));
        assert_eq!(id, 0x3656_78ff_fe9a_bcde);
        assert_eq!(link_local(id).to_string(), "fe80::3656:78ff:fe9a:bcde");
    }

    #[test]
    fn prefixes_compare_by_bits() {
        let (a, b) = ("2001:db8::1".parse().unwrap(), "2001:db8::3".parse().unwrap());
        assert!(same_prefix(a, b, 126) && !same_prefix(a, b, 127) && same_prefix(a, b, 0));
        assert!(!same_prefix(a, b, 128) && !same_prefix(a, b, 255) && same_prefix(a, a, 255));
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(header in any_header(9), len in 0usize..49) {
            let mut packet = [0xaa; 52];
            header.emit(&mut packet);
            prop_assert_eq!(Header::parse(&packet), Ok(header));
            prop_assert_eq!(header.payload(&packet), [0xaa; 9], "padding is no payload");
            prop_assert_eq!(header.ecn() as u8, header.traffic_class & 3);
            let error = if len < HEADER_LEN { ParseError::Truncated } else { ParseError::BadPayloadLen };
            prop_assert_eq!(Header::parse(&packet[..len]), Err(error));
            prop_assert_eq!(Header::parse_head(&packet[..len]).is_ok(), len >= HEADER_LEN);
            packet[0] ^= 0x20;
            prop_assert_eq!(Header::parse(&packet), Err(ParseError::BadVersion));
        }

        #[test]
        fn random_bytes_do_no_harm(mut packet in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(first) = packet.first_mut() {
                *first = 0x60 | *first & 0x0f;
            }
            if let Ok(header) = Header::parse(&packet) {
                prop_assert_eq!(header.payload(&packet).len(), usize::from(header.payload_len));
            }
        }
    }
}
