//! A link like a tun device: IP packets in and out, no Ethernet to be seen.
//!
//! The stack speaks Ethernet; this link adds and takes off its header, and answers for every
//! neighbour that the stack asks for.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use millstream_buf::IoBuf;
use millstream_link::{
    Capabilities, Link, LinkStats, RxBurst, RxChecksum, RxFrame, TxError, TxFrame,
};
use millstream_timer::{Clock, Instant, VirtualClock};
use millstream_wire::arp;
use millstream_wire::ethernet::{Address, EtherType, HEADER_LEN, Header};

/// The stack's station.
const STATION: Address = Address([2, 0, 0, 0, 0, 1]);
/// All others.
const PEER: Address = Address([2, 0, 0, 0, 0, 2]);

/// What lies on the wire.
#[derive(Default)]
pub struct Wire {
    inbound: VecDeque<Vec<u8>>,
    outbound: VecDeque<(Instant, Vec<u8>)>,
    /// The queue towards the wire holds nothing: the stack cannot send.
    pub stopped: bool,
}

impl Wire {
    /// Puts an IP packet where the stack will find it.
    pub fn inject(&mut self, packet: &[u8]) {
        let mut frame = vec![0; HEADER_LEN];
        Header::new(STATION, PEER, EtherType::IPV4).emit(&mut frame);
        frame.extend(packet);
        self.inbound.push_back(frame);
    }

    /// The oldest IP packet that the stack has sent, and when.
    pub fn take(&mut self) -> Option<(Instant, Vec<u8>)> {
        self.outbound.pop_front()
    }

    /// Whether something waits for the stack.
    pub fn has_inbound(&self) -> bool {
        !self.inbound.is_empty()
    }

    /// Whether the stack has sent anything that nobody has taken.
    pub fn has_outbound(&self) -> bool {
        !self.outbound.is_empty()
    }
}

/// The stack's end of the wire.
pub struct TunLink {
    capabilities: Capabilities,
    wire: Rc<RefCell<Wire>>,
    clock: VirtualClock,
    stats: LinkStats,
}

impl TunLink {
    /// Makes a link, and the wire behind it.
    pub fn new(mtu: u16, clock: VirtualClock) -> (Self, Rc<RefCell<Wire>>) {
        let capabilities = Capabilities {
            driver: "tun",
            mac: STATION.0,
            mtu,
            tx_slices_max: usize::MAX,
            tx_ipv4_checksum: false,
            tx_tcp_checksum: false,
            tx_udp_checksum: false,
            rx_checksum: false,
            tso_bytes_max: 0,
            copies_payload: true,
        };
        let wire = Rc::new(RefCell::new(Wire::default()));
        let link =
            Self { capabilities, wire: Rc::clone(&wire), clock, stats: LinkStats::default() };
        (link, wire)
    }

    fn answer_arp(&mut self, packet: &[u8]) {
        let Ok(request) = arp::Repr::parse(packet) else { return };
        if request.operation != arp::Operation::Request {
            return;
        }
        let reply = arp::Repr {
            operation: arp::Operation::Reply,
            sender_mac: PEER,
            sender_ip: request.target_ip,
            target_mac: request.sender_mac,
            target_ip: request.sender_ip,
        };
        let mut frame = vec![0; HEADER_LEN + arp::PACKET_LEN];
        Header::new(STATION, PEER, EtherType::ARP).emit(&mut frame);
        reply.emit(&mut frame[HEADER_LEN..]);
        self.wire.borrow_mut().inbound.push_back(frame);
    }
}

impl Link for TunLink {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn rx_burst(&mut self, frames: &mut RxBurst) {
        let mut wire = self.wire.borrow_mut();
        while !frames.is_full() {
            let Some(frame) = wire.inbound.pop_front() else { break };
            self.stats.rx_frames += 1;
            self.stats.rx_bytes += frame.len() as u64;
            frames.push(RxFrame { buf: IoBuf::from(frame), checksum: RxChecksum::Unknown });
        }
    }

    fn tx_room(&mut self) -> usize {
        if self.wire.borrow().stopped { 0 } else { usize::MAX }
    }

    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
        let mut bytes = frame.header.to_vec();
        for slice in frame.payload {
            bytes.extend_from_slice(slice);
        }
        let Ok(header) = Header::parse(&bytes) else { return Err(TxError::TooLong) };
        let packet = header.payload(&bytes);
        self.stats.tx_frames += 1;
        self.stats.tx_bytes += bytes.len() as u64;
        if header.ethertype == EtherType::ARP {
            self.answer_arp(packet);
        } else if !self.wire.borrow().stopped {
            let sent = (self.clock.now(), packet.to_vec());
            self.wire.borrow_mut().outbound.push_back(sent);
        }
        Ok(())
    }

    fn flush(&mut self) {}

    fn stats(&self) -> LinkStats {
        self.stats
    }
}
