//! Whole shards over links that lose, reorder, duplicate, delay and corrupt, and disks that come out
//! of order: in virtual time, from seeds. What arrives is what was sent, nothing stalls, nothing
//! leaks, and every frame has a name.

mod common;

use std::cell::Cell;
use std::rc::Rc;

use common::{CLIENT, SERVER, arena, config, pattern, server_at, small_limits};
use millstream_core::{Limits, Shard, ShardConfig, SynCookiePolicy};
use millstream_disk::File;
use millstream_link::{Capabilities, Link, LinkStats, RxBurst, TxError, TxFrame};
use millstream_sim::{
    BurstLoss, DirectionConfig, DiskConfig, LinkConfig, Node, Rng, SimDisk, SimLink, Wire, pair,
};
use millstream_timer::{Instant, VirtualClock};

/// No transfer of these sizes takes longer than this in virtual time, or it has stalled: fifteen
/// retransmissions of one segment in a row, each backed off, take about as long.
const STALLED_NANOS: u64 = 1_000_000_000_000;

/// A link whose buffers are always scarce, if so told.
struct Scarce(SimLink, Rc<Cell<bool>>);

impl Link for Scarce {
    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }
    fn rx_burst(&mut self, frames: &mut RxBurst) {
        self.0.rx_burst(frames)
    }
    fn tx_room(&mut self) -> usize {
        self.0.tx_room()
    }
    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
        self.0.tx(frame)
    }
    fn flush(&mut self) {
        self.0.flush()
    }
    fn rx_buffers(&self) -> Option<(usize, usize)> {
        if self.1.get() { Some((20, 100)) } else { self.0.rx_buffers() }
    }
    fn stats(&self) -> LinkStats {
        self.0.stats()
    }
}

struct Host(Shard<Scarce, VirtualClock>);

impl Node for Host {
    fn turn(&mut self) -> bool {
        self.0.turn().work > 0
    }

    fn next_deadline(&self) -> Instant {
        self.0.next_deadline()
    }
}

struct World {
    clock: VirtualClock,
    client: Host,
    server: Host,
    wire: Wire,
    disk: SimDisk,
    /// Both links say that their buffers are scarce.
    scarce: Rc<Cell<bool>>,
}

impl World {
    fn new(link: &LinkConfig, disk: &DiskConfig, limits: Limits) -> Self {
        Self::with_blocks(link, disk, limits, 64)
    }

    /// So many blocks of memory for the server to copy to.
    fn with_blocks(link: &LinkConfig, disk: &DiskConfig, limits: Limits, blocks: usize) -> Self {
        let clock = VirtualClock::new();
        let (a, b, wire) = pair(&clock, link).unwrap();
        let server_disk = SimDisk::new(&clock, disk).unwrap();
        let unused = SimDisk::new(&clock, disk).unwrap();
        let scarce: Rc<Cell<bool>> = Rc::default();
        let shard = |address, link, disk, blocks| {
            let syn_cookies = SynCookiePolicy::Off;
            let config = ShardConfig { syn_cookies, ..config(address, limits) };
            let link = Scarce(link, Rc::clone(&scarce));
            Host(Shard::new(config, link, clock.clone(), arena(1024, blocks), disk))
        };
        let client = shard(CLIENT, a, Box::new(unused), 64);
        let server = shard(SERVER, b, Box::new(server_disk.clone()), blocks);
        Self { client, server, wire, disk: server_disk, clock, scarce }
    }

    fn run_until(&mut self, context: &dyn std::fmt::Debug, mut done: impl FnMut() -> bool) {
        let start = self.clock_nanos();
        while !done() {
            let mut nodes: [&mut dyn Node; 4] =
                [&mut self.client, &mut self.server, &mut self.wire, &mut self.disk];
            let more = millstream_sim::step(&self.clock, &mut nodes, Instant::FAR_FUTURE);
            let spent = self.clock_nanos() - start;
            assert!(more.is_some() || done(), "nothing will happen any more: {context:?}");
            assert!(spent < STALLED_NANOS, "stalled: {context:?}");
        }
    }

    fn clock_nanos(&self) -> u64 {
        millstream_timer::Clock::now(&self.clock).as_nanos()
    }

    /// Everything is over: nothing may be left anywhere.
    fn assert_clean(&mut self, context: &dyn std::fmt::Debug) {
        // Lost final segments may leave either side in TIME_WAIT or retrying; both end.
        let (client, server) = (self.client.0.stack().clone(), self.server.0.stack().clone());
        self.run_until(context, || client.connections() + server.connections() == 0);
        // The client's staging cursor may hold a block: it writes much at a time.
        for (stack, staged) in [(&client, 1), (&server, 0)] {
            let stats = stack.arena_stats();
            assert!(stats.frames.0 - stats.frames.1 <= 1, "frames are missing: {context:?}");
            assert!(stats.blocks.0 - stats.blocks.1 <= staged, "blocks are missing: {context:?}");
            assert_eq!(stack.rx_metrics().unaccounted(), 0, "{context:?}");
        }
    }
}

/// A path drawn from a seed: from a clean one to one that loses a tenth and reorders the rest.
fn draw_path(rng: &mut Rng) -> DirectionConfig {
    let unit = |rng: &mut Rng| rng.below(1000) as f64 / 1000.0;
    let bandwidth = [1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000];
    let delay = [5_000, 100_000, 1_000_000, 20_000_000, 100_000_000];
    let wire =
        DirectionConfig::wire(bandwidth[rng.below(5) as usize], delay[rng.below(5) as usize]);
    DirectionConfig {
        jitter_nanos: if rng.chance(0.3) { rng.below(wire.delay_nanos) } else { 0 },
        queue_frames: 8 + rng.below(200) as usize,
        loss: if rng.chance(0.5) { unit(rng) * 0.1 } else { 0.0 },
        burst_loss: rng.chance(0.2).then_some(BurstLoss {
            good_to_bad: 0.01,
            bad_to_good: 0.3,
            loss_in_bad: 0.7,
        }),
        reorder: if rng.chance(0.3) { unit(rng) * 0.2 } else { 0.0 },
        duplicate: if rng.chance(0.3) { unit(rng) * 0.1 } else { 0.0 },
        corrupt: if rng.chance(0.3) { unit(rng) * 0.03 } else { 0.0 },
        ..wire
    }
}

fn draw_link(seed: u64) -> LinkConfig {
    let mut rng = Rng::new(seed);
    let a_to_b = draw_path(&mut rng);
    // Half of the paths are the same in both directions.
    let b_to_a = if rng.chance(0.5) { a_to_b } else { draw_path(&mut rng) };
    LinkConfig { a_to_b, b_to_a, seed, ..LinkConfig::symmetric(a_to_b) }
}

/// One transfer in each direction at once on one connection, the server's from its disk.
fn exchange(seed: u64) {
    let link = draw_link(seed);
    let mut rng = Rng::new(seed ^ 0x5eed);
    let disk = DiskConfig { jitter_nanos: 300_000, seed, ..DiskConfig::default() };
    let mut world = World::new(&link, &disk, small_limits());
    let context = (seed, link.a_to_b, link.b_to_a);
    let down = Rc::new(pattern(1 + rng.below(200_000) as usize, seed));
    let up = Rc::new(pattern(1 + rng.below(100_000) as usize, seed + 1));

    let listener = world.server.0.stack().listen(server_at(80), 4).unwrap();
    let file = File::in_memory(down.as_slice());
    let spawner = world.server.0.stack().clone();
    let served = world
        .server
        .0
        .stack()
        .spawn(async move {
            let (stream, _) = listener.accept().await;
            let stream = Rc::new(stream);
            let reading = Rc::clone(&stream);
            let received = spawner
                .spawn(async move {
                    let mut got = Vec::new();
                    while let Some(buf) = reading.read_buf().await? {
                        got.extend_from_slice(&buf);
                    }
                    Ok::<_, std::io::Error>(got)
                })
                .unwrap();
            stream.send_file(&file, 0..file.len()).await.unwrap();
            stream.shutdown();
            received.await.unwrap()
        })
        .unwrap();

    let stack = world.client.0.stack().clone();
    let sent = Rc::clone(&up);
    let fetched = world
        .client
        .0
        .stack()
        .spawn(async move {
            // A lossy path may lose all the SYNs of a connection; try another one.
            let stream = loop {
                if let Ok(stream) = stack.connect(server_at(80)).await {
                    break Rc::new(stream);
                }
            };
            let writing = Rc::clone(&stream);
            stack
                .spawn(async move {
                    writing.write_all(&sent).await.unwrap();
                    writing.shutdown();
                })
                .unwrap();
            let mut got = Vec::new();
            let mut out = vec![0; 5000];
            loop {
                let count = stream.read(&mut out).await.unwrap();
                if count == 0 {
                    return got;
                }
                got.extend_from_slice(&out[..count]);
            }
        })
        .unwrap();

    let (mut fetched_bytes, mut served_bytes) = (None, None);
    world.run_until(&context, || {
        fetched_bytes = fetched_bytes.take().or_else(|| fetched.take());
        served_bytes = served_bytes.take().or_else(|| served.take());
        fetched_bytes.is_some() && served_bytes.is_some()
    });
    assert!(fetched_bytes.unwrap() == *down, "the download differs: {context:?}");
    assert!(served_bytes.unwrap() == *up, "the upload differs: {context:?}");
    world.assert_clean(&context);
}

#[test]
fn both_directions_survive_two_hundred_paths() {
    for seed in 0..200 {
        exchange(seed);
    }
}

#[test]
fn a_link_that_goes_down_for_a_while_is_survived() {
    let link = LinkConfig::symmetric(DirectionConfig::wire(100_000_000, 1_000_000));
    let mut world = World::new(&link, &DiskConfig::default(), small_limits());
    let data = pattern(2_000_000, 3);
    let file = File::in_memory(data.as_slice());
    let listener = world.server.0.stack().listen(server_at(80), 4).unwrap();
    world
        .server
        .0
        .stack()
        .spawn(async move {
            let (stream, _) = listener.accept().await;
            stream.send_file(&file, 0..file.len()).await.unwrap();
        })
        .unwrap();
    let stack = world.client.0.stack().clone();
    let wire = world.wire.clone();
    let fetched = world
        .client
        .0
        .stack()
        .spawn(async move {
            let stream = stack.connect(server_at(80)).await.unwrap();
            let mut got: Vec<u8> = Vec::new();
            let mut cut = false;
            while let Some(buf) = stream.read_buf().await.unwrap() {
                got.extend_from_slice(&buf);
                if got.len() > 500_000 && !cut {
                    cut = true;
                    wire.set_up(false);
                    stack.sleep(std::time::Duration::from_secs(3)).await;
                    wire.set_up(true);
                }
            }
            got
        })
        .unwrap();
    let mut got = None;
    world.run_until(&"link down", || {
        got = got.take().or_else(|| fetched.take());
        got.is_some()
    });
    assert!(got.unwrap() == data);
    world.assert_clean(&"link down");
}

#[test]
fn a_disk_error_resets_its_connection_only() {
    let link = LinkConfig::symmetric(DirectionConfig::wire(1_000_000_000, 100_000));
    let mut world = World::new(&link, &DiskConfig::default(), small_limits());
    let data = pattern(1_000_000, 3);
    let file = File::in_memory(data.as_slice());
    let listener = world.server.0.stack().listen(server_at(80), 4).unwrap();
    let disk = world.disk.clone();
    let spawner = world.server.0.stack().clone();
    world
        .server
        .0
        .stack()
        .spawn(async move {
            let (one, _) = listener.accept().await;
            let (other, _) = listener.accept().await;
            let other_file = file.clone();
            // Whichever reads first meets the error.
            disk.fail_next(millstream_disk::DiskError::Io { errno: 5 });
            let one =
                spawner.spawn(async move { one.send_file(&file, 0..file.len()).await }).unwrap();
            let other = other.send_file(&other_file, 0..other_file.len()).await;
            assert_eq!([one.await, other].iter().filter(|outcome| outcome.is_err()).count(), 1);
        })
        .unwrap();
    let stack = world.client.0.stack().clone();
    let fetch = |stack: millstream_core::Stack| async move {
        let stream = stack.connect(server_at(80)).await.unwrap();
        let mut got: Vec<u8> = Vec::new();
        loop {
            match stream.read_buf().await {
                Ok(Some(buf)) => got.extend_from_slice(&buf),
                Ok(None) => return (got, true),
                Err(_) => return (got, false),
            }
        }
    };
    let first = stack.spawn(fetch(stack.clone())).unwrap();
    let second = stack.spawn(fetch(stack.clone())).unwrap();
    let (mut a, mut b) = (None, None);
    world.run_until(&"disk error", || {
        a = a.take().or_else(|| first.take());
        b = b.take().or_else(|| second.take());
        a.is_some() && b.is_some()
    });
    let mut results = [a.unwrap(), b.unwrap()];
    results.sort_by_key(|result| result.1);
    assert!(!results[0].1, "one connection was reset");
    assert!(data.starts_with(&results[0].0), "what came before was good");
    assert!(results[1].1 && results[1].0 == data, "the other got it all");
    assert_eq!(world.server.0.stack().metrics().disk_errors, 1);
    world.assert_clean(&"disk error");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let link = draw_link(7);
        let mut world = World::new(&link, &DiskConfig::default(), small_limits());
        let stack = world.client.0.stack().clone();
        let listener = world.server.0.stack().listen(server_at(80), 4).unwrap();
        world
            .server
            .0
            .stack()
            .spawn(async move {
                let (stream, _) = listener.accept().await;
                while let Ok(Some(buf)) = stream.read_buf().await {
                    let _ = stream.send_buf(buf).await;
                }
            })
            .unwrap();
        let done = stack
            .spawn({
                let stack = stack.clone();
                async move {
                    let stream = stack.connect(server_at(80)).await.unwrap();
                    stream.write_all(&pattern(50_000, 1)).await.unwrap();
                    stream.shutdown();
                    while stream.read_buf().await.unwrap().is_some() {}
                }
            })
            .unwrap();
        world.run_until(&"same seed", || done.take().is_some());
        (world.clock_nanos(), world.client.0.link().stats(), world.server.0.stack().tcp_stats())
    };
    assert_eq!(run(), run());
}

#[test]
fn handshakes_that_never_end_make_way_for_newer_ones() {
    let link = LinkConfig::symmetric(DirectionConfig::wire(1_000_000_000, 100_000));
    let mut world = World::new(&link, &DiskConfig::default(), small_limits());
    let _listener = world.server.0.stack().listen(server_at(80), 2).unwrap();
    // The server's SYN-ACKs are lost, so its connections stay half open.
    let lossy = Rc::new(std::cell::Cell::new(true));
    let flag = Rc::clone(&lossy);
    world.wire.set_filter(move |_, _, frame| {
        let syn_ack = frame.get(12..14) == Some(&[8, 0]) && frame.get(47) == Some(&0x12);
        !(syn_ack && flag.get())
    });
    let stack = world.client.0.stack().clone();
    for _ in 0..2 {
        let connecting = stack.clone();
        stack.spawn(async move { connecting.connect(server_at(80)).await.map(|_| ()) }).unwrap();
    }
    let server = world.server.0.stack().clone();
    world.run_until(&"two half open", || server.connections() == 2);
    lossy.set(false);
    let connecting = stack.clone();
    let start = world.clock_nanos();
    let third =
        stack.spawn(async move { connecting.connect(server_at(80)).await.map(|_| ()) }).unwrap();
    let mut outcome = None;
    world.run_until(&"the third", || {
        outcome = outcome.take().or_else(|| third.take());
        outcome.is_some()
    });
    assert!(outcome.unwrap().is_ok());
    assert!(world.clock_nanos() - start < 500_000_000, "at once, not after a retransmission");
    assert_eq!(server.metrics().half_open_evicted, 1);
}

/// The link's buffers are scarce, and there is no memory to copy to. What fills a gap is taken all the
/// same, since nothing else sets free what waits behind it.
#[test]
fn a_gap_is_filled_however_few_buffers_are_left() {
    let wire = DirectionConfig::wire(1_000_000_000, 1_000_000);
    let link = LinkConfig::symmetric(wire);
    let mut world = World::with_blocks(&link, &DiskConfig::default(), small_limits(), 0);
    // One segment is lost some times. Meanwhile buffers become scarce, until it has come.
    let (mut first, mut gap, mut losses) = (None, None, 0);
    let scarce = Rc::clone(&world.scarce);
    world.wire.set_filter(move |_, direction, frame| {
        if direction != millstream_sim::Direction::AToB || frame.len() < 1_000 {
            return true;
        }
        let seq = u32::from_be_bytes(frame[38..42].try_into().unwrap());
        let first = *first.get_or_insert(seq);
        if seq.wrapping_sub(first) > 150_000 {
            gap.get_or_insert(seq);
        }
        losses += u32::from(gap == Some(seq));
        scarce.set(scarce.get() || (gap == Some(seq) && losses == 2));
        gap != Some(seq) || losses > 4
    });
    let bytes = pattern(1_000_000, 3);
    let listener = world.server.0.stack().listen(server_at(7), 4).unwrap();
    let scarce = Rc::clone(&world.scarce);
    let reader = async move {
        let (stream, _) = listener.accept().await;
        let mut all = Vec::new();
        while let Ok(Some(buf)) = stream.read_buf().await {
            all.extend_from_slice(&buf);
            scarce.set(scarce.get() && all.len() < 160_000);
        }
        all
    };
    let received = world.server.0.stack().spawn(reader).unwrap();
    let (client, sent) = (world.client.0.stack().clone(), bytes.clone());
    let writer = async move {
        let stream = client.connect(server_at(7)).await.unwrap();
        stream.write_all(&sent).await.unwrap();
        stream.shutdown();
    };
    world.client.0.stack().spawn(writer).unwrap();
    let mut all = None;
    world.run_until(&"a gap", || {
        all = all.take().or_else(|| received.take());
        all.is_some()
    });
    assert!(all.unwrap() == bytes);
}
