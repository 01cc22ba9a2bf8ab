//! The protocol: what is refused, how long is waited, and what becomes of connections.

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use common::{Folder, Response, SERVER, World, pattern, read_to_end, server_config};
use millstream_core::TcpStream;
use millstream_http::{ServerConfig, Timeouts};

fn folder() -> Folder {
    let folder = Folder::new();
    folder.put("one", "1");
    folder.put("two", "22");
    folder.put("six.bin", pattern(6 << 10));
    folder.put("large.bin", pattern(3 << 20));
    folder
}

fn world() -> World {
    World::new(folder(), server_config())
}

/// Has the server keep files in its cache. The disk takes real time, so they are asked for until
/// that is seen.
fn keep(world: &mut World, paths: &[&str]) {
    for _ in 0..100_000 {
        for path in paths {
            world.get(path, "");
        }
        world.pass(Duration::from_millis(5));
        if world.server.stats().cache_fills == paths.len() as u64 {
            return;
        }
        std::thread::yield_now();
    }
    panic!("never read into the cache");
}

/// Reads until `count` responses are there.
async fn responses(stream: &TcpStream, count: usize) -> Vec<Response> {
    let mut bytes = Vec::new();
    loop {
        let mut found = Vec::new();
        let mut rest = &bytes[..];
        while found.len() < count && whole(rest) {
            let (response, more) = Response::parse(rest, false);
            found.push(response);
            rest = more;
        }
        if found.len() == count {
            assert!(rest.is_empty());
            return found;
        }
        match stream.read_buf().await {
            Ok(Some(slice)) => bytes.extend_from_slice(&slice),
            other => panic!("{other:?} after {} responses", found.len()),
        }
    }
}

fn whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, _)) = text.split_once("\r\n\r\n") else { return false };
    let len = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let len: usize = len.map_or(0, |len| len.parse().unwrap());
    bytes.len() >= head.len() + 4 + len
}

#[test]
fn what_cannot_be_served_has_its_status() {
    let mut world = world();
    let long = "x".repeat(9000);
    let many = "A: b\r\n".repeat(65);
    let cases: Vec<(String, u16)> = vec![
        ("GET /nothing HTTP/1.1\r\nHost: h\r\n".into(), 404),
        ("GET /one HTTP/1.1\r\n".into(), 400),
        ("GET /one HTTP/1.1\r\nHost: a\r\nHost: b\r\n".into(), 400),
        ("GET one HTTP/1.1\r\nHost: h\r\n".into(), 400),
        ("GET /%zz HTTP/1.1\r\nHost: h\r\n".into(), 400),
        ("GET /one HTTP/1.1\r\nHost: h\r\nBad Name: x\r\n".into(), 400),
        ("GET /one HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n".into(), 400),
        ("GET /one HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 0\r\n".into(), 400),
        ("GET /one HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n".into(), 400),
        ("GET /one HTTP/1.1\r\nHost: h\r\nContent-Length: 7\r\n".into(), 413),
        ("POST /one HTTP/1.1\r\nHost: h\r\n".into(), 405),
        ("POST /one HTTP/1.1\r\nHost: h\r\nContent-Length: 7\r\n".into(), 405),
        ("OPTIONS * HTTP/1.1\r\nHost: h\r\n".into(), 405),
        ("CONNECT h:443 HTTP/1.1\r\nHost: h\r\n".into(), 405),
        ("BREW /one HTTP/1.1\r\nHost: h\r\n".into(), 501),
        ("GET /one HTTP/2.0\r\nHost: h\r\n".into(), 505),
        (format!("GET /{long} HTTP/1.1\r\nHost: h\r\n"), 414),
        (format!("GET /one HTTP/1.1\r\nHost: h\r\nX: {long}\r\n"), 431),
        (format!("GET /one HTTP/1.1\r\nHost: h\r\n{many}"), 431),
        ("GET /one HTTP/1.1\r\nHost: h\r\n".into(), 200),
        ("GET /one HTTP/1.0\r\n".into(), 200),
        ("GET http://h/one?x=y HTTP/1.1\r\nHost: other\r\n".into(), 200),
        ("\r\n\r\nGET /one HTTP/1.1\r\nHost: h\r\n".into(), 200),
    ];
    for (text, status) in cases {
        let shown = &text[..text.len().min(60)];
        let bytes = world.exchange(format!("{text}Connection: close\r\n\r\n"));
        let (response, rest) = Response::parse(&bytes, false);
        assert_eq!(response.status, status, "{shown}");
        assert_eq!(response.field("Connection"), Some("close"), "{shown}");
        assert!(rest.is_empty(), "{shown}");
        if status == 405 {
            assert_eq!(response.field("Allow"), Some("GET, HEAD"));
        }
    }
    for garbage in [&b"\x16\x03\x01\x02\x00\x01\x00\r\n"[..], b"hello\r\n\r\n", b"\0\0\0\0\r\n"] {
        let bytes = world.exchange(garbage);
        assert_eq!(Response::parse(&bytes, false).0.status, 400, "{garbage:?}");
    }
    assert!(world.server.stats().parse_errors > 10);
}

#[test]
fn an_error_does_not_end_a_connection_that_is_in_step() {
    let mut world = world();
    let bytes = world.exchange(
        "GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n\
         DELETE /one HTTP/1.1\r\nHost: h\r\n\r\n\
         GET /%00 HTTP/1.1\r\nHost: h\r\n\r\n\
         GET /two HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n\
         GET /one HTTP/1.1\r\nHost: h\r\n\r\n",
    );
    let mut rest = &bytes[..];
    let mut statuses = Vec::new();
    while !rest.is_empty() {
        let (response, more) = Response::parse(rest, false);
        statuses.push(response.status);
        rest = more;
    }
    assert_eq!(statuses, [404, 405, 400, 200], "what follows `close` is not answered");
}

#[test]
fn pipelined_requests_are_answered_in_order_and_together() {
    let mut world = world();
    keep(&mut world, &["/one", "/two", "/six.bin"]);
    let before = world.shard.stack().metrics().tcp_segments_out;
    let found = world.run(|stack| {
        Box::pin(async move {
            let stream = stack.connect(SERVER).await.unwrap();
            let mut text = String::new();
            for i in 0..20 {
                let path = ["one", "two", "six.bin", "nothing"][i % 4];
                text += &format!("GET /{path} HTTP/1.1\r\nHost: h\r\n\r\n");
            }
            stream.write_all(text.as_bytes()).await.unwrap();
            responses(&stream, 20).await
        })
    });
    for (i, response) in found.iter().enumerate() {
        let (status, body) = [
            (200, b"1".to_vec()),
            (200, b"22".to_vec()),
            (200, pattern(6 << 10)),
            (404, b"404 Not Found\n".to_vec()),
        ][i % 4]
            .clone();
        assert_eq!(response.status, status, "{i}");
        assert!(response.body == body, "{i}");
        assert_eq!(response.field("Connection"), None);
    }
    // Five times six KiB take 22 segments, the heads a few more; one segment a response would be 47.
    let segments = world.shard.stack().metrics().tcp_segments_out - before;
    assert!(segments < 40, "{segments}");
}

#[test]
fn requests_that_come_byte_by_byte_are_understood() {
    let mut world = world();
    let found = world.run(|stack| {
        Box::pin(async move {
            let stream = stack.connect(SERVER).await.unwrap();
            stream.set_nodelay(true);
            let text =
                "GET /one HTTP/1.1\r\nHost: h\r\n\r\n\r\nGET /two HTTP/1.1\r\nHost: h\r\n\r\n";
            for byte in text.bytes() {
                stream.write_all(&[byte]).await.unwrap();
                stack.sleep(Duration::from_micros(300)).await;
            }
            responses(&stream, 2).await
        })
    });
    assert_eq!((&found[0].body[..], &found[1].body[..]), (&b"1"[..], &b"22"[..]));
}

#[test]
fn old_clients_are_closed_unless_they_ask() {
    let mut world = world();
    let bytes = world.exchange("GET /one HTTP/1.0\r\n\r\nGET /one HTTP/1.0\r\n\r\n");
    let (response, rest) = Response::parse(&bytes, false);
    assert_eq!(response.field("Connection"), Some("close"));
    assert!(rest.is_empty());
    let bytes = world
        .exchange("GET /one HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /two HTTP/1.0\r\n\r\n");
    let (response, rest) = Response::parse(&bytes, false);
    assert_eq!(response.field("Connection"), Some("keep-alive"));
    assert_eq!(Response::parse(rest, false).0.body, b"22");
}

/// How long, in virtual seconds, until the server closes after `text`, and what it said.
fn until_closed(world: &mut World, text: &'static str, drip: Option<Duration>) -> (u64, Vec<u8>) {
    let start = world.now();
    let bytes = world.run(move |stack| {
        Box::pin(async move {
            let stream = Rc::new(stack.connect(SERVER).await.unwrap());
            stream.write_all(text.as_bytes()).await.unwrap();
            if let Some(every) = drip {
                let (stream, here) = (Rc::clone(&stream), stack.clone());
                let task = async move {
                    while stream.write_all(b"x").await.is_ok() {
                        here.sleep(every).await;
                    }
                };
                drop(stack.spawn(task).unwrap());
            }
            read_to_end(&stream).await
        })
    });
    ((world.now() - start).as_secs(), bytes)
}

#[test]
fn slow_clients_are_not_waited_for() {
    let mut world = world();
    // Nothing at all: closed without a word.
    let (seconds, bytes) = until_closed(&mut world, "", None);
    assert_eq!((seconds, bytes.len()), (10, 0));
    // Half a head.
    let (seconds, bytes) = until_closed(&mut world, "GET /one HTTP/1.1\r\nHos", None);
    assert_eq!(seconds, 10);
    assert_eq!(Response::parse(&bytes, false).0.status, 408);
    // A head that goes on and on: progress is no excuse.
    let drip = Some(Duration::from_millis(700));
    let (seconds, bytes) = until_closed(&mut world, "GET /one HTTP/1.1\r\nX: ", drip);
    assert_eq!(seconds, 10);
    assert_eq!(Response::parse(&bytes, false).0.status, 408);
    // After a response the idle time-out counts.
    let (seconds, bytes) = until_closed(&mut world, "GET /one HTTP/1.1\r\nHost: h\r\n\r\n", None);
    assert_eq!(seconds, 60);
    assert_eq!(Response::parse(&bytes, false).0.status, 200);
    let stats = world.server.stats();
    assert_eq!((stats.timeouts_header, stats.timeouts_idle), (2, 2));
}

#[test]
fn a_client_that_does_not_read_is_reset() {
    let mut world = world();
    // The cache first, then the splice: each has its own way to wait.
    for (path, times) in [("/six.bin", 400), ("/large.bin", 1)] {
        let before = world.server.stats().timeouts_send;
        let text = format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").repeat(times);
        let stack = world.client.stack().clone();
        let holder = stack.clone().spawn(async move {
            let stream = stack.connect(SERVER).await.unwrap();
            let mut rest = text.as_bytes();
            while !rest.is_empty() {
                match stream.write(rest).await {
                    Ok(count) => rest = &rest[count..],
                    Err(_) => break,
                }
            }
            // Holds the connection without reading, until the server is through with it.
            stack.sleep(Duration::from_secs(20_000)).await;
            drop(stream);
        });
        drop(holder.unwrap());
        let start = world.now();
        let server = world.server.clone();
        world.run_until(|| server.stats().timeouts_send > before);
        let seconds = (world.now() - start).as_secs();
        assert!((30..62).contains(&seconds), "{path}: {seconds}");
        let server = world.server.clone();
        world.run_until(|| server.connections() == 0);
    }
}

#[test]
fn a_client_that_reads_slowly_but_enough_is_served() {
    let mut world = world();
    // From the disk, in many times the time that is given for one share.
    let start = world.now();
    let bytes = world.run(|stack| {
        Box::pin(async move {
            let stream = stack.connect(SERVER).await.unwrap();
            stream.write_all(b"GET /large.bin HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            let (mut all, mut pause_at) = (Vec::new(), 0);
            while all.len() < 3 << 20 {
                if all.len() >= pause_at {
                    stack.sleep(Duration::from_secs(20)).await;
                    pause_at = all.len() + (200 << 10);
                }
                match stream.read_buf().await {
                    Ok(Some(slice)) => all.extend_from_slice(&slice),
                    other => panic!("{other:?} after {} bytes", all.len()),
                }
            }
            while !whole(&all) {
                all.extend_from_slice(&stream.read_buf().await.unwrap().unwrap());
            }
            all
        })
    });
    assert!(Response::parse(&bytes, false).0.body == pattern(3 << 20));
    assert!((world.now() - start).as_secs() > 200);
    assert_eq!(world.server.stats().timeouts_send, 0);
}

#[test]
fn a_body_does_not_destroy_the_response() {
    let mut world = world();
    // More than fits the window, so that a reset would overtake the response.
    let bytes = world.run(|stack| {
        Box::pin(async move {
            let stream = Rc::new(stack.connect(SERVER).await.unwrap());
            let text = "POST /one HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n";
            stream.write_all(text.as_bytes()).await.unwrap();
            let writing = Rc::clone(&stream);
            let body = async move {
                let _ = writing.write_all(&vec![b'x'; 100_000]).await;
            };
            drop(stack.spawn(body).unwrap());
            read_to_end(&stream).await
        })
    });
    assert_eq!(Response::parse(&bytes, false).0.status, 405);
}

#[test]
fn a_close_with_more_to_read_does_not_destroy_the_response() {
    let mut world = world();
    keep(&mut world, &["/six.bin"]);
    // The requests behind it stay unread, as their answers would not be sent.
    let mut text = String::from("GET /six.bin HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    text += &"GET /one HTTP/1.1\r\nHost: h\r\n\r\n".repeat(60);
    let bytes = world.exchange(text);
    let (response, rest) = Response::parse(&bytes, false);
    assert!(response.body == pattern(6 << 10));
    assert_eq!(response.field("Connection"), Some("close"));
    assert!(rest.is_empty(), "what follows `close` is not answered");
}

#[test]
fn what_comes_after_the_close_does_not_destroy_the_response() {
    let mut world = world();
    keep(&mut world, &["/six.bin"]);
    // The peer sends on while the response is on its way, and reads only later.
    let bytes = world.run(|stack| {
        Box::pin(async move {
            let stream = stack.connect(SERVER).await.unwrap();
            stream.set_nodelay(true);
            let text = "GET /six.bin HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
            stream.write_all(text.as_bytes()).await.unwrap();
            for _ in 0..100 {
                stack.sleep(Duration::from_micros(20)).await;
                stream.write_all(b"more").await.unwrap();
            }
            stack.sleep(Duration::from_millis(100)).await;
            stream.write_all(b"more").await.expect("not reset");
            read_to_end(&stream).await
        })
    });
    assert!(Response::parse(&bytes, false).0.body == pattern(6 << 10));
}

#[test]
fn a_response_that_takes_long_to_read_is_waited_for() {
    let mut world = world();
    keep(&mut world, &["/six.bin"]);
    // More than the time to linger passes before the peer has room for the end of the response, and
    // it sends something then.
    let bytes = world.run(|stack| {
        Box::pin(async move {
            let stream = stack.connect(SERVER).await.unwrap();
            let ask = |end| format!("GET /six.bin HTTP/1.1\r\nHost: h\r\n{end}\r\n");
            let text = ask("").repeat(60) + &ask("Connection: close\r\n");
            stream.write_all(text.as_bytes()).await.unwrap();
            stack.sleep(Duration::from_secs(10)).await;
            stream.write_all(b"more").await.unwrap();
            read_to_end(&stream).await
        })
    });
    let mut rest = &bytes[..];
    for i in 0..61 {
        let (response, more) = Response::parse(rest, false);
        assert!(response.body == pattern(6 << 10), "{i}");
        rest = more;
    }
    assert!(rest.is_empty());
}

#[test]
fn a_peer_that_never_closes_is_left_in_time() {
    let mut world = world();
    let linger = Timeouts::default().linger;
    for chatty in [false, true] {
        let stack = world.client.stack().clone();
        let ended = Rc::new(Cell::new(false));
        let end = Rc::clone(&ended);
        let task = async move {
            let stream = stack.connect(SERVER).await.unwrap();
            let text = "GET /one HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
            stream.write_all(text.as_bytes()).await.unwrap();
            assert!(!read_to_end(&stream).await.is_empty());
            end.set(true);
            if chatty {
                while stream.write_all(&[b'x'; 1000]).await.is_ok() {
                    stack.sleep(Duration::from_millis(1)).await;
                }
            }
            stack.sleep(Duration::from_secs(100)).await;
        };
        drop(world.client.stack().spawn(task).unwrap());
        world.run_until(|| ended.get());
        let (start, server) = (world.now(), world.server.clone());
        assert_eq!(server.connections(), 1, "it is not let go at once");
        world.run_until(|| server.connections() == 0);
        let took = world.now() - start;
        let (least, most) = match chatty {
            false => (linger - Duration::from_millis(100), linger + Duration::from_millis(100)),
            // 256 KiB at a thousand bytes a millisecond.
            true => (Duration::from_millis(200), Duration::from_millis(400)),
        };
        assert!((least..most).contains(&took), "chatty: {chatty}, {took:?}");
    }
}

#[test]
fn draining_does_not_destroy_the_response() {
    let mut world = world();
    keep(&mut world, &["/six.bin"]);
    let server = world.server.clone();
    let bytes = world.run(|stack| {
        Box::pin(async move {
            let stream = stack.connect(SERVER).await.unwrap();
            let mut text = String::from("GET /large.bin HTTP/1.1\r\nHost: h\r\n\r\n");
            text += &"GET /six.bin HTTP/1.1\r\nHost: h\r\n\r\n".repeat(400);
            stream.write_all(text.as_bytes()).await.unwrap();
            let first = stream.read_buf().await.unwrap().unwrap().to_vec();
            server.drain();
            [first, read_to_end(&stream).await].concat()
        })
    });
    let (large, rest) = Response::parse(&bytes, false);
    assert!(large.body == pattern(3 << 20));
    let (six, rest) = Response::parse(rest, false);
    assert!(six.body == pattern(6 << 10), "the response that announced the close is whole");
    assert_eq!(six.field("Connection"), Some("close"));
    assert!(rest.is_empty());
}

#[test]
fn a_connection_turned_away_sees_why() {
    // Some are looked after until they close; the others may not suffer from what has arrived.
    let config = ServerConfig { connections: 1, ..server_config() };
    let mut world = World::new(folder(), config);
    let statuses = world.run(|stack| {
        Box::pin(async move {
            let first = stack.connect(SERVER).await.unwrap();
            first.write_all(b"GET /one HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            assert_eq!(responses(&first, 1).await[0].status, 200);
            let mut others = Vec::new();
            for _ in 0..10 {
                let other = stack.connect(SERVER).await.unwrap();
                other.set_nodelay(true);
                // At once, and again after the close.
                for _ in 0..3 {
                    other.write_all(b"GET /one HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
                    stack.sleep(Duration::from_micros(30)).await;
                }
                others.push(other);
            }
            stack.sleep(Duration::from_millis(100)).await;
            let mut statuses = Vec::new();
            for other in &others {
                other.write_all(b"more").await.expect("not reset");
                let bytes = read_to_end(other).await;
                statuses.push(Response::parse(&bytes, false).0.status);
            }
            statuses
        })
    });
    assert_eq!(statuses, [503; 10]);
    assert_eq!(world.server.stats().connections_refused, 10);
}

#[test]
fn too_many_connections_are_turned_away() {
    let config = ServerConfig { connections: 2, ..server_config() };
    let mut world = World::new(folder(), config);
    let status = world.run(|stack| {
        Box::pin(async move {
            let one = stack.connect(SERVER).await.unwrap();
            let two = stack.connect(SERVER).await.unwrap();
            for stream in [&one, &two] {
                stream.write_all(b"GET /one HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
                assert_eq!(responses(stream, 1).await[0].status, 200);
            }
            let three = stack.connect(SERVER).await.unwrap();
            let bytes = read_to_end(&three).await;
            Response::parse(&bytes, false).0.status
        })
    });
    assert_eq!(status, 503);
    assert_eq!(world.server.stats().connections_refused, 1);
    assert_eq!(world.get("/one", "").status, 200, "the two have gone");
}

#[test]
fn partial_requests_are_bounded_in_all() {
    let config = ServerConfig { partial_bytes_max: 1000, ..server_config() };
    let mut world = World::new(folder(), config);
    let status = world.run(|stack| {
        Box::pin(async move {
            let mut held = Vec::new();
            for i in 0..4 {
                let stream = stack.connect(SERVER).await.unwrap();
                stream.set_nodelay(true);
                for _ in 0..2 {
                    let part = format!("GET /{} ", "x".repeat(200));
                    stream.write_all(part.trim_end().as_bytes()).await.unwrap();
                    stack.sleep(Duration::from_millis(1)).await;
                }
                held.push((i, stream));
            }
            let (_, last) = held.pop().unwrap();
            let bytes = read_to_end(&last).await;
            Response::parse(&bytes, false).0.status
        })
    });
    assert_eq!(status, 503);
    assert_eq!(world.get("/one", "").status, 200);
}

#[test]
fn draining_ends_idle_connections_and_finishes_the_others() {
    let mut world = world();
    let server = world.server.clone();
    let body = world.run(move |stack| {
        Box::pin(async move {
            let idle = stack.connect(SERVER).await.unwrap();
            idle.write_all(b"GET /one HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            assert_eq!(responses(&idle, 1).await[0].status, 200);
            let busy = stack.connect(SERVER).await.unwrap();
            busy.write_all(b"GET /large.bin HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            let first = busy.read_buf().await.unwrap().unwrap().to_vec();
            server.drain();
            assert!(read_to_end(&idle).await.is_empty(), "the idle one is closed");
            let rest = read_to_end(&busy).await;
            Response::parse(&[first, rest].concat(), false).0.body
        })
    });
    assert!(body == pattern(3 << 20));
    // The client has closed too by now.
    let (start, server) = (world.now(), world.server.clone());
    world.run_until(|| server.connections() == 0);
    assert!(world.now() - start < Duration::from_millis(100));
}

#[test]
fn shorter_time_outs_are_kept_too() {
    let timeouts = Timeouts {
        header: Duration::from_secs(2),
        idle: Duration::from_secs(1),
        ..Timeouts::default()
    };
    let mut world = World::new(folder(), ServerConfig { timeouts, ..server_config() });
    let (seconds, _) = until_closed(&mut world, "GET /one HTTP/1.1\r\nHost: h\r\n\r\n", None);
    assert_eq!(seconds, 1);
    let (seconds, _) = until_closed(&mut world, "GET /one HTTP/1.1\r\n", None);
    assert_eq!(seconds, 2);
}
