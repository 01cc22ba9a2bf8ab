//! Two ends of a link in one thread, each a shard of its own, with the applications of the figures
//! written as a user of the public API would write them.

use std::cell::Cell;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;

use millstream::buf::{Arena, ArenaConfig, IoBuf};
use millstream::core::{Ipv4Config, Limits, Shard, ShardConfig, Stack, TcpStream};
use millstream::disk::{DiskQueue, MemDisk};
use millstream::link::Link;
use millstream::tcp::Config as TcpConfig;
use millstream::timer::TscClock;

/// The port that the server listens on.
pub const PORT: u16 = 7;
/// The server's address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// Turns without a result after which a figure is given up: nothing hangs.
const TURNS_MAX: u64 = 2_000_000_000;

/// How both ends are set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// TCP's parameters.
    pub tcp: TcpConfig,
    /// Bounds.
    pub limits: Limits,
    /// Buffers of each end.
    pub arena: ArenaConfig,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tcp: TcpConfig { nagle: false, ..TcpConfig::default() },
            limits: Limits::default(),
            arena: ArenaConfig::default(),
        }
    }
}

/// One end.
pub fn shard<L: Link>(
    address: Ipv4Addr,
    link: L,
    settings: &Settings,
) -> Result<Shard<L, TscClock>, Box<dyn Error>> {
    let mut config = ShardConfig::new(Ipv4Config { address, prefix_len: 24, gateway: None });
    config.tcp = settings.tcp.clone();
    config.limits = settings.limits;
    let arena = Arena::new(&settings.arena)?;
    let disk: Box<dyn DiskQueue> = Box::new(MemDisk::null(settings.limits.disk_depth)?);
    Ok(Shard::new(config, link, TscClock::new(), arena, disk))
}

/// Two ends that face each other.
pub struct World<L: Link> {
    /// Opens connections.
    pub client: Shard<L, TscClock>,
    /// Takes them.
    pub server: Shard<L, TscClock>,
    /// What the client's application has done: round trips, or bytes received.
    pub done: Rc<Cell<u64>>,
}

impl<L: Link> World<L> {
    /// Both ends, nothing running on them.
    pub fn new(ends: (L, L), settings: &Settings) -> Result<Self, Box<dyn Error>> {
        Ok(Self {
            client: shard(CLIENT, ends.0, settings)?,
            server: shard(SERVER, ends.1, settings)?,
            done: Rc::default(),
        })
    }

    /// Turns both loops until `done` has grown by `count`. Returns the turns.
    pub fn run(&mut self, count: u64) -> Result<u64, Box<dyn Error>> {
        let goal = self.done.get() + count;
        let mut turns = 0;
        while self.done.get() < goal {
            self.client.turn();
            self.server.turn();
            turns += 1;
            if turns > TURNS_MAX {
                return Err("the two ends stopped talking".into());
            }
        }
        Ok(turns)
    }

    /// As [`Self::run`], in cycles of the time-stamp counter.
    pub fn measure(&mut self, count: u64, clock: &TscClock) -> Result<u64, Box<dyn Error>> {
        let start = clock.raw();
        self.run(count)?;
        Ok(clock.raw() - start)
    }

    /// Frames that both ends have sent: the client, the server.
    pub fn frames(&self) -> (u64, u64) {
        (self.client.link_stats().tx_frames, self.server.link_stats().tx_frames)
    }
}

/// Echoes what comes, one task a connection.
pub async fn echo_server(stack: Stack) {
    let Ok(listener) = stack.listen(SocketAddrV4::new(SERVER, PORT), 1024) else { return };
    loop {
        let (stream, _) = listener.accept().await;
        if stack.spawn(echo(stream)).is_err() {
            return;
        }
    }
}

async fn echo(stream: TcpStream) {
    let mut buffer = [0; 2048];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Sends one byte and waits for it to come back, for ever.
pub async fn ping(stack: Stack, done: Rc<Cell<u64>>) {
    let Ok(stream) = stack.connect(SocketAddrV4::new(SERVER, PORT)).await else { return };
    let mut buffer = [0; 16];
    while stream.write_all(b"x").await.is_ok() {
        match stream.read(&mut buffer).await {
            Ok(1) => done.set(done.get() + 1),
            _ => return,
        }
    }
}

/// As [`ping`], each time on another of `count` connections.
pub async fn ping_one_of(stack: Stack, count: usize, done: Rc<Cell<u64>>) {
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        match stack.connect(SocketAddrV4::new(SERVER, PORT)).await {
            Ok(stream) => streams.push(stream),
            Err(_) => return,
        }
    }
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut buffer = [0; 16];
    loop {
        // xorshift64: random enough that no connection is in cache because it was just used.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let stream = &streams[(random % count as u64) as usize];
        if stream.write_all(b"x").await.is_err() {
            return;
        }
        match stream.read(&mut buffer).await {
            Ok(1) => done.set(done.get() + 1),
            _ => return,
        }
    }
}

/// Takes connections and counts what they bring, without looking at it.
pub async fn sink(stack: Stack, done: Rc<Cell<u64>>) {
    let Ok(listener) = stack.listen(SocketAddrV4::new(SERVER, PORT), 16) else { return };
    loop {
        let (stream, _) = listener.accept().await;
        let mut slices = Vec::with_capacity(64);
        while let Ok(count @ 1..) = stream.read_bufs(&mut slices).await {
            slices.clear();
            done.set(done.get() + count as u64);
        }
    }
}

/// Sends slices of a buffer for ever, without writing to it.
pub async fn source(stack: Stack, slice: IoBuf) {
    let Ok(stream) = stack.connect(SocketAddrV4::new(SERVER, PORT)).await else { return };
    while stream.send_buf(slice.clone()).await.is_ok() {}
}
