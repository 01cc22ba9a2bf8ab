//! Memory that nobody may touch, to prove that nobody does.

use std::io;

use crate::arena::PageKind;
use crate::iobuf::IoBuf;

const PAGE_BYTES: usize = 4096;

/// As long as it exists, a read or write of the pages that lie wholly inside a slice ends the process
/// with a segmentation fault. For tests of what must not be touched.
#[derive(Debug)]
pub struct Untouchable {
    _slice: IoBuf,
    start: usize,
    bytes: usize,
}

impl Untouchable {
    /// Forbids access to a slice of an arena on ordinary pages.
    ///
    /// # Errors
    /// `Unsupported` if the slice has no whole page, or is not of an arena on ordinary pages: a huge page
    /// holds other buffers too. Else what the system says.
    pub fn new(slice: &IoBuf) -> io::Result<Self> {
        // SAFETY: the header lives as long as a handle does.
        let arena = crate::arena::of(unsafe { slice.header().as_ref() });
        let from = slice.as_ptr() as usize;
        let start = from.next_multiple_of(PAGE_BYTES);
        let end = (from + slice.len()) & !(PAGE_BYTES - 1);
        if start >= end || arena.is_none_or(|arena| arena.pages != PageKind::Base) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let guard = Self { _slice: slice.clone(), start, bytes: end - start };
        guard.protect(libc::PROT_NONE)?;
        Ok(guard)
    }

    /// Bytes that are forbidden.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none; there always are.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn protect(&self, access: libc::c_int) -> io::Result<()> {
        let at = self.start as *mut libc::c_void;
        // SAFETY: pages of the arena's mapping, which the slice keeps. Their contents stay; whoever
        // touches them meanwhile is ended by the processor and does nothing else.
        match unsafe { libc::mprotect(at, self.bytes, access) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Untouchable {
    fn drop(&mut self) {
        // Were it refused, the next access would end the process, which is what a guard is for.
        let _ = self.protect(libc::PROT_READ | libc::PROT_WRITE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arena, ArenaConfig, HugePages, SizeClass};

    #[test]
    fn whole_pages_are_forbidden_and_given_back() {
        let arena = Arena::new(&ArenaConfig { frames: 2, blocks: 2, huge_pages: HugePages::Never })
            .unwrap();
        let block = arena.alloc(SizeClass::Block).unwrap().freeze(100..16_384);
        let guard = Untouchable::new(&block).unwrap();
        assert_eq!(guard.len(), 3 * PAGE_BYTES);
        // SAFETY: the system call reads the bytes, and is refused.
        let written = unsafe {
            let pipe = libc::memfd_create(c"sink".as_ptr(), libc::MFD_CLOEXEC);
            let at = block.as_ptr().add(5_000);
            let written = libc::write(pipe, at.cast(), 10);
            libc::close(pipe);
            written
        };
        assert_eq!(written, -1);
        drop(guard);
        assert_eq!(block[5_000], 0);
        assert!(Untouchable::new(&block.slice(0..4_000)).is_err(), "no whole page");
        assert!(Untouchable::new(&IoBuf::from(vec![0; 40_000])).is_err(), "not an arena's");
    }
}
