//! Byte-exactness over a link that loses, reorders, duplicates and corrupts frames.
//!
//! ```text
//! kernel: va ---- ra: relay :dtap0 ---- net_tap: millstream
//! ```

use millstream_tests::{
    Lab, Namespace, Process, Server, Signal, Site, built_binary, content, project_file,
};

use crate::bulk::{echo, round_trip};

/// The kernel's station, and the namespace in which millstream makes its tap.
fn stations(lab: &Lab) -> (Namespace<'_>, Namespace<'_>) {
    let (client, middle) = (lab.namespace(), lab.namespace());
    lab.veth((&client, "va"), (&middle, "ra"));
    client.ip("addr add 198.18.0.1/24 dev va");
    (client, middle)
}

/// Starts the relay; the tap must be there.
fn relay(middle: &Namespace<'_>, impairments: &[&str]) -> Process {
    let mut relay = middle.command("python3");
    relay.arg(project_file("tests/relay.py")).args(["ra", "dtap0"]);
    relay.arg(built_binary("millstream-relay")).args(impairments);
    let relay = Process::start(&mut relay);
    relay.wait_line(|line| line.starts_with("ready").then_some(()));
    relay
}

/// Ends the relay; asserts that the named impairments really happened.
fn end(relay: Process, impairments: &[&str]) {
    relay.signal(Signal::TERM);
    let told = relay.finish();
    let words: Vec<_> = told.stderr.split_whitespace().collect();
    for name in impairments {
        let at = words.iter().position(|word| word == name).expect("a count");
        assert_ne!(words[at + 1], "0", "no frame was {name}: {}", told.stderr);
    }
}

fn downloads_survive(impairments: &[&str], happened: &[&str]) {
    downloads_survive_with(&[], impairments, happened);
}

fn downloads_survive_with(keys: &[&str], impairments: &[&str], happened: &[&str]) {
    let lab = Lab::new();
    let site = Site::new(&lab);
    let files = [("small", 100, 20), ("middle", 100_000, 5), ("large", 4 << 20, 1)]
        .map(|(name, len, times)| (name, site.fill(name, len), times));
    let (client, middle) = stations(&lab);
    let server = Server::start(&middle, site.root(), "tap.toml", keys);
    let relay = relay(&middle, impairments);
    for (name, bytes, times) in &files {
        for _ in 0..*times {
            let (status, body) = client.curl(&server.at(name), &[]);
            assert_eq!(status, 200, "{name}");
            assert!(body == *bytes, "{name}");
        }
    }
    end(relay, happened);
    server.stop();
}

#[test]
fn downloads_survive_loss() {
    downloads_survive(&["--seed", "1", "--loss", "0.01"], &["lost"]);
}

#[test]
fn downloads_survive_reordering() {
    downloads_survive(&["--seed", "2", "--reorder", "0.05"], &["reordered"]);
}

const EVERYTHING: &[&str] =
    &["--loss", "0.01", "--reorder", "0.02", "--duplicate", "0.02", "--corrupt", "0.005"];
const EVERYTHING_HAPPENED: &[&str] = &["lost", "reordered", "duplicated", "corrupted"];

#[test]
fn downloads_survive_everything_together() {
    downloads_survive(&[&["--seed", "3"], EVERYTHING].concat(), EVERYTHING_HAPPENED);
}

/// A download over a longer path with a bottleneck, by each congestion controller.
#[test]
fn every_controller_keeps_the_bytes() {
    for controller in ["cubic", "newreno", "dctcp", "bbr"] {
        let keys = [format!("tcp.congestion=\"{controller}\"")];
        let path = [
            "--seed",
            "5",
            "--loss",
            "0.005",
            "--reorder",
            "0.005",
            "--delay-ms",
            "5",
            "--rate-mbit",
            "50",
            "--queue-bytes",
            "60000",
        ];
        downloads_survive_with(&[&keys[0]], &path, &["lost", "reordered"]);
    }
}

#[test]
fn both_directions_at_a_time_survive_everything_together() {
    let lab = Lab::new();
    let (client, middle) = stations(&lab);
    let (process, address) = echo(&middle);
    let relay = relay(&middle, &[&["--seed", "4"], EVERYTHING].concat());
    client.enter(|| {
        for len in [1, 10_000, 2 << 20] {
            let bytes = content(len as u64, len);
            assert!(round_trip(address, &bytes, 64 << 10) == bytes, "{len} bytes");
        }
    });
    end(relay, EVERYTHING_HAPPENED);
    let finished = process.interrupt();
    assert!(finished.success(), "{finished}");
}
