//! Round-trip time and retransmission time-out (RFC 6298).

use crate::config::Config;

/// Samples above this are taken for this: 2^26 us are 67 s.
const SAMPLE_MAX_US: u32 = 1 << 26;

/// The estimator, in microseconds with the usual binary fractions, so that the weights of RFC 6298
/// are shifts.
#[derive(Debug)]
pub(crate) struct RttEstimator {
    /// Eight times the smoothed round-trip time; 0 before the first sample.
    srtt8_us: u32,
    /// Four times its variation.
    rttvar4_us: u32,
    /// The time-out, not backed off.
    pub(crate) rto_us: u32,
}

impl RttEstimator {
    pub(crate) fn new(config: &Config) -> Self {
        Self { srtt8_us: 0, rttvar4_us: 0, rto_us: config.initial_rto_us.max(1) }
    }

    /// Takes a measurement of a segment that was sent once (Karn's algorithm is the caller's).
    #[inline]
    pub(crate) fn sample(&mut self, rtt_us: u32, config: &Config) {
        let rtt_us = rtt_us.clamp(1, SAMPLE_MAX_US);
        if self.srtt8_us == 0 {
            // RFC 6298 section 2.2: SRTT = R, RTTVAR = R/2.
            self.srtt8_us = rtt_us << 3;
            self.rttvar4_us = rtt_us << 1;
        } else {
            // RFC 6298 section 2.3: beta = 1/4 with the old SRTT, then alpha = 1/8.
            let error = rtt_us as i32 - (self.srtt8_us >> 3) as i32;
            self.rttvar4_us += error.unsigned_abs();
            self.rttvar4_us -= (self.rttvar4_us - error.unsigned_abs()) >> 2;
            self.srtt8_us = self.srtt8_us.wrapping_add_signed(error).max(1);
        }
        // RFC 6298 sections 2.3 and 2.4. The floor stands on the variation's side, as in Linux: a
        // floor on the sum would leave a path of just under that length no margin at all.
        self.rto_us =
            ((self.srtt8_us >> 3) + self.rttvar4_us.max(config.min_rto_us)).min(config.max_rto_us);
    }

    /// Smoothed round-trip time; 0 before the first sample.
    pub(crate) fn srtt_us(&self) -> u32 {
        self.srtt8_us >> 3
    }

    /// Its variation.
    pub(crate) fn rttvar_us(&self) -> u32 {
        self.rttvar4_us >> 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn follows_rfc_6298() {
        let config = Config { min_rto_us: 0, ..Config::default() };
        let mut rtt = RttEstimator::new(&config);
        assert_eq!(rtt.rto_us, 1_000_000);
        rtt.sample(100_000, &config);
        assert_eq!((rtt.srtt_us(), rtt.rttvar_us(), rtt.rto_us), (100_000, 50_000, 300_000));
        rtt.sample(180_000, &config);
        // SRTT = 7/8 * 100 + 1/8 * 180 = 110; RTTVAR = 3/4 * 50 + 1/4 * 80 = 57.5
        assert_eq!((rtt.srtt_us(), rtt.rttvar_us()), (110_000, 57_500));
        assert_eq!(rtt.rto_us, 340_000);
    }

    #[test]
    fn the_floor_holds() {
        let config = Config::default();
        let mut rtt = RttEstimator::new(&config);
        for _ in 0..1000 {
            rtt.sample(20, &config);
        }
        assert_eq!(rtt.srtt_us(), 20);
        assert_eq!(rtt.rto_us, 200_020);
    }

    proptest! {
        #[test]
        fn no_sample_breaks_it(samples in prop::collection::vec(any::<u32>(), 1..200)) {
            let config = Config::default();
            let mut rtt = RttEstimator::new(&config);
            let (low, high) = samples.iter().fold((u32::MAX, 0), |(low, high), sample| {
                (low.min(*sample), high.max(*sample))
            });
            for sample in samples {
                rtt.sample(sample, &config);
                prop_assert!(rtt.srtt_us() <= high.clamp(1, SAMPLE_MAX_US));
                prop_assert!(rtt.srtt_us() + 1 >= low.clamp(1, SAMPLE_MAX_US));
                prop_assert!((200_000..=120_000_000).contains(&rtt.rto_us));
            }
        }
    }
}
