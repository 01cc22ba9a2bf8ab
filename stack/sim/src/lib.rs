//! The virtual world: one clock that jumps from event to event, links and disks with
//! every fault that real ones have, a processor whose time is work, and a driver that runs the
//! nodes between them.
//!
//! Everything happens in one thread and is drawn from a seed: the same seed gives the same run, to
//! the nanosecond and the byte. Code under test cannot tell this world from the real one, since it
//! sees only a [`Link`](millstream_link::Link), a [`DiskQueue`](millstream_disk::DiskQueue) and moments.

#![forbid(unsafe_code)]

mod config;
mod cpu;
mod disk;
mod drive;
mod flap;
mod link;
mod nic;
mod null;
mod rng;
mod stats;
mod wire;

pub use config::{BurstLoss, DirectionConfig, LinkConfig, WhenFull};
pub use cpu::{CpuClock, CpuCosts};
pub use disk::{DiskConfig, SimDisk};
pub use drive::{Node, drive, step};
pub use flap::{Flapper, Flaps};
pub use link::{SimLink, Wire, pair};
pub use nic::{Compose, FLOOD_FRAME_MAX, Flood, HOST_MAC, Network, Nic, NicConfig, PeerLink};
pub use null::{NullConfig, NullNic, NullPeers};
pub use rng::Rng;
pub use stats::{DirectionStats, Fate};
pub use wire::Direction;
