//! Two shards in one thread, on an in-memory link, in virtual time.

#![allow(dead_code)]

pub mod host;
pub mod wire;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use millstream_buf::{Arena, ArenaConfig, HugePages};
use millstream_core::{Ipv4Config, Ipv6Config, JoinHandle, Limits, Shard, ShardConfig};
use millstream_disk::{DiskQueue, MemDisk};
use millstream_link::mem::{MemConfig, MemLink, pair};
use millstream_timer::VirtualClock;

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

pub type TestShard = Shard<MemLink, VirtualClock>;

pub struct World {
    pub clock: VirtualClock,
    pub client: TestShard,
    pub server: TestShard,
}

pub fn small_limits() -> Limits {
    Limits {
        connections: 64,
        channel_packets: 512,
        slices: 2048,
        tasks: 64,
        sleepers: 64,
        ..Limits::default()
    }
}

pub fn config(address: Ipv4Addr, limits: Limits) -> ShardConfig {
    let ipv4 = Ipv4Config { address, prefix_len: 24, gateway: None };
    ShardConfig { limits, secret: [address.octets()[3]; 48], ..ShardConfig::new(ipv4) }
}

/// The same with an IPv6 address that ends alike.
pub fn config_v6(address: Ipv4Addr, limits: Limits) -> ShardConfig {
    let last = u16::from(address.octets()[3]);
    let ours = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last);
    let ipv6 = Ipv6Config { addresses: vec![(ours, 64)], ..Ipv6Config::default() };
    ShardConfig { ipv6: Some(ipv6), ..config(address, limits) }
}

pub fn arena(frames: usize, blocks: usize) -> Arena {
    Arena::new(&ArenaConfig { frames, blocks, huge_pages: HugePages::Never }).unwrap()
}

impl World {
    pub fn new() -> Self {
        Self::with(small_limits(), 64, |_| Box::new(MemDisk::copying(64).unwrap()))
    }

    pub fn with(
        limits: Limits,
        blocks: usize,
        disk: impl Fn(&Arena) -> Box<dyn DiskQueue>,
    ) -> Self {
        Self::configured(blocks, disk, |address| config(address, limits))
    }

    /// A world whose shards speak IPv6 too.
    pub fn v6() -> Self {
        let disk = |_: &Arena| -> Box<dyn DiskQueue> { Box::new(MemDisk::copying(64).unwrap()) };
        Self::configured(64, disk, |address| config_v6(address, small_limits()))
    }

    pub fn configured(
        blocks: usize,
        disk: impl Fn(&Arena) -> Box<dyn DiskQueue>,
        config: impl Fn(Ipv4Addr) -> ShardConfig,
    ) -> Self {
        let clock = VirtualClock::new();
        let (a, b) = pair(MemConfig::default()).unwrap();
        let shard = |address, link| {
            let arena = arena(512, blocks);
            let disk = disk(&arena);
            Shard::new(config(address), link, clock.clone(), arena, disk)
        };
        Self { client: shard(CLIENT, a), server: shard(SERVER, b), clock }
    }

    /// Turns both shards until neither finds anything to do; then time jumps to the next timer.
    /// Ends when `done` says so; panics when nothing will ever happen again or an hour has passed.
    pub fn run_until(&mut self, mut done: impl FnMut() -> bool) {
        for _ in 0..10_000_000u64 {
            if done() {
                return;
            }
            let work = self.client.turn().work + self.server.turn().work;
            if work == 0 && !done() {
                let next = self.client.next_deadline().min(self.server.next_deadline());
                assert!(next.as_micros() < 3_600_000_000, "nothing will happen any more");
                self.clock.advance_to(next);
            }
        }
        panic!("no end after ten million turns");
    }

    /// Runs a future of the client to its end.
    pub fn client_runs<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let handle = self.client.stack().spawn(future).unwrap();
        self.output_of(&handle)
    }

    /// Runs both shards until a task has ended.
    pub fn output_of<T>(&mut self, handle: &JoinHandle<T>) -> T {
        let mut output = None;
        self.run_until(|| {
            output = output.take().or_else(|| handle.take());
            output.is_some()
        });
        output.unwrap()
    }

    /// Lets everything come to rest: TIME_WAIT and all.
    pub fn settle(&mut self) {
        let (client, server) = (self.client.stack().clone(), self.server.stack().clone());
        self.run_until(|| client.connections() == 0 && server.connections() == 0);
        for _ in 0..10 {
            self.client.turn();
            self.server.turn();
        }
    }

    /// All buffers are home and every frame has a name. `staged_blocks`: a large write has been made,
    /// so each staging cursor may still hold a block.
    pub fn assert_clean(&self, staged_blocks: bool) {
        for shard in [&self.client, &self.server] {
            let stack = shard.stack();
            assert_eq!(stack.connections(), 0);
            let stats = stack.arena_stats();
            assert!(stats.blocks.0 - stats.blocks.1 <= usize::from(staged_blocks), "{stats:?}");
            assert!(stats.frames.0 - stats.frames.1 <= 1, "only the staging buffer may be out");
            assert_eq!(stack.rx_metrics().unaccounted(), 0, "{:?}", stack.rx_metrics());
        }
    }
}

pub fn server_at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(SERVER, port)
}

pub fn server_v6_at(port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(SERVER_V6, port, 0, 0)
}

pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}
