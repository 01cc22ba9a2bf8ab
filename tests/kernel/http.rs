//! Files over HTTP/1.1, as curl and as raw sockets ask for them.

use millstream_tests::{Lab, PATIENCE, RawConnection, Server, Site, content};

/// Around every boundary that there is: empty, a byte, a segment, a disk buffer, a window, many.
const SIZES: [usize; 14] = [
    0, 1, 1_459, 1_460, 1_461, 6_144, 16_383, 16_384, 16_385, 65_535, 262_144, 262_145, 1_048_577,
    16_777_216,
];

#[test]
fn files_of_all_sizes_arrive_byte_exact() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let files = SIZES.map(|size| (format!("{size}.bin"), site.fill(&format!("{size}.bin"), size)));
    let server = Server::on_tap(&ns, site.root());
    for (name, bytes) in &files {
        let (status, body) = ns.curl(&server.at(name), &[]);
        assert_eq!(status, 200, "{name}");
        assert!(body == *bytes, "{name}: {} bytes came, not equal", body.len());
    }
    server.stop();
}

#[test]
fn head_tells_what_get_would() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    site.fill("page.html", 4_321);
    site.fill("film.mp4", 10);
    let server = Server::on_tap(&ns, site.root());
    ns.enter(|| {
        let mut connection = RawConnection::open(server.address);
        for (path, kind, len) in
            [("page.html", "text/html", "4321"), ("film.mp4", "video/mp4", "10")]
        {
            connection.send(format!("HEAD /{path} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let head = connection.head();
            connection.send(format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let get = connection.response();
            assert_eq!(head.status, 200);
            assert_eq!(head.header("content-length"), Some(len));
            assert!(
                head.header("content-type").is_some_and(|value| value.starts_with(kind)),
                "{head:?}"
            );
            for name in ["content-length", "content-type", "last-modified", "etag"] {
                assert_eq!(head.header(name), get.header(name), "{name}");
            }
        }
    });
    server.stop();
}

#[test]
fn cookies_open_connections_of_the_kernel() {
    let lab = Lab::new();
    let site = Site::new(&lab);
    let bytes = site.fill("middle", 300_000);
    let namespace = lab.namespace();
    let cookies = ["tcp.syn_cookies=\"always\""];
    let server = Server::on_tap_with(&namespace, site.root(), &cookies);
    for timestamps in ["1", "0"] {
        // Without timestamps the peer gets neither window scaling nor SACK.
        namespace.must("sysctl", &["-qw", &format!("net.ipv4.tcp_timestamps={timestamps}")]);
        for _ in 0..10 {
            let (status, body) = namespace.curl(&server.at("middle"), &[]);
            assert_eq!(status, 200);
            assert!(body == bytes);
        }
    }
    let finished = server.stop();
    let count = |name: &str| {
        let line = finished.stdout.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().last()?.parse::<u64>().ok()).unwrap_or(0)
    };
    assert!(count("syn_cookies_sent") >= 20, "{finished}");
    assert_eq!(count("syn_cookies_accepted"), 20, "{finished}");
}

#[test]
fn one_connection_serves_many_requests() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let small = site.fill("small", 3);
    let large = site.fill("large", 300_000);
    let server = Server::on_tap(&ns, site.root());

    let output = lab.folder().join("#1").display().to_string();
    let both = server.at("{small,large}");
    let curl = [
        "--silent",
        "--max-time",
        "60",
        "--write-out",
        "%{num_connects} ",
        "--output",
        &output,
        &both,
    ];
    assert_eq!(
        ns.must("curl", &curl).stdout.trim(),
        "1 0",
        "the second request opens no connection"
    );
    assert_eq!(std::fs::read(lab.folder().join("small")).expect("it was fetched"), small);
    assert!(std::fs::read(lab.folder().join("large")).expect("it was fetched") == large);

    ns.enter(|| {
        // Requests of which the first is cut in two and the others come together with its end.
        let mut connection = RawConnection::open(server.address);
        connection.send("GET /small HTTP/1.1\r\nHo");
        connection.send("st: a\r\n\r\nGET /large HTTP/1.1\r\nHost: a\r\n\r\nGET /none HTTP/1.1\r\nHost: a\r\n\r\n");
        connection.send("GET /small HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert_eq!(connection.response().body, small);
        assert!(connection.response().body == large);
        assert_eq!(connection.response().status, 404);
        let last = connection.response();
        assert_eq!(last.body, small);
        assert_eq!(last.header("connection"), Some("close"));
        assert_eq!(connection.rest(), b"");

        // HTTP/1.0 closes unless asked not to.
        let mut connection = RawConnection::open(server.address);
        connection.send("GET /small HTTP/1.0\r\n\r\n");
        let all = connection.rest();
        assert!(all.ends_with(&small), "{:?}", String::from_utf8_lossy(&all));
    });
    server.stop();
}

#[test]
fn what_is_wrong_is_answered_with_its_status() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    site.fill("file", 5);
    let server = Server::on_tap(&ns, site.root());
    let long = "a".repeat(100_000);
    let cases = [
        (404, "GET /none HTTP/1.1\r\nHost: a\r\n\r\n".to_string()),
        (404, "GET /file/below HTTP/1.1\r\nHost: a\r\n\r\n".to_string()),
        (400, "GET /file\r\nHost: a\r\n\r\n".to_string()),
        (400, "GET /file HTTP/1.1\r\n\r\n".to_string()),
        (400, "GET /file HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_string()),
        (400, "GET /file HTTP/1.1\r\nHost : a\r\n\r\n".to_string()),
        (400, "\0\u{1}\u{2} nonsense\r\n\r\n".to_string()),
        (400, "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n".to_string()),
        (400, "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n".to_string()),
        (405, "DELETE /file HTTP/1.1\r\nHost: a\r\n\r\n".to_string()),
        (405, "POST /file HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".to_string()),
        (414, format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n")),
        (431, format!("GET /file HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n")),
        (505, "GET /file HTTP/2.0\r\nHost: a\r\n\r\n".to_string()),
    ];
    ns.enter(|| {
        for (status, request) in &cases {
            let mut connection = RawConnection::open(server.address);
            // The server may end the connection before all of a long request is sent.
            let _ = std::io::Write::write_all(connection.stream(), request.as_bytes());
            let response = connection.response();
            assert_eq!(response.status, *status, "{:.60}: {response:?}", request.escape_default());
            if *status == 405 {
                let allow = response.header("allow").expect("405 names what is allowed");
                assert!(allow.contains("GET") && allow.contains("HEAD"), "{allow}");
            }
        }
    });
    // None of it hurt the server.
    assert_eq!(ns.curl(&server.at("file"), &[]).0, 200);
    server.stop();
}

#[test]
fn no_path_leads_out_of_the_root() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let secret = content(7, 40);
    std::fs::write(lab.folder().join("secret"), &secret).expect("a file outside");
    let inside = site.fill("folder/inside", 9);
    let link = |to: &str, name: &str| {
        std::os::unix::fs::symlink(to, site.root().join(name)).expect("a symlink");
    };
    link("../secret", "out");
    link("/etc", "etc");
    link("folder/inside", "in");
    let server = Server::on_tap(&ns, site.root());
    for path in [
        "../secret",
        "folder/../../secret",
        "%2e%2e/secret",
        "..%2fsecret",
        "%2e%2e%2fsecret",
        "folder%2f..%2f..%2fsecret",
        ".%2e/secret",
        "%252e%252e/secret",
        "..%5csecret",
        "out",
        "etc/hostname",
        "/../secret",
        "/etc/hostname",
    ] {
        let (status, body) = ns.curl(&server.at(path), &[]);
        assert!(matches!(status, 400 | 403 | 404), "{path}: {status}");
        assert!(!body.windows(secret.len()).any(|window| window == secret), "{path} leaks");
    }
    for path in ["folder/inside", "folder/inside?query=1", "%66older/inside"] {
        assert_eq!(ns.curl(&server.at(path), &[]), (200, inside.clone()), "{path}");
    }
    server.stop();
}

#[test]
fn ranges_and_validators_are_honoured() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    // One that is kept in memory when asked for again, one that is not.
    for (name, len) in [("small", 20_000), ("large", 1 << 20)] {
        let bytes = site.fill(name, len);
        let server = Server::on_tap(&ns, site.root());
        for _ in 0..3 {
            for (range, from, to) in
                [("0-0", 0, 1), ("1000-17000", 1_000, 17_001), ("-7", len - 7, len), ("5-", 5, len)]
            {
                let (status, body) = ns.curl(&server.at(name), &["--range", range]);
                assert_eq!(status, 206, "{range}");
                assert!(body == bytes[from..to], "{range}");
            }
            assert_eq!(ns.curl(&server.at(name), &["--range", &format!("{len}-")]).0, 416);
        }
        ns.enter(|| {
            let mut connection = RawConnection::open(server.address);
            connection.send(format!("HEAD /{name} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let head = connection.head();
            let etag = head.header("etag").expect("an entity tag");
            let modified = head.header("last-modified").expect("a date");
            for line in [format!("If-None-Match: {etag}"), format!("If-Modified-Since: {modified}")]
            {
                connection.send(format!("GET /{name} HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n"));
                assert_eq!(connection.head().status, 304, "{line}");
            }
        });
        server.stop();
    }
}

#[test]
fn a_file_that_changes_is_served_as_it_is() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let server = Server::on_tap(&ns, site.root());
    for generation in 1..=3_u64 {
        let bytes = content(generation, 10_000 + generation as usize);
        site.put("file", &bytes);
        // A name is trusted for a moment after it was looked at: ask until the new length shows,
        // then every byte is new.
        let deadline = std::time::Instant::now() + PATIENCE;
        let body = loop {
            let (status, body) = ns.curl(&server.at("file"), &[]);
            assert_eq!(status, 200);
            if body.len() == bytes.len() {
                break body;
            }
            assert!(std::time::Instant::now() < deadline, "the old file is served for ever");
        };
        assert!(body == bytes, "old and new bytes are mixed");
    }
    server.stop();
}
