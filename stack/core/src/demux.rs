//! Early demultiplexing: whose frame is this, by its headers alone.
//!
//! Nothing here looks at a connection's state, so what an unwanted frame costs does not grow with
//! the number of connections.

use std::net::Ipv4Addr;

use millstream_link::{RxChecksum, RxFrame};
use millstream_wire::{arp, ethernet, ipv4};

use crate::channel::Packet;
use crate::config::Ipv4Config;
use crate::flow::FlowKey;

/// Who is to have a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A TCP segment; the flow table knows whether it has a connection.
    Tcp(FlowKey),
    /// A UDP packet to this port.
    Udp(u16),
    /// The ICMP proxy.
    Icmp,
    /// The ARP proxy.
    Arp,
}

/// Why a frame has no receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discard {
    Malformed,
    EtherType,
    NotForUs,
    Fragment,
    IpChecksum,
    L4Checksum,
    Protocol,
}

/// What classification compares with.
#[derive(Clone, Copy)]
pub(crate) struct Station {
    pub mac: [u8; 6],
    pub ipv4: Ipv4Config,
    pub skip_checksums: bool,
}

const ETHERTYPE_IPV4: u16 = ethernet::EtherType::IPV4.0;
const ETHERTYPE_ARP: u16 = ethernet::EtherType::ARP.0;

/// Reads the headers of a frame.
#[inline]
pub(crate) fn classify(station: &Station, frame: RxFrame) -> Result<(Class, Packet), Discard> {
    let bytes: &[u8] = &frame.buf;
    if bytes.len() < ethernet::HEADER_LEN + 20 {
        return Err(Discard::Malformed);
    }
    let mut mac = [0; 6];
    mac.copy_from_slice(&bytes[..6]);
    if mac != station.mac && mac[0] & 1 == 0 {
        return Err(Discard::NotForUs);
    }
    let ip_offset = ethernet::HEADER_LEN;
    match u16::from_be_bytes([bytes[12], bytes[13]]) {
        ETHERTYPE_IPV4 => {}
        ETHERTYPE_ARP => {
            let end = bytes.len().min(ip_offset + arp::PACKET_LEN) as u16;
            let packet = Packet {
                ip_offset: ip_offset as u16,
                l4_offset: ip_offset as u16,
                end,
                checksum_good: true,
                frame: frame.buf,
            };
            return Ok((Class::Arp, packet));
        }
        _ => return Err(Discard::EtherType),
    }
    let ip_bytes = &bytes[ip_offset..];
    let Ok(ip) = ipv4::Header::parse(ip_bytes) else { return Err(Discard::Malformed) };
    let to_us = ip.dst == station.ipv4.address;
    if !to_us && !is_broadcast(station, ip.dst) {
        return Err(Discard::NotForUs);
    }
    match frame.checksum {
        RxChecksum::Bad => return Err(Discard::L4Checksum),
        RxChecksum::Unknown if !station.skip_checksums && !ipv4::verify_checksum(&ip, ip_bytes) => {
            return Err(Discard::IpChecksum);
        }
        _ => {}
    }
    if ip.is_fragment() {
        return Err(Discard::Fragment);
    }
    let l4_offset = ip_offset + usize::from(ip.header_len);
    let end = ip_offset + usize::from(ip.total_len);
    let ports = bytes.get(l4_offset..l4_offset + 4);
    let class = match ip.protocol {
        ipv4::Protocol::TCP => {
            // RFC 9293 3.9.2.3: a segment to or from a broadcast address is no segment.
            if !to_us {
                return Err(Discard::NotForUs);
            }
            let Some(ports) = ports else { return Err(Discard::Malformed) };
            Class::Tcp(FlowKey {
                local: ip.dst,
                remote: ip.src,
                local_port: u16::from_be_bytes([ports[2], ports[3]]),
                remote_port: u16::from_be_bytes([ports[0], ports[1]]),
            })
        }
        ipv4::Protocol::UDP => {
            let Some(ports) = ports else { return Err(Discard::Malformed) };
            Class::Udp(u16::from_be_bytes([ports[2], ports[3]]))
        }
        ipv4::Protocol::ICMP if to_us => Class::Icmp,
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
