//! Throughput, fairness and completion times in virtual time, for tables and figures.

use std::cell::{Cell, RefCell};
use std::net::SocketAddrV4;
use std::rc::Rc;

use millstream_buf::{Arena, ArenaConfig, HugePages, IoBuf};
use millstream_core::{Ipv4Config, Limits, Shard, ShardConfig, Stack};
use millstream_disk::MemDisk;
use millstream_sim::{
    Direction, DirectionConfig, DirectionStats, LinkConfig, Node, SimLink, Wire, pair, step,
};
use millstream_tcp::{Algorithm, Config, TcpStats};
use millstream_timer::{Clock, Instant, VirtualClock};

use crate::world::{CLIENT, PORT, SERVER};

/// Bytes of the slices that are sent: always the same ones, so nothing is copied but by the link.
const SLICE_BYTES: usize = 64 * 1024;
/// Bytes of a full frame on an Ethernet, with what surrounds it there.
const FRAME_BYTES: u64 = 1538;

/// A path with one bottleneck, from the server to the client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Path {
    /// Rate of the bottleneck.
    pub bandwidth_bps: u64,
    /// Round-trip time of the empty path.
    pub rtt_us: u64,
    /// Probability that a frame to the client is lost at random.
    pub loss: f64,
    /// Length of the queue, in bandwidth-delay products (but at least 50 frames).
    pub queue_bdp: f64,
    /// Frames in the queue from which on it marks.
    pub mark_frames: usize,
    /// From which all randomness comes.
    pub seed: u64,
}

impl Path {
    /// Frames that the path holds besides the queue.
    pub fn bdp_frames(&self) -> usize {
        let bits = u128::from(self.bandwidth_bps) * u128::from(self.rtt_us) / 1_000_000;
        (bits / (8 * u128::from(FRAME_BYTES))) as usize
    }

    fn link(&self) -> LinkConfig {
        let delay_nanos = self.rtt_us * 500;
        let queue_frames = ((self.bdp_frames() as f64 * self.queue_bdp) as usize).max(50);
        let back = DirectionConfig {
            overhead_bytes: 24,
            // Hosts are no clocks: what comes at the same moment each round meets the same fate.
            jitter_nanos: (8_000_000_000 * FRAME_BYTES / self.bandwidth_bps).min(1_000_000),
            queue_frames: queue_frames.max(1000),
            ring_frames: 1 << 16,
            ..DirectionConfig::wire(self.bandwidth_bps, delay_nanos)
        };
        let data = DirectionConfig {
            queue_frames,
            loss: self.loss,
            mark_frames: self.mark_frames,
            ..back
        };
        LinkConfig {
            a_to_b: back,
            b_to_a: data,
            mtu: 1500,
            buffers: 2 * (self.bdp_frames() + queue_frames) + 2000,
            checksum_offload: true,
            seed: self.seed,
        }
    }
}

struct Host(Shard<SimLink, VirtualClock>);

impl Node for Host {
    fn turn(&mut self) -> bool {
        self.0.turn().work > 0
    }

    fn next_deadline(&self) -> Instant {
        self.0.next_deadline()
    }
}

/// Two hosts on a path.
struct Pair {
    clock: VirtualClock,
    client: Host,
    server: Host,
    wire: Wire,
}

impl Pair {
    fn new(path: &Path, tcp: &Config, flows: usize) -> Self {
        let clock = VirtualClock::at(Instant::from_micros(1_000_000));
        let (a, b, wire) = pair(&clock, &path.link()).expect("memory for the link");
        let limits = Limits {
            connections: flows + 8,
            channel_packets: 1 << 15,
            connection_packets: 1 << 14,
            slices: 1 << 17,
            tasks: flows + 8,
            sleepers: 8,
            ..Limits::default()
        };
        let host = |address, link| {
            let ipv4 = Ipv4Config { address, prefix_len: 24, gateway: None };
            let mut config = ShardConfig::new(ipv4);
            config.tcp = tcp.clone();
            config.limits = limits;
            config.secret = [7; 48];
            let arena = ArenaConfig { frames: 256, blocks: 16, huge_pages: HugePages::Never };
            let arena = Arena::new(&arena).expect("memory for a host");
            let disk = MemDisk::null(limits.disk_depth).expect("memory for a disk queue");
            Host(Shard::new(config, link, clock.clone(), arena, Box::new(disk)))
        };
        let (client, server) = (host(CLIENT, a), host(SERVER, b));
        Self { client, server, wire, clock }
    }

    /// Runs until a moment, or until `done`.
    fn run(&mut self, until: Instant, done: impl Fn() -> bool) {
        while self.clock.now() < until && !done() {
            let mut nodes: [&mut dyn Node; 3] =
                [&mut self.client, &mut self.server, &mut self.wire];
            step(&self.clock, &mut nodes, until);
        }
    }
}

/// TCP with windows that no path here fills.
fn unbounded(base: &Config) -> Config {
    Config {
        recv_buffer_bytes: 1 << 27,
        send_buffer_bytes: 1 << 27,
        recv_slices_max: u16::MAX,
        reassembly_ranges_max: 4096,
        ..base.clone()
    }
}

/// What came of flows that share a bottleneck.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    /// Bytes that each flow's reader took in the measured time, by flow.
    pub bytes: Vec<u64>,
    /// The measured time.
    pub seconds: f64,
    /// The bottleneck.
    pub queue: DirectionStats,
    /// The sending host's counters.
    pub stats: TcpStats,
}

impl Shared {
    /// Megabits a second of one flow.
    pub fn mbps(&self, flow: usize) -> f64 {
        8e-6 * self.bytes.get(flow).copied().unwrap_or(0) as f64 / self.seconds
    }

    /// Megabits a second of all flows.
    pub fn total_mbps(&self) -> f64 {
        (0..self.bytes.len()).map(|flow| self.mbps(flow)).sum()
    }

    /// Jain's index over the flows' rates.
    pub fn jain(&self) -> f64 {
        let rates: Vec<_> = self.bytes.iter().map(|bytes| *bytes as f64).collect();
        crate::oracle::jain(&rates)
    }
}

/// Lets one download for each controller run over a path, all at once, the first for `warm_up`
/// seconds before the measured time begins; the others join within the first tenth of that.
pub fn shared(path: &Path, controllers: &[Algorithm], warm_up: f64, seconds: f64) -> Shared {
    let tcp = unbounded(&Config::default());
    let mut pair = Pair::new(path, &tcp, controllers.len());
    let counts: Rc<[Cell<u64>]> = controllers.iter().map(|_| Cell::new(0)).collect();
    let server = pair.server.0.stack().clone();
    let chosen: Rc<[Algorithm]> = controllers.into();
    server.spawn(serve(server.clone(), chosen)).expect("a task for the server");
    let client = pair.client.0.stack().clone();
    let stagger_us = (warm_up * 1e5 / controllers.len() as f64) as u64;
    for flow in 0..controllers.len() {
        let task = download(client.clone(), flow, stagger_us * flow as u64, Rc::clone(&counts));
        client.spawn(task).expect("a task for each flow");
    }
    let nanos = |seconds: f64| (seconds * 1e9) as u64;
    let begin = pair.clock.now().plus_nanos(nanos(warm_up));
    pair.run(begin, || false);
    let before: Vec<_> = counts.iter().map(Cell::get).collect();
    pair.run(begin.plus_nanos(nanos(seconds)), || false);
    Shared {
        bytes: counts.iter().zip(before).map(|(count, before)| count.get() - before).collect(),
        seconds,
        queue: pair.wire.stats(Direction::BToA),
        stats: pair.server.0.stack().tcp_stats(),
    }
}

async fn serve(stack: Stack, controllers: Rc<[Algorithm]>) {
    let address = SocketAddrV4::new(SERVER, PORT);
    let listener = stack.listen(address, controllers.len() + 8).expect("the port is free");
    loop {
        let (stream, _) = listener.accept().await;
        let controllers = Rc::clone(&controllers);
        let task = async move {
            let mut number = [0];
            if !matches!(stream.read(&mut number).await, Ok(1)) {
                return;
            }
            if let Some(algorithm) = controllers.get(usize::from(number[0])) {
                stream.set_congestion(*algorithm);
            }
            let slice = IoBuf::from(vec![0x5a; SLICE_BYTES]);
            while stream.send_buf(slice.clone()).await.is_ok() {}
        };
        stack.spawn(task).expect("a task for each flow");
    }
}

async fn download(stack: Stack, flow: usize, start_us: u64, counts: Rc<[Cell<u64>]>) {
    stack.sleep(std::time::Duration::from_micros(start_us)).await;
    let Ok(stream) = stack.connect(SocketAddrV4::new(SERVER, PORT)).await else { return };
    if stream.write_all(&[flow as u8]).await.is_err() {
        return;
    }
    while let Ok(Some(bytes)) = stream.read_buf().await {
        counts[flow].set(counts[flow].get() + bytes.len() as u64);
    }
}

/// Seconds from the SYN to the last byte of a download of `bytes` whose last segment is lost once.
/// `rack`: with RACK and probes for lost tails.
pub fn tail_loss(path: &Path, bytes: usize, rack: bool) -> f64 {
    let tcp = Config { rack, ..unbounded(&Config::default()) };
    let mut pair = Pair::new(path, &tcp, 1);
    let server = pair.server.0.stack().clone();
    let serving = server.clone();
    let task = async move {
        let address = SocketAddrV4::new(SERVER, PORT);
        let listener = serving.listen(address, 4).expect("the port is free");
        let (stream, _) = listener.accept().await;
        let mut request = [0];
        if matches!(stream.read(&mut request).await, Ok(1)) {
            let _ = stream.send_buf(IoBuf::from(vec![0x5a; bytes])).await;
        }
        // The connection stays open: a FIN would be another segment behind the last.
        let _ = stream.read(&mut request).await;
    };
    server.spawn(task).expect("a task for the server");

    // Loses the segment with the last byte, once.
    let lost = Cell::new(false);
    let seen = Cell::new(0);
    pair.wire.set_filter(move |_, direction, frame| {
        let payload = payload_len(frame);
        if direction == Direction::AToB || payload == 0 || lost.get() {
            return true;
        }
        seen.set(seen.get() + payload);
        lost.set(seen.get() >= bytes);
        !lost.get()
    });
    let client = pair.client.0.stack().clone();
    let begin = pair.clock.now();
    let end: Rc<RefCell<Option<Instant>>> = Rc::default();
    let slot = Rc::clone(&end);
    let stack = client.clone();
    let task = async move {
        let Ok(stream) = stack.connect(SocketAddrV4::new(SERVER, PORT)).await else {
            return;
        };
        if stream.write_all(&[1]).await.is_err() {
            return;
        }
        let mut left = bytes;
        while left > 0 {
            match stream.read_buf().await {
                Ok(Some(buf)) => left = left.saturating_sub(buf.len()),
                _ => return,
            }
        }
        *slot.borrow_mut() = Some(stack.now());
    };
    client.spawn(task).expect("a task for the client");
    let watched = Rc::clone(&end);
    pair.run(begin.plus_nanos(100_000_000_000), || watched.borrow().is_some());
    let end = end.borrow().unwrap_or(Instant::FAR_FUTURE);
    end.nanos_since(begin) as f64 / 1e9
}

/// Bytes of TCP payload in a frame of IPv4.
fn payload_len(frame: &[u8]) -> usize {
    let (Some([8, 0]), Some(total), Some(offset)) =
        (frame.get(12..14), frame.get(16..18), frame.get(46))
    else {
        return 0;
    };
    let total = usize::from(u16::from_be_bytes([total[0], total[1]]));
    total.saturating_sub(20 + usize::from(offset >> 4) * 4)
}
