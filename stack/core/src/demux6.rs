//! Early demultiplexing of IPv6: as [`crate::demux`], by headers alone.

use millstream_link::{RxChecksum, RxFrame};
use millstream_wire::ipv4::Protocol;
use millstream_wire::ipv6::{HEADER_LEN, Header};
use millstream_wire::ipv6_extension::{Upper, WalkError, walk};

use crate::channel::Packet;
use crate::demux::{Class, Discard, Station, is_link_group};

/// Reads the headers of a frame with an IPv6 packet at `ip_offset`.
pub(crate) fn classify(
    station: &Station,
    frame: RxFrame,
    ip_offset: usize,
) -> Result<(Class, Packet), Discard> {
    let Some(host) = &station.ipv6 else { return Err(Discard::EtherType) };
    let bytes = frame.buf.get(ip_offset..).unwrap_or_default();
    let header = Header::parse(bytes).map_err(|_| Discard::Malformed)?;
    // Without the link's padding, which is nobody's port.
    let bytes = bytes.get(..header.packet_len()).ok_or(Discard::Malformed)?;
    let group = header.dst.is_multicast();
    let to_us = if group {
        host.listens_to(header.dst)
    } else {
        host.is_ours(header.dst) && !is_link_group(&frame.buf)
    };
    if !to_us {
        return Err(Discard::NotForUs);
    }
    // RFC 4291 sections 2.5.3, 2.5.5.2 and 2.7. From nobody come probes for duplicates.
    let src = header.src;
    let is_mapped = src.to_ipv4_mapped().is_some();
    if src.is_multicast() || src.is_loopback() || is_mapped || host.is_ours(src) {
        return Err(Discard::Martian);
    }
    if frame.checksum == RxChecksum::Bad {
        return Err(Discard::L4Checksum);
    }
    let usual = matches!(header.next_header, Protocol::TCP | Protocol::UDP | Protocol::ICMPV6);
    let (class, l4_offset) = if usual {
        (class_of(header.next_header, bytes, HEADER_LEN, group)?, HEADER_LEN)
    } else {
        match walk(&header, bytes) {
            Ok(Upper { fragment: Some(_), .. }) => (Class::Proxy, HEADER_LEN),
            Ok(upper) => {
                let at = usize::from(upper.offset);
                (class_of(upper.protocol, bytes, at, group)?, at)
            }
            // The sender is to be told.
            Err(WalkError::Problem { .. }) => (Class::Proxy, HEADER_LEN),
            Err(WalkError::Truncated) => return Err(Discard::Malformed),
            Err(WalkError::TooMany | WalkError::Refused) => return Err(Discard::Extension),
        }
    };
    let packet = Packet {
        ip_offset: ip_offset as u16,
        l4_offset: (ip_offset + l4_offset) as u16,
        end: (ip_offset + header.packet_len()) as u16,
        checksum_good: station.skip_checksums || frame.checksum == RxChecksum::Good,
        frame: frame.buf,
    };
    Ok((class, packet))
}

fn class_of(protocol: Protocol, bytes: &[u8], at: usize, group: bool) -> Result<Class, Discard> {
    let ports = || bytes.get(at..).and_then(|l4| l4.first_chunk::<4>()).ok_or(Discard::Malformed);
    match protocol {
        // RFC 9293 3.9.2.3: a segment to a group is no segment.
        Protocol::TCP if group => Err(Discard::NotForUs),
        Protocol::TCP => ports().map(|_| Class::TcpV6),
        Protocol::UDP => ports().map(|[_, _, a, b]| Class::Udp(u16::from_be_bytes([*a, *b]))),
        Protocol::NONE => Err(Discard::Protocol),
        // ICMPv6, and what nobody here speaks, of which the sender is to be told.
        _ => Ok(Class::Proxy),
    }
}
