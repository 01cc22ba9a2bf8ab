//! A trace of documents over the file server: what it is worth to keep content as aggregates with their
//! sums, beside copying it into socket buffers.
//!
//! The server's shard is the one that is measured. The link hands headers over and never touches payload,
//! as a card with DMA looks to the processor, but leaves checksums to the stack: it is there that sums are
//! worth remembering. Responses thus reach the client as lengths alone; their heads are learnt before,
//! while the link carries everything, and contents are checked then.

use std::cell::Cell;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;

use millstream::buf::DataSemantics;
use millstream::buf::{Arena, ArenaConfig, FRAME_BYTES, HugePages};
use millstream::core::{Ipv4Config, Shard, ShardConfig, Stack, TcpStream};
use millstream::disk::{QueueKind, Root, open_queue};
use millstream::http::{CacheConfig, FileServer, ServerConfig};
use millstream::link::handover::{self, HandoverConfig, HandoverLink};
use millstream::timer::TscClock;
use serde_json::json;

use crate::Measured;
use crate::cleanup::Dir;
use crate::figure::{Figure, Runs, round};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 2), 80);
const DOCUMENTS: usize = 1_000;
/// Mean length, as in the trace of IO-Lite's authors.
const MEAN_BYTES: f64 = 17.0 * 1024.0;
/// No longer than what the server keeps in memory.
const MAX_BYTES: usize = 64 << 10;
/// Half of all documents, which take 28 MiB in whole buffers; the most popular ones.
const CACHE_BYTES: usize = 15 << 20;
const CONNECTIONS: usize = 32;
const RUNS: usize = 15;
const REQUESTS: u64 = 2_000;
const WARM_UP: u64 = 8_000;
/// Documents that are asked for when nothing may be touched: the most popular of more than a frame.
const HOT: usize = 30;
const TURNS_MAX: u64 = 200_000_000;

struct Document {
    request: Vec<u8>,
    len: usize,
    fill: u8,
    /// Bytes of its response's head.
    head: Cell<usize>,
}

/// What client and driver share.
struct Trace {
    documents: Vec<Document>,
    /// Cumulated popularity, by Zipf's law with exponent 1.
    popularity: Vec<f64>,
    random: Cell<u64>,
    /// Only the hot documents are asked for.
    hot: Cell<bool>,
    hot_list: Vec<usize>,
    done: Cell<u64>,
    learnt: Cell<bool>,
    failure: Cell<Option<&'static str>>,
}

fn xorshift(state: &Cell<u64>) -> f64 {
    let mut x = state.get();
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    state.set(x);
    (x >> 11) as f64 / (1_u64 << 53) as f64
}

impl Trace {
    /// Lengths by a log-normal distribution, the same every time; files are written to `root`.
    fn new(root: &std::path::Path) -> Result<Rc<Self>> {
        let random = Cell::new(0x2545_f491_4f6c_dd1d);
        let raw: Vec<f64> = (0..DOCUMENTS)
            .map(|_| {
                let sum: f64 = (0..12).map(|_| xorshift(&random)).sum();
                // Nearly normal, with the spread of web documents.
                (1.2 * (sum - 6.0)).exp()
            })
            .collect();
        let scale = MEAN_BYTES / (raw.iter().sum::<f64>() / DOCUMENTS as f64);
        let mut documents = Vec::new();
        for (number, raw) in raw.iter().enumerate() {
            let len = ((raw * scale * 1.15) as usize).clamp(100, MAX_BYTES);
            let fill = (number * 37 + 11) as u8;
            std::fs::write(root.join(format!("d{number}.bin")), vec![fill; len])?;
            let request = format!("GET /d{number}.bin HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
            documents.push(Document { request, len, fill, head: Cell::new(0) });
        }
        let mut total = 0.0;
        let popularity = (1..=DOCUMENTS)
            .map(|rank| {
                total += 1.0 / rank as f64;
                total
            })
            .collect();
        let large = |number: &usize| documents[*number].len > FRAME_BYTES;
        let hot_list = (0..DOCUMENTS).filter(large).take(HOT).collect();
        Ok(Rc::new(Self {
            documents,
            popularity,
            random,
            hot: Cell::new(false),
            hot_list,
            done: Cell::new(0),
            learnt: Cell::new(false),
            failure: Cell::new(None),
        }))
    }

    fn mean_bytes(&self) -> f64 {
        self.documents.iter().map(|document| document.len as f64).sum::<f64>() / DOCUMENTS as f64
    }

    fn draw(&self) -> &Document {
        let unit = xorshift(&self.random);
        let number = if self.hot.get() {
            self.hot_list[(unit * self.hot_list.len() as f64) as usize]
        } else {
            let at = unit * self.popularity.last().copied().unwrap_or(1.0);
            self.popularity.partition_point(|&total| total < at).min(DOCUMENTS - 1)
        };
        &self.documents[number]
    }

    /// Copies of what is counted, for another world.
    fn again(&self) -> Rc<Self> {
        let copy = |document: &Document| Document {
            request: document.request.clone(),
            head: document.head.clone(),
            ..*document
        };
        Rc::new(Self {
            documents: self.documents.iter().map(copy).collect(),
            popularity: self.popularity.clone(),
            random: self.random.clone(),
            hot: Cell::new(false),
            hot_list: self.hot_list.clone(),
            done: Cell::new(0),
            learnt: Cell::new(false),
            failure: Cell::new(None),
        })
    }
}

struct World {
    client: Shard<HandoverLink, TscClock>,
    server: Shard<HandoverLink, TscClock>,
    files: FileServer,
    trace: Rc<Trace>,
    carries: Rc<Cell<bool>>,
    clock: TscClock,
}

impl World {
    fn new(
        root: &std::path::Path,
        trace: Rc<Trace>,
        semantics: DataSemantics,
        memo: bool,
    ) -> Result<Self> {
        let link =
            HandoverConfig { slots: 4096, checksum_offload: false, ..HandoverConfig::default() };
        let (a, b) = handover::pair(link)?;
        // Requests are always carried.
        a.carries().set(true);
        let carries = b.carries();
        let shard = |last: u8, link: HandoverLink, blocks| -> Result<_> {
            let address = Ipv4Addr::new(198, 18, 0, last);
            let config = ShardConfig::new(Ipv4Config { address, prefix_len: 24, gateway: None });
            let memory = ArenaConfig { frames: 8192, blocks, huge_pages: HugePages::Try };
            let arena = Arena::new(&memory)?;
            let disk = open_queue(QueueKind::Auto, &arena, 64)?;
            Ok(Shard::new(config, link, TscClock::new(), arena, disk))
        };
        let (client, server) = (shard(1, a, 16)?, shard(2, b, 2048)?);
        let stack = server.stack().clone();
        if !memo {
            stack.arena().set_memo(false);
        }
        let fills = open_queue(QueueKind::Pread, &stack.arena(), FileServer::FILL_DEPTH)?;
        let cache = CacheConfig { bytes: CACHE_BYTES, entries: 4096, ..CacheConfig::default() };
        let config = ServerConfig { cache, semantics, ..ServerConfig::default() };
        let files = FileServer::new(&stack, Root::open(root)?, fills, config);
        let listener = stack.listen(SERVER, 64)?;
        let serving = files.clone();
        stack.spawn(async move { serving.serve(listener).await })?;
        carries.set(true);
        client.stack().spawn(learn(client.stack().clone(), Rc::clone(&trace)))?;
        let mut world = Self { client, server, files, trace, carries, clock: TscClock::new() };
        let trace = Rc::clone(&world.trace);
        world.turn_until(|| trace.learnt.get())?;
        world.carries.set(false);
        for _ in 0..CONNECTIONS {
            let stack = world.client.stack().clone();
            stack.spawn(ask_for_ever(stack.clone(), Rc::clone(&world.trace)))?;
        }
        world.run(WARM_UP)?;
        Ok(world)
    }

    /// Turns both loops until `done`; returns cycles of the server's turns that found something to do.
    fn turn_until(&mut self, done: impl Fn() -> bool) -> Result<u64> {
        let mut spent = 0;
        for _ in 0..TURNS_MAX {
            if done() {
                return Ok(spent);
            }
            if let Some(failure) = self.trace.failure.get() {
                return Err(failure.into());
            }
            self.client.turn();
            let start = self.clock.raw();
            if self.server.turn().work > 0 {
                spent += self.clock.raw() - start;
            }
        }
        Err("client and server stopped talking".into())
    }

    /// Nanoseconds of the server's processor for `count` requests.
    fn run(&mut self, count: u64) -> Result<f64> {
        let trace = Rc::clone(&self.trace);
        let goal = trace.done.get() + count;
        let spent = self.turn_until(|| trace.done.get() >= goal)?;
        Ok(self.clock.nanos_between(0, spent) as f64)
    }

    /// Payload bytes that the server's processor copied or summed, as far as is counted: all of those but
    /// sums that are not remembered.
    fn touched(&self) -> u64 {
        let stack = self.server.stack();
        stack.metrics().copied_api_bytes
            + self.server.link_stats().tx_copied_bytes
            + stack.arena().memo_stats().summed_bytes
    }
}

/// Fetches every document three times, while the link carries everything: the cache learns what is wanted,
/// the client how long the heads are.
async fn learn(stack: Stack, trace: Rc<Trace>) {
    let Ok(stream) = stack.connect(SERVER).await else {
        return trace.failure.set(Some("the server cannot be reached"));
    };
    for _ in 0..3 {
        for document in &trace.documents {
            if learn_one(&stream, document).await.is_none() {
                return trace.failure.set(Some("a document came back wrong"));
            }
        }
    }
    trace.learnt.set(true);
}

async fn learn_one(stream: &TcpStream, document: &Document) -> Option<()> {
    stream.write_all(&document.request).await.ok()?;
    let mut bytes = Vec::new();
    loop {
        bytes.extend_from_slice(&stream.read_buf().await.ok()??);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = end + 4;
        if bytes.len() < head + document.len {
            continue;
        }
        document.head.set(head);
        let right = bytes.starts_with(b"HTTP/1.1 200")
            && bytes.len() == head + document.len
            && bytes[head..].iter().all(|&byte| byte == document.fill);
        return right.then_some(());
    }
}

/// Asks for documents as the trace draws them, one after the other.
async fn ask_for_ever(stack: Stack, trace: Rc<Trace>) {
    let Ok(stream) = stack.connect(SERVER).await else {
        return trace.failure.set(Some("the server takes no more connections"));
    };
    loop {
        let document = trace.draw();
        if stream.write_all(&document.request).await.is_err() {
            return trace.failure.set(Some("a connection broke"));
        }
        let mut left = document.head.get() + document.len;
        while left > 0 {
            match stream.read_buf().await {
                Ok(Some(slice)) if slice.len() <= left => left -= slice.len(),
                _ => return trace.failure.set(Some("a response had another length")),
            }
        }
        trace.done.set(trace.done.get() + 1);
    }
}

/// All `cache.` figures.
pub fn trace() -> Measured {
    let dir = Dir::new()?;
    let first = Trace::new(dir.path())?;
    let mean = first.mean_bytes();
    let (copying, plain, memo) = (first.again(), first.again(), first);
    let mut copying = World::new(dir.path(), copying, DataSemantics::Copy, false)?;
    let mut plain = World::new(dir.path(), plain, DataSemantics::EmulatedCopy, false)?;
    let mut memo = World::new(dir.path(), memo, DataSemantics::EmulatedCopy, true)?;
    let mut rates: [Runs; 3] = Default::default();
    for _ in 0..RUNS {
        for (runs, world) in rates.iter_mut().zip([&mut copying, &mut plain, &mut memo]) {
            let nanos = world.run(REQUESTS)?;
            runs.0.push(REQUESTS as f64 * 1e9 / nanos);
        }
    }
    let [copying_rate, plain_rate, memo_rate] = rates;
    let hits = |world: &World| {
        let stats = world.files.stats();
        round(stats.cache_hits as f64 / stats.requests.max(1) as f64)
    };
    let how = "1,000 documents by Zipf's law, half of them in the cache, 32 connections, HTTP/1.1 \
        file server over a link that looks as a card with DMA and without checksum offload; processor \
        time of the server's shard alone; runs of all three in turn";
    let conditions = |figure: Figure| {
        figure
            .with("mean_document_bytes", json!(mean.round()))
            .with("cache_hit_share", json!(hits(&memo)))
            .with("unit_of_ours_and_theirs", json!("requests a second of processor time"))
            .note(how)
    };
    let vs_copying = conditions(Figure::ratio("cache.trace.vs_copying", &memo_rate, &copying_rate))
        .with("without_memo", json!(round(plain_rate.median())));
    let vs_no_memo = conditions(Figure::ratio("cache.trace.vs_no_memo", &memo_rate, &plain_rate));

    // What is in memory, is larger than a frame and has been asked for before.
    memo.trace.hot.set(true);
    memo.run(WARM_UP)?;
    let (touched, asked) = (memo.touched(), memo.server.stack().arena().memo_stats().asked_bytes);
    let body = memo.files.stats().body_bytes;
    memo.run(WARM_UP)?;
    let touched = (memo.touched() - touched) as f64 / WARM_UP as f64;
    let asked = memo.server.stack().arena().memo_stats().asked_bytes - asked;
    let body = memo.files.stats().body_bytes - body;
    let touched = Figure::exact("cache.touched_bytes_per_response", touched)
        .with("responses", json!(WARM_UP))
        .with("sums_that_were_remembered_per_body_byte", json!(round(asked as f64 / body as f64)))
        .note(
            "bytes copied for the application or the link, and bytes summed, of cached documents; \
             block_cache.rs::a_cached_document_is_sent_without_touching_it proves it with pages that \
             nobody may touch",
        );
    Ok(vec![vs_copying, vs_no_memo, touched])
}
