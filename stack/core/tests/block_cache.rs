//! The cache in front of the disk queue: one copy of a document in memory whoever reads it, nothing of it
//! touched once its sums are known, and nothing lost when buffers run short.

mod common;

use std::cell::Cell;
use std::rc::Rc;

use common::{CLIENT, SERVER, World, arena, config, pattern, server_at, small_limits};
use millstream_buf::{BLOCK_BYTES, Untouchable};
use millstream_core::{Limits, Shard, Stack};
use millstream_disk::{File, MemDisk};
use millstream_link::handover::{HandoverConfig, HandoverLink, pair};
use millstream_timer::VirtualClock;

fn limits(cache_blocks: usize) -> Limits {
    Limits { cache_blocks, ..small_limits() }
}

/// Sends the ranges of `file` in turn to everybody who connects.
fn serve(stack: &Stack, file: &File, ranges: &'static [(u64, u64)]) {
    let listener = stack.listen(server_at(9), 64).unwrap();
    let (spawner, file) = (stack.clone(), file.clone());
    stack
        .spawn(async move {
            let mut turn = 0;
            loop {
                let (stream, _) = listener.accept().await;
                let (file, (from, to)) = (file.clone(), ranges[turn % ranges.len()]);
                turn += 1;
                spawner
                    .spawn(async move {
                        stream.send_file(&file, from..to).await.unwrap();
                        stream.shutdown();
                    })
                    .unwrap();
            }
        })
        .unwrap();
}

/// Fetches, `pause` after each slice; returns what came.
async fn fetch(stack: Stack, pause: std::time::Duration) -> Vec<u8> {
    let stream = stack.connect(server_at(9)).await.unwrap();
    let mut whole = Vec::new();
    while let Some(slice) = stream.read_buf().await.unwrap() {
        whole.extend_from_slice(&slice);
        if !pause.is_zero() {
            stack.sleep(pause).await;
        }
    }
    whole
}

fn memory_disk() -> Box<MemDisk> {
    Box::new(MemDisk::copying(64).unwrap())
}

#[test]
fn a_document_is_in_memory_once_however_many_slow_clients_read_it() {
    const CLIENTS: usize = 30;
    let data = pattern(160_000, 3);
    let mut world = World::with(limits(16), 128, |_| memory_disk());
    serve(world.server.stack(), &File::in_memory(data.clone()), &[(0, 160_000)]);
    let client = world.client.stack().clone();
    assert!(world.client_runs(fetch(client.clone(), std::time::Duration::ZERO)) == data);
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let pause = std::time::Duration::from_millis(1 + n as u64);
            client.spawn(fetch(client.clone(), pause)).unwrap()
        })
        .collect();
    let most = Rc::new(Cell::new(0));
    let (seen, server) = (Rc::clone(&most), world.server.stack().clone());
    let watch = server.clone();
    server
        .spawn(async move {
            loop {
                let (all, free) = watch.arena_stats().blocks;
                seen.set(seen.get().max(all - free));
                watch.sleep(std::time::Duration::from_millis(1)).await;
            }
        })
        .unwrap();
    for task in &tasks {
        assert!(world.output_of(task) == data);
    }
    let stats = server.cache_stats();
    let blocks = 160_000_usize.div_ceil(BLOCK_BYTES);
    assert_eq!(stats.blocks, blocks, "{stats:?}");
    assert_eq!(server.disk_stats().reads, blocks as u64, "each block was read once");
    assert_eq!(most.get(), blocks, "and nothing else is held for any client");
    assert_eq!(stats.hits, (blocks * CLIENTS) as u64);
}

#[test]
fn ranges_at_any_offset_are_equal() {
    let data = pattern(100_003, 8);
    const RANGES: &[(u64, u64)] = &[
        (0, 100_003),
        (1, 2),
        (16_383, 16_385),
        (40_000, 100_003),
        (100_002, 100_003),
        (777, 70_001),
        (5, 5),
    ];
    let mut world = World::with(limits(16), 64, |_| memory_disk());
    serve(world.server.stack(), &File::in_memory(data.clone()), RANGES);
    let client = world.client.stack().clone();
    for (from, to) in RANGES.iter().chain(RANGES) {
        let got = world.client_runs(fetch(client.clone(), std::time::Duration::ZERO));
        assert!(got == data[*from as usize..*to as usize], "{from}..{to}");
    }
    assert_eq!(world.server.stack().disk_stats().reads, 7, "each block once");
}

#[test]
fn a_full_cache_makes_way_and_nobody_waits_for_ever() {
    // All buffers that there are end up in the cache.
    let mut world = World::with(limits(64), 6, |_| memory_disk());
    let files: Vec<_> = (0..5).map(|n| pattern(90_000, 20 + n)).collect();
    let server = world.server.stack().clone();
    let listener = server.listen(server_at(9), 64).unwrap();
    let (spawner, bodies) = (server.clone(), files.clone());
    server
        .spawn(async move {
            let open: Vec<_> = bodies.into_iter().map(File::in_memory).collect();
            for turn in 0.. {
                let (stream, _) = listener.accept().await;
                let file = open[turn % open.len()].clone();
                spawner
                    .spawn(async move {
                        stream.send_file(&file, 0..file.len()).await.unwrap();
                        stream.shutdown();
                    })
                    .unwrap();
            }
        })
        .unwrap();
    let client = world.client.stack().clone();
    let pause = std::time::Duration::ZERO;
    // Connections are served in the order in which they open.
    let tasks: Vec<_> =
        (0..10).map(|_| client.spawn(fetch(client.clone(), pause)).unwrap()).collect();
    for (turn, task) in tasks.iter().enumerate() {
        assert!(world.output_of(task) == files[turn % files.len()], "{turn}");
    }
    let stats = server.cache_stats();
    assert!(stats.evicted > 0, "{stats:?}");
    assert!(server.arena().audit().freed_twice.is_empty());
}

/// Two shards over a link that does not touch payload; the server computes checksums itself.
struct Untouched {
    clock: VirtualClock,
    client: Shard<HandoverLink, VirtualClock>,
    server: Shard<HandoverLink, VirtualClock>,
}

impl Untouched {
    fn new() -> Self {
        let clock = VirtualClock::new();
        let link = HandoverConfig { checksum_offload: false, ..HandoverConfig::default() };
        let (a, b) = pair(link).unwrap();
        let shard = |address, link| {
            let arena = arena(512, 64);
            Shard::new(config(address, limits(16)), link, clock.clone(), arena, memory_disk())
        };
        Self { client: shard(CLIENT, a), server: shard(SERVER, b), clock }
    }

    fn fetch(&mut self) -> usize {
        let stack = self.client.stack().clone();
        let task = stack.spawn(fetch(stack.clone(), std::time::Duration::ZERO)).unwrap();
        for _ in 0..1_000_000 {
            if let Some(bytes) = task.take() {
                return bytes.len();
            }
            if self.client.turn().work + self.server.turn().work == 0 {
                let next = self.client.next_deadline().min(self.server.next_deadline());
                assert!(next.as_micros() < 3_600_000_000, "nothing will happen any more");
                self.clock.advance_to(next);
            }
        }
        panic!("no end after a million turns");
    }
}

#[test]
fn a_cached_document_is_sent_without_touching_it() {
    const LEN: u64 = 10 * BLOCK_BYTES as u64;
    let mut world = Untouched::new();
    let file = File::in_memory(pattern(LEN as usize, 1));
    serve(world.server.stack(), &file, &[(0, LEN)]);
    let server = world.server.stack().clone();
    // The first brings it in, the second has its sums remembered.
    for _ in 0..2 {
        assert_eq!(world.fetch(), LEN as usize);
    }
    let before = (server.arena().memo_stats(), server.metrics().copied_api_bytes);
    let guards: Vec<_> = (0..10)
        .map(|block| {
            let buf = server.cached_block(&file, block * BLOCK_BYTES as u64).unwrap();
            Untouchable::new(&buf).unwrap()
        })
        .collect();
    assert_eq!(guards.iter().map(Untouchable::len).sum::<usize>(), LEN as usize);
    for _ in 0..3 {
        assert_eq!(world.fetch(), LEN as usize);
    }
    drop(guards);
    let after = server.arena().memo_stats();
    assert_eq!(after.summed_bytes, before.0.summed_bytes);
    assert!(
        after.asked_bytes - before.0.asked_bytes >= 3 * LEN,
        "some payload was summed past the memo"
    );
    assert_eq!(server.metrics().copied_api_bytes, before.1);
}
