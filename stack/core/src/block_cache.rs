//! Blocks of files that were read from the disk, kept for the next transfer that wants them.
//!
//! IO-Lite's unified cache (OSDI '99, section 3.5): what the disk brought is kept as the buffer that it
//! was read into, and every connection that sends it holds a handle on that one buffer. A document that a
//! thousand slow clients are reading is in memory once, and nothing of it is read, copied or, with its sums
//! remembered ([`IoBuf::memoize`]), even looked at again.
//!
//! Which block goes when another comes is decided by S3-FIFO (Yang et al., SOSP '23): a short queue that
//! new blocks pass, a long one for those that were asked for again while they were in it, and the names of
//! those that left the short one, so that who comes back soon is known. GreedyDual-Size, which IO-Lite used,
//! weighs documents by size; all blocks are of one size, and it would be LRU here, whose list every hit
//! rewrites and which one long scan empties. A hit in S3-FIFO is one small counter, and files that are
//! fetched once never get beyond the short queue.
//!
//! The bound is on handles that the cache holds. Blocks that connections still send when they are evicted
//! live on until the last acknowledgement, in those connections' bounds.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use millstream_buf::IoBuf;
use millstream_disk::{File, FileStat};

/// The share of the short queue: one in ten, as published.
const SHORT_SHARE: usize = 10;
/// Uses that count at most.
const USES_MAX: u8 = 3;
/// Entries that are given up at a time when somebody needs buffers.
const RELIEF_MAX: usize = 16;

/// What a cache has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Blocks that were found.
    pub hits: u64,
    /// Blocks that had to be read.
    pub misses: u64,
    /// Blocks that were given up for others, or because buffers ran short.
    pub evicted: u64,
    /// Blocks that are held.
    pub blocks: usize,
    /// Blocks that may be held.
    pub blocks_max: usize,
}

struct Entry {
    /// A file is the same if all of it is: replaced or changed, it has other blocks.
    stat: FileStat,
    offset: u64,
    hash: u64,
    buf: IoBuf,
    uses: u8,
}

/// The cache of a shard.
pub(crate) struct BlockCache {
    hasher: RandomState,
    table: HashTable<u32>,
    slots: Vec<Option<Entry>>,
    free: Vec<u32>,
    short: VecDeque<u32>,
    long: VecDeque<u32>,
    /// Names of blocks that left the short queue unused, oldest first; and the same to be looked up.
    ghosts: VecDeque<u64>,
    ghost_table: HashTable<u64>,
    stats: CacheStats,
}

impl BlockCache {
    /// For up to `blocks_max` blocks; 0 is no cache.
    pub fn new(blocks_max: usize) -> Self {
        Self {
            hasher: RandomState::default(),
            table: HashTable::with_capacity(blocks_max),
            slots: std::iter::repeat_with(|| None).take(blocks_max).collect(),
            free: (0..blocks_max as u32).rev().collect(),
            short: VecDeque::with_capacity(blocks_max),
            long: VecDeque::with_capacity(blocks_max),
            ghosts: VecDeque::with_capacity(blocks_max),
            ghost_table: HashTable::with_capacity(blocks_max),
            stats: CacheStats { blocks_max, ..CacheStats::default() },
        }
    }

    #[inline]
    pub fn is_on(&self) -> bool {
        self.stats.blocks_max > 0
    }

    /// Blocks that are held.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn stats(&self) -> CacheStats {
        CacheStats { blocks: self.len(), ..self.stats }
    }

    fn hash(&self, stat: &FileStat, offset: u64) -> u64 {
        self.hasher.hash_one((stat.id, stat.len, stat.modified, offset))
    }

    fn find(&self, hash: u64, stat: &FileStat, offset: u64) -> Option<u32> {
        let is_it = |slot: &u32| {
            let entry = self.slots.get(*slot as usize).and_then(Option::as_ref);
            entry.is_some_and(|entry| entry.offset == offset && entry.stat == *stat)
        };
        self.table.find(hash, is_it).copied()
    }

    /// The block of `file` at `offset`, up to the file's end.
    pub fn get(&mut self, file: &File, offset: u64) -> Option<IoBuf> {
        let stat = file.stat();
        let hash = self.hash(&stat, offset);
        let found = self.find(hash, &stat, offset);
        let entry = found.and_then(|slot| self.slots.get_mut(slot as usize)?.as_mut());
        match entry {
            Some(entry) => {
                self.stats.hits += 1;
                entry.uses = (entry.uses + 1).min(USES_MAX);
                Some(entry.buf.clone())
            }
            None => {
                self.stats.misses += 1;
                None
            }
        }
    }

    /// Keeps a block that was read. Returns the one that is kept: another, if two transfers read the
    /// same at once, so that one of the copies can go.
    pub fn insert(&mut self, file: &File, offset: u64, buf: IoBuf) -> IoBuf {
        if !self.is_on() {
            return buf;
        }
        let stat = file.stat();
        let hash = self.hash(&stat, offset);
        if let Some(slot) = self.find(hash, &stat, offset)
            && let Some(Some(entry)) = self.slots.get(slot as usize)
        {
            return entry.buf.clone();
        }
        if self.free.is_empty() {
            self.evict();
        }
        let Some(slot) = self.free.pop() else { return buf };
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(Entry { stat, offset, hash, buf: buf.clone(), uses: 0 });
        }
        let slots = &self.slots;
        self.table.insert_unique(hash, slot, |slot| {
            slots.get(*slot as usize).and_then(Option::as_ref).map_or(0, |entry| entry.hash)
        });
        // Who was here not long ago is no passer-by.
        if let Ok(ghost) = self.ghost_table.find_entry(hash, |other| *other == hash) {
            ghost.remove();
            self.long.push_back(slot);
        } else {
            self.short.push_back(slot);
        }
        buf
    }

    /// Gives up some blocks so that others find buffers. Returns whether a buffer came free.
    #[cold]
    pub fn relieve(&mut self) -> bool {
        for _ in 0..RELIEF_MAX {
            match self.evict() {
                Some(buf) if buf.is_unique() => return true,
                Some(_) => {}
                None => return false,
            }
        }
        false
    }

    /// Gives up the block whose turn it is.
    fn evict(&mut self) -> Option<IoBuf> {
        // Each round puts an entry back with fewer uses, so this ends.
        for _ in 0..=self.slots.len() * (usize::from(USES_MAX) + 2) {
            let passing =
                self.short.len() * SHORT_SHARE >= self.slots.len() || self.long.is_empty();
            let queue = if passing { &mut self.short } else { &mut self.long };
            let slot = queue.pop_front()?;
            let Some(Some(entry)) = self.slots.get_mut(slot as usize) else { continue };
            if entry.uses > 0 {
                entry.uses = if passing { 0 } else { entry.uses - 1 };
                self.long.push_back(slot);
                continue;
            }
            let hash = entry.hash;
            if passing {
                self.remember(hash);
            }
            return self.remove(slot);
        }
        None
    }

    fn remove(&mut self, slot: u32) -> Option<IoBuf> {
        let entry = self.slots.get_mut(slot as usize)?.take()?;
        if let Ok(found) = self.table.find_entry(entry.hash, |other| *other == slot) {
            found.remove();
        }
        self.free.push(slot);
        self.stats.evicted += 1;
        Some(entry.buf)
    }

    /// Keeps a name for as long as as many others come as there are blocks.
    fn remember(&mut self, hash: u64) {
        if self.ghosts.len() == self.slots.len()
            && let Some(oldest) = self.ghosts.pop_front()
            && let Ok(found) = self.ghost_table.find_entry(oldest, |other| *other == oldest)
        {
            found.remove();
        }
        self.ghosts.push_back(hash);
        if self.ghost_table.find(hash, |other| *other == hash).is_none() {
            self.ghost_table.insert_unique(hash, hash, |hash| *hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn block(fill: u8) -> IoBuf {
        IoBuf::from(vec![fill; 64])
    }

    #[test]
    fn a_scan_leaves_what_is_used_again() {
        let mut cache = BlockCache::new(20);
        let (hot, cold) = (File::zeroes(1 << 20), File::zeroes(1 << 30));
        for at in 0..8 {
            cache.insert(&hot, at, block(at as u8));
            assert!(cache.get(&hot, at).is_some());
        }
        for at in 0..1_000 {
            assert!(cache.get(&cold, at).is_none());
            cache.insert(&cold, at, block(0xcc));
        }
        let left = (0..8).filter(|at| cache.get(&hot, *at).is_some()).count();
        assert_eq!(left, 8, "{:?}", cache.stats());
        assert_eq!(cache.stats().blocks, 20);
    }

    #[test]
    fn who_comes_back_soon_stays() {
        let mut cache = BlockCache::new(10);
        let file = File::zeroes(1 << 30);
        for at in 0..15 {
            cache.insert(&file, at, block(1));
        }
        assert!(cache.get(&file, 0).is_none(), "it went with the first");
        cache.insert(&file, 0, block(2));
        for at in 100..140 {
            cache.insert(&file, at, block(1));
        }
        assert!(cache.get(&file, 0).is_some(), "its name was remembered");
    }

    #[test]
    fn one_copy_whoever_reads_first() {
        let mut cache = BlockCache::new(4);
        let file = File::zeroes(1 << 20);
        let first = cache.insert(&file, 0, block(1));
        let second = cache.insert(&file, 0, block(1));
        assert_eq!(first.as_ptr(), second.as_ptr());
        assert_eq!(cache.get(&file, 0).unwrap().as_ptr(), first.as_ptr());
        // The same name in another state is another file.
        let changed = File::in_memory(vec![0; 100]);
        assert!(cache.get(&changed, 0).is_none());
        assert!(!cache.relieve(), "the only block is in use");
        cache.insert(&file, 16, block(3));
        drop((first, second));
        cache.insert(&file, 32, block(4));
        assert!(cache.relieve());
        let mut off = BlockCache::new(0);
        assert!(!off.is_on() && !off.relieve());
        off.insert(&file, 0, block(1));
        assert!(off.get(&file, 0).is_none());
    }

    proptest! {
        /// Whatever is asked and kept, a hit is the block that was kept last under that name, and the
        /// bound holds.
        #[test]
        fn agrees_with_a_map(max in 1_usize..12, ops in prop::collection::vec((any::<bool>(), 0_u64..30), 1..300)) {
            let mut cache = BlockCache::new(max);
            let file = File::zeroes(1 << 20);
            let mut model: HashMap<u64, u8> = HashMap::new();
            for (step, (ask, at)) in ops.into_iter().enumerate() {
                if ask {
                    if let Some(buf) = cache.get(&file, at) {
                        prop_assert_eq!(Some(&buf[0]), model.get(&at));
                    }
                } else if cache.get(&file, at).is_none() {
                    cache.insert(&file, at, block(step as u8));
                    model.insert(at, step as u8);
                }
                let held = cache.slots.iter().flatten().count();
                prop_assert_eq!(held, cache.table.len());
                prop_assert_eq!(held, cache.short.len() + cache.long.len());
                prop_assert!(held <= max && cache.ghosts.len() <= max);
                prop_assert!(cache.ghost_table.len() <= max);
            }
        }
    }
}
