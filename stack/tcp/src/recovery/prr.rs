//! Proportional rate reduction: how the window gets from what it was to the threshold while a loss
//! is repaired (RFC 9937, which replaces RFC 6937).

/// The state of RFC 9937 section 6, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Prr {
    /// Delivered since the episode began.
    delivered: u32,
    /// Sent since the episode began.
    pub(crate) out: u32,
    /// The window when it began. RFC 9937 takes what was in flight; Linux takes this.
    pub(crate) prior_cwnd: u32,
}

impl Prr {
    /// An episode begins.
    pub(crate) fn begin(&mut self, cwnd: u32) {
        *self = Self { delivered: 0, out: 0, prior_cwnd: cwnd };
    }

    /// The window after an ACK that delivered `delivered` bytes and found `lost` bytes lost, with
    /// `pipe` bytes in flight now.
    ///
    /// Above the threshold what is sent is in proportion to what is delivered. Below it, slow start
    /// brings the window up, bounded by what is delivered, and by one segment more if the ACK shows
    /// that the repair makes progress. Amounts are rounded up to segments, as they are where they
    /// are counted in segments.
    pub(crate) fn window(
        &mut self,
        pipe: u32,
        ssthresh: u32,
        mss: u32,
        delivered: u32,
        safe: bool,
    ) -> u32 {
        self.delivered = self.delivered.saturating_add(delivered);
        let prior = u64::from(self.prior_cwnd.max(1));
        let count = if pipe > ssthresh {
            let share = (u64::from(ssthresh) * u64::from(self.delivered)).div_ceil(prior);
            let share = share.next_multiple_of(u64::from(mss)).min(1 << 30) as u32;
            share.saturating_sub(self.out)
        } else {
            let bound = self.delivered.saturating_sub(self.out).max(delivered);
            (bound + if safe { mss } else { 0 }).min(ssthresh - pipe)
        };
        // The first repetition goes out at once (RFC 9937 section 6.2).
        let least = if self.out == 0 { mss } else { 0 };
        pipe.saturating_add(count.max(least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten segments of which the first is lost; each ACK delivers one, and the window is to be
    /// seven. The first two ACKs found no loss yet.
    #[test]
    fn reduces_in_proportion() {
        let mut prr = Prr::default();
        prr.begin(10_000);
        // Three delivered, one lost: six in flight, one below the threshold.
        assert_eq!(prr.window(6_000, 7_000, 1_000, 1_000, false), 7_000);
        prr.out += 1_000;
        for _ in 0..6 {
            assert_eq!(prr.window(6_000, 7_000, 1_000, 1_000, false), 7_000);
            prr.out += 1_000;
        }
    }

    #[test]
    fn above_the_threshold_it_sends_half_of_what_is_delivered() {
        let mut prr = Prr::default();
        prr.begin(20_000);
        let (mut pipe, mut sent) = (19_000, 0);
        for _ in 0..18 {
            pipe -= 1_000;
            let cwnd = prr.window(pipe, 10_000, 1_000, 1_000, false);
            while pipe + 1_000 <= cwnd {
                pipe += 1_000;
                prr.out += 1_000;
                sent += 1;
            }
        }
        assert_eq!(sent, 9);
        assert_eq!(pipe, 10_000);
    }

    /// After a burst of losses slow start adds one segment to each ACK that is safe (RFC 9937
    /// section 6.2).
    #[test]
    fn below_the_threshold_it_is_bounded() {
        let mut prr = Prr::default();
        prr.begin(20_000);
        assert_eq!(prr.window(1_000, 10_000, 1_000, 1_000, false), 2_000);
        prr.out += 1_000;
        assert_eq!(prr.window(1_000, 10_000, 1_000, 1_000, true), 3_000);
        assert_eq!(prr.window(9_500, 10_000, 1_000, 1_000, true), 10_000);
    }
}
