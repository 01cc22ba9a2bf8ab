//! Bulk transfer in both directions, with the kernel as client and as server.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use millstream_tests::{
    Lab, Namespace, PATIENCE, Process, Signal, Site, content, millstream_binary, profile,
    project_file,
};

/// Starts `millstream echo` on a tap; also gives where it echoes.
pub fn echo(ns: &Namespace<'_>) -> (Process, SocketAddr) {
    let mut command = ns.command(millstream_binary());
    let process =
        Process::start(command.arg("echo").arg("--config").arg(project_file("config/tap.toml")));
    let address = process
        .wait_line(|line| line.split_whitespace().find_map(|word| word.parse::<SocketAddr>().ok()));
    (process, address)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a bound");
    stream.set_write_timeout(Some(PATIENCE)).expect("a bound");
    stream
}

/// Sends all, half-closes, and receives until the peer's end, both at the same time.
pub fn round_trip(address: SocketAddr, bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut stream = connect(address);
    let mut sender = stream.try_clone().expect("a second handle");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for part in bytes.chunks(piece.max(1)) {
                sender.write_all(part).expect("to send");
            }
            sender.shutdown(Shutdown::Write).expect("a half-close");
        });
        let mut back = Vec::with_capacity(bytes.len());
        stream.read_to_end(&mut back).expect("all of it and the end");
        back
    })
}

#[test]
fn what_is_sent_comes_back() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let (process, address) = echo(&ns);
    ns.ip("addr add 198.18.0.1/24 dev dtap0");
    ns.enter(|| {
        for (len, piece) in [(0, 1), (1, 1), (1_000, 1), (100_000, 777), (16 << 20, 1 << 20)] {
            let bytes = content(len as u64 + 5, len);
            assert!(
                round_trip(address, &bytes, piece) == bytes,
                "{len} bytes in pieces of {piece}"
            );
        }
    });
    let finished = process.interrupt();
    assert!(finished.success(), "{finished}");
}

#[test]
fn parallel_streams_do_not_mix() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let (process, address) = echo(&ns);
    ns.ip("addr add 198.18.0.1/24 dev dtap0");
    ns.enter(|| {
        // Connected here, since other threads would be in other namespaces than this one.
        let streams: Vec<_> = (0..16).map(|number| (number, connect(address))).collect();
        std::thread::scope(|scope| {
            for (number, mut stream) in streams {
                let bytes = content(number, 200_000 + number as usize);
                let mut sender = stream.try_clone().expect("a second handle");
                scope.spawn(move || {
                    let sent = bytes.clone();
                    let sending = std::thread::spawn(move || {
                        sender.write_all(&sent).expect("to send");
                        sender.shutdown(Shutdown::Write).expect("a half-close");
                    });
                    let mut back = Vec::new();
                    stream.read_to_end(&mut back).expect("all of it and the end");
                    sending.join().expect("the sender");
                    assert!(back == bytes, "stream {number}");
                });
            }
        });
    });
    let finished = process.interrupt();
    assert!(finished.success(), "{finished}");
}

#[test]
fn an_interrupted_echo_ends_its_connections_in_good_order() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let (process, address) = echo(&ns);
    ns.ip("addr add 198.18.0.1/24 dev dtap0");
    ns.enter(|| {
        let mut stream = connect(address);
        stream.write_all(b"once").expect("to send");
        let mut back = [0; 4];
        stream.read_exact(&mut back).expect("the echo");
        process.signal(Signal::INT);
        // The end of the stream, not a reset or a silence.
        assert_eq!(stream.read(&mut back).expect("the end"), 0);
    });
    let finished = process.finish();
    assert!(finished.success(), "{finished}");
}

#[test]
fn a_peer_that_reads_nothing_is_waited_for() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let (process, address) = echo(&ns);
    ns.ip("addr add 198.18.0.1/24 dev dtap0");
    ns.enter(|| {
        // Send until everything between the two is full: both windows are closed then.
        let mut stream = connect(address);
        stream.set_write_timeout(Some(std::time::Duration::from_millis(500))).expect("a bound");
        let bytes = content(3, 64 << 20);
        let mut sent = 0;
        while sent < bytes.len() {
            match stream.write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("after {sent} bytes: {error}"),
            }
        }
        assert!(sent < bytes.len(), "something must be full before 64 MiB");
        stream.shutdown(Shutdown::Write).expect("a half-close");
        let mut back = Vec::new();
        stream.read_to_end(&mut back).expect("all of it and the end");
        assert!(back == bytes[..sent]);
    });
    let finished = process.interrupt();
    assert!(finished.success(), "{finished}");
}

#[test]
fn the_kernel_serves_us() {
    let lab = Lab::new();
    // The bench's tap appears in the namespace when it starts, so the kernel's end gets its address
    // from a veth instead: a packet socket carries our frames.
    let (ours, theirs) = (lab.namespace(), lab.namespace());
    lab.veth((&ours, "vb"), (&theirs, "va"));
    theirs.ip("addr add 198.18.0.1/24 dev va");
    let site = Site::new(&lab);
    site.fill("small", 100);
    site.fill("large", 3_000_000);
    let mut server = theirs.command("python3");
    server.args([
        "-u",
        "-m",
        "http.server",
        "--protocol",
        "HTTP/1.1",
        "--bind",
        "198.18.0.1",
        "8000",
    ]);
    let server = Process::start(server.arg("--directory").arg(site.root()));
    server.wait_line(|line| line.starts_with("Serving HTTP").then_some(()));

    let config =
        profile(&lab, "af_packet.toml", &[("iface", "\"vb\""), ("address", "\"198.18.0.2/24\"")]);
    let report = lab.folder().join("report.json");
    let mut bench = ours.command(millstream_binary());
    bench.args([
        "bench",
        "http",
        "--via",
        "stack",
        "--connections",
        "4",
        "--duration",
        "60",
        "--requests",
        "40",
    ]);
    bench.args(["--url", "http://198.18.0.1:8000/small", "--url", "http://198.18.0.1:8000/large"]);
    let finished =
        Process::start(bench.arg("--config").arg(&config).arg("--json").arg(&report)).finish();
    assert!(finished.success(), "{finished}");
    let json = std::fs::read_to_string(&report).expect("the report");
    let small_and_large = 20 * 100 + 20 * 3_000_000;
    assert!(json.contains(&format!("\"body_bytes\": {small_and_large}")), "{json}");
    assert!(json.contains("\"200\": 40"), "{json}");
}
