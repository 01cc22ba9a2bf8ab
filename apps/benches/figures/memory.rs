//! Figures over the in-memory link: both ends in one thread.

use std::error::Error;
use std::hint::black_box;
use std::net::SocketAddrV4;
use std::rc::Rc;

use millstream::buf::{ArenaConfig, SizeClass};
use millstream::core::{Limits, Stack};
use millstream::disk::File;
use millstream::link::mem::{self, MemConfig, MemLink};
use millstream::tcp::Config as TcpConfig;
use millstream::timer::TscClock;
use serde_json::json;
use stats_alloc::Region;

use crate::figure::{Figure, Runs, round};
use crate::smol::{Setup, SmolWorld};
use crate::world::{self, PORT, SERVER, Settings, World};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Interleaved runs, each shorter than a slice of the scheduler, so that most of them pass without
/// an interruption however busy the machine is.
const RUNS: usize = 301;
const ROUND_TRIPS: u64 = 2_000;
/// Before the first run.
const WARM_UP: u64 = 20_000;

/// A world in which one connection ping-pongs already.
pub fn pingpong_world() -> Result<World<MemLink>> {
    let world = World::new(mem::pair(MemConfig::default())?, &Settings::default())?;
    let (client, server) = (world.client.stack().clone(), world.server.stack().clone());
    server.spawn(world::echo_server(server.clone()))?;
    client.spawn(world::ping(client.clone(), Rc::clone(&world.done)))?;
    Ok(world)
}

const SETUP: Setup = Setup { timestamps: true, checksums: true, buffer_bytes: 64 * 1024 };

/// `pingpong.mem.cycles`, `pingpong.mem.vs_smoltcp`, and allocations a round trip.
pub fn pingpong() -> Result<Vec<Figure>> {
    let clock = TscClock::new();
    let mut ours = pingpong_world()?;
    let mut theirs = SmolWorld::new(SETUP)?;
    ours.run(WARM_UP)?;
    theirs.ping(WARM_UP);
    let (frames, their_frames) = (total(ours.frames()), total(theirs.frames()));
    let mut cycles = Runs(Vec::with_capacity(RUNS));
    let mut their_cycles = Runs(Vec::with_capacity(RUNS));
    let region = Region::new(crate::ALLOCATOR);
    for _ in 0..RUNS {
        let spent = ours.measure(ROUND_TRIPS, &clock)?;
        cycles.0.push(spent as f64 / (2 * ROUND_TRIPS) as f64);
        let spent = theirs.ping(ROUND_TRIPS);
        their_cycles.0.push(spent as f64 / (2 * ROUND_TRIPS) as f64);
    }
    let allocations = region.change().allocations as f64;
    let trips = (RUNS as u64 * ROUND_TRIPS) as f64;
    let frames = (total(ours.frames()) - frames) as f64 / trips;
    let their_frames = (total(theirs.frames()) - their_frames) as f64 / trips;
    let how = "1-byte request and response, both ends in one thread, their total halved; Ethernet, \
        timestamps on, checksums in software, Nagle off; 256 x 2 KiB ring a direction, one copy \
        into it, one clock reading a poll; async tasks with read and write";
    let figure = Figure::new("pingpong.mem.cycles", &cycles)
        .against(their_cycles.median())
        .with("frames_per_round_trip", json!(round(frames)))
        .with("baseline_is", json!("smoltcp 0.14"))
        .note(how);
    let versus = Figure::ratio("pingpong.mem.vs_smoltcp", &cycles, &their_cycles)
        .with("frames_per_round_trip", json!(round(frames)))
        .with("their_frames_per_round_trip", json!(round(their_frames)))
        .with("their_timestamps", json!(theirs.timestamps()))
        .with("their_loop", json!("poll_ingress_single until none, application, poll_egress once"))
        .note(how);
    let allocated = Figure::exact("control.pingpong.mem.allocations", allocations / trips)
        .note("calls of the global allocator in the runs of pingpong.mem.cycles, both stacks");
    Ok(vec![figure, versus, allocated])
}

fn total(frames: (u64, u64)) -> u64 {
    frames.0 + frames.1
}

const MANY: usize = 10_000;

/// A world in which one of 10,000 connections at a time ping-pongs.
pub fn many_world() -> Result<World<MemLink>> {
    let settings = Settings {
        limits: Limits { connections: 11_000, tasks: 11_000, ..Limits::default() },
        ..Settings::default()
    };
    let mut world = World::new(mem::pair(MemConfig::default())?, &settings)?;
    let (client, server) = (world.client.stack().clone(), world.server.stack().clone());
    server.spawn(world::echo_server(server.clone()))?;
    client.spawn(world::ping_one_of(client.clone(), MANY, Rc::clone(&world.done)))?;
    world.run(1)?;
    if server.connections() != MANY {
        return Err(format!("{} connections instead of 10,000", server.connections()).into());
    }
    Ok(world)
}

/// `pingpong.mem.cycles.10k`.
pub fn many() -> Result<Vec<Figure>> {
    let clock = TscClock::new();
    let mut world = many_world()?;
    // Each connection several times.
    world.run(5 * WARM_UP)?;
    let frames = total(world.frames());
    let mut cycles = Runs::default();
    for _ in 0..RUNS {
        let spent = world.measure(ROUND_TRIPS, &clock)?;
        cycles.0.push(spent as f64 / (2 * ROUND_TRIPS) as f64);
    }
    let trips = RUNS as u64 * ROUND_TRIPS;
    let frames = (total(world.frames()) - frames) as f64 / trips as f64;
    let figure = Figure::new("pingpong.mem.cycles.10k", &cycles)
        .with("frames_per_round_trip", json!(round(frames)))
        .note(
            "as pingpong.mem.cycles with 10,000 established connections, the one that is used \
             chosen at random each time; a task a connection at the server",
        );
    Ok(vec![figure])
}

const SEGMENT: u64 = 1460;
const WINDOW: u32 = 64 * 1024 - 1;

/// A world in which one connection carries bytes one way.
pub fn bulk_world() -> Result<World<MemLink>> {
    let tcp = TcpConfig {
        timestamps: false,
        nagle: false,
        recv_buffer_bytes: WINDOW,
        send_buffer_bytes: WINDOW,
        ..TcpConfig::default()
    };
    let link = MemConfig { checksum_offload: true, ..MemConfig::default() };
    let world = World::new(mem::pair(link)?, &Settings { tcp, ..Settings::default() })?;
    let (client, server) = (world.client.stack().clone(), world.server.stack().clone());
    server.spawn(world::sink(server.clone(), Rc::clone(&world.done)))?;
    let block = client.arena().alloc(SizeClass::Block).ok_or("no buffer")?;
    client.spawn(world::source(client.clone(), block.freeze(0..11 * SEGMENT as usize)))?;
    Ok(world)
}

/// `bulk.mem.cycles_per_segment`, `bulk.mem.vs_smoltcp`.
pub fn bulk() -> Result<Vec<Figure>> {
    const BYTES: u64 = 1_000 * SEGMENT;
    let clock = TscClock::new();
    let mut ours = bulk_world()?;
    let setup = Setup { timestamps: false, checksums: false, buffer_bytes: WINDOW as usize };
    let mut theirs = SmolWorld::new(setup)?;
    ours.run(WARM_UP * SEGMENT)?;
    theirs.bulk(WARM_UP * SEGMENT);

    let (before, their_before) = (ours.frames(), theirs.frames());
    let received = ours.done.get();
    let (mut cycles, mut their_cycles) = (Runs::default(), Runs::default());
    for _ in 0..RUNS {
        let per_segment = |spent: u64, bytes: u64| (spent * SEGMENT) as f64 / bytes as f64;
        let start = ours.done.get();
        let spent = ours.measure(BYTES, &clock)?;
        cycles.0.push(per_segment(spent, ours.done.get() - start));
        let (spent, bytes) = theirs.bulk(BYTES);
        their_cycles.0.push(per_segment(spent, bytes));
    }
    let difference =
        |now: (u64, u64), then: (u64, u64)| ((now.0 - then.0) as f64, (now.1 - then.1) as f64);
    let (data, acks) = difference(ours.frames(), before);
    let (their_data, their_acks) = difference(theirs.frames(), their_before);
    let per_frame = (ours.done.get() - received) as f64 / data;
    let how = "1460-byte segments one way, both ends in one thread; no timestamps, checksums off \
        for both; socket buffers of 64 KiB for both; the applications do not touch the bytes: \
        send_buf and read_bufs here, send and recv with closures there";
    let figure = Figure::new("bulk.mem.cycles_per_segment", &cycles)
        .against(their_cycles.median())
        .with("acks_per_segment", json!(round(acks / data)))
        .with("bytes_per_segment", json!(round(per_frame)))
        .with("baseline_is", json!("smoltcp 0.14"))
        .note(how);
    let versus = Figure::ratio("bulk.mem.vs_smoltcp", &cycles, &their_cycles)
        .with("acks_per_segment", json!(round(acks / data)))
        .with("their_acks_per_segment", json!(round(their_acks / their_data)))
        .note(how);
    Ok(vec![figure, versus])
}

/// Sends a file for ever.
async fn send_file_for_ever(stack: Stack, file: File) {
    let Ok(stream) = stack.connect(SocketAddrV4::new(SERVER, PORT)).await else { return };
    while stream.send_file(&file, 0..file.len()).await.is_ok() {}
}

/// `bulk.mem.gbps`, `bulk.copied_per_byte`.
pub fn file() -> Result<Vec<Figure>> {
    const BYTES: u64 = 4 << 20;
    const RUNS: usize = 101;
    let link = MemConfig { checksum_offload: true, ..MemConfig::default() };
    let settings = Settings {
        arena: ArenaConfig { frames: 4096, blocks: 256, ..ArenaConfig::default() },
        ..Settings::default()
    };
    let clock = TscClock::new();
    let mut world = World::new(mem::pair(link)?, &settings)?;
    let (client, server) = (world.client.stack().clone(), world.server.stack().clone());
    server.spawn(world::sink(server.clone(), Rc::clone(&world.done)))?;
    client.spawn(send_file_for_ever(client.clone(), File::zeroes(1 << 30)))?;
    world.run(16 * BYTES)?;

    let copied = |stack: &Stack| stack.metrics().copied_api_bytes + stack.disk_stats().copied_bytes;
    let (frames, sent, copied_before, link_copied) = (
        world.frames(),
        world.done.get(),
        copied(&client),
        world.client.link_stats().tx_copied_bytes,
    );
    let mut gbps = Runs::default();
    for _ in 0..RUNS {
        let start = clock.raw();
        let before = world.done.get();
        world.run(BYTES)?;
        let nanos = clock.nanos_between(start, clock.raw()) as f64;
        gbps.0.push((world.done.get() - before) as f64 * 8.0 / nanos);
    }
    let sent = (world.done.get() - sent) as f64;
    let copied = (copied(&client) - copied_before) as f64 / sent;
    let medium = (world.client.link_stats().tx_copied_bytes - link_copied) as f64 / sent;
    let (data, acks) = (world.frames().0 - frames.0, world.frames().1 - frames.1);
    let how = "a file in the null disk (reads complete at once and bring nothing), send_file, TCP \
        with timestamps, in-memory link whose \"NIC\" does the checksums, read_bufs; both ends in \
        one thread";
    let figure = Figure::new("bulk.mem.gbps", &gbps)
        .with("acks_per_segment", json!(round(acks as f64 / data as f64)))
        .with("bytes_per_segment", json!(round(sent / data as f64)))
        .note(how);
    let copied = Figure::exact("bulk.copied_per_byte", copied)
        .with("copied_by_the_medium_per_byte", json!(round(medium)))
        .note(
            "bytes copied by the sending shard (API and disk queue) a byte received, in the runs of \
             bulk.mem.gbps; the in-memory link's one copy stands for the NIC's DMA and is counted \
             apart",
        );
    Ok(vec![figure, copied])
}

/// What this machine does with simple things, to judge the others by.
pub fn control() -> Result<Vec<Figure>> {
    let clock = TscClock::new();
    let (mut ghz, mut copy) = (Runs::default(), Runs::default());
    let from = vec![1_u8; 1460];
    let mut to = vec![0_u8; 1460];
    for _ in 0..31 {
        let (start, system) = (clock.raw(), std::time::Instant::now());
        const COPIES: u64 = 20_000;
        for _ in 0..COPIES {
            black_box(&mut to[..]).copy_from_slice(black_box(&from[..]));
        }
        let (end, elapsed) = (clock.raw(), system.elapsed());
        ghz.0.push((end - start) as f64 / elapsed.as_nanos() as f64);
        copy.0.push(clock.nanos_between(start, end) as f64 / COPIES as f64);
    }
    Ok(vec![
        Figure::new("control.tsc_ghz", &ghz).note("cycles of the time-stamp counter a nanosecond"),
        Figure::new("control.memcpy_1460_ns", &copy).note("1460 bytes copied, both sides in cache"),
    ])
}
