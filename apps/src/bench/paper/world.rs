//! Two hosts and a link between them, in virtual time.

use std::net::{Ipv4Addr, SocketAddrV4};

use millstream::buf::{Arena, ArenaConfig, HugePages};
use millstream::core::{Ipv4Config, Limits, Shard, ShardConfig, Stack};
use millstream::disk::MemDisk;
use millstream::tcp::Config;
use millstream::timer::{Clock, Instant, VirtualClock};
use millstream_sim::{DirectionConfig, LinkConfig, Node, Rng, SimLink, Wire, pair, step};

use crate::bench::BenchError;
use crate::error::AppError;

const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const SERVER_IP: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// Where the server listens.
pub const SERVER: SocketAddrV4 = SocketAddrV4::new(SERVER_IP, 80);

/// Bytes of an IP packet on an Ethernet, as the paper counts them: what a rate in bits a second is of.
pub const PACKET_BYTES: u64 = 1500;
/// Bytes of payload in it, beside headers and timestamps.
pub const PAYLOAD_BYTES: u64 = 1448;
/// The same packet as a frame.
const FRAME_BYTES: u64 = PACKET_BYTES + 14;

/// The path, and what waits in it.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// Bits of IP packets a second, in both directions.
    pub bits_per_s: u64,
    /// Round-trip time of the empty path.
    pub rtt_us: u64,
    /// Packets that may wait on their way to the client.
    pub queue_packets: usize,
}

impl Path {
    /// Nanoseconds that a full packet takes.
    pub fn packet_nanos(&self) -> f64 {
        8e9 * PACKET_BYTES as f64 / self.bits_per_s as f64
    }

    /// Bytes of payload a second that it carries.
    pub fn payload_per_s(&self) -> u64 {
        (u128::from(self.bits_per_s) * u128::from(PAYLOAD_BYTES) / u128::from(8 * PACKET_BYTES))
            as u64
    }

    /// Packets that are on the way at a time.
    fn volume_packets(&self) -> usize {
        (1000.0 * self.rtt_us as f64 / self.packet_nanos()) as usize
    }
}

/// When a host's loop turns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Turning {
    /// Whenever there is something to do: it polls.
    Always,
    /// At trigger states only, with random intervals of this mean (exponential, a millisecond at most): it is busy
    /// with something else between them.
    Triggered {
        /// Mean interval in nanoseconds.
        mean_nanos: u64,
    },
}

/// The longest interval between trigger states.
const TRIGGER_NANOS_MAX: f64 = 1e6;

struct Host {
    shard: Shard<SimLink, VirtualClock>,
    clock: VirtualClock,
    turning: Turning,
    next: Instant,
    rng: Rng,
}

impl Node for Host {
    fn turn(&mut self) -> bool {
        let Turning::Triggered { mean_nanos } = self.turning else {
            return self.shard.turn().work > 0;
        };
        if self.clock.now() < self.next {
            return false;
        }
        while self.shard.turn().work > 0 {}
        let unit = (1 + self.rng.below(1 << 32)) as f64 / (1u64 << 32) as f64;
        let nanos = (-unit.ln() * mean_nanos as f64).clamp(1.0, TRIGGER_NANOS_MAX) as u64;
        self.next = self.clock.now().plus_nanos(nanos);
        true
    }

    fn next_deadline(&self) -> Instant {
        match self.turning {
            Turning::Always => self.shard.next_deadline(),
            Turning::Triggered { .. } => self.next,
        }
    }
}

/// How a world is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The path.
    pub path: Path,
    /// TCP of the client.
    pub client: Config,
    /// TCP of the server.
    pub server: Config,
    /// When the server's loop turns. The client's always does.
    pub turning: Turning,
    /// Packets that there may be at most: what takes memory.
    pub packets: usize,
}

/// Two hosts.
pub struct World {
    /// Of both hosts.
    pub clock: VirtualClock,
    /// The link.
    pub wire: Wire,
    client: Host,
    server: Host,
}

impl World {
    /// Both hosts, with nothing running on them.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(setup: &Setup) -> Result<Self, BenchError> {
        let Setup { path, client, server, turning, packets } = setup;
        let no_memory = |error: String| {
            BenchError::Stack(AppError::runtime(format!(
                "no memory for {packets} packets in virtual time ({error}); end other programs"
            )))
        };
        let clock = VirtualClock::at(Instant::from_micros(1_000_000));
        let bandwidth_bps = (u128::from(path.bits_per_s) * u128::from(FRAME_BYTES)
            / u128::from(PACKET_BYTES)) as u64;
        let back = DirectionConfig {
            queue_frames: usize::MAX,
            ring_frames: 1 << 20,
            ..DirectionConfig::wire(bandwidth_bps, path.rtt_us * 500)
        };
        let link = LinkConfig {
            a_to_b: back,
            b_to_a: DirectionConfig { queue_frames: path.queue_packets, ..back },
            mtu: PACKET_BYTES as u16,
            // What is on the way, what waits, and acknowledgements.
            buffers: (*packets).min(2 * path.volume_packets() + path.queue_packets.min(1 << 17))
                + 4096,
            checksum_offload: true,
            seed: 1,
        };
        let (a, b, wire) = pair(&clock, &link).map_err(|error| no_memory(error.to_string()))?;
        let limits = Limits {
            connections: 16,
            channel_packets: 1 << 15,
            connection_packets: 1 << 14,
            slices: 2 * packets + 4096,
            tasks: 16,
            sleepers: 16,
            ..Limits::default()
        };
        let host = |address, link, tcp: &Config, turning, seed| -> Result<Host, BenchError> {
            let ipv4 = Ipv4Config { address, prefix_len: 24, gateway: None };
            let mut config = ShardConfig::new(ipv4);
            config.tcp = tcp.clone();
            config.limits = limits;
            config.secret = [7; 48];
            let arena = ArenaConfig { frames: 256, blocks: 16, huge_pages: HugePages::Never };
            let arena = Arena::new(&arena).map_err(|error| no_memory(error.to_string()))?;
            let disk = MemDisk::null(limits.disk_depth);
            let disk = Box::new(disk.map_err(|error| no_memory(error.to_string()))?);
            let shard = Shard::new(config, link, clock.clone(), arena, disk);
            let next = clock.now();
            Ok(Host { shard, clock: clock.clone(), turning, next, rng: Rng::new(seed) })
        };
        Ok(Self {
            client: host(CLIENT, a, client, Turning::Always, 1)?,
            server: host(SERVER_IP, b, server, *turning, 2)?,
            wire,
            clock,
        })
    }

    /// The client's handle.
    pub fn client(&self) -> Stack {
        self.client.shard.stack().clone()
    }

    /// The server's handle.
    pub fn server(&self) -> Stack {
        self.server.shard.stack().clone()
    }

    /// Runs until `done`, for so many seconds of virtual time at most. Returns whether it was done.
    pub fn run(&mut self, seconds: u64, done: impl Fn() -> bool) -> bool {
        let until = self.clock.now().plus_nanos(seconds * 1_000_000_000);
        while !done() {
            let mut nodes: [&mut dyn Node; 3] =
                [&mut self.client, &mut self.server, &mut self.wire];
            if step(&self.clock, &mut nodes, until).is_none() && self.clock.now() >= until {
                return done();
            }
        }
        true
    }
}

/// TCP whose windows no path here fills.
pub fn unbounded(base: Config) -> Config {
    Config {
        recv_buffer_bytes: 1 << 29,
        send_buffer_bytes: 1 << 29,
        recv_slices_max: u16::MAX,
        reassembly_ranges_max: 4096,
        nagle: false,
        ..base
    }
}
