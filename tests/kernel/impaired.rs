//! Byte-exactness over a link that loses, reorders, duplicates and corrupts frames.
//!
//! ```text
//! kernel: va ---- ra: relay.py :dtap0 ---- net_tap: millstream
//! ```

use std::path::Path;

use millstream_tests::{Lab, Namespace, Process, Server, Signal, Site, project_file};

struct World<'lab> {
    client: Namespace<'lab>,
    // The relay's end of the veth and the tap are here.
    _middle: Namespace<'lab>,
    server: Server,
    relay: Process,
}

impl<'lab> World<'lab> {
    fn new(lab: &'lab Lab, root: &Path, impairments: &[&str]) -> Self {
        let (client, middle) = (lab.namespace(), lab.namespace());
        lab.veth((&client, "va"), (&middle, "ra"));
        client.ip("addr add 198.18.0.1/24 dev va");
        let server = Server::start(&middle, root, "tap.toml", &[]);
        let mut relay = middle.command("python3");
        relay.arg(project_file("tests/kernel/relay.py")).args(["ra", "dtap0"]).args(impairments);
        let relay = Process::start(&mut relay);
        relay.wait_line(|line| line.starts_with("ready").then_some(()));
        Self { client, _middle: middle, server, relay }
    }

    /// Ends both; asserts that the named impairments really happened.
    fn end(self, impairments: &[&str]) {
        self.relay.signal(Signal::TERM);
        let told = self.relay.finish();
        let words: Vec<_> = told.stdout.split_whitespace().collect();
        for name in impairments {
            let at = words.iter().position(|word| word == name).expect("a count");
            assert_ne!(words[at + 1], "0", "no frame was {name}: {}", told.stdout);
        }
        self.server.stop();
    }
}

fn downloads_survive(impairments: &[&str], happened: &[&str]) {
    let lab = Lab::new();
    let site = Site::new(&lab);
    let files = [("small", 100, 20), ("middle", 100_000, 5), ("large", 4 << 20, 1)]
        .map(|(name, len, times)| (name, site.fill(name, len), times));
    let world = World::new(&lab, site.root(), impairments);
    for (name, bytes, times) in &files {
        for _ in 0..*times {
            let (status, body) = world.client.curl(&world.server.at(name), &[]);
            assert_eq!(status, 200, "{name}");
            assert!(body == *bytes, "{name}");
        }
    }
    world.end(happened);
}

#[test]
fn downloads_survive_loss() {
    downloads_survive(&["--seed", "1", "--loss", "0.01"], &["lost"]);
}

#[test]
fn downloads_survive_reordering() {
    downloads_survive(&["--seed", "2", "--reorder", "0.05"], &["reordered"]);
}

#[test]
fn downloads_survive_everything_together() {
    let impairments = [
        "--seed",
        "3",
        "--loss",
        "0.01",
        "--reorder",
        "0.02",
        "--duplicate",
        "0.02",
        "--corrupt",
        "0.005",
    ];
    downloads_survive(&impairments, &["lost", "reordered", "duplicated", "corrupted"]);
}
