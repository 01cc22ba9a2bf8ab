//! Who owns a segment: the table of exact flows.

use std::net::Ipv4Addr;

/// The four-tuple of a connection, from our side, as it lies in the headers of what the peer sends:
/// comparing and hashing it takes two words.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, packed(4))]
pub(crate) struct FlowKey {
    /// Source and destination of the IP header: the peer's address, then ours.
    addresses: u64,
    /// Source and destination port: the peer's, then ours.
    ports: u32,
}

impl FlowKey {
    pub fn new(local: Ipv4Addr, local_port: u16, remote: Ipv4Addr, remote_port: u16) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (remote.octets(), local.octets());
        let ([i, j], [k, l]) = (remote_port.to_be_bytes(), local_port.to_be_bytes());
        Self::from_headers(&[a, b, c, d, e, f, g, h], &[i, j, k, l])
    }

    /// From the address fields of the IP header and the port fields behind it.
    #[inline]
    pub fn from_headers(addresses: &[u8; 8], ports: &[u8; 4]) -> Self {
        Self { addresses: u64::from_ne_bytes(*addresses), ports: u32::from_ne_bytes(*ports) }
    }

    /// The key of an IPv6 flow, whose addresses are those of a numbered pair (see [`crate::pairs`]).
    /// Our address of an IPv4 flow is never 0.0.0.0, so both kinds differ.
    #[inline]
    pub fn of_pair(pair: u32, ports: &[u8; 4]) -> Self {
        let [a, b, c, d] = pair.to_ne_bytes();
        Self::from_headers(&[a, b, c, d, 0, 0, 0, 0], ports)
    }

    /// The key of a flow between the same addresses.
    pub fn with_ports(self, local: u16, remote: u16) -> Self {
        let ([a, b], [c, d]) = (remote.to_be_bytes(), local.to_be_bytes());
        Self { ports: u32::from_ne_bytes([a, b, c, d]), ..self }
    }

    /// Whether it is that of an IPv6 flow.
    #[inline]
    pub fn is_ipv6(&self) -> bool {
        let [.., a, b, c, d] = self.addresses.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d]) == 0
    }

    /// The number of the pair of addresses of an IPv6 flow.
    #[inline]
    pub fn pair(&self) -> Option<u32> {
        let [a, b, c, d, ..] = self.addresses.to_ne_bytes();
        self.is_ipv6().then(|| u32::from_ne_bytes([a, b, c, d]))
    }

    /// Both addresses as they lie in the IP header of what the peer sends.
    #[inline]
    pub fn addresses(&self) -> [u8; 8] {
        self.addresses.to_ne_bytes()
    }

    /// Source and destination of what we send, as they lie in its IP header.
    #[inline]
    pub fn addresses_out(&self) -> [u32; 2] {
        let [a, b, c, d, e, f, g, h] = self.addresses.to_ne_bytes();
        [u32::from_ne_bytes([e, f, g, h]), u32::from_ne_bytes([a, b, c, d])]
    }

    /// Source and destination port of what we send, as they lie in its header.
    #[inline]
    pub fn ports_out(&self) -> u32 {
        self.ports.rotate_left(16)
    }

    #[inline]
    pub fn remote(&self) -> Ipv4Addr {
        let [a, b, c, d, ..] = self.addresses.to_ne_bytes();
        Ipv4Addr::new(a, b, c, d)
    }

    #[inline]
    pub fn local(&self) -> Ipv4Addr {
        let [.., a, b, c, d] = self.addresses.to_ne_bytes();
        Ipv4Addr::new(a, b, c, d)
    }

    #[inline]
    pub fn remote_port(&self) -> u16 {
        let [a, b, ..] = self.ports.to_ne_bytes();
        u16::from_be_bytes([a, b])
    }

    #[inline]
    pub fn local_port(&self) -> u16 {
        let [.., a, b] = self.ports.to_ne_bytes();
        u16::from_be_bytes([a, b])
    }
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
        let (addresses, ports) = (key.addresses, u64::from(key.ports));
        let h = fold(addresses ^ self.keys[0], self.keys[1] ^ ports.rotate_left(32));
        let h = fold(h ^ ports, self.keys[2]);
        (h ^ (h >> 32)) as u32
    }

    /// As [`Self::hash`], of two IPv6 addresses.
    #[inline]
    pub fn hash_pair(&self, bytes: &[u8; 32]) -> u32 {
        let (words, _) = bytes.as_chunks::<8>();
        let h = words.iter().fold(self.keys[2], |h, word| {
            fold(h ^ u64::from_ne_bytes(*word) ^ self.keys[0], self.keys[1] ^ h.rotate_left(32))
        });
        let h = fold(h, self.keys[2]);
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

    /// Flows in the table.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
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
        let remote = Ipv4Addr::new(198, 18, (n >> 8) as u8, n as u8);
        FlowKey::new(Ipv4Addr::new(198, 18, 0, 1), 80, remote, n)
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
    fn a_key_gives_back_what_it_was_made_of() {
        let (ours, theirs) = (Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(192, 0, 2, 9));
        let key = FlowKey::new(ours, 80, theirs, 40_000);
        assert_eq!((key.local(), key.local_port()), (ours, 80));
        assert_eq!((key.remote(), key.remote_port()), (theirs, 40_000));
        assert!(!key.is_ipv6() && key.pair().is_none());
        let key = FlowKey::of_pair(77, &[0; 4]).with_ports(80, 40_000);
        assert_eq!((key.pair(), key.local_port(), key.remote_port()), (Some(77), 80, 40_000));
        assert_eq!(size_of::<FlowKey>(), 12);
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
