//! Hints to the processor and the kernel about memory that is about to be used.

/// Asks for all cache lines of `value` before they are read, so that their misses overlap instead of
/// following each other. Changes nothing else.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..size_of::<T>().div_ceil(CACHE_LINE_BYTES) {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let at = std::ptr::from_ref(value).cast::<i8>().wrapping_add(line * CACHE_LINE_BYTES);
        // SAFETY: a prefetch reads nothing that the program could see and never faults, whatever the
        // address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Asks the kernel to back a large array with huge pages where it can (`transparent_hugepage`), so that
/// picking entries at random misses fewer translations. To be called before the array is filled; has no
/// effect on what it holds.
pub fn advise_huge_pages<T>(array: &Vec<T>) {
    let bytes = array.capacity() * size_of::<T>();
    if bytes < HUGE_PAGE_BYTES {
        return;
    }
    let start = (array.as_ptr() as usize).next_multiple_of(PAGE_BYTES);
    let end = (array.as_ptr() as usize + bytes) & !(PAGE_BYTES - 1);
    if start < end {
        // SAFETY: the pages lie inside the array's own allocation, and MADV_HUGEPAGE changes neither
        // their contents nor their protection. A refusal leaves them as they are.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

/// Drops `bytes` from all caches of the processor, so that whoever reads them next waits for memory: for
/// measurements of what is not in cache. Changes nothing else, and does nothing on processors other than
/// x86-64.
pub fn evict(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(CACHE_LINE_BYTES) {
        // SAFETY: the line is readable, and its contents stay: what is newer in a cache is written back.
        unsafe { core::arch::x86_64::_mm_clflush(line.as_ptr()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

const CACHE_LINE_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;
const HUGE_PAGE_BYTES: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_change_nothing() {
        let mut array: Vec<u64> = Vec::with_capacity(1 << 20);
        advise_huge_pages(&array);
        array.extend(0..1 << 20);
        prefetch(&array[77]);
        advise_huge_pages(&array);
        assert!(array.iter().copied().eq(0..1 << 20));
        advise_huge_pages(&Vec::<u8>::new());
        let bytes: Vec<u8> = (0..200).collect();
        evict(&bytes[3..]);
        assert!(bytes.iter().copied().eq(0..200));
    }
}
