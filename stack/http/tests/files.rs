//! Files, as a client gets them.

mod common;

use std::time::Duration;

use common::{Folder, Response, SERVER, World, pattern, read_to_end, server_config};
use millstream_http::{CacheConfig, ServerConfig};

fn site() -> Folder {
    let folder = Folder::new();
    folder.put("index.html", "<h1>home</h1>");
    folder.put("one", "1");
    folder.put("empty", "");
    folder.put("six.bin", pattern(6 << 10));
    folder.put("sixty.bin", pattern(60 << 10));
    folder.put("large.bin", pattern((1 << 20) + 12_345));
    folder.put("docs/index.html", "docs");
    folder.put("docs/a b&c.txt", "odd name");
    folder.put("noindex/x", "x");
    folder
}

fn world() -> World {
    World::new(site(), server_config())
}

#[test]
fn files_of_all_sizes_arrive_whole() {
    let mut world = world();
    // Often enough that each small file is served from the disk and from the cache.
    for round in 0..4 {
        for (path, want) in [
            ("/one", b"1".to_vec()),
            ("/empty", Vec::new()),
            ("/", b"<h1>home</h1>".to_vec()),
            ("/six.bin", pattern(6 << 10)),
            ("/sixty.bin", pattern(60 << 10)),
            ("/large.bin", pattern((1 << 20) + 12_345)),
        ] {
            let response = world.get(path, "");
            assert_eq!(response.status, 200, "{path}");
            assert_eq!(response.body.len(), want.len(), "{path} in round {round}");
            assert!(response.body == want, "{path} in round {round}");
        }
        world.pass(Duration::from_millis(10));
    }
    let stats = world.server.stats();
    assert_eq!((stats.requests, stats.status_2xx), (24, 24));
    assert_eq!(stats.cache_fills, 4, "{stats:?}");
    assert!(stats.cache_hits >= 10, "{stats:?}");
}

#[test]
fn a_name_that_is_in_no_cache_is_left_to_a_helper() {
    let config = ServerConfig { lookup_threads: 1, ..server_config() };
    let mut world = World::new(site(), config);
    // The kernel has just made these.
    assert_eq!(world.get("/six.bin", "").body, pattern(6 << 10));
    assert_eq!(world.server.stats().lookups_waited, 0);
    // Nobody has ever asked for this one; it is looked for once, and the kernel remembers.
    for _ in 0..3 {
        assert_eq!(world.get("/never/was/here", "").status, 404);
        world.pass(Duration::from_secs(2));
    }
    let waited = world.server.stats().lookups_waited;
    assert!((1..=3).contains(&waited), "{waited}");
    // A request that waits holds up no other, and one that is given up leaves nothing behind.
    world.run(|stack| {
        Box::pin(async move {
            for number in 0..20 {
                let stream = stack.connect(SERVER).await.unwrap();
                let request = format!("GET /nobody/{number} HTTP/1.1\r\nHost: h\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                if number % 2 == 0 {
                    stream.abort();
                }
            }
        })
    });
    assert_eq!(world.get("/one", "").body, b"1");
    let server = world.server.clone();
    world.run_until(|| server.connections() == 0);
    assert!(server.stats().lookups_waited > waited);
}

#[test]
fn the_head_says_what_comes() {
    let mut world = world();
    let response = world.get("/docs/", "");
    assert_eq!(response.field("Content-Type"), Some("text/html; charset=utf-8"));
    assert_eq!(response.field("Content-Length"), Some("4"));
    assert_eq!(response.field("Accept-Ranges"), Some("bytes"));
    assert_eq!(response.field("Server"), Some("millstream"));
    assert_eq!(response.field("Date"), Some("Wed, 18 May 2033 03:33:20 GMT"));
    assert!(response.field("Last-Modified").unwrap().ends_with(" GMT"));
    assert!(response.field("ETag").unwrap().starts_with('"'));
    assert_eq!(response.field("Connection"), Some("close"));
}

#[test]
fn head_is_get_without_the_body() {
    let mut world = world();
    for _ in 0..3 {
        for path in ["/one", "/six.bin", "/large.bin", "/nothing", "/docs"] {
            let (get, head) = (world.get(path, ""), world.request("HEAD", path, ""));
            assert_eq!(head.head, get.head, "{path}");
            assert!(head.body.is_empty());
        }
        // Kept connections use the heads that are kept too.
        let bytes = world.exchange(
            "HEAD /one HTTP/1.1\r\nHost: h\r\n\r\nHEAD /six.bin HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        );
        let (first, rest) = Response::parse(&bytes, true);
        let (second, rest) = Response::parse(rest, true);
        assert_eq!(
            (first.field("Content-Length"), second.field("Content-Length")),
            (Some("1"), Some("6144"))
        );
        assert!(rest.is_empty());
        world.pass(Duration::from_millis(10));
    }
}

#[test]
fn ranges_are_cut_from_disk_and_cache() {
    let mut world = world();
    for path in ["/six.bin", "/large.bin", "/sixty.bin"] {
        let whole = world.get(path, "").body;
        let len = whole.len();
        for _ in 0..3 {
            for (field, start, end) in [
                ("bytes=0-0", 0, 1),
                ("bytes=1-", 1, len),
                ("bytes=-5", len - 5, len),
                ("bytes=1000-5999", 1000, 6000),
                ("bytes=4095-4096", 4095, 4097),
                ("bytes=100-99999999999", 100, len),
            ] {
                let response = world.get(path, &format!("Range: {field}\r\n"));
                assert_eq!(response.status, 206, "{path} {field}");
                let range = format!("bytes {start}-{}/{len}", end - 1);
                assert_eq!(response.field("Content-Range"), Some(range.as_str()));
                assert!(response.body == whole[start..end], "{path} {field}");
            }
            world.pass(Duration::from_millis(10));
        }
        let response = world.get(path, &format!("Range: bytes={len}-\r\n"));
        assert_eq!(response.status, 416);
        assert_eq!(response.field("Content-Range"), Some(format!("bytes */{len}").as_str()));
        assert_eq!(
            world.get(path, "Range: bytes=0-1,5-6\r\n").status,
            200,
            "several may be ignored"
        );
        let head = world.request("HEAD", path, "Range: bytes=0-1\r\n");
        assert_eq!(
            (head.status, head.field("Content-Length")),
            (200, Some(len.to_string().as_str()))
        );
    }
}

#[test]
fn conditions_save_the_body() {
    let mut world = world();
    let first = world.get("/six.bin", "");
    let (tag, date) = (first.field("ETag").unwrap(), first.field("Last-Modified").unwrap());
    let cases = [
        (format!("If-None-Match: {tag}\r\n"), 304),
        (format!("If-None-Match: \"x\", W/{tag}\r\n"), 304),
        ("If-None-Match: \"x\"\r\n".to_owned(), 200),
        (format!("If-Modified-Since: {date}\r\n"), 304),
        ("If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\n".to_owned(), 200),
        (format!("If-Match: {tag}\r\n"), 200),
        ("If-Match: \"x\"\r\n".to_owned(), 412),
        ("If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\n".to_owned(), 412),
        (format!("Range: bytes=0-0\r\nIf-Range: {tag}\r\n"), 206),
        ("Range: bytes=0-0\r\nIf-Range: \"x\"\r\n".to_owned(), 200),
        (format!("Range: bytes=0-0\r\nIf-Range: {date}\r\n"), 206),
    ];
    for (fields, status) in cases {
        let response = world.get("/six.bin", &fields);
        assert_eq!(response.status, status, "{fields}");
        if status == 304 {
            assert_eq!(response.field("ETag"), Some(tag));
            assert_eq!(response.field("Content-Length"), None);
        }
    }
}

#[test]
fn directories_have_an_index_or_nothing() {
    let mut world = world();
    assert_eq!(world.get("/docs/", "").body, b"docs");
    let moved = world.get("/docs?query", "");
    assert_eq!((moved.status, moved.field("Location")), (301, Some("/docs/")));
    // Two slashes at the start would name another host.
    let moved = world.get("//docs", "");
    assert_eq!((moved.status, moved.field("Location")), (301, Some("/docs/")));
    assert_eq!(world.get("/noindex/", "").status, 404);
    assert_eq!(world.get("/one/", "").status, 404);
    assert_eq!(world.get("/docs/a%20b%26c.txt", "").body, b"odd name");
    assert_eq!(world.get("/docs/../one", "").status, 400);
}

#[test]
fn nothing_outside_the_root_is_served() {
    let outside = Folder::new();
    outside.put("secret", "secret");
    let folder = site();
    std::os::unix::fs::symlink(outside.0.join("secret"), folder.0.join("out")).unwrap();
    std::os::unix::fs::symlink(&outside.0, folder.0.join("outdir")).unwrap();
    std::os::unix::fs::symlink("../../../../../../etc/passwd", folder.0.join("climb")).unwrap();
    let name = outside.0.file_name().unwrap().to_str().unwrap().to_owned();
    let mut world = World::new(folder, server_config());
    for path in [
        "/out".to_owned(),
        "/outdir/secret".to_owned(),
        "/climb".to_owned(),
        format!("/../{name}/secret"),
        format!("/%2e%2e/{name}/secret"),
        format!("/.%2e/{name}/secret"),
        format!("/docs/..%2f..%2f{name}/secret"),
        format!("/docs/..%5c..%5c{name}/secret"),
        format!("/docs\\..\\..\\{name}\\secret"),
        format!("/{}", outside.0.join("secret").display()),
        format!("/%2f{}", outside.0.join("secret").display()),
        "/out%00.html".to_owned(),
        "/%c0%ae%c0%ae/secret".to_owned(),
    ] {
        let response = world.get(&path, "");
        assert!(matches!(response.status, 400 | 403 | 404), "{path}: {}", response.status);
        assert!(!response.body.windows(6).any(|window| window == b"secret"), "{path}");
        assert!(!response.body.windows(5).any(|window| window == b"root:"), "{path}");
    }
    assert_eq!(world.get("/out", "").status, 403);
}

#[test]
fn an_escape_in_a_name_is_not_taken_for_the_name() {
    let folder = site();
    folder.put("a%20b", "with an escape in its name");
    folder.put("a b", "with a space");
    let mut world = World::new(folder, server_config());
    for _ in 0..4 {
        assert_eq!(world.get("/a%2520b", "").body, b"with an escape in its name");
        assert_eq!(world.get("/a%20b", "").body, b"with a space");
        world.pass(Duration::from_millis(10));
    }
}

#[test]
fn a_change_is_seen_after_a_second() {
    let mut world = world();
    for _ in 0..4 {
        assert_eq!(world.get("/one", "").body, b"1");
        world.pass(Duration::from_millis(5));
    }
    world.folder.put("next", "2 and more");
    std::fs::rename(world.folder.0.join("next"), world.folder.0.join("one")).unwrap();
    world.pass(Duration::from_millis(1100));
    assert_eq!(world.get("/one", "").body, b"2 and more");
    std::fs::remove_file(world.folder.0.join("one")).unwrap();
    world.pass(Duration::from_millis(1100));
    assert_eq!(world.get("/one", "").status, 404);
}

#[test]
fn a_full_cache_still_serves() {
    let folder = Folder::new();
    for i in 0..40 {
        folder.put(&format!("f{i}"), pattern(3000 + i));
    }
    let cache = CacheConfig { entries: 8, bytes: 48 << 10, ..CacheConfig::default() };
    let mut world = World::new(folder, ServerConfig { cache, ..server_config() });
    for round in 0..3 {
        for i in 0..40usize {
            for _ in 0..3 {
                assert!(world.get(&format!("/f{i}"), "").body == pattern(3000 + i), "{round} {i}");
            }
        }
    }
    let free = world.shard.stack().arena_stats().blocks;
    assert!(free.0 - free.1 <= 8, "content is bounded: {free:?}");
}

#[test]
fn what_transfers_brought_in_is_kept_once() {
    let folder = Folder::new();
    folder.put("document", pattern(40_000));
    let mut world = World::with_blocks(folder, server_config(), 16);
    let used = |world: &World| {
        let (all, free) = world.shard.stack().arena_stats().blocks;
        all - free
    };
    assert!(world.get("/document", "").body == pattern(40_000));
    assert_eq!((used(&world), world.shard.stack().disk_stats().reads), (3, 3));
    // The second time it is worth keeping as a whole: the same blocks, without another read.
    for _ in 0..3 {
        assert!(world.get("/document", "").body == pattern(40_000));
    }
    let stats = world.server.stats();
    assert_eq!((stats.cache_fills, stats.cache_hits), (1, 3));
    assert_eq!((used(&world), world.shard.stack().disk_stats().reads), (3, 3));
}

#[test]
fn files_that_grow_or_shrink_are_served_as_they_are() {
    let mut world = world();
    assert_eq!(world.get("/large.bin", "Range: bytes=0-9\r\n").status, 206);
    // Cut short and grown behind the server's back, within the second in which the name is trusted:
    // what is sent from disk is looked at once more.
    let file = std::fs::File::options().write(true).open(world.folder.0.join("large.bin")).unwrap();
    for len in [20_000, 50_000] {
        file.set_len(len).unwrap();
        assert_eq!(world.get("/large.bin", "").body.len() as u64, len);
    }
    assert_eq!(world.server.stats().disk_errors, 0);
}

#[test]
fn many_clients_at_a_time_each_get_their_own() {
    let mut world = world();
    let total = world.run(|stack| {
        Box::pin(async move {
            let mut handles = Vec::new();
            for i in 0..30usize {
                let here = stack.clone();
                let task = async move {
                    let stream = here.connect(SERVER).await.unwrap();
                    let (path, len) = if i % 2 == 0 {
                        ("six.bin", 6 << 10)
                    } else {
                        ("large.bin", (1 << 20) + 12_345)
                    };
                    let text =
                        format!("GET /{path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
                    stream.write_all(text.as_bytes()).await.unwrap();
                    let bytes = read_to_end(&stream).await;
                    let (response, _) = Response::parse(&bytes, false);
                    assert!(response.body == pattern(len), "client {i}");
                    response.body.len()
                };
                handles.push(stack.spawn(task).unwrap());
            }
            let mut total = 0;
            for handle in handles {
                total += handle.await;
            }
            total
        })
    });
    assert_eq!(total, 15 * (6 << 10) + 15 * ((1 << 20) + 12_345));
}
