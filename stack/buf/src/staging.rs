//! Packing small writes into shared buffers.

use std::ptr::NonNull;

use crate::arena::{Arena, SizeClass};
use crate::copy::copy_short;
use crate::header::BufHeader;
use crate::iobuf::{IoBuf, IoBufMut};

/// A cursor that copies bytes one after the other into arena buffers and hands out slices of them.
///
/// Consecutive slices are adjacent, so [`IoBuf::try_join`] merges what one connection writes bit by
/// bit. A buffer goes home when the cursor has left it and its last slice is gone.
pub struct Staging {
    /// Before the arena: when the cursor is the arena's last user, its buffer must be home by then, or
    /// the arena's memory stays for ever.
    current: Option<IoBufMut>,
    arena: Arena,
    class: SizeClass,
    used: usize,
}

impl Staging {
    /// A cursor that takes buffers of `class` from `arena`, the first one when it is needed.
    pub fn new(arena: Arena, class: SizeClass) -> Self {
        Self { arena, class, current: None, used: 0 }
    }

    /// Copies as much of `bytes` as the current buffer holds (a fresh one if it is full) and
    /// returns the slice; `None` if the arena is exhausted or `bytes` is empty.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) -> Option<IoBuf> {
        if bytes.is_empty() {
            return None;
        }
        let room = match &self.current {
            Some(current) => self.capacity(current) - self.used,
            None => 0,
        };
        if room == 0 {
            self.current = None;
            self.current = Some(self.arena.alloc(self.class)?);
            self.used = 0;
        }
        let current = self.current.as_ref()?;
        let capacity = self.capacity(current);
        let count = bytes.len().min(capacity - self.used);
        let header = current.header();
        // SAFETY: bytes from `used` on have never been handed out since this buffer was taken, so
        // no slice covers them and this one is unique; they lie inside the buffer, whose every byte
        // the mapping has initialised; `current` keeps the header alive.
        let slice = unsafe {
            let to = header.as_ref().data().as_ptr().add(self.used);
            copy_short(std::slice::from_raw_parts_mut(to, count), &bytes[..count]);
            IoBuf::share(header, self.used as u32, count as u32)
        };
        self.used += count;
        Some(slice)
    }

    /// Copies all of `bytes` into what is left of the current buffer; `None` if they do not fit, or there
    /// are none. The usual case of [`Self::put`] alone, to be inlined.
    #[inline]
    pub fn put_short(&mut self, bytes: &[u8]) -> Option<IoBuf> {
        let current = self.current.as_ref()?;
        let header = current.header();
        if bytes.is_empty() || bytes.len() > self.capacity(current) - self.used {
            return None;
        }
        let at = self.used;
        self.used += bytes.len();
        // SAFETY: as in `put`: bytes from `at` on have never been handed out, they lie inside the
        // buffer, and `current` keeps the header alive.
        unsafe {
            let to = header.as_ref().data().as_ptr().add(at);
            copy_short(std::slice::from_raw_parts_mut(to, bytes.len()), bytes);
            Some(IoBuf::share(header, at as u32, bytes.len() as u32))
        }
    }

    /// Copies all of `bytes` into one slice; `None` if the arena is exhausted, or they are longer
    /// than a buffer, or there are none.
    pub fn put_whole(&mut self, bytes: &[u8]) -> Option<IoBuf> {
        if self
            .current
            .as_ref()
            .is_some_and(|current| self.capacity(current) - self.used < bytes.len())
        {
            // What is left of the buffer is too short: it goes home when its slices do.
            self.current = None;
        }
        self.put(bytes).filter(|slice| slice.len() == bytes.len())
    }

    /// Reads the size from the header: a `&[u8]` of the whole buffer must not be made while slices
    /// of it are out and later bytes are still to be written.
    fn capacity(&self, current: &IoBufMut) -> usize {
        let header: NonNull<BufHeader> = current.header();
        // SAFETY: `current` keeps the header alive.
        unsafe { header.as_ref().capacity() as usize }
    }
}

impl std::fmt::Debug for Staging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staging").field("class", &self.class).field("used", &self.used).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ArenaConfig, FRAME_BYTES, HugePages};

    #[test]
    fn the_last_user_of_an_arena_takes_its_memory_along() {
        let config = ArenaConfig { frames: 2, blocks: 0, huge_pages: HugePages::Never };
        let arena = Arena::new(&config).unwrap();
        let memory = std::rc::Rc::downgrade(&arena.0);
        let mut staging = Staging::new(arena, SizeClass::Frame);
        drop(staging.put(b"ab").unwrap());
        drop(staging);
        assert!(memory.upgrade().is_none(), "leaked");
    }

    #[test]
    fn small_writes_share_a_buffer_and_join() {
        let arena = Arena::new(&ArenaConfig { frames: 2, blocks: 0, huge_pages: HugePages::Never })
            .unwrap();
        let mut staging = Staging::new(arena.clone(), SizeClass::Frame);
        let mut first = staging.put(b"ab").unwrap();
        let second = staging.put(b"cd").unwrap();
        assert_eq!(arena.free(SizeClass::Frame), 1);
        assert!(first.try_join(&second));
        assert_eq!(&*first, b"abcd");
    }

    #[test]
    fn a_full_buffer_goes_home_when_its_slices_do() {
        let arena = Arena::new(&ArenaConfig { frames: 2, blocks: 0, huge_pages: HugePages::Never })
            .unwrap();
        let mut staging = Staging::new(arena.clone(), SizeClass::Frame);
        let big = vec![9u8; FRAME_BYTES + 100];
        let first = staging.put(&big).unwrap();
        assert_eq!(first.len(), FRAME_BYTES);
        let second = staging.put(&big[first.len()..]).unwrap();
        assert_eq!(arena.free(SizeClass::Frame), 0);
        let mut filler = Vec::new();
        while filler.len() < FRAME_BYTES - 100 {
            filler.extend_from_slice(&staging.put(&[1]).unwrap());
        }
        assert!(staging.put(b"x").is_none(), "both buffers are held");
        drop(first);
        assert!(staging.put(b"x").is_some());
        assert_eq!(&*second, &big[FRAME_BYTES..]);
    }
}
