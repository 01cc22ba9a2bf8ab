//! Maxima over a window that moves on.

/// The largest rate of this bandwidth-probing cycle and of the one before (section 5.5.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MaxRate {
    before: u64,
    current: u64,
}

impl MaxRate {
    pub(super) fn get(&self) -> u64 {
        self.before.max(self.current)
    }

    pub(super) fn update(&mut self, rate: u64) {
        self.current = self.current.max(rate);
    }

    /// The next cycle begins. One without any sample is none.
    pub(super) fn advance(&mut self) {
        if self.current > 0 {
            self.before = self.current;
            self.current = 0;
        }
    }
}

/// The largest value of the last so many rounds, in three samples (the algorithm is Kathleen
/// Nichols's): the best, the best after it, and the best after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WindowedMax {
    samples: [Sample; 3],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sample {
    round: u32,
    value: u32,
}

impl WindowedMax {
    pub(super) fn get(&self) -> u32 {
        self.samples[0].value
    }

    pub(super) fn update(&mut self, value: u32, round: u32, window_rounds: u32) {
        let new = Sample { round, value };
        let age = |sample: &Sample| round.wrapping_sub(sample.round);
        if value >= self.samples[0].value || age(&self.samples[2]) > window_rounds {
            self.samples = [new; 3];
            return;
        }
        if value >= self.samples[1].value {
            self.samples[1] = new;
            self.samples[2] = new;
        } else if value >= self.samples[2].value {
            self.samples[2] = new;
        }
        if age(&self.samples[0]) > window_rounds {
            // The best is too old: its heirs move up, twice if the first of them is as old.
            self.samples = [self.samples[1], self.samples[2], new];
            if age(&self.samples[0]) > window_rounds {
                self.samples = [self.samples[1], self.samples[2], new];
            }
        } else if self.samples[1].round == self.samples[0].round
            && age(&self.samples[0]) > window_rounds / 4
        {
            // A quarter of the window without an heir from it: the best of the second quarter.
            self.samples[1] = new;
            self.samples[2] = new;
        } else if self.samples[2].round == self.samples[1].round
            && age(&self.samples[0]) > window_rounds / 2
        {
            self.samples[2] = new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_are_remembered_for_two_cycles() {
        let mut rate = MaxRate::default();
        rate.update(10);
        rate.update(7);
        assert_eq!(rate.get(), 10);
        rate.advance();
        rate.advance();
        assert_eq!(rate.get(), 10, "a cycle without samples does not count");
        rate.update(5);
        assert_eq!(rate.get(), 10);
        rate.advance();
        assert_eq!(rate.get(), 5);
    }

    proptest! {
        /// Never below the largest of the last quarter of the window, never above that of all of it.
        #[test]
        fn maxima_are_those_of_the_window(values in prop::collection::vec((0..1000u32, 0..3u32), 1..200)) {
            let mut filter = WindowedMax::default();
            let mut seen: Vec<(u32, u32)> = Vec::new();
            let mut round = 0;
            for (value, step) in values {
                round += step;
                seen.push((round, value));
                filter.update(value, round, 10);
                let within = |rounds| {
                    let young = seen.iter().filter(|(at, _)| round - at <= rounds);
                    young.map(|&(_, value)| value).max().unwrap()
                };
                prop_assert!(filter.get() <= within(10));
                prop_assert!(filter.get() >= within(2));
            }
        }
    }
}
