//! SIGINT drains; slow clients are shown the door.

use std::time::Instant;

use millstream_tests::{Lab, PATIENCE, Process, RawConnection, Server, Signal, Site};

/// A drain that no slow machine cuts short; a failing one ends before the test's own patience does.
const PATIENT: &[&str] = &["http.drain_s=80"];

#[test]
fn an_interrupt_ends_an_idle_server_with_a_summary() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    site.fill("file", 1_000);
    let server = Server::on_tap(&ns, site.root());
    assert_eq!(ns.curl(&server.at("file"), &[]).0, 200);
    let finished = server.stop();
    let line = finished.stdout.lines().find(|line| line.starts_with("requests"));
    assert!(line.is_some_and(|line| line.trim_end().ends_with(" 1")), "{finished}");
}

#[test]
fn an_interrupt_lets_a_download_finish() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let bytes = site.fill("file", 16 << 20);
    let server = Server::on_tap_with(&ns, site.root(), PATIENT);
    let address = server.address;
    let process = server.into_process();
    let (body, finished) = ns.enter(|| {
        let mut connection = RawConnection::open(address);
        connection.send("GET /file HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = connection.head();
        assert_eq!(head.status, 200);
        // More is outstanding than all socket buffers hold: the server is in the midst of it.
        let mut body = connection.body(1 << 20);
        process.signal(Signal::INT);
        body.extend(connection.body(15 << 20));
        (body, process.finish())
    });
    assert!(body == bytes);
    assert_eq!(finished.status.code(), Some(0), "{finished}");
}

#[test]
fn an_interrupted_server_takes_no_new_connection() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let bytes = site.fill("file", 64 << 20);
    let server = Server::on_tap_with(&ns, site.root(), PATIENT);
    let (address, url) = (server.address, server.at("file"));
    let process = server.into_process();
    ns.enter(|| {
        let mut held = RawConnection::open(address);
        held.send("GET /file HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(held.head().status, 200);
        process.signal(Signal::INT);
        // The signal is seen within a turn of the loop, but no event says when: ask until refused.
        let deadline = Instant::now() + PATIENCE;
        while Process::start(ns.command("curl").args([
            "--silent",
            "--head",
            "--max-time",
            "5",
            &url,
        ]))
        .finish()
        .success()
        {
            assert!(Instant::now() < deadline, "a draining server still accepts");
        }
        assert!(held.body(64 << 20) == bytes);
    });
    assert_eq!(process.finish().status.code(), Some(0));
}

#[test]
fn a_client_that_never_finishes_its_request_is_closed() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let bytes = site.fill("file", 10);
    let server = Server::on_tap_with(
        &ns,
        site.root(),
        &["http.header_timeout_s=1", "http.idle_timeout_s=1"],
    );
    ns.enter(|| {
        // One says nothing, one half a request, one is idle after an answer.
        let mut silent = RawConnection::open(server.address);
        let mut half = RawConnection::open(server.address);
        half.send("GET /file HTTP/1.1\r\nHo");
        let mut idle = RawConnection::open(server.address);
        idle.send("GET /file HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(idle.response().body, bytes);
        for connection in [&mut silent, &mut half, &mut idle] {
            let last = connection.rest();
            let text = String::from_utf8_lossy(&last);
            assert!(last.is_empty() || text.starts_with("HTTP/1.1 408"), "{text}");
        }
    });
    server.stop();
}
