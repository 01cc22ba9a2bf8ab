//! The addresses of IPv6 connections. A connection's [`FlowKey`] has room for those of IPv4; of an
//! IPv6 connection it holds the number of a pair of addresses that is kept here once, however many
//! connections both ends have. So all that handles keys need not know of families.

use std::net::Ipv6Addr;

use crate::flow::{FlowHasher, FlowKey};

/// The address fields of the IPv6 header of what the peer sends: its address, then ours.
pub(crate) type PairBytes = [u8; 32];

const NIL: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Slot {
    bytes: PairBytes,
    /// Holders; of a free slot the next free one.
    holders: u32,
}

/// Pairs of addresses by number, counted. Takes all its memory at the beginning.
pub(crate) struct Pairs {
    hasher: FlowHasher,
    slots: Vec<Slot>,
    free: u32,
    /// Numbers plus one, by hash: open addressing, linear probing, at most half full.
    table: Box<[u32]>,
    max: usize,
}

impl Pairs {
    /// Room for as many pairs as there may be connections, in TIME_WAIT or not, and one that is just
    /// being looked at.
    pub fn new(hasher: FlowHasher, connections: usize) -> Self {
        let max = connections + 1;
        let table = vec![0; (max.max(8) * 2).next_power_of_two()].into_boxed_slice();
        Self { hasher, slots: Vec::with_capacity(max), free: NIL, table, max }
    }

    /// For a shard without IPv6.
    pub fn none(hasher: FlowHasher) -> Self {
        Self { hasher, slots: Vec::new(), free: NIL, table: Box::default(), max: 0 }
    }

    /// Bytes that a connection takes here.
    pub const fn bytes_each() -> usize {
        size_of::<Slot>() + 2 * size_of::<u32>()
    }

    fn home(&self, bytes: &PairBytes) -> usize {
        self.hasher.hash_pair(bytes) as usize & self.table.len().wrapping_sub(1)
    }

    /// The number of a pair that is known.
    #[inline]
    pub fn find(&self, bytes: &PairBytes) -> Option<u32> {
        let mask = self.table.len().wrapping_sub(1);
        let mut at = self.home(bytes);
        loop {
            let number = self.table.get(at)?.checked_sub(1)?;
            if self.slots.get(number as usize).is_some_and(|slot| slot.bytes == *bytes) {
                return Some(number);
            }
            at = (at + 1) & mask;
        }
    }

    /// The number of a pair, which the caller holds from now on; `None` if there is no room.
    pub fn acquire(&mut self, bytes: &PairBytes) -> Option<u32> {
        if let Some(number) = self.find(bytes) {
            self.retain(number);
            return Some(number);
        }
        let number = match self.slots.get(self.free as usize) {
            Some(slot) => std::mem::replace(&mut self.free, slot.holders),
            None if self.slots.len() < self.max => {
                self.slots.push(Slot { bytes: *bytes, holders: 0 });
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        self.slots[number as usize] = Slot { bytes: *bytes, holders: 1 };
        let mask = self.table.len() - 1;
        let mut at = self.home(bytes);
        while self.table[at] != 0 {
            at = (at + 1) & mask;
        }
        self.table[at] = number + 1;
        Some(number)
    }

    /// One more holds a pair.
    pub fn retain(&mut self, number: u32) {
        if let Some(slot) = self.slots.get_mut(number as usize) {
            slot.holders += 1;
        }
    }

    /// One fewer holds a pair; the last one frees it.
    pub fn release(&mut self, number: u32) {
        let Some(slot) = self.slots.get_mut(number as usize) else { return };
        slot.holders = slot.holders.saturating_sub(1);
        if slot.holders > 0 {
            return;
        }
        let bytes = slot.bytes;
        let mask = self.table.len() - 1;
        let mut gap = self.home(&bytes);
        while self.table[gap] != number + 1 {
            if self.table[gap] == 0 {
                return;
            }
            gap = (gap + 1) & mask;
        }
        // Closes the gap, so that no tombstones slow later look-ups.
        let mut next = (gap + 1) & mask;
        while let Some(other) = self.table[next].checked_sub(1) {
            let home = self.home(&self.slots[other as usize].bytes);
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(gap) & mask) {
                self.table[gap] = self.table[next];
                gap = next;
            }
            next = (next + 1) & mask;
        }
        self.table[gap] = 0;
        self.slots[number as usize].holders = self.free;
        self.free = number;
    }

    /// The pair of a key that has one.
    #[inline]
    pub fn of(&self, key: &FlowKey) -> Option<&PairBytes> {
        self.slots.get(key.pair()? as usize).map(|slot| &slot.bytes)
    }

    /// Our address and the peer's.
    pub fn addresses(&self, key: &FlowKey) -> Option<(Ipv6Addr, Ipv6Addr)> {
        let [remote, local] = millstream_wire::ipv6::split_addresses(self.of(key)?);
        Some((local, remote))
    }
}

/// The pair of the packets that `remote` sends to `local`.
pub(crate) fn pair_bytes(local: Ipv6Addr, remote: Ipv6Addr) -> PairBytes {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&remote.octets());
    bytes[16..].copy_from_slice(&local.octets());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn no_ipv6_no_memory() {
        let mut pairs = Pairs::none(FlowHasher::new([1, 2, 3]));
        assert_eq!((pairs.find(&[0; 32]), pairs.acquire(&[0; 32])), (None, None));
    }

    proptest! {
        /// Counts and numbers agree with a map; a full table refuses; nothing is lost in a gap.
        #[test]
        fn agrees_with_a_map(ops in prop::collection::vec((0u8..24, any::<bool>()), 0..300)) {
            let mut pairs = Pairs::new(FlowHasher::new([1, 2, 3]), 11);
            let mut model: HashMap<u8, (u32, u32)> = HashMap::new();
            for (n, acquire) in ops {
                let bytes = pair_bytes(Ipv6Addr::from_bits(1), Ipv6Addr::from_bits(n.into()));
                if acquire {
                    match pairs.acquire(&bytes) {
                        Some(number) => {
                            let entry = model.entry(n).or_insert((number, 0));
                            prop_assert_eq!(entry.0, number);
                            entry.1 += 1;
                        }
                        None => prop_assert!(model.len() == 12 && !model.contains_key(&n)),
                    }
                } else if let Some(entry) = model.get_mut(&n) {
                    pairs.release(entry.0);
                    entry.1 -= 1;
                    if entry.1 == 0 { model.remove(&n); }
                }
                for n in 0..24u8 {
                    let bytes = pair_bytes(Ipv6Addr::from_bits(1), Ipv6Addr::from_bits(n.into()));
                    prop_assert_eq!(pairs.find(&bytes), model.get(&n).map(|e| e.0));
                }
            }
        }
    }
}
