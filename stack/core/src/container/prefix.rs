//! Filtered listeners: one port, several sockets, told apart by the client's address.
//!
//! The longest prefix that has the address wins. A search tries each length that is in use once, so
//! its cost is bounded by what was configured, whatever arrives.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    is_ipv6: bool,
    len: u8,
    /// The address, its first bit the highest of 128.
    bits: u128,
}

/// Why something is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Not of the form.
    #[error("`{0}` is not a prefix such as 198.18.0.0/16 or 2001:db8::/32")]
    Form(String),
    /// Bits behind the prefix are set.
    #[error("`{0}` has bits set behind its prefix; write {1}")]
    HostBits(String, Prefix),
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

fn bits_of(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(ip) => (false, u128::from(ip.to_bits()) << 96),
        IpAddr::V6(ip) => (true, ip.to_bits()),
    }
}

impl Prefix {
    /// The prefix of `len` bits of an address; `None` if the address has not so many.
    pub fn of(address: IpAddr, len: u8) -> Option<Self> {
        let (is_ipv6, bits) = bits_of(address);
        (len <= if is_ipv6 { 128 } else { 32 }).then(|| Self {
            is_ipv6,
            len,
            bits: bits & mask(len),
        })
    }

    /// Whether an address begins with it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (is_ipv6, bits) = bits_of(address);
        is_ipv6 == self.is_ipv6 && bits & mask(self.len) == self.bits
    }

    /// Whether all of `other` lies in it.
    fn covers(&self, other: &Self) -> bool {
        self.is_ipv6 == other.is_ipv6
            && self.len <= other.len
            && other.bits & mask(self.len) == self.bits
    }

    /// Bits.
    #[expect(clippy::len_without_is_empty, reason = "a length in bits, not of a collection")]
    pub fn len(&self) -> u8 {
        self.len
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address: IpAddr = if self.is_ipv6 {
            std::net::Ipv6Addr::from_bits(self.bits).into()
        } else {
            std::net::Ipv4Addr::from_bits((self.bits >> 96) as u32).into()
        };
        write!(f, "{address}/{}", self.len)
    }
}

impl FromStr for Prefix {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let form = || FilterError::Form(text.to_owned());
        let (address, len) = text.split_once('/').ok_or_else(form)?;
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let len: u8 = len.parse().map_err(|_| form())?;
        let prefix = Self::of(address, len).ok_or_else(form)?;
        if bits_of(address).1 != prefix.bits {
            return Err(FilterError::HostBits(text.to_owned(), prefix));
        }
        Ok(prefix)
    }
}

/// One filter hides another: no client would ever come to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shadowed(pub Prefix);

/// The listeners of one port by their clients' prefixes.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortFilters {
    /// In order.
    entries: Vec<(Prefix, u16)>,
    /// Lengths in use, the longest first, with the version of IP.
    lens: Vec<(bool, u8)>,
}

impl PortFilters {
    /// Adds the filter of a listener.
    ///
    /// # Errors
    /// [`Shadowed`]: the prefix that nobody would come to any more, this one or one that was there.
    pub fn insert(&mut self, prefix: Prefix, listener: u16) -> Result<(), Shadowed> {
        match self.entries.binary_search_by_key(&prefix, |entry| entry.0) {
            Ok(_) => return Err(Shadowed(prefix)),
            Err(at) => self.entries.insert(at, (prefix, listener)),
        }
        if let Some(hidden) = self.hidden() {
            self.remove(listener);
            return Err(Shadowed(hidden));
        }
        self.count_lens();
        Ok(())
    }

    /// Takes out the filter of a listener. Returns whether any is left.
    pub fn remove(&mut self, listener: u16) -> bool {
        self.entries.retain(|entry| entry.1 != listener);
        self.count_lens();
        !self.entries.is_empty()
    }

    fn count_lens(&mut self) {
        self.lens = self.entries.iter().map(|(prefix, _)| (prefix.is_ipv6, prefix.len)).collect();
        self.lens.sort_unstable_by_key(|(is_ipv6, len)| (*is_ipv6, u8::MAX - len));
        self.lens.dedup();
    }

    /// The listener that a client belongs to.
    pub fn find(&self, client: IpAddr) -> Option<u16> {
        let (is_ipv6, bits) = bits_of(client);
        self.lens.iter().filter(|entry| entry.0 == is_ipv6).find_map(|&(_, len)| {
            let wanted = Prefix { is_ipv6, len, bits: bits & mask(len) };
            let at = self.entries.binary_search_by_key(&wanted, |entry| entry.0).ok()?;
            Some(self.entries[at].1)
        })
    }

    /// A prefix that longer ones cover wholly.
    fn hidden(&self) -> Option<Prefix> {
        let all = || self.entries.iter().map(|entry| entry.0);
        all().find(|prefix| {
            let inside = || all().filter(|other| other != prefix && prefix.covers(other));
            let outermost = inside().filter(|other| {
                !inside().any(|between| between != *other && between.covers(other))
            });
            // In units of the 2^-127th part of the prefix; a 2^-128th part alone never fills it.
            let parts = |other: Prefix| {
                1u128.checked_shl(127 - u32::from((other.len - prefix.len).min(127)))
            };
            outermost.filter_map(parts).sum::<u128>() >= 1 << 127
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_are_read_and_written() {
        for text in ["198.18.0.0/16", "0.0.0.0/0", "198.18.0.7/32", "2001:db8::/32", "::/0"] {
            assert_eq!(prefix(text).to_string(), text);
        }
        for text in ["198.18.0.0", "198.18.0.0/33", "x/8", "2001:db8::/129", "198.18.0.0/-1"] {
            assert_eq!(text.parse::<Prefix>(), Err(FilterError::Form(text.to_owned())));
        }
        let error = "198.18.0.7/16".parse::<Prefix>().unwrap_err();
        assert!(error.to_string().contains("write 198.18.0.0/16"), "{error}");
    }

    #[test]
    fn the_longest_prefix_wins() {
        let mut filters = PortFilters::default();
        for (number, text) in
            ["0.0.0.0/0", "198.18.0.0/16", "198.18.7.0/24", "::/0"].iter().enumerate()
        {
            filters.insert(prefix(text), number as u16).unwrap();
        }
        let find = |text: &str| filters.find(text.parse().unwrap());
        assert_eq!(find("192.0.2.1"), Some(0));
        assert_eq!(find("198.18.1.1"), Some(1));
        assert_eq!(find("198.18.7.1"), Some(2));
        assert_eq!(find("2001:db8::1"), Some(3));
        assert!(filters.remove(0));
        assert_eq!(filters.find("192.0.2.1".parse().unwrap()), None);
    }

    #[test]
    fn a_filter_that_hides_another_is_refused() {
        let mut filters = PortFilters::default();
        filters.insert(prefix("198.18.0.0/24"), 0).unwrap();
        assert_eq!(
            filters.insert(prefix("198.18.0.0/24"), 1),
            Err(Shadowed(prefix("198.18.0.0/24")))
        );
        filters.insert(prefix("198.18.0.0/25"), 1).unwrap();
        filters.insert(prefix("198.18.0.128/26"), 2).unwrap();
        // With this, nobody is left for the first.
        let hidden = filters.insert(prefix("198.18.0.192/26"), 3);
        assert_eq!(hidden, Err(Shadowed(prefix("198.18.0.0/24"))));
        // It was not put in.
        assert_eq!(filters.find("198.18.0.200".parse().unwrap()), Some(0));
        filters.insert(prefix("::/0"), 4).unwrap();
        filters.insert(prefix("::/1"), 5).unwrap();
        assert_eq!(filters.insert(prefix("8000::/1"), 6), Err(Shadowed(prefix("::/0"))));
    }

    proptest! {
        /// As a search through all of them would find it; and each filter that was let in has a client.
        #[test]
        fn agrees_with_a_search_through_all(
            prefixes in prop::collection::vec((0u32..16, 0u8..=4), 1..12),
            clients in prop::collection::vec(0u32..16, 1..32),
        ) {
            let mut filters = PortFilters::default();
            let mut model = Vec::new();
            for (number, (bits, len)) in prefixes.into_iter().enumerate() {
                let address = IpAddr::V4((bits << 28).into());
                let prefix = Prefix::of(address, len).unwrap();
                if filters.insert(prefix, number as u16).is_ok() {
                    model.push((prefix, number as u16));
                }
            }
            let expected = |client: IpAddr| model.iter().filter(|(p, _)| p.contains(client))
                .max_by_key(|(p, _)| p.len()).map(|(_, n)| *n);
            let of = |bits: u32| IpAddr::V4((bits << 28).into());
            for bits in clients {
                prop_assert_eq!(filters.find(of(bits)), expected(of(bits)));
            }
            for (_, number) in &model {
                prop_assert!((0..16).any(|bits| filters.find(of(bits)) == Some(*number)));
            }
        }
    }
}
