//! A network card without a network: it swallows what is sent, and peers that exist in name only
//! acknowledge it. What a sender costs can so be measured, and proved of it, without a receiver.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;

use millstream_buf::{Arena, ArenaConfig, ArenaError, HugePages, IoBuf, SizeClass};
use millstream_link::{
    Capabilities, Link, LinkStats, RxBurst, RxChecksum, RxFrame, TxError, TxFrame,
};
use millstream_wire::ethernet::{self, Address, EtherType};
use millstream_wire::ipv4::{self, Protocol};
use millstream_wire::tcp::{self, Flags, Header, Options, SackBlocks, SeqNumber, Timestamp};

/// The card's address, and that of all peers.
const OURS: [u8; 6] = [2, 0, 0, 0, 0, 2];
const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// First port of the peers.
const PORT_FIRST: u16 = 20_000;

/// Bytes of the headers before TCP's.
const TCP_AT: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN;

/// Frames that are taken between two flushes.
const RING: usize = 256;

/// The window that peers announce: 65,535 shifted by this.
const WINDOW_SCALE: u8 = 10;

/// What a [`NullNic`] is like.
#[derive(Clone, Copy, Debug)]
pub struct NullConfig {
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Largest payload that the card cuts into segments itself; 0 if it does not.
    pub tso_bytes_max: u32,
    /// Whom the peers connect to.
    pub server: SocketAddrV4,
    /// Peers, at most 40,000; each opens one connection.
    pub peers: u16,
    /// Bytes that a peer acknowledges at a time; fewer when nothing more comes. 64 KiB is what
    /// receivers that merge segments (GRO) make of a stream.
    pub ack_bytes: u32,
}

impl NullConfig {
    /// One peer of `server`, packets of 1500 bytes, an acknowledgement for two of them.
    pub fn new(server: SocketAddrV4) -> Self {
        Self { mtu: 1500, tso_bytes_max: 0, server, peers: 1, ack_bytes: 2 * 1448 }
    }
}

struct Peer {
    rcv_nxt: SeqNumber,
    snd_nxt: SeqNumber,
    /// Bytes received and not acknowledged.
    owed: u32,
    /// On the list of those that owe an acknowledgement.
    listed: bool,
    fin: bool,
    /// The last timestamp of the other end, and the first.
    echo: u32,
    first_echo: u32,
}

/// What the peers of a card have received.
#[derive(Clone, Debug, Default)]
pub struct NullPeers(Rc<RefCell<Received>>);

#[derive(Debug, Default)]
struct Received {
    bytes: u64,
    closed: usize,
}

impl NullPeers {
    /// Bytes of all streams, in order.
    pub fn bytes(&self) -> u64 {
        self.0.borrow().bytes
    }

    /// Peers whose connection the other end has closed.
    pub fn closed(&self) -> usize {
        self.0.borrow().closed
    }
}

/// The card. It reads headers and never a payload.
pub struct NullNic {
    capabilities: Capabilities,
    config: NullConfig,
    arena: Arena,
    peers: Vec<Peer>,
    /// Peers that have opened.
    opened: usize,
    owing: VecDeque<u16>,
    inbound: VecDeque<IoBuf>,
    room: usize,
    received: NullPeers,
    stats: LinkStats,
}

impl NullNic {
    /// A card, and a handle on what its peers receive.
    ///
    /// # Errors
    /// [`ArenaError`] if there is no memory for the frames that the peers send.
    pub fn new(config: NullConfig) -> Result<(Self, NullPeers), ArenaError> {
        let frames = ArenaConfig { frames: 2 * RING, blocks: 0, huge_pages: HugePages::Try };
        let received = NullPeers::default();
        let nic = Self {
            capabilities: Capabilities {
                driver: "null",
                mac: OURS,
                mtu: config.mtu,
                tx_slices_max: usize::MAX,
                tx_ipv4_checksum: true,
                tx_tcp_checksum: true,
                tx_udp_checksum: true,
                rx_checksum: true,
                tso_bytes_max: config.tso_bytes_max,
                copies_payload: false,
            },
            config,
            arena: Arena::new(&frames)?,
            peers: Vec::with_capacity(usize::from(config.peers)),
            opened: 0,
            owing: VecDeque::new(),
            inbound: VecDeque::new(),
            room: RING,
            received: received.clone(),
            stats: LinkStats::default(),
        };
        Ok((nic, received))
    }

    /// Composes a segment of a peer; `false` if no buffer is free.
    fn say(&mut self, number: u16, flags: Flags) -> bool {
        let Some(mut buf) = self.arena.alloc(SizeClass::Frame) else { return false };
        let Some(peer) = self.peers.get_mut(usize::from(number)) else { return true };
        // Its clock goes with the sender's.
        let value = peer.echo.wrapping_sub(peer.first_echo).wrapping_add(1);
        let timestamp = Timestamp { value, echo: peer.echo };
        let syn = flags.contains(Flags::SYN);
        let options = if syn {
            let mss = self.config.mtu - (ipv4::HEADER_LEN + tcp::HEADER_LEN) as u16;
            Options::syn(mss, Some(WINDOW_SCALE), true, Some(timestamp))
        } else {
            Options::established(Some(timestamp), &SackBlocks::EMPTY)
        };
        let (from, to) = (PORT_FIRST + number, self.config.server.port());
        let options = options.as_slice();
        let (seq, ack) = (peer.snd_nxt, peer.rcv_nxt);
        let l4 = buf.get_mut(TCP_AT..).unwrap_or_default();
        let len = tcp::emit(l4, from, to, seq, ack, flags, u16::MAX, 0, options);
        let repr = ipv4::Repr {
            tos: 0,
            ident: 0,
            dont_fragment: true,
            ttl: 64,
            protocol: Protocol::TCP,
            src: Ipv4Addr::new(198, 18, 0, 1),
            dst: *self.config.server.ip(),
            payload_len: len as u16,
        };
        repr.emit(buf.get_mut(ethernet::HEADER_LEN..TCP_AT).unwrap_or_default());
        ethernet::Header::new(Address(OURS), Address(THEIRS), EtherType::IPV4).emit(&mut buf);
        if flags.intersects(Flags::SYN | Flags::FIN) {
            peer.snd_nxt += 1;
        }
        peer.owed = 0;
        self.inbound.push_back(buf.freeze(0..TCP_AT + len));
        true
    }

    /// What a peer makes of a segment whose header it was shown.
    fn hear(&mut self, header: &[u8], payload_len: u32) {
        let Some(Ok((header, _))) = header.get(TCP_AT..).map(Header::parse) else { return };
        let number = header.dst_port.wrapping_sub(PORT_FIRST);
        let Some(peer) = self.peers.get_mut(usize::from(number)) else { return };
        if let Some(timestamp) = header.timestamp() {
            peer.echo = timestamp.value;
        }
        if header.flags.contains(Flags::SYN) {
            peer.rcv_nxt = header.seq + 1;
            peer.first_echo = peer.echo;
            peer.owed = self.config.ack_bytes;
        } else if header.seq == peer.rcv_nxt {
            let fin = header.flags.contains(Flags::FIN);
            peer.rcv_nxt = header.seq + (payload_len + u32::from(fin));
            peer.owed += payload_len;
            let mut received = self.received.0.borrow_mut();
            received.bytes += u64::from(payload_len);
            if fin && !peer.fin {
                peer.fin = true;
                received.closed += 1;
                peer.owed = peer.owed.max(self.config.ack_bytes);
            }
        } else if payload_len > 0 {
            // Out of place: say what is wanted.
            peer.owed = peer.owed.max(self.config.ack_bytes);
        }
        if peer.owed > 0 && !peer.listed {
            peer.listed = true;
            self.owing.push_back(number);
        }
    }

    /// Has the peers acknowledge that owe at least `bytes`.
    fn acknowledge(&mut self, bytes: u32) {
        for _ in 0..self.owing.len() {
            let Some(number) = self.owing.pop_front() else { return };
            let Some(peer) = self.peers.get_mut(usize::from(number)) else { continue };
            let (due, fin) = (peer.owed >= bytes, peer.fin);
            let flags = if fin { Flags::ACK | Flags::FIN } else { Flags::ACK };
            if due && self.say(number, flags) {
                if let Some(peer) = self.peers.get_mut(usize::from(number)) {
                    peer.listed = false;
                }
            } else {
                self.owing.push_back(number);
            }
        }
    }

    fn open_more(&mut self) {
        while self.opened < usize::from(self.config.peers) && self.inbound.len() < RING / 2 {
            let start = SeqNumber(1000);
            let nothing = SeqNumber(0);
            if self.peers.len() == self.opened {
                self.peers.push(Peer {
                    rcv_nxt: nothing,
                    snd_nxt: start,
                    owed: 0,
                    listed: false,
                    fin: false,
                    echo: 0,
                    first_echo: 0,
                });
            }
            if !self.say(self.opened as u16, Flags::SYN) {
                return;
            }
            self.opened += 1;
        }
    }
}

impl Link for NullNic {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn rx_burst(&mut self, frames: &mut RxBurst) {
        if self.opened < usize::from(self.config.peers) {
            self.open_more();
        }
        if self.inbound.is_empty() {
            self.acknowledge(1);
        }
        while !frames.is_full() {
            let Some(buf) = self.inbound.pop_front() else { break };
            self.stats.rx_frames += 1;
            self.stats.rx_bytes += buf.len() as u64;
            frames.push(RxFrame { buf, checksum: RxChecksum::Good });
        }
    }

    fn tx_room(&mut self) -> usize {
        self.room
    }

    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
        if self.room == 0 {
            return Err(TxError::Full);
        }
        self.room -= 1;
        self.stats.tx_frames += 1;
        let payload: usize = frame.payload.iter().map(|slice| slice.len()).sum();
        self.stats.tx_bytes += (frame.header.len() + payload) as u64;
        self.hear(frame.header, payload as u32);
        Ok(())
    }

    fn flush(&mut self) {
        self.room = RING;
        self.acknowledge(self.config.ack_bytes);
    }

    fn stats(&self) -> LinkStats {
        self.stats
    }
}
