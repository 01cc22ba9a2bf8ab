//! Who owns a segment: the table of exact flows.

use std::net::Ipv4Addr;

/// The four-tuple of a connection, from our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    pub local: Ipv4Addr,
    pub remote: Ipv4Addr,
    pub local_port: u16,
    pub remote_port: u16,
}

/// A keyed hash: whoever does not know the key cannot choose flows that collide.
#[derive(Clone, Copy)]
pub(crate) struct FlowHasher {
    keys: [u64; 3],
}

impl FlowHasher {
    pub fn new(keys: [u64; 3]) -> Self {
        Self { keys: [keys[0], keys[1], keys[2] | 1] }
    }

    /// Two rounds of folded multiplication with secret operands.
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> u32 {
        let addresses = u64::from(key.local.to_bits()) << 32 | u64::from(key.remote.to_bits());
        let ports = u64::from(key.local_port) << 16 | u64::from(key.remote_port);
        let h = fold(addresses ^ self.keys[0], self.keys[1] ^ ports.rotate_left(32));
        let h = fold(h ^ ports, self.keys[2]);
        (h ^ (h >> 32)) as u32
    }
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Maps flows to connection numbers: open addressing, linear probing, at most half full, so a
/// look-up reads one cache line of 8-byte entries nearly always. Never grows.
///
/// The keys themselves lie in the connections; an entry holds 32 bits of the hash beside the
/// number, so a connection is touched only if it is (but for one in 2^32) the right one.
pub(crate) struct FlowTable {
    hasher: FlowHasher,
    /// `hash << 32 | number + 1`; zero is empty.
    entries: Box<[u64]>,
    len: usize,
}

impl FlowTable {
    pub fn new(hasher: FlowHasher, flows_max: usize) -> Self {
        let size = (flows_max.max(8) * 2).next_power_of_two();
        Self { hasher, entries: vec![0; size].into_boxed_slice(), len: 0 }
    }

    #[inline]
    fn slot(&self, hash: u32) -> usize {
        hash as usize & (self.entries.len() - 1)
    }

    /// The number of `key`'s connection; `is_key(number)` compares.
    #[inline]
    pub fn find(&self, key: &FlowKey, mut is_key: impl FnMut(u32) -> bool) -> Option<u32> {
        let hash = self.hasher.hash(key);
        let mask = self.entries.len() - 1;
        let mut at = self.slot(hash);
        loop {
            let entry = self.entries[at & mask];
            if entry == 0 {
                return None;
            }
            let number = entry as u32 - 1;
            if (entry >> 32) as u32 == hash && is_key(number) {
                return Some(number);
            }
            at += 1;
        }
    }

    /// Adds a flow that is not in the table. The caller keeps the number of flows below the
    /// maximum that it asked for.
    pub fn insert(&mut self, key: &FlowKey, number: u32) {
        debug_assert!(self.len * 2 < self.entries.len());
        let hash = self.hasher.hash(key);
        let mask = self.entries.len() - 1;
        let mut at = self.slot(hash);
        while self.entries[at & mask] != 0 {
            at += 1;
        }
        self.entries[at & mask] = u64::from(hash) << 32 | u64::from(number + 1);
        self.len += 1;
    }

    /// Removes a flow, and closes the gap so that no tombstones slow later look-ups.
    pub fn remove(&mut self, key: &FlowKey, number: u32) {
        let hash = self.hasher.hash(key);
        let mask = self.entries.len() - 1;
        let mut at = self.slot(hash);
        loop {
            let entry = self.entries[at & mask];
            if entry == 0 {
                return;
            }
            if entry as u32 - 1 == number {
                break;
            }
            at += 1;
        }
        let mut gap = at & mask;
        let mut next = (gap + 1) & mask;
        loop {
            let entry = self.entries[next];
            if entry == 0 {
                break;
            }
            // An entry may move back into the gap unless its home lies after it.
            let home = self.slot((entry >> 32) as u32);
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(gap) & mask) {
                self.entries[gap] = entry;
                gap = next;
            }
            next = (next + 1) & mask;
        }
        self.entries[gap] = 0;
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn key(n: u16) -> FlowKey {
        FlowKey {
            local: Ipv4Addr::new(198, 18, 0, 1),
            remote: Ipv4Addr::new(198, 18, (n >> 8) as u8, n as u8),
            local_port: 80,
            remote_port: n,
        }
    }

    proptest! {
        /// The table agrees with a map over any sequence of insertions and removals.
        #[test]
        fn agrees_with_a_map(ops in prop::collection::vec((any::<bool>(), 0u16..40), 0..400), keys in any::<[u64; 3]>()) {
            let mut table = FlowTable::new(FlowHasher::new(keys), 40);
            let mut model: HashMap<u16, u32> = HashMap::new();
            for (insert, n) in ops {
                let number = u32::from(n);
                if insert {
                    if model.insert(n, number).is_none() { table.insert(&key(n), number); }
                } else if model.remove(&n).is_some() {
                    table.remove(&key(n), number);
                }
                for probe in 0..40u16 {
                    let found = table.find(&key(probe), |number| number == u32::from(probe));
                    prop_assert_eq!(found, model.get(&probe).copied());
                }
            }
        }
    }

    #[test]
    fn sequential_flows_spread() {
        let table = FlowTable::new(FlowHasher::new([3, 0x9e37_79b9_7f4a_7c15, 77]), 1 << 12);
        let mut used = std::collections::HashSet::new();
        for n in 0..4096u16 {
            used.insert(table.slot(table.hasher.hash(&key(n))));
        }
        // 4096 balls in 8192 urns leave about 3223 urns hit; far fewer would mean clusters.
        assert!(used.len() > 3000, "{}", used.len());
    }
}
