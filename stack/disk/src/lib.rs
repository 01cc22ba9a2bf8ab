//! Files into arena buffers.
//!
//! A [`DiskQueue`] takes [`Read`]s and gives back [`Completion`]s; the bytes land in the buffer
//! that came with the read, by DMA where the file system offers `O_DIRECT`. Nothing here waits: a
//! shard submits, [kicks](DiskQueue::kick) and polls in its own loop.
//!
//! * [`open_queue`] gives a queue on the kernel: io_uring, or worker threads with `pread` where
//!   io_uring is refused. Both take up to `depth` reads and never allocate after start.
//! * [`nvme`] drives NVMe controllers without the kernel.
//! * [`MemDisk`] is a disk in memory for benchmarks and tests, with or without the copy.
//! * [`File`] is what is read: an open file, or bytes in memory. Its length is fixed when it is
//!   opened, so that what was promised to a peer (`Content-Length`) stays true.
//! * [`Root`] opens files below one directory and never outside it, [`erofs::Image`] those in an
//!   image; [`Source`] is the one or the other.
//! * [`Lookups`] are threads that look names up where that might wait for a disk.
//!
//! A buffer in flight belongs to the queue until its completion. Dropping a queue cancels what can
//! be cancelled and waits for the rest; what still does not come back is leaked, not reused.
//!
//! ```no_run
//! use millstream_buf::{Arena, ArenaConfig, SizeClass};
//! use millstream_disk::{Completions, File, QueueKind, Read, open_queue};
//!
//! let arena = Arena::new(&ArenaConfig::default())?;
//! let mut queue = open_queue(QueueKind::Auto, &arena, 32)?;
//! let file = File::open("video.mp4".as_ref())?;
//! let buf = arena.alloc(SizeClass::Block).expect("a fresh arena has buffers");
//! queue.submit(Read { file, offset: 0, len: buf.len(), buf, token: 1 }).expect("an empty queue");
//! queue.kick();
//! let mut done = Completions::new();
//! while done.is_empty() {
//!     queue.poll(&mut done);
//! }
//! let read = done.remove(0);
//! let bytes = read.buf.freeze(0..read.result?);
//! # let _ = bytes;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// The drivers alone may be unsafe: `sys` (calls on files), `uring`, `pread` and `nvme`.
#![deny(unsafe_code)]

pub mod erofs;
mod file;
mod lookup;
mod mem;
#[allow(unsafe_code)]
pub mod nvme;
#[allow(unsafe_code)]
mod pread;
mod queue;
mod root;
mod source;
#[allow(unsafe_code)]
mod sys;
mod table;
#[allow(unsafe_code)]
mod uring;

pub use file::{ALIGN_MIN_BYTES, File, FileKind, FileStat, OpenError};
pub use lookup::Lookups;
pub use mem::MemDisk;
pub use queue::{
    Completion, Completions, DEPTH_MAX, DiskError, DiskQueue, DiskSetupError, DiskStats, POLL_MAX,
    QueueKind, Read, open_queue,
};
pub use root::{Root, RootError};
pub use source::Source;
