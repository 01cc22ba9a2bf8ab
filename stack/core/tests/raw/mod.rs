//! A shard, and a peer that speaks TCP by hand.

use std::net::{Ipv4Addr, SocketAddrV4};

use millstream_core::{Shard, ShardConfig};
use millstream_disk::MemDisk;
use millstream_link::mem::{MemConfig, MemLink, pair};
use millstream_link::{Link, RxBurst, TxFrame, TxOffload};
use millstream_timer::{Clock, VirtualClock};
use millstream_wire::checksum::Sum;
use millstream_wire::ethernet::{self, Address, EtherType};
use millstream_wire::ipv4::{self, Protocol};
use millstream_wire::tcp::{self, Flags, Header, SeqNumber};

use crate::common::{SERVER, arena};

/// The frame of a segment to port 80 of the server.
pub fn frame(from: SocketAddrV4, seq: u32, ack: u32, flags: Flags, options: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14 + 20 + 60];
    ethernet::Header::new(
        Address([2, 0, 0, 0, 0, 2]),
        Address([2, 0, 0, 0, 0, 1]),
        EtherType::IPV4,
    )
    .emit(&mut frame);
    let (seq, ack) = (SeqNumber(seq), SeqNumber(ack));
    let l4 = &mut frame[34..];
    let len = tcp::emit(l4, from.port(), 80, seq, ack, flags, 0xffff, 0, options);
    let mut sum = Sum::ipv4_pseudo(*from.ip(), SERVER, Protocol::TCP.0, len as u16);
    sum.add_bytes(&l4[..len]);
    let sum = sum.finish();
    l4[16..18].copy_from_slice(&sum.to_be_bytes());
    let repr = ipv4::Repr {
        tos: 0,
        ident: 0,
        dont_fragment: true,
        ttl: 64,
        protocol: Protocol::TCP,
        src: *from.ip(),
        dst: SERVER,
        payload_len: len as u16,
    };
    repr.emit(&mut frame[14..34]);
    frame.truncate(34 + len);
    frame
}

/// What the shard has sent: numbers and control bits, and the port it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub to_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: Flags,
}

pub struct RawWorld {
    pub clock: VirtualClock,
    pub shard: Shard<MemLink, VirtualClock>,
    link: MemLink,
}

impl RawWorld {
    pub fn new(config: ShardConfig) -> Self {
        let clock = VirtualClock::new();
        let (theirs, ours) = pair(MemConfig::default()).unwrap();
        let disk = Box::new(MemDisk::copying(8).unwrap());
        let shard = Shard::new(config, ours, clock.clone(), arena(64, 8), disk);
        Self { clock, shard, link: theirs }
    }

    pub fn peer(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 1), port)
    }

    /// Sends a segment and returns what the shard says to it.
    pub fn say(
        &mut self,
        from: u16,
        seq: u32,
        ack: u32,
        flags: Flags,
        options: &[u8],
    ) -> Vec<Sent> {
        let bytes = frame(Self::peer(from), seq, ack, flags, options);
        let offload = TxOffload::default();
        self.link.tx(&TxFrame { header: &bytes, payload: &[], offload }).unwrap();
        self.hear()
    }

    /// A segment that the shard will find when it looks next.
    #[allow(dead_code)]
    pub fn put(&mut self, from: u16, seq: u32, ack: u32, flags: Flags, options: &[u8]) {
        let bytes = frame(Self::peer(from), seq, ack, flags, options);
        let offload = TxOffload::default();
        self.link.tx(&TxFrame { header: &bytes, payload: &[], offload }).unwrap();
        self.link.flush();
    }

    /// Lets the shard do what there is to do; returns what it sends.
    pub fn hear(&mut self) -> Vec<Sent> {
        let mut sent = Vec::new();
        while self.shard.turn().work > 0 {
            let mut burst = RxBurst::new();
            self.link.rx_burst(&mut burst);
            for frame in &burst {
                let bytes = &frame.buf[34..];
                let Ok((header, _)) = Header::parse(bytes) else { continue };
                sent.push(Sent {
                    to_port: header.dst_port,
                    seq: header.seq.0,
                    ack: header.ack.0,
                    flags: header.flags,
                });
            }
        }
        sent
    }

    /// Lets time pass, timer by timer.
    pub fn pass(&mut self, seconds: u64) {
        let until = self.clock.now().plus_micros(seconds * 1_000_000);
        while self.shard.next_deadline() <= until {
            self.clock.advance_to(self.shard.next_deadline());
            self.hear();
        }
        self.clock.advance_to(until);
        self.hear();
    }
}
