//! The other devices: a packet socket and an XDP socket on a veth, shared memory, captures.

use millstream_tests::{Lab, Process, Server, Site, millstream_binary, profile};

fn serves_over_veth(profile: &str) {
    let lab = Lab::new();
    let (ours, theirs) = (lab.namespace(), lab.namespace());
    lab.veth((&ours, "vb"), (&theirs, "va"));
    theirs.ip("addr add 198.18.0.1/24 dev va");
    let site = Site::new(&lab);
    let bytes = site.fill("file", 1 << 20);
    let server = Server::start(&ours, site.root(), profile, &["link.iface=vb"]);
    for _ in 0..3 {
        assert!(theirs.curl(&server.at("file"), &[]) == (200, bytes.clone()));
    }
    server.stop();
}

#[test]
fn af_packet_serves() {
    serves_over_veth("af_packet.toml");
}

#[test]
fn af_xdp_serves() {
    serves_over_veth("af_xdp.toml");
}

#[test]
fn memif_joins_two_processes() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    site.fill("small", 1);
    site.fill("large", 1 << 20);
    let socket = lab.folder().join("memif.sock").display().to_string();
    let server = Server::start(&ns, site.root(), "memif.toml", &[&format!("link.socket={socket}")]);
    let config = profile(
        &lab,
        "memif.toml",
        &[
            ("socket", &format!("{socket:?}")),
            ("role", "\"client\""),
            ("address", "\"198.18.0.1/24\""),
        ],
    );
    let mut bench = ns.command(millstream_binary());
    bench.args(["bench", "http", "--via", "stack", "--connections", "8", "--duration", "60"]);
    bench.args(["--requests", "1000", "--url", &server.at("small"), "--url", &server.at("large")]);
    let finished = Process::start(bench.arg("--config").arg(&config)).finish();
    assert!(finished.success(), "{finished}");
    server.stop();
}

/// A capture file with these Ethernet frames (<https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap/>).
fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
    let words =
        |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    // Magic, version 2.4, no zone, no accuracy, longest frame, Ethernet.
    let mut file = words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1]);
    for frame in frames {
        let len = frame.len() as u32;
        file.extend(words(&[0, 0, len, len]));
        file.extend(frame);
    }
    file
}

#[test]
fn a_capture_is_answered_into_a_capture() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    // An ARP request of 198.18.0.1, at 02:00:00:00:00:01, for our address.
    let asker = [2, 0, 0, 0, 0, 1];
    let mut request = [&[0xff; 6][..], &asker, &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]].concat();
    request.extend([&asker[..], &[198, 18, 0, 1], &[0; 6], &[198, 18, 0, 2], &[0; 18]].concat());
    let (input, output) = (lab.folder().join("in.pcap"), lab.folder().join("out.pcap"));
    std::fs::write(&input, capture(&[request])).expect("a capture");
    let keys = [
        format!("link.rx_file={}", input.display()),
        format!("link.tx_file={}", output.display()),
        "link.mac=02:00:c6:12:00:02".to_string(),
    ];
    let server = Server::start(&ns, site.root(), "pcap.toml", &keys.each_ref().map(|key| &**key));
    // Before it looks for a signal it has turned its loop, and so received; when it ends, the
    // capture is complete.
    server.stop();
    let mut reply =
        [&asker[..], &[2, 0, 0xc6, 0x12, 0, 2, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2]].concat();
    reply.extend([2, 0, 0xc6, 0x12, 0, 2, 198, 18, 0, 2]);
    reply.extend([&asker[..], &[198, 18, 0, 1]].concat());
    let sent = std::fs::read(&output).expect("a capture");
    assert!(sent.windows(reply.len()).any(|window| window == reply), "no ARP reply in {sent:x?}");
}
