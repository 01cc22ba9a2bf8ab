//! An application's buffer of any length, and what becomes of it when it is sent.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;

use crate::agg::{Agg, NoBuffer, fresh};
use crate::arena::Arena;
use crate::calibrate::Thresholds;
use crate::iobuf::IoBuf;
use crate::semantics::DataSemantics;

/// A buffer that an application reads and writes as one, made of slices of arena buffers.
///
/// A write never changes what an output holds: it goes in place where nobody else has the buffer, and
/// into a copy where somebody does. That copy is counted.
#[derive(Debug)]
pub struct Region {
    arena: Arena,
    agg: Agg,
}

impl Region {
    /// A region of `len` bytes, which hold whatever was there before.
    ///
    /// # Errors
    /// [`NoBuffer`]
    pub fn new(arena: &Arena, len: usize) -> Result<Self, NoBuffer> {
        let mut agg = Agg::new();
        while agg.len() < len {
            let (buf, capacity) = fresh(arena, len - agg.len())?;
            let count = capacity.min(len - agg.len());
            agg.append(buf.freeze(0..count));
        }
        Ok(Self { arena: arena.clone(), agg })
    }

    /// A region of zeroes, as a system gives memory that must not tell of others.
    ///
    /// # Errors
    /// [`NoBuffer`]
    pub fn zeroed(arena: &Arena, len: usize) -> Result<Self, NoBuffer> {
        let mut agg = Agg::new();
        while agg.len() < len {
            let (mut buf, capacity) = fresh(arena, len - agg.len())?;
            let count = capacity.min(len - agg.len());
            buf[..count].fill(0);
            agg.append(buf.freeze(0..count));
        }
        Ok(Self { arena: arena.clone(), agg })
    }

    /// What an input brought, as a region: moved in, nothing is copied.
    pub fn from_agg(arena: &Arena, agg: Agg) -> Self {
        Self { arena: arena.clone(), agg }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.agg.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.agg.is_empty()
    }

    /// Its bytes, in slices.
    pub fn slices(&self) -> impl Iterator<Item = &IoBuf> {
        self.agg.slices()
    }

    /// Copies bytes from `at` on into `out`; returns how many there were.
    pub fn copy_to(&self, at: usize, out: &mut [u8]) -> usize {
        self.agg.copy_to(at, out)
    }

    /// Writes `bytes` at `at`. Returns how many *other* bytes had to be copied because an output holds
    /// their buffer: none where the write replaces all that the region has of it.
    ///
    /// # Errors
    /// [`NoBuffer`] if a copy was needed and no buffer was free; what comes before it is written.
    ///
    /// # Panics
    /// If the bytes do not lie inside.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> Result<usize, NoBuffer> {
        assert!(at <= self.len() && bytes.len() <= self.len() - at);
        let (mut start, mut copied) = (0, 0);
        let end = at + bytes.len();
        for slice in self.agg.slices_mut() {
            let behind = start + slice.len();
            let (from, to) = (at.clamp(start, behind), end.clamp(start, behind));
            if from < to {
                let new = &bytes[from - at..to - at];
                if new.len() == slice.len() && !slice.is_unique() {
                    let (mut buf, capacity) = fresh(&self.arena, new.len())?;
                    if capacity < new.len() {
                        return Err(NoBuffer);
                    }
                    buf[..new.len()].copy_from_slice(new);
                    *slice = buf.freeze(0..new.len());
                } else {
                    let (room, kept) = slice.make_mut(&self.arena).ok_or(NoBuffer)?;
                    room[from - start..to - start].copy_from_slice(new);
                    copied += kept;
                }
            }
            start = behind;
            if start >= end {
                break;
            }
        }
        Ok(copied)
    }

    /// Puts what an input brought in place of bytes from `at` on, without copying it: the slices are
    /// swapped for those that were there (Genie's input swapping; slices need no alignment for it).
    ///
    /// # Panics
    /// If it does not lie inside.
    pub fn swap_in(&mut self, at: usize, input: Agg) {
        assert!(at <= self.len() && input.len() <= self.len() - at);
        let mut behind = std::mem::take(&mut self.agg);
        self.agg = behind.split_to(at);
        behind.advance(input.len());
        self.agg.concatenate(input);
        self.agg.concatenate(behind);
    }

    /// Sends bytes `range` by reference: what goes out, and what the application is left with. Nothing is
    /// copied, and nothing can fail. For [`DataSemantics::Copy`] use [`Self::copy_out`].
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn refer(
        self,
        range: Range<usize>,
        semantics: DataSemantics,
        cache: &RegionCache,
    ) -> (Agg, After) {
        let wires = matches!(semantics, DataSemantics::Share | DataSemantics::WeakMove);
        let wired = wires.then(|| Wired::new(&self.agg));
        match semantics {
            // All of it, and nothing stays: the slices themselves go.
            DataSemantics::Move if range == (0..self.len()) => (self.agg, After::Gone),
            DataSemantics::Move => (self.agg.slice(range), After::Gone),
            _ => {
                let out =
                    if range == (0..self.len()) { self.agg.clone() } else { self.agg.slice(range) };
                (out, self.keep(semantics, cache, wired.flatten()))
            }
        }
    }

    /// Sends bytes `range` as a copy in fresh buffers.
    ///
    /// # Errors
    /// [`NoBuffer`]
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn copy_out(&self, range: Range<usize>) -> Result<Agg, NoBuffer> {
        self.agg.slice(range).duplicate(&self.arena)
    }

    /// What the application is left with after an output whose bytes were copied.
    pub fn after_copy(self, semantics: DataSemantics, cache: &RegionCache) -> After {
        self.keep(semantics, cache, None)
    }

    fn keep(self, semantics: DataSemantics, cache: &RegionCache, wired: Option<Wired>) -> After {
        match semantics {
            DataSemantics::Copy | DataSemantics::EmulatedCopy => After::Mine(self),
            DataSemantics::Share | DataSemantics::EmulatedShare => {
                After::Lent(Lent { region: self, _wired: wired })
            }
            DataSemantics::Move => After::Gone,
            DataSemantics::EmulatedMove => {
                cache.hide(self);
                After::Gone
            }
            DataSemantics::WeakMove | DataSemantics::EmulatedWeakMove => {
                After::Readable(Readable { region: self, _wired: wired })
            }
        }
    }
}

/// What an application has after an output.
#[derive(Debug)]
pub enum After {
    /// Its region, to be written at once: what is sent cannot change.
    Mine(Region),
    /// A loan, which comes back when the output is over.
    Lent(Lent),
    /// Nothing.
    Gone,
    /// Something to look at.
    Readable(Readable),
}

impl After {
    /// The region, if it is the application's by now: at once, or after the loan.
    pub fn into_region(self) -> Result<Region, Self> {
        match self {
            Self::Mine(region) => Ok(region),
            Self::Lent(lent) => lent.reclaim().map_err(Self::Lent),
            other => Err(other),
        }
    }
}

/// A region that is being sent from where it lies.
#[derive(Debug)]
pub struct Lent {
    region: Region,
    _wired: Option<Wired>,
}

impl Lent {
    /// The region, if no output holds any of it.
    ///
    /// # Errors
    /// The loan, which is not over.
    pub fn reclaim(self) -> Result<Region, Self> {
        if self.is_back() { Ok(self.region) } else { Err(self) }
    }

    /// Whether no output holds any of it.
    pub fn is_back(&self) -> bool {
        self.region.slices().all(IoBuf::is_unique)
    }

    /// Writes into what is being sent: the weak integrity of *share*. The peer sees old bytes, new ones,
    /// or of some segments the one and of others the other; a segment that is changed between its
    /// checksum and the wire is lost and sent again.
    ///
    /// # Safety
    /// No reference to bytes of the region that was got from any handle is used afterwards: through a
    /// shared handle everybody else may rely on bytes that stay.
    ///
    /// # Panics
    /// If the bytes do not lie inside.
    pub unsafe fn write_through(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.region.len() && bytes.len() <= self.region.len() - at);
        let (mut start, end) = (0, at + bytes.len());
        for slice in self.region.agg.slices_mut() {
            let behind = start + slice.len();
            let (from, to) = (at.clamp(start, behind), end.clamp(start, behind));
            if from < to {
                // SAFETY: inside the slice, in memory that lives as long as its handle; nobody uses a
                // reference to it by the caller's promise. Other writers do not exist on this thread.
                unsafe { slice.overwrite(from - start, &bytes[from - at..to - at]) };
            }
            start = behind;
        }
    }
}

/// A region that was given away and can still be read: the weak integrity of *weak move*.
#[derive(Debug)]
pub struct Readable {
    region: Region,
    _wired: Option<Wired>,
}

impl Readable {
    /// Copies bytes from `at` on into `out`; returns how many there were. They are those that were sent
    /// until the region is used for something else.
    pub fn peek(&self, at: usize, out: &mut [u8]) -> usize {
        self.region.copy_to(at, out)
    }

    /// Stops looking. With the emulated semantics the region is reused once the output is over.
    pub fn release(self, semantics: DataSemantics, cache: &RegionCache) {
        if semantics == DataSemantics::EmulatedWeakMove {
            cache.hide(self.region);
        }
    }
}

/// Regions that were moved out, kept for reuse: region caching (thesis, section 3.5) without the page
/// tables. Those that an output still holds are passed over until it is over.
#[derive(Debug)]
pub struct RegionCache {
    arena: Arena,
    hidden: RefCell<VecDeque<Region>>,
    regions_max: usize,
}

impl RegionCache {
    /// A cache that keeps up to `regions_max` regions; more are freed.
    pub fn new(arena: &Arena, regions_max: usize) -> Self {
        let hidden = RefCell::new(VecDeque::with_capacity(regions_max));
        Self { arena: arena.clone(), hidden, regions_max }
    }

    /// A region of `len` bytes that the system allocates, as `semantics` wants: cleared for the basic
    /// ones, with whatever is in it if it comes from the cache.
    ///
    /// # Errors
    /// [`NoBuffer`]
    pub fn allocate(&self, len: usize, semantics: DataSemantics) -> Result<Region, NoBuffer> {
        if !semantics.is_emulated() {
            return Region::zeroed(&self.arena, len);
        }
        let mut hidden = self.hidden.borrow_mut();
        let fits = |region: &Region| region.len() == len && region.slices().all(IoBuf::is_unique);
        match hidden.iter().position(fits).and_then(|at| hidden.swap_remove_back(at)) {
            Some(region) => Ok(region),
            None => Region::new(&self.arena, len),
        }
    }

    /// Regions that are kept.
    pub fn len(&self) -> usize {
        self.hidden.borrow().len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Frees all that is kept: when buffers run short.
    pub fn clear(&self) {
        self.hidden.borrow_mut().clear();
    }

    fn hide(&self, region: Region) {
        let mut hidden = self.hidden.borrow_mut();
        if hidden.len() < self.regions_max {
            hidden.push_back(region);
        }
    }
}

/// What an application brings along when it sends regions: the thresholds of its machine, and its moved
/// regions.
#[derive(Debug)]
pub struct Exchange {
    arena: Arena,
    thresholds: Thresholds,
    cache: RegionCache,
}

impl Exchange {
    /// Measures the thresholds, which takes a few milliseconds, and keeps up to `regions_max` moved
    /// regions.
    pub fn new(arena: &Arena, regions_max: usize) -> Self {
        Self::with(arena, regions_max, Thresholds::measure(arena))
    }

    /// With thresholds that were measured before.
    pub fn with(arena: &Arena, regions_max: usize, thresholds: Thresholds) -> Self {
        Self { arena: arena.clone(), thresholds, cache: RegionCache::new(arena, regions_max) }
    }

    /// Where regions come from.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// What was measured.
    pub fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// The regions that were moved out.
    pub fn cache(&self) -> &RegionCache {
        &self.cache
    }

    /// Whether an output of `len` bytes is best copied.
    pub fn copies(&self, len: usize, semantics: DataSemantics) -> bool {
        semantics.copies(len, self.thresholds.copy_below_bytes)
    }
}

/// Pages that are kept in memory while it exists: what *share* and *weak move* do the plain way.
///
/// Locks do not nest, so a page that two loans have in common is let go with the first of them. The arena
/// has touched all its pages, and nothing but speed hangs on it.
#[derive(Debug)]
struct Wired(Vec<(usize, usize)>);

impl Wired {
    /// `None` if the system locks no (more) memory for this process.
    fn new(agg: &Agg) -> Option<Self> {
        let mut wired = Self(Vec::with_capacity(agg.slices().count()));
        for slice in agg.slices() {
            let at = (slice.as_ptr() as usize, slice.len());
            // SAFETY: bytes of a mapping that the slice keeps; their contents are not touched.
            if unsafe { libc::mlock(at.0 as *const libc::c_void, at.1) } != 0 {
                return None;
            }
            wired.0.push(at);
        }
        Some(wired)
    }
}

impl Drop for Wired {
    fn drop(&mut self) {
        for (at, len) in &self.0 {
            // SAFETY: unlocks pages that were locked; nothing is read or written. The arena may be gone
            // only if the process unmapped it, and then there is nothing to unlock.
            unsafe { libc::munlock(*at as *const libc::c_void, *len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ArenaConfig, HugePages, SizeClass};

    fn arena() -> Arena {
        Arena::new(&ArenaConfig { frames: 16, blocks: 16, huge_pages: HugePages::Never }).unwrap()
    }

    fn region(arena: &Arena, len: usize) -> (Region, Vec<u8>) {
        let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + at / 251) as u8).collect();
        let mut region = Region::new(arena, len).unwrap();
        region.write(0, &bytes).unwrap();
        (region, bytes)
    }

    #[test]
    fn strong_output_does_not_change() {
        let arena = arena();
        let cache = RegionCache::new(&arena, 4);
        for semantics in DataSemantics::ALL.into_iter().filter(|s| s.is_strong()) {
            let (region, bytes) = region(&arena, 40_000);
            let (out, after) = if semantics == DataSemantics::Copy {
                (region.copy_out(0..40_000).unwrap(), region.after_copy(semantics, &cache))
            } else {
                region.refer(0..40_000, semantics, &cache)
            };
            match after {
                After::Mine(mut region) => {
                    let copied = region.write(20_000, b"changed").unwrap();
                    let block = if semantics == DataSemantics::Copy { 0 } else { 16_384 };
                    assert_eq!(copied, block, "{semantics}: one block at the most");
                    assert_eq!(region.write(20_100, b"again").unwrap(), 0, "it is ours by now");
                }
                After::Gone => {
                    let mut next = cache.allocate(40_000, semantics).unwrap();
                    next.write(0, &[9; 40_000]).unwrap();
                }
                other => panic!("{semantics}: {other:?}"),
            }
            assert_eq!(out.to_vec(), bytes, "{semantics}");
        }
        cache.clear();
        assert!(arena.audit().is_clean());
    }

    #[test]
    fn weak_output_changes_only_through_the_loan() {
        let arena = arena();
        let cache = RegionCache::new(&arena, 4);
        for semantics in [DataSemantics::Share, DataSemantics::EmulatedShare] {
            let (region, mut bytes) = region(&arena, 20_000);
            let (out, after) = region.refer(0..20_000, semantics, &cache);
            let After::Lent(mut lent) = after else { panic!("{semantics}") };
            assert!(!lent.is_back());
            // SAFETY: no reference to the region's bytes is held.
            unsafe { lent.write_through(16_380, b"straddles") };
            bytes[16_380..16_389].copy_from_slice(b"straddles");
            assert_eq!(out.to_vec(), bytes);
            let lent = lent.reclaim().expect_err("the output is not over");
            drop(out);
            let region = lent.reclaim().unwrap();
            assert_eq!(region.slices().flat_map(|s| s.to_vec()).collect::<Vec<_>>(), bytes);
        }
    }

    #[test]
    fn moved_regions_are_reused_when_the_output_is_over() {
        let arena = arena();
        let cache = RegionCache::new(&arena, 2);
        let (first, bytes) = region(&arena, 16_384);
        let at = first.slices().next().unwrap().as_ptr();
        let (out, after) = first.refer(0..16_384, DataSemantics::EmulatedMove, &cache);
        assert!(matches!(after, After::Gone));
        let other = cache.allocate(16_384, DataSemantics::EmulatedMove).unwrap();
        assert_ne!(other.slices().next().unwrap().as_ptr(), at, "it is being sent");
        assert_eq!(out.to_vec(), bytes);
        drop(out);
        let again = cache.allocate(16_384, DataSemantics::EmulatedMove).unwrap();
        assert_eq!(again.slices().next().unwrap().as_ptr(), at);
        let cleared = cache.allocate(100, DataSemantics::Move).unwrap();
        assert!(cleared.slices().all(|slice| slice.iter().all(|&byte| byte == 0)));

        let (out, after) = again.refer(0..16_384, DataSemantics::EmulatedWeakMove, &cache);
        let After::Readable(view) = after else { panic!() };
        let mut seen = [0; 4];
        assert_eq!(view.peek(1000, &mut seen), 4);
        assert_eq!(seen, bytes[1000..1004]);
        drop(out);
        view.release(DataSemantics::EmulatedWeakMove, &cache);
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn input_is_swapped_in_without_a_copy() {
        let arena = arena();
        let (mut region, mut bytes) = region(&arena, 30_000);
        let mut frame = arena.alloc(SizeClass::Frame).unwrap();
        frame[..1448].fill(0xee);
        let frame = frame.freeze(0..1448);
        let at = frame.as_ptr();
        region.swap_in(777, frame.into());
        bytes[777..777 + 1448].fill(0xee);
        assert_eq!(region.slices().flat_map(|s| s.to_vec()).collect::<Vec<_>>(), bytes);
        assert!(region.slices().any(|slice| slice.as_ptr() == at), "the frame itself");
    }
}
