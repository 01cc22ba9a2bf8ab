//! The record beside each buffer: its count, its extent, and who takes it back.

use std::cell::{Cell, UnsafeCell};
use std::ptr::NonNull;

/// Words of [`BufHeader::driver_area`].
pub const DRIVER_WORDS: usize = 3;

/// Returns a buffer whose last handle is gone to its owner.
///
/// Called with `true` if this is the owner's own thread.
pub(crate) type FreeFn = unsafe fn(NonNull<BufHeader>);

/// One cache line that describes one buffer.
///
/// Headers of arena buffers lie in an array beside the arena; those of foreign buffers lie wherever
/// the driver put them (for DPDK: in the private area of the mbuf).
#[repr(C, align(64))]
pub struct BufHeader {
    /// Handles that exist on this buffer. Touched by the owning thread only.
    pub(crate) refs: Cell<u32>,
    /// Bytes of the buffer.
    pub(crate) capacity: u32,
    /// First byte of the buffer.
    pub(crate) data: NonNull<u8>,
    pub(crate) free: FreeFn,
    /// What `free` needs to find the owner (for arena buffers: the arena).
    pub(crate) owner: *const (),
    /// Bumped each time the buffer is handed out anew or written in place (IO-Lite's generation
    /// number); its highest bit says that sums of the buffer are remembered, see `memo`.
    generation: Cell<u32>,
    /// Index in the arena, or anything the foreign owner wants.
    pub(crate) index: u32,
    driver: UnsafeCell<[u64; DRIVER_WORDS]>,
}

const _: () =
    assert!(std::mem::size_of::<BufHeader>() == 64 || cfg!(not(target_pointer_width = "64")));

impl BufHeader {
    pub(crate) fn new(
        data: NonNull<u8>,
        capacity: u32,
        free: FreeFn,
        owner: *const (),
        index: u32,
    ) -> Self {
        Self {
            refs: Cell::new(0),
            capacity,
            data,
            free,
            owner,
            generation: Cell::new(0),
            index,
            driver: UnsafeCell::new([0; DRIVER_WORDS]),
        }
    }

    /// Writes a header for a buffer that a driver owns.
    ///
    /// `free` is called, on the thread that dropped the last handle, when no handle is left.
    ///
    /// # Safety
    /// * `at` is valid for writes, aligned to 64 bytes, and stays valid as long as handles exist.
    /// * `data .. data + capacity` stays readable as long as handles exist and is written by nobody
    ///   else meanwhile.
    /// * `free` may be called with `at`.
    pub unsafe fn init_foreign(
        at: NonNull<BufHeader>,
        data: NonNull<u8>,
        capacity: u32,
        free: unsafe fn(NonNull<BufHeader>),
    ) {
        // SAFETY: the caller promises that `at` is valid for writes and aligned.
        unsafe { at.write(Self::new(data, capacity, free, std::ptr::null(), 0)) }
    }

    /// How often the buffer was handed out or written in place.
    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        self.generation.get() & !MEMOIZED
    }

    /// The content is about to be another: whatever was known of it is forgotten.
    #[inline]
    pub(crate) fn next_generation(&self) {
        self.generation.set(self.generation.get().wrapping_add(1) & !MEMOIZED);
    }

    #[inline]
    pub(crate) fn is_memoized(&self) -> bool {
        self.generation.get() & MEMOIZED != 0
    }

    pub(crate) fn set_memoized(&self) {
        self.generation.set(self.generation.get() | MEMOIZED);
    }

    /// Three words for the driver that transmits this buffer (DPDK keeps its
    /// `rte_mbuf_ext_shared_info` here). Zero until a driver writes them; kept over reuse.
    pub fn driver_area(&self) -> *mut [u64; DRIVER_WORDS] {
        self.driver.get()
    }

    /// First byte of the buffer.
    pub fn data(&self) -> NonNull<u8> {
        self.data
    }

    /// Bytes of the buffer.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }
}

/// The bit of `generation` that says that sums are remembered.
const MEMOIZED: u32 = 1 << 31;

/// Far more than handles fit into memory; only forgetting handles without end gets there, and going
/// on would let the count wrap.
const REFS_MAX: u32 = 1 << 30;

#[cold]
fn too_many_references() -> ! {
    std::process::abort()
}

/// Takes one more reference on `header`'s buffer, to be given back by [`release_any_thread`].
///
/// # Safety
/// `header` is live (the caller holds a handle on it) and this is the thread that owns the buffer.
#[inline]
pub unsafe fn retain(header: NonNull<BufHeader>) {
    // SAFETY: live by the caller's promise.
    let header = unsafe { header.as_ref() };
    let refs = header.refs.get() + 1;
    if refs > REFS_MAX {
        too_many_references();
    }
    header.refs.set(refs);
}

/// Drops one reference on the owning thread.
///
/// # Safety
/// The caller owns one reference and does not use it afterwards; this is the owning thread.
#[inline]
pub(crate) unsafe fn release(header: NonNull<BufHeader>) {
    // SAFETY: live, since the caller still owns a reference.
    let refs = unsafe { &header.as_ref().refs };
    debug_assert!(refs.get() > 0, "a reference was given back twice");
    let left = refs.get() - 1;
    refs.set(left);
    if left == 0 {
        // SAFETY: no handle is left, so the owner may have the buffer back.
        unsafe { (header.as_ref().free)(header) }
    }
}

/// Drops a reference taken by [`retain`], from whatever thread the driver frees on.
///
/// On the owning thread this is an ordinary release. Elsewhere the header is queued for the owner,
/// who drops the reference the next time it runs out of buffers or calls
/// [`Arena::reclaim`](crate::Arena::reclaim).
///
/// # Safety
/// The caller owns one reference from [`retain`] and does not use it afterwards. The buffer is an
/// arena buffer, or this is its owning thread.
#[inline]
pub unsafe fn release_any_thread(header: NonNull<BufHeader>) {
    // SAFETY: `owner` and `free` never change after construction, so reading them from another
    // thread is no race; the reference keeps the header alive.
    let owner = unsafe { (*header.as_ptr()).owner };
    if owner.is_null() || crate::arena::is_owner_thread(owner) {
        // SAFETY: the caller's reference, on the owning thread.
        unsafe { release(header) }
    } else {
        // SAFETY: as above; `index` never changes either.
        crate::arena::queue_for_owner(owner, unsafe { (*header.as_ptr()).index });
    }
}
