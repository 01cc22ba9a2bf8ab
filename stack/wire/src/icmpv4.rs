//! ICMP for IPv4 (RFC 792; next-hop MTU by RFC 1191).

use core::net::Ipv4Addr;

use crate::checksum::Sum;
use crate::ipv4;

/// Bytes before a message's body.
pub const HEADER_LEN: usize = 8;

/// Bytes of the offending packet that an error quotes at most: with its own IP header an error
/// stays within 576 bytes (RFC 1812 section 4.3.2.3).
pub const QUOTE_MAX: usize = 576 - ipv4::HEADER_LEN - HEADER_LEN;

const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

/// Code of [`Message::Unreachable`]: no route to the network.
pub const CODE_NETWORK: u8 = 0;
/// Code of [`Message::Unreachable`]: the host does not answer.
pub const CODE_HOST: u8 = 1;
/// Code of [`Message::Unreachable`]: nobody there speaks the protocol.
pub const CODE_PROTOCOL: u8 = 2;
/// Code of [`Message::Unreachable`]: nobody listens on the port.
pub const CODE_PORT: u8 = 3;
/// Code of [`Message::Unreachable`]: the packet is too long and may not be fragmented.
pub const CODE_TOO_BIG: u8 = 4;

/// Why bytes are not an ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer than 8 bytes.
    #[error("the ICMP message is cut short")]
    Truncated,
    /// The checksum is wrong.
    #[error("the ICMP checksum is wrong")]
    BadChecksum,
    /// An error quotes less than an IPv4 header and 8 bytes, or something else than IPv4.
    #[error("the ICMP error quotes no IPv4 packet")]
    BadQuote,
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Please send this back.
    EchoRequest {
        /// Which conversation.
        ident: u16,
        /// Which of its requests.
        seq: u16,
        /// Anything.
        data: &'a [u8],
    },
    /// What was asked for.
    EchoReply {
        /// As in the request.
        ident: u16,
        /// As in the request.
        seq: u16,
        /// As in the request.
        data: &'a [u8],
    },
    /// A packet could not be delivered.
    Unreachable {
        /// Why: [`CODE_NETWORK`] and the others.
        code: u8,
        /// With [`CODE_TOO_BIG`] the largest packet in bytes that would have passed, or 0 from a
        /// router that does not say; 0 with other codes.
        next_hop_mtu: u16,
        /// The packet's first bytes.
        original: &'a [u8],
    },
    /// A packet's hops (code 0) or its reassembly time (code 1) ran out.
    TimeExceeded {
        /// Which of both.
        code: u8,
        /// The packet's first bytes.
        original: &'a [u8],
    },
    /// A packet's header was not understood.
    ParameterProblem {
        /// 0 if `pointer` says where.
        code: u8,
        /// Offset of the offending byte.
        pointer: u8,
        /// The packet's first bytes.
        original: &'a [u8],
    },
    /// Any other message; never emitted.
    Other {
        /// Its type.
        kind: u8,
        /// Its code.
        code: u8,
    },
}

/// What an error quotes of the packet that it is about: enough to find the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Its IP header; `total_len` was not checked, since the packet is cut.
    pub header: ipv4::Header,
    /// The first 8 bytes of its payload: ports, and TCP's sequence number.
    pub transport: [u8; 8],
}

impl Quote {
    /// Reads a quoted packet. `None`: less than a header and 8 bytes, or not IPv4.
    pub fn parse(original: &[u8]) -> Option<Self> {
        let header = ipv4::Header::parse_head(original).ok()?;
        let transport = original.get(usize::from(header.header_len)..)?.first_chunk()?;
        Some(Self { header, transport: *transport })
    }

    /// From whom the packet was: of an error sent to us, our address.
    pub const fn src(&self) -> Ipv4Addr {
        self.header.src
    }

    /// To whom the packet was.
    pub const fn dst(&self) -> Ipv4Addr {
        self.header.dst
    }

    /// Source port of TCP and UDP.
    pub const fn src_port(&self) -> u16 {
        u16::from_be_bytes([self.transport[0], self.transport[1]])
    }

    /// Destination port of TCP and UDP.
    pub const fn dst_port(&self) -> u16 {
        u16::from_be_bytes([self.transport[2], self.transport[3]])
    }

    /// Sequence number of TCP, by which forged errors are told (RFC 5927 section 4).
    pub const fn tcp_seq(&self) -> u32 {
        let [_, _, _, _, a, b, c, d] = self.transport;
        u32::from_be_bytes([a, b, c, d])
    }
}

impl<'a> Message<'a> {
    /// Reads a message, its checksum included.
    ///
    /// # Errors
    /// [`ParseError`]
    pub fn parse(message: &'a [u8]) -> Result<Self, ParseError> {
        let (head, body) =
            message.split_first_chunk::<HEADER_LEN>().ok_or(ParseError::Truncated)?;
        if crate::checksum::checksum(message) != 0 {
            return Err(ParseError::BadChecksum);
        }
        let [kind, code, _, _, a, b, c, d] = *head;
        let (ident, seq) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let quoted = || match Quote::parse(body) {
            Some(_) => Ok(body),
            None => Err(ParseError::BadQuote),
        };
        Ok(match kind {
            ECHO_REQUEST if code == 0 => Self::EchoRequest { ident, seq, data: body },
            ECHO_REPLY if code == 0 => Self::EchoReply { ident, seq, data: body },
            UNREACHABLE => Self::Unreachable {
                code,
                next_hop_mtu: if code == CODE_TOO_BIG { seq } else { 0 },
                original: quoted()?,
            },
            TIME_EXCEEDED => Self::TimeExceeded { code, original: quoted()? },
            PARAMETER_PROBLEM => Self::ParameterProblem { code, pointer: a, original: quoted()? },
            _ => Self::Other { kind, code },
        })
    }

    /// The quoted packet, if the message is an error.
    pub fn quote(&self) -> Option<Quote> {
        match self {
            Self::Unreachable { original, .. }
            | Self::TimeExceeded { original, .. }
            | Self::ParameterProblem { original, .. } => Quote::parse(original),
            Self::EchoRequest { .. } | Self::EchoReply { .. } | Self::Other { .. } => None,
        }
    }

    /// Bytes that [`Self::emit`] writes. An error quotes at most [`QUOTE_MAX`] bytes.
    pub fn emitted_len(&self) -> usize {
        HEADER_LEN + self.body().len()
    }

    /// Writes the message with its checksum at the start of `buf`; returns its length.
    ///
    /// # Panics
    /// If `buf` is shorter than [`Self::emitted_len`].
    pub fn emit(&self, buf: &mut [u8]) -> usize {
        let words = |first: u16, second: u16| {
            let ([a, b], [c, d]) = (first.to_be_bytes(), second.to_be_bytes());
            [a, b, c, d]
        };
        let (kind, code, rest) = match *self {
            Self::EchoRequest { ident, seq, .. } => (ECHO_REQUEST, 0, words(ident, seq)),
            Self::EchoReply { ident, seq, .. } => (ECHO_REPLY, 0, words(ident, seq)),
            Self::Unreachable { code, next_hop_mtu, .. } => {
                let mtu = if code == CODE_TOO_BIG { next_hop_mtu } else { 0 };
                (UNREACHABLE, code, words(0, mtu))
            }
            Self::TimeExceeded { code, .. } => (TIME_EXCEEDED, code, [0; 4]),
            Self::ParameterProblem { code, pointer, .. } => {
                (PARAMETER_PROBLEM, code, [pointer, 0, 0, 0])
            }
            Self::Other { kind, code } => (kind, code, [0; 4]),
        };
        let body = self.body();
        let mut sum = Sum::new();
        sum.add_bytes(&[kind, code]);
        sum.add_bytes(&rest);
        sum.add_bytes(body);
        let buf = &mut buf[..HEADER_LEN + body.len()];
        buf[..2].copy_from_slice(&[kind, code]);
        buf[2..4].copy_from_slice(&sum.finish().to_be_bytes());
        buf[4..8].copy_from_slice(&rest);
        buf[8..].copy_from_slice(body);
        buf.len()
    }

    fn body(&self) -> &'a [u8] {
        match *self {
            Self::EchoRequest { data, .. } | Self::EchoReply { data, .. } => data,
            Self::Unreachable { original, .. }
            | Self::TimeExceeded { original, .. }
            | Self::ParameterProblem { original, .. } => {
                original.get(..QUOTE_MAX).unwrap_or(original)
            }
            Self::Other { .. } => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::checksum;
    use proptest::prelude::*;

    fn quoted_tcp() -> Vec<u8> {
        let mut packet = vec![0; 28];
        ipv4::Repr {
            tos: 0,
            ident: 1,
            dont_fragment: true,
            ttl: 3,
            protocol: ipv4::Protocol::TCP,
            src: Ipv4Addr::new(192, 0, 2, 1),
            dst: Ipv4Addr::new(198, 18, 0, 9),
            payload_len: 1480,
        }
        .emit(&mut packet);
        packet[20..].copy_from_slice(&[0x1f, 0x90, 0, 80, 1, 2, 3, 4]);
        packet
    }

    #[test]
    fn an_error_leads_to_its_flow() {
        let original = quoted_tcp();
        let error =
            Message::Unreachable { code: CODE_TOO_BIG, next_hop_mtu: 1400, original: &original };
        let mut buf = [0xaa; 64];
        let len = error.emit(&mut buf);
        let parsed = Message::parse(&buf[..len]).unwrap();
        assert_eq!(parsed, error);
        let quote = parsed.quote().unwrap();
        assert_eq!((quote.src(), quote.src_port()), (Ipv4Addr::new(192, 0, 2, 1), 8080));
        assert_eq!((quote.dst(), quote.dst_port()), (Ipv4Addr::new(198, 18, 0, 9), 80));
        assert_eq!(quote.tcp_seq(), 0x0102_0304);
        assert_eq!(quote.header.total_len, 1500);
    }

    #[test]
    fn an_error_must_quote_a_header_and_8_bytes() {
        let original = quoted_tcp();
        for len in [0, 20, 27] {
            let mut buf = [0; 64];
            let len = Message::TimeExceeded { code: 0, original: &original[..len] }.emit(&mut buf);
            assert_eq!(Message::parse(&buf[..len]), Err(ParseError::BadQuote));
        }
    }

    #[test]
    fn an_error_stays_within_576_bytes() {
        let mut original = quoted_tcp();
        original.resize(1500, 7);
        let error = Message::ParameterProblem { code: 0, pointer: 20, original: &original };
        let mut buf = [0; 600];
        assert_eq!(error.emit(&mut buf), 556);
        assert_eq!(error.emitted_len(), 556);
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(
            kind in 0u8..5, code: u8, numbers: (u16, u16), data in prop::collection::vec(any::<u8>(), 0..90),
            head in ipv4::tests::any_repr(1000), flip: prop::sample::Index,
        ) {
            let mut original = vec![0; 28 + data.len()];
            head.emit(&mut original);
            original[28..].copy_from_slice(&data);
            let mtu = if code == CODE_TOO_BIG { numbers.1 } else { 0 };
            let message = match kind {
                0 => Message::EchoRequest { ident: numbers.0, seq: numbers.1, data: &data },
                1 => Message::EchoReply { ident: numbers.0, seq: numbers.1, data: &data },
                2 => Message::Unreachable { code, next_hop_mtu: mtu, original: &original },
                3 => Message::TimeExceeded { code, original: &original },
                _ => Message::ParameterProblem { code, pointer: numbers.0 as u8, original: &original },
            };
            let mut buf = vec![0xaa; message.emitted_len()];
            prop_assert_eq!(message.emit(&mut buf), buf.len());
            prop_assert_eq!(Message::parse(&buf), Ok(message));
            prop_assert_eq!(message.quote().is_some(), kind > 1);
            buf[flip.index(message.emitted_len())] ^= 0x10;
            prop_assert_eq!(Message::parse(&buf), Err(ParseError::BadChecksum));
        }

        #[test]
        fn random_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..80), kind in 0u8..14) {
            if bytes.len() >= HEADER_LEN {
                // With a right checksum, else hardly any would be read.
                bytes[0] = kind;
                bytes[2..4].fill(0);
                let sum = checksum(&bytes).to_be_bytes();
                bytes[2..4].copy_from_slice(&sum);
            }
            if let Ok(message) = Message::parse(&bytes) {
                let _ = message.quote();
            }
        }
    }
}
