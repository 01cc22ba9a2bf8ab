//! What is read: an open file, or bytes in memory.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use millstream_buf::BLOCK_BYTES;

use crate::sys::{self, CPath, RawStat};

/// The smallest alignment in bytes that [`File::align_bytes`] gives: one sector.
pub const ALIGN_MIN_BYTES: usize = 512;

/// Alignment assumed for direct reads where the kernel does not tell it (before 6.1).
const ALIGN_ASSUMED_BYTES: usize = 4096;

/// Why a file could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no file of that name.
    #[error("there is no such file; check the path")]
    NotFound,
    /// The path leaves the root, or the permissions forbid it.
    #[error("access is forbidden; the file must lie inside the root and be readable by this user")]
    Forbidden,
    /// It is a directory.
    #[error("it is a directory; name a file in it")]
    IsDirectory,
    /// It is a pipe, a socket or a device.
    #[error("it is not a regular file; pipes, sockets and devices are not served")]
    NotRegular,
    /// The limit of open files is reached.
    #[error("too many files are open; raise the limit with `ulimit -n`")]
    TooManyOpen,
    /// Anything else the system said.
    #[error("the system cannot open the file: {}", std::io::Error::from_raw_os_error(*errno))]
    Io {
        /// The system's error number.
        errno: i32,
    },
}

impl OpenError {
    pub(crate) fn from_errno(errno: i32) -> Self {
        match errno {
            // A name that no file can have, or one "below" a file.
            libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG => Self::NotFound,
            libc::EACCES | libc::EPERM | libc::EXDEV | libc::ELOOP => Self::Forbidden,
            libc::EISDIR => Self::IsDirectory,
            libc::ENXIO | libc::ENODEV => Self::NotRegular,
            libc::EMFILE | libc::ENFILE => Self::TooManyOpen,
            errno => Self::Io { errno },
        }
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A pipe, a socket, a device.
    Other,
}

/// What is known of a file without opening it for reading: enough to tell whether a cached
/// [`File`] is still the one of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// What it is.
    pub kind: FileKind,
    /// Bytes.
    pub len: u64,
    /// When its bytes were last changed.
    pub modified: SystemTime,
    /// Device and inode number.
    pub id: (u64, u64),
}

impl FileStat {
    pub(crate) fn new(raw: &RawStat) -> Self {
        let kind = match raw.mode & libc::S_IFMT {
            libc::S_IFREG => FileKind::Regular,
            libc::S_IFDIR => FileKind::Directory,
            _ => FileKind::Other,
        };
        // A file system may hold any number; one that the clock cannot show becomes the epoch.
        let whole_s = Duration::from_secs(raw.modified_s.unsigned_abs());
        let modified = if raw.modified_s < 0 {
            SystemTime::UNIX_EPOCH.checked_sub(whole_s)
        } else {
            SystemTime::UNIX_EPOCH.checked_add(whole_s)
        };
        let part = Duration::from_nanos(u64::from(raw.modified_ns));
        let modified = modified.and_then(|time| time.checked_add(part));
        Self {
            kind,
            len: raw.len,
            modified: modified.unwrap_or(SystemTime::UNIX_EPOCH),
            id: (raw.dev, raw.ino),
        }
    }
}

/// An open file, or bytes in memory that stand for one. Cloning gives another handle.
///
/// Length and time of change are those of the moment it was opened. If the file is cut short
/// later, reads beyond its new end fail with [`DiskError::Truncated`](crate::DiskError::Truncated).
#[derive(Clone)]
pub struct File(Arc<Inner>);

struct Inner {
    source: Source,
    stat: FileStat,
    align_bytes: usize,
    memory_align_bytes: usize,
}

enum Source {
    Kernel { fd: OwnedFd, direct: AtomicBool },
    Memory(Arc<[u8]>),
    Zeroes,
    Device(DeviceId),
}

/// A device that a driver of ours has opened; never the same number twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceId(u64);

impl DeviceId {
    pub(crate) fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl File {
    /// Opens a regular file, for direct reads where its file system has them. Never blocks on a
    /// pipe or a device. Follows symbolic links: paths from strangers belong to [`crate::Root`].
    ///
    /// # Errors
    /// [`OpenError`] says whether it is missing, forbidden or of the wrong kind.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let path = CPath::new(path.as_os_str().as_bytes()).map_err(OpenError::from_errno)?;
        Self::open_with(|flags| sys::open_at(None, &path, flags))
    }

    /// A file whose bytes are in memory. `modified` is the epoch; see [`Self::with_modified`].
    pub fn in_memory(bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        let len = bytes.len() as u64;
        Self::made_up(Source::Memory(bytes), len)
    }

    /// A file of `len` zero bytes that takes no memory, for benchmarks.
    pub fn zeroes(len: u64) -> Self {
        Self::made_up(Source::Zeroes, len)
    }

    /// A file in memory with another time of change; an open file stays as it is.
    #[must_use]
    pub fn with_modified(self, modified: SystemTime) -> Self {
        let source = match &self.0.source {
            Source::Kernel { .. } | Source::Device(_) => return self,
            Source::Memory(bytes) => Source::Memory(Arc::clone(bytes)),
            Source::Zeroes => Source::Zeroes,
        };
        let stat = FileStat { modified, ..self.0.stat };
        Self(Arc::new(Inner { source, stat, align_bytes: ALIGN_MIN_BYTES, memory_align_bytes: 1 }))
    }

    /// Bytes, when it was opened.
    pub fn len(&self) -> u64 {
        self.0.stat.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When its bytes were last changed before it was opened.
    pub fn modified(&self) -> SystemTime {
        self.0.stat.modified
    }

    /// Device and inode number. Files in memory have device 0 and a number of their own.
    pub fn id(&self) -> (u64, u64) {
        self.0.stat.id
    }

    /// All of it that [`crate::Root::stat`] gives too, for comparison.
    pub fn stat(&self) -> FileStat {
        self.0.stat
    }

    /// What the offset of a read must be a multiple of, in bytes: a power of two, at least
    /// [`ALIGN_MIN_BYTES`] and at most [`BLOCK_BYTES`].
    pub fn align_bytes(&self) -> usize {
        self.0.align_bytes
    }

    /// Whether reads bypass the page cache.
    pub fn is_direct(&self) -> bool {
        matches!(&self.0.source, Source::Kernel { direct, .. } if direct.load(Ordering::Acquire))
    }

    /// Whether its bytes are in memory.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.0.source, Source::Memory(_) | Source::Zeroes)
    }

    /// Opens with `open`, first for direct reads, and looks at what it got.
    pub(crate) fn open_with(open: impl Fn(i32) -> Result<OwnedFd, i32>) -> Result<Self, OpenError> {
        // O_NONBLOCK keeps pipes and devices from holding us up.
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
        let (fd, direct) = match open(flags | libc::O_DIRECT) {
            Ok(fd) => (fd, true),
            // The file system (or a directory) has no direct reads.
            Err(libc::EINVAL) => (open(flags).map_err(OpenError::from_errno)?, false),
            Err(errno) => return Err(OpenError::from_errno(errno)),
        };
        let raw = sys::stat(fd.as_fd()).map_err(OpenError::from_errno)?;
        let stat = FileStat::new(&raw);
        match stat.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(OpenError::IsDirectory),
            FileKind::Other => return Err(OpenError::NotRegular),
        }
        let (memory_align_bytes, offset_align_bytes) = match raw.direct {
            _ if !direct => (0, 0),
            Some((memory, offset)) => (memory as usize, offset as usize),
            None => (ALIGN_ASSUMED_BYTES, ALIGN_ASSUMED_BYTES),
        };
        // Zero says that direct reads would not work here, whatever `open` said. More than a block
        // would not fit our buffers.
        let usable = |align: usize| align.is_power_of_two() && align <= BLOCK_BYTES && stat.len > 0;
        let direct = direct && usable(memory_align_bytes) && usable(offset_align_bytes);
        sys::set_flags(fd.as_fd(), if direct { libc::O_DIRECT } else { 0 })
            .map_err(OpenError::from_errno)?;
        Ok(Self(Arc::new(Inner {
            source: Source::Kernel { fd, direct: AtomicBool::new(direct) },
            stat,
            align_bytes: if direct {
                offset_align_bytes.max(ALIGN_MIN_BYTES)
            } else {
                ALIGN_MIN_BYTES
            },
            memory_align_bytes: if direct { memory_align_bytes } else { 1 },
        })))
    }

    fn made_up(source: Source, len: u64) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let stat = FileStat {
            kind: FileKind::Regular,
            len,
            modified: SystemTime::UNIX_EPOCH,
            id: (0, NEXT.fetch_add(1, Ordering::Relaxed)),
        };
        let align_bytes = ALIGN_MIN_BYTES;
        Self(Arc::new(Inner { source, stat, align_bytes, memory_align_bytes: 1 }))
    }

    /// All `len` bytes of a device, read in blocks of `align_bytes` bytes.
    pub(crate) fn on_device(device: DeviceId, len: u64, align_bytes: usize) -> Self {
        let mut file = Self::made_up(Source::Device(device), len);
        if let Some(inner) = Arc::get_mut(&mut file.0) {
            inner.align_bytes = align_bytes.max(ALIGN_MIN_BYTES);
        }
        file
    }

    /// Where on `device` its first byte is, if it lies there.
    #[inline]
    pub(crate) fn start_on(&self, device: DeviceId) -> Option<u64> {
        matches!(self.0.source, Source::Device(id) if id == device).then_some(0)
    }

    /// Copies from `offset` on into `out`, if the bytes are in memory and there are enough.
    pub(crate) fn copy_to(&self, offset: u64, out: &mut [u8]) -> bool {
        match &self.0.source {
            Source::Kernel { .. } | Source::Device(_) => false,
            Source::Zeroes => {
                out.fill(0);
                true
            }
            Source::Memory(bytes) => {
                let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
                let Some(from) = from.and_then(|from| from.get(..out.len())) else { return false };
                out.copy_from_slice(from);
                true
            }
        }
    }

    /// What the address of the buffer must be a multiple of.
    pub(crate) fn memory_align_bytes(&self) -> usize {
        self.0.memory_align_bytes
    }

    /// The descriptor, if it has one; valid as long as a handle exists.
    pub(crate) fn raw_fd(&self) -> Option<RawFd> {
        self.fd().map(|fd| fd.as_raw_fd())
    }

    /// Goes on through the page cache, for file systems that take `O_DIRECT` at open and refuse
    /// the reads. Whether that changed anything; `errno` if the kernel would not have it.
    pub(crate) fn give_up_direct(&self) -> Result<bool, i32> {
        let Source::Kernel { fd, direct } = &self.0.source else { return Ok(false) };
        if !direct.load(Ordering::Acquire) {
            return Ok(false);
        }
        // The descriptor first: whoever finds the file not direct may read at any offset.
        sys::set_flags(fd.as_fd(), 0)?;
        Ok(direct.swap(false, Ordering::AcqRel))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.0.source {
            Source::Kernel { fd, .. } => Some(fd.as_fd()),
            _ => None,
        }
    }

    /// A descriptor of any kind as a file of `len` bytes.
    #[cfg(test)]
    pub(crate) fn from_fd(fd: OwnedFd, len: u64, direct: bool) -> Self {
        let stat =
            FileStat { kind: FileKind::Regular, len, modified: SystemTime::UNIX_EPOCH, id: (0, 0) };
        Self(Arc::new(Inner {
            source: Source::Kernel { fd, direct: AtomicBool::new(direct) },
            stat,
            align_bytes: ALIGN_MIN_BYTES,
            memory_align_bytes: 1,
        }))
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.0.source {
            Source::Kernel { .. } if self.is_direct() => "direct",
            Source::Kernel { .. } => "buffered",
            Source::Memory(_) => "memory",
            Source::Zeroes => "zeroes",
            Source::Device(_) => "device",
        };
        write!(f, "File({kind}, {} bytes)", self.len())
    }
}
