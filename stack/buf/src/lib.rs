//! The arena and its handles: where every payload byte of millstream lives.
//!
//! NIC, disk and application share one region of memory, the [`Arena`]. It is carved at start into
//! buffers of two [`SizeClass`]es; nothing is allocated afterwards, so exhaustion is an ordinary
//! answer (`None`), never a crash.
//!
//! * [`IoBufMut`] owns a whole buffer and may write it: an application that fills it, or a disk
//!   read that is in flight.
//! * [`IoBuf`] is a counted handle on a slice of a buffer, immutable while shared. Cloning and
//!   slicing never copy. [`IoBuf::make_mut`] copies only if somebody else still holds the buffer:
//!   that is Genie's transient copy-on-write, done by handles in place of page faults
//!   (Brustoloni, CMU-CS-97-176).
//! * [`Agg`] is an ordered list of slices (IO-Lite's aggregate, OSDI '99): what is sent.
//! * [`Staging`] packs small writes into shared buffers, so that a one-byte `write` does not pin a
//!   buffer of its own.
//!
//! Counts are not atomic: handles are `!Send` and stay on the core (shard) that made them. The one
//! way back from another thread is [`release_any_thread`], which drivers use where the hardware or
//! a DPDK peer frees a buffer elsewhere.
//!
//! Buffers that a driver owns (a DPDK mbuf) take part through a [`BufHeader`] that the driver
//! places beside them: see [`BufHeader::init_foreign`].

mod agg;
mod arena;
mod audit;
mod calibrate;
mod copy;
mod guard;
mod header;
mod iobuf;
mod map;
mod memo;
mod memory;
mod poison;
mod pool;
mod quota;
mod region;
mod returns;
mod semantics;
mod staging;

/// What `returns` is made of; its test under loom puts loom's in place.
mod sync {
    pub use std::sync::atomic::{AtomicU32, Ordering};
}

pub use agg::{Agg, NoBuffer};
pub use arena::{Arena, ArenaConfig, ArenaError, ArenaStats, HugePages, PageKind, SizeClass};
pub use audit::{Audit, Held};
pub use calibrate::{SIZES_BYTES, Thresholds};
pub use copy::copy_short;
pub use guard::Untouchable;
pub use header::{BufHeader, DRIVER_WORDS, release_any_thread, retain};
pub use iobuf::{IoBuf, IoBufMut};
pub use memo::MemoStats;
pub use memory::{advise_huge_pages, evict, prefetch};
pub use pool::{AccessError, Domain, Pool, Pools, SharedView, SliceRef};
pub use quota::Quota;
pub use region::{After, Exchange, Lent, Readable, Region, RegionCache};
pub use semantics::{DataSemantics, UnknownSemantics};
pub use staging::Staging;

/// Size of a [`SizeClass::Frame`] buffer in bytes: one Ethernet frame of 1500 bytes MTU with room
/// for headers in front.
pub const FRAME_BYTES: usize = 2048;

/// Size of a [`SizeClass::Block`] buffer in bytes: four 4 KiB disk pages, one TLS record, and still
/// below the 16-bit lengths of an mbuf.
pub const BLOCK_BYTES: usize = 16 * 1024;
