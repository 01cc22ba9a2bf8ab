//! Requests to the file server, in pieces, on several connections, with time passing in between. The
//! input composes them of the words of HTTP, or says their bytes itself. Whatever came, a last
//! request of another client must be served, and nothing outside the root may ever be.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use arbitrary::{Arbitrary, Unstructured};
use millstream_buf::{Arena, ArenaConfig, HugePages};
use millstream_core::{
    ConnectError, Ipv4Config, JoinHandle, Limits, Shard, ShardConfig, TcpStream,
};
use millstream_disk::{QueueKind, Root, open_queue};
use millstream_http::{CacheConfig, FileServer, ServerConfig};
use millstream_link::mem::{MemConfig, MemLink, pair};
use millstream_timer::VirtualClock;

use crate::input::Span;

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 2), 80);
/// Stands in `Cargo.toml`, which lies beside the root and is named by a link in it.
const SECRET: &[u8] = b"millstream-fuzz";
const INDEX: &[u8] = include_bytes!("../site/index.html");
const CLIENTS: usize = 3;
const TURNS_MAX: usize = 2_000_000;

const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "OPTIONS", "get", ""];
const TARGETS: [&str; 12] = [
    "/",
    "/index.html",
    "/words.txt",
    "/sub/a.txt",
    "/sub",
    "/outside",
    "/../Cargo.toml",
    "/%2e%2e/Cargo.toml",
    "/sub/..%2f..%2fCargo.toml",
    "http://h/words.txt?x",
    "*",
    "/none",
];
const FIELDS: [&str; 20] = [
    "Host: h\r\n",
    "Host: h\r\nHost: h\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "Range: bytes=0-0\r\n",
    "Range: bytes=-5\r\n",
    "Range: bytes=5-\r\n",
    "Range: bytes=0-1,3-4\r\n",
    "Range: bytes=99999999999999999999-\r\n",
    "If-Range: \"x\"\r\n",
    "If-None-Match: *\r\n",
    "If-None-Match: \"a\", W/\"b\"\r\n",
    "If-Match: \"a\"\r\n",
    "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
    "If-Unmodified-Since: Sunday, 06-Nov-94 08:49:37 GMT\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Expect: 100-continue\r\n",
    "X: y\r\n z\r\n",
];

#[derive(Arbitrary, Debug)]
enum Op<'a> {
    Request {
        client: u8,
        method: u8,
        target: u8,
        version: u8,
        fields: Vec<u8>,
        cut: Option<u8>,
    },
    /// A GET that any server answers.
    Good(u8, u8),
    Raw(u8, &'a [u8]),
    /// A range with numbers of its own.
    Range(u8, u32, Option<u32>),
    Read(u8),
    Shutdown(u8),
    Drop(u8),
    Wait(Span),
    Drain,
}

enum Client {
    None,
    Connecting(JoinHandle<Result<TcpStream, ConnectError>>),
    Open(TcpStream, Vec<u8>),
}

struct World {
    clock: VirtualClock,
    theirs: Shard<MemLink, VirtualClock>,
    ours: Shard<MemLink, VirtualClock>,
    server: FileServer,
    clients: [Client; CLIENTS],
    got: Vec<u8>,
}

fn shard(last: u8, link: MemLink, clock: &VirtualClock) -> Shard<MemLink, VirtualClock> {
    let memory = ArenaConfig { frames: 256, blocks: 32, huge_pages: HugePages::Never };
    let arena = Arena::new(&memory).expect("memory");
    let disk = open_queue(QueueKind::Pread, &arena, 8).expect("a disk queue");
    let address = Ipv4Addr::new(198, 18, 0, last);
    let ipv4 = Ipv4Config { address, prefix_len: 24, gateway: None };
    let limits = Limits {
        connections: 32,
        channel_packets: 256,
        slices: 2048,
        tasks: 32,
        sleepers: 64,
        ..Limits::default()
    };
    let config = ShardConfig { limits, secret: [last; 48], ..ShardConfig::new(ipv4) };
    Shard::new(config, link, clock.clone(), arena, disk)
}

impl World {
    fn new() -> Self {
        let clock = VirtualClock::new();
        let (a, b) = pair(MemConfig { slots: 1024, ..MemConfig::default() }).expect("memory");
        let (theirs, ours) = (shard(1, a, &clock), shard(2, b, &clock));
        let stack = ours.stack().clone();
        let fills = open_queue(QueueKind::Pread, &stack.arena(), FileServer::FILL_DEPTH);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("site");
        let config = ServerConfig {
            connections: 4,
            head_bytes_max: 1024,
            // The larger file goes from the disk to the wire, the others through the cache.
            cache: CacheConfig {
                entries: 4,
                bytes: 64 << 10,
                file_bytes_max: 2048,
                ..Default::default()
            },
            wall_clock: || SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000),
            ..ServerConfig::default()
        };
        let root = Root::open(&root).expect("the site");
        let server = FileServer::new(&stack, root, fills.expect("a disk queue"), config);
        let listener = stack.listen(SERVER, 8).expect("a free port");
        let serving = server.clone();
        let _ = stack.spawn(async move { serving.serve(listener).await });
        let clients = [const { Client::None }; CLIENTS];
        Self { clock, theirs, ours, server, clients, got: Vec::new() }
    }

    /// Turns both shards until nothing is left to be done at this moment.
    fn turn(&mut self) {
        let mut idle = 0;
        for _ in 0..TURNS_MAX {
            let work = self.theirs.turn().work + self.ours.turn().work;
            if self.ours.stack().disk_stats().in_flight > 0 {
                std::thread::yield_now();
                continue;
            }
            idle = if work == 0 { idle + 1 } else { 0 };
            if idle == 2 {
                return;
            }
        }
        panic!("the shards do not come to rest");
    }

    fn wait(&mut self, us: u64) {
        let until = millstream_timer::Clock::now(&self.clock).plus_micros(us);
        self.turn();
        for _ in 0..200_000 {
            let next = self.theirs.next_deadline().min(self.ours.next_deadline());
            if next > until {
                self.clock.advance_to(until);
                return self.turn();
            }
            self.clock.advance_to(next);
            self.turn();
        }
        panic!("timers without end");
    }

    /// The client of that number with bytes to be sent.
    fn send(&mut self, number: u8, bytes: &[u8]) {
        let number = usize::from(number) % CLIENTS;
        if matches!(self.clients[number], Client::None) {
            let stack = self.theirs.stack().clone();
            let task = async move { stack.connect(SERVER).await };
            if let Ok(handle) = self.theirs.stack().spawn(task) {
                self.clients[number] = Client::Connecting(handle);
                self.turn();
            }
        }
        if let Client::Connecting(handle) = &self.clients[number]
            && let Some(outcome) = handle.take()
        {
            self.clients[number] = match outcome {
                Ok(stream) => Client::Open(stream, Vec::new()),
                Err(_) => Client::None,
            };
        }
        if let Client::Open(stream, waiting) = &mut self.clients[number] {
            waiting.extend_from_slice(bytes);
            waiting.truncate(64 << 10);
            let mut cx = Context::from_waker(Waker::noop());
            if let Poll::Ready(Ok(count)) = stream.poll_write(&mut cx, waiting) {
                waiting.drain(..count);
            }
        }
        self.turn();
    }

    fn read(&mut self, number: u8) {
        if let Client::Open(stream, _) = &self.clients[usize::from(number) % CLIENTS] {
            let mut cx = Context::from_waker(Waker::noop());
            while let Poll::Ready(Ok(Some(bytes))) = stream.poll_read_buf(&mut cx) {
                self.got.extend_from_slice(&bytes);
            }
        }
        self.turn();
    }

    fn apply(&mut self, op: Op<'_>) {
        match op {
            Op::Request { client, method, target, version, fields, cut } => {
                let mut text = format!(
                    "{} {} {}\r\n",
                    METHODS[usize::from(method) % METHODS.len()],
                    TARGETS[usize::from(target) % TARGETS.len()],
                    ["HTTP/1.1", "HTTP/1.0", "HTTP/1.1", "HTTP/2.0", "HTCPCP"]
                        [usize::from(version) % 5],
                );
                for field in fields.iter().take(40) {
                    text.push_str(FIELDS[usize::from(*field) % FIELDS.len()]);
                }
                text.push_str("\r\n");
                let len = text.len() - cut.map_or(0, |cut| usize::from(cut) % text.len());
                self.send(client, &text.as_bytes()[..len]);
            }
            Op::Good(client, target) => {
                let target = TARGETS[usize::from(target) % TARGETS.len()];
                self.send(client, format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes());
            }
            Op::Raw(client, bytes) => self.send(client, bytes),
            Op::Range(client, from, to) => {
                let to = to.map_or(String::new(), |to| to.to_string());
                let text = format!(
                    "GET /words.txt HTTP/1.1\r\nHost: h\r\nRange: bytes={from}-{to}\r\n\r\n"
                );
                self.send(client, text.as_bytes());
            }
            Op::Read(client) => self.read(client),
            Op::Shutdown(client) => {
                if let Client::Open(stream, _) = &self.clients[usize::from(client) % CLIENTS] {
                    stream.shutdown();
                }
                self.turn();
            }
            Op::Drop(client) => {
                self.clients[usize::from(client) % CLIENTS] = Client::None;
                self.turn();
            }
            Op::Wait(span) => self.wait(span.0.min(600_000_000)),
            Op::Drain => self.server.drain(),
        }
    }
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// Runs the script of an input.
pub fn run(input: &[u8]) {
    let mut u = Unstructured::new(input);
    let mut world = World::new();
    let mut drained = false;
    while !u.is_empty() {
        let Ok(op) = u.arbitrary::<Op<'_>>() else { break };
        drained |= matches!(op, Op::Drain);
        world.apply(op);
    }
    for client in 0..CLIENTS as u8 {
        world.read(client);
        world.clients[usize::from(client)] = Client::None;
    }
    // Every wait of the server for a peer has an end.
    world.wait(300_000_000);
    assert_eq!(world.server.connections(), 0, "a connection is served for ever");
    if !contains(input, SECRET) {
        assert!(!contains(&world.got, SECRET), "a file outside the root was served");
    }
    if drained {
        return;
    }
    world.got.clear();
    world.send(0, b"GET /index.html HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    world.wait(1_000_000);
    world.read(0);
    assert!(world.got.starts_with(b"HTTP/1.1 200 OK\r\n"), "the last request was not served");
    assert!(world.got.ends_with(INDEX));
}
