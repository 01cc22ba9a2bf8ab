//! Brings the content of small files into arena buffers, beside the transfers that peers wait for.
//!
//! The server has a small disk queue of its own for that. A task looks at it every few microseconds
//! while something is under way, and is gone otherwise.

use std::rc::Rc;
use std::time::Duration;

use millstream_buf::{Arena, BLOCK_BYTES, IoBuf, SizeClass};
use millstream_disk::{Completions, DiskQueue, File, Read};

use crate::cache::EntryId;

/// Files that are read at a time.
const FILLS_MAX: usize = 4;

/// How long the task waits before it looks again.
pub(crate) const LOOK_EVERY: Duration = Duration::from_micros(50);

struct Fill {
    entry: EntryId,
    file: File,
    len: usize,
    blocks: Vec<Option<IoBuf>>,
    missing: usize,
    failed: bool,
}

/// A file that has been read.
pub(crate) struct Filled {
    pub entry: EntryId,
    /// Its content; `None` if it could not be read whole.
    pub slices: Option<Rc<[IoBuf]>>,
}

pub(crate) struct Filler {
    queue: Box<dyn DiskQueue>,
    fills: [Option<Fill>; FILLS_MAX],
    done: Completions,
}

impl Filler {
    pub fn new(queue: Box<dyn DiskQueue>) -> Self {
        Self { queue, fills: std::array::from_fn(|_| None), done: Completions::new() }
    }

    pub fn is_idle(&self) -> bool {
        self.fills.iter().all(Option::is_none)
    }

    /// Starts reading a file. `false` if that is not possible now: too many others, no buffer, or
    /// the queue is full. Half of the arena's blocks stay free for transfers.
    pub fn start(&mut self, arena: &Arena, entry: EntryId, file: &File, len: usize) -> bool {
        let Some(index) = self.fills.iter().position(Option::is_none) else { return false };
        let count = len.div_ceil(BLOCK_BYTES);
        let (all, free) = arena.stats().blocks;
        if free < all / 2 + count {
            return false;
        }
        let blocks = vec![None; count];
        let mut fill = Fill { entry, file: file.clone(), len, blocks, missing: 0, failed: false };
        for block in 0..count {
            let offset = block * BLOCK_BYTES;
            let Some(buf) = arena.alloc(SizeClass::Block) else {
                fill.failed = true;
                break;
            };
            let read = Read {
                file: file.clone(),
                offset: offset as u64,
                len: (len - offset).min(BLOCK_BYTES),
                buf,
                token: (index << 32 | block) as u64,
            };
            if self.queue.submit(read).is_err() {
                fill.failed = true;
                break;
            }
            fill.missing += 1;
        }
        let started = fill.missing > 0;
        if started {
            if let Some(place) = self.fills.get_mut(index) {
                *place = Some(fill);
            }
            self.queue.kick();
        }
        started
    }

    /// Looks at the queue, and gives each file that is done to `filled`.
    pub fn poll(&mut self, mut filled: impl FnMut(Filled)) {
        self.queue.poll(&mut self.done);
        for completion in self.done.drain(..) {
            let (index, block) =
                ((completion.token >> 32) as usize, completion.token as u32 as usize);
            let Some(place) = self.fills.get_mut(index) else { continue };
            let Some(fill) = place else { continue };
            let want = fill.len.saturating_sub(block * BLOCK_BYTES).min(BLOCK_BYTES);
            match (completion.result, fill.blocks.get_mut(block)) {
                (Ok(len), Some(slot)) if len >= want => {
                    *slot = Some(completion.buf.freeze(0..want));
                }
                _ => fill.failed = true,
            }
            fill.missing = fill.missing.saturating_sub(1);
            if fill.missing == 0
                && let Some(fill) = place.take()
            {
                // What was half old and half new must not be kept.
                let whole = !fill.failed && fill.file.check_unchanged().is_ok();
                let slices = if whole { fill.blocks.into_iter().collect() } else { None };
                filled(Filled { entry: fill.entry, slices });
            }
        }
    }
}
