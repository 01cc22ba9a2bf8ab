//! Free buffers are forbidden ground where AddressSanitizer watches.
//!
//! The sanitizer knows the heap's allocations, not an arena's. Built with `--cfg arena_asan` (see
//! `tools/sanitize`) the arena tells it which buffers are free, so that a read or write through a handle
//! that is no more is reported. In every other build these functions are empty.

use std::ptr::NonNull;

#[cfg(arena_asan)]
unsafe extern "C" {
    fn __asan_poison_memory_region(at: *const u8, bytes: usize);
    fn __asan_unpoison_memory_region(at: *const u8, bytes: usize);
}

/// Nobody may touch these bytes from now on.
#[inline(always)]
pub(crate) fn forbid(_at: NonNull<u8>, _bytes: usize) {
    // SAFETY: marks bytes of the arena's own mapping; their contents stay.
    #[cfg(arena_asan)]
    unsafe {
        __asan_poison_memory_region(_at.as_ptr(), _bytes)
    };
}

/// These bytes belong to somebody now.
#[inline(always)]
pub(crate) fn allow(_at: NonNull<u8>, _bytes: usize) {
    // SAFETY: as above.
    #[cfg(arena_asan)]
    unsafe {
        __asan_unpoison_memory_region(_at.as_ptr(), _bytes)
    };
}
