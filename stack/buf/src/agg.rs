//! Aggregates: ordered lists of slices.

use crate::iobuf::IoBuf;

mod edit;
mod slices;

pub use edit::NoBuffer;
pub(crate) use edit::fresh;
use slices::Slices;

/// An ordered list of slices that reads as one run of bytes (IO-Lite's aggregate).
#[derive(Clone, Debug, Default)]
pub struct Agg {
    slices: Slices,
    len: usize,
}

impl Agg {
    /// An empty aggregate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes in all slices.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a slice at the end, merged with the last one where they are neighbours.
    pub fn append(&mut self, buf: IoBuf) {
        if buf.is_empty() {
            return;
        }
        self.len += buf.len();
        if !self.slices.back_mut().is_some_and(|last| last.try_join(&buf)) {
            self.slices.push_back(buf);
        }
    }

    /// Adds a slice at the front.
    pub fn prepend(&mut self, buf: IoBuf) {
        if !buf.is_empty() {
            self.len += buf.len();
            self.slices.push_front(buf);
        }
    }

    /// Adds all of `other` at the end.
    pub fn concatenate(&mut self, mut other: Agg) {
        while let Some(slice) = other.pop_front() {
            self.append(slice);
        }
    }

    /// Splits off the first `at` bytes.
    ///
    /// # Panics
    /// If it is shorter.
    pub fn split_to(&mut self, at: usize) -> Agg {
        assert!(at <= self.len);
        let mut front = Agg::new();
        while front.len < at {
            let Some(mut slice) = self.slices.pop_front() else { break };
            let want = at - front.len;
            if slice.len() > want {
                front.append(slice.split_to(want));
                self.slices.push_front(slice);
            } else {
                front.append(slice);
            }
        }
        self.len -= at;
        front
    }

    /// Takes the first slice.
    pub fn pop_front(&mut self) -> Option<IoBuf> {
        let slice = self.slices.pop_front()?;
        self.len -= slice.len();
        Some(slice)
    }

    /// The slices in order.
    pub fn slices(&self) -> impl Iterator<Item = &IoBuf> {
        self.slices.iter()
    }

    /// The bytes in one vector; a copy, for tests and small things.
    pub fn to_vec(&self) -> Vec<u8> {
        self.slices().flat_map(|slice| slice.iter().copied()).collect()
    }
}

impl From<IoBuf> for Agg {
    fn from(buf: IoBuf) -> Self {
        let mut agg = Self::new();
        agg.append(buf);
        agg
    }
}

impl FromIterator<IoBuf> for Agg {
    fn from_iter<I: IntoIterator<Item = IoBuf>>(bufs: I) -> Self {
        let mut agg = Self::new();
        bufs.into_iter().for_each(|buf| agg.append(buf));
        agg
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_vector(ops in prop::collection::vec((0u8..4, prop::collection::vec(any::<u8>(), 0..50), 0usize..200), 0..30)) {
            let mut agg = Agg::new();
            let mut model: Vec<u8> = Vec::new();
            for (op, bytes, at) in ops {
                match op {
                    0 => { agg.append(bytes.as_slice().into()); model.extend(&bytes); }
                    1 => { agg.prepend(bytes.as_slice().into()); model.splice(0..0, bytes); }
                    2 => { agg.concatenate(IoBuf::from(bytes.as_slice()).into()); model.extend(&bytes); }
                    _ => {
                        let at = at % (model.len() + 1);
                        let front = agg.split_to(at).to_vec();
                        prop_assert_eq!(front, model.drain(..at).collect::<Vec<_>>());
                    }
                }
                prop_assert_eq!(agg.len(), model.len());
                prop_assert_eq!(agg.to_vec(), model.clone());
            }
        }
    }
}
