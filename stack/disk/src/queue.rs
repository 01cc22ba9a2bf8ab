//! The queue of reads, as a shard sees it.

use arrayvec::ArrayVec;
use millstream_buf::{Arena, IoBufMut};

use crate::file::File;
use crate::nvme::Status;
use crate::pread::PreadQueue;
use crate::uring::UringQueue;

/// Completions that one [`DiskQueue::poll`] brings at most.
pub const POLL_MAX: usize = 32;

/// Largest depth of a queue.
pub const DEPTH_MAX: usize = 4096;

/// Completions of one poll, in the order in which they came.
pub type Completions = ArrayVec<Completion, POLL_MAX>;

/// A read to be done.
#[derive(Debug)]
pub struct Read {
    /// Where from.
    pub file: File,
    /// First byte wanted: a multiple of [`File::align_bytes`].
    pub offset: u64,
    /// Bytes wanted. If the file ends before, the read ends there. Rounded up to
    /// [`File::align_bytes`] it must fit the buffer: a direct read fills whole sectors.
    pub len: usize,
    /// Where to; from its first byte on.
    pub buf: IoBufMut,
    /// The caller's own number, given back with the completion.
    pub token: u64,
}

/// A read that is over, well or badly.
#[derive(Debug)]
pub struct Completion {
    /// The read's number.
    pub token: u64,
    /// The read's buffer, the caller's again.
    pub buf: IoBufMut,
    /// Bytes that were read: all that were wanted, or those up to the end of the file.
    pub result: Result<usize, DiskError>,
}

/// Why a read failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The system's error.
    #[error("the disk cannot read: {}", std::io::Error::from_raw_os_error(*errno))]
    Io {
        /// The system's error number.
        errno: i32,
    },
    /// The file is now shorter than when it was opened.
    #[error(
        "the file was cut short while it was read; replace files by renaming new ones over them"
    )]
    Truncated,
    /// The file is no longer what it was when it was opened.
    #[error("the file was changed while it was read; replace files by renaming new ones over them")]
    Changed,
    /// The device, or the queue on it, is no more.
    #[error("the disk is gone; check its cable and the kernel's log")]
    DeviceGone,
    /// The offset is not a multiple of [`File::align_bytes`].
    #[error("a read at offset {offset} must start at a multiple of {align_bytes} bytes")]
    Unaligned {
        /// What was asked for.
        offset: u64,
        /// What it must be a multiple of.
        align_bytes: usize,
    },
    /// The buffer is too small, or not aligned as direct reads of this file need it.
    #[error(
        "a buffer of {capacity} bytes cannot take {len} bytes in steps of {align_bytes}; use a larger one"
    )]
    BadBuffer {
        /// Bytes of the buffer.
        capacity: usize,
        /// Bytes wanted.
        len: usize,
        /// Alignment in bytes that the file wants.
        align_bytes: usize,
    },
    /// The medium failed, or the data on it, and trying again does not help.
    #[error(
        "the drive cannot give these bytes (NVMe status {status}); restore the file from a copy and check the drive's health"
    )]
    Media {
        /// What the drive said.
        status: Status,
    },
    /// The drive refused the read, and trying again does not help.
    #[error("the drive refused the read (NVMe status {status}); check its health and firmware")]
    Refused {
        /// What the drive said.
        status: Status,
    },
    /// The drive took too long, several times, and had to be reset.
    #[error("the drive does not answer in time; check its health, or raise its time-out")]
    TimedOut,
    /// The file lies on a device that this queue does not drive.
    #[error("the file lies on another device; read it through that device's own queue")]
    OtherDevice,
    /// A disk in memory was given a file that is not.
    #[error("a disk in memory reads files in memory alone; open them with another queue")]
    NotInMemory,
}

impl DiskError {
    pub(crate) fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ENODEV | libc::ENXIO | libc::ESHUTDOWN | libc::ENOMEDIUM => Self::DeviceGone,
            errno => Self::Io { errno },
        }
    }
}

/// What a queue has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Reads that went well.
    pub reads: u64,
    /// Bytes they brought.
    pub bytes: u64,
    /// Reads that the kernel cut short, or interrupted, and that the queue went on with.
    pub continued: u64,
    /// Reads that failed.
    pub errors: u64,
    /// System calls: `io_uring_enter`, or `pread` in the worker threads.
    pub enters: u64,
    /// Bytes that a CPU instruction of this process copied (files in memory).
    pub copied_bytes: u64,
    /// Completions that belonged to no read in flight; they were ignored.
    pub unknown: u64,
    /// Files that took `O_DIRECT` and refused the reads, now read through the page cache.
    pub direct_refused: u64,
    /// Reads taken and not yet given back, now.
    pub in_flight: usize,
}

/// A queue of block reads into arena buffers, for one thread.
pub trait DiskQueue {
    /// Takes a read, to be given to the disk by the next [`Self::kick`] or [`Self::poll`].
    ///
    /// A read that can never work (see [`DiskError`]) is taken too and fails by completion.
    ///
    /// # Errors
    /// The read itself, if as many as the queue is deep are in flight.
    #[allow(clippy::result_large_err)]
    fn submit(&mut self, read: Read) -> Result<(), Read>;

    /// Appends completions to `out`, up to its capacity. No system call if nothing is queued and
    /// the kernel does not ask for one.
    fn poll(&mut self, out: &mut Completions);

    /// Reads taken whose completion has not been given out.
    fn in_flight(&self) -> usize;

    /// Hands what was submitted to the disk; no system call if that is nothing.
    fn kick(&mut self);

    /// The driver, for people ("io_uring", "pread", "nvme", "mem", "null").
    fn name(&self) -> &'static str;

    /// What it has done.
    fn stats(&self) -> DiskStats;
}

/// Which driver a queue has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueKind {
    /// io_uring, or worker threads where the kernel refuses it.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Worker threads that call `pread`.
    Pread,
}

/// Why a queue could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskSetupError {
    /// The depth is zero or too large.
    #[error("a disk queue {depth} deep cannot be; set `disk.depth` between 1 and {DEPTH_MAX}")]
    Depth {
        /// What was asked for.
        depth: usize,
    },
    /// The kernel does not let us use io_uring, or is too old.
    #[error(
        "the kernel refuses io_uring ({source}); set `disk.queue = \"auto\"`, or allow it with `sysctl kernel.io_uring_disabled=0`"
    )]
    Refused {
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A worker thread could not be started.
    #[error("cannot start a thread for disk reads ({source}); raise the limit with `ulimit -u`")]
    Thread {
        /// What the system said.
        source: std::io::Error,
    },
}

/// Opens a queue that takes `depth` reads at a time, on the calling thread.
///
/// `arena` is where the buffers of the reads come from: io_uring gets it registered. Buffers from
/// elsewhere work too, at some cost.
///
/// # Errors
/// [`DiskSetupError`]; never for `Auto` because io_uring is refused.
pub fn open_queue(
    kind: QueueKind,
    arena: &Arena,
    depth: usize,
) -> Result<Box<dyn DiskQueue>, DiskSetupError> {
    if depth == 0 || depth > DEPTH_MAX {
        return Err(DiskSetupError::Depth { depth });
    }
    match kind {
        QueueKind::Uring => Ok(Box::new(UringQueue::open(arena, depth)?)),
        QueueKind::Pread => Ok(Box::new(PreadQueue::open(depth)?)),
        QueueKind::Auto => match UringQueue::open(arena, depth) {
            Ok(queue) => Ok(Box::new(queue)),
            Err(error) => {
                tracing::info!("{error}: reading with worker threads");
                Ok(Box::new(PreadQueue::open(depth)?))
            }
        },
    }
}
