//! A shard whose link ends in the hands of the test, and frames to put on it.

use std::net::{Ipv4Addr, Ipv6Addr};

use millstream_core::ShardConfig;
use millstream_disk::MemDisk;
use millstream_link::mem::{MemConfig, MemLink, pair};
use millstream_link::{Link, RxBurst, TxFrame, TxOffload};
use millstream_timer::VirtualClock;
use millstream_wire::checksum::Sum;
use millstream_wire::ethernet::{self, Address, EtherType};
use millstream_wire::ipv4::{self, Protocol};
use millstream_wire::{icmpv6, ipv6, tcp, udp};

use super::{TestShard, arena};

/// The station at the test's end, and that of the shard.
pub const OUR_MAC: Address = Address([2, 0, 0, 0, 0, 1]);
pub const SHARD_MAC: Address = Address([2, 0, 0, 0, 0, 2]);

pub struct Wire {
    pub clock: VirtualClock,
    pub shard: TestShard,
    pub link: MemLink,
}

impl Wire {
    pub fn new(config: ShardConfig) -> Self {
        let clock = VirtualClock::new();
        let (link, theirs) = pair(MemConfig::default()).unwrap();
        let arena = arena(512, 64);
        let disk = Box::new(MemDisk::copying(16).unwrap());
        let shard = millstream_core::Shard::new(config, theirs, clock.clone(), arena, disk);
        Self { clock, shard, link }
    }

    pub fn send(&mut self, frame: &[u8]) {
        send(&mut self.link, frame);
    }

    /// What the shard sends in answer to what lies on the link.
    pub fn answers(&mut self) -> Vec<Vec<u8>> {
        for _ in 0..4 {
            self.shard.turn();
        }
        receive(&mut self.link)
    }

    /// Sends a frame and returns the answers.
    pub fn ask(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.send(frame);
        self.answers()
    }

    /// Turns the shard through all that is due in `seconds`; returns what it sent.
    pub fn pass(&mut self, seconds: u64) -> Vec<Vec<u8>> {
        let end = self.shard.stack().now() + std::time::Duration::from_secs(seconds);
        let mut sent = self.answers();
        loop {
            let next = self.shard.next_deadline().min(end);
            self.clock.advance_to(next);
            sent.extend(self.answers());
            if next == end {
                return sent;
            }
        }
    }

    pub fn assert_accounted(&self) {
        let rx = self.shard.stack().rx_metrics();
        assert_eq!(rx.unaccounted(), 0, "{rx:?}");
    }
}

/// Puts a frame on a link.
pub fn send(link: &mut MemLink, frame: &[u8]) {
    let (header, rest) = frame.split_at(frame.len().min(100));
    let payload = [millstream_buf::IoBuf::from(rest)];
    let payload = if rest.is_empty() { &payload[..0] } else { &payload[..] };
    link.tx(&TxFrame { header, payload, offload: TxOffload::default() }).unwrap();
    link.flush();
}

/// Takes all frames from a link.
pub fn receive(link: &mut MemLink) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut burst = RxBurst::new();
    loop {
        link.rx_burst(&mut burst);
        if burst.is_empty() {
            return frames;
        }
        frames.extend(burst.drain(..).map(|frame| frame.buf.to_vec()));
    }
}

pub fn frame(ethertype: EtherType, packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ethernet::HEADER_LEN];
    ethernet::Header::new(SHARD_MAC, OUR_MAC, ethertype).emit(&mut bytes);
    bytes.extend_from_slice(packet);
    bytes
}

/// A frame with an IPv6 packet whose first header is `next_header`.
pub fn frame_v6(
    (src, dst): (Ipv6Addr, Ipv6Addr),
    next_header: Protocol,
    hop_limit: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0; ipv6::HEADER_LEN];
    ipv6::Header {
        traffic_class: 0,
        flow_label: 0,
        payload_len: payload.len() as u16,
        next_header,
        hop_limit,
        src,
        dst,
    }
    .emit(&mut packet);
    packet.extend_from_slice(payload);
    let mut bytes = frame(EtherType::IPV6, &packet);
    if dst.is_multicast() {
        bytes[..6].copy_from_slice(&ipv6::multicast_mac(dst).0);
    }
    bytes
}

/// A frame with an IPv4 packet; `fragment` is the word of flags and offset.
pub fn frame_v4(
    (src, dst): (Ipv4Addr, Ipv4Addr),
    protocol: Protocol,
    fragment: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let header_len = ipv4::HEADER_LEN + options.len();
    let mut packet = vec![0; header_len];
    ipv4::Repr {
        tos: 0,
        ident: 77,
        dont_fragment: false,
        ttl: 64,
        protocol,
        src,
        dst,
        payload_len: (options.len() + payload.len()) as u16,
    }
    .emit_for_offload(&mut packet);
    packet[0] = 0x40 | (header_len / 4) as u8;
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[ipv4::HEADER_LEN..].copy_from_slice(options);
    let sum = millstream_wire::checksum::checksum(&packet).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet.extend_from_slice(payload);
    frame(EtherType::IPV4, &packet)
}

pub fn icmp_v6((src, dst): (Ipv6Addr, Ipv6Addr), message: &icmpv6::Message<'_>) -> Vec<u8> {
    let mut bytes = vec![0; message.emitted_len()];
    message.emit(src, dst, &mut bytes);
    bytes
}

pub fn udp_v6((src, dst): (Ipv6Addr, Ipv6Addr), dst_port: u16, data: &[u8]) -> Vec<u8> {
    let repr = udp::Repr { src_port: 9, dst_port, payload_len: data.len() as u16 };
    let mut sum = Sum::new();
    sum.add_bytes(data);
    let mut bytes = vec![0; udp::HEADER_LEN];
    repr.emit_v6(&mut bytes, src, dst, sum);
    bytes.extend_from_slice(data);
    bytes
}

pub fn udp_v4((src, dst): (Ipv4Addr, Ipv4Addr), dst_port: u16, data: &[u8]) -> Vec<u8> {
    let repr = udp::Repr { src_port: 9, dst_port, payload_len: data.len() as u16 };
    let mut sum = Sum::new();
    sum.add_bytes(data);
    let mut bytes = vec![0; udp::HEADER_LEN];
    repr.emit(&mut bytes, src, dst, sum);
    bytes.extend_from_slice(data);
    bytes
}

/// A SYN to a port.
pub fn syn_v6((src, dst): (Ipv6Addr, Ipv6Addr), src_port: u16, dst_port: u16) -> Vec<u8> {
    let mut bytes = vec![0; tcp::HEADER_LEN];
    let (seq, ack) = (tcp::SeqNumber(1000), tcp::SeqNumber(0));
    tcp::emit(&mut bytes, src_port, dst_port, seq, ack, tcp::Flags::SYN, 60_000, 0, &[]);
    let mut sum = Sum::ipv6_pseudo(src, dst, Protocol::TCP.0, bytes.len() as u32);
    sum.add_bytes(&bytes);
    bytes[16..18].copy_from_slice(&sum.finish().to_be_bytes());
    bytes
}

/// The IPv6 packets among frames.
pub fn packets_v6(frames: &[Vec<u8>]) -> Vec<(ipv6::Header, Vec<u8>)> {
    frames
        .iter()
        .filter(|frame| frame[12..14] == EtherType::IPV6.0.to_be_bytes())
        .map(|frame| {
            let header = ipv6::Header::parse(&frame[14..]).unwrap();
            (header, header.payload(&frame[14..]).to_vec())
        })
        .collect()
}
