//! A host whose time is work, a client beside it, and floods.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;

use millstream_core::{Limits, RxPolicy, Scheduling, Shard, ShardConfig, Stack};
use millstream_disk::MemDisk;
use millstream_sim::{
    CpuClock, CpuCosts, Flood, HOST_MAC, Network, Nic, NicConfig, Node, PeerLink,
};
use millstream_timer::{Clock, Instant, VirtualClock};
use millstream_wire::checksum::Sum;
use millstream_wire::ethernet::{self, Address, EtherType};
use millstream_wire::ipv4::{self, Protocol};
use millstream_wire::tcp::{self, Flags, SeqNumber};
use millstream_wire::udp;

use super::{CLIENT, SERVER, arena, config, small_limits};

struct Peer(Shard<PeerLink, VirtualClock>);

impl Node for Peer {
    fn turn(&mut self) -> bool {
        self.0.turn().work > 0
    }

    fn next_deadline(&self) -> Instant {
        self.0.next_deadline()
    }
}

pub struct Host {
    pub cpu: CpuClock,
    pub network: Network,
    pub shard: Shard<Nic, CpuClock>,
    /// The client's handle.
    pub client: Stack,
}

impl Host {
    pub fn new(rx: RxPolicy) -> Self {
        Self::with(rx, Scheduling::default(), Limits { channel_packets: 4096, ..small_limits() })
    }

    pub fn with(rx: RxPolicy, scheduling: Scheduling, limits: Limits) -> Self {
        let cpu = CpuClock::new(CpuCosts::default());
        let (network, nic, mut peers) = Network::new(&cpu, NicConfig::default()).unwrap();
        let disk = || Box::new(MemDisk::copying(8).unwrap());
        let settings = ShardConfig { rx, scheduling, ..config(SERVER, limits) };
        let shard = Shard::new(settings, nic, cpu.clone(), arena(2048, 64), disk());
        let link = peers.pop().unwrap();
        let settings = config(CLIENT, limits);
        let client = Shard::new(settings, link, network.clock(), arena(2048, 64), disk());
        let handle = client.stack().clone();
        network.add(Box::new(Peer(client)));
        Self { cpu, network, shard, client: handle }
    }

    pub fn stack(&self) -> Stack {
        self.shard.stack().clone()
    }

    /// Lets everything happen up to a moment.
    pub fn run_until(&mut self, until: Instant) {
        while self.cpu.now() < until {
            if self.shard.turn().work > 0 {
                continue;
            }
            let next = self.shard.next_deadline().min(self.network.next_event()).min(until);
            self.cpu.idle_until(next.max(self.cpu.now().plus_nanos(100)));
        }
    }

    pub fn run_for(&mut self, micros: u64) {
        self.run_until(self.cpu.now().plus_micros(micros));
    }

    /// Sends datagrams to a port of the host for ever.
    pub fn blast(&self, port: u16, rate: f64) {
        let compose = move |n: u64, out: &mut [u8; 256]| datagram(out, n, port);
        self.flood(rate, compose);
    }

    /// Sends SYNs to a port of the host for ever, from everywhere in 198.19.0.0/16.
    pub fn syns(&self, port: u16, rate: f64) {
        self.flood(rate, move |n, out| syn(out, n, port));
    }

    fn flood(&self, rate: f64, compose: impl FnMut(u64, &mut [u8; 256]) -> usize + 'static) {
        let start = self.cpu.now();
        let compose = Box::new(compose);
        self.network.flood(Flood { start, end: Instant::FAR_FUTURE, rate, compose });
    }
}

fn attacker(n: u64) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xc613_0000 | (n.wrapping_mul(0x9e37_79b9) as u32 & 0xffff))
}

fn headers(out: &mut [u8], src: Ipv4Addr, protocol: Protocol, len: usize) {
    let header =
        ethernet::Header::new(Address(HOST_MAC), Address([2, 0, 0, 0, 0, 0xfe]), EtherType::IPV4);
    header.emit(out);
    let payload_len = len as u16;
    let repr = ipv4::Repr {
        tos: 0,
        ident: 0,
        dont_fragment: true,
        ttl: 64,
        protocol,
        src,
        dst: SERVER,
        payload_len,
    };
    repr.emit(&mut out[14..34]);
}

fn datagram(out: &mut [u8; 256], n: u64, port: u16) -> usize {
    let src = attacker(n);
    headers(out, src, Protocol::UDP, udp::HEADER_LEN + 14);
    let mut sum = Sum::new();
    out[42..56].fill(7);
    sum.add_bytes(&out[42..56]);
    let repr = udp::Repr { src_port: 1024 + n as u16 % 1000, dst_port: port, payload_len: 14 };
    repr.emit(&mut out[34..42], src, SERVER, sum);
    56
}

fn syn(out: &mut [u8; 256], n: u64, port: u16) -> usize {
    let src = attacker(n);
    let l4 = &mut out[34..94];
    let (seq, from) = (SeqNumber(n as u32), 1024 + (n >> 8) as u16);
    let len = tcp::emit(l4, from, port, seq, SeqNumber(0), Flags::SYN, 0xffff, 0, &[]);
    let mut sum = Sum::ipv4_pseudo(src, SERVER, Protocol::TCP.0, len as u16);
    sum.add_bytes(&l4[..len]);
    let sum = sum.finish();
    l4[16..18].copy_from_slice(&sum.to_be_bytes());
    headers(out, src, Protocol::TCP, len);
    34 + len
}

/// Receives datagrams on a port, each of which takes the application `nanos`; counts them.
pub async fn serve_datagrams(
    stack: Stack,
    port: u16,
    cpu: CpuClock,
    nanos: u64,
    done: Rc<Cell<u64>>,
) {
    let socket = stack.udp_bind(port).unwrap();
    loop {
        let (data, from) = socket.recv_from().await;
        cpu.work(nanos);
        done.set(done.get() + 1);
        if data.len() == 1 {
            socket.send_to(&data, from).unwrap();
        }
    }
}

/// Asks a datagram service each `period` microseconds; notes how long it took in microseconds.
pub async fn ask(stack: Stack, port: u16, period: u64, took: Rc<std::cell::RefCell<Vec<u64>>>) {
    let socket = stack.udp_bind(0).unwrap();
    loop {
        let asked = stack.now();
        socket.send_to(b"?", SocketAddrV4::new(SERVER, port)).unwrap();
        let patience = std::time::Duration::from_millis(20);
        stack.timeout(patience, socket.recv_from()).await;
        took.borrow_mut().push(stack.now().micros_since(asked));
        stack.sleep(std::time::Duration::from_micros(period)).await;
    }
}
