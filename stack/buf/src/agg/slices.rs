//! The slices of an aggregate: in place while there are few, which is nearly always.

use std::collections::VecDeque;

use arrayvec::ArrayVec;

use crate::iobuf::IoBuf;

/// Slices that need no memory of their own: 64 KiB in blocks.
const FEW: usize = 4;

/// A queue of slices with two ends.
#[derive(Clone, Debug)]
pub(super) enum Slices {
    Few(ArrayVec<IoBuf, FEW>),
    Many(VecDeque<IoBuf>),
}

impl Default for Slices {
    fn default() -> Self {
        Self::Few(ArrayVec::new())
    }
}

impl Slices {
    pub fn push_back(&mut self, slice: IoBuf) {
        self.make_room();
        match self {
            Self::Few(few) => few.push(slice),
            Self::Many(many) => many.push_back(slice),
        }
    }

    pub fn push_front(&mut self, slice: IoBuf) {
        self.make_room();
        match self {
            Self::Few(few) => few.insert(0, slice),
            Self::Many(many) => many.push_front(slice),
        }
    }

    /// Sees to it that one more fits.
    fn make_room(&mut self) {
        if let Self::Few(few) = self
            && few.is_full()
        {
            *self = Self::Many(few.drain(..).collect());
        }
    }

    pub fn pop_front(&mut self) -> Option<IoBuf> {
        match self {
            Self::Few(few) => few.pop_at(0),
            Self::Many(many) => many.pop_front(),
        }
    }

    pub fn pop_back(&mut self) -> Option<IoBuf> {
        match self {
            Self::Few(few) => few.pop(),
            Self::Many(many) => many.pop_back(),
        }
    }

    pub fn front_mut(&mut self) -> Option<&mut IoBuf> {
        match self {
            Self::Few(few) => few.first_mut(),
            Self::Many(many) => many.front_mut(),
        }
    }

    pub fn back_mut(&mut self) -> Option<&mut IoBuf> {
        match self {
            Self::Few(few) => few.last_mut(),
            Self::Many(many) => many.back_mut(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &IoBuf> {
        let (front, back) = match self {
            Self::Few(few) => (few.as_slice(), &[][..]),
            Self::Many(many) => many.as_slices(),
        };
        front.iter().chain(back)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut IoBuf> {
        let (front, back) = match self {
            Self::Few(few) => (few.as_mut_slice(), &mut [][..]),
            Self::Many(many) => many.as_mut_slices(),
        };
        front.iter_mut().chain(back)
    }
}
