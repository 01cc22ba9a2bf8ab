//! Memory from the kernel: huge pages where there are some, and memory that can be passed on.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use crate::arena::{ArenaError, HugePages, PageKind};

pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Maps `bytes`, a multiple of [`HUGE_PAGE_BYTES`], every page of them present.
pub(crate) fn map(bytes: usize, huge: HugePages) -> Result<(NonNull<u8>, PageKind), ArenaError> {
    if huge != HugePages::Never {
        // MAP_POPULATE of huge pages fails at once if too few are free, where a later touch would
        // be a bus error.
        match map_with(bytes, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB | libc::MAP_POPULATE) {
            Ok(base) => return Ok((base, PageKind::Huge)),
            Err(_) if huge == HugePages::Try => {}
            Err(_) => return Err(ArenaError::NoHugePages { pages: bytes / HUGE_PAGE_BYTES }),
        }
    }
    let base = map_with(bytes + HUGE_PAGE_BYTES, 0)
        .map_err(|source| ArenaError::NoMemory { bytes, source })?;
    // Trim to a 2 MiB boundary, so that transparent huge pages can back it.
    let skip = base.as_ptr().align_offset(HUGE_PAGE_BYTES);
    // SAFETY: all ranges lie inside the mapping just made.
    unsafe {
        if skip > 0 {
            libc::munmap(base.as_ptr().cast(), skip);
        }
        let aligned = base.add(skip);
        if HUGE_PAGE_BYTES > skip {
            libc::munmap(aligned.as_ptr().add(bytes).cast(), HUGE_PAGE_BYTES - skip);
        }
        if huge != HugePages::Never {
            libc::madvise(aligned.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
        }
        if libc::madvise(aligned.as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE) != 0 {
            let source = std::io::Error::last_os_error();
            // Kernels before 5.14 do not know MADV_POPULATE_WRITE; they fault pages in as they are touched.
            if source.raw_os_error() != Some(libc::EINVAL) {
                libc::munmap(aligned.as_ptr().cast(), bytes);
                return Err(ArenaError::NoMemory { bytes, source });
            }
        }
        // Shared memory is made of huge pages at once where the kernel can (Linux 6.1), whatever
        // `shmem_enabled` says; elsewhere this fails and changes nothing.
        if huge != HugePages::Never {
            libc::madvise(aligned.as_ptr().cast(), bytes, libc::MADV_COLLAPSE);
        }
        Ok((aligned, PageKind::Base))
    }
}

fn map_with(bytes: usize, flags: libc::c_int) -> std::io::Result<NonNull<u8>> {
    // SAFETY: a fresh anonymous mapping touches nothing that exists.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | flags,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENOMEM))
}

/// As [`map`] on a memfd: shared memory without a name, whose size is sealed and of which no further
/// mapping can be written.
pub(crate) fn map_shared(
    bytes: usize,
    huge: HugePages,
) -> Result<(NonNull<u8>, PageKind, OwnedFd), ArenaError> {
    if huge != HugePages::Never {
        match memfd(bytes, libc::MFD_HUGETLB | libc::MFD_HUGE_2MB) {
            Ok((base, fd)) => return Ok((base, PageKind::Huge, fd)),
            Err(_) if huge == HugePages::Try => {}
            Err(_) => return Err(ArenaError::NoHugePages { pages: bytes / HUGE_PAGE_BYTES }),
        }
    }
    let (base, fd) = memfd(bytes, 0).map_err(|source| ArenaError::NotShareable { source })?;
    Ok((base, PageKind::Base, fd))
}

fn memfd(bytes: usize, flags: libc::c_uint) -> std::io::Result<(NonNull<u8>, OwnedFd)> {
    let name = c"millstream-arena";
    // SAFETY: the name is a string that ends with a zero; the call touches nothing else.
    let fd = unsafe {
        libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | flags)
    };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just made and that nobody else has.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: calls on our own descriptor and a fresh mapping, which touch nothing that exists.
    unsafe {
        if libc::ftruncate(fd.as_raw_fd(), bytes as libc::off_t) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let base = libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            fd.as_raw_fd(),
            0,
        );
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        // This mapping stays writable; whoever is given the descriptor can neither map it for writing,
        // nor write to it, nor cut it short under the readers.
        let seals =
            libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;
        if libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) != 0 {
            let error = std::io::Error::last_os_error();
            libc::munmap(base, bytes);
            return Err(error);
        }
        match NonNull::new(base.cast()) {
            Some(base) => Ok((base, fd)),
            None => Err(std::io::Error::from_raw_os_error(libc::ENOMEM)),
        }
    }
}
