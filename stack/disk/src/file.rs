//! What is read: an open file, or bytes in memory.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use millstream_buf::BLOCK_BYTES;

use crate::queue::DiskError;
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
    /// The name is not in the kernel's caches; looking it up may wait for a disk.
    #[error("looking the name up would wait for a disk; have a helper thread do it")]
    WouldBlock,
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
    /// When its bytes were last changed, as far as programs tell: they may set it.
    pub modified: SystemTime,
    /// When anything about it was last changed, its names too, as the kernel knows.
    pub changed: SystemTime,
    /// Device and inode number.
    pub id: (u64, u64),
    /// A number for the very image that it lies in; 0: in none. Files of two images may agree in all
    /// else.
    pub volume: u64,
}

impl FileStat {
    pub(crate) fn new(raw: &RawStat) -> Self {
        let kind = match raw.mode & libc::S_IFMT {
            libc::S_IFREG => FileKind::Regular,
            libc::S_IFDIR => FileKind::Directory,
            _ => FileKind::Other,
        };
        Self {
            kind,
            len: raw.len,
            modified: system_time(raw.modified_s, raw.modified_ns),
            changed: system_time(raw.changed_s, raw.changed_ns),
            id: (raw.dev, raw.ino),
            volume: 0,
        }
    }
}

/// A file system may hold any number; one that the clock cannot show becomes the epoch.
pub(crate) fn system_time(seconds: i64, nanos: u32) -> SystemTime {
    let whole_s = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole_s)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole_s)
    };
    let part = Duration::from_nanos(u64::from(nanos));
    time.and_then(|time| time.checked_add(part)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// An open file, or bytes in memory that stand for one. Cloning gives another handle.
///
/// Length and time of change are those of the moment it was opened. If the file is cut short
/// later, reads beyond its new end fail with [`DiskError::Truncated`](crate::DiskError::Truncated).
#[derive(Clone)]
pub struct File(Arc<Inner>);

struct Inner {
    source: Source,
    /// Where in the source its first byte is.
    base: u64,
    stat: FileStat,
    align_bytes: usize,
    memory_align_bytes: usize,
}

#[derive(Clone)]
enum Source {
    Kernel(Arc<Kernel>),
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

struct Kernel {
    fd: OwnedFd,
    direct: AtomicBool,
    /// What it was like when it was opened; `None` for a device, whose node says nothing.
    stamp: Option<Stamp>,
}

/// What tells that a file's bytes are still those that were there when it was opened.
#[derive(Clone, Copy)]
struct Stamp {
    len: u64,
    modified: (i64, u32),
    changed: (i64, u32),
    links: u32,
}

impl Stamp {
    fn new(raw: &RawStat) -> Self {
        Self {
            len: raw.len,
            modified: (raw.modified_s, raw.modified_ns),
            changed: (raw.changed_s, raw.changed_ns),
            links: raw.links,
        }
    }

    /// A new name, or a name that went because another file was renamed over it, changes no byte.
    fn holds(&self, now: &Self) -> bool {
        let same = (self.len, self.modified) == (now.len, now.modified);
        same && (self.changed == now.changed || self.links != now.links)
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

    /// As [`Self::open`], for a block device too, whose length is that of the device.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_image(path: &Path) -> Result<Self, OpenError> {
        let path = CPath::new(path.as_os_str().as_bytes()).map_err(OpenError::from_errno)?;
        Self::open_kind(|flags| sys::open_at(None, &path, flags), true)
    }

    /// `stat.len` bytes from `offset` on as a file of its own: one that lies in one piece in an image.
    /// It is what `stat` says. `None` if the bytes are not inside this file, or `offset` is no
    /// multiple of [`Self::align_bytes`].
    pub fn window(&self, offset: u64, stat: FileStat) -> Option<Self> {
        let end = offset.checked_add(stat.len)?;
        if end > self.len() || !offset.is_multiple_of(self.align_bytes() as u64) {
            return None;
        }
        Some(Self(Arc::new(Inner {
            source: self.0.source.clone(),
            base: self.0.base + offset,
            stat,
            align_bytes: self.0.align_bytes,
            memory_align_bytes: self.0.memory_align_bytes,
        })))
    }

    /// Whether its bytes are still those that were there when it was opened, as far as its length,
    /// its times and the number of its names tell. Asks the kernel, which does not wait for a disk.
    /// Files in memory never change.
    ///
    /// A change within one tick of the file system's clock (4 ms before Linux 6.13) of one before the
    /// file was opened is not seen. A change of owner or mode counts as one.
    ///
    /// # Errors
    /// [`DiskError::Changed`], [`DiskError::Truncated`], or what the kernel says.
    pub fn check_unchanged(&self) -> Result<(), DiskError> {
        let Source::Kernel(kernel) = &self.0.source else { return Ok(()) };
        let Some(stamp) = &kernel.stamp else { return Ok(()) };
        let now = sys::stat_at_hand(kernel.fd.as_fd()).map_err(DiskError::from_errno)?;
        match Stamp::new(&now) {
            now if stamp.holds(&now) => Ok(()),
            now if now.len < stamp.len => Err(DiskError::Truncated),
            _ => Err(DiskError::Changed),
        }
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
        if matches!(self.0.source, Source::Kernel(_) | Source::Device(_)) {
            return self;
        }
        let inner = &*self.0;
        Self(Arc::new(Inner {
            source: inner.source.clone(),
            stat: FileStat { modified, ..inner.stat },
            ..*inner
        }))
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
        matches!(&self.0.source, Source::Kernel(kernel) if kernel.direct.load(Ordering::Acquire))
    }

    /// Whether its bytes are in memory.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.0.source, Source::Memory(_) | Source::Zeroes)
    }

    /// Whether nobody can change its bytes unnoticed: they lie in an image that is a file, or in
    /// memory. An image on a device can be written over.
    pub fn is_immutable(&self) -> bool {
        let in_file = match &self.0.source {
            Source::Kernel(kernel) => kernel.stamp.is_some(),
            _ => false,
        };
        (self.0.stat.volume != 0 && in_file) || self.is_in_memory()
    }

    /// Opens with `open`, first for direct reads, and looks at what it got.
    pub(crate) fn open_with(open: impl Fn(i32) -> Result<OwnedFd, i32>) -> Result<Self, OpenError> {
        Self::open_kind(open, false)
    }

    fn open_kind(
        open: impl Fn(i32) -> Result<OwnedFd, i32>,
        device: bool,
    ) -> Result<Self, OpenError> {
        // O_NONBLOCK keeps pipes and devices from holding us up.
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
        let (fd, direct) = match open(flags | libc::O_DIRECT) {
            Ok(fd) => (fd, true),
            // The file system (or a directory) has no direct reads.
            Err(libc::EINVAL) => (open(flags).map_err(OpenError::from_errno)?, false),
            Err(errno) => return Err(OpenError::from_errno(errno)),
        };
        let raw = sys::stat(fd.as_fd()).map_err(OpenError::from_errno)?;
        let mut stat = FileStat::new(&raw);
        let is_device = device && raw.mode & libc::S_IFMT == libc::S_IFBLK;
        match stat.kind {
            FileKind::Regular => {}
            FileKind::Other if is_device => {
                stat.len = sys::seek_end(fd.as_fd()).map_err(OpenError::from_errno)?;
            }
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
            source: Source::Kernel(Arc::new(Kernel {
                fd,
                direct: AtomicBool::new(direct),
                stamp: (!is_device).then(|| Stamp::new(&raw)),
            })),
            base: 0,
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
            changed: SystemTime::UNIX_EPOCH,
            id: (0, NEXT.fetch_add(1, Ordering::Relaxed)),
            volume: 0,
        };
        let align_bytes = ALIGN_MIN_BYTES;
        Self(Arc::new(Inner { source, base: 0, stat, align_bytes, memory_align_bytes: 1 }))
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
        matches!(self.0.source, Source::Device(id) if id == device).then_some(self.0.base)
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
                let offset = offset.saturating_add(self.0.base);
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

    /// Where in what the descriptor stands for its first byte is.
    pub(crate) fn base(&self) -> u64 {
        self.0.base
    }

    /// The descriptor, if it has one; valid as long as a handle exists.
    pub(crate) fn raw_fd(&self) -> Option<RawFd> {
        self.fd().map(|fd| fd.as_raw_fd())
    }

    /// Goes on through the page cache, for file systems that take `O_DIRECT` at open and refuse
    /// the reads. Whether that changed anything; `errno` if the kernel would not have it.
    pub(crate) fn give_up_direct(&self) -> Result<bool, i32> {
        let Source::Kernel(kernel) = &self.0.source else { return Ok(false) };
        let Kernel { fd, direct, .. } = &**kernel;
        if !direct.load(Ordering::Acquire) {
            return Ok(false);
        }
        // The descriptor first: whoever finds the file not direct may read at any offset.
        sys::set_flags(fd.as_fd(), 0)?;
        Ok(direct.swap(false, Ordering::AcqRel))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.0.source {
            Source::Kernel(kernel) => Some(kernel.fd.as_fd()),
            _ => None,
        }
    }

    /// A descriptor of any kind as a file of `len` bytes.
    #[cfg(test)]
    pub(crate) fn from_fd(fd: OwnedFd, len: u64, direct: bool) -> Self {
        let stat = Self::made_up(Source::Zeroes, len).stat();
        Self(Arc::new(Inner {
            source: Source::Kernel(Arc::new(Kernel {
                fd,
                direct: AtomicBool::new(direct),
                stamp: None,
            })),
            base: 0,
            stat,
            align_bytes: ALIGN_MIN_BYTES,
            memory_align_bytes: 1,
        }))
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.0.source {
            Source::Kernel(_) if self.is_direct() => "direct",
            Source::Kernel(_) => "buffered",
            Source::Memory(_) => "memory",
            Source::Zeroes => "zeroes",
            Source::Device(_) => "device",
        };
        write!(f, "File({kind}, {} bytes)", self.len())
    }
}
