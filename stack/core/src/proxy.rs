//! Packets that no socket owns: ARP, ICMP, and segments to ports where nobody is.
//!
//! They share one bounded channel, so a flood of them cannot crowd out connections.

use std::net::Ipv4Addr;

use millstream_link::TxOffload;
use millstream_wire::checksum::Sum;
use millstream_wire::ethernet::{Address, EtherType};
use millstream_wire::tcp::Header;
use millstream_wire::{arp, icmpv4, ipv4};

use crate::channel::{Channel, Packet};
use crate::neighbor::Evidence;
use crate::output::{RawFrame, Via};
use crate::state::State;

/// ICMP messages sent in a second at most (RFC 1812 section 4.3.2.8 asks for a limit).
const ICMP_A_SECOND: u32 = 1000;

/// How long a packet may wait for its neighbour's address.
const WAIT_NANOS: u64 = 1_000_000_000;

impl State {
    pub fn serve_proxy(&mut self) {
        // What fragments make may join the channel meanwhile.
        while let Some(packet) = self.channels.pop(&mut self.proxy) {
            let is_arp = packet.ip_offset == packet.l4_offset;
            if is_arp {
                self.arp_input(&packet);
            } else if packet.is_ipv6() {
                self.ipv6_input(packet);
            } else {
                self.ipv4_input(packet);
            }
        }
        self.proxy = Channel::default();
    }

    fn ipv4_input(&mut self, packet: Packet) {
        match ipv4::Header::parse(packet.ip()) {
            Ok(header) if header.is_fragment() => self.fragment_v4(&packet),
            Ok(header) if header.protocol == ipv4::Protocol::TCP => self.stray_segment(&packet),
            Ok(_) => self.icmp_input(packet),
            Err(_) => self.rx.drop_malformed += 1,
        }
    }

    /// Answers a segment to a port where nobody is.
    pub fn stray_segment(&mut self, packet: &Packet) {
        if !self.check_segment(packet) {
            return;
        }
        let Ok((header, header_len)) = Header::parse(packet.l4()) else {
            self.rx.drop_malformed += 1;
            return;
        };
        let Some(key) = self.hold_key(packet) else {
            self.rx.drop_stray += 1;
            return;
        };
        if self.remote_is_unicast(&key) {
            self.refuse(packet, &header, header_len, &key);
        } else {
            self.rx.drop_stray += 1;
        }
        self.release_key(&key);
    }

    // ---- ARP -------------------------------------------------------------------------------

    fn arp_input(&mut self, packet: &Packet) {
        let Ok(arp) = arp::Repr::parse(packet.ip()) else {
            self.rx.drop_malformed += 1;
            return;
        };
        let ours = self.station.ipv4.address;
        let for_us = arp.target_ip == ours;
        let usable = arp.sender_mac.is_unicast()
            && !arp.sender_ip.is_unspecified()
            && arp.sender_ip != ours
            && self.station.ipv4.on_link(arp.sender_ip);
        let asked_us = for_us && arp.operation == arp::Operation::Request;
        let evidence = match arp.operation {
            _ if asked_us => Evidence::AskedUs,
            arp::Operation::Reply if for_us => Evidence::Answer,
            // Said to others or to all: believed, but to be proved.
            _ => Evidence::Announced,
        };
        let learned = usable
            && self.neighbors.learn(arp.sender_ip.into(), arp.sender_mac.0, evidence, self.now);
        if learned {
            self.rearm_link_timer();
            self.neighbor_changed(arp.sender_ip.into());
        }
        if asked_us {
            let reply = arp::Repr {
                operation: arp::Operation::Reply,
                sender_mac: Address(self.station.mac),
                sender_ip: ours,
                target_mac: arp.sender_mac,
                target_ip: arp.sender_ip,
            };
            self.send_arp(&reply, Via::Station(arp.sender_mac.0));
        }
        if learned || asked_us {
            self.rx.delivered_arp += 1;
        } else {
            self.rx.drop_unsolicited += 1;
        }
    }

    /// Asks for a neighbour's address: everybody, or the station that is believed to have it (RFC
    /// 1122 2.3.2.1).
    pub fn send_arp_request(&mut self, ip: Ipv4Addr, station: Option<[u8; 6]>) {
        let request = arp::Repr {
            operation: arp::Operation::Request,
            sender_mac: Address(self.station.mac),
            sender_ip: self.station.ipv4.address,
            target_mac: Address::UNSPECIFIED,
            target_ip: ip,
        };
        self.send_arp(&request, Via::Station(station.unwrap_or([0xff; 6])));
    }

    fn send_arp(&mut self, arp: &arp::Repr, via: Via) {
        let mut header = self.raw_header(EtherType::ARP, arp::PACKET_LEN);
        arp.emit(&mut header[14..]);
        let (offload, until) = (TxOffload::default(), self.now);
        self.send_raw(RawFrame { via, header, payload: None, offload, until });
    }

    // ---- ICMP ------------------------------------------------------------------------------

    fn icmp_input(&mut self, packet: Packet) {
        let (remote, _) = packet.ipv4_addresses();
        let message = match icmpv4::Message::parse(packet.l4()) {
            Ok(message) => message,
            Err(icmpv4::ParseError::BadChecksum) => {
                self.rx.drop_l4_checksum += 1;
                return;
            }
            Err(_) => {
                self.rx.drop_malformed += 1;
                return;
            }
        };
        let used = match message {
            icmpv4::Message::EchoRequest { ident, seq, .. } => {
                // The data goes back as it lies in the received frame.
                let start = usize::from(packet.l4_offset) + icmpv4::HEADER_LEN;
                let data = packet.frame.slice(start..usize::from(packet.end));
                let headers = ipv4::HEADER_LEN + icmpv4::HEADER_LEN;
                if headers + data.len() > usize::from(self.capabilities.mtu) {
                    // It came in fragments; the reply would have to go in some.
                    self.rx.drop_echo_too_long += 1;
                    return;
                }
                self.echo_reply(remote, packet.source_mac(), ident, seq, data)
            }
            icmpv4::Message::Unreachable { code: icmpv4::CODE_TOO_BIG, next_hop_mtu, .. } => {
                match self.quoted_flow_v4(&message) {
                    Some((key, seq, len)) => {
                        self.packet_too_big(&key, seq, next_hop_mtu.into(), Some(len))
                    }
                    None => false,
                }
            }
            icmpv4::Message::Unreachable { code, .. } => {
                // RFC 1122 4.2.3.9: protocol and port unreachable are hard errors; all others but
                // those about fragmentation are soft.
                let hard = code == icmpv4::CODE_PORT || code == icmpv4::CODE_PROTOCOL;
                self.flow_unreachable_v4(&message, hard)
            }
            icmpv4::Message::TimeExceeded { .. } => self.flow_unreachable_v4(&message, false),
            _ => false,
        };
        if used {
            self.rx.delivered_icmp += 1;
        } else {
            self.rx.drop_unsolicited += 1;
        }
    }

    fn flow_unreachable_v4(&mut self, message: &icmpv4::Message<'_>, hard: bool) -> bool {
        match self.quoted_flow_v4(message) {
            Some((key, seq, _)) => self.flow_unreachable(&key, seq, hard),
            None => false,
        }
    }

    fn echo_reply(
        &mut self,
        remote: Ipv4Addr,
        mac: [u8; 6],
        ident: u16,
        seq: u16,
        data: millstream_buf::IoBuf,
    ) -> bool {
        if !self.take_icmp_credit() {
            return false;
        }
        let mut header =
            self.ipv4_header(remote, ipv4::Protocol::ICMP, icmpv4::HEADER_LEN, data.len());
        let message = &mut header[34..34 + icmpv4::HEADER_LEN];
        icmpv4::Message::EchoReply { ident, seq, data: &[] }.emit(message);
        // That checksum lacks the data, which is not copied.
        let mut sum = Sum::new();
        sum.add_bytes(&message[..2]);
        sum.add_bytes(&message[4..]);
        sum.add_bytes(&data);
        message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
        let until = self.now;
        self.send_raw(RawFrame {
            via: Via::Station(mac),
            header,
            payload: Some(data),
            offload: TxOffload::default(),
            until,
        });
        true
    }

    /// Tells the sender of a UDP packet that nobody has its port (RFC 1122 section 4.1.3.1).
    pub fn send_port_unreachable(&mut self, packet: &Packet) {
        if packet.is_ipv6() {
            return self.send_port_unreachable_v6(packet);
        }
        let (remote, local) = packet.ipv4_addresses();
        let unicast = local == self.station.ipv4.address
            && !remote.is_unspecified()
            && !remote.is_multicast()
            && !remote.is_broadcast();
        if !unicast || !self.take_icmp_credit() {
            return;
        }
        // RFC 792: the IP header and the first 8 bytes; 28 bytes fit beside our headers.
        let quoted = &packet.ip()[..packet.ip().len().min(28)];
        let message = icmpv4::Message::Unreachable {
            code: icmpv4::CODE_PORT,
            next_hop_mtu: 0,
            original: quoted,
        };
        let len = message.emitted_len();
        let mut header = self.ipv4_header(remote, ipv4::Protocol::ICMP, len, 0);
        message.emit(&mut header[34..]);
        let until = self.now;
        let via = Via::Station(packet.source_mac());
        let offload = TxOffload::default();
        self.send_raw(RawFrame { via, header, payload: None, offload, until });
    }

    /// Starts an IPv4 packet: Ethernet and IP headers, and room for `l4_len` bytes.
    pub fn ipv4_header(
        &self,
        dst: Ipv4Addr,
        protocol: ipv4::Protocol,
        l4_len: usize,
        payload_len: usize,
    ) -> arrayvec::ArrayVec<u8, { millstream_link::HEADER_MAX }> {
        let mut header = self.raw_header(EtherType::IPV4, ipv4::HEADER_LEN + l4_len);
        ipv4::Repr {
            tos: 0,
            ident: 0,
            dont_fragment: true,
            ttl: 64,
            protocol,
            src: self.station.ipv4.address,
            dst,
            payload_len: (l4_len + payload_len) as u16,
        }
        .emit(&mut header[14..]);
        header
    }

    /// Until when a packet sent now may wait for its neighbour.
    pub fn raw_deadline(&self) -> millstream_timer::Instant {
        self.now.plus_nanos(WAIT_NANOS)
    }

    /// Whether one more ICMP message may be sent in this second.
    pub fn take_icmp_credit(&mut self) -> bool {
        let second = self.now.as_micros() / 1_000_000;
        if second != self.icmp_second {
            self.icmp_second = second;
            self.icmp_credit = ICMP_A_SECOND;
        }
        let granted = self.icmp_credit > 0;
        self.icmp_credit = self.icmp_credit.saturating_sub(1);
        granted
    }
}
