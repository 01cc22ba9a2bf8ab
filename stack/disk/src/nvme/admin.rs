//! The admin queue: few commands, each with a tag that says what its answer is for.

use super::command::Command;
use super::error::NvmeError;
use super::ring::Ring;
use super::status::Status;

/// Commands in flight at most; a power of two, one below the ring's entries.
const SLOTS: usize = 16;

/// What an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// The one question of the set-up, or of the end, that is open.
    SetUp,
    /// The abort of a read: whether it worked shows in the read's own completion.
    Abort,
    /// The asynchronous event request.
    Event,
    /// A log page that an event asked for.
    Log { log: u8 },
    /// The namespace, after it was said to have changed.
    Recheck,
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    pub(crate) result: u32,
}

/// The admin queue.
pub(crate) struct Admin {
    pub(crate) ring: Ring,
    tags: [Option<Tag>; SLOTS],
    /// Above the slot's number in each command's number: an answer counts once.
    generations: [u16; SLOTS],
}

impl Admin {
    pub(crate) fn new(ring: Ring) -> Self {
        Self { ring, tags: [None; SLOTS], generations: [0; SLOTS] }
    }

    /// Puts a command into the ring. There is always room: one question of the set-up, as many
    /// aborts as [`Self::aborts`] is kept below, one event request with what follows from it.
    pub(crate) fn submit(&mut self, tag: Tag, build: impl FnOnce(u16) -> Command) {
        let Some(slot) = self.tags.iter().position(Option::is_none) else {
            debug_assert!(false, "the admin queue is full");
            return;
        };
        self.tags[slot] = Some(tag);
        let command = build(self.cid(slot));
        self.ring.push(&command);
    }

    /// Aborts in flight, and as many places as are kept for other commands.
    pub(crate) fn aborts(&self) -> usize {
        let aborts = self.tags.iter().filter(|tag| **tag == Some(Tag::Abort)).count();
        // Four other commands must find room whatever the device allows.
        if aborts + 4 >= SLOTS { usize::MAX } else { aborts }
    }

    /// The next answer.
    pub(crate) fn next(&mut self) -> Result<Option<(Tag, Answer)>, NvmeError> {
        let Some(entry) = self.ring.pop() else { return Ok(None) };
        let entry = entry.map_err(|_| NvmeError::Nonsense)?;
        let slot = usize::from(entry.cid) % SLOTS;
        if entry.cid != self.cid(slot) {
            return Err(NvmeError::Nonsense);
        }
        let tag = self.tags[slot].take().ok_or(NvmeError::Nonsense)?;
        self.generations[slot] = self.generations[slot].wrapping_add(1);
        Ok(Some((tag, Answer { status: entry.status, result: entry.result })))
    }

    /// The controller was stopped: nothing is answered any more.
    pub(crate) fn forget(&mut self) {
        self.tags = [None; SLOTS];
        for generation in &mut self.generations {
            *generation = generation.wrapping_add(1);
        }
    }

    fn cid(&self, slot: usize) -> u16 {
        // Never 0xffff, which the specification keeps for itself.
        slot as u16 | (self.generations[slot] % 0xfff) << 4
    }
}
