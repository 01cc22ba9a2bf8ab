//! A pair of queues: commands go out on one ring, completions come in on the other (NVMe Base
//! Specification 2.0, 3.3.1).
//!
//! The rings have one entry more than there may be commands in flight, so neither is ever full: an
//! entry that is written anew belonged to a command that has completed.

use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use super::access::{Bar, DmaMemory};
use super::command::{COMMAND_BYTES, Command, ENTRY_BYTES, Entry};
use super::registers::Cap;
use super::status::Status;

/// Where a pair lies in its memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) sq_offset: usize,
    pub(crate) cq_offset: usize,
    pub(crate) entries: u16,
}

/// One pair. It points into memory that its controller keeps.
pub(crate) struct Ring {
    sq: NonNull<Command>,
    cq: NonNull<[u32; 4]>,
    entries: u16,
    /// Where the next command goes, and what the device was told of that.
    tail: u16,
    tail_told: u16,
    /// Where the next completion comes, and what the device was told of that.
    head: u16,
    head_told: u16,
    /// The phase bit of a fresh completion.
    phase: u32,
    number: u16,
    sq_doorbell: usize,
    cq_doorbell: usize,
}

/// A completion that cannot be: the device, or its memory, is not to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nonsense;

impl Ring {
    /// Queue pair `number` over `memory`.
    ///
    /// # Panics
    /// If the layout is not inside the memory or not aligned.
    pub(crate) fn new(memory: &DmaMemory, layout: Layout, number: u16, cap: Cap) -> Self {
        let entries = usize::from(layout.entries);
        assert!(entries >= 2);
        let sq = memory.at(layout.sq_offset, entries * COMMAND_BYTES).cast::<Command>();
        let cq = memory.at(layout.cq_offset, entries * ENTRY_BYTES).cast::<[u32; 4]>();
        assert!(sq.is_aligned() && cq.is_aligned());
        Self {
            sq,
            cq,
            entries: layout.entries,
            tail: 0,
            tail_told: 0,
            head: 0,
            head_told: 0,
            phase: 1,
            number,
            sq_doorbell: cap.sq_doorbell(number),
            cq_doorbell: cap.cq_doorbell(number),
        }
    }

    pub(crate) fn entries(&self) -> u16 {
        self.entries
    }

    /// Begins anew, as the device does when it is told of the rings.
    ///
    /// The device must be off, or not know these rings.
    pub(crate) fn clear(&mut self) {
        for index in 0..usize::from(self.entries) {
            // SAFETY: inside the rings, as `new` checked; the device does not know them now.
            unsafe {
                self.sq.add(index).write_volatile(Command([0; 8]));
                self.cq.add(index).write_volatile([0; 4]);
            }
        }
        (self.tail, self.tail_told, self.head, self.head_told) = (0, 0, 0, 0);
        self.phase = 1;
    }

    /// Puts a command into the ring; [`Self::tell`] hands it over.
    ///
    /// At most [`Self::entries`] minus one commands may be in flight.
    #[inline]
    pub(crate) fn push(&mut self, command: &Command) {
        let words = self.sq.as_ptr().cast::<u64>().wrapping_add(usize::from(self.tail) * 8);
        for (index, word) in command.0.iter().enumerate() {
            // SAFETY: `tail` is always below `entries`, which `new` checked to be inside the memory.
            // The device reads this entry only after the doorbell.
            unsafe { words.add(index).write_volatile(word.to_le()) };
        }
        self.tail = self.after(self.tail);
    }

    /// Rings the doorbells for what was pushed and for what was taken.
    #[inline]
    pub(crate) fn tell<B: Bar + ?Sized>(&mut self, bar: &mut B) {
        if self.head != self.head_told {
            self.head_told = self.head;
            bar.write32(self.cq_doorbell, self.head.into());
        }
        if self.tail != self.tail_told {
            self.tail_told = self.tail;
            // The commands, and what they point to, are in memory before the device hears of them.
            fence(Ordering::SeqCst);
            bar.write32(self.sq_doorbell, self.tail.into());
        }
    }

    /// Whether commands lie in the ring of which the device was not told.
    #[inline]
    pub(crate) fn holds_back(&self) -> bool {
        self.tail != self.tail_told
    }

    /// The next completion, if it has come.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Result<Entry, Nonsense>> {
        let words = self.cq.as_ptr().cast::<u32>().wrapping_add(usize::from(self.head) * 4);
        // SAFETY: `head` is always below `entries`, which `new` checked to be inside the memory. The
        // device writes there at any time, hence volatile.
        let last = u32::from_le(unsafe { words.add(3).read_volatile() });
        if last >> 16 & 1 != self.phase {
            return None;
        }
        // The rest of the entry, and what the command brought, are read after the phase bit.
        fence(Ordering::Acquire);
        // SAFETY: as above.
        let (result, queue) = unsafe { (words.read_volatile(), words.add(2).read_volatile()) };
        let (result, queue) = (u32::from_le(result), u32::from_le(queue));
        self.head = self.after(self.head);
        if self.head == 0 {
            self.phase ^= 1;
        }
        let entry = Entry {
            result,
            sq_head: queue as u16,
            sq: (queue >> 16) as u16,
            cid: last as u16,
            status: Status::from_bits((last >> 17) as u16),
        };
        let sane = entry.sq == self.number && entry.sq_head < self.entries;
        Some(if sane { Ok(entry) } else { Err(Nonsense) })
    }

    #[inline]
    fn after(&self, index: u16) -> u16 {
        if index + 1 == self.entries { 0 } else { index + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::access::PAGE_BYTES;

    /// Registers that remember what was written.
    #[derive(Default)]
    struct Doorbells(Vec<(usize, u32)>);

    impl Bar for Doorbells {
        fn read32(&mut self, _: usize) -> u32 {
            0
        }
        fn write32(&mut self, at: usize, value: u32) {
            self.0.push((at, value));
        }
        fn bar_bytes(&self) -> usize {
            8192
        }
    }

    fn post(memory: &DmaMemory, index: usize, queue: u32, last: u32) {
        memory.write64(PAGE_BYTES + 16 * index + 8, u64::from(queue) | u64::from(last) << 32);
    }

    fn ring(memory: &DmaMemory) -> Ring {
        let layout = Layout { sq_offset: 0, cq_offset: PAGE_BYTES, entries: 3 };
        let mut ring = Ring::new(memory, layout, 1, Cap(0));
        ring.clear();
        ring
    }

    #[test]
    fn doorbells_ring_once_a_batch() {
        let memory = DmaMemory::anonymous(2 * PAGE_BYTES, false).unwrap();
        let (mut ring, mut bar) = (ring(&memory), Doorbells::default());
        ring.tell(&mut bar);
        assert!(bar.0.is_empty(), "nothing to tell");
        ring.push(&Command::async_event(1));
        ring.push(&Command::async_event(2));
        assert!(ring.holds_back());
        ring.tell(&mut bar);
        assert_eq!(bar.0, [(0x1008, 2)]);
        post(&memory, 0, 1 << 16, 1 | 1 << 16);
        post(&memory, 1, 1 << 16, 2 | 1 << 16);
        assert_eq!(ring.pop().unwrap().unwrap().cid, 1);
        assert_eq!(ring.pop().unwrap().unwrap().cid, 2);
        assert!(ring.pop().is_none());
        ring.tell(&mut bar);
        assert_eq!(bar.0[1..], [(0x100c, 2)], "one for both");
    }

    #[test]
    fn the_phase_bit_turns_with_each_round() {
        let memory = DmaMemory::anonymous(2 * PAGE_BYTES, false).unwrap();
        let mut ring = ring(&memory);
        for round in 0..7_u32 {
            for index in 0..3 {
                assert!(ring.pop().is_none(), "what lies there is of the round before");
                let phase = (round + 1) % 2;
                post(&memory, index, 1 << 16, (round * 3 + index as u32) | phase << 16);
                assert_eq!(ring.pop().unwrap().unwrap().cid, (round * 3) as u16 + index as u16);
            }
        }
    }

    #[test]
    fn completions_of_another_queue_or_with_a_wild_head_are_nonsense() {
        let memory = DmaMemory::anonymous(2 * PAGE_BYTES, false).unwrap();
        for queue in [2 << 16, 0, 1 << 16 | 3] {
            let mut ring = ring(&memory);
            post(&memory, 0, queue, 1 << 16);
            assert_eq!(ring.pop(), Some(Err(Nonsense)));
        }
    }
}
