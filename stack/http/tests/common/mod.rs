//! A server and a client, each a whole shard, on an in-memory link in one thread and virtual time.
//! The files are real ones, read by worker threads with `pread`.

#![allow(dead_code)]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use millstream_buf::{Arena, ArenaConfig, HugePages};
use millstream_core::{Ipv4Config, Limits, Shard, ShardConfig, Stack, TcpStream};
use millstream_disk::{QueueKind, Root, open_queue};
use millstream_http::{FileServer, ServerConfig};
use millstream_link::mem::{MemConfig, MemLink, pair};
use millstream_timer::{Clock, Instant, VirtualClock};

pub const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 2), 80);

/// What every server of these tests takes for the time of day.
pub fn wall_clock() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000)
}

pub fn server_config() -> ServerConfig {
    ServerConfig { connections: 50, wall_clock, ..ServerConfig::default() }
}

/// A directory that goes with its handle.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("millstream-http-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

pub struct World {
    pub clock: VirtualClock,
    pub client: Shard<MemLink, VirtualClock>,
    pub shard: Shard<MemLink, VirtualClock>,
    pub server: FileServer,
    pub folder: Folder,
}

impl World {
    /// A server for `folder`, listening.
    pub fn new(folder: Folder, config: ServerConfig) -> Self {
        Self::with_blocks(folder, config, 0)
    }

    /// The same, and blocks of files are kept in the stack's cache.
    pub fn with_blocks(folder: Folder, config: ServerConfig, cache_blocks: usize) -> Self {
        let clock = VirtualClock::new();
        // Room for the frames that several clients hold without reading them.
        let (a, b) = pair(MemConfig { slots: 2048, ..MemConfig::default() }).unwrap();
        let make = |last: u8, link| {
            let memory = ArenaConfig { frames: 512, blocks: 128, huge_pages: HugePages::Never };
            let arena = Arena::new(&memory).unwrap();
            let disk = open_queue(QueueKind::Pread, &arena, 32).unwrap();
            let ipv4 = Ipv4Config {
                address: Ipv4Addr::new(198, 18, 0, last),
                prefix_len: 24,
                gateway: None,
            };
            let limits = Limits {
                connections: 64,
                channel_packets: 512,
                slices: 4096,
                tasks: 64,
                sleepers: 128,
                cache_blocks,
                ..Limits::default()
            };
            let config = ShardConfig { limits, secret: [last; 48], ..ShardConfig::new(ipv4) };
            Shard::new(config, link, clock.clone(), arena, disk)
        };
        let (client, shard) = (make(1, a), make(2, b));
        let stack = shard.stack().clone();
        let fills = open_queue(QueueKind::Pread, &stack.arena(), FileServer::FILL_DEPTH).unwrap();
        let root = Root::open(&folder.0).unwrap();
        let server = FileServer::new(&stack, root, fills, config);
        let listener = stack.listen(SERVER, 64).unwrap();
        let serving = server.clone();
        stack.spawn(async move { serving.serve(listener).await }).unwrap();
        Self { clock, client, shard, server, folder }
    }

    /// Turns both shards until `done`. Time stands still while the disk works, and jumps to the
    /// next timer when nothing else is to be done.
    pub fn run_until(&mut self, mut done: impl FnMut() -> bool) {
        for _ in 0..20_000_000u64 {
            if done() {
                return;
            }
            if self.client.turn().work + self.shard.turn().work > 0 {
                continue;
            }
            if self.shard.stack().disk_stats().in_flight > 0 {
                std::thread::yield_now();
                continue;
            }
            let next = self.client.next_deadline().min(self.shard.next_deadline());
            assert!(next.as_micros() < 86_400_000_000, "nothing will happen any more");
            self.clock.advance_to(next);
        }
        panic!("no end after twenty million turns");
    }

    /// Runs a future on the client's shard to its end.
    pub fn run<T: 'static>(&mut self, task: impl FnOnce(Stack) -> LocalFuture<T>) -> T {
        let handle = self.client.stack().spawn(task(self.client.stack().clone())).unwrap();
        let mut output = None;
        self.run_until(|| {
            output = output.take().or_else(|| handle.take());
            output.is_some()
        });
        output.unwrap()
    }

    /// Lets virtual time pass.
    pub fn pass(&mut self, span: Duration) {
        self.run(|stack| Box::pin(async move { stack.sleep(span).await }));
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Sends `bytes` on a connection of its own and returns all that comes until the server closes.
    pub fn exchange(&mut self, bytes: impl Into<Vec<u8>>) -> Vec<u8> {
        let bytes = bytes.into();
        self.run(move |stack| {
            Box::pin(async move {
                let stream = stack.connect(SERVER).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
                read_to_end(&stream).await
            })
        })
    }

    /// One GET of a path with further lines, on a connection that is closed after it.
    pub fn get(&mut self, path: &str, fields: &str) -> Response {
        self.request("GET", path, fields)
    }

    pub fn request(&mut self, method: &str, path: &str, fields: &str) -> Response {
        let text =
            format!("{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{fields}\r\n");
        let bytes = self.exchange(text);
        let (response, rest) = Response::parse(&bytes, method == "HEAD");
        assert!(rest.is_empty(), "{} bytes follow the response to {method} {path}", rest.len());
        response
    }
}

pub type LocalFuture<T> = std::pin::Pin<Box<dyn Future<Output = T>>>;

/// What comes until the end of the stream, or until it is reset.
pub async fn read_to_end(stream: &TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Ok(Some(bytes)) = stream.read_buf().await {
        all.extend_from_slice(&bytes);
    }
    all
}

/// A response taken apart.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    /// The first response in `bytes`, and what follows it.
    pub fn parse(bytes: &[u8], to_head: bool) -> (Self, &[u8]) {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end =
            end.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(bytes))) + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        let mut response = Self { status, head, body: Vec::new() };
        let no_body = to_head || status == 304;
        let len = if no_body {
            0
        } else {
            response.field("Content-Length").expect("a length").parse().unwrap()
        };
        let rest = &bytes[end..];
        assert!(rest.len() >= len, "{} of {len} bytes of the body: {}", rest.len(), response.head);
        response.body = rest[..len].to_vec();
        (response, &rest[len..])
    }

    /// The value of a field that is there once.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.head.lines().filter_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        });
        let value = values.next();
        assert!(values.next().is_none(), "{name} comes twice");
        value
    }
}
