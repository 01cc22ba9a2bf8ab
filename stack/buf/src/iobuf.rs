//! Handles on buffers.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

use crate::arena::{Arena, SizeClass};
use crate::header::{BufHeader, release};

/// A whole buffer with one owner, who may write it.
///
/// A disk queue takes it for the time of a read and gives it back with the completion: in between
/// nobody else can touch it.
pub struct IoBufMut {
    header: NonNull<BufHeader>,
    /// Neither `Send` nor `Sync`: the count is not atomic.
    _not_send: PhantomData<*mut ()>,
}

impl IoBufMut {
    /// # Safety
    /// `header` carries exactly one reference, which becomes this handle's.
    #[inline]
    pub(crate) unsafe fn from_header(header: NonNull<BufHeader>) -> Self {
        Self { header, _not_send: PhantomData }
    }

    /// Makes the bytes in `range` immutable and shareable.
    ///
    /// # Panics
    /// If `range` is not inside the buffer.
    #[inline]
    pub fn freeze(self, range: Range<usize>) -> IoBuf {
        assert!(range.start <= range.end && range.end <= self.len());
        let buf = IoBuf {
            header: self.header,
            offset: range.start as u32,
            len: (range.end - range.start) as u32,
            _not_send: PhantomData,
        };
        std::mem::forget(self);
        buf
    }

    /// The record beside the buffer, for drivers.
    pub fn header(&self) -> NonNull<BufHeader> {
        self.header
    }
}

impl Deref for IoBufMut {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: one owner, and the buffer lives as long as a handle on it does.
        unsafe {
            let header = self.header.as_ref();
            std::slice::from_raw_parts(header.data.as_ptr(), header.capacity as usize)
        }
    }
}

impl DerefMut for IoBufMut {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` is the only handle, so the slice is unique.
        unsafe {
            let header = self.header.as_ref();
            std::slice::from_raw_parts_mut(header.data.as_ptr(), header.capacity as usize)
        }
    }
}

impl Drop for IoBufMut {
    fn drop(&mut self) {
        // SAFETY: this handle's own reference.
        unsafe { release(self.header) }
    }
}

impl std::fmt::Debug for IoBufMut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoBufMut({} bytes)", self.len())
    }
}

/// A counted handle on a slice of a buffer; immutable while shared. 16 bytes.
pub struct IoBuf {
    header: NonNull<BufHeader>,
    offset: u32,
    len: u32,
    /// Neither `Send` nor `Sync`: the count is not atomic.
    _not_send: PhantomData<*mut ()>,
}

impl IoBuf {
    /// Takes over one reference on a driver's buffer.
    ///
    /// # Safety
    /// `header` was written by [`BufHeader::init_foreign`], belongs to this thread, has no handle,
    /// and `offset + len` lies inside its buffer.
    #[inline]
    pub unsafe fn from_foreign(header: NonNull<BufHeader>, offset: u32, len: u32) -> Self {
        // SAFETY: live by the caller's promise.
        let head = unsafe { header.as_ref() };
        debug_assert_eq!(head.refs.get(), 0);
        debug_assert!(offset + len <= head.capacity);
        head.refs.set(1);
        head.next_generation();
        Self { header, offset, len, _not_send: PhantomData }
    }

    /// Another handle on `range` of this slice.
    ///
    /// # Panics
    /// If `range` is not inside the slice.
    #[inline]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len as usize);
        let mut other = self.clone();
        other.offset += range.start as u32;
        other.len = (range.end - range.start) as u32;
        other
    }

    /// Drops the first `count` bytes from the slice.
    ///
    /// # Panics
    /// If the slice is shorter.
    #[inline]
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len as usize);
        self.offset += count as u32;
        self.len -= count as u32;
    }

    /// Shortens the slice to `len` bytes; longer ones have no effect.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len as u32);
    }

    /// Splits off the first `at` bytes.
    ///
    /// # Panics
    /// If the slice is shorter.
    #[inline]
    pub fn split_to(&mut self, at: usize) -> Self {
        let front = self.slice(0..at);
        self.advance(at);
        front
    }

    /// Whether this is the only handle on the buffer.
    #[inline]
    pub fn is_unique(&self) -> bool {
        // SAFETY: the header lives as long as a handle does.
        unsafe { self.header.as_ref().refs.get() == 1 }
    }

    /// If `next` starts where this slice ends, in the same buffer, takes it in and returns `true`.
    #[inline]
    pub fn try_join(&mut self, next: &IoBuf) -> bool {
        let adjacent = self.header == next.header && self.offset + self.len == next.offset;
        if adjacent {
            self.len += next.len;
        }
        adjacent
    }

    /// The bytes for writing. If another handle holds the buffer, the slice is first copied into a
    /// fresh one from `arena`, so the other holder goes on seeing the old bytes.
    ///
    /// Returns the bytes and how many of them had to be copied; `None` if a copy was needed and the
    /// arena had no buffer for it (a slice of a heap buffer may be larger than any).
    pub fn make_mut(&mut self, arena: &Arena) -> Option<(&mut [u8], usize)> {
        let mut copied = 0;
        if !self.is_unique() {
            let class =
                if self.len() <= crate::FRAME_BYTES { SizeClass::Frame } else { SizeClass::Block };
            let mut fresh = arena.alloc(class)?;
            let len = self.len();
            if len > fresh.len() {
                return None;
            }
            fresh[..len].copy_from_slice(self);
            *self = fresh.freeze(0..len);
            copied = len;
        }
        // SAFETY: the only handle, borrowed mutably.
        let bytes = unsafe {
            let header = self.header.as_ref();
            header.next_generation();
            let start = header.data.as_ptr().add(self.offset as usize);
            std::slice::from_raw_parts_mut(start, self.len as usize)
        };
        Some((bytes, copied))
    }

    /// How often the buffer was handed out or written in place up to now: together with
    /// [`Self::as_ptr`](slice::as_ptr) it names a content (IO-Lite's generation number).
    pub fn generation(&self) -> u32 {
        // SAFETY: the header lives as long as a handle does.
        unsafe { self.header.as_ref().generation() }
    }

    /// Writes at `at` of the slice though others may hold it.
    ///
    /// # Safety
    /// No reference to these bytes is used afterwards, from whatever handle it came.
    pub(crate) unsafe fn overwrite(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len as usize);
        // SAFETY: inside the slice by the check above; nobody relies on these bytes by the caller's
        // promise, and what is remembered of them is forgotten.
        unsafe {
            let header = self.header.as_ref();
            header.next_generation();
            let to = header.data.as_ptr().add(self.offset as usize + at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// Where in the buffer the slice begins, in bytes.
    pub(crate) fn offset(&self) -> u32 {
        self.offset
    }

    /// Bytes of memory that this handle keeps from being reused: the whole buffer.
    pub fn pinned_bytes(&self) -> usize {
        // SAFETY: the header lives as long as a handle does.
        unsafe { self.header.as_ref().capacity as usize }
    }

    /// The record beside the buffer, for drivers.
    #[inline]
    pub fn header(&self) -> NonNull<BufHeader> {
        self.header
    }

    /// A handle on `len` bytes at `offset` of a buffer that another handle keeps alive.
    ///
    /// # Safety
    /// `header` is live on this thread, and no `&mut` to those bytes exists or will while shared.
    pub(crate) unsafe fn share(header: NonNull<BufHeader>, offset: u32, len: u32) -> Self {
        // SAFETY: live by the caller's promise.
        unsafe { crate::header::retain(header) };
        Self { header, offset, len, _not_send: PhantomData }
    }
}

/// A buffer on the heap, for tests and for callers that have no arena: its bytes are copied by no
/// one, but no device can reach them.
impl From<Vec<u8>> for IoBuf {
    fn from(bytes: Vec<u8>) -> Self {
        struct OnHeap {
            header: BufHeader,
            bytes: *mut [u8],
        }
        unsafe fn free(header: NonNull<BufHeader>) {
            // SAFETY: the header is a field of the `OnHeap` that was leaked below; both boxes come
            // back to where they were made, once, since no handle is left.
            unsafe {
                let at = header.as_ptr().byte_sub(std::mem::offset_of!(OnHeap, header));
                let on_heap = Box::from_raw(at.cast::<OnHeap>());
                drop(Box::from_raw(on_heap.bytes));
            }
        }
        let len = u32::try_from(bytes.len()).expect("a heap buffer is below 4 GiB");
        let bytes = Box::into_raw(bytes.into_boxed_slice());
        // SAFETY: a pointer out of a box is never null.
        let data = unsafe { NonNull::new_unchecked(bytes.cast::<u8>()) };
        let header = BufHeader::new(data, len, free, std::ptr::null(), 0);
        let on_heap = Box::into_raw(Box::new(OnHeap { header, bytes }));
        // SAFETY: projecting to a field of a live allocation, so never null; the header was just
        // written and has no handle yet.
        unsafe {
            let header = NonNull::new_unchecked(&raw mut (*on_heap).header);
            IoBuf::from_foreign(header, 0, len)
        }
    }
}

impl From<&[u8]> for IoBuf {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}

impl Clone for IoBuf {
    #[inline]
    fn clone(&self) -> Self {
        // SAFETY: this handle keeps the header alive.
        unsafe { crate::header::retain(self.header) };
        Self { header: self.header, offset: self.offset, len: self.len, _not_send: PhantomData }
    }
}

impl Drop for IoBuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: this handle's own reference.
        unsafe { release(self.header) }
    }
}

impl Deref for IoBuf {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the slice lies inside the buffer (checked where it was made) and nobody writes it
        // while it is shared.
        unsafe {
            let start = self.header.as_ref().data.as_ptr().add(self.offset as usize);
            std::slice::from_raw_parts(start, self.len as usize)
        }
    }
}

impl AsRef<[u8]> for IoBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoBuf({} bytes)", self.len)
    }
}

impl PartialEq for IoBuf {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for IoBuf {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ArenaConfig, HugePages};
    use proptest::prelude::*;

    fn arena() -> Arena {
        Arena::new(&ArenaConfig { frames: 8, blocks: 2, huge_pages: HugePages::Never }).unwrap()
    }

    #[test]
    fn make_mut_copies_only_what_is_shared() {
        let arena = arena();
        let mut buf = arena.alloc(SizeClass::Frame).unwrap();
        buf[..5].copy_from_slice(b"hello");
        let mut mine = buf.freeze(0..5);
        let (bytes, copied) = mine.make_mut(&arena).unwrap();
        bytes[0] = b'j';
        assert_eq!(copied, 0);

        let sent = mine.clone();
        let (bytes, copied) = mine.make_mut(&arena).unwrap();
        bytes[0] = b'c';
        assert_eq!(copied, 5);
        assert_eq!((&*mine, &*sent), (&b"cello"[..], &b"jello"[..]));
    }

    #[test]
    fn heap_buffers_work_like_any_other() {
        let buf = IoBuf::from(vec![1, 2, 3, 4]);
        let tail = buf.slice(2..4);
        drop(buf);
        assert_eq!(&*tail, &[3, 4]);
    }

    #[test]
    fn neighbours_join() {
        let buf = IoBuf::from(vec![1, 2, 3, 4]);
        let mut front = buf.slice(0..2);
        assert!(!front.try_join(&buf.slice(3..4)));
        assert!(front.try_join(&buf.slice(2..4)));
        assert_eq!(front, buf);
    }

    proptest! {
        /// Any sequence of slicing gives the bytes that slicing a vector gives, and leaves no
        /// buffer behind.
        #[test]
        fn slicing_agrees_with_a_vector(len in 1usize..2048, cuts in prop::collection::vec((0usize..2048, any::<bool>()), 0..20)) {
            let arena = arena();
            {
                let mut buf = arena.alloc(SizeClass::Frame).unwrap();
                for (i, byte) in buf.iter_mut().enumerate() { *byte = (i * 7) as u8; }
                let mut model = buf[..len].to_vec();
                let mut buf = buf.freeze(0..len);
                for (at, keep_front) in cuts {
                    let at = at % (model.len() + 1);
                    let front = buf.split_to(at);
                    let tail = model.split_off(at);
                    if keep_front { buf = front } else { model = tail }
                    prop_assert_eq!(&*buf, &model[..]);
                }
            }
            prop_assert_eq!(arena.free(SizeClass::Frame), 8);
        }
    }
}
