//! Early demultiplexing: whose frame is this, by its headers alone.
//!
//! Nothing here looks at a connection's state, so what an unwanted frame costs does not grow with
//! the number of connections.

use std::net::{IpAddr, Ipv4Addr};

use millstream_link::{RxChecksum, RxFrame};
use millstream_wire::checksum::checksum;
use millstream_wire::ethernet::{EtherType, VLAN_TAG_LEN};
use millstream_wire::{arp, ethernet, ipv4, ipv6};

use crate::autoconf::Host;
use crate::channel::Packet;
use crate::config::Ipv4Config;
use crate::demux6;
use crate::flow::FlowKey;

/// Who is to have a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// A TCP segment; the flow table knows whether it has a connection.
    Tcp(FlowKey),
    /// A TCP segment over IPv6, whose flow the addresses in the packet tell.
    TcpV6,
    /// A UDP packet to this port.
    Udp(u16),
    /// The proxy: ARP, ICMP, fragments.
    Proxy,
}

/// Why a frame has no receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discard {
    Malformed,
    EtherType,
    Vlan,
    NotForUs,
    Martian,
    Options,
    Extension,
    IpChecksum,
    L4Checksum,
    Protocol,
}

/// What classification compares with.
pub(crate) struct Station {
    pub mac: [u8; 6],
    pub ipv4: Ipv4Config,
    /// What is known of the IPv6 link, if IPv6 is configured.
    pub ipv6: Option<Box<Host>>,
    /// The VLAN (802.1Q) whose tag frames have.
    pub vlan: Option<u16>,
    pub skip_checksums: bool,
    /// The first 16 bytes of a frame that is the usual case, as far as they are fixed: to us, IPv4,
    /// no IP options.
    usual: u128,
}

impl Station {
    pub fn new(
        mac: [u8; 6],
        ipv4: Ipv4Config,
        ipv6: Option<Box<Host>>,
        vlan: Option<u16>,
        skip_checksums: bool,
    ) -> Self {
        let [a, b, c, d, e, f] = mac;
        // In a VLAN no frame without a tag is the usual case: the last byte is none that the mask
        // lets through.
        let none = u8::from(vlan.is_some());
        let usual = [a, b, c, d, e, f, 0, 0, 0, 0, 0, 0, 8, 0, 0x45, none];
        Self { mac, ipv4, ipv6, vlan, skip_checksums, usual: u128::from_ne_bytes(usual) }
    }
}

/// The bytes that [`Station::usual`] fixes: destination, ethertype, version and header length.
const USUAL_MASK: u128 = u128::from_ne_bytes([
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0,
]);

/// The number of the VLAN in a tag's control word.
const VLAN_MASK: u16 = 0x0fff;

/// Bytes of Ethernet, IPv4 and TCP headers without options.
const TCP_FRAME_MIN: usize = 54;

/// Reads the headers of a frame.
///
/// A whole TCP segment to us without IP options, which is nearly all that a server sees, is told
/// from its first 38 bytes in a few comparisons of words; all else takes the general way, which comes
/// to the same result.
#[inline]
pub(crate) fn classify(station: &Station, frame: RxFrame) -> Result<(Class, Packet), Discard> {
    match usual_segment(station, &frame) {
        Some((key, end)) => {
            let packet = Packet {
                ip_offset: ethernet::HEADER_LEN as u16,
                l4_offset: (ethernet::HEADER_LEN + ipv4::HEADER_LEN) as u16,
                end,
                checksum_good: station.skip_checksums | (frame.checksum == RxChecksum::Good),
                frame: frame.buf,
            };
            Ok((Class::Tcp(key), packet))
        }
        None => classify_any(station, frame),
    }
}

#[inline]
fn usual_segment(station: &Station, frame: &RxFrame) -> Option<(FlowKey, u16)> {
    let head: &[u8; TCP_FRAME_MIN] = frame.buf.first_chunk()?;
    let (start, _) = head.split_first_chunk::<16>()?;
    let ip: &[u8; 20] = head[14..34].first_chunk()?;
    let addresses: &[u8; 8] = head[26..34].first_chunk()?;
    let ports: &[u8; 4] = head[34..38].first_chunk()?;
    let total_len = u16::from_be_bytes([head[16], head[17]]);
    let end = ethernet::HEADER_LEN as u32 + u32::from(total_len);
    // More fragments, or an offset.
    let fragment = u16::from_ne_bytes([head[20], head[21]]) & u16::from_ne_bytes([0x3f, 0xff]);
    let ours = u32::from_ne_bytes([head[30], head[31], head[32], head[33]])
        == u32::from_ne_bytes(station.ipv4.address.octets());
    let usual = u128::from_ne_bytes(*start) & USUAL_MASK == station.usual
        && (TCP_FRAME_MIN as u32..=frame.buf.len() as u32).contains(&end)
        && fragment == 0
        && head[23] == ipv4::Protocol::TCP.0
        && ours;
    let sums = match frame.checksum {
        RxChecksum::Good => true,
        RxChecksum::Unknown => station.skip_checksums || checksum(ip) == 0,
        RxChecksum::Bad => false,
    };
    (usual && sums).then(|| (FlowKey::from_headers(addresses, ports), end as u16))
}

/// Reads the headers of any frame.
fn classify_any(station: &Station, frame: RxFrame) -> Result<(Class, Packet), Discard> {
    let bytes: &[u8] = &frame.buf;
    let Ok(header) = ethernet::Header::parse(bytes) else { return Err(Discard::Malformed) };
    if header.dst.0 != station.mac && !header.dst.is_multicast() {
        return Err(Discard::NotForUs);
    }
    // 802.1Q: the number 0 is a priority without a VLAN.
    let vlan = header.vlan.map(|control| control & VLAN_MASK).filter(|number| *number != 0);
    if vlan != station.vlan || usize::from(header.len) > ethernet::HEADER_LEN + VLAN_TAG_LEN {
        return Err(Discard::Vlan);
    }
    classify_ip(station, frame, header.ethertype, usize::from(header.len))
}

/// Reads the headers of what stands behind the Ethernet header of a frame.
pub(crate) fn classify_ip(
    station: &Station,
    frame: RxFrame,
    ethertype: EtherType,
    ip_offset: usize,
) -> Result<(Class, Packet), Discard> {
    let bytes: &[u8] = &frame.buf;
    if bytes.len() < ip_offset + ipv4::HEADER_LEN {
        return Err(Discard::Malformed);
    }
    match ethertype {
        EtherType::IPV4 => {}
        EtherType::IPV6 => return demux6::classify(station, frame, ip_offset),
        EtherType::ARP => {
            let end = bytes.len().min(ip_offset + arp::PACKET_LEN) as u16;
            let packet = Packet {
                ip_offset: ip_offset as u16,
                l4_offset: ip_offset as u16,
                end,
                checksum_good: true,
                frame: frame.buf,
            };
            return Ok((Class::Proxy, packet));
        }
        _ => return Err(Discard::EtherType),
    }
    let ip_bytes = &bytes[ip_offset..];
    let Ok(ip) = ipv4::Header::parse(ip_bytes) else { return Err(Discard::Malformed) };
    let to_us = ip.dst == station.ipv4.address;
    let for_us = if to_us { !is_link_group(bytes) } else { is_broadcast(station, ip.dst) };
    if !for_us {
        return Err(Discard::NotForUs);
    }
    if is_martian(station, ip.src) {
        return Err(Discard::Martian);
    }
    match frame.checksum {
        RxChecksum::Bad => return Err(Discard::L4Checksum),
        RxChecksum::Unknown if !station.skip_checksums && !ipv4::verify_checksum(&ip, ip_bytes) => {
            return Err(Discard::IpChecksum);
        }
        _ => {}
    }
    let options = ip.options(ip_bytes);
    if !options.is_empty() && !ipv4::options_acceptable(options) {
        return Err(Discard::Options);
    }
    let l4_offset = ip_offset + usize::from(ip.header_len);
    let end = ip_offset + usize::from(ip.total_len);
    let ports = bytes.get(l4_offset..l4_offset + 4);
    let class = match ip.protocol {
        _ if ip.is_fragment() => Class::Proxy,
        ipv4::Protocol::TCP => {
            // RFC 9293 3.9.2.3: a segment to or from a broadcast address is no segment.
            if !to_us {
                return Err(Discard::NotForUs);
            }
            let Some(ports) = ports else { return Err(Discard::Malformed) };
            let [s0, s1, d0, d1] = [ports[0], ports[1], ports[2], ports[3]];
            let (theirs, ours) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
            Class::Tcp(FlowKey::new(ip.dst, ours, ip.src, theirs))
        }
        ipv4::Protocol::UDP => {
            let Some(ports) = ports else { return Err(Discard::Malformed) };
            Class::Udp(u16::from_be_bytes([ports[2], ports[3]]))
        }
        ipv4::Protocol::ICMP if to_us => Class::Proxy,
        ipv4::Protocol::ICMP => return Err(Discard::NotForUs),
        _ => return Err(Discard::Protocol),
    };
    let packet = Packet {
        ip_offset: ip_offset as u16,
        l4_offset: l4_offset as u16,
        end: end as u16,
        checksum_good: station.skip_checksums || frame.checksum == RxChecksum::Good,
        frame: frame.buf,
    };
    Ok((class, packet))
}

/// Whether no other host may have an address that a packet claims to come from (RFC 1122 section
/// 3.2.1.3, RFC 6890): answers to it would go to many, to nobody or to ourselves.
pub(crate) fn is_martian(station: &Station, source: Ipv4Addr) -> bool {
    // "This" network, loopback, groups, and what is reserved with the limited broadcast address.
    matches!(source.octets()[0], 0 | 127 | 224..)
        || source == station.ipv4.address
        || station.ipv4.broadcast() == Some(source)
}

/// Whether a frame was sent to many stations. A packet to one host that comes so is for none: on a
/// link that floods, all who have its address, or take it for theirs, would answer (RFC 1122
/// sections 3.2.2 and 3.3.6, RFC 4443 section 2.4(e.4)).
pub(crate) fn is_link_group(frame: &[u8]) -> bool {
    frame.first().is_some_and(|byte| byte & 1 != 0)
}

fn is_broadcast(station: &Station, address: Ipv4Addr) -> bool {
    address.is_broadcast() || station.ipv4.broadcast() == Some(address)
}

impl Packet {
    /// The IP packet, without padding of the frame.
    #[inline]
    pub fn ip(&self) -> &[u8] {
        self.frame.get(usize::from(self.ip_offset)..usize::from(self.end)).unwrap_or_default()
    }

    /// The transport header and what follows it.
    #[inline]
    pub fn l4(&self) -> &[u8] {
        self.frame.get(usize::from(self.l4_offset)..usize::from(self.end)).unwrap_or_default()
    }

    /// Source and destination of the IP packet.
    #[inline]
    pub fn ipv4_addresses(&self) -> (Ipv4Addr, Ipv4Addr) {
        let at = usize::from(self.ip_offset) + 12;
        match self.frame.get(at..).and_then(<[u8]>::first_chunk) {
            Some(&[a, b, c, d, e, f, g, h]) => {
                (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h))
            }
            None => (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED),
        }
    }

    /// The ECN codepoint of the IP header (RFC 3168 section 5).
    #[inline]
    pub fn ecn(&self) -> u8 {
        match self.frame.get(usize::from(self.ip_offset)..) {
            Some(&[first, second, ..]) => (if first >> 4 == 6 { second >> 4 } else { second }) & 3,
            _ => 0,
        }
    }

    /// Whether it is an IPv6 packet.
    #[inline]
    pub fn is_ipv6(&self) -> bool {
        self.frame.get(usize::from(self.ip_offset)).is_some_and(|byte| byte >> 4 == 6)
    }

    /// The address fields of an IPv6 packet.
    #[inline]
    pub fn ipv6_pair(&self) -> Option<&[u8; 32]> {
        self.frame.get(usize::from(self.ip_offset) + 8..)?.first_chunk()
    }

    /// Source and destination of the IP packet of either version.
    pub fn addresses(&self) -> (IpAddr, IpAddr) {
        match self.ipv6_pair() {
            Some(pair) if self.is_ipv6() => {
                let [src, dst] = ipv6::split_addresses(pair);
                (src.into(), dst.into())
            }
            _ => {
                let (src, dst) = self.ipv4_addresses();
                (src.into(), dst.into())
            }
        }
    }

    /// The port fields of a packet of TCP or UDP.
    #[inline]
    pub fn ports(&self) -> Option<&[u8; 4]> {
        self.l4().first_chunk()
    }

    /// The station that sent the frame.
    #[inline]
    pub fn source_mac(&self) -> [u8; 6] {
        let mut mac = [0; 6];
        if let Some(bytes) = self.frame.get(6..12) {
            mac.copy_from_slice(bytes);
        }
        mac
    }
}
