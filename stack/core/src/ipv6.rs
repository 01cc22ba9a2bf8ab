//! IPv6 beside TCP and UDP: ICMPv6, neighbour discovery, and the headers of what is sent.

use std::net::{IpAddr, Ipv6Addr};

use arrayvec::ArrayVec;
use millstream_buf::IoBuf;
use millstream_link::{HEADER_MAX, TxOffload};
use millstream_wire::ethernet::{self, Address, EtherType};
use millstream_wire::ipv4::Protocol;
use millstream_wire::ipv6::{self, Header};
use millstream_wire::ipv6_extension::{
    PROBLEM_NEXT_HEADER, PROBLEM_OPTION, Upper, WalkError, walk,
};
use millstream_wire::{icmpv6, ndp};

use crate::autoconf::{Action, Host};
use crate::channel::Packet;
use crate::neighbor::Evidence;
use crate::output::{RawFrame, Via};
use crate::state::State;

/// Bytes of an ICMPv6 message that is put together here.
const MESSAGE_MAX: usize = 1500;

/// Where the upper layer starts in a frame of ours.
pub(crate) const L4_OFFSET: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN;

impl State {
    fn host(&self) -> Option<&Host> {
        self.station.ipv6.as_deref()
    }

    /// Takes an IPv6 packet that no socket owns.
    pub fn ipv6_input(&mut self, packet: Packet) {
        let Ok(header) = Header::parse(packet.ip()) else {
            self.rx.drop_malformed += 1;
            return;
        };
        match walk(&header, packet.ip()) {
            Ok(Upper { fragment: Some(fragment), offset, .. }) => {
                self.fragment_v6(&packet, &header, &fragment, usize::from(offset));
            }
            Ok(upper) => match upper.protocol {
                Protocol::TCP => self.stray_segment(&packet),
                Protocol::ICMPV6 => self.icmpv6_input(packet, &header, &upper),
                _ => {
                    self.rx.drop_protocol += 1;
                    self.send_problem(&packet, &header, PROBLEM_NEXT_HEADER, upper.protocol_at);
                }
            },
            Err(WalkError::Problem { code, pointer }) => {
                self.rx.drop_extension += 1;
                self.send_problem(&packet, &header, code, pointer);
            }
            Err(_) => self.rx.drop_malformed += 1,
        }
    }

    fn icmpv6_input(&mut self, packet: Packet, header: &Header, upper: &Upper) {
        let message = match icmpv6::Message::parse(header.src, header.dst, packet.l4()) {
            Ok(message) => message,
            Err(icmpv6::ParseError::BadChecksum) => {
                self.rx.drop_l4_checksum += 1;
                return;
            }
            Err(_) => {
                self.rx.drop_malformed += 1;
                return;
            }
        };
        let used = match message {
            icmpv6::Message::EchoRequest { ident, seq, .. } => {
                // The data goes back as it lies in the received frame.
                let start = usize::from(packet.l4_offset) + icmpv6::HEADER_LEN;
                let data = packet.frame.slice(start..usize::from(packet.end));
                let reply = icmpv6::Message::EchoReply { ident, seq, data: &data };
                if reply.emitted_len() > self.message_max() {
                    // It came in fragments; the reply would have to go in some.
                    self.rx.drop_echo_too_long += 1;
                    return;
                }
                self.answer(&packet, header, &reply, Some(data.clone()))
            }
            icmpv6::Message::Unreachable { code, .. } => {
                // RFC 4443 section 3.1, RFC 1122 4.2.3.9: nobody there, or a wall before it.
                let hard = code == icmpv6::CODE_PORT || code == icmpv6::CODE_PROHIBITED;
                self.flow_unreachable_v6(&message, hard)
            }
            icmpv6::Message::TimeExceeded { .. } => self.flow_unreachable_v6(&message, false),
            // Nobody there speaks TCP; other problems say nothing of the flow.
            icmpv6::Message::ParameterProblem { code, .. } => {
                code == PROBLEM_NEXT_HEADER && self.flow_unreachable_v6(&message, true)
            }
            icmpv6::Message::TooBig { mtu, .. } => self.packet_too_big_v6(&message, mtu),
            icmpv6::Message::Ndp(message) => {
                // RFC 4861 sections 6.1, 7.1 and 8.1; RFC 6980: never in fragments.
                if header.hop_limit != ndp::HOP_LIMIT || upper.fragment_header {
                    self.rx.drop_malformed += 1;
                    return;
                }
                self.ndp_input(&packet, header, &message)
            }
            icmpv6::Message::EchoReply { .. } | icmpv6::Message::Other { .. } => false,
        };
        if used {
            self.rx.delivered_icmp += 1;
        } else {
            self.rx.drop_unsolicited += 1;
        }
    }

    fn flow_unreachable_v6(&mut self, message: &icmpv6::Message<'_>, hard: bool) -> bool {
        match self.quoted_flow_v6(message) {
            Some((key, seq)) => self.flow_unreachable(&key, seq, hard),
            None => false,
        }
    }

    fn packet_too_big_v6(&mut self, message: &icmpv6::Message<'_>, mtu: u32) -> bool {
        match self.quoted_flow_v6(message) {
            Some((key, seq)) => self.packet_too_big(&key, seq, mtu, None),
            None => false,
        }
    }

    // ---- Neighbour discovery ---------------------------------------------------------------

    fn ndp_input(&mut self, packet: &Packet, header: &Header, message: &ndp::Message<'_>) -> bool {
        match *message {
            ndp::Message::NeighborSolicitation { target, source_mac } => {
                self.neighbor_solicited(packet, header, target, source_mac)
            }
            ndp::Message::NeighborAdvertisement {
                solicited,
                override_known,
                target,
                target_mac,
                ..
            } => {
                if header.dst.is_multicast() && solicited {
                    return false;
                }
                if self.host().is_some_and(|host| host.is_tentative(target)) {
                    self.address_is_taken(target);
                    return true;
                }
                let evidence = match (solicited, override_known) {
                    (true, true) => Evidence::Answer,
                    (true, false) => Evidence::WeakAnswer,
                    (false, true) => Evidence::Announced,
                    (false, false) => return false,
                };
                match target_mac {
                    Some(mac) => self.learn_neighbor(target, mac, evidence),
                    // RFC 4861 section 4.4: an answer to a question to one station may leave it out.
                    None if solicited => {
                        self.neighbors.confirm(target.into(), self.now);
                        true
                    }
                    None => false,
                }
            }
            ndp::Message::RouterAdvertisement(ra) => {
                let from = header.src;
                let now = self.now;
                let Some(host) = self.station.ipv6.as_deref_mut() else { return false };
                if !from.is_unicast_link_local() || !host.takes_advertisements() {
                    return false;
                }
                host.on_advertisement(from, &ra, now);
                self.neighbors.set_times(ra.reachable_ms, ra.retransmit_ms);
                let macs = ra.options.iter().find_map(|option| match option {
                    ndp::NdpOption::SourceMac(mac) => Some(mac),
                    _ => None,
                });
                if let Some(mac) = macs {
                    self.learn_neighbor(from, mac, Evidence::AskedUs);
                }
                self.poll_host();
                true
            }
            // Hosts answer no solicitations for routers. A redirect is anybody's word against the
            // router's (RFC 4861 section 11.1): none is followed.
            ndp::Message::RouterSolicitation { .. } | ndp::Message::Redirect { .. } => false,
        }
    }

    fn neighbor_solicited(
        &mut self,
        packet: &Packet,
        header: &Header,
        target: Ipv6Addr,
        source_mac: Option<Address>,
    ) -> bool {
        let Some(host) = self.host() else { return false };
        let probe = header.src.is_unspecified();
        // RFC 4861 section 7.1.1.
        if probe && (source_mac.is_some() || header.dst != ipv6::solicited_node(target)) {
            return false;
        }
        if host.is_tentative(target) {
            if probe && packet.source_mac() != self.station.mac {
                self.address_is_taken(target);
            }
            // Else an ordinary question for an address that is not ours yet: no answer.
            return probe;
        }
        if !host.is_ours(target) {
            return false;
        }
        if let Some(mac) = source_mac {
            self.learn_neighbor(header.src, mac, Evidence::AskedUs);
        }
        let advertisement = ndp::Message::NeighborAdvertisement {
            router: false,
            solicited: !probe,
            override_known: true,
            target,
            target_mac: Some(Address(self.station.mac)),
        };
        let (dst, mac) = if probe {
            (ipv6::ALL_NODES, ipv6::multicast_mac(ipv6::ALL_NODES).0)
        } else {
            (header.src, packet.source_mac())
        };
        self.send_ndp(Via::Station(mac), target, dst, advertisement);
        true
    }

    fn learn_neighbor(&mut self, ip: Ipv6Addr, mac: Address, evidence: Evidence) -> bool {
        let usable = mac.is_unicast() && !ip.is_unspecified() && !ip.is_multicast();
        let learned = usable && self.neighbors.learn(ip.into(), mac.0, evidence, self.now);
        if learned {
            self.rearm_link_timer();
            self.neighbor_changed(ip.into());
        }
        learned
    }

    fn address_is_taken(&mut self, ip: Ipv6Addr) {
        let now = self.now;
        if let Some(host) = self.station.ipv6.as_deref_mut() {
            tracing::warn!("IPv6 address {ip} is in use by another station: it is not taken");
            host.on_duplicate(ip, now);
            self.metrics.duplicate_addresses += 1;
        }
        self.poll_host();
    }

    /// Sends what the host has to say now.
    pub fn poll_host(&mut self) {
        let now = self.now;
        while let Some(action) = self.station.ipv6.as_deref_mut().and_then(|host| host.poll(now)) {
            match action {
                Action::ProbeAddress(target) => {
                    let group = ipv6::solicited_node(target);
                    let via = Via::Station(ipv6::multicast_mac(group).0);
                    let probe = ndp::Message::NeighborSolicitation { target, source_mac: None };
                    self.send_ndp(via, Ipv6Addr::UNSPECIFIED, group, probe);
                }
                Action::SolicitRouters(src) => {
                    let source_mac = src.map(|_| Address(self.station.mac));
                    let via = Via::Station(ipv6::multicast_mac(ipv6::ALL_ROUTERS).0);
                    let src = src.unwrap_or(Ipv6Addr::UNSPECIFIED);
                    let question = ndp::Message::RouterSolicitation { source_mac };
                    self.send_ndp(via, src, ipv6::ALL_ROUTERS, question);
                }
            }
        }
        self.rearm_link_timer();
    }

    /// Asks for a neighbour's address: everybody, or the station that is believed to have it.
    pub fn solicit_neighbor(&mut self, target: Ipv6Addr, station: Option<[u8; 6]>) {
        let now = self.now;
        let Some(src) = self.host().and_then(|host| host.source_for(target, now)) else { return };
        let source_mac = Some(Address(self.station.mac));
        let question = ndp::Message::NeighborSolicitation { target, source_mac };
        let (via, dst) = match station {
            Some(mac) => (mac, target),
            None => {
                let group = ipv6::solicited_node(target);
                (ipv6::multicast_mac(group).0, group)
            }
        };
        self.send_ndp(Via::Station(via), src, dst, question);
    }

    fn send_ndp(&mut self, via: Via, src: Ipv6Addr, dst: Ipv6Addr, message: ndp::Message<'_>) {
        let message = icmpv6::Message::Ndp(message);
        let len = message.emitted_len();
        let mut header = self.ipv6_header(src, dst, Protocol::ICMPV6, len, 0);
        header[ethernet::HEADER_LEN + 7] = ndp::HOP_LIMIT;
        message.emit(src, dst, &mut header[L4_OFFSET..]);
        let (offload, until) = (TxOffload::default(), self.now);
        self.send_raw(RawFrame { via, header, payload: None, offload, until });
    }

    // ---- ICMPv6 out ------------------------------------------------------------------------

    /// Answers a packet with a message whose body is `body`.
    fn answer(
        &mut self,
        packet: &Packet,
        header: &Header,
        message: &icmpv6::Message<'_>,
        body: Option<IoBuf>,
    ) -> bool {
        let now = self.now;
        let dst = header.src;
        // RFC 4443 section 2.2: from the address that was asked, unless that is a group.
        let src = match self.host() {
            Some(host) if header.dst.is_multicast() => host.source_for(dst, now),
            _ => Some(header.dst),
        };
        let Some(src) = src else { return false };
        let mut bytes = [0; MESSAGE_MAX];
        let fits = message.emitted_len() <= self.message_max();
        if dst.is_unspecified() || dst.is_multicast() || !fits || !self.take_icmp_credit() {
            return false;
        }
        // Emitted whole for its checksum; only the header part is sent from here.
        let len = message.emit(src, dst, &mut bytes) - icmpv6::HEADER_LEN;
        let mut header = self.ipv6_header(src, dst, Protocol::ICMPV6, icmpv6::HEADER_LEN, len);
        header[L4_OFFSET..].copy_from_slice(&bytes[..icmpv6::HEADER_LEN]);
        let payload = body.map(|body| body.slice(0..len.min(body.len())));
        let (offload, until) = (TxOffload::default(), self.now);
        let via = Via::Station(packet.source_mac());
        self.send_raw(RawFrame { via, header, payload, offload, until });
        true
    }

    /// Tells the sender of a packet what is wrong with it, if it may be told (RFC 4443 section
    /// 2.4(e)): not of what was sent to a group, but for options that ask for it.
    fn send_problem(&mut self, packet: &Packet, header: &Header, code: u8, pointer: u16) {
        if header.dst.is_multicast() && code != PROBLEM_OPTION {
            return;
        }
        let original = packet.frame.slice(usize::from(packet.ip_offset)..usize::from(packet.end));
        let pointer = u32::from(pointer);
        let message = icmpv6::Message::ParameterProblem { code, pointer, original: &original };
        self.answer(packet, header, &message, Some(original.clone()));
    }

    /// Tells the sender of a UDP packet that nobody has its port.
    pub fn send_port_unreachable_v6(&mut self, packet: &Packet) {
        let Ok(header) = Header::parse(packet.ip()) else { return };
        if header.dst.is_multicast() {
            return;
        }
        let original = packet.frame.slice(usize::from(packet.ip_offset)..usize::from(packet.end));
        let code = icmpv6::CODE_PORT;
        let message = icmpv6::Message::Unreachable { code, original: &original };
        self.answer(packet, &header, &message, Some(original.clone()));
    }

    /// Tells the sender of a first fragment that the others did not come in time.
    pub fn send_reassembly_timeout_v6(
        &mut self,
        src: Ipv6Addr,
        dst: Ipv6Addr,
        station: [u8; 6],
        quote: &[u8],
    ) {
        if dst.is_multicast() || dst.is_unspecified() || !self.take_icmp_credit() {
            return;
        }
        let code = icmpv6::CODE_REASSEMBLY;
        let message = icmpv6::Message::TimeExceeded { code, original: quote };
        let mut header = self.ipv6_header(src, dst, Protocol::ICMPV6, message.emitted_len(), 0);
        message.emit(src, dst, &mut header[L4_OFFSET..]);
        let (via, offload, until) = (Via::Station(station), TxOffload::default(), self.now);
        self.send_raw(RawFrame { via, header, payload: None, offload, until });
    }

    // ---- Headers and routes ----------------------------------------------------------------

    /// Starts an IPv6 packet: Ethernet and IP headers, and room for `l4_len` bytes.
    pub fn ipv6_header(
        &self,
        src: Ipv6Addr,
        dst: Ipv6Addr,
        next_header: Protocol,
        l4_len: usize,
        payload_len: usize,
    ) -> ArrayVec<u8, HEADER_MAX> {
        let mut header = self.raw_header(EtherType::IPV6, ipv6::HEADER_LEN + l4_len);
        Header {
            traffic_class: 0,
            flow_label: 0,
            payload_len: (l4_len + payload_len) as u16,
            next_header,
            hop_limit: self.hop_limit_v6(),
            src,
            dst,
        }
        .emit(&mut header[ethernet::HEADER_LEN..]);
        header
    }

    /// Hops that what we send may make.
    #[inline]
    pub fn hop_limit_v6(&self) -> u8 {
        self.host().map_or(64, |host| host.hop_limit)
    }

    /// Largest IPv6 packet of the link.
    pub fn mtu_v6(&self) -> usize {
        usize::from(self.host().map_or(self.capabilities.mtu, |host| host.mtu))
    }

    /// Bytes of the largest ICMPv6 message that is sent.
    fn message_max(&self) -> usize {
        MESSAGE_MAX.min(self.mtu_v6() - ipv6::HEADER_LEN)
    }

    /// Our address for packets to `destination`.
    pub fn source_v6(&self, destination: Ipv6Addr) -> Option<Ipv6Addr> {
        self.host()?.source_for(destination, self.now)
    }

    /// How a packet to `destination` leaves; `None` if there is no route.
    pub fn via_v6(&self, destination: Ipv6Addr) -> Option<Via> {
        if destination.is_multicast() {
            return Some(Via::Station(ipv6::multicast_mac(destination).0));
        }
        self.next_hop_v6(destination).map(Via::Neighbor)
    }

    /// The neighbour to which a packet for `destination` goes.
    pub fn next_hop_v6(&self, destination: Ipv6Addr) -> Option<IpAddr> {
        self.host()?.next_hop(destination).map(IpAddr::V6)
    }
}
