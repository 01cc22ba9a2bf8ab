//! Files from a disk to the null card, one shard in one thread, sent in different ways; and the
//! kernel's `sendfile` over loopback beside it. The figures (`make bench`) use this too.

use std::error::Error;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::rc::Rc;

use millstream::buf::{Arena, ArenaConfig};
use millstream::core::{DiskNet, Ipv4Config, Limits, Shard, ShardConfig, TcpStream};
use millstream::disk::{DiskQueue, File, MemDisk, QueueKind, open_queue};
use millstream::timer::TscClock;
use millstream_sim::{NullConfig, NullNic, NullPeers};
use rustix::time::{ClockId, clock_gettime};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Where the files are sent to.
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 2), 80);

/// What a receiver that merges segments acknowledges at a time.
const ACK_BYTES: u32 = 65_160;

/// Largest payload that a card cuts into segments.
pub const TSO_BYTES: u32 = 65_407;

/// Turns in which nothing arrives after which a run is given up.
const IDLE_TURNS_MAX: u64 = 200_000_000;

/// How files are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the disk into the connection, as its window opens.
    Spliced,
    /// The task reads into a buffer and writes from there, which copies.
    ReadSend,
    /// The task reads into a buffer and hands that over.
    ReadSendUncopied,
}

/// What brings the bytes.
#[derive(Clone, Debug)]
pub enum Disk {
    /// Reads complete at once and bring nothing.
    Null,
    /// The kernel's queue, as `serve` has it.
    Kernel(File),
}

/// How a rig is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How files are sent.
    pub way: Way,
    /// What brings the bytes.
    pub disk: Disk,
    /// Bytes of one request; the next one begins when its last byte is acknowledged.
    pub request_bytes: u64,
    /// Connections.
    pub peers: u16,
    /// Largest payload that the card cuts into segments; 0 if it does not.
    pub tso_bytes_max: u32,
}

/// A shard that sends files for ever.
pub struct Rig {
    shard: Shard<NullNic, TscClock>,
    clock: TscClock,
    received: NullPeers,
}

impl Rig {
    /// Opens all connections and begins to send.
    pub fn new(setup: &Setup) -> Result<Self> {
        let nic = NullConfig {
            peers: setup.peers,
            tso_bytes_max: setup.tso_bytes_max,
            ack_bytes: ACK_BYTES,
            ..NullConfig::new(SERVER)
        };
        let (nic, received) = NullNic::new(nic)?;
        let arena = Arena::new(&ArenaConfig::default())?;
        let limits = Limits::default();
        let (disk, file): (Box<dyn DiskQueue>, File) = match &setup.disk {
            Disk::Null => (Box::new(MemDisk::null(limits.disk_depth)?), File::zeroes(1 << 40)),
            Disk::Kernel(file) => {
                (open_queue(QueueKind::Auto, &arena, limits.disk_depth)?, file.clone())
            }
        };
        let ipv4 = Ipv4Config { address: *SERVER.ip(), prefix_len: 24, gateway: None };
        let disk_net = match setup.way {
            Way::ReadSend => DiskNet::ReadSend,
            Way::Spliced | Way::ReadSendUncopied => DiskNet::Spliced,
        };
        let config = ShardConfig { disk_net, ..ShardConfig::new(ipv4) };
        let shard = Shard::new(config, nic, TscClock::new(), arena, disk);
        let stack = shard.stack().clone();
        let listener = stack.listen(SERVER, usize::from(setup.peers) * 2)?;
        let serving = stack.clone();
        let (way, request_bytes) = (setup.way, setup.request_bytes.clamp(1, file.len().max(1)));
        let file = Rc::new(file);
        stack.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await;
                let sending = send_for_ever(stream, Rc::clone(&file), way, request_bytes);
                if serving.spawn(sending).is_err() {
                    return;
                }
            }
        })?;
        let mut rig = Self { shard, clock: TscClock::new(), received };
        // Past the handshakes and slow start.
        rig.run(u64::from(setup.peers) * (4 << 20))?;
        Ok(rig)
    }

    /// Turns the loop until `bytes` more have arrived. Returns how many there were, and the nanoseconds
    /// of the turns that found something to do: what a loop spends in waiting for a disk is others'.
    pub fn run(&mut self, bytes: u64) -> Result<(u64, u64)> {
        let start = self.received.bytes();
        let (mut last, mut idle) = (start, 0);
        let mut busy = 0;
        let mut then = self.clock.raw();
        while self.received.bytes() - start < bytes {
            let turn = self.shard.turn();
            let now = self.clock.raw();
            if turn.work > 0 {
                busy += now - then;
            }
            then = now;
            let received = self.received.bytes();
            idle = if received == last { idle + 1 } else { 0 };
            last = received;
            if idle > IDLE_TURNS_MAX {
                return Err("nothing arrives any more".into());
            }
        }
        Ok((last - start, self.clock.nanos_between(0, busy)))
    }

    /// Bytes that any part of the way has copied since the beginning.
    pub fn copied_bytes(&self) -> u64 {
        let (stack, link) = (self.shard.stack(), self.shard.link_stats());
        let shard = stack.metrics();
        shard.copied_api_bytes
            + shard.copied_scarce_bytes
            + stack.disk_stats().copied_bytes
            + link.tx_copied_bytes
    }

    /// Bytes that have arrived since the beginning.
    pub fn received_bytes(&self) -> u64 {
        self.received.bytes()
    }

    /// Bytes of payload in a frame, on average.
    pub fn bytes_a_frame(&self) -> f64 {
        self.received.bytes() as f64 / self.shard.link_stats().tx_frames.max(1) as f64
    }
}

async fn send_for_ever(stream: TcpStream, file: Rc<File>, way: Way, request_bytes: u64) {
    let mut start = 0;
    loop {
        let end = start + request_bytes;
        let sent = match way {
            Way::Spliced | Way::ReadSend => stream.send_file(&file, start..end).await.is_ok(),
            Way::ReadSendUncopied => send_uncopied(&stream, &file, start, end).await.is_some(),
        };
        if !sent {
            return;
        }
        start = if end + request_bytes <= file.len() { end } else { 0 };
    }
}

async fn send_uncopied(stream: &TcpStream, file: &File, start: u64, end: u64) -> Option<()> {
    let mut at = start;
    while at < end {
        let buf = stream.stack().read_file(file, at, (end - at) as usize).await.ok()?;
        at += buf.len() as u64;
        stream.send_buf(buf).await.ok()?;
    }
    stream.flushed().await.ok()
}

/// Nanoseconds of CPU that this thread has used, in the kernel too.
pub fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The kernel's `sendfile` of a file over loopback, `bytes` in all: bytes, and the nanoseconds of the
/// sending thread's CPU. On loopback that thread does most of the receiver's TCP too.
pub fn sendfile(path: &std::path::Path, request_bytes: u64, bytes: u64) -> Result<(u64, u64)> {
    let file = fs::File::open(path)?;
    let len = file.metadata()?.len();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut buffer = vec![0; 1 << 20];
            while matches!(stream.read(&mut buffer), Ok(1..)) {}
        });
        let socket = std::net::TcpStream::connect(address)?;
        let mut sent = 0;
        let mut start = 0;
        let cpu = thread_cpu_ns();
        while sent < bytes {
            let mut offset = start;
            let end = start + request_bytes.min(len);
            while offset < end {
                let count = (end - offset) as usize;
                match rustix::fs::sendfile(&socket, &file, Some(&mut offset), count)? {
                    0 => return Err("the file became shorter".into()),
                    count => sent += count as u64,
                }
            }
            start = if end + request_bytes <= len { end } else { 0 };
        }
        Ok((sent, thread_cpu_ns() - cpu))
    })
}
