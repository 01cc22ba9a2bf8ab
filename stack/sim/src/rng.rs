//! A small generator of random numbers, the same on every machine.

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): 64 bits of state, good enough to roll dice.
#[derive(Clone, Copy, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose numbers depend on `seed` alone.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another generator, independent of this one's later numbers.
    pub fn fork(&mut self) -> Self {
        Self(self.next_u64())
    }

    /// The next number.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product is uniform but for a bias of bound / 2^64.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// `true` with the given probability, 0 to 1.
    #[inline]
    pub fn chance(&mut self, probability: f64) -> bool {
        // 53 bits are what the number's fraction holds; 0 never happens and 1 always does.
        let uniform = (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        uniform < probability
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_published_generator() {
        let mut rng = Rng::new(1_234_567);
        let numbers: Vec<_> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(numbers, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn chances_come_about_as_often_as_they_should() {
        let mut rng = Rng::new(7);
        for probability in [0.0, 0.01, 0.5, 1.0] {
            let hits = (0..100_000).filter(|_| rng.chance(probability)).count() as f64;
            assert!((hits - 100_000.0 * probability).abs() < 700.0, "{probability}: {hits}");
        }
        let mut counts = [0; 10];
        (0..100_000).for_each(|_| counts[rng.below(10) as usize] += 1);
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        assert_eq!(rng.below(0), 0);
    }
}
