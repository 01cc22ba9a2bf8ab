//! Remembered checksums: what the processor has summed once it need not touch again.
//!
//! IO-Lite's checksum cache (OSDI '99, section 3.8) keeps the sum of a slice under its address and the
//! buffer's generation number. Here the buffers that are worth it ([`IoBuf::memoize`]) have a short list
//! of *cuts*: offsets at which slices began or ended, each with the sum of the bytes from the first cut
//! on. The sum of any slice between two cuts is the difference of theirs, so the segments of one
//! connection serve all others, retransmissions and other segment sizes too; where only one end of a
//! slice is known, no more than what lies between it and the nearest cut is summed.
//!
//! A memo cannot be stale: a buffer that is handed out anew, and one that is written in place
//! ([`IoBuf::make_mut`]), has none until somebody asks for one again.

use std::cell::Cell;

use crate::iobuf::IoBuf;

/// Cuts that are remembered of a block: those of segments of 1448 bytes and of another size.
const BLOCK_CUTS: usize = 30;
/// Cuts that are remembered of a frame.
const FRAME_CUTS: usize = 6;

/// What the memo of an arena has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoStats {
    /// Slices whose sum was known: none of their bytes was touched.
    pub hits: u64,
    /// Slices of which some bytes had to be summed.
    pub misses: u64,
    /// Bytes that were summed for those.
    pub summed_bytes: u64,
    /// Bytes of all slices that were asked for.
    pub asked_bytes: u64,
}

/// The memos of an arena's buffers.
pub(crate) struct Memo {
    frames: Box<[Cuts<FRAME_CUTS>]>,
    blocks: Box<[Cuts<BLOCK_CUTS>]>,
    stats: Cell<MemoStats>,
    on: Cell<bool>,
}

impl Memo {
    pub(crate) fn new(frames: usize, blocks: usize) -> Self {
        Self {
            frames: std::iter::repeat_with(Cuts::new).take(frames).collect(),
            blocks: std::iter::repeat_with(Cuts::new).take(blocks).collect(),
            stats: Cell::default(),
            on: Cell::new(true),
        }
    }

    pub(crate) fn set_on(&self, on: bool) {
        self.on.set(on);
    }

    pub(crate) fn stats(&self) -> MemoStats {
        self.stats.get()
    }

    /// Forgets what was known of a buffer.
    pub(crate) fn reset(&self, index: u32) {
        let index = index as usize;
        match self.frames.get(index) {
            Some(cuts) => cuts.used.set(0),
            None => {
                if let Some(cuts) = self.blocks.get(index - self.frames.len()) {
                    cuts.used.set(0);
                }
            }
        }
    }

    /// The sum of `bytes`, which lie at `offset` of the buffer.
    #[inline]
    pub(crate) fn sum(
        &self,
        index: u32,
        offset: u32,
        bytes: &[u8],
        sum_of: impl Fn(&[u8]) -> u16,
    ) -> u16 {
        let index = index as usize;
        let touched = Cell::new(0);
        let counted = |part: &[u8]| {
            touched.set(touched.get() + part.len() as u64);
            sum_of(part)
        };
        let sum = match self.frames.get(index) {
            Some(cuts) => cuts.sum(offset as usize, bytes, counted),
            None => match self.blocks.get(index - self.frames.len()) {
                Some(cuts) => cuts.sum(offset as usize, bytes, counted),
                None => counted(bytes),
            },
        };
        let mut stats = self.stats.get();
        stats.hits += u64::from(touched.get() == 0);
        stats.misses += u64::from(touched.get() > 0);
        stats.summed_bytes += touched.get();
        stats.asked_bytes += bytes.len() as u64;
        self.stats.set(stats);
        sum
    }
}

/// Adds in one's complement.
fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// Subtracts in one's complement.
fn subtract(a: u16, b: u16) -> u16 {
    add(a, !b)
}

/// A sum as seen from an offset: bytes at odd offsets count for the other half of a word (RFC 1071
/// section 2(B)).
fn turned(sum: u16, offset: usize) -> u16 {
    if offset % 2 == 1 { sum.swap_bytes() } else { sum }
}

/// The cuts of one buffer, by offset. Sums are of the bytes from the first cut that was ever made, as
/// they count at their offsets in the buffer; only differences of them mean anything.
struct Cuts<const N: usize> {
    offsets: [Cell<u16>; N],
    sums: [Cell<u16>; N],
    used: Cell<u8>,
}

impl<const N: usize> Cuts<N> {
    fn new() -> Self {
        Self {
            offsets: [const { Cell::new(0) }; N],
            sums: [const { Cell::new(0) }; N],
            used: Cell::new(0),
        }
    }

    /// Where the first cut at `offset` or behind stands, and whether it is at `offset`.
    fn find(&self, offset: usize) -> (usize, bool) {
        let used = usize::from(self.used.get());
        let offsets = self.offsets.get(..used).unwrap_or_default();
        let at = offsets.partition_point(|cut| usize::from(cut.get()) < offset);
        (at, offsets.get(at).is_some_and(|cut| usize::from(cut.get()) == offset))
    }

    fn cut(&self, at: usize) -> Option<(usize, u16)> {
        let known = at < usize::from(self.used.get());
        known.then(|| (usize::from(self.offsets[at].get()), self.sums[at].get()))
    }

    /// Remembers a cut, if there is a place left.
    fn insert(&self, offset: usize, sum: u16) {
        let used = usize::from(self.used.get());
        let (at, known) = self.find(offset);
        let Ok(short) = u16::try_from(offset) else { return };
        if known || used == N {
            return;
        }
        for place in (at..used).rev() {
            self.offsets[place + 1].set(self.offsets[place].get());
            self.sums[place + 1].set(self.sums[place].get());
        }
        self.offsets[at].set(short);
        self.sums[at].set(sum);
        self.used.set(used as u8 + 1);
    }

    fn sum(&self, from: usize, bytes: &[u8], sum_of: impl Fn(&[u8]) -> u16) -> u16 {
        let to = from + bytes.len();
        // The part of `bytes` between two offsets in the buffer, as it counts there.
        let part = |start: usize, end: usize| {
            let part = bytes.get(start - from..end - from).unwrap_or_default();
            turned(sum_of(part), start)
        };
        let (first, from_known) = self.find(from);
        let (behind, to_known) = self.find(to);
        // Cuts inside, the ends included: only bytes of the slice itself are ever read.
        let inside = first..behind + usize::from(to_known);
        let (Some(low), Some(high)) =
            (self.cut(inside.start), inside.end.checked_sub(1).and_then(|at| self.cut(at)))
        else {
            return self.begin(from, to, part);
        };
        if inside.is_empty() {
            return self.begin(from, to, part);
        }
        let start = if from_known { low.1 } else { subtract(low.1, part(from, low.0)) };
        let end = if to_known { high.1 } else { add(high.1, part(high.0, to)) };
        self.insert(from, start);
        self.insert(to, end);
        turned(subtract(end, start), from)
    }

    /// A slice without any cut in it. Its ends become the cuts if there are none yet, or if they tell of
    /// more than those that there are, with which they cannot be joined.
    fn begin(&self, from: usize, to: usize, part: impl Fn(usize, usize) -> u16) -> u16 {
        let sum = part(from, to);
        let used = usize::from(self.used.get());
        let told = match (self.cut(0), used.checked_sub(1).and_then(|last| self.cut(last))) {
            (Some(low), Some(high)) => high.0 - low.0,
            _ => 0,
        };
        if told < to - from {
            self.used.set(0);
            self.insert(from, 0);
            self.insert(to, sum);
        }
        turned(sum, from)
    }
}

impl IoBuf {
    /// Has the sums of this buffer's slices remembered from now on, until it is handed out anew or
    /// written. Worth it for what is sent more than once: cached content. Buffers of a driver and of the
    /// heap have no place for it; nothing changes then.
    pub fn memoize(&self) {
        // SAFETY: the header lives as long as a handle does.
        let header = unsafe { self.header().as_ref() };
        if let Some(arena) = crate::arena::of(header)
            && arena.memo.on.get()
            && !header.is_memoized()
        {
            arena.memo.reset(header.index);
            header.set_memoized();
        }
    }

    /// Whether sums of this buffer are remembered.
    #[inline]
    pub fn is_memoized(&self) -> bool {
        // SAFETY: the header lives as long as a handle does.
        unsafe { self.header().as_ref().is_memoized() }
    }

    /// The one's-complement sum of the slice as `sum_of` computes it: over 16-bit words in network order
    /// from the slice's first byte on, an odd last byte padded with zero, folded to 16 bits and not
    /// complemented. If the buffer [is memoized](Self::is_memoized), `sum_of` sees only bytes whose sum
    /// is not known.
    #[inline]
    pub fn sum_with(&self, sum_of: impl Fn(&[u8]) -> u16) -> u16 {
        // SAFETY: the header lives as long as a handle does.
        let header = unsafe { self.header().as_ref() };
        match crate::arena::of(header) {
            Some(arena) if header.is_memoized() => {
                arena.memo.sum(header.index, self.offset(), self, sum_of)
            }
            _ => sum_of(self),
        }
    }
}
