//! Changing aggregates whose slices never change.

use std::ops::Range;

use super::Agg;
use crate::arena::{Arena, SizeClass};
use crate::iobuf::IoBuf;
use crate::{BLOCK_BYTES, FRAME_BYTES};

/// No buffer was free for bytes that had to be stored. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no buffer is free; wait until some come back")]
pub struct NoBuffer;

impl Agg {
    /// Shortens it to `len` bytes; longer ones have no effect.
    pub fn truncate(&mut self, len: usize) {
        while self.len > len {
            let Some(last) = self.slices.back_mut() else { return };
            let excess = self.len - len;
            if last.len() > excess {
                last.truncate(last.len() - excess);
                self.len = len;
            } else {
                self.len -= last.len();
                self.slices.pop_back();
            }
        }
    }

    /// Drops the first `count` bytes.
    ///
    /// # Panics
    /// If it is shorter.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len);
        let mut left = count;
        while left > 0 {
            let Some(first) = self.slices.front_mut() else { return };
            if first.len() > left {
                first.advance(left);
                left = 0;
            } else {
                left -= first.len();
                self.slices.pop_front();
            }
        }
        self.len -= count;
    }

    /// Another aggregate of bytes `range`, on the same buffers.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn slice(&self, range: Range<usize>) -> Agg {
        assert!(range.start <= range.end && range.end <= self.len);
        let mut part = Agg::new();
        let mut start = 0;
        for slice in self.slices.iter() {
            let end = start + slice.len();
            let (from, to) = (range.start.clamp(start, end), range.end.clamp(start, end));
            if from < to {
                part.append(slice.slice(from - start..to - start));
            }
            start = end;
        }
        part
    }

    /// Puts `bytes` in place of as many from `at` on: they are stored in a fresh buffer, which is linked
    /// in where the old ones were (IO-Lite's mutation, OSDI '99, section 3.2). Whoever holds the old
    /// slices goes on seeing them. Costs a copy of `bytes` and a slice or two, whatever the length of the
    /// aggregate; for changes all over it, a copy of the whole is cheaper.
    ///
    /// # Errors
    /// [`NoBuffer`]
    ///
    /// # Panics
    /// If the bytes do not lie inside.
    pub fn mutate(&mut self, arena: &Arena, at: usize, bytes: &[u8]) -> Result<(), NoBuffer> {
        assert!(at <= self.len && bytes.len() <= self.len - at);
        let fresh = store(arena, bytes)?;
        let mut behind = std::mem::take(self);
        *self = behind.split_to(at);
        behind.advance(bytes.len());
        self.concatenate(fresh);
        self.concatenate(behind);
        Ok(())
    }

    /// The slices, to be put in place of by others of the same length.
    pub(crate) fn slices_mut(&mut self) -> impl Iterator<Item = &mut IoBuf> {
        self.slices.iter_mut()
    }

    /// Copies bytes from `at` on into `out`; returns how many there were.
    pub fn copy_to(&self, at: usize, out: &mut [u8]) -> usize {
        let (mut skip, mut done) = (at, 0);
        for slice in self.slices.iter() {
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            let from = &slice[skip..];
            let count = from.len().min(out.len() - done);
            out[done..done + count].copy_from_slice(&from[..count]);
            done += count;
            skip = 0;
            if done == out.len() {
                break;
            }
        }
        done
    }

    /// Copies all of it into fresh buffers.
    ///
    /// # Errors
    /// [`NoBuffer`]
    pub fn duplicate(&self, arena: &Arena) -> Result<Agg, NoBuffer> {
        let mut copy = Agg::new();
        let mut done = 0;
        while done < self.len {
            let (mut buf, capacity) = fresh(arena, self.len - done)?;
            let count = self.copy_to(done, &mut buf[..capacity.min(self.len - done)]);
            copy.append(buf.freeze(0..count));
            done += count;
        }
        Ok(copy)
    }
}

/// A buffer of the size that suits `len` bytes, or of the other if that is what there is.
pub(crate) fn fresh(arena: &Arena, len: usize) -> Result<(crate::IoBufMut, usize), NoBuffer> {
    let (fitting, other) = if len > FRAME_BYTES {
        (SizeClass::Block, SizeClass::Frame)
    } else {
        (SizeClass::Frame, SizeClass::Block)
    };
    let buf = arena.alloc(fitting).or_else(|| arena.alloc(other)).ok_or(NoBuffer)?;
    let capacity = buf.len();
    debug_assert!(capacity == FRAME_BYTES || capacity == BLOCK_BYTES);
    Ok((buf, capacity))
}

/// Copies bytes into fresh buffers.
pub(crate) fn store(arena: &Arena, bytes: &[u8]) -> Result<Agg, NoBuffer> {
    let mut agg = Agg::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (mut buf, capacity) = fresh(arena, rest.len())?;
        let count = rest.len().min(capacity);
        buf[..count].copy_from_slice(&rest[..count]);
        agg.append(buf.freeze(0..count));
        rest = &rest[count..];
    }
    Ok(agg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ArenaConfig, HugePages};
    use proptest::prelude::*;

    proptest! {
        /// Every operation gives what it gives on a vector, old holders see old bytes, and all buffers
        /// come home.
        #[test]
        fn edits_agree_with_a_vector(
            len in 1_usize..40_000,
            ops in prop::collection::vec((0_u8..5, any::<u16>(), any::<u16>(), any::<u8>()), 1..20),
        ) {
            let arena =
                Arena::new(&ArenaConfig { frames: 64, blocks: 64, huge_pages: HugePages::Never }).unwrap();
            {
                let mut model: Vec<u8> = (0..len).map(|at| (at * 31) as u8).collect();
                let mut agg = store(&arena, &model).unwrap();
                let mut held: Vec<(Agg, Vec<u8>)> = Vec::new();
                for (op, a, b, fill) in ops {
                    let at = usize::from(a) % (model.len() + 1);
                    let count = usize::from(b) % (model.len() - at + 1);
                    match op {
                        0 => { agg.truncate(at); model.truncate(at); }
                        1 => { agg.advance(count); model.drain(..count); }
                        2 => held.push((agg.slice(at..at + count), model[at..at + count].to_vec())),
                        3 => {
                            let bytes = vec![fill; count.min(5_000)];
                            if agg.mutate(&arena, at, &bytes).is_ok() {
                                model[at..at + bytes.len()].copy_from_slice(&bytes);
                            }
                        }
                        _ => if let Ok(copy) = agg.duplicate(&arena) {
                            held.push((std::mem::replace(&mut agg, copy), model.clone()));
                        },
                    }
                    prop_assert_eq!(agg.len(), model.len());
                    prop_assert_eq!(agg.to_vec(), &model[..]);
                    let mut part = vec![0; count];
                    let copied = agg.copy_to(at.min(model.len()), &mut part);
                    prop_assert_eq!(&part[..copied], &model[at.min(model.len())..][..copied]);
                    for (old, bytes) in &held {
                        prop_assert_eq!(&old.to_vec(), bytes);
                    }
                    held.truncate(6);
                }
            }
            prop_assert!(arena.audit().is_clean());
        }
    }

    #[test]
    fn a_mutation_copies_only_what_is_new() {
        let arena = Arena::new(&ArenaConfig { frames: 1, blocks: 2, huge_pages: HugePages::Never })
            .unwrap();
        let mut agg = store(&arena, &[7; 20_000]).unwrap();
        let cached = agg.clone();
        assert_eq!(arena.free(SizeClass::Frame), 1, "blocks are taken");
        agg.mutate(&arena, 10_000, b"new").unwrap();
        assert_eq!(arena.free(SizeClass::Frame), 0, "one frame for three bytes");
        assert_eq!(agg.slices().count(), cached.slices().count() + 2);
        assert_eq!(agg.mutate(&arena, 0, b"x"), Err(NoBuffer));
        assert_eq!(cached.to_vec(), [7; 20_000]);
    }
}
