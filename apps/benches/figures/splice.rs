//! Figures of the splice: the disk and the network without the application in between.

use std::cell::Cell;
use std::error::Error;
use std::net::SocketAddrV4;
use std::rc::Rc;

use millstream::buf::{Arena, ArenaConfig};
use millstream::core::{Ipv4Config, Limits, Retention, Shard, ShardConfig, Stack};
use millstream::disk::{DiskQueue, File, MemDisk};
use millstream::link::mem::{self, MemConfig, MemLink};
use millstream::timer::{Clock, Instant, VirtualClock};
use millstream_sim::{DirectionConfig, DiskConfig, LinkConfig, Node, SimDisk, SimLink};
use serde_json::json;

use crate::figure::{Figure, Runs, round};
use crate::world::{CLIENT, PORT, SERVER, Settings, World};

#[path = "../../src/bench/splice/measure.rs"]
mod measure;

use measure::{Disk, Rig, Setup, TSO_BYTES, Way};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The names of [`wakeups`].
pub const WAKEUPS: &[&str] = &["splice.wakeups_per_request"];
/// The names of [`versus`].
pub const VERSUS: &[&str] = &["splice.vs_read_send"];
/// The names of [`versus_sendfile`].
pub const VERSUS_SENDFILE: &[&str] = &["splice.vs_sendfile"];
/// The names of [`working_set`].
pub const WORKING_SET: &[&str] = &["until_tx.working_set_ratio"];
/// The names of [`disk_to_wire`].
pub const DISK_TO_WIRE: &[&str] = &["disk_to_wire.null.gbps", "disk_to_wire.copied_bytes"];

/// Asks for a file with one byte, again and again.
async fn ask(stack: Stack, len: u64, done: Rc<Cell<u64>>) {
    let Ok(stream) = stack.connect(SocketAddrV4::new(SERVER, PORT)).await else { return };
    while stream.write_all(b"?").await.is_ok() {
        let mut left = len;
        while left > 0 {
            match stream.read_buf().await {
                Ok(Some(buf)) => left = left.saturating_sub(buf.len() as u64),
                _ => return,
            }
        }
        done.set(done.get() + 1);
    }
}

async fn answer(stack: Stack, file: File) {
    let Ok(listener) = stack.listen(SocketAddrV4::new(SERVER, PORT), 16) else { return };
    let (stream, _) = listener.accept().await;
    let mut request = [0; 1];
    while let Ok(1) = stream.read(&mut request).await {
        if stream.send_file(&file, 0..file.len()).await.is_err() {
            return;
        }
    }
}

/// Polls of the server's task a request for a file of `len` bytes.
fn wakeups_of(len: u64, requests: u64) -> Result<f64> {
    let link = MemConfig { checksum_offload: true, ..MemConfig::default() };
    let mut world: World<MemLink> = World::new(mem::pair(link)?, &Settings::default())?;
    let (client, server) = (world.client.stack().clone(), world.server.stack().clone());
    server.spawn(answer(server.clone(), File::zeroes(len)))?;
    client.spawn(ask(client.clone(), len, Rc::clone(&world.done)))?;
    world.run(1)?;
    let before = server.task_polls();
    world.run(requests)?;
    Ok((server.task_polls() - before) as f64 / requests as f64)
}

/// `splice.wakeups_per_request`.
pub fn wakeups() -> Result<Vec<Figure>> {
    let (small, large) = (wakeups_of(64 << 10, 1000)?, wakeups_of(64 << 20, 8)?);
    let figure = Figure::exact("splice.wakeups_per_request", small.max(large))
        .with("at_64_kib", json!(round(small)))
        .with("at_64_mib", json!(round(large)))
        .note(
            "polls of the server's task a request, at the start and at the end of a file, over the \
             in-memory link; the greater of files of 64 KiB and of 64 MiB",
        );
    Ok(vec![figure])
}

const RUN_BYTES: u64 = 32 << 20;
const RUNS: usize = 41;

fn rig(way: Way, tso_bytes_max: u32) -> Result<Rig> {
    let request_bytes = 64 << 10;
    Rig::new(&Setup { way, disk: Disk::Null, request_bytes, peers: 16, tso_bytes_max })
}

/// Gbit/s of the time in which there was something to do.
fn gbps(rig: &mut Rig, bytes: u64) -> Result<f64> {
    let (bytes, busy_ns) = rig.run(bytes)?;
    Ok(bytes as f64 * 8.0 / busy_ns.max(1) as f64)
}

/// `splice.vs_read_send`.
pub fn versus() -> Result<Vec<Figure>> {
    let mut runs: [Runs; 6] = Default::default();
    let ways = [Way::Spliced, Way::ReadSend, Way::ReadSendUncopied];
    let mut rigs = Vec::new();
    for tso in [TSO_BYTES, 0] {
        for way in ways {
            rigs.push(rig(way, tso)?);
        }
    }
    for _ in 0..RUNS {
        for (rig, runs) in rigs.iter_mut().zip(&mut runs) {
            runs.0.push(gbps(rig, RUN_BYTES / 4)?);
        }
    }
    let [spliced, read_send, handed, plain, plain_read_send, plain_handed] = &runs;
    let over = |ours: &Runs, theirs: &Runs| json!(round(ours.median() / theirs.median()));
    let figure = Figure::ratio("splice.vs_read_send", spliced, read_send)
        .with("over_handing_buffers_on", over(spliced, handed))
        .with("without_tso", over(plain, plain_read_send))
        .with("without_tso_over_handing_buffers_on", over(plain, plain_handed))
        .note(
            "Gbit/s of one core, requests of 64 KiB over 16 connections, reads of 16 KiB from the null \
             disk, TCP to a card that cuts segments and swallows them; against a task that reads \
             into a buffer and writes from there (one copy), and against one that hands the buffer \
             on without a copy",
        );
    Ok(vec![figure])
}

/// `disk_to_wire.null.gbps`, `disk_to_wire.copied_bytes`.
pub fn disk_to_wire() -> Result<Vec<Figure>> {
    let (mut tso, mut plain) = (Runs::default(), Runs::default());
    let setup = |tso_bytes_max| Setup {
        way: Way::Spliced,
        disk: Disk::Null,
        request_bytes: 64 << 20,
        peers: 16,
        tso_bytes_max,
    };
    let (mut cuts, mut does_not) = (Rig::new(&setup(TSO_BYTES))?, Rig::new(&setup(0))?);
    for _ in 0..RUNS {
        tso.0.push(gbps(&mut cuts, RUN_BYTES)?);
        plain.0.push(gbps(&mut does_not, RUN_BYTES / 4)?);
    }
    let how = "files of 64 MiB over 16 connections from the null disk through the splice and TCP \
        with timestamps to a card that cuts segments, fills in checksums and swallows them; its \
        peers acknowledge 64 KiB at a time; one core";
    let speed = Figure::new("disk_to_wire.null.gbps", &tso)
        .with("without_tso_gbps", json!(round(plain.median())))
        .with("bytes_a_frame", json!(round(cuts.bytes_a_frame())))
        .note(how);
    let copied = (cuts.copied_bytes() + does_not.copied_bytes()) as f64;
    let sent = cuts.received_bytes() + does_not.received_bytes();
    let copied =
        Figure::exact("disk_to_wire.copied_bytes", copied).with("sent_bytes", json!(sent)).note(
            "bytes copied by the API, the disk queue, the shard and the link in all runs of \
         disk_to_wire.null.gbps",
        );
    Ok(vec![speed, copied])
}

/// `splice.vs_sendfile`.
pub fn versus_sendfile() -> Result<Vec<Figure>> {
    const FILE_BYTES: usize = 64 << 20;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("file");
    std::fs::write(&path, vec![7_u8; FILE_BYTES])?;
    std::fs::File::open(&path)?.sync_all()?;
    let file = File::open(&path)?;
    let direct = file.is_direct();
    let request_bytes = 1 << 20;
    let (disk, tso_bytes_max) = (Disk::Kernel(file), TSO_BYTES);
    let setup = Setup { way: Way::Spliced, disk, request_bytes, peers: 16, tso_bytes_max };
    let mut ours = Rig::new(&setup)?;
    let (mut spliced, mut theirs) = (Runs::default(), Runs::default());
    for _ in 0..9 {
        spliced.0.push(gbps(&mut ours, FILE_BYTES as u64)?);
        let (bytes, cpu_ns) = measure::sendfile(&path, request_bytes, 4 * FILE_BYTES as u64)?;
        theirs.0.push(bytes as f64 * 8.0 / cpu_ns.max(1) as f64);
    }
    let figure = Figure::ratio("splice.vs_sendfile", &spliced, &theirs)
        .with("direct_reads", json!(direct))
        .note(
            "Gbit/s a CPU, requests of 1 MiB of a file of 64 MiB: ours reads it anew by io_uring each \
             time (turns of the loop that find something count, with the kernel's part in submitting; \
             waiting for the disk and the kernel's interrupts do not) and ends in a card without a \
             network; sendfile has it in the page cache and ends in a socket on loopback, whose \
             receiver's TCP its thread does too",
        );
    Ok(vec![figure])
}

/// A shard in virtual time.
struct Host(Shard<SimLink, VirtualClock>);

impl Node for Host {
    fn turn(&mut self) -> bool {
        self.0.turn().work > 0
    }

    fn next_deadline(&self) -> Instant {
        self.0.next_deadline()
    }
}

/// Bytes of the path's bandwidth a second, and how long a read and the sending of a segment take.
const PATH_BYTES_PER_S: f64 = 40e9 / 8.0;

/// `until_tx.working_set_ratio`, in virtual time.
pub fn working_set() -> Result<Vec<Figure>> {
    const FILE_BYTES: u64 = 400_000_000;
    let clock = VirtualClock::new();
    let link = LinkConfig::symmetric(DirectionConfig::wire(40_000_000_000, 200_000));
    let (a, b, mut wire) = millstream_sim::pair(&clock, &link)?;
    let disk = DiskConfig { channels: 128, ..DiskConfig::default() };
    let disk_ns = disk.latency_nanos as f64
        + disk.jitter_nanos as f64 / 2.0
        + 16384.0 * 8e9 / disk.bandwidth_bps as f64;
    let mut disk = SimDisk::new(&clock, &disk)?;
    let shard = |address, link, disk: Box<dyn DiskQueue>| -> Result<Host> {
        let ipv4 = Ipv4Config { address, prefix_len: 24, gateway: None };
        let limits = Limits { splice_buffers: 128, ..Limits::default() };
        let retention = Retention::UntilTx;
        let config = ShardConfig { limits, retention, secret: [3; 48], ..ShardConfig::new(ipv4) };
        Ok(Host(Shard::new(
            config,
            link,
            clock.clone(),
            Arena::new(&ArenaConfig::default())?,
            disk,
        )))
    };
    let mut client = shard(CLIENT, a, Box::new(MemDisk::null(1)?))?;
    let mut server = shard(SERVER, b, Box::new(disk.clone()))?;
    let stack = client.0.stack().clone();
    let done = Rc::new(Cell::new(0));
    client.0.stack().spawn(ask(stack, FILE_BYTES, Rc::clone(&done)))?;
    let stack = server.0.stack().clone();
    server.0.stack().spawn(answer(stack.clone(), File::zeroes(FILE_BYTES)))?;
    // The first part is slow start.
    let (mut from, mut last, mut area) = (None, 0, 0_u128);
    let sent = |stack: &Stack| stack.metrics().spliced_bytes;
    while done.get() == 0 {
        let mut nodes: [&mut dyn Node; 4] = [&mut client, &mut server, &mut wire, &mut disk];
        if millstream_sim::step(&clock, &mut nodes, Instant::FAR_FUTURE).is_none() {
            return Err("the transfer stopped".into());
        }
        let (now, bytes) = (clock.now().as_nanos(), sent(&stack));
        if from.is_none() && bytes > FILE_BYTES / 2 {
            from = Some((now, bytes));
            last = now;
        }
        if from.is_some() && bytes < FILE_BYTES {
            let (all, free) = stack.arena_stats().blocks;
            area += (all - free) as u128 * u128::from(now - last);
            last = now;
        }
    }
    let (start, bytes) = from.ok_or("the transfer was too short")?;
    let span_ns = (last - start).max(1) as f64;
    let rate = (sent(&stack) - bytes) as f64 * 1e9 / span_ns;
    let held = area as f64 / span_ns * 16384.0;
    let tx_ns = 1514.0 * 8.0 / 40.0;
    let figure = Figure::exact("until_tx.working_set_ratio", held / (rate * (disk_ns + tx_ns) / 1e9))
        .with("held_bytes", json!(round(held)))
        .with("gbps", json!(round(rate * 8.0 / 1e9)))
        .with("of_the_path", json!(round(rate / PATH_BYTES_PER_S)))
        .with("disk_us", json!(round(disk_ns / 1e3)))
        .with("reread_bytes", json!(stack.metrics().reread_bytes))
        .note(
            "buffers out on average in the second half of a transfer of 400 MB over 40 Gbit/s and a \
             round trip of 0.4 ms in virtual time, over rate x (time of a read + time of a frame on \
             the wire)",
        );
    Ok(vec![figure])
}
