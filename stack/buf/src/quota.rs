//! Who pays for buffers.

use std::cell::Cell;
use std::rc::Rc;

use crate::arena::{Arena, SizeClass};
use crate::header::BufHeader;
use crate::iobuf::IoBufMut;
use crate::{BLOCK_BYTES, FRAME_BYTES};

/// A bound on the bytes of buffers that one principal may hold at a time (a resource container's
/// memory, Banga et al., OSDI '99). Cloning gives another handle on the same account.
///
/// A buffer is charged in full when it is taken and refunded when its last handle is gone, whoever
/// holds that by then.
#[derive(Clone, Debug, Default)]
pub struct Quota(Rc<Account>);

#[derive(Debug, Default)]
struct Account {
    limit_bytes: Cell<usize>,
    used_bytes: Cell<usize>,
    refused: Cell<u64>,
}

impl Quota {
    /// An account that may hold `limit_bytes`.
    pub fn new(limit_bytes: usize) -> Self {
        Self(Rc::new(Account { limit_bytes: Cell::new(limit_bytes), ..Account::default() }))
    }

    /// Bytes that may be held.
    pub fn limit_bytes(&self) -> usize {
        self.0.limit_bytes.get()
    }

    /// Sets the bound. What is held beyond a lower one stays; nothing more is taken until enough has
    /// come back.
    pub fn set_limit_bytes(&self, limit_bytes: usize) {
        self.0.limit_bytes.set(limit_bytes);
    }

    /// Bytes of buffers that are held.
    pub fn used_bytes(&self) -> usize {
        self.0.used_bytes.get()
    }

    /// Buffers that were refused because of the bound.
    pub fn refused(&self) -> u64 {
        self.0.refused.get()
    }
}

/// Which buffer of an arena is charged to whom.
pub(crate) struct Charges {
    accounts: Box<[Cell<Option<Rc<Account>>>]>,
    /// Buffers that are charged now: without any, freeing looks no further.
    charged: Cell<u32>,
}

impl Charges {
    pub(crate) fn new(buffers: usize) -> Self {
        let accounts = std::iter::repeat_with(|| Cell::new(None)).take(buffers).collect();
        Self { accounts, charged: Cell::new(0) }
    }

    /// The buffer is free: whoever paid for it gets his bytes back.
    #[inline]
    pub(crate) fn refund(&self, header: &BufHeader) {
        if self.charged.get() > 0
            && let Some(account) = self.accounts.get(header.index as usize).and_then(Cell::take)
        {
            self.charged.set(self.charged.get() - 1);
            account.used_bytes.set(account.used_bytes.get() - header.capacity as usize);
        }
    }
}

impl Arena {
    /// As [`Self::alloc`], charged to `quota` until the buffer is free again. `None` also if that would
    /// exceed its bound.
    pub fn alloc_charged(&self, class: SizeClass, quota: &Quota) -> Option<IoBufMut> {
        let bytes = match class {
            SizeClass::Frame => FRAME_BYTES,
            SizeClass::Block => BLOCK_BYTES,
        };
        let used = quota.0.used_bytes.get();
        if used + bytes > quota.0.limit_bytes.get() {
            // What others have given back may be this account's.
            if self.reclaim() == 0 || quota.0.used_bytes.get() + bytes > quota.0.limit_bytes.get() {
                quota.0.refused.set(quota.0.refused.get() + 1);
                return None;
            }
        }
        let buf = self.alloc(class)?;
        let charges = &self.inner().charges;
        // SAFETY: the header lives as long as the handle does.
        let index = unsafe { buf.header().as_ref().index };
        if let Some(place) = charges.accounts.get(index as usize) {
            place.set(Some(Rc::clone(&quota.0)));
            charges.charged.set(charges.charged.get() + 1);
            quota.0.used_bytes.set(quota.0.used_bytes.get() + bytes);
        }
        Some(buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ArenaConfig, HugePages};

    #[test]
    fn charges_follow_the_buffer_and_come_back() {
        let arena = Arena::new(&ArenaConfig { frames: 4, blocks: 4, huge_pages: HugePages::Never })
            .unwrap();
        let (a, b) = (Quota::new(2 * FRAME_BYTES), Quota::new(BLOCK_BYTES));
        let first = arena.alloc_charged(SizeClass::Frame, &a).unwrap().freeze(0..9);
        let second = arena.alloc_charged(SizeClass::Frame, &a).unwrap();
        assert!(arena.alloc_charged(SizeClass::Frame, &a).is_none(), "beyond the bound");
        assert!(arena.alloc(SizeClass::Frame).is_some(), "others are not concerned");
        let block = arena.alloc_charged(SizeClass::Block, &b).unwrap();
        assert_eq!((a.used_bytes(), b.used_bytes(), a.refused()), (4096, BLOCK_BYTES, 1));

        let sent = first.slice(2..5);
        drop(first);
        assert_eq!(a.used_bytes(), 4096, "an output still holds the buffer");
        drop(sent);
        drop(second);
        drop(block);
        assert_eq!((a.used_bytes(), b.used_bytes()), (0, 0));
        // The same buffers, charged to nobody now.
        let plain = arena.alloc(SizeClass::Block);
        drop(plain);
        assert_eq!(b.used_bytes(), 0);
        assert!(arena.alloc_charged(SizeClass::Frame, &a).is_some());
    }

    #[test]
    fn a_lower_bound_counts_from_now_on() {
        let arena = Arena::new(&ArenaConfig { frames: 4, blocks: 0, huge_pages: HugePages::Never })
            .unwrap();
        let quota = Quota::new(4 * FRAME_BYTES);
        let held: Vec<_> =
            (0..3).map(|_| arena.alloc_charged(SizeClass::Frame, &quota).unwrap()).collect();
        quota.set_limit_bytes(FRAME_BYTES);
        assert!(arena.alloc_charged(SizeClass::Frame, &quota).is_none());
        drop(held);
        assert!(arena.alloc_charged(SizeClass::Frame, &quota).is_some());
    }
}
