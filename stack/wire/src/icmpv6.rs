//! ICMP for IPv6 (RFC 4443); what neighbours tell each other is in [`crate::ndp`].

use core::net::Ipv6Addr;

use crate::checksum::Sum;
use crate::ipv4::Protocol;
use crate::ipv6;
use crate::ipv6_extension::find_upper;
use crate::ndp;

/// Bytes before a message's body.
pub const HEADER_LEN: usize = 8;

/// Bytes of the offending packet that an error quotes at most: with its own IP header an error
/// stays within the smallest MTU (RFC 4443 section 2.4(c)).
pub const QUOTE_MAX: usize = ipv6::MTU_MIN as usize - ipv6::HEADER_LEN - HEADER_LEN;

const UNREACHABLE: u8 = 1;
const TOO_BIG: u8 = 2;
const TIME_EXCEEDED: u8 = 3;
const PARAMETER_PROBLEM: u8 = 4;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;

/// Code of [`Message::Unreachable`]: no route.
pub const CODE_NO_ROUTE: u8 = 0;
/// Code of [`Message::Unreachable`]: forbidden by policy.
pub const CODE_PROHIBITED: u8 = 1;
/// Code of [`Message::Unreachable`]: the host does not answer.
pub const CODE_ADDRESS: u8 = 3;
/// Code of [`Message::Unreachable`]: nobody listens on the port.
pub const CODE_PORT: u8 = 4;
/// Code of [`Message::TimeExceeded`]: fragments were missing for too long.
pub const CODE_REASSEMBLY: u8 = 1;

/// Why bytes are not an ICMPv6 message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer than 8 bytes.
    #[error("the ICMPv6 message is cut short")]
    Truncated,
    /// The checksum is wrong.
    #[error("the ICMPv6 checksum is wrong")]
    BadChecksum,
    /// An error quotes less than an IPv6 header and 8 bytes of the upper layer.
    #[error("the ICMPv6 error quotes no IPv6 packet")]
    BadQuote,
    /// A neighbour discovery message that contradicts itself.
    #[error(transparent)]
    Ndp(#[from] ndp::ParseError),
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
        /// Why: [`CODE_NO_ROUTE`] and the others.
        code: u8,
        /// The packet's first bytes.
        original: &'a [u8],
    },
    /// A packet is longer than the next link carries.
    TooBig {
        /// The largest packet in bytes that it carries.
        mtu: u32,
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
        /// What is wrong: see [`crate::ipv6_extension`].
        code: u8,
        /// Offset of the offending byte.
        pointer: u32,
        /// The packet's first bytes.
        original: &'a [u8],
    },
    /// Neighbour discovery.
    Ndp(ndp::Message<'a>),
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
    /// From whom the packet was: of an error sent to us, our address.
    pub src: Ipv6Addr,
    /// To whom the packet was.
    pub dst: Ipv6Addr,
    /// The upper layer.
    pub protocol: Protocol,
    /// The first 8 bytes of the upper layer: ports, and TCP's sequence number.
    pub transport: [u8; 8],
}

impl Quote {
    /// Reads a quoted packet. `None`: cut before the upper layer's eighth byte, or not IPv6.
    pub fn parse(original: &[u8]) -> Option<Self> {
        let header = ipv6::Header::parse_head(original).ok()?;
        let (protocol, at) = find_upper(&header, original)?;
        let transport = original.get(at..)?.first_chunk()?;
        Some(Self { src: header.src, dst: header.dst, protocol, transport: *transport })
    }
}

impl<'a> Message<'a> {
    /// Reads a message between two addresses, its checksum included.
    ///
    /// # Errors
    /// [`ParseError`]
    pub fn parse(src: Ipv6Addr, dst: Ipv6Addr, message: &'a [u8]) -> Result<Self, ParseError> {
        let (head, body) =
            message.split_first_chunk::<HEADER_LEN>().ok_or(ParseError::Truncated)?;
        let mut sum = pseudo_sum(src, dst, message.len());
        sum.add_bytes(message);
        if sum.finish() != 0 {
            return Err(ParseError::BadChecksum);
        }
        let [kind, code, _, _, a, b, c, d] = *head;
        let (ident, seq) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let number = u32::from_be_bytes([a, b, c, d]);
        let quoted = || match Quote::parse(body) {
            Some(_) => Ok(body),
            None => Err(ParseError::BadQuote),
        };
        Ok(match kind {
            ECHO_REQUEST if code == 0 => Self::EchoRequest { ident, seq, data: body },
            ECHO_REPLY if code == 0 => Self::EchoReply { ident, seq, data: body },
            UNREACHABLE => Self::Unreachable { code, original: quoted()? },
            // RFC 4443 section 3.2: the code is ignored.
            TOO_BIG => Self::TooBig { mtu: number, original: quoted()? },
            TIME_EXCEEDED => Self::TimeExceeded { code, original: quoted()? },
            PARAMETER_PROBLEM => {
                Self::ParameterProblem { code, pointer: number, original: quoted()? }
            }
            ndp::KIND_MIN..=ndp::KIND_MAX => Self::Ndp(ndp::Message::parse(kind, code, message)?),
            _ => Self::Other { kind, code },
        })
    }

    /// The quoted packet, if the message is an error.
    pub fn quote(&self) -> Option<Quote> {
        match self {
            Self::Unreachable { original, .. }
            | Self::TooBig { original, .. }
            | Self::TimeExceeded { original, .. }
            | Self::ParameterProblem { original, .. } => Quote::parse(original),
            Self::EchoRequest { .. }
            | Self::EchoReply { .. }
            | Self::Ndp(_)
            | Self::Other { .. } => None,
        }
    }

    /// Bytes that [`Self::emit`] writes. An error quotes at most [`QUOTE_MAX`] bytes.
    pub fn emitted_len(&self) -> usize {
        match self {
            Self::Ndp(message) => message.emitted_len(),
            _ => HEADER_LEN + self.body().len(),
        }
    }

    /// Writes the message with its checksum at the start of `buf`; returns its length.
    ///
    /// # Panics
    /// If `buf` is shorter than [`Self::emitted_len`].
    pub fn emit(&self, src: Ipv6Addr, dst: Ipv6Addr, buf: &mut [u8]) -> usize {
        let len = self.emitted_len();
        let buf = &mut buf[..len];
        let echo = |ident: u16, seq: u16| u32::from(ident) << 16 | u32::from(seq);
        let (kind, code, word) = match *self {
            Self::EchoRequest { ident, seq, .. } => (ECHO_REQUEST, 0, echo(ident, seq)),
            Self::EchoReply { ident, seq, .. } => (ECHO_REPLY, 0, echo(ident, seq)),
            Self::Unreachable { code, .. } => (UNREACHABLE, code, 0),
            Self::TooBig { mtu, .. } => (TOO_BIG, 0, mtu),
            Self::TimeExceeded { code, .. } => (TIME_EXCEEDED, code, 0),
            Self::ParameterProblem { code, pointer, .. } => (PARAMETER_PROBLEM, code, pointer),
            Self::Ndp(message) => (message.kind(), 0, 0),
            Self::Other { kind, code } => (kind, code, 0),
        };
        buf[..4].copy_from_slice(&[kind, code, 0, 0]);
        if let Self::Ndp(message) = self {
            message.emit_body(&mut buf[4..]);
        } else {
            buf[4..8].copy_from_slice(&word.to_be_bytes());
            buf[8..].copy_from_slice(self.body());
        }
        let mut sum = pseudo_sum(src, dst, len);
        sum.add_bytes(buf);
        buf[2..4].copy_from_slice(&sum.finish().to_be_bytes());
        len
    }

    fn body(&self) -> &'a [u8] {
        match *self {
            Self::EchoRequest { data, .. } | Self::EchoReply { data, .. } => data,
            Self::Unreachable { original, .. }
            | Self::TooBig { original, .. }
            | Self::TimeExceeded { original, .. }
            | Self::ParameterProblem { original, .. } => {
                original.get(..QUOTE_MAX).unwrap_or(original)
            }
            Self::Ndp(_) | Self::Other { .. } => &[],
        }
    }
}

fn pseudo_sum(src: Ipv6Addr, dst: Ipv6Addr, len: usize) -> Sum {
    Sum::ipv6_pseudo(src, dst, Protocol::ICMPV6.0, len as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SRC: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const DST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

    fn quoted_tcp(len: usize) -> Vec<u8> {
        let mut packet = vec![7; len];
        ipv6::Header {
            traffic_class: 0,
            flow_label: 0,
            payload_len: 1460,
            next_header: Protocol::TCP,
            hop_limit: 3,
            src: DST,
            dst: SRC,
        }
        .emit(&mut packet);
        packet[40..48].copy_from_slice(&[0x1f, 0x90, 0, 80, 1, 2, 3, 4]);
        packet
    }

    fn emitted(message: &Message<'_>) -> Vec<u8> {
        let mut buf = vec![0xaa; message.emitted_len()];
        assert_eq!(message.emit(SRC, DST, &mut buf), buf.len());
        buf
    }

    #[test]
    fn an_error_leads_to_its_flow() {
        let original = quoted_tcp(48);
        let error = Message::TooBig { mtu: 1400, original: &original };
        let buf = emitted(&error);
        assert_eq!(Message::parse(SRC, DST, &buf), Ok(error));
        let quote = error.quote().unwrap();
        assert_eq!((quote.src, quote.dst, quote.protocol), (DST, SRC, Protocol::TCP));
        assert_eq!(quote.transport, [0x1f, 0x90, 0, 80, 1, 2, 3, 4]);
        assert_eq!(Message::parse(SRC, SRC, &buf), Err(ParseError::BadChecksum));
    }

    #[test]
    fn an_error_must_quote_a_header_and_8_bytes() {
        let original = quoted_tcp(48);
        for len in [0, 40, 47] {
            let error = Message::TimeExceeded { code: 0, original: &original[..len] };
            let buf = emitted(&error);
            assert_eq!(Message::parse(SRC, DST, &buf), Err(ParseError::BadQuote));
        }
    }

    #[test]
    fn an_error_stays_within_the_smallest_mtu() {
        let original = quoted_tcp(1500);
        let error = Message::Unreachable { code: CODE_PORT, original: &original };
        assert_eq!(emitted(&error).len() + ipv6::HEADER_LEN, 1280);
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(
            kind in 0u8..6, code: u8, numbers: (u16, u16), mtu: u32,
            data in prop::collection::vec(any::<u8>(), 0..90), flip: prop::sample::Index,
        ) {
            let mut original = quoted_tcp(48);
            original.extend(&data);
            let message = match kind {
                0 => Message::EchoRequest { ident: numbers.0, seq: numbers.1, data: &data },
                1 => Message::EchoReply { ident: numbers.0, seq: numbers.1, data: &data },
                2 => Message::Unreachable { code, original: &original },
                3 => Message::TooBig { mtu, original: &original },
                4 => Message::TimeExceeded { code, original: &original },
                _ => Message::ParameterProblem { code, pointer: mtu, original: &original },
            };
            let mut buf = emitted(&message);
            prop_assert_eq!(Message::parse(SRC, DST, &buf), Ok(message));
            prop_assert_eq!(message.quote().is_some(), kind > 1);
            buf[flip.index(message.emitted_len())] ^= 0x10;
            prop_assert_eq!(Message::parse(SRC, DST, &buf), Err(ParseError::BadChecksum));
        }

        #[test]
        fn random_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..120), kind in prop_oneof![0u8..5, 127u8..140]) {
            if bytes.len() >= HEADER_LEN {
                // With a right checksum, else hardly any would be read.
                bytes[0] = kind;
                bytes[2..4].fill(0);
                let mut sum = pseudo_sum(SRC, DST, bytes.len());
                sum.add_bytes(&bytes);
                bytes[2..4].copy_from_slice(&sum.finish().to_be_bytes());
            }
            if let Ok(message) = Message::parse(SRC, DST, &bytes) {
                let _ = message.quote();
                if let Message::Ndp(ndp::Message::RouterAdvertisement(ra)) = message {
                    let _ = ra.options.iter().count();
                }
            }
        }
    }
}
