//! ARP for IPv4 over Ethernet (RFC 826).

use core::net::Ipv4Addr;

use crate::ethernet::{Address, EtherType};

/// Bytes of a packet.
pub const PACKET_LEN: usize = 28;

const HARDWARE_ETHERNET: u16 = 1;

/// What a packet wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// "Who has the target's address?"
    Request,
    /// "I have the sender's address."
    Reply,
}

/// Why bytes are not an ARP packet that we understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer than 28 bytes.
    #[error("the ARP packet is cut short")]
    Truncated,
    /// Not about IPv4 over Ethernet.
    #[error("the ARP packet is not about IPv4 over Ethernet")]
    WrongSpace,
    /// Neither a request nor a reply.
    #[error("the ARP operation {0} is unknown")]
    UnknownOperation(u16),
}

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// What it wants.
    pub operation: Operation,
    /// The sender's station.
    pub sender_mac: Address,
    /// The sender's IP address; unspecified in a probe (RFC 5227).
    pub sender_ip: Ipv4Addr,
    /// The target's station; meaningless in a request.
    pub target_mac: Address,
    /// The target's IP address.
    pub target_ip: Ipv4Addr,
}

impl Repr {
    /// Reads a packet. Bytes after it (padding to the shortest frame) are ignored.
    ///
    /// # Errors
    /// [`ParseError`]
    pub fn parse(packet: &[u8]) -> Result<Self, ParseError> {
        let packet: &[u8; PACKET_LEN] = packet.first_chunk().ok_or(ParseError::Truncated)?;
        let [h0, h1, p0, p1, hlen, plen, o0, o1, rest @ ..] = packet;
        let space = (u16::from_be_bytes([*h0, *h1]), u16::from_be_bytes([*p0, *p1]));
        if space != (HARDWARE_ETHERNET, EtherType::IPV4.0) || (*hlen, *plen) != (6, 4) {
            return Err(ParseError::WrongSpace);
        }
        let operation = match u16::from_be_bytes([*o0, *o1]) {
            1 => Operation::Request,
            2 => Operation::Reply,
            other => return Err(ParseError::UnknownOperation(other)),
        };
        let [s0, s1, s2, s3, s4, s5, a, b, c, d, t0, t1, t2, t3, t4, t5, e, f, g, h] = *rest;
        Ok(Self {
            operation,
            sender_mac: Address([s0, s1, s2, s3, s4, s5]),
            sender_ip: Ipv4Addr::new(a, b, c, d),
            target_mac: Address([t0, t1, t2, t3, t4, t5]),
            target_ip: Ipv4Addr::new(e, f, g, h),
        })
    }

    /// Writes the packet at the start of `buf`.
    ///
    /// # Panics
    /// If `buf` is shorter than [`PACKET_LEN`].
    pub fn emit(&self, buf: &mut [u8]) {
        let buf = &mut buf[..PACKET_LEN];
        let operation = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        buf[..8].copy_from_slice(&[0, HARDWARE_ETHERNET as u8, 8, 0, 6, 4, 0, operation]);
        buf[8..14].copy_from_slice(&self.sender_mac.0);
        buf[14..18].copy_from_slice(&self.sender_ip.octets());
        buf[18..24].copy_from_slice(&self.target_mac.0);
        buf[24..28].copy_from_slice(&self.target_ip.octets());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn strangers_are_refused_by_name() {
        let repr = Repr {
            operation: Operation::Request,
            sender_mac: Address([2, 0, 0, 0, 0, 1]),
            sender_ip: Ipv4Addr::new(192, 0, 2, 1),
            target_mac: Address::UNSPECIFIED,
            target_ip: Ipv4Addr::new(192, 0, 2, 2),
        };
        let mut good = [0; PACKET_LEN];
        repr.emit(&mut good);
        for (at, value, error) in [
            (1, 6, ParseError::WrongSpace),
            (2, 0x86, ParseError::WrongSpace),
            (4, 8, ParseError::WrongSpace),
            (5, 16, ParseError::WrongSpace),
            (7, 3, ParseError::UnknownOperation(3)),
        ] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(Repr::parse(&bad), Err(error));
        }
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(request: bool, macs: ([u8; 6], [u8; 6]), ips: (u32, u32), pad in 0usize..19) {
            let repr = Repr {
                operation: if request { Operation::Request } else { Operation::Reply },
                sender_mac: Address(macs.0),
                sender_ip: ips.0.into(),
                target_mac: Address(macs.1),
                target_ip: ips.1.into(),
            };
            let mut packet = vec![0xaa; PACKET_LEN + pad];
            repr.emit(&mut packet);
            prop_assert_eq!(Repr::parse(&packet), Ok(repr));
            prop_assert_eq!(Repr::parse(&packet[..PACKET_LEN - 1]), Err(ParseError::Truncated));
        }

        #[test]
        fn random_bytes_do_no_harm(packet in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Repr::parse(&packet);
        }
    }
}
