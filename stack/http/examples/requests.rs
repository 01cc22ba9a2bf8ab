//! What a request for a cached file costs the server, everything from the frame that brings it to
//! the frame that answers it: a server and a client on an in-memory link in one thread.
//!
//! `cargo run --release -p millstream-http --example requests -- BYTES REQUESTS`. For instructions,
//! take the difference of two run lengths under
//! `valgrind --tool=callgrind --toggle-collect='*server_turn*'`.

use std::cell::Cell;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Instant;

use millstream_buf::{Arena, ArenaConfig};
use millstream_core::{Ipv4Config, Shard, ShardConfig, Stack};
use millstream_disk::{QueueKind, Root, open_queue};
use millstream_http::{FileServer, ServerConfig};
use millstream_link::mem::{MemConfig, MemLink, pair};
use millstream_timer::TscClock;

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 2), 80);
const CONNECTIONS: usize = 64;
const WARM: u64 = 20_000;

type End = Shard<MemLink, TscClock>;

fn end(last: u8, link: MemLink) -> Result<End, Box<dyn Error>> {
    let arena = Arena::new(&ArenaConfig::default())?;
    let disk = open_queue(QueueKind::Pread, &arena, 32)?;
    let address = Ipv4Addr::new(198, 18, 0, last);
    let config = ShardConfig::new(Ipv4Config { address, prefix_len: 24, gateway: None });
    Ok(Shard::new(config, link, TscClock::new(), arena, disk))
}

async fn ask(stack: Stack, body_bytes: usize, done: Rc<Cell<u64>>) {
    const REQUEST: &[u8] = b"GET /file HTTP/1.1\r\nHost: 198.18.0.2\r\nUser-Agent: example\r\n\r\n";
    let Ok(stream) = stack.connect(SERVER).await else { return };
    stream.set_nodelay(true);
    while stream.write_all(REQUEST).await.is_ok() {
        let mut left = None;
        while left != Some(0) {
            let Ok(Some(slice)) = stream.read_buf().await else { return };
            let bytes = slice.len();
            let body = match left {
                Some(left) => left - bytes,
                // The head is at the beginning of the first slice.
                None => match slice.windows(4).position(|four| four == b"\r\n\r\n") {
                    Some(at) => body_bytes + at + 4 - bytes,
                    None => return,
                },
            };
            left = Some(body);
        }
        done.set(done.get() + 1);
    }
}

#[inline(never)]
fn server_turn(server: &mut End) {
    server.turn();
}

fn run(client: &mut End, server: &mut End, done: &Cell<u64>, count: u64, counted: bool) {
    let goal = done.get() + count;
    while done.get() < goal {
        client.turn();
        if counted {
            server_turn(server);
        } else {
            server.turn();
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let bytes = numbers.next().transpose()?.unwrap_or(1) as usize;
    let count = numbers.next().transpose()?.unwrap_or(200_000);
    let folder = std::env::temp_dir().join(format!("millstream-requests-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("file"), vec![b'x'; bytes])?;

    let (a, b) = pair(MemConfig { slots: 2048, ..MemConfig::default() })?;
    let (mut client, mut server) = (end(1, a)?, end(2, b)?);
    let stack = server.stack().clone();
    let fills = open_queue(QueueKind::Pread, &stack.arena(), FileServer::FILL_DEPTH)?;
    let files = FileServer::new(&stack, Root::open(&folder)?, fills, ServerConfig::default());
    let (listener, accepting) = (stack.listen(SERVER, 1024)?, files.clone());
    stack.spawn(async move { accepting.serve(listener).await })?;
    let done = Rc::new(Cell::new(0));
    for _ in 0..CONNECTIONS {
        client.stack().spawn(ask(client.stack().clone(), bytes, Rc::clone(&done)))?;
    }
    run(&mut client, &mut server, &done, WARM, false);
    let start = Instant::now();
    run(&mut client, &mut server, &done, count, true);
    let nanos = start.elapsed().as_nanos() as f64 / count as f64;
    std::fs::remove_dir_all(&folder)?;
    let stats = files.stats();
    println!("{nanos:.0} ns a request of {bytes} bytes, both ends");
    println!("{} requests, {} from the cache", stats.requests, stats.cache_hits);
    Ok(())
}
