//! One mapping, carved into buffers.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::header::{BufHeader, release};
use crate::iobuf::IoBufMut;
use crate::map::{HUGE_PAGE_BYTES, map, map_shared};
use crate::memo::{Memo, MemoStats};
use crate::poison;
use crate::quota::Charges;
use crate::returns::Returns;
use crate::{BLOCK_BYTES, FRAME_BYTES};

/// Whether the arena wants 2 MiB pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Huge pages if the system has enough of them, else ordinary pages.
    #[default]
    Try,
    /// Huge pages, or an error.
    Require,
    /// Ordinary pages.
    Never,
}

/// The pages an arena got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// 2 MiB pages.
    Huge,
    /// The system's ordinary pages.
    Base,
}

/// The two sizes that an arena hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeClass {
    /// [`FRAME_BYTES`]: frames, headers, small writes.
    Frame,
    /// [`BLOCK_BYTES`]: disk reads and bulk data.
    Block,
}

/// How large an [`Arena`] is.
#[derive(Clone, Copy, Debug)]
pub struct ArenaConfig {
    /// Buffers of [`SizeClass::Frame`].
    pub frames: usize,
    /// Buffers of [`SizeClass::Block`].
    pub blocks: usize,
    /// Which pages back them.
    pub huge_pages: HugePages,
}

impl Default for ArenaConfig {
    /// 4096 frames and 2048 blocks: 40 MiB.
    fn default() -> Self {
        Self { frames: 4096, blocks: 2048, huge_pages: HugePages::Try }
    }
}

/// Why an arena could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// The kernel refused the mapping.
    #[error(
        "cannot map {bytes} bytes of memory for buffers ({source}); ask for fewer with `memory.frames` and `memory.blocks`"
    )]
    NoMemory {
        /// What was asked for.
        bytes: usize,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Huge pages were required and there are too few.
    #[error(
        "not enough free huge pages: {pages} of 2 MiB are needed; reserve them with `sysctl vm.nr_hugepages={pages}` or set `memory.huge_pages = \"try\"`"
    )]
    NoHugePages {
        /// Pages of 2 MiB that would do.
        pages: usize,
    },
    /// The kernel has no memory that can be passed to other processes.
    #[error(
        "the kernel refuses memory that other processes can be given ({source}); raise the limit with `ulimit -n`, or use an arena of this process alone"
    )]
    NotShareable {
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// What an arena holds at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaStats {
    /// Frame buffers in all and free.
    pub frames: (usize, usize),
    /// Block buffers in all and free.
    pub blocks: (usize, usize),
    /// Requests that found no free buffer, since start.
    pub exhausted: u64,
}

/// One region of memory from which every buffer of a shard comes.
///
/// Cloning gives another handle on the same arena. The mapping is freed when the last handle goes,
/// unless buffers are still out: then it is leaked, since a device or a peer may still use it.
#[derive(Clone)]
pub struct Arena(pub(crate) Rc<ArenaInner>);

pub(crate) struct ArenaInner {
    base: NonNull<u8>,
    mapped_bytes: usize,
    pub(crate) pages: PageKind,
    pub(crate) headers: Box<[BufHeader]>,
    /// Free buffers of each class as indices into `headers`; last in, first out, so that the next
    /// buffer is the one most likely still in cache.
    pub(crate) free_frames: RefCell<Vec<u32>>,
    pub(crate) free_blocks: RefCell<Vec<u32>>,
    pub(crate) frames: usize,
    exhausted: Cell<u64>,
    /// References given back on other threads.
    returns: Returns,
    /// Who pays for which buffer.
    pub(crate) charges: Charges,
    /// Remembered checksums.
    pub(crate) memo: Memo,
    /// What backs the mapping, if other processes may be given it.
    pub(crate) memfd: Option<OwnedFd>,
    thread: u64,
}

/// A number for the calling thread that is cheap to read and never reused.
fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static NUMBER: Cell<u64> = const { Cell::new(0) });
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

impl Arena {
    /// Maps and carves an arena. Every page is touched, so a shortage shows now and not later.
    ///
    /// # Errors
    /// [`ArenaError`] if the system has not got the memory or the huge pages.
    pub fn new(config: &ArenaConfig) -> Result<Self, ArenaError> {
        let mapped_bytes = mapped_bytes(config);
        let (base, pages) = map(mapped_bytes, config.huge_pages)?;
        Ok(Self::carve(config, base, mapped_bytes, pages, None))
    }

    /// As [`Self::new`] on memory that other processes can be given to read: see
    /// [`Pool`](crate::Pool).
    ///
    /// # Errors
    /// As [`Self::new`], or [`ArenaError::NotShareable`].
    pub fn shareable(config: &ArenaConfig) -> Result<Self, ArenaError> {
        let mapped_bytes = mapped_bytes(config);
        let (base, pages, memfd) = map_shared(mapped_bytes, config.huge_pages)?;
        Ok(Self::carve(config, base, mapped_bytes, pages, Some(memfd)))
    }

    fn carve(
        config: &ArenaConfig,
        base: NonNull<u8>,
        mapped_bytes: usize,
        pages: PageKind,
        memfd: Option<OwnedFd>,
    ) -> Self {
        let block_area = config.blocks * BLOCK_BYTES;
        let buffers = config.frames + config.blocks;
        poison::forbid(base, mapped_bytes);
        let inner = Rc::new_cyclic(|inner: &Weak<ArenaInner>| {
            let owner = inner.as_ptr().cast::<()>();
            let headers = (0..buffers)
                .map(|index| {
                    let (offset, capacity) = if index < config.frames {
                        (block_area + index * FRAME_BYTES, FRAME_BYTES)
                    } else {
                        ((index - config.frames) * BLOCK_BYTES, BLOCK_BYTES)
                    };
                    // SAFETY: the offset lies inside the mapping, whose size was computed from the
                    // same counts.
                    let data = unsafe { base.add(offset) };
                    BufHeader::new(data, capacity as u32, free_arena_buffer, owner, index as u32)
                })
                .collect();
            ArenaInner {
                base,
                mapped_bytes,
                pages,
                headers,
                free_frames: RefCell::new((0..config.frames as u32).rev().collect()),
                free_blocks: RefCell::new(
                    (config.frames as u32..(config.frames + config.blocks) as u32).rev().collect(),
                ),
                frames: config.frames,
                exhausted: Cell::new(0),
                returns: Returns::new(buffers),
                charges: Charges::new(buffers),
                memo: Memo::new(config.frames, config.blocks),
                memfd,
                thread: thread_number(),
            }
        });
        Self(inner)
    }

    /// Takes a buffer, or `None` if the class is used up.
    #[inline]
    pub fn alloc(&self, class: SizeClass) -> Option<IoBufMut> {
        let list = self.0.list(class);
        let mut index = list.borrow_mut().pop();
        if index.is_none() {
            self.reclaim();
            index = list.borrow_mut().pop();
        }
        let Some(index) = index else {
            self.0.exhausted.set(self.0.exhausted.get() + 1);
            return None;
        };
        let header = &self.0.headers[index as usize];
        debug_assert_eq!(header.refs.get(), 0, "a buffer on the free list is in use");
        header.refs.set(1);
        header.next_generation();
        poison::allow(header.data, header.capacity as usize);
        // SAFETY: the buffer was free, so this handle is the only one, with its one reference.
        Some(unsafe { IoBufMut::from_header(NonNull::from(header)) })
    }

    /// Free buffers of a class.
    pub fn free(&self, class: SizeClass) -> usize {
        self.0.list(class).borrow().len()
    }

    /// Takes back what other threads released; returns how many references came home.
    pub fn reclaim(&self) -> usize {
        let mut count = 0;
        self.0.returns.take(|buffer, references| {
            let Some(header) = self.0.headers.get(buffer as usize) else { return };
            for _ in 0..references {
                // SAFETY: `queue_for_owner` was handed as many references, and this is the owning
                // thread (the arena is `!Send`).
                unsafe { release(NonNull::from(header)) };
            }
            count += references as usize;
        });
        count
    }

    /// What remembering checksums has saved.
    pub fn memo_stats(&self) -> MemoStats {
        self.0.memo.stats()
    }

    /// Whether [`IoBuf::memoize`](crate::IoBuf::memoize) has an effect from now on. It has unless somebody
    /// says otherwise: where a card computes checksums, remembering them is of no use.
    pub fn set_memo(&self, on: bool) {
        self.0.memo.set_on(on);
    }

    pub(crate) fn inner(&self) -> &ArenaInner {
        &self.0
    }

    /// Start and length in bytes of the mapping, for registration with devices.
    pub fn region(&self) -> (NonNull<u8>, usize) {
        (self.0.base, self.0.mapped_bytes)
    }

    /// The pages that back it.
    pub fn pages(&self) -> PageKind {
        self.0.pages
    }

    /// A snapshot of its fill.
    pub fn stats(&self) -> ArenaStats {
        ArenaStats {
            frames: (self.0.frames, self.free(SizeClass::Frame)),
            blocks: (self.0.headers.len() - self.0.frames, self.free(SizeClass::Block)),
            exhausted: self.0.exhausted.get(),
        }
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arena").field("pages", &self.pages()).field("stats", &self.stats()).finish()
    }
}

impl ArenaInner {
    fn list(&self, class: SizeClass) -> &RefCell<Vec<u32>> {
        match class {
            SizeClass::Frame => &self.free_frames,
            SizeClass::Block => &self.free_blocks,
        }
    }

    pub(crate) fn class_of(&self, header: &BufHeader) -> SizeClass {
        if (header.index as usize) < self.frames { SizeClass::Frame } else { SizeClass::Block }
    }

    fn buffers_out(&self) -> usize {
        self.headers.len() - self.free_frames.borrow().len() - self.free_blocks.borrow().len()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if Rc::strong_count(&self.0) == 1 {
            self.reclaim();
            if self.0.buffers_out() > 0 {
                // A handle, a device or another thread may still use a buffer. The memory stays.
                std::mem::forget(Rc::clone(&self.0));
            }
        }
    }
}

impl Drop for ArenaInner {
    fn drop(&mut self) {
        poison::allow(self.base, self.mapped_bytes);
        // SAFETY: the mapping was made by `map` with this length, and `Arena::drop` let us get here
        // only because no buffer is out.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped_bytes) };
    }
}

/// Puts an arena buffer back on its free list.
///
/// # Safety
/// The header belongs to a live arena of this thread and no handle on it is left.
unsafe fn free_arena_buffer(header: NonNull<BufHeader>) {
    // SAFETY: live by the caller's promise; the arena outlives its buffers (see `Arena::drop`).
    let (header, arena) = unsafe {
        let header = header.as_ref();
        (header, &*header.owner.cast::<ArenaInner>())
    };
    arena.charges.refund(header);
    poison::forbid(header.data, header.capacity as usize);
    // The list was made with room for every buffer, so this never allocates.
    arena.list(arena.class_of(header)).borrow_mut().push(header.index);
}

pub(crate) fn is_owner_thread(owner: *const ()) -> bool {
    // SAFETY: `owner` is a live `ArenaInner`; `thread` never changes after construction.
    unsafe { (*owner.cast::<ArenaInner>()).thread == thread_number() }
}

pub(crate) fn queue_for_owner(owner: *const (), index: u32) {
    // SAFETY: `owner` is a live `ArenaInner` and `Returns::give` may be called on any thread.
    let returns = unsafe { &(*owner.cast::<ArenaInner>()).returns };
    returns.give(index);
}

/// The arena that a buffer comes from; `None` for those of drivers and of the heap.
#[inline]
pub(crate) fn of(header: &BufHeader) -> Option<&ArenaInner> {
    // SAFETY: an arena outlives its buffers (see `Arena::drop`), and the borrow of the header keeps the
    // buffer. Headers other than an arena's have no owner.
    unsafe { header.owner.cast::<ArenaInner>().as_ref() }
}

fn mapped_bytes(config: &ArenaConfig) -> usize {
    let bytes = config.blocks * BLOCK_BYTES + config.frames * FRAME_BYTES;
    bytes.max(1).next_multiple_of(HUGE_PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Arena {
        Arena::new(&ArenaConfig { frames: 3, blocks: 2, huge_pages: HugePages::Never }).unwrap()
    }

    #[test]
    fn exhaustion_is_an_answer_and_drop_gives_back() {
        let arena = small();
        let held: Vec<_> = std::iter::from_fn(|| arena.alloc(SizeClass::Frame)).collect();
        assert_eq!(held.len(), 3);
        assert_eq!(arena.stats().exhausted, 1);
        assert_eq!(arena.free(SizeClass::Block), 2);
        drop(held);
        assert_eq!(arena.free(SizeClass::Frame), 3);
    }

    #[test]
    fn ordinary_pages_are_ordinary() {
        let arena = small();
        let at = arena.alloc(SizeClass::Frame).unwrap().as_ptr() as usize;
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut ours = smaps.lines().skip_while(|line| {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let bounds = range.map(|(from, to)| [from, to].map(|s| usize::from_str_radix(s, 16)));
            !matches!(bounds, Some([Ok(from), Ok(to)]) if (from..to).contains(&at))
        });
        let flags = ours.find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(!flags.contains(" hg"), "huge pages are asked for: {flags}");
    }

    #[test]
    fn free_list_is_last_in_first_out() {
        let arena = small();
        let first = arena.alloc(SizeClass::Frame).unwrap();
        let at = first.as_ptr();
        drop(first);
        assert_eq!(arena.alloc(SizeClass::Frame).unwrap().as_ptr(), at);
    }

    #[test]
    fn generation_changes_with_each_owner() {
        let arena = small();
        let first = arena.alloc(SizeClass::Block).unwrap().freeze(0..1);
        let generation = first.generation();
        drop(first);
        assert_ne!(arena.alloc(SizeClass::Block).unwrap().freeze(0..1).generation(), generation);
    }

    #[test]
    fn buffers_are_disjoint_and_aligned() {
        let arena = small();
        let mut spans: Vec<(usize, usize)> = Vec::new();
        let mut held = Vec::new();
        for class in [SizeClass::Frame, SizeClass::Block] {
            while let Some(buf) = arena.alloc(class) {
                spans.push((buf.as_ptr() as usize, buf.len()));
                held.push(buf);
            }
        }
        spans.sort_unstable();
        for pair in spans.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0);
        }
        assert!(spans.iter().filter(|s| s.1 == BLOCK_BYTES).all(|s| s.0 % 4096 == 0));
    }

    #[test]
    fn arena_outlived_by_a_handle_keeps_its_memory() {
        let arena = small();
        let mut buf = arena.alloc(SizeClass::Frame).unwrap();
        drop(arena);
        buf[0] = 7;
        assert_eq!(buf[0], 7);
    }

    #[test]
    fn release_on_another_thread_comes_home() {
        let arena = small();
        let buf = arena.alloc(SizeClass::Frame).unwrap().freeze(0..10);
        // SAFETY: `buf` is live and this is its thread.
        unsafe { crate::retain(buf.header()) };
        let header = buf.header().as_ptr() as usize;
        drop(buf);
        assert_eq!(arena.free(SizeClass::Frame), 2);
        std::thread::spawn(move || {
            let header = NonNull::new(header as *mut BufHeader).unwrap();
            // SAFETY: gives back the reference taken above.
            unsafe { crate::release_any_thread(header) };
        })
        .join()
        .unwrap();
        assert_eq!(arena.free(SizeClass::Frame), 2, "only the owner touches the free list");
        assert_eq!(arena.reclaim(), 1);
        assert_eq!(arena.free(SizeClass::Frame), 3);
    }

    #[test]
    fn references_on_one_buffer_add_up() {
        let arena = small();
        let block = arena.alloc(SizeClass::Block).unwrap().freeze(0..10);
        let header = block.header().as_ptr() as usize;
        for _ in 0..50 {
            // SAFETY: `block` is live and this is its thread.
            unsafe { crate::retain(block.header()) };
        }
        drop(block);
        let give = move || {
            for _ in 0..25 {
                let header = NonNull::new(header as *mut BufHeader).unwrap();
                // SAFETY: gives back half of the references taken above.
                unsafe { crate::release_any_thread(header) };
            }
        };
        for thread in [std::thread::spawn(give), std::thread::spawn(give)] {
            thread.join().unwrap();
        }
        assert_eq!(arena.reclaim(), 50, "more than there are buffers");
        assert!(arena.audit().is_clean());
        assert_eq!(arena.reclaim(), 0);
    }

    #[test]
    fn too_few_huge_pages_is_a_sentence() {
        let config = ArenaConfig { frames: 0, blocks: 1 << 24, huge_pages: HugePages::Require };
        let error = Arena::new(&config).unwrap_err().to_string();
        assert!(error.contains("vm.nr_hugepages=131072"), "{error}");
    }
}
