//! The other station on the link of a shard under test: makes frames of all kinds, right or wrong,
//! and checks every frame that the shard sends.

use std::net::{Ipv4Addr, Ipv6Addr};

use millstream_link::mem::MemLink;
use millstream_link::{Link, RxBurst, TxFrame, TxOffload};
use millstream_wire::checksum::Sum;
use millstream_wire::tcp::{self, Flags, Header, SeqNumber, Timestamp};
use millstream_wire::{arp, ethernet, icmpv4, icmpv6, ipv4, ipv6, ipv6_extension, udp};

use crate::input::{byte_at, bytes_at};

/// The shard's station.
pub const OURS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The peer's.
pub const THEIRS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// Addresses of both in IPv6.
pub const OURS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
pub const THEIRS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

pub const OUR_MAC: ethernet::Address = ethernet::Address([2, 0, 0, 0, 0, 2]);
pub const THEIR_MAC: ethernet::Address = ethernet::Address([2, 0, 0, 0, 0, 1]);

/// Connections that the peer keeps in mind.
pub const FLOWS_MAX: usize = 16;

const MTU: usize = 1500;

/// What the peer knows of a connection.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    pub our_port: u16,
    pub their_port: u16,
    /// The shard's initial number.
    pub iss: u32,
    /// Next number that the peer sends.
    pub snd_nxt: u32,
    /// Behind the last number that the shard has sent.
    pub rcv_nxt: u32,
    /// Whether timestamps go along, and the shard's last one.
    pub timestamps: bool,
    pub last_stamp: u32,
    pub clock: u32,
    /// The shard has answered or sent a SYN.
    pub open: bool,
}

/// The fields of a segment to be sent.
pub struct Segment<'a> {
    pub seq: u32,
    pub ack: u32,
    pub flags: Flags,
    pub window: u16,
    pub urgent: u16,
    pub options: &'a [u8],
    pub payload: &'a [u8],
}

pub struct Peer {
    link: MemLink,
    burst: RxBurst,
    pub flows: Vec<Flow>,
    /// With what the peer answers a SYN.
    pub next_isn: u32,
    /// Frames that the shard has sent.
    pub received: u64,
}

impl Peer {
    pub fn new(link: MemLink) -> Self {
        Self { link, burst: RxBurst::new(), flows: Vec::new(), next_isn: 0, received: 0 }
    }

    /// Frames that may still be sent before the shard must have freed some.
    pub fn room(&mut self) -> usize {
        self.link.tx_room()
    }

    /// Takes what the shard has sent, checks it, and learns from it. Returns how many frames it was.
    pub fn receive(&mut self) -> usize {
        let mut count = 0;
        loop {
            let mut burst = std::mem::take(&mut self.burst);
            self.link.rx_burst(&mut burst);
            let len = burst.len();
            for frame in burst.drain(..) {
                self.check(&frame.buf);
            }
            self.burst = burst;
            count += len;
            if len == 0 {
                self.received += count as u64;
                return count;
            }
        }
    }

    fn check(&mut self, frame: &[u8]) {
        assert!(frame.len() <= MTU + ethernet::HEADER_LEN, "{} bytes", frame.len());
        let ethernet = ethernet::Header::parse(frame).expect("an Ethernet frame");
        assert_eq!(ethernet.src, OUR_MAC);
        let packet = ethernet.payload(frame);
        if ethernet.ethertype == ethernet::EtherType::ARP {
            let arp = arp::Repr::parse(packet).expect("an ARP packet");
            assert_eq!((arp.sender_mac, arp.sender_ip), (OUR_MAC, OURS));
            return;
        }
        if ethernet.ethertype == ethernet::EtherType::IPV6 {
            return check_ipv6(packet);
        }
        assert_eq!(ethernet.ethertype, ethernet::EtherType::IPV4);
        let ip = ipv4::Header::parse(packet).expect("an IPv4 packet");
        assert!(ipv4::verify_checksum(&ip, packet), "the header's checksum is wrong");
        assert_eq!(ip.src, OURS);
        let payload = ip.payload(packet);
        match ip.protocol {
            ipv4::Protocol::ICMP => {
                icmpv4::Message::parse(payload).expect("a right ICMP message");
            }
            ipv4::Protocol::UDP => {
                let udp = udp::Header::parse(payload).expect("a UDP datagram");
                assert!(udp.verify_checksum(ip.src, ip.dst, payload));
            }
            _ => self.check_segment(&ip, payload),
        }
    }

    fn check_segment(&mut self, ip: &ipv4::Header, bytes: &[u8]) {
        assert_eq!(ip.protocol, ipv4::Protocol::TCP);
        assert_eq!(segment_sum(ip.src, ip.dst, bytes), 0, "the checksum is wrong");
        let (header, len) = Header::parse(bytes).expect("a TCP header");
        let payload = &bytes[len..];
        if ip.dst != THEIRS {
            return;
        }
        let ports = (header.src_port, header.dst_port);
        let known = self.flows.iter().any(|flow| (flow.our_port, flow.their_port) == ports);
        if !known && header.flags == Flags::SYN && self.flows.len() < FLOWS_MAX {
            // The shard opens a connection.
            let (our_port, their_port) = ports;
            let flow = Flow { our_port, their_port, snd_nxt: self.next_isn, ..Flow::default() };
            self.flows.push(flow);
        }
        let found = self.flows.iter_mut().find(|flow| (flow.our_port, flow.their_port) == ports);
        let Some(flow) = found else { return };
        if header.flags.contains(Flags::RST) {
            return;
        }
        if header.flags.contains(Flags::SYN) {
            flow.iss = header.seq.0;
            flow.rcv_nxt = header.seq.0.wrapping_add(1);
            flow.open = true;
            flow.timestamps = header.timestamp().is_some();
        }
        if let Some(timestamp) = header.timestamp() {
            flow.last_stamp = timestamp.value;
        }
        if !flow.open {
            return;
        }
        let place = header.seq.0.wrapping_sub(flow.iss).wrapping_sub(1);
        for (offset, byte) in payload.iter().enumerate() {
            assert_eq!(*byte, byte_at(place.wrapping_add(offset as u32)), "what is sent differs");
        }
        let fin = u32::from(header.flags.contains(Flags::FIN));
        let end = header.seq + (payload.len() as u32 + fin);
        if end.gt(SeqNumber(flow.rcv_nxt)) {
            flow.rcv_nxt = end.0;
        }
    }

    fn send_frame(&mut self, frame: &[u8]) {
        // The link refuses what is too long for its buffers, or when the shard holds all of them.
        let _ =
            self.link.tx(&TxFrame { header: frame, payload: &[], offload: TxOffload::default() });
    }

    /// A frame of any kind to the shard.
    pub fn send_ethernet(&mut self, ethertype: u16, payload: &[u8]) {
        let header = ethernet::Header::new(OUR_MAC, THEIR_MAC, ethernet::EtherType(ethertype));
        let mut frame = vec![0; ethernet::HEADER_LEN + payload.len()];
        header.emit(&mut frame);
        frame[ethernet::HEADER_LEN..].copy_from_slice(payload);
        self.send_frame(&frame);
    }

    /// An IPv4 packet, with options before its payload and a fragment field. `damage` changes one
    /// byte of it, after the checksums were computed.
    pub fn send_ipv4(&mut self, packet: &Ipv4Packet<'_>, damage: Option<(u8, u8)>) {
        let options = &packet.options[..packet.options.len().min(40)];
        let header_len = ipv4::HEADER_LEN + options.len().next_multiple_of(4);
        let mut bytes = vec![0; header_len];
        let len = (header_len + packet.payload.len()).min(usize::from(u16::MAX));
        bytes[0] = 0x40 | (header_len / 4) as u8;
        bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        bytes[6..8].copy_from_slice(&packet.fragment.to_be_bytes());
        bytes[8] = 64;
        bytes[9] = packet.protocol;
        bytes[12..16].copy_from_slice(&packet.src.octets());
        bytes[16..20].copy_from_slice(&packet.dst.octets());
        bytes[20..20 + options.len()].copy_from_slice(options);
        let sum = millstream_wire::checksum::checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend_from_slice(packet.payload);
        if let Some((at, change)) = damage {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= change;
        }
        self.send_ethernet(0x0800, &bytes);
    }

    /// A segment of a flow.
    pub fn send_segment(&mut self, flow: usize, segment: &Segment<'_>, damage: Option<(u8, u8)>) {
        let flow = &self.flows[flow];
        let bytes = segment_bytes(flow.their_port, flow.our_port, THEIRS, segment);
        self.send_ipv4(&Ipv4Packet::tcp(&bytes), damage);
    }

    /// The timestamps that the peer would send next, as an option.
    pub fn stamps(&mut self, flow: usize, offset: i32, echo_offset: i32) -> Vec<u8> {
        let flow = &mut self.flows[flow];
        if !flow.timestamps {
            return Vec::new();
        }
        flow.clock = flow.clock.wrapping_add(1);
        let stamp = Timestamp {
            value: flow.clock.wrapping_add_signed(offset),
            echo: flow.last_stamp.wrapping_add_signed(echo_offset),
        };
        tcp::Options::established(Some(stamp), &tcp::SackBlocks::EMPTY).as_slice().to_vec()
    }

    /// An ordinary segment: data in order, if any, and an ACK of all that came.
    pub fn send_data(&mut self, flow: usize, len: usize, flags: Flags) {
        let options = self.stamps(flow, 0, 0);
        let state = &self.flows[flow];
        let payload = bytes_at(state.snd_nxt, len);
        let segment = Segment {
            seq: state.snd_nxt,
            ack: state.rcv_nxt,
            flags: Flags::ACK | flags,
            window: 0xffff,
            urgent: 0,
            options: &options,
            payload: &payload,
        };
        self.send_segment(flow, &segment, None);
        let fin = u32::from(flags.contains(Flags::FIN));
        let state = &mut self.flows[flow];
        state.snd_nxt = state.snd_nxt.wrapping_add(len as u32 + fin);
    }

    /// A SYN of a flow; its number is what `snd_nxt` says.
    pub fn send_syn(&mut self, flow: usize, flags: Flags, options: &[u8]) {
        let state = &self.flows[flow];
        let segment = Segment {
            seq: state.snd_nxt,
            ack: state.rcv_nxt,
            flags: Flags::SYN | flags,
            window: 0xffff,
            urgent: 0,
            options,
            payload: &[],
        };
        self.send_segment(flow, &segment, None);
        let state = &mut self.flows[flow];
        state.snd_nxt = state.snd_nxt.wrapping_add(1);
    }

    /// Answers a request for the peer's link address.
    pub fn send_arp_reply(&mut self) {
        let reply = arp::Repr {
            operation: arp::Operation::Reply,
            sender_mac: THEIR_MAC,
            sender_ip: THEIRS,
            target_mac: OUR_MAC,
            target_ip: OURS,
        };
        let mut bytes = [0; arp::PACKET_LEN];
        reply.emit(&mut bytes);
        self.send_ethernet(0x0806, &bytes);
    }
}

/// Checks an IPv6 packet that the shard has sent.
fn check_ipv6(packet: &[u8]) {
    let header = ipv6::Header::parse(packet).expect("an IPv6 packet");
    let upper = ipv6_extension::walk(&header, packet).expect("headers that lead somewhere");
    let bytes = &packet[usize::from(upper.offset)..header.packet_len()];
    if upper.protocol == ipv4::Protocol::ICMPV6 {
        match icmpv6::Message::parse(header.src, header.dst, bytes) {
            // An error may be about headers that lead nowhere.
            Ok(_) | Err(icmpv6::ParseError::BadQuote) => return,
            Err(error) => panic!("{error}: {bytes:02x?}"),
        }
    }
    let next = upper.protocol.0;
    let mut sum = Sum::ipv6_pseudo(header.src, header.dst, next, bytes.len() as u32);
    sum.add_bytes(bytes);
    assert_eq!(sum.finish(), 0, "the checksum is wrong");
}

/// An IPv6 packet with extension headers as they are given, and, unless it is to be wrong, the right
/// checksum in the upper layer's field at `sum_at`.
pub fn ipv6_packet(
    addresses: (Ipv6Addr, Ipv6Addr),
    first: u8,
    extensions: &[u8],
    upper: (u8, &[u8], Option<usize>),
    hop_limit: u8,
) -> Vec<u8> {
    let (protocol, payload, sum_at) = upper;
    let (src, dst) = addresses;
    let mut bytes = vec![0; ipv6::HEADER_LEN];
    let header = ipv6::Header {
        traffic_class: 0,
        flow_label: 0,
        payload_len: (extensions.len() + payload.len()) as u16,
        next_header: ipv4::Protocol(first),
        hop_limit,
        src,
        dst,
    };
    header.emit(&mut bytes);
    bytes.extend_from_slice(extensions);
    let start = bytes.len();
    bytes.extend_from_slice(payload);
    if let Some(at) = sum_at
        && payload.len() >= at + 2
    {
        bytes[start + at..start + at + 2].fill(0);
        let mut sum = Sum::ipv6_pseudo(src, dst, protocol, payload.len() as u32);
        sum.add_bytes(&bytes[start..]);
        let sum = sum.finish().to_be_bytes();
        bytes[start + at..start + at + 2].copy_from_slice(&sum);
    }
    bytes
}

/// A packet to be sent.
pub struct Ipv4Packet<'a> {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub protocol: u8,
    pub fragment: u16,
    pub options: &'a [u8],
    pub payload: &'a [u8],
}

impl<'a> Ipv4Packet<'a> {
    /// One from the peer to the shard.
    pub fn new(protocol: ipv4::Protocol, payload: &'a [u8]) -> Self {
        let (src, dst) = (THEIRS, OURS);
        Self { src, dst, protocol: protocol.0, fragment: 0, options: &[], payload }
    }

    fn tcp(payload: &'a [u8]) -> Self {
        Self::new(ipv4::Protocol::TCP, payload)
    }
}

/// A segment with its checksum.
pub fn segment_bytes(
    src_port: u16,
    dst_port: u16,
    src: Ipv4Addr,
    segment: &Segment<'_>,
) -> Vec<u8> {
    let mut bytes = vec![0; 60];
    let options = &segment.options[..segment.options.len().min(tcp::MAX_OPTIONS_LEN)];
    let len = tcp::emit(
        &mut bytes,
        src_port,
        dst_port,
        SeqNumber(segment.seq),
        SeqNumber(segment.ack),
        segment.flags,
        segment.window,
        segment.urgent,
        options,
    );
    bytes.truncate(len);
    bytes.extend_from_slice(segment.payload);
    let sum = segment_sum(src, OURS, &bytes);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn segment_sum(src: Ipv4Addr, dst: Ipv4Addr, bytes: &[u8]) -> u16 {
    let mut sum = Sum::ipv4_pseudo(src, dst, ipv4::Protocol::TCP.0, bytes.len() as u16);
    sum.add_bytes(bytes);
    sum.finish()
}
