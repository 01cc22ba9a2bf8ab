//! IPv6 extension headers (RFC 8200 section 4): a bounded walk to the upper layer.
//!
//! No option is acted on. Each is skipped or refused as its type says, and so is each header, so the
//! walk is all that a host needs. Its length is bounded (RFC 8504 section 5.3 allows that): a packet
//! made of headers costs no more than some dozen steps.

use core::net::Ipv6Addr;

use crate::ipv4::Protocol;
use crate::ipv6::{HEADER_LEN, Header};

/// Extension headers that a packet may have.
pub const HEADERS_MAX: usize = 8;
/// Options that one extension header may have, padding included.
pub const OPTIONS_MAX: usize = 16;

/// Bytes of a fragment header.
pub const FRAGMENT_LEN: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

const PAD1: u8 = 0;
const PADN: u8 = 1;

/// Code of a parameter problem: a field has a wrong value.
pub const PROBLEM_FIELD: u8 = 0;
/// Code of a parameter problem: the next header is not known.
pub const PROBLEM_NEXT_HEADER: u8 = 1;
/// Code of a parameter problem: the option is not known.
pub const PROBLEM_OPTION: u8 = 2;

/// Why a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// A header lies beyond the packet's end.
    #[error("an extension header does not fit the packet")]
    Truncated,
    /// More headers or options than we are willing to read.
    #[error("the packet has too many extension headers or options")]
    TooMany,
    /// An option that is not known demands to drop the packet.
    #[error("an option demands that the packet is dropped")]
    Refused,
    /// The sender is to be told (ICMPv6 parameter problem).
    #[error("the byte at {pointer} is refused with code {code}")]
    Problem {
        /// [`PROBLEM_FIELD`] and the others.
        code: u8,
        /// Offset of the offending byte in the packet.
        pointer: u16,
    },
}

/// A fragment header (RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// What the whole packet's fragmented part begins with.
    pub next_header: Protocol,
    /// Where this part belongs, in bytes.
    pub offset: u16,
    /// Whether parts follow this one.
    pub more: bool,
    /// Identifies the packet whose fragments belong together.
    pub ident: u32,
}

impl Fragment {
    fn parse(bytes: &[u8; FRAGMENT_LEN]) -> Self {
        let [next_header, _, o0, o1, i0, i1, i2, i3] = *bytes;
        let offset_and_flags = u16::from_be_bytes([o0, o1]);
        Self {
            next_header: Protocol(next_header),
            offset: offset_and_flags & !7,
            more: offset_and_flags & 1 != 0,
            ident: u32::from_be_bytes([i0, i1, i2, i3]),
        }
    }

    /// Writes the header at the start of `buf`.
    ///
    /// # Panics
    /// If `buf` is shorter than [`FRAGMENT_LEN`].
    pub fn emit(&self, buf: &mut [u8]) {
        buf[..2].copy_from_slice(&[self.next_header.0, 0]);
        buf[2..4].copy_from_slice(&(self.offset & !7 | u16::from(self.more)).to_be_bytes());
        buf[4..FRAGMENT_LEN].copy_from_slice(&self.ident.to_be_bytes());
    }
}

/// Where the walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    /// The upper layer; of a fragment that is not the first one, what its header says.
    pub protocol: Protocol,
    /// Where it starts in the packet; of a fragment, where the fragment's part starts.
    pub offset: u16,
    /// The packet is one of several fragments.
    pub fragment: Option<Fragment>,
    /// The packet had a fragment header, be it of a packet in one piece (RFC 6946).
    pub fragment_header: bool,
    /// Where the number of `protocol` stands, for a parameter problem.
    pub protocol_at: u16,
}

/// Walks from the IPv6 header of a whole packet to its upper layer. The first of several fragments
/// must reach it too (RFC 7112); other fragments end the walk.
///
/// # Errors
/// [`WalkError`]
pub fn walk(header: &Header, packet: &[u8]) -> Result<Upper, WalkError> {
    let end = header.packet_len().min(packet.len()).min(usize::from(u16::MAX));
    let packet = packet.get(..end).unwrap_or_default();
    let mut upper = Upper {
        protocol: header.next_header,
        offset: HEADER_LEN as u16,
        fragment: None,
        fragment_header: false,
        protocol_at: 6,
    };
    // Of a fragment, where its part starts; the headers behind it are of the part.
    let mut part = None;
    let mut count = 0;
    loop {
        let at = usize::from(upper.offset);
        let kind = upper.protocol.0;
        if !matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
            break;
        }
        count += 1;
        if count > HEADERS_MAX {
            return Err(WalkError::TooMany);
        }
        let head: &[u8; 8] =
            packet.get(at..).and_then(<[u8]>::first_chunk).ok_or(WalkError::Truncated)?;
        let len = if kind == FRAGMENT { FRAGMENT_LEN } else { 8 + usize::from(head[1]) * 8 };
        let bytes = packet.get(at..at + len).ok_or(WalkError::Truncated)?;
        match kind {
            HOP_BY_HOP if count > 1 => {
                // RFC 8200 section 4: it stands directly behind the IPv6 header or nowhere.
                return Err(problem(PROBLEM_NEXT_HEADER, usize::from(upper.protocol_at)));
            }
            HOP_BY_HOP | DESTINATION => walk_options(header.dst, bytes, at)?,
            // Every routing type is as unknown to us as type 0 must be (RFC 5095): with hops left
            // the packet is not for us to forward, without it is read on.
            ROUTING if head[3] != 0 => return Err(problem(PROBLEM_FIELD, at + 2)),
            ROUTING => {}
            _ => {
                let fragment = Fragment::parse(head);
                if upper.fragment_header {
                    return Err(WalkError::Refused);
                }
                upper.fragment_header = true;
                if fragment.offset != 0 {
                    return Ok(Upper {
                        protocol: fragment.next_header,
                        offset: (at + len) as u16,
                        fragment: Some(fragment),
                        ..upper
                    });
                }
                if fragment.more {
                    upper.fragment = Some(fragment);
                    part = Some((fragment.next_header, at + len));
                }
            }
        }
        upper.protocol = Protocol(head[0]);
        upper.protocol_at = at as u16;
        upper.offset = (at + len) as u16;
    }
    if let Some((protocol, at)) = part {
        // RFC 7112: the whole chain, the upper layer's header included, is in the first fragment.
        let room = end - usize::from(upper.offset).min(end);
        if room < upper_len_min(upper.protocol) {
            return Err(WalkError::Truncated);
        }
        (upper.protocol, upper.offset) = (protocol, at as u16);
    }
    Ok(upper)
}

fn upper_len_min(protocol: Protocol) -> usize {
    match protocol {
        Protocol::TCP => crate::tcp::HEADER_LEN,
        Protocol::UDP => crate::udp::HEADER_LEN,
        Protocol::ICMPV6 => crate::icmpv6::HEADER_LEN,
        _ => 0,
    }
}

const fn problem(code: u8, pointer: usize) -> WalkError {
    WalkError::Problem { code, pointer: pointer as u16 }
}

/// Skips the options of a header that starts at `at` of the packet, or says what refuses it.
fn walk_options(dst: Ipv6Addr, header: &[u8], at: usize) -> Result<(), WalkError> {
    let mut next = 2;
    for _ in 0..OPTIONS_MAX {
        let Some(&kind) = header.get(next) else { return Ok(()) };
        if kind == PAD1 {
            next += 1;
            continue;
        }
        let Some(&len) = header.get(next + 1) else { return Err(WalkError::Truncated) };
        if next + 2 + usize::from(len) > header.len() {
            return Err(WalkError::Truncated);
        }
        // RFC 8200 section 4.2: the two highest bits say what becomes of an unknown option.
        match kind >> 6 {
            _ if kind == PADN => {}
            0 => {}
            1 => return Err(WalkError::Refused),
            3 if dst.is_multicast() => return Err(WalkError::Refused),
            _ => return Err(problem(PROBLEM_OPTION, at + next)),
        }
        next += 2 + usize::from(len);
    }
    if next < header.len() { Err(WalkError::TooMany) } else { Ok(()) }
}

/// Finds the upper layer in a packet that may be cut short, as ICMP errors quote it. Nothing is
/// refused: it is a packet of ours. `None`: not there, or a later fragment.
pub fn find_upper(header: &Header, packet: &[u8]) -> Option<(Protocol, usize)> {
    let (mut kind, mut at) = (header.next_header, HEADER_LEN);
    for _ in 0..HEADERS_MAX {
        let bytes = || packet.get(at..).and_then(|rest| rest.first_chunk::<8>());
        match kind.0 {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let head = bytes()?;
                (kind, at) = (Protocol(head[0]), at + 8 + usize::from(head[1]) * 8);
            }
            FRAGMENT => {
                let fragment = Fragment::parse(bytes()?);
                if fragment.offset != 0 {
                    return None;
                }
                (kind, at) = (fragment.next_header, at + FRAGMENT_LEN);
            }
            _ => return Some((kind, at)),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A packet of the headers given: kind and body without the next-header byte.
    fn packet(dst: &str, headers: &[(u8, &[u8])], upper: Protocol, payload: &[u8]) -> Vec<u8> {
        let kinds = headers.iter().map(|h| h.0).chain([upper.0]);
        let nexts: Vec<u8> = kinds.collect();
        let mut rest = Vec::new();
        for (i, (_, body)) in headers.iter().enumerate() {
            rest.push(nexts[i + 1]);
            rest.extend_from_slice(body);
        }
        rest.extend_from_slice(payload);
        let mut bytes = vec![0; HEADER_LEN];
        Header {
            traffic_class: 0,
            flow_label: 0,
            payload_len: rest.len() as u16,
            next_header: Protocol(nexts[0]),
            hop_limit: 64,
            src: "2001:db8::1".parse().unwrap(),
            dst: dst.parse().unwrap(),
        }
        .emit(&mut bytes);
        bytes.extend(rest);
        bytes
    }

    fn walked(dst: &str, headers: &[(u8, &[u8])], payload: &[u8]) -> Result<Upper, WalkError> {
        let bytes = packet(dst, headers, Protocol::TCP, payload);
        walk(&Header::parse(&bytes).unwrap(), &bytes)
    }

    const US: &str = "2001:db8::2";
    const PAD: &[u8] = &[0, 1, 4, 0, 0, 0, 0];

    #[test]
    fn the_upper_layer_is_found_behind_what_is_skipped() {
        let upper = walked(US, &[], &[]).unwrap();
        assert_eq!((upper.protocol, upper.offset), (Protocol::TCP, 40));
        assert_eq!(upper.protocol_at, 6);
        let chain: &[(u8, &[u8])] =
            &[(0, PAD), (60, PAD), (43, &[0, 0, 0, 0, 0, 0, 0]), (60, &[0, 0x1e, 4, 1, 2, 3, 4])];
        let upper = walked(US, chain, &[]).unwrap();
        assert_eq!((upper.protocol, upper.offset, upper.fragment), (Protocol::TCP, 72, None));
        assert_eq!(upper.protocol_at, 64);
        let bytes = packet(US, chain, Protocol::UDP, &[]);
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(find_upper(&header, &bytes), Some((Protocol::UDP, 72)));
    }

    #[test]
    fn unknown_options_do_as_their_type_says() {
        for (kind, dst, outcome) in [
            (0x3e, US, Ok(())),
            (0x7e, US, Err(WalkError::Refused)),
            (0xbe, US, Err(problem(PROBLEM_OPTION, 42))),
            (0xbe, "ff02::1", Err(problem(PROBLEM_OPTION, 42))),
            (0xfe, US, Err(problem(PROBLEM_OPTION, 42))),
            (0xfe, "ff02::1", Err(WalkError::Refused)),
        ] {
            let got = walked(dst, &[(60, &[0, kind, 4, 0, 0, 0, 0])], &[]).map(|_| ());
            assert_eq!(got, outcome, "{kind:#x} to {dst}");
        }
    }

    #[test]
    fn routing_is_refused_and_hop_by_hop_comes_first() {
        for kind in [0, 2, 4, 253] {
            let left = walked(US, &[(43, &[0, kind, 1, 0, 0, 0, 0])], &[]);
            assert_eq!(left, Err(problem(PROBLEM_FIELD, 42)));
        }
        let late = walked(US, &[(60, PAD), (0, PAD)], &[]);
        assert_eq!(late, Err(problem(PROBLEM_NEXT_HEADER, 40)));
    }

    #[test]
    fn the_walk_is_bounded() {
        let chain: Vec<(u8, &[u8])> = (0..HEADERS_MAX).map(|_| (60, PAD)).collect();
        assert!(walked(US, &chain, &[]).is_ok());
        let chain: Vec<(u8, &[u8])> = (0..=HEADERS_MAX).map(|_| (60, PAD)).collect();
        assert_eq!(walked(US, &chain, &[]), Err(WalkError::TooMany));
        let mut body = vec![3];
        body.resize(31, PAD1);
        assert_eq!(walked(US, &[(60, &body)], &[]), Err(WalkError::TooMany));
        for body in [&[1, 1, 4, 0, 0, 0, 0][..], &[0, 1, 5, 0, 0, 0, 0], &[0, 0, 0, 0, 0, 0, 1]] {
            assert_eq!(walked(US, &[(60, body)], &[]), Err(WalkError::Truncated), "{body:?}");
        }
        let bytes = packet(US, &[(60, PAD)], Protocol::TCP, &[]);
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(walk(&header, &bytes[..47]), Err(WalkError::Truncated));
    }

    #[test]
    fn fragments_end_the_walk_and_the_first_has_all_headers() {
        let fragment = |offset, more| {
            let f = Fragment { next_header: Protocol::TCP, offset, more, ident: 0x0102_0304 };
            let mut bytes = [0; 8];
            f.emit(&mut bytes);
            (f, bytes)
        };
        let (later, bytes) = fragment(1480, true);
        let upper = walked(US, &[(44, &bytes[1..])], &[7; 8]).unwrap();
        assert_eq!((upper.offset, upper.fragment), (48, Some(later)));
        let (first, bytes) = fragment(0, true);
        let upper = walked(US, &[(0, PAD), (44, &bytes[1..])], &[0; 24]).unwrap();
        assert_eq!((upper.offset, upper.fragment), (56, Some(first)));
        let upper = walked(US, &[(44, &bytes[1..])], &[0; 19]);
        assert_eq!(upper, Err(WalkError::Truncated), "RFC 7112");
        // RFC 6946: a fragment that is all there is.
        let (_, whole) = fragment(0, false);
        let upper = walked(US, &[(44, &whole[1..])], &[]).unwrap();
        assert_eq!((upper.offset, upper.fragment, upper.fragment_header), (48, None, true));
        let twice = walked(US, &[(44, &whole[1..]), (44, &whole[1..])], &[]);
        assert_eq!(twice, Err(WalkError::Refused));
        // The part of a first fragment starts behind its header, whatever stands there.
        let upper = walked(US, &[(44, &bytes[1..]), (60, PAD)], &[0; 20]).unwrap();
        assert_eq!((upper.protocol, upper.offset), (Protocol(60), 48));
    }

    proptest! {
        #[test]
        fn random_chains_do_no_harm(
            rest in prop::collection::vec(prop_oneof![Just(0u8), Just(43), Just(44), Just(60), any::<u8>()], 0..120),
            next in prop_oneof![Just(0u8), Just(43), Just(44), Just(60)], cut in 0usize..160,
        ) {
            let mut bytes = packet(US, &[], Protocol(next), &rest);
            bytes.truncate(cut.max(HEADER_LEN));
            let header = Header::parse_head(&bytes).unwrap();
            if let Ok(upper) = walk(&header, &bytes) {
                prop_assert!(usize::from(upper.offset) <= bytes.len());
            }
            let _ = find_upper(&header, &bytes);
        }
    }
}
