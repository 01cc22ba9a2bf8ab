//! Who may read which buffers: pools for sets of readers, and the readers' side.
//!
//! As in IO-Lite (OSDI '99, section 3.3) a buffer's readers are decided before data is stored, by the
//! pool that it is taken from: a [`Pool`] is an arena on memory of its own and the list of those who may
//! map it. A reader maps a pool once; every slice that comes later needs no change of a mapping, only the
//! 16 bytes of a [`SliceRef`]. The kernel enforces it: a descriptor is given to those on the list alone,
//! and what it stands for can be mapped for reading only.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use crate::arena::{Arena, ArenaConfig, ArenaError};
use crate::iobuf::IoBuf;

/// A protection domain: a process, or a group of processes that trust each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(pub u32);

/// Why memory was not given.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The domain is not among the readers.
    #[error("domain {} may not read this pool; take buffers for it from a pool that names it", .0.0)]
    Denied(Domain),
    /// There are as many pools as there may be.
    #[error("all {0} pools are in use; allow more of them, or let their readers share one")]
    TooManyPools(usize),
    /// The pool could not be made.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The system said no.
    #[error("cannot pass the memory on: {0}")]
    System(#[from] io::Error),
    /// What was given to map is not a pool's memory: it could be cut short or written by strangers.
    #[error("this is not the memory of a pool: its size and contents are not sealed")]
    NotSealed,
}

/// An arena, and who may read what is stored in it.
#[derive(Debug)]
pub struct Pool {
    arena: Arena,
    readers: Box<[Domain]>,
}

impl Pool {
    /// A pool whose buffers `readers` may map. Its owner writes them and need not be named.
    ///
    /// # Errors
    /// [`ArenaError`]
    pub fn new(config: &ArenaConfig, readers: &[Domain]) -> Result<Self, ArenaError> {
        Ok(Self { arena: Arena::shareable(config)?, readers: sorted(readers) })
    }

    /// Where its buffers come from.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Who may read, in order.
    pub fn readers(&self) -> &[Domain] {
        &self.readers
    }

    /// A descriptor with which `domain` can [map](SharedView::map) the pool. To be passed to it over a
    /// Unix socket or by inheritance; closing it takes nothing back.
    ///
    /// # Errors
    /// [`AccessError::Denied`] if the domain is not among the readers; [`AccessError::System`].
    pub fn grant(&self, domain: Domain) -> Result<OwnedFd, AccessError> {
        if self.readers.binary_search(&domain).is_err() {
            return Err(AccessError::Denied(domain));
        }
        match &self.arena.inner().memfd {
            Some(fd) => Ok(fd.try_clone()?),
            None => Err(AccessError::Denied(domain)),
        }
    }

    /// Where a slice of this pool is for its readers; `None` if it lies elsewhere. The slice must be held
    /// until the reader is done with it.
    pub fn describe(&self, slice: &IoBuf) -> Option<SliceRef> {
        let (base, bytes) = self.arena.region();
        let offset = (slice.as_ptr() as usize).checked_sub(base.as_ptr() as usize)?;
        let inside = offset + slice.len() <= bytes;
        inside.then(|| SliceRef {
            offset: offset as u64,
            len: slice.len() as u32,
            generation: slice.generation(),
        })
    }
}

fn sorted(readers: &[Domain]) -> Box<[Domain]> {
    let mut readers = readers.to_vec();
    readers.sort_unstable();
    readers.dedup();
    readers.into()
}

/// Pools by their readers, made when they are first asked for.
#[derive(Debug)]
pub struct Pools {
    pools: Vec<Pool>,
    config: ArenaConfig,
    max: usize,
}

impl Pools {
    /// Up to `max` pools, each as large as `config` says.
    pub fn new(config: ArenaConfig, max: usize) -> Self {
        Self { pools: Vec::new(), config, max }
    }

    /// The pool for data that all of `readers` may read, and nobody else.
    ///
    /// # Errors
    /// [`AccessError`]
    pub fn pool_for(&mut self, readers: &[Domain]) -> Result<&Pool, AccessError> {
        let wanted = sorted(readers);
        let at = match self.pools.iter().position(|pool| pool.readers == wanted) {
            Some(at) => at,
            None if self.pools.len() >= self.max => {
                return Err(AccessError::TooManyPools(self.max));
            }
            None => {
                self.pools.push(Pool::new(&self.config, &wanted)?);
                self.pools.len() - 1
            }
        };
        Ok(&self.pools[at])
    }
}

/// A slice as readers in other processes know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceRef {
    /// First byte, from the beginning of the pool.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Together with the offset names the content: see [`IoBuf::generation`].
    pub generation: u32,
}

impl SliceRef {
    /// As it is passed on, in the machine's byte order.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_ne_bytes());
        bytes[12..].copy_from_slice(&self.generation.to_ne_bytes());
        bytes
    }

    /// What [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, g0, g1, g2, g3] = bytes;
        Self {
            offset: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_ne_bytes([l0, l1, l2, l3]),
            generation: u32::from_ne_bytes([g0, g1, g2, g3]),
        }
    }
}

/// A pool as a reader has it mapped.
#[derive(Debug)]
pub struct SharedView {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, is only ever read through it, and goes with its one owner.
unsafe impl Send for SharedView {}

impl SharedView {
    /// Maps what [`Pool::grant`] gave.
    ///
    /// # Errors
    /// [`AccessError::NotSealed`] if whoever gave it could cut it short, which would end this process at
    /// its next read; [`AccessError::System`].
    pub fn map(fd: &OwnedFd) -> Result<Self, AccessError> {
        let wanted = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
        // SAFETY: calls on a descriptor that the caller lends, with a record that is large enough.
        let (seals, bytes) = unsafe {
            let seals = libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS);
            let mut stat = std::mem::zeroed::<libc::stat>();
            if libc::fstat(fd.as_raw_fd(), &mut stat) != 0 {
                return Err(io::Error::last_os_error().into());
            }
            (seals, usize::try_from(stat.st_size).unwrap_or(0))
        };
        if seals < 0 || seals & wanted != wanted || bytes == 0 {
            return Err(AccessError::NotSealed);
        }
        // SAFETY: a fresh mapping for reading.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        let base = NonNull::new(base.cast::<u8>());
        let base = base.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { base, bytes })
    }

    /// Copies a slice out. `false` if it is not inside the pool, or longer than `out`: what another
    /// process says is not trusted. If the owner has let go of the slice, the bytes are those of whatever
    /// came after it.
    pub fn copy_to(&self, slice: SliceRef, out: &mut [u8]) -> bool {
        let (Some(at), Some(out)) = (self.inside(slice), out.get_mut(..slice.len as usize)) else {
            return false;
        };
        // SAFETY: inside the mapping, which is as long as when it was made (sealed) and initialised
        // (the kernel's zeroes at least); `out` is other memory. No reference to the shared bytes is made.
        unsafe { std::ptr::copy_nonoverlapping(at.as_ptr(), out.as_mut_ptr(), out.len()) };
        true
    }

    /// The bytes of a slice where they are; `None` if it is not inside the pool.
    ///
    /// # Safety
    /// The owner of the pool holds the slice as long as the returned bytes are used: nobody writes them.
    pub unsafe fn bytes(&self, slice: SliceRef) -> Option<&[u8]> {
        let at = self.inside(slice)?;
        // SAFETY: inside the mapping and, by the caller's promise, written by nobody.
        Some(unsafe { std::slice::from_raw_parts(at.as_ptr(), slice.len as usize) })
    }

    fn inside(&self, slice: SliceRef) -> Option<NonNull<u8>> {
        let offset = usize::try_from(slice.offset).ok()?;
        let end = offset.checked_add(slice.len as usize)?;
        if end > self.bytes {
            return None;
        }
        // SAFETY: inside the mapping by the check above.
        Some(unsafe { self.base.add(offset) })
    }
}

impl Drop for SharedView {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length; borrows of it have ended.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HugePages, SizeClass};

    fn config() -> ArenaConfig {
        ArenaConfig { frames: 4, blocks: 2, huge_pages: HugePages::Never }
    }

    #[test]
    fn pools_are_chosen_by_their_readers() {
        let mut pools = Pools::new(config(), 2);
        let (a, b) = (Domain(1), Domain(2));
        let first = pools.pool_for(&[b, a]).unwrap().arena().region().0;
        assert_eq!(pools.pool_for(&[a, b, a]).unwrap().arena().region().0, first);
        let other = pools.pool_for(&[a]).unwrap();
        assert_ne!(other.arena().region().0, first);
        assert!(matches!(other.grant(b), Err(AccessError::Denied(Domain(2)))));
        assert!(matches!(pools.pool_for(&[]), Err(AccessError::TooManyPools(2))));
    }

    #[test]
    fn views_are_bounded_and_read_only() {
        let pool = Pool::new(&config(), &[Domain(7)]).unwrap();
        let mut buf = pool.arena().alloc(SizeClass::Block).unwrap();
        buf[..5].copy_from_slice(b"hello");
        let slice = buf.freeze(1..5);
        let at = pool.describe(&slice).unwrap();
        assert_eq!(SliceRef::from_bytes(at.to_bytes()), at);
        assert!(pool.describe(&IoBuf::from(vec![1])).is_none());

        let fd = pool.grant(Domain(7)).unwrap();
        let view = SharedView::map(&fd).unwrap();
        let mut out = [0; 4];
        assert!(view.copy_to(at, &mut out));
        assert_eq!(&out, b"ello");
        // SAFETY: `slice` is held.
        assert_eq!(unsafe { view.bytes(at) }, Some(&b"ello"[..]));
        for bad in [
            SliceRef { offset: u64::MAX, ..at },
            SliceRef { offset: (2 << 20) - 3, ..at },
            SliceRef { len: u32::MAX, ..at },
            SliceRef { len: 5, ..at },
        ] {
            assert!(!view.copy_to(bad, &mut out), "{bad:?}");
        }
        // SAFETY: a mapping that must be refused, and a write that must be.
        unsafe {
            let both = libc::PROT_READ | libc::PROT_WRITE;
            let raw = fd.as_raw_fd();
            let at = libc::mmap(std::ptr::null_mut(), 4096, both, libc::MAP_SHARED, raw, 0);
            assert_eq!(at, libc::MAP_FAILED, "a reader can map it for writing");
            assert!(libc::pwrite(raw, b"x".as_ptr().cast(), 1, 0) < 0, "a reader can write it");
            assert!(libc::ftruncate(raw, 0) < 0, "a reader can cut it short");
        }
    }

    #[test]
    fn memory_that_can_be_cut_short_is_not_mapped() {
        let file = tempfile();
        assert!(matches!(SharedView::map(&file), Err(AccessError::NotSealed)));
    }

    fn tempfile() -> OwnedFd {
        use std::os::fd::FromRawFd;
        // SAFETY: a descriptor that was just made.
        unsafe {
            let fd = libc::memfd_create(c"unsealed".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0 && libc::ftruncate(fd, 4096) == 0);
            OwnedFd::from_raw_fd(fd)
        }
    }
}
