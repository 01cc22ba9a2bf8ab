//! The system calls on files, each behind a safe function that answers with the `errno`.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use arrayvec::ArrayVec;

/// Bytes of a path with its final NUL that the kernel takes.
const PATH_BYTES: usize = libc::PATH_MAX as usize;

/// A path as the kernel wants it, on the stack.
pub(crate) struct CPath(ArrayVec<u8, PATH_BYTES>);

impl CPath {
    /// `ENOENT` if the path has a NUL in it (no file can have that name), `ENAMETOOLONG` if it is
    /// too long.
    pub(crate) fn new(path: &[u8]) -> Result<Self, i32> {
        if path.contains(&0) {
            return Err(libc::ENOENT);
        }
        let mut bytes = ArrayVec::new();
        bytes.try_extend_from_slice(path).map_err(|_| libc::ENAMETOOLONG)?;
        bytes.try_push(0).map_err(|_| libc::ENAMETOOLONG)?;
        Ok(Self(bytes))
    }

    fn as_cstr(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

/// What `statx` says of a file.
pub(crate) struct RawStat {
    pub(crate) mode: u32,
    pub(crate) len: u64,
    pub(crate) modified_s: i64,
    pub(crate) modified_ns: u32,
    /// When anything about it was last changed, which no program can set.
    pub(crate) changed_s: i64,
    pub(crate) changed_ns: u32,
    /// Names that it has.
    pub(crate) links: u32,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    /// Alignment of memory and of offsets for direct reads; zeroes: there are none; `None`: the
    /// kernel does not say (before 6.1).
    pub(crate) direct: Option<(u32, u32)>,
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// `openat`, relative to `dir` or to the working directory.
pub(crate) fn open_at(
    dir: Option<BorrowedFd<'_>>,
    path: &CPath,
    flags: i32,
) -> Result<OwnedFd, i32> {
    let dir = dir.map_or(libc::AT_FDCWD, |dir| dir.as_raw_fd());
    loop {
        // SAFETY: the path is NUL-terminated and outlives the call.
        let fd = unsafe { libc::openat(dir, path.as_cstr().as_ptr(), flags | libc::O_CLOEXEC) };
        if fd >= 0 {
            // SAFETY: a descriptor that was just made and that nobody else knows.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        if errno() != libc::EINTR {
            return Err(errno());
        }
    }
}

/// `openat2` that never leaves `dir`: the kernel refuses absolute paths and links, `..` above it
/// (`EXDEV`), and links of procfs (`ELOOP`). With `at_hand` it does not wait for a disk: a name that is
/// not in the caches is `EAGAIN` (`RESOLVE_CACHED`, Linux 5.12; `EINVAL` before).
pub(crate) fn open_beneath(
    dir: BorrowedFd<'_>,
    path: &CPath,
    flags: i32,
    at_hand: bool,
) -> Result<OwnedFd, i32> {
    // The kernel answers EAGAIN when a rename elsewhere kept it from proving that `..` in a link
    // stays inside; a few more tries settle that.
    let mut tries = 16;
    loop {
        // SAFETY: plain integers, for which zero is a value.
        let mut how: libc::open_how = unsafe { std::mem::zeroed() };
        how.flags = (flags | libc::O_CLOEXEC) as u64;
        how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
        if at_hand {
            how.resolve |= libc::RESOLVE_CACHED;
        }
        // SAFETY: the path is NUL-terminated, `how` has the size that is passed, and both outlive
        // the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                path.as_cstr().as_ptr(),
                &raw mut how,
                std::mem::size_of::<libc::open_how>(),
            )
        };
        if fd >= 0 {
            // SAFETY: a descriptor that was just made and that nobody else knows.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        }
        match errno() {
            libc::EINTR => {}
            libc::EAGAIN if tries > 0 && !at_hand => tries -= 1,
            errno => return Err(errno),
        }
    }
}

/// `statx` of an open file.
pub(crate) fn stat(fd: BorrowedFd<'_>) -> Result<RawStat, i32> {
    stat_at(fd, c"", libc::AT_EMPTY_PATH)
}

/// `statx` of an open file from what the kernel has at hand, without asking a server.
pub(crate) fn stat_at_hand(fd: BorrowedFd<'_>) -> Result<RawStat, i32> {
    stat_at(fd, c"", libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC)
}

/// Whether `name` in `dir` is a symbolic link.
pub(crate) fn is_link(dir: BorrowedFd<'_>, name: &CPath) -> bool {
    stat_at(dir, name.as_cstr(), libc::AT_SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| stat.mode & libc::S_IFMT == libc::S_IFLNK)
}

fn stat_at(dir: BorrowedFd<'_>, path: &CStr, flags: i32) -> Result<RawStat, i32> {
    // SAFETY: plain integers, for which zero is a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let mask = libc::STATX_BASIC_STATS | libc::STATX_DIOALIGN;
    // SAFETY: the path is NUL-terminated and `stat` has room for what the call writes.
    let result = unsafe { libc::statx(dir.as_raw_fd(), path.as_ptr(), flags, mask, &raw mut stat) };
    if result != 0 {
        return Err(errno());
    }
    Ok(RawStat {
        mode: u32::from(stat.stx_mode),
        len: stat.stx_size,
        modified_s: stat.stx_mtime.tv_sec,
        modified_ns: stat.stx_mtime.tv_nsec,
        changed_s: stat.stx_ctime.tv_sec,
        changed_ns: stat.stx_ctime.tv_nsec,
        links: stat.stx_nlink,
        dev: libc::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        ino: stat.stx_ino,
        direct: (stat.stx_mask & libc::STATX_DIOALIGN != 0)
            .then_some((stat.stx_dio_mem_align, stat.stx_dio_offset_align)),
    })
}

/// Bytes of an open block device.
pub(crate) fn seek_end(fd: BorrowedFd<'_>) -> Result<u64, i32> {
    // SAFETY: no memory is passed. Nobody here reads from the descriptor's position.
    match unsafe { libc::lseek(fd.as_raw_fd(), 0, libc::SEEK_END) } {
        len @ 0.. => Ok(len as u64),
        _ => Err(errno()),
    }
}

/// Sets the status flags of an open file (of `O_DIRECT`, `O_NONBLOCK` and their like).
pub(crate) fn set_flags(fd: BorrowedFd<'_>, flags: i32) -> Result<(), i32> {
    // SAFETY: no memory is passed.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) } {
        0.. => Ok(()),
        _ => Err(errno()),
    }
}
