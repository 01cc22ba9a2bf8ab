//! Files from disks that are slow, that fail, and that have too few buffers for all who want them.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use common::{CLIENT, SERVER, World, arena, config, pattern, server_at, small_limits};
use millstream_core::{DiskNet, Limits, Retention, SendFileError, Shard, ShardConfig, Stack};
use millstream_disk::{DiskError, File, MemDisk};
use millstream_sim::{DirectionConfig, DiskConfig, LinkConfig, Node, SimDisk, SimLink, Wire, pair};
use millstream_timer::{Clock, Instant, VirtualClock};

/// No transfer here takes longer in virtual time, or it has stalled.
const STALLED_NANOS: u64 = 1_000_000_000_000;

struct Host(Shard<SimLink, VirtualClock>);

impl Node for Host {
    fn turn(&mut self) -> bool {
        self.0.turn().work > 0
    }

    fn next_deadline(&self) -> Instant {
        self.0.next_deadline()
    }
}

/// Two shards over a path with faults, the server's files on a disk with faults.
struct Lab {
    clock: VirtualClock,
    client: Host,
    server: Host,
    wire: Wire,
    disk: SimDisk,
}

impl Lab {
    fn new(path: DirectionConfig, disk: &DiskConfig, limits: Limits, net: DiskNet) -> Self {
        Self::retaining(path, disk, limits, (net, Retention::UntilAck))
    }

    fn retaining(
        path: DirectionConfig,
        disk: &DiskConfig,
        limits: Limits,
        (disk_net, retention): (DiskNet, Retention),
    ) -> Self {
        let clock = VirtualClock::new();
        let link = LinkConfig { seed: 7, ..LinkConfig::symmetric(path) };
        let (a, b, wire) = pair(&clock, &link).unwrap();
        let disk = SimDisk::new(&clock, disk).unwrap();
        let shard = |address, link, disk| {
            let config = ShardConfig { disk_net, retention, ..config(address, limits) };
            Host(Shard::new(config, link, clock.clone(), arena(2048, 128), disk))
        };
        let client = shard(CLIENT, a, Box::new(MemDisk::null(1).unwrap()));
        let server = shard(SERVER, b, Box::new(disk.clone()));
        Self { client, server, wire, disk, clock }
    }

    fn nanos(&self) -> u64 {
        self.clock.now().as_nanos()
    }

    fn run_until(&mut self, mut done: impl FnMut() -> bool) {
        let start = self.nanos();
        while !done() {
            let mut nodes: [&mut dyn Node; 4] =
                [&mut self.client, &mut self.server, &mut self.wire, &mut self.disk];
            let more = millstream_sim::step(&self.clock, &mut nodes, Instant::FAR_FUTURE);
            assert!(more.is_some() || done(), "nothing will happen any more");
            assert!(self.nanos() - start < STALLED_NANOS, "stalled");
        }
    }

    fn output<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let handle = self.client.0.stack().spawn(future).unwrap();
        let mut output = None;
        self.run_until(|| {
            output = output.take().or_else(|| handle.take());
            output.is_some()
        });
        output.unwrap()
    }

    /// Sends `file` to whoever connects, from the offset that the peer asks for in eight bytes.
    /// What became of each transfer is kept.
    fn serve(&self, file: File) -> Rc<RefCell<Vec<Result<(), SendFileError>>>> {
        let listener = self.server.0.stack().listen(server_at(80), 64).unwrap();
        let stack = self.server.0.stack().clone();
        let outcomes = Rc::new(RefCell::new(Vec::new()));
        let kept = Rc::clone(&outcomes);
        let accepting = async move {
            loop {
                let (stream, _) = listener.accept().await;
                let (file, outcomes) = (file.clone(), Rc::clone(&outcomes));
                let sending = async move {
                    let mut offset = [0; 8];
                    let mut filled = 0;
                    while filled < 8 {
                        match stream.read(&mut offset[filled..]).await {
                            Ok(count @ 1..) => filled += count,
                            _ => return,
                        }
                    }
                    let outcome = stream.send_file(&file, u64::from_be_bytes(offset)..file.len());
                    let outcome = outcome.await;
                    outcomes.borrow_mut().push(outcome);
                };
                stack.spawn(sending).unwrap();
            }
        };
        self.server.0.stack().spawn(accepting).unwrap();
        kept
    }

    fn assert_clean(&mut self) {
        let (client, server) = (self.client.0.stack().clone(), self.server.0.stack().clone());
        self.run_until(|| client.connections() + server.connections() == 0);
        for stack in [&client, &server] {
            let stats = stack.arena_stats();
            assert!(stats.frames.0 - stats.frames.1 <= 1, "frames are missing: {stats:?}");
            assert!(stats.blocks.0 - stats.blocks.1 <= 1, "blocks are missing: {stats:?}");
            assert_eq!(stack.rx_metrics().unaccounted(), 0);
        }
    }
}

/// Bytes from `offset` to the end, or to a reset, and whether it was the end.
async fn fetch_from(stack: &Stack, offset: u64) -> (Vec<u8>, bool) {
    let stream = loop {
        if let Ok(stream) = stack.connect(server_at(80)).await {
            break stream;
        }
    };
    let mut got = Vec::new();
    if stream.write_all(&offset.to_be_bytes()).await.is_err() {
        return (got, false);
    }
    loop {
        // A reset may be lost, and nobody repeats it.
        match stack.timeout(Duration::from_secs(60), stream.read_buf()).await {
            Some(Ok(Some(buf))) => got.extend_from_slice(&buf),
            Some(Ok(None)) => return (got, true),
            Some(Err(_)) | None => return (got, false),
        }
    }
}

/// Fetches all of a file, going on from where it was cut as often as it takes; how often that was.
async fn fetch_whole(stack: Stack, len: usize) -> (Vec<u8>, usize) {
    let mut all = Vec::new();
    let mut cuts = 0;
    loop {
        let (got, ended) = fetch_from(&stack, all.len() as u64).await;
        all.extend_from_slice(&got);
        if ended && all.len() == len {
            return (all, cuts);
        }
        assert!(!ended, "an end before the end: {} of {len}", all.len());
        cuts += 1;
    }
}

fn gigabit() -> DirectionConfig {
    DirectionConfig::wire(1_000_000_000, 100_000)
}

#[test]
fn files_are_whole_under_loss_and_errors_of_the_disk() {
    for way in [
        (DiskNet::Spliced, Retention::UntilAck),
        (DiskNet::Spliced, Retention::UntilTx),
        (DiskNet::ReadSend, Retention::UntilAck),
    ] {
        for loss in [0.001, 0.01, 0.05] {
            let path = DirectionConfig { loss, ..gigabit() };
            let disk = DiskConfig { error: 0.02, jitter_nanos: 300_000, ..DiskConfig::default() };
            let mut lab = Lab::retaining(path, &disk, small_limits(), way);
            let data = Rc::new(pattern(1_500_001, 5));
            let outcomes = lab.serve(File::in_memory(data.as_slice()));
            let stack = lab.client.0.stack().clone();
            let handles: Vec<_> = (0..6)
                .map(|_| stack.spawn(fetch_whole(stack.clone(), data.len())).unwrap())
                .collect();
            let mut pending = handles;
            let mut cuts = 0;
            lab.run_until(|| {
                pending.retain(|handle| match handle.take() {
                    Some((got, times)) => {
                        assert!(got == *data, "{way:?} {loss}");
                        cuts += times;
                        false
                    }
                    None => true,
                });
                pending.is_empty()
            });
            lab.assert_clean();
            let of_disk =
                |outcome: &&Result<_, _>| matches!(outcome, Err(SendFileError::Disk { .. }));
            let failed = outcomes.borrow().iter().filter(of_disk).count();
            assert!(cuts > 0 && failed > 0, "the disk failed some: {cuts} {failed}");
            let errors = lab.server.0.stack().metrics().disk_errors;
            assert!(errors >= failed as u64, "{errors} {failed}");
            let reread = lab.server.0.stack().metrics().reread_bytes;
            assert_eq!(reread > 0, way.1 == Retention::UntilTx, "{way:?} {loss}: {reread}");
        }
    }
}

#[test]
fn what_is_before_an_error_arrives_whatever_the_order_of_the_disk() {
    for seed in 0..30 {
        let disk = DiskConfig { jitter_nanos: 2_000_000, seed, ..DiskConfig::default() };
        let mut lab = Lab::new(gigabit(), &disk, small_limits(), DiskNet::Spliced);
        let data = pattern(1_000_000, 3);
        let outcomes = lab.serve(File::in_memory(data.as_slice()));
        // Some read in the midst of it.
        let device = lab.disk.clone();
        let stack = lab.client.0.stack().clone();
        let (got, ended) = lab.output(async move {
            let stream = stack.connect(server_at(80)).await.unwrap();
            stream.write_all(&0_u64.to_be_bytes()).await.unwrap();
            let mut got: Vec<u8> = Vec::new();
            let mut told = false;
            loop {
                match stream.read_buf().await {
                    Ok(Some(buf)) => got.extend_from_slice(&buf),
                    Ok(None) => return (got, true),
                    Err(_) => return (got, false),
                }
                if got.len() > 200_000 && !told {
                    told = true;
                    device.fail_next(DiskError::Io { errno: 5 });
                }
            }
        });
        assert!(!ended && data.starts_with(&got));
        let outcomes = outcomes.borrow();
        let Err(SendFileError::Disk { offset, source }) = &outcomes[0] else {
            panic!("{outcomes:?}")
        };
        assert_eq!(*source, DiskError::Io { errno: 5 });
        assert_eq!(got.len() as u64, *offset, "all that was good, seed {seed}");
        assert_eq!(lab.server.0.stack().metrics().disk_errors, 1);
    }
}

#[test]
fn a_disk_that_goes_takes_its_transfers_along_and_comes_back() {
    let mut lab = Lab::new(gigabit(), &DiskConfig::default(), small_limits(), DiskNet::Spliced);
    let data = Rc::new(pattern(3_000_000, 3));
    let outcomes = lab.serve(File::in_memory(data.as_slice()));
    let stack = lab.client.0.stack().clone();
    let disk = lab.disk.clone();
    let whole = Rc::clone(&data);
    let cuts = lab.output(async move {
        let fetches: Vec<_> =
            (0..4).map(|_| stack.spawn(fetch_whole(stack.clone(), whole.len())).unwrap()).collect();
        stack.sleep(Duration::from_millis(20)).await;
        disk.set_gone(true);
        stack.sleep(Duration::from_millis(5)).await;
        disk.set_gone(false);
        let mut cuts = 0;
        for fetch in fetches {
            let (got, times) = fetch.await;
            assert!(got == *whole);
            cuts += times;
        }
        cuts
    });
    assert!(cuts >= 4, "each was cut at least once: {cuts}");
    assert_eq!(outcomes.borrow().iter().filter(|outcome| outcome.is_ok()).count(), 4);
    lab.assert_clean();
}

/// Seconds that a transfer takes over a gigabit with a disk of that latency.
fn seconds(latency_nanos: u64, limits: Limits) -> f64 {
    let disk =
        DiskConfig { latency_nanos, jitter_nanos: 0, channels: 128, ..DiskConfig::default() };
    let mut lab = Lab::new(gigabit(), &disk, limits, DiskNet::Spliced);
    let data = pattern(20_000_000, 3);
    lab.serve(File::in_memory(data.as_slice()));
    let stack = lab.client.0.stack().clone();
    let start = lab.nanos();
    let (got, ended) = lab.output(async move { fetch_from(&stack, 0).await });
    assert!(ended && got == data);
    (lab.nanos() - start) as f64 / 1e9
}

#[test]
fn a_slow_disk_is_read_further_ahead() {
    let limits = Limits { splice_buffers: 64, disk_depth: 128, ..small_limits() };
    let line = 20_000_000.0 * 8.0 / 1e9;
    let fast = seconds(50_000, limits);
    assert!(fast < line * 1.4, "with all that TCP adds: {fast} of {line}");
    for latency_nanos in [1_000_000, 4_000_000] {
        let slow = seconds(latency_nanos, limits);
        assert!(slow < fast * 1.4, "{slow} s of {fast} s at {latency_nanos} ns");
    }
    // Two blocks ahead and a window of 25 KiB are read in one latency, whatever the line could do.
    let few = Limits { splice_buffers: 2, ..limits };
    let few = seconds(4_000_000, few);
    assert!(few > line * 2.0, "the test can tell: {few}");
}

#[test]
fn a_turn_begins_a_bounded_number_of_reads() {
    for splice_turn_reads in [1, 8] {
        let limits = Limits { splice_turn_reads, splice_buffers: 32, ..small_limits() };
        let mut lab = Lab::new(gigabit(), &DiskConfig::default(), limits, DiskNet::Spliced);
        let data = pattern(2_000_000, 3);
        lab.serve(File::in_memory(data.as_slice()));
        let stack = lab.client.0.stack().clone();
        let fetched = stack.spawn(fetch_whole(stack.clone(), 2_000_000));
        let fetched = fetched.unwrap();
        let mut most = 0;
        let mut got = None;
        while got.is_none() {
            let begun = |lab: &Lab| {
                let stats = lab.server.0.stack().disk_stats();
                stats.reads + stats.errors + stats.in_flight as u64
            };
            let before = begun(&lab);
            lab.server.0.turn();
            most = most.max(begun(&lab) - before);
            let mut nodes: [&mut dyn Node; 3] = [&mut lab.client, &mut lab.wire, &mut lab.disk];
            millstream_sim::step(&lab.clock, &mut nodes, lab.server.0.next_deadline());
            got = fetched.take();
        }
        assert!(got.unwrap().0 == data);
        assert_eq!(most == 1, splice_turn_reads == 1, "{most} with {splice_turn_reads}");
        assert!(most <= splice_turn_reads as u64);
    }
}

#[test]
fn reading_and_sending_copies_and_wakes_for_each_block() {
    let polls = |net: DiskNet, len: usize| {
        let mut lab = Lab::new(gigabit(), &DiskConfig::default(), small_limits(), net);
        let data = pattern(len, 3);
        lab.serve(File::in_memory(data.as_slice()));
        let before = lab.server.0.stack().task_polls();
        let stack = lab.client.0.stack().clone();
        let (got, ended) = lab.output(async move { fetch_from(&stack, 0).await });
        assert!(ended && got == data);
        let stack = lab.server.0.stack();
        (stack.task_polls() - before, stack.metrics().copied_api_bytes)
    };
    let (spliced, copied) = polls(DiskNet::Spliced, 4_000_000);
    assert_eq!((spliced, copied), (polls(DiskNet::Spliced, 65_536).0, 8));
    let (polled, copied) = polls(DiskNet::ReadSend, 4_000_000);
    assert_eq!(copied, 4_000_008);
    assert!(polled > spliced + 4_000_000 / 16_384, "{polled}");
}

/// 10,000 connections want a file each, and there are 64 buffers.
#[test]
fn ten_thousand_connections_share_a_few_buffers() {
    const CONNECTIONS: usize = 10_000;
    let limits = Limits {
        connections: CONNECTIONS + 8,
        channel_packets: 8192,
        slices: 8 * CONNECTIONS,
        tasks: CONNECTIONS + 8,
        disk_depth: 32,
        ..small_limits()
    };
    let mut world = World::with(limits, 64, |_| Box::new(MemDisk::copying(32).unwrap()));
    let data = Rc::new(pattern(40_000, 4));
    let file = File::in_memory(data.as_slice());
    let listener = world.server.stack().listen(server_at(80), 2 * CONNECTIONS).unwrap();
    let server = world.server.stack().clone();
    let failures = Rc::new(RefCell::new(0));
    let failed = Rc::clone(&failures);
    let accepting = async move {
        // All are open before the first byte is read.
        let mut streams = Vec::new();
        while streams.len() < CONNECTIONS {
            streams.push(listener.accept().await.0);
        }
        for stream in streams {
            let (file, failed) = (file.clone(), Rc::clone(&failed));
            let sending = async move {
                if stream.send_file(&file, 0..file.len()).await.is_err() {
                    *failed.borrow_mut() += 1;
                }
            };
            server.spawn(sending).unwrap();
        }
    };
    world.server.stack().spawn(accepting).unwrap();
    let stack = world.client.stack().clone();
    let arrived = Rc::new(RefCell::new(0));
    for _ in 0..CONNECTIONS {
        let (connecting, data, arrived) = (stack.clone(), Rc::clone(&data), Rc::clone(&arrived));
        let fetching = async move {
            let stream = connecting.connect(server_at(80)).await.unwrap();
            let mut at = 0;
            while let Some(buf) = stream.read_buf().await.unwrap() {
                assert!(*buf == data[at..at + buf.len()]);
                at += buf.len();
            }
            assert_eq!(at, data.len());
            *arrived.borrow_mut() += 1;
        };
        stack.spawn(fetching).unwrap();
    }
    let all = Rc::clone(&arrived);
    world.client_runs(async move {
        while *all.borrow() < CONNECTIONS {
            stack.sleep(Duration::from_millis(1)).await;
        }
    });
    assert_eq!(*failures.borrow(), 0);
    assert_eq!(*arrived.borrow(), CONNECTIONS);
    let metrics = world.server.stack().metrics();
    assert!(metrics.splice_parked > 1000, "the buffers were scarce: {}", metrics.splice_parked);
    assert_eq!(metrics.disk_errors, 0);
}

/// Seconds that a transfer takes, the buffers that the server has out meanwhile on average, and the
/// bytes that it reads again.
fn with_retention(path: DirectionConfig, retention: Retention) -> (f64, f64, u64) {
    let limits = Limits { splice_buffers: 64, ..small_limits() };
    let way = (DiskNet::Spliced, retention);
    let mut lab = Lab::retaining(path, &DiskConfig::default(), limits, way);
    let data = pattern(20_000_000, 3);
    lab.serve(File::in_memory(data.as_slice()));
    let stack = lab.client.0.stack().clone();
    let start = lab.nanos();
    let fetched = stack.spawn(fetch_whole(stack.clone(), 20_000_000)).unwrap();
    let (server, clock) = (lab.server.0.stack().clone(), lab.clock.clone());
    let (mut got, mut area, mut last) = (None, 0, start);
    lab.run_until(|| {
        let (all, free) = server.arena_stats().blocks;
        let now = clock.now().as_nanos();
        area += (all - free) as u64 * (now - last);
        last = now;
        got = got.take().or_else(|| fetched.take());
        got.is_some()
    });
    assert!(got.unwrap().0 == data);
    let nanos = (lab.nanos() - start) as f64;
    lab.assert_clean();
    (nanos / 1e9, area as f64 / nanos, server.metrics().reread_bytes)
}

#[test]
fn buffers_that_are_let_go_of_when_sent_do_not_bound_what_is_in_flight() {
    // Five megabytes fit on the way, and there are two of buffers.
    let far = DirectionConfig::wire(1_000_000_000, 20_000_000);
    let (kept_s, kept, _) = with_retention(far, Retention::UntilAck);
    let (sent_s, sent, reread) = with_retention(far, Retention::UntilTx);
    assert!(kept > 40.0, "{kept}");
    assert!(sent < 12.0, "{sent}");
    assert!(sent_s < kept_s * 0.8, "{sent_s} {kept_s}");
    assert_eq!(reread, 0, "nothing was lost");
    let lossy = DirectionConfig { loss: 0.002, ..far };
    let (_, sent, reread) = with_retention(lossy, Retention::UntilTx);
    assert!(reread > 0 && sent < 12.0, "{sent} {reread}");
}
