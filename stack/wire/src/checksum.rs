//! The Internet checksum: RFC 1071, with incremental update by RFC 1624.

use core::net::{Ipv4Addr, Ipv6Addr};

/// A running one's-complement sum of 16-bit words.
///
/// Bytes may come in pieces of any length: an odd piece leaves the next one at an odd offset, and
/// the sum accounts for it (RFC 1071 section 2(B)). Numbers ([`Self::add_u16`] and the like) and
/// pseudo-headers count as standing at even offsets, whatever bytes came before them.
///
/// Words are summed in the machine's byte order and swapped once at the end, as RFC 1071 section
/// 2(B) shows to be right.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// The sum modulo 2^64 - 1, machine byte order.
    acc: u64,
    /// The next byte stands at an odd offset.
    odd: bool,
}

impl Sum {
    /// The sum of nothing.
    #[inline]
    pub const fn new() -> Self {
        Self { acc: 0, odd: false }
    }

    /// The sum over the pseudo-header of TCP and UDP over IPv4 (RFC 9293 section 3.1).
    ///
    /// `len` is the bytes of the transport header and its payload.
    #[inline]
    pub fn ipv4_pseudo(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len: u16) -> Self {
        let mut sum = Self::new();
        sum.add_u32(src.to_bits());
        sum.add_u32(dst.to_bits());
        // Zero, protocol, length: one word of 32 bits.
        sum.add_u32(u32::from(protocol) << 16 | u32::from(len));
        sum
    }

    /// The sum over the pseudo-header of upper layers over IPv6 (RFC 8200 section 8.1).
    ///
    /// `len` is the bytes of the upper-layer header and its payload.
    #[inline]
    pub fn ipv6_pseudo(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, len: u32) -> Self {
        let mut sum = Self::new();
        sum.add_bytes(&src.octets());
        sum.add_bytes(&dst.octets());
        sum.add_u32(len);
        sum.add_u32(u32::from(next_header));
        sum
    }

    /// Adds bytes that follow those added before.
    #[inline]
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        let part = sum_words(bytes);
        if self.odd {
            self.accumulate(u64::from(fold(part).swap_bytes()));
        } else {
            self.accumulate(part);
        }
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Adds `len` bytes that follow those added before and whose sum ([`Self::fold`]) is known.
    #[inline]
    pub fn add_known(&mut self, folded: u16, len: usize) {
        let word = folded.to_be();
        self.accumulate(u64::from(if self.odd { word.swap_bytes() } else { word }));
        self.odd ^= len % 2 == 1;
    }

    /// Adds a number of 16 bits.
    #[inline]
    pub fn add_u16(&mut self, word: u16) {
        self.accumulate(u64::from(word.to_be()));
    }

    /// Adds a number of 32 bits.
    #[inline]
    pub fn add_u32(&mut self, word: u32) {
        self.accumulate(u64::from(word.to_be()));
    }

    /// Adds a plain total of words of 32 bits, as they lie in memory; see [`fold_words`].
    #[inline]
    pub fn add_words(&mut self, total: u64) {
        self.accumulate(total);
    }

    /// The sum in 16 bits, not complemented: what a checksum field holds when the NIC is to finish.
    #[inline]
    pub fn fold(self) -> u16 {
        u16::from_be(fold(self.acc))
    }

    /// The checksum: the complement of the sum. Over bytes that include a right checksum it is 0.
    #[inline]
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    #[inline]
    fn accumulate(&mut self, part: u64) {
        self.acc = add(self.acc, part);
    }
}

/// The checksum of one run of bytes.
#[inline]
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = Sum::new();
    sum.add_bytes(bytes);
    sum.finish()
}

/// The checksum after one 16-bit word under it changed from `old` to `new` (RFC 1624 eqn. 3).
#[inline]
pub fn update_u16(checksum: u16, old: u16, new: u16) -> u16 {
    let mut sum = Sum::new();
    sum.add_u16(!checksum);
    sum.add_u16(!old);
    sum.add_u16(new);
    sum.finish()
}

/// The checksum after one aligned 32-bit word under it changed from `old` to `new`.
#[inline]
pub fn update_u32(checksum: u16, old: u32, new: u32) -> u16 {
    let mut sum = Sum::new();
    sum.add_u16(!checksum);
    sum.add_u32(!old);
    sum.add_u32(new);
    sum.finish()
}

/// Folds a plain total of words of 32 bits, as they lie in memory, to the sum in 16 bits, as
/// [`Sum::fold`]. Totalling costs one addition a word, and 2^32 of them do not overflow.
#[inline]
pub fn fold_words(total: u64) -> u16 {
    u16::from_be(fold(total))
}

/// Folds to 16 bits with end-around carry: adding a word to itself turned by half leaves in the upper
/// half the sum of both halves, the carry included.
#[inline]
fn fold(acc: u64) -> u16 {
    let acc = (acc.wrapping_add(acc.rotate_left(32)) >> 32) as u32;
    (acc.wrapping_add(acc.rotate_left(16)) >> 16) as u16
}

/// Adds with end-around carry.
#[inline]
fn add(acc: u64, word: u64) -> u64 {
    let (acc, carry) = acc.overflowing_add(word);
    acc.wrapping_add(u64::from(carry))
}

/// From how many bytes on vectors pay.
const VECTOR_BYTES_MIN: usize = 128;

/// The sum of a run that starts at an even offset, modulo 2^64 - 1.
#[inline]
fn sum_words(bytes: &[u8]) -> u64 {
    let (mut acc, mut rest) = (0, bytes);
    if rest.len() >= VECTOR_BYTES_MIN {
        (acc, rest) = sum_vectors(rest);
    }
    let (words, mut rest) = rest.as_chunks::<8>();
    for word in words {
        acc = add(acc, u64::from_ne_bytes(*word));
    }
    // Up to 7 bytes are left; the last byte of an odd run is the first of a word whose second is
    // zero.
    if let Some((word, tail)) = rest.split_first_chunk::<4>() {
        acc = add(acc, u64::from(u32::from_ne_bytes(*word)));
        rest = tail;
    }
    if let Some((word, tail)) = rest.split_first_chunk::<2>() {
        acc = add(acc, u64::from(u16::from_ne_bytes(*word)));
        rest = tail;
    }
    if let [last] = *rest {
        acc = add(acc, u64::from(u16::from_ne_bytes([last, 0])));
    }
    acc
}

/// Sums words of 32 bits into lanes of 64, of which the compiler makes vectors; no carry is lost
/// below 16 GiB. Returns the sum and what is left, below 32 bytes.
#[inline(never)]
fn sum_vectors(bytes: &[u8]) -> (u64, &[u8]) {
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut lanes = [0u64; 8];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = lane.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
        }
    }
    (lanes.iter().fold(0, |acc, lane| add(acc, *lane)), rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: big-endian words, padded with a zero byte, end-around carry.
    fn naive(bytes: &[u8]) -> u16 {
        let mut acc = 0u32;
        for pair in bytes.chunks(2) {
            acc += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            acc = (acc & 0xffff) + (acc >> 16);
        }
        acc as u16
    }

    /// Zero has two forms in one's complement.
    fn same(a: u16, b: u16) -> bool {
        a == b || [a, b] == [0, 0xffff] || [a, b] == [0xffff, 0]
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let mut sum = Sum::new();
        sum.add_bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), 0xddf2);
        assert_eq!(sum.finish(), !0xddf2);
        assert_eq!(Sum::new().finish(), 0xffff);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // Section 4: the case that RFC 1141's formula gets wrong.
        assert_eq!(update_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn nothing_is_lost_in_a_long_run_of_ones() {
        for len in [1460, 65_535, 1 << 20] {
            let bytes = vec![0xff; len];
            let mut sum = Sum::new();
            sum.add_bytes(&bytes);
            assert_eq!(sum.fold(), naive(&bytes), "{len} bytes");
        }
    }

    #[test]
    fn the_accumulator_carries_around_its_end() {
        // All ones, another form of zero, as only very many bytes bring it about.
        let mut sum = Sum { acc: u64::MAX, odd: false };
        sum.add_bytes(&[0, 3]);
        assert_eq!(sum.fold(), 3);
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition_for_any_split(
            bytes in prop::collection::vec(any::<u8>(), 0..3000),
            cuts in prop::collection::vec(0usize..3000, 0..8),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let (mut sum, mut known) = (Sum::new(), Sum::new());
            for pair in cuts.windows(2) {
                let part = &bytes[pair[0]..pair[1]];
                sum.add_bytes(part);
                known.add_known(!checksum(part), part.len());
            }
            prop_assert_eq!(sum.fold(), naive(&bytes));
            prop_assert_eq!(known.fold(), naive(&bytes));
        }

        #[test]
        fn numbers_count_as_their_bytes(before in prop::collection::vec(any::<u8>(), 0..9), a: u16, b: u32) {
            let mut sum = Sum::new();
            sum.add_bytes(&before);
            sum.add_u16(a);
            sum.add_u32(b);
            let mut bytes = before.clone();
            bytes.resize(before.len().next_multiple_of(2), 0);
            bytes.extend(a.to_be_bytes());
            bytes.extend(b.to_be_bytes());
            prop_assert_eq!(sum.fold(), naive(&bytes));
        }

        #[test]
        fn pseudo_headers_count_as_their_bytes(src: u32, dst: u32, protocol: u8, len: u16, src6: u128, dst6: u128, len6: u32) {
            let mut bytes = Vec::new();
            bytes.extend(src.to_be_bytes());
            bytes.extend(dst.to_be_bytes());
            bytes.extend([0, protocol]);
            bytes.extend(len.to_be_bytes());
            let sum = Sum::ipv4_pseudo(src.into(), dst.into(), protocol, len);
            prop_assert_eq!(sum.fold(), naive(&bytes));

            let mut bytes = Vec::new();
            bytes.extend(src6.to_be_bytes());
            bytes.extend(dst6.to_be_bytes());
            bytes.extend(len6.to_be_bytes());
            bytes.extend([0, 0, 0, protocol]);
            let sum = Sum::ipv6_pseudo(src6.into(), dst6.into(), protocol, len6);
            prop_assert_eq!(sum.fold(), naive(&bytes));
        }

        #[test]
        fn an_update_agrees_with_a_new_sum(mut bytes in prop::collection::vec(any::<u8>(), 12..40), at in 0usize..3, new16: u16, new32: u32) {
            let before = checksum(&bytes);
            let old16 = u16::from_be_bytes(bytes[at * 2..][..2].try_into().unwrap());
            bytes[at * 2..][..2].copy_from_slice(&new16.to_be_bytes());
            let middle = update_u16(before, old16, new16);
            prop_assert!(same(middle, checksum(&bytes)));
            let old32 = u32::from_be_bytes(bytes[at * 4..][..4].try_into().unwrap());
            bytes[at * 4..][..4].copy_from_slice(&new32.to_be_bytes());
            prop_assert!(same(update_u32(middle, old32, new32), checksum(&bytes)));
        }
    }
}
