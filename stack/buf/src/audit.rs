//! Looking for buffers that are out and should not be, and for those that came back twice.

use crate::arena::{Arena, SizeClass};

/// A buffer that somebody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its size.
    pub class: SizeClass,
    /// Its number in the arena.
    pub index: u32,
    /// Handles on it.
    pub references: u32,
    /// How often it was handed out or written in place: the same in a second audit if it has not come
    /// back in between.
    pub generation: u32,
}

/// What [`Arena::audit`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Buffers that are out, by number. After all handles should be gone these are leaks.
    pub held: Vec<Held>,
    /// Numbers of buffers that are on the free list twice, or there while there are handles on them:
    /// something came back twice.
    pub freed_twice: Vec<u32>,
    /// Numbers of buffers that nobody holds and that are not free either.
    pub lost: Vec<u32>,
}

impl Audit {
    /// Whether all buffers are free, each once.
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

impl Arena {
    /// Compares the free lists with the counts of references. Looks at every buffer: for tests, and for
    /// people who look for a leak.
    pub fn audit(&self) -> Audit {
        self.reclaim();
        let inner = self.inner();
        let mut free = vec![0_u32; inner.headers.len()];
        for list in [&inner.free_frames, &inner.free_blocks] {
            for &index in list.borrow().iter() {
                free[index as usize] += 1;
            }
        }
        let mut audit = Audit::default();
        for (header, free) in inner.headers.iter().zip(free) {
            let references = header.refs.get();
            match (references, free) {
                (0, 1) => {}
                (0, 0) => audit.lost.push(header.index),
                (_, 0) => audit.held.push(Held {
                    class: inner.class_of(header),
                    index: header.index,
                    references,
                    generation: header.generation(),
                }),
                _ => audit.freed_twice.push(header.index),
            }
        }
        audit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ArenaConfig, HugePages};

    fn arena() -> Arena {
        Arena::new(&ArenaConfig { frames: 3, blocks: 2, huge_pages: HugePages::Never }).unwrap()
    }

    #[test]
    fn a_leak_is_named() {
        let arena = arena();
        assert!(arena.audit().is_clean());
        let buf = arena.alloc(SizeClass::Block).unwrap().freeze(0..10);
        let forgotten = buf.clone();
        drop(buf);
        std::mem::forget(forgotten);
        let audit = arena.audit();
        let [held] = audit.held[..] else { panic!("{audit:?}") };
        assert_eq!((held.class, held.references), (SizeClass::Block, 1));
        assert!(audit.freed_twice.is_empty() && audit.lost.is_empty());
        assert_eq!(arena.audit(), audit, "the same generation: it has not come back");
    }

    #[test]
    fn a_double_free_is_named() {
        let arena = arena();
        let held = arena.alloc(SizeClass::Frame).unwrap();
        // SAFETY: the header lives as long as the handle.
        let index = unsafe { held.header().as_ref().index };
        // What a second release of one reference would do.
        arena.inner().free_frames.borrow_mut().push(index);
        assert_eq!(arena.audit().freed_twice, [index]);
        arena.inner().free_frames.borrow_mut().pop();
        drop(held);
        assert!(arena.audit().is_clean());
        let list = arena.inner().free_frames.take();
        assert_eq!(arena.audit().lost.len(), 3, "nobody holds them and they are not free");
        arena.inner().free_frames.replace(list);
        assert!(arena.audit().is_clean());
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    #[cfg(debug_assertions)]
    fn giving_a_reference_back_twice_is_caught() {
        let arena = arena();
        let buf = arena.alloc(SizeClass::Frame).unwrap();
        let header = buf.header();
        drop(buf);
        // SAFETY: not allowed, which is the point; the header itself lives as long as the arena, and the
        // debug build stops before anything is done.
        unsafe { crate::release_any_thread(header) };
    }
}
