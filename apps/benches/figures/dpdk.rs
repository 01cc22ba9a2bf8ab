//! Figures over DPDK. Each runs in a process of its own: DPDK starts once a process.

use std::cell::Cell;
use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use millstream::buf::{Arena, ArenaConfig, SizeClass};
use millstream::core::{Idle, Limits, Stack};
use millstream::dpdk_port::{Device, Eal, EalConfig, MemifRole, Port, PortConfig, PortQueue};
use millstream::link::{Link, TxFrame};
use millstream::timer::TscClock;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::figure::{Figure, Runs, round};
use crate::world::{self, CLIENT, SERVER, Settings, World};
use crate::{cleanup, cpus, urgent};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a role reports on its standard output.
#[derive(Debug, Serialize, Deserialize)]
struct Reported {
    runs: Vec<f64>,
    huge_pages: bool,
    frames: f64,
}

fn report(reported: &Reported) -> Result<()> {
    println!("{}", serde_json::to_string(reported)?);
    Ok(())
}

/// Runs a role in a second process and takes its report.
fn child(cpu: usize, args: &[&str]) -> Result<Reported> {
    let mut command = Command::new("taskset");
    command.args(["-c", &cpu.to_string()]).arg(std::env::current_exe()?).arg("--role").args(args);
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().rev().find_map(|line| serde_json::from_str(line).ok()) {
        Some(reported) if output.status.success() => Ok(reported),
        _ => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(text.lines().last().unwrap_or("the second process failed").to_owned().into())
        }
    }
}

fn figure(name: &str, reported: &Reported, how: &str) -> Figure {
    let pages = if reported.huge_pages { "2 MiB" } else { "4 KiB" };
    Figure::new(name, &Runs(reported.runs.clone())).with("pages", json!(pages)).note(how)
}

fn link(eal: &'static Eal, device: Device) -> Result<PortQueue> {
    let mut port = Port::open(eal, &PortConfig::new(device))?;
    Ok(port.take_queue(0).ok_or("the port has no queue")?.bind()?)
}

/// `pingpong.ring.cycles`.
pub fn ring() -> Result<Vec<Figure>> {
    let reported = child(cpus().1, &["ring"])?;
    let figure = figure(
        "pingpong.ring.cycles",
        &reported,
        "as pingpong.mem.cycles, over two DPDK ports that are joined by rings (net_ring): mbufs \
         change hands, nothing is copied but the headers",
    );
    Ok(vec![figure.with("frames_per_round_trip", json!(round(reported.frames)))])
}

/// The process of [`ring`].
pub fn ring_role() -> Result<()> {
    const RUNS: usize = 301;
    const ROUND_TRIPS: u64 = 2_000;
    urgent();
    let eal = Eal::init(&EalConfig::default())?;
    let (mut a, mut b) = Port::ring_pair(eal, &PortConfig::new(Device::Ring))?;
    let ends = (
        a.take_queue(0).ok_or("the port has no queue")?.bind()?,
        b.take_queue(0).ok_or("the port has no queue")?.bind()?,
    );
    let mut world = World::new(ends, &Settings::default())?;
    let (client, server) = (world.client.stack().clone(), world.server.stack().clone());
    server.spawn(world::echo_server(server.clone()))?;
    client.spawn(world::ping(client.clone(), Rc::clone(&world.done)))?;
    let clock = TscClock::new();
    world.run(10 * ROUND_TRIPS)?;
    let before = world.frames();
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        runs.push(world.measure(ROUND_TRIPS, &clock)? as f64 / (2 * ROUND_TRIPS) as f64);
    }
    let frames = world.frames().0 - before.0 + world.frames().1 - before.1;
    let frames = frames as f64 / (RUNS as u64 * ROUND_TRIPS) as f64;
    report(&Reported { runs, huge_pages: eal.huge_pages(), frames })
}

const MEMIF_CONNECTIONS: usize = 256;
/// After this the server ends whatever happens.
const MEMIF_SERVER_SECONDS: u64 = 60;

/// `pingpong.memif.rps`.
pub fn memif() -> Result<Vec<Figure>> {
    let dir = cleanup::Dir::new()?;
    let socket = dir.path().join("memif.sock");
    let socket_text = socket.to_string_lossy();
    let (server_cpu, client_cpu) = cpus();
    let mut command = Command::new("taskset");
    command.args(["-c", &server_cpu.to_string()]).arg(std::env::current_exe()?).args([
        "--role",
        "memif-server",
        &socket_text,
    ]);
    let mut server = cleanup::Process::start("memif-server", dir.path(), command)?;
    let waited = std::time::Instant::now();
    while !socket.exists() {
        server.check()?;
        if waited.elapsed() > Duration::from_secs(20) {
            return Err("the memif server does not open its socket".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let reported = child(client_cpu, &["memif-client", &socket_text])?;
    server.check()?;
    let figure = figure(
        "pingpong.memif.rps",
        &reported,
        "1-byte request and response on 256 connections, closed loop; server and generator are \
         processes on a core each, joined by net_memif (which copies); checksums in software, \
         timestamps on",
    );
    Ok(vec![figure.with("frames_per_round_trip", json!(round(reported.frames)))])
}

fn memif_device(role: MemifRole, socket: &str) -> Device {
    Device::Memif { role, socket: Path::new(socket).to_owned(), id: 0 }
}

/// The serving process of [`memif`].
pub fn memif_server_role(socket: &str) -> Result<()> {
    urgent();
    let eal = Eal::init(&EalConfig::default())?;
    let link = link(eal, memif_device(MemifRole::Server, socket))?;
    let mut shard = world::shard(SERVER, link, &Settings::default())?;
    let stack = shard.stack().clone();
    stack.spawn(world::echo_server(stack.clone()))?;
    let end = stack.sleep(Duration::from_secs(MEMIF_SERVER_SECONDS));
    shard.block_on(Idle::Spin, end);
    Ok(())
}

/// The generating process of [`memif`].
pub fn memif_client_role(socket: &str) -> Result<()> {
    const RUNS: usize = 7;
    urgent();
    let eal = Eal::init(&EalConfig::default())?;
    let link = link(eal, memif_device(MemifRole::Client, socket))?;
    let limits = Limits { connections: 1024, ..Limits::default() };
    let mut shard = world::shard(CLIENT, link, &Settings { limits, ..Settings::default() })?;
    let stack = shard.stack().clone();
    let done = Rc::new(Cell::new(0));
    for _ in 0..MEMIF_CONNECTIONS {
        stack.spawn(world::ping(stack.clone(), Rc::clone(&done)))?;
    }
    let (runs, trips, segments) = shard.block_on(Idle::Spin, generate(stack, done, RUNS));
    if trips == 0 {
        return Err("no request was answered over memif".into());
    }
    // The server answers each of our frames with one of its own, or fewer.
    let frames = 2.0 * segments as f64 / trips as f64;
    report(&Reported { runs, huge_pages: eal.huge_pages(), frames })
}

/// Round trips a second in each of `runs` stretches, all round trips, and segments sent for them.
async fn generate(stack: Stack, done: Rc<Cell<u64>>, runs: usize) -> (Vec<f64>, u64, u64) {
    // The link comes up and 256 connections open, at worst after a SYN was lost once or twice.
    for _ in 0..100 {
        stack.sleep(Duration::from_millis(100)).await;
        if stack.metrics().connected as usize >= MEMIF_CONNECTIONS {
            break;
        }
    }
    stack.sleep(Duration::from_millis(300)).await;
    let (first, segments) = (done.get(), stack.metrics().tcp_segments_out);
    let mut rates = Vec::new();
    for _ in 0..runs {
        let (start, before) = (stack.now(), done.get());
        stack.sleep(Duration::from_millis(600)).await;
        let nanos = stack.now().nanos_since(start).max(1);
        rates.push((done.get() - before) as f64 * 1e9 / nanos as f64);
    }
    (rates, done.get() - first, stack.metrics().tcp_segments_out - segments)
}

/// `segment.extbuf_ns`.
pub fn extbuf() -> Result<Vec<Figure>> {
    let reported = child(cpus().1, &["extbuf"])?;
    let figure = figure(
        "segment.extbuf_ns",
        &reported,
        "54 bytes of headers copied into an mbuf, 1460 bytes of an arena block attached to a second \
         one, both handed to net_null in bursts and freed, reference taken back",
    );
    Ok(vec![figure])
}

/// The process of [`extbuf`].
pub fn extbuf_role() -> Result<()> {
    const RUNS: usize = 301;
    const FRAMES: u64 = 10_000;
    urgent();
    let eal = Eal::init(&EalConfig::default())?;
    let mut queue = link(eal, Device::Null { frame_bytes: 64, rx: false })?;
    let arena = Arena::new(&ArenaConfig::default())?;
    // As a server does it: one handle after the other on segments of 16 KiB blocks.
    let blocks: Vec<_> = (0..64)
        .filter_map(|_| arena.alloc(SizeClass::Block))
        .map(|block| block.freeze(0..16_060))
        .collect();
    let slices: Vec<_> = blocks
        .iter()
        .flat_map(|block| (0..11).map(|i| block.slice(i * 1460..(i + 1) * 1460)))
        .collect();
    let header = [0x5a_u8; 54];
    let clock = TscClock::new();
    let mut runs = Vec::new();
    for _ in 0..=RUNS {
        let start = clock.raw();
        let mut sent = 0_u64;
        while sent < FRAMES {
            for slice in &slices {
                let payload = std::slice::from_ref(slice);
                queue.tx(&TxFrame { header: &header, payload, offload: Default::default() })?;
            }
            sent += slices.len() as u64;
        }
        queue.flush();
        runs.push(clock.nanos_between(start, clock.raw()) as f64 / sent as f64);
    }
    runs.remove(0);
    if queue.stats().tx_copied_bytes > 0 {
        return Err("payload was copied, not attached".into());
    }
    report(&Reported { runs, huge_pages: eal.huge_pages(), frames: 1.0 })
}
