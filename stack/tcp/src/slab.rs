//! One array of nodes for the queues of all connections of a shard.

use millstream_buf::IoBuf;
use millstream_wire::tcp::SeqNumber;

use crate::flight::Flights;

/// No node.
pub(crate) const NIL: u32 = u32::MAX;

/// A slice in a queue.
#[derive(Debug)]
pub(crate) struct Node {
    /// `None` while the node is free, or [`VOID`].
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
    /// In a send queue: [`SEALED`], [`VOID`], [`KEPT`], or 0.
    pub(crate) range_stamp: u32,
}

/// The slice ends a record: nothing behind it shares a segment with it.
pub(crate) const SEALED: u32 = u32::MAX;

/// In a send queue: the bytes were sent and let go of. `range_nodes` says how many they are, and
/// `range_next` is not [`NIL`] if those from `range_end` on are wanted again.
pub(crate) const VOID: u32 = u32::MAX - 1;

/// In a send queue: the slice was let go of once and stays until it is acknowledged.
pub(crate) const KEPT: u32 = u32::MAX - 2;

impl Node {
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.buf.as_ref().map_or(self.range_nodes, |buf| buf.len() as u32)
    }
}

/// The nodes of all send queues, receive queues and reassembly lists of a shard, allocated once.
///
/// When it is full, arriving data is dropped and counted, and sends are refused. What came ahead of
/// order gets a quarter of it, so that peers that leave gaps cannot take it from all others.
#[derive(Debug)]
pub struct SliceSlab {
    nodes: Vec<Node>,
    free: u32,
    used: usize,
    ahead: usize,
    /// What is known about data in flight. It lives here since it is shared and bounded like the
    /// slices: as many flights as nodes suit data in flight, which is data in a send queue. Those
    /// connections whose congestion controllers measure keep theirs when idle; who gets none recovers
    /// by time-outs.
    pub(crate) flights: Flights,
}

impl SliceSlab {
    /// A slab of `capacity` nodes of 48 bytes, with memory set aside, and not touched before it is
    /// used, for what is known about data in flight: as many flights, and records of twice as many
    /// segments.
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
        let flights = Flights::with_capacity(capacity, 2 * capacity);
        Self { nodes, free: if capacity > 0 { 0 } else { NIL }, used: 0, ahead: 0, flights }
    }

    /// How many nodes it has.
    pub fn capacity(&self) -> usize {
        self.nodes.len()
    }

    /// How many nodes hold a slice.
    pub fn used(&self) -> usize {
        self.used
    }

    /// How many nodes hold a slice that came ahead of order; at most a quarter of all.
    pub fn ahead(&self) -> usize {
        self.ahead
    }

    /// How many connections have more than a segment in flight, or a loss to repair.
    pub fn flights_used(&self) -> usize {
        self.flights.used()
    }

    /// How many segments in flight are recorded.
    pub fn records_used(&self) -> usize {
        self.flights.records_used()
    }

    /// Whether every node holds a slice.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.free == NIL
    }

    /// Takes a node for `buf`; gives it back if there is none.
    #[inline(always)]
    pub(crate) fn insert(&mut self, buf: IoBuf, seq: SeqNumber) -> Result<u32, IoBuf> {
        let index = self.free;
        let Some(node) = self.nodes.get_mut(index as usize) else { return Err(buf) };
        self.free = node.next;
        self.used += 1;
        node.buf = Some(buf);
        node.seq = seq;
        node.next = NIL;
        node.range_stamp = 0;
        Ok(index)
    }

    /// As [`Self::insert`], for a slice ahead of order: refused too if those have had their share.
    pub(crate) fn insert_ahead(&mut self, buf: IoBuf, seq: SeqNumber) -> Result<u32, IoBuf> {
        if self.ahead >= self.nodes.len() / 4 {
            return Err(buf);
        }
        let index = self.insert(buf, seq)?;
        self.ahead += 1;
        Ok(index)
    }

    /// `count` nodes of [`Self::insert_ahead`] are free again, or hold what is now in order.
    pub(crate) fn no_longer_ahead(&mut self, count: u32) {
        debug_assert!(self.ahead >= count as usize);
        self.ahead = self.ahead.saturating_sub(count as usize);
    }

    /// If the slice of `second` lies right behind that of `first` in the same buffer, makes one of
    /// the two and frees `second`. Returns the node that was behind it.
    pub(crate) fn join(&mut self, first: u32, second: u32) -> Option<u32> {
        let next = self.get(second)?.buf.clone()?;
        let joined = self.get_mut(first)?.buf.as_mut()?.try_join(&next);
        joined.then(|| self.remove(second).1)
    }

    /// Frees a node; returns its slice and the node behind it.
    #[inline]
    pub(crate) fn remove(&mut self, index: u32) -> (Option<IoBuf>, u32) {
        let Some(node) = self.nodes.get_mut(index as usize) else { return (None, NIL) };
        let (buf, next) = (node.buf.take(), node.next);
        debug_assert!(buf.is_some() || node.range_stamp == VOID, "a free node was freed");
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

    #[test]
    fn a_quarter_is_for_what_is_ahead() {
        let mut slab = SliceSlab::with_capacity(8);
        let insert = |slab: &mut SliceSlab| slab.insert_ahead(IoBuf::from(vec![1]), SeqNumber(0));
        assert!(insert(&mut slab).is_ok() && insert(&mut slab).is_ok());
        assert!(insert(&mut slab).is_err());
        slab.no_longer_ahead(1);
        assert!(insert(&mut slab).is_ok());
        assert_eq!((slab.ahead(), slab.used()), (2, 3));
    }
}
