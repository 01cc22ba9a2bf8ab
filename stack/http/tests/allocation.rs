//! Nothing is allocated for a request whose answer is in the cache.

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use allocation_counter::measure;
use common::{Folder, SERVER, World, pattern, server_config};
use millstream_core::{Stack, TcpStream};

/// Asks for a file and takes the answer, which is `bytes` long.
async fn ask(stream: &TcpStream, request: &[u8], bytes: usize) {
    stream.write_all(request).await.unwrap();
    let mut left = bytes;
    while left > 0 {
        left -= stream.read_buf().await.unwrap().expect("an answer").len();
    }
}

/// Asks for ever.
async fn ask_on(stack: Stack, requests: Vec<(Vec<u8>, usize)>, done: Rc<Cell<u32>>) {
    let stream = stack.connect(SERVER).await.unwrap();
    loop {
        for (request, bytes) in &requests {
            ask(&stream, request, *bytes).await;
            done.set(done.get() + 1);
        }
    }
}

#[test]
fn cached_answers_take_no_memory() {
    let folder = Folder::new();
    let mut requests = Vec::new();
    // Repeats are known by their bytes unless they are long: both ways are taken.
    for (name, len, fields) in [("one", 1, ""), ("six", 6 * 1024, ""), ("one", 1, "X-Long: ")] {
        folder.put(name, pattern(len));
        let long = if fields.is_empty() { String::new() } else { "y".repeat(300) + "\r\n" };
        let text = format!("GET /{name} HTTP/1.1\r\nHost: h\r\n{fields}{long}\r\n");
        requests.push((name, text.into_bytes(), len));
    }
    let mut world = World::new(folder, server_config());
    let requests: Vec<_> = requests
        .into_iter()
        .map(|(name, text, len)| {
            let response = world.get(&format!("/{name}"), "");
            assert_eq!(response.body, pattern(len));
            // Without the line that closes the connection.
            (text, response.head.len() - "Connection: close\r\n".len() + len)
        })
        .collect();
    while world.server.stats().cache_fills < 2 {
        world.get("/one", "");
        world.get("/six", "");
        world.pass(Duration::from_millis(1));
    }
    let done = Rc::new(Cell::new(0));
    for _ in 0..3 {
        let stack = world.client.stack().clone();
        let task = ask_on(stack.clone(), requests.clone(), Rc::clone(&done));
        stack.spawn(task).unwrap();
    }
    let mut ask_until = |goal| {
        let done = Rc::clone(&done);
        world.run_until(move || done.get() >= goal);
    };
    ask_until(2_000);
    let taken = measure(|| ask_until(12_000));
    assert_eq!(taken.count_total, 0, "{taken:?}");
    let stats = world.server.stats();
    assert!(stats.cache_hits > 10_000, "{stats:?}");
    assert!(stats.requests >= u64::from(done.get()));
}
