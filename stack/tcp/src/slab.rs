//! One array of nodes for the queues of all connections of a shard.

use millstream_buf::IoBuf;
use millstream_wire::tcp::SeqNumber;

/// No node.
pub(crate) const NIL: u32 = u32::MAX;

/// A slice in a queue.
#[derive(Debug)]
pub(crate) struct Node {
    /// `None` while the node is free.
    pub(crate) buf: Option<IoBuf>,
    /// Number of the slice's first byte.
    pub(crate) seq: SeqNumber,
    /// The node behind this one in its queue, or on the free list.
    pub(crate) next: u32,
    /// In the first node of a range of reassembly, and there alone: end, last node, next range,
    /// number of nodes, and when it last grew.
    pub(crate) range_end: SeqNumber,
    pub(crate) range_tail: u32,
    pub(crate) range_next: u32,
    pub(crate) range_nodes: u32,
    pub(crate) range_stamp: u32,
}

impl Node {
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.buf.as_ref().map_or(0, |buf| buf.len() as u32)
    }
}

/// The nodes of all send queues, receive queues and reassembly lists of a shard, allocated once.
///
/// When it is full, arriving data is dropped and counted, and sends are refused.
#[derive(Debug)]
pub struct SliceSlab {
    nodes: Vec<Node>,
    free: u32,
    used: usize,
}

impl SliceSlab {
    /// A slab of `capacity` nodes of 48 bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        let capacity = capacity.min(NIL as usize - 1);
        let nodes = (0..capacity)
            .map(|index| Node {
                buf: None,
                seq: SeqNumber(0),
                next: if index + 1 < capacity { index as u32 + 1 } else { NIL },
                range_end: SeqNumber(0),
                range_tail: NIL,
                range_next: NIL,
                range_nodes: 0,
                range_stamp: 0,
            })
            .collect();
        Self { nodes, free: if capacity > 0 { 0 } else { NIL }, used: 0 }
    }

    /// How many nodes it has.
    pub fn capacity(&self) -> usize {
        self.nodes.len()
    }

    /// How many nodes hold a slice.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Whether every node holds a slice.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.free == NIL
    }

    /// Takes a node for `buf`; gives it back if there is none.
    #[inline]
    pub(crate) fn insert(&mut self, buf: IoBuf, seq: SeqNumber) -> Result<u32, IoBuf> {
        let index = self.free;
        let Some(node) = self.nodes.get_mut(index as usize) else { return Err(buf) };
        self.free = node.next;
        self.used += 1;
        node.buf = Some(buf);
        node.seq = seq;
        node.next = NIL;
        Ok(index)
    }

    /// Frees a node; returns its slice and the node behind it.
    #[inline]
    pub(crate) fn remove(&mut self, index: u32) -> (Option<IoBuf>, u32) {
        let Some(node) = self.nodes.get_mut(index as usize) else { return (None, NIL) };
        let (buf, next) = (node.buf.take(), node.next);
        debug_assert!(buf.is_some(), "a free node was freed");
        node.next = self.free;
        self.free = index;
        self.used -= 1;
        (buf, next)
    }

    /// A node by index.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&Node> {
        self.nodes.get(index as usize)
    }

    /// A node by index.
    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Node> {
        self.nodes.get_mut(index as usize)
    }

    /// Frees a whole list.
    pub(crate) fn remove_list(&mut self, mut index: u32) {
        while index != NIL {
            index = self.remove(index).1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_and_empty_again() {
        let mut slab = SliceSlab::with_capacity(2);
        let first = slab.insert(IoBuf::from(vec![1]), SeqNumber(0)).unwrap();
        let second = slab.insert(IoBuf::from(vec![2]), SeqNumber(1)).unwrap();
        assert!(slab.is_full());
        assert_eq!(&*slab.insert(IoBuf::from(vec![3]), SeqNumber(2)).unwrap_err(), &[3]);
        slab.get_mut(first).unwrap().next = second;
        slab.remove_list(first);
        assert_eq!(slab.used(), 0);
        assert!(SliceSlab::with_capacity(0).is_full());
        assert_eq!(std::mem::size_of::<Node>(), 48);
    }
}
