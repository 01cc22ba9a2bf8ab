//! Fuzz targets. Each is a function over bytes that panics if what it examines breaks: a parser, a
//! connection, a pair of them, a whole shard, the file server, an image.
//!
//! The same functions run in two ways: `make test` replays the inputs below `corpus/` and a bounded,
//! seeded search on top (`tests/replay.rs`); `make fuzz` hands them to libFuzzer, which looks for
//! inputs that reach new code (`src/bin/fuzz.rs`). An input that breaks something is put into
//! `corpus/TARGET/`, so it is a test from then on.

#![forbid(unsafe_code)]

mod frames;
mod http;
mod image;
mod input;
mod packets;
mod pair;
mod peer;

use std::path::PathBuf;

/// One thing to be fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its folder in `corpus/`.
    pub name: &'static str,
    /// What it examines.
    pub about: &'static str,
    /// Examines one input.
    ///
    /// # Panics
    /// If something breaks.
    pub run: fn(&[u8]),
    /// Longest input in bytes that is worth a try.
    pub len_max: usize,
    /// Inputs that the bounded search of `make test` makes up.
    pub searched: usize,
}

impl Target {
    /// Where its inputs are kept.
    pub fn corpus(&self) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name)
    }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "options",
        about: "TCP headers and their options",
        run: packets::options,
        len_max: 64,
        searched: 20_000,
    },
    Target {
        name: "packets",
        about: "Ethernet, ARP, IPv4, ICMP and UDP",
        run: packets::packets,
        len_max: 256,
        searched: 20_000,
    },
    Target {
        name: "ipv6",
        about: "IPv6 with its extension headers, ICMPv6, neighbour discovery",
        run: packets::ipv6,
        len_max: 256,
        searched: 20_000,
    },
    Target {
        name: "pair",
        about: "two ends of a connection, and a path that does as the input says",
        run: pair::run,
        len_max: 2048,
        searched: 1_500,
    },
    Target {
        name: "frames",
        about: "frames into a shard with connections, a listener and a UDP socket",
        run: frames::run,
        len_max: 2048,
        searched: 600,
    },
    Target {
        name: "http",
        about: "requests to the file server, in pieces",
        run: http::run,
        len_max: 2048,
        searched: 150,
    },
    Target {
        name: "image",
        about: "the records of an EROFS image",
        run: image::run,
        len_max: 4096,
        searched: 20_000,
    },
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
