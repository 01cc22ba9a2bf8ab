//! A hierarchical timing wheel (Varghese and Lauck, scheme 7).
//!
//! Time is cut into ticks of 512 ns. Level 0 has a slot for each tick of the cursor's block of 64
//! ticks, level 1 a slot for each block of the cursor's 64 blocks, and so on; ten levels cover all
//! of time. A timer's level is that of the highest bit in which its tick differs from the cursor,
//! so nothing wraps around: every occupied slot lies ahead of the cursor, and lower levels come
//! before higher ones. The next slot is thus found with two bit scans, however far away it is.
//!
//! Slots are circular lists through one slab, each with a sentinel in the same slab: taking a timer
//! out needs neither its slot nor a special case for the ends of the list.

use std::num::NonZeroU32;

use crate::Instant;

/// Nanoseconds in a tick of the wheel.
pub const TICK_NANOS: u64 = 1 << TICK_SHIFT;

const TICK_SHIFT: u32 = 9;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// So many reach beyond the last moment that a clock can read, which is centuries away.
const LEVELS: usize = 10;
const SENTINELS: usize = LEVELS * SLOTS;
/// Timers that one call moves to a lower level at most.
const CASCADE_MAX: u32 = 32;
/// Ends the list of free nodes; the sentinel of slot 0 can never be free.
const NONE: u32 = 0;

/// A timer in a [`TimerWheel`]. Once the timer has fired or was cancelled, its id means nothing, and
/// cancelling by it does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId {
    index: NonZeroU32,
    generation: u32,
}

/// 24 bytes a timer.
#[derive(Clone, Copy, Debug)]
struct Node {
    tick: u64,
    prev: u32,
    /// The next timer in the slot, or the next free node.
    next: u32,
    token: u32,
    /// Times the node was freed: tells ids of its successive timers apart.
    generation: u32,
}

/// Deadlines in order, for up to a number of timers that is fixed at the start.
///
/// A timer fires at the first tick that begins at or after its deadline: never early, and less than
/// 512 ns late if it is asked for in time. All operations take constant time; none allocates.
pub struct TimerWheel {
    /// Sentinels of all slots, then the timers.
    nodes: Box<[Node]>,
    free: u32,
    len: usize,
    /// Everything before this tick has fired.
    cursor: u64,
    /// When the earliest occupied slot begins: cached for [`Self::next_deadline`].
    next_tick: u64,
    /// Bit n: level n has an occupied slot.
    levels: u16,
    /// Bit n: slot n of the level is occupied.
    slots: [u64; LEVELS],
    /// A slot above level 0 that is being emptied; the cursor is inside it.
    cascading: Option<u32>,
    cascaded: u64,
    /// The tick of the timer that was taken last.
    popped_tick: u64,
}

impl TimerWheel {
    /// Bytes of memory that each timer of the capacity takes.
    pub const BYTES_A_TIMER: usize = size_of::<Node>();

    /// A wheel for `timers` timers, at moment `now`. Takes 24 bytes a timer and 15 KiB.
    ///
    /// # Panics
    /// If `timers` does not fit in 32 bits.
    pub fn with_capacity(timers: usize, now: Instant) -> Self {
        let count = SENTINELS + timers;
        assert!(
            count <= u32::MAX as usize,
            "{timers} timers are too many for one wheel; ask for fewer than 4,294,966,000"
        );
        let nodes: Box<[Node]> = (0..count as u32)
            .map(|index| {
                let sentinel = (index as usize) < SENTINELS;
                let after = if index as usize + 1 < count { index + 1 } else { NONE };
                let next = if sentinel { index } else { after };
                Node { tick: 0, prev: index, next, token: 0, generation: 0 }
            })
            .collect();
        Self {
            nodes,
            free: if timers > 0 { SENTINELS as u32 } else { NONE },
            len: 0,
            cursor: now.as_nanos() >> TICK_SHIFT,
            next_tick: u64::MAX,
            levels: 0,
            slots: [0; LEVELS],
            cascading: None,
            cascaded: 0,
            popped_tick: 0,
        }
    }

    /// Adds a timer that gives `token` back at `deadline`, or in the next tick if that has passed.
    /// `None`: the wheel is full.
    #[inline]
    pub fn insert(&mut self, deadline: Instant, token: u32) -> Option<TimerId> {
        let index = NonZeroU32::new(self.free)?;
        let tick = deadline.as_nanos().div_ceil(TICK_NANOS).max(self.cursor);
        let node = &mut self.nodes[index.get() as usize];
        self.free = node.next;
        node.tick = tick;
        node.token = token;
        let generation = node.generation;
        self.len += 1;
        self.link(index.get(), tick);
        Some(TimerId { index, generation })
    }

    /// Takes a timer out. `false`: it has fired, or was cancelled before.
    #[inline]
    pub fn cancel(&mut self, id: TimerId) -> bool {
        let Some(node) = self.nodes.get(id.index.get() as usize) else { return false };
        if node.generation != id.generation {
            return false;
        }
        self.unlink(id.index.get());
        self.release(id.index.get());
        true
    }

    /// The moment until which nothing fires: the earliest deadline rounded up to a tick, or earlier
    /// (by less than its distance when it was set), never later. [`Instant::FAR_FUTURE`]: there is
    /// no timer, or none that will ever fire.
    #[inline]
    pub fn next_deadline(&self) -> Instant {
        if self.next_tick > u64::MAX >> TICK_SHIFT {
            return Instant::FAR_FUTURE;
        }
        Instant::from_nanos(self.next_tick << TICK_SHIFT)
    }

    /// Takes one timer whose deadline has passed and returns its token.
    ///
    /// Call it in every turn, until it says `None`. One call moves at most 32 timers that are not
    /// yet due to lower levels; if that was not enough, it says `None` while [`Self::next_deadline`]
    /// still lies in the past, and the next turn goes on. Timers of one tick fire in the order in
    /// which they were set, as a rule; timers that are all overdue come in no particular order.
    #[inline]
    pub fn pop_expired(&mut self, now: Instant) -> Option<u32> {
        let now_tick = now.as_nanos() >> TICK_SHIFT;
        if now_tick < self.next_tick {
            // No occupied slot begins before `now`, so all levels stay right. Timers that are set
            // from here on need fewer moves.
            self.cursor = self.cursor.max(now_tick);
            return None;
        }
        self.pop_due(now_tick)
    }

    /// Timers that are set.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no timer is set.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Timers that it has room for.
    pub fn capacity(&self) -> usize {
        self.nodes.len() - SENTINELS
    }

    /// The deadline of the timer that [`Self::pop_expired`] took last, rounded up to a tick: how late
    /// it fired.
    #[inline]
    pub fn popped_deadline(&self) -> Instant {
        Instant::from_nanos(self.popped_tick << TICK_SHIFT)
    }

    /// Moves of timers from one level to a lower one, since start.
    pub fn cascaded(&self) -> u64 {
        self.cascaded
    }

    fn pop_due(&mut self, now_tick: u64) -> Option<u32> {
        // Should `now` have gone back: what has been passed stays passed.
        let now_tick = now_tick.max(self.cursor);
        let mut moves_left = CASCADE_MAX;
        while self.next_tick <= now_tick {
            let slot = match self.cascading {
                Some(slot) => slot,
                None => self.enter_next_slot(now_tick),
            };
            let index = self.nodes[slot as usize].next;
            let Node { tick, token, .. } = self.nodes[index as usize];
            if tick <= now_tick {
                // From a higher level too: a slot whose time is over is never moved down first.
                self.unlink(index);
                self.release(index);
                self.popped_tick = tick;
                return Some(token);
            }
            if moves_left == 0 {
                return None;
            }
            moves_left -= 1;
            self.cascaded += 1;
            self.unlink(index);
            self.link(index, tick);
        }
        None
    }

    /// Puts the cursor into the earliest occupied slot and returns that slot's sentinel.
    fn enter_next_slot(&mut self, now_tick: u64) -> u32 {
        let level = self.levels.trailing_zeros();
        let slot = self.slots[level as usize % LEVELS].trailing_zeros();
        let sentinel = level * SLOTS as u32 + slot;
        // As far into the slot as `now` is, so that what is left in it moves as few levels as it
        // can. Other occupied slots begin after this one ends.
        let last_tick = self.next_tick | low_bits(level);
        self.cursor = now_tick.min(last_tick).max(self.cursor);
        if level > 0 {
            self.cascading = Some(sentinel);
        }
        sentinel
    }

    /// Links a node into the slot of `tick`, which is not before the cursor.
    #[inline]
    fn link(&mut self, index: u32, tick: u64) {
        let differs = (tick ^ self.cursor) | (SLOTS as u64 - 1);
        let level = (u64::BITS - 1 - differs.leading_zeros()) / SLOT_BITS;
        let slot = (tick >> (level * SLOT_BITS)) as usize % SLOTS;
        let sentinel = level as usize * SLOTS + slot;

        let last = self.nodes[sentinel].prev;
        self.nodes[sentinel].prev = index;
        self.nodes[last as usize].next = index;
        let node = &mut self.nodes[index as usize];
        node.prev = last;
        node.next = sentinel as u32;

        self.slots[level as usize % LEVELS] |= 1 << slot;
        self.levels |= 1 << level;
        let begins = tick & !low_bits(level);
        self.next_tick = self.next_tick.min(begins);
    }

    #[inline]
    fn unlink(&mut self, index: u32) {
        let Node { prev, next, .. } = self.nodes[index as usize];
        self.nodes[prev as usize].next = next;
        self.nodes[next as usize].prev = prev;
        if prev == next {
            // Both neighbours are the sentinel: the slot is empty now.
            self.slot_emptied(prev);
        }
    }

    fn slot_emptied(&mut self, sentinel: u32) {
        let (level, slot) = (sentinel as usize / SLOTS % LEVELS, sentinel as usize % SLOTS);
        self.slots[level] &= !(1 << slot);
        if self.slots[level] == 0 {
            self.levels &= !(1 << level);
        }
        if self.cascading == Some(sentinel) {
            self.cascading = None;
        }
        // While a slot is cascading, `next_tick` stays at its beginning.
        if self.cascading.is_none() {
            self.next_tick = self.first_tick();
        }
    }

    /// When the earliest occupied slot begins.
    fn first_tick(&self) -> u64 {
        if self.levels == 0 {
            return u64::MAX;
        }
        let level = self.levels.trailing_zeros();
        let slot = u64::from(self.slots[level as usize % LEVELS].trailing_zeros());
        (self.cursor & !low_bits(level + 1)) | slot << (level * SLOT_BITS)
    }

    #[inline]
    fn release(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        node.generation = node.generation.wrapping_add(1);
        node.next = self.free;
        self.free = index;
        self.len -= 1;
    }
}

impl std::fmt::Debug for TimerWheel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TimerWheel")
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .field("next_deadline", &self.next_deadline())
            .finish_non_exhaustive()
    }
}

/// The bits of a tick below those that choose a slot of `level`.
#[inline]
const fn low_bits(level: u32) -> u64 {
    (1 << (level * SLOT_BITS)) - 1
}

#[cfg(test)]
mod tests;
