//! The virtual world: one shard of the stack, a wire, and time that passes when it is told to.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::rc::Rc;

use millstream_buf::{Arena, ArenaConfig, HugePages};
use millstream_core::{Ipv4Config, Limits, Shard, ShardConfig, Stack, SynCookiePolicy};
use millstream_disk::MemDisk;
use millstream_timer::{Clock, Instant, VirtualClock};

use crate::link::{TunLink, Wire};
use crate::sysctl::Sysctls;

/// Turns at one moment after which the stack is taken to be stuck.
const TURNS_MAX: usize = 100_000;

/// How a world begins.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The stack's address.
    pub address: Ipv4Addr,
    /// The link's MTU.
    pub mtu: u16,
    /// Linux's knobs.
    pub sysctls: Sysctls,
}

impl Default for Settings {
    fn default() -> Self {
        Self { address: Ipv4Addr::new(198, 18, 0, 1), mtu: 1500, sysctls: Sysctls::default() }
    }
}

/// The stack, its wire and its clock.
pub struct World {
    shard: Shard<TunLink, VirtualClock>,
    wire: Rc<RefCell<Wire>>,
    clock: VirtualClock,
    /// Its knobs now.
    pub sysctls: Sysctls,
}

impl World {
    /// A world at the beginning of its time.
    ///
    /// # Panics
    /// There is no memory for the arena.
    pub fn new(settings: &Settings) -> Self {
        // Not at zero, so that what is compared with "long ago" can be.
        let clock = VirtualClock::at(Instant::from_micros(1_000_000_000));
        let (link, wire) = TunLink::new(settings.mtu, clock.clone());
        let arena = ArenaConfig { frames: 512, blocks: 64, huge_pages: HugePages::Never };
        let arena = Arena::new(&arena).expect("8 MiB of memory");
        let disk = MemDisk::copying(4).expect("a disk in memory");
        // All addresses are neighbours: the wire answers for them.
        let ipv4 = Ipv4Config { address: settings.address, prefix_len: 0, gateway: None };
        let limits = Limits {
            connections: 64,
            channel_packets: 1024,
            connection_packets: 256,
            socket_packets: 256,
            slices: 16 * 1024,
            tasks: 4,
            sleepers: 4,
            splice_buffers: 1,
            disk_depth: 1,
            cache_blocks: 0,
            time_wait: 64,
            ..Limits::default()
        };
        let config = ShardConfig {
            limits,
            secret: [7; 48],
            tcp: settings.sysctls.tcp_config(),
            syn_cookies: match settings.sysctls.number("tcp_syncookies", 0) {
                0 => SynCookiePolicy::Off,
                1 => SynCookiePolicy::Auto,
                _ => SynCookiePolicy::Always,
            },
            ..ShardConfig::new(ipv4)
        };
        let shard = Shard::new(config, link, clock.clone(), arena, Box::new(disk));
        Self { shard, wire, clock, sysctls: settings.sysctls.clone() }
    }

    /// The application's handle on the stack.
    pub fn stack(&self) -> &Stack {
        self.shard.stack()
    }

    /// The moment.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Lets the stack do all there is to do at this moment.
    ///
    /// # Panics
    /// There is no end to it.
    pub fn settle(&mut self) {
        let mut idle = 0;
        for _ in 0..TURNS_MAX {
            if self.shard.turn().work > 0 || self.wire.borrow().has_inbound() {
                idle = 0;
                continue;
            }
            // What a turn found to ask a neighbour, the next one asks.
            idle += 1;
            if idle == 2 {
                return;
            }
        }
        panic!("the stack does not come to rest at {} ns", self.now().as_nanos());
    }

    /// When the stack wants to be woken.
    pub fn next_deadline(&self) -> Instant {
        self.shard.next_deadline()
    }

    /// Lets time pass up to the next timer, but not beyond `until`. Returns whether time is left.
    pub fn step(&mut self, until: Instant) -> bool {
        self.settle();
        let next = self.next_deadline().max(self.now().plus_nanos(1)).min(until);
        if next > self.now() {
            self.clock.advance_to(next);
        }
        self.settle();
        self.now() < until
    }

    /// Puts an IP packet on the wire towards the stack, and lets the stack deal with it.
    pub fn inject(&mut self, packet: &[u8]) {
        self.wire.borrow_mut().inject(packet);
        self.settle();
    }

    /// The oldest packet that the stack has sent.
    pub fn take_packet(&mut self) -> Option<(Instant, Vec<u8>)> {
        self.wire.borrow_mut().take()
    }

    /// Whether the stack has sent anything that was not taken.
    pub fn has_packet(&self) -> bool {
        self.wire.borrow().has_outbound()
    }

    /// Closes the device's queue, or opens it again.
    pub fn stop_wire(&mut self, stopped: bool) {
        self.wire.borrow_mut().stopped = stopped;
        self.settle();
    }
}
