//! What an idle connection costs in memory.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::net::SocketAddrV4;
use std::rc::Rc;

use millstream::core::{Limits, Shard, Stack, TcpStream};
use millstream::link::mem::{self, MemConfig, MemLink};
use millstream::timer::TscClock;
use serde_json::json;
use stats_alloc::Region;

use crate::figure::{Figure, round};
use crate::world::{CLIENT, SERVER, Settings, shard};

const CONNECTIONS: usize = 100_000;
/// Several listeners: a pair of addresses has only so many ports.
const PORTS: [u16; 4] = [8001, 8002, 8003, 8004];

fn settings(connections: usize) -> Settings {
    let limits =
        Limits { connections, tasks: CONNECTIONS + 16, sleepers: 1024, ..Limits::default() };
    Settings { limits, ..Settings::default() }
}

/// Bytes that the heap has grown since the region began.
fn grown(region: &Region<'_, std::alloc::System>) -> i64 {
    let change = region.change();
    change.bytes_allocated as i64 - change.bytes_deallocated as i64
}

/// A server shard for so many connections, and the bytes of heap that it took.
fn server(
    connections: usize,
    link: MemLink,
) -> Result<(Shard<MemLink, TscClock>, i64), Box<dyn Error>> {
    let region = Region::new(crate::ALLOCATOR);
    let server = shard(SERVER, link, &settings(connections))?;
    Ok((server, grown(&region)))
}

/// Takes connections and keeps them.
async fn keep(stack: Stack, port: u16, kept: Rc<RefCell<Vec<TcpStream>>>) {
    let Ok(listener) = stack.listen(SocketAddrV4::new(SERVER, port), 1024) else { return };
    loop {
        let (stream, _) = listener.accept().await;
        kept.borrow_mut().push(stream);
    }
}

/// Takes connections, each with a task that waits for something to read.
async fn attend(stack: Stack, port: u16, attended: Rc<Cell<usize>>) {
    let Ok(listener) = stack.listen(SocketAddrV4::new(SERVER, port), 1024) else { return };
    loop {
        let (stream, _) = listener.accept().await;
        attended.set(attended.get() + 1);
        let task = async move { while let Ok(Some(_)) = stream.read_buf().await {} };
        if stack.spawn(task).is_err() {
            return;
        }
    }
}

async fn open(stack: Stack, streams: Rc<RefCell<Vec<TcpStream>>>, failed: Rc<Cell<bool>>) {
    for i in 0..CONNECTIONS {
        let remote = SocketAddrV4::new(SERVER, PORTS[i % PORTS.len()]);
        match stack.connect(remote).await {
            Ok(stream) => streams.borrow_mut().push(stream),
            Err(_) => return failed.set(true),
        }
    }
}

/// Heap bytes of a server shard that has all connections, and buffers that they hold.
fn fill(tasks: bool) -> Result<(i64, usize), Box<dyn Error>> {
    let (near, far) = mem::pair(MemConfig::default())?;
    let mut client = shard(CLIENT, near, &settings(CONNECTIONS))?;
    let (mut server, mut bytes) = server(CONNECTIONS, far)?;
    let opened = Rc::new(RefCell::new(Vec::with_capacity(CONNECTIONS)));
    let failed = Rc::new(Cell::new(false));
    let attended = Rc::new(Cell::new(0));
    let region = Region::new(crate::ALLOCATOR);
    let kept = Rc::new(RefCell::new(Vec::with_capacity(if tasks { 0 } else { CONNECTIONS })));
    for port in PORTS {
        let stack = server.stack();
        if tasks {
            stack.spawn(attend(stack.clone(), port, Rc::clone(&attended)))?;
        } else {
            stack.spawn(keep(stack.clone(), port, Rc::clone(&kept)))?;
        }
    }
    bytes += grown(&region);
    let free_frames = server.stack().arena_stats().frames.1;
    let stack = client.stack();
    stack.spawn(open(stack.clone(), Rc::clone(&opened), Rc::clone(&failed)))?;
    let accepted = || if tasks { attended.get() } else { kept.borrow().len() };
    let mut idle_turns = 0;
    // Until all are there, and then until nothing is under way.
    while idle_turns < 1000 {
        let busy = client.turn().work;
        let region = Region::new(crate::ALLOCATOR);
        let work = server.turn().work + busy;
        bytes += grown(&region);
        let there = accepted() == CONNECTIONS && opened.borrow().len() == CONNECTIONS;
        idle_turns = if there && work == 0 { idle_turns + 1 } else { 0 };
        if failed.get() {
            let count = opened.borrow().len();
            return Err(format!("connection {count} could not be opened").into());
        }
    }
    let established = server.stack().connections();
    if established != CONNECTIONS {
        return Err(format!("{established} connections at the server").into());
    }
    Ok((bytes, free_frames.saturating_sub(server.stack().arena_stats().frames.1)))
}

/// `mem.idle_connection_bytes`.
pub fn idle() -> Result<Vec<Figure>, Box<dyn Error>> {
    // What a shard takes that has room for one connection: everything that does not grow with them.
    let (_, link) = mem::pair(MemConfig::default())?;
    let (empty, fixed) = server(1, link)?;
    drop(empty);
    let each = |(bytes, frames): (i64, usize)| {
        (bytes - fixed + (frames * millstream::buf::FRAME_BYTES) as i64) as f64 / CONNECTIONS as f64
    };
    let plain = fill(false)?;
    let with_tasks = each(fill(true)?);
    let figure = Figure::exact("mem.idle_connection_bytes", each(plain))
        .with("connections", json!(CONNECTIONS))
        .with("arena_buffers_held", json!(plain.1))
        .with("with_a_task_each_bytes", json!(round(with_tasks)))
        .with("declared_bytes", json!(Stack::bytes_a_connection()))
        .note(
            "heap of the server's shard with 100,000 established idle connections, less that of a \
             shard with room for one, divided by 100,000: connection table, flow table, timers, \
             queues, and the application's handle on each; buffers of the arena that they hold are \
             added; counted at the global allocator",
        );
    Ok(vec![figure])
}
