//! When the link is asked for frames: network polling with an aggregation quota (Aron and Druschel,
//! SOSP '99, section 4.2).
//!
//! A soft event polls the link. The interval between polls follows the rate at which frames come,
//! so that a poll finds as many as the quota says on the average: what a poll costs, and what frames
//! have in common, is then shared by so many. Below a rate at which that would hold frames up for
//! longer than [`INTERVAL_NANOS_MAX`] no frame waits: the loop polls whenever it has nothing else to
//! do, or sleeps until the device interrupts it.

use millstream_link::BURST;
use millstream_timer::Instant;

use crate::config::Quota;

/// The shortest interval: less than a poll takes.
const INTERVAL_NANOS_MIN: u64 = 1_000;
/// The longest: what a frame may have to wait for the sake of the quota.
pub(crate) const INTERVAL_NANOS_MAX: u64 = 100_000;
/// A span without polls that says nothing about the rate, since the loop slept.
const SPAN_NANOS_MAX: u64 = 1_000_000;
/// Each poll's share of the mean: 1/16.
const MEAN_SHIFT: u32 = 4;
/// The sums are kept in so many parts of a frame, and of a nanosecond.
const PART_BITS: u32 = 8;

/// Quotas that [`Quota::Auto`] tries.
const LADDER: [u8; 6] = [1, 2, 4, 8, 16, 32];
/// Frames after which a rung of the ladder is judged.
const TRIAL_FRAMES: u64 = 4096;
/// A rung is better if a frame costs less by more than this part of it.
const BETTER_PART: u64 = 64;

/// Decides when to poll.
#[derive(Clone, Debug)]
pub(crate) struct Poller {
    quota: u64,
    climb: Option<Climb>,
    /// Decayed sums: frames found, and the time in which they came.
    frames: u64,
    span_nanos: u64,
    last: Instant,
    next: Option<Instant>,
}

/// The search for the quota at which a frame costs the least.
#[derive(Clone, Debug, Default)]
struct Climb {
    rung: usize,
    down: bool,
    frames: u64,
    busy_nanos: u64,
    /// Of the rung before, in nanoseconds a frame; `None`: the direction is given.
    cost_before: Option<u64>,
}

impl Poller {
    pub fn new(quota: Quota, now: Instant) -> Self {
        let (quota, climb) = match quota {
            Quota::Frames(frames) => (frames.clamp(1, BURST as u8), None),
            Quota::Auto => (LADDER[0], Some(Climb::default())),
        };
        Self { quota: u64::from(quota), climb, frames: 0, span_nanos: 0, last: now, next: None }
    }

    /// Whether the moment of the next poll has come.
    #[inline]
    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| next <= now)
    }

    /// When the next poll is due; `None`: whenever there is nothing else to do.
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Frames that a poll is to find on the average.
    #[cfg(test)]
    pub fn quota(&self) -> u64 {
        self.quota
    }

    /// A poll has found so many frames.
    pub fn found(&mut self, frames: usize, now: Instant) {
        let span = now.nanos_since(self.last).min(SPAN_NANOS_MAX);
        self.last = now;
        // Rounded up: a remainder that never goes would look like a trickle of frames.
        self.frames -= self.frames.div_ceil(1 << MEAN_SHIFT);
        self.frames += (frames as u64) << PART_BITS;
        self.span_nanos -= self.span_nanos >> MEAN_SHIFT;
        self.span_nanos += span << PART_BITS;
        let interval = (self.span_nanos.saturating_mul(self.quota))
            .checked_div(self.frames)
            .unwrap_or(u64::MAX)
            .max(INTERVAL_NANOS_MIN);
        self.next = if frames >= BURST {
            // There may be more already.
            Some(now)
        } else {
            (interval <= INTERVAL_NANOS_MAX).then(|| now.plus_nanos(interval))
        };
    }

    /// What the turn took that served the frames of a poll.
    pub fn served(&mut self, frames: usize, nanos: u64) {
        let Some(climb) = &mut self.climb else { return };
        climb.frames += frames as u64;
        climb.busy_nanos = climb.busy_nanos.saturating_add(nanos);
        if climb.frames >= TRIAL_FRAMES {
            climb.judge();
            self.quota = u64::from(LADDER[climb.rung]);
        }
    }
}

impl Climb {
    /// Goes on in the direction that made frames cheaper, or back. It never stands still, so a load
    /// that changes is followed; a rung to and fro costs little where rungs differ little.
    fn judge(&mut self) {
        let cost = self.busy_nanos / self.frames.max(1);
        if self.cost_before.is_some_and(|before| cost + before / BETTER_PART > before) {
            self.down = !self.down;
        }
        self.rung = if self.down { self.rung - 1 } else { self.rung + 1 };
        // At an end there is one way to go, whatever this rung costs.
        let ends = self.rung == 0 || self.rung + 1 == LADDER.len();
        if ends {
            self.down = self.rung != 0;
        }
        let cost_before = (!ends).then_some(cost);
        *self = Self { frames: 0, busy_nanos: 0, cost_before, ..*self };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Frames come at moments that `gap` draws; the poller polls when it is due, or each
    /// microsecond when it leaves that to the loop. Returns the mean found, over the second half.
    fn mean_found(poller: &mut Poller, polls: usize, mut gap: impl FnMut() -> u64) -> f64 {
        let (mut now, mut next_frame) = (Instant::ZERO, Instant::ZERO);
        let (mut sum, mut count) = (0, 0);
        for poll in 0..polls {
            now = poller.next().unwrap_or(now.plus_micros(1)).max(now);
            assert!(poller.is_due(now));
            let mut found = 0;
            while next_frame <= now && found < BURST {
                next_frame = next_frame.plus_nanos(gap());
                found += 1;
            }
            poller.found(found, now);
            if poll >= polls / 2 {
                sum += found;
                count += 1;
            }
        }
        sum as f64 / count as f64
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// The interval adapts so that the mean number of frames found equals the quota.
        #[test]
        fn the_mean_found_is_the_quota(
            quota in 1u8..=24,
            // Of frames, in nanoseconds: as fast as a core serves them, to ten times slower.
            mean_gap in 200u64..4_000,
            bursty: bool,
            seed in 1u64..,
        ) {
            let mut random = seed;
            let mut poller = Poller::new(Quota::Frames(quota), Instant::ZERO);
            let mut turn = 0;
            let found = mean_found(&mut poller, 20_000, || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                turn += 1;
                // Bursts of four that come at once, or gaps between zero and twice the mean.
                match (bursty, turn % 4) {
                    (true, 0) => mean_gap * 4,
                    (true, _) => 0,
                    (false, _) => random % (2 * mean_gap),
                }
            });
            let quota = f64::from(quota);
            // An interval below the shortest finds what comes in that.
            let least = INTERVAL_NANOS_MIN as f64 / mean_gap as f64;
            let expected = quota.max(least);
            prop_assert!((found - expected).abs() <= 0.15 * expected + 0.1, "{found} for {expected}");
        }
    }

    #[test]
    fn a_slow_trickle_is_never_held_up() {
        let mut poller = Poller::new(Quota::Frames(32), Instant::ZERO);
        // 32 frames at 100 us would be 3.2 ms.
        mean_found(&mut poller, 50_000, || 100_000);
        assert_eq!(poller.next(), None);
        assert!(poller.is_due(Instant::ZERO));
    }

    #[test]
    fn a_rate_that_changes_is_followed_within_a_hundred_polls() {
        let mut poller = Poller::new(Quota::Frames(8), Instant::ZERO);
        mean_found(&mut poller, 1000, || 1_000);
        let slow = poller.next.unwrap().nanos_since(poller.last);
        assert!((7_000..9_000).contains(&slow), "{slow} ns");
        let mut now = poller.last;
        for _ in 0..100 {
            let next = poller.next().unwrap();
            // Five times as many as before.
            let found = (next.nanos_since(now) / 200) as usize;
            now = next;
            poller.found(found.min(BURST), now);
        }
        let fast = poller.next.unwrap().nanos_since(poller.last);
        assert!((1_500..1_800).contains(&fast), "{fast} ns");
        // A clock that stands still or goes back.
        for moment in [now, Instant::ZERO, Instant::FAR_FUTURE] {
            poller.found(1, moment);
            assert!(poller.next().is_none_or(|next| next >= moment));
        }
    }

    #[test]
    fn auto_finds_the_cheapest_quota_and_follows_it() {
        let mut poller = Poller::new(Quota::Auto, Instant::ZERO);
        let mut spent = |cost: &dyn Fn(u64) -> u64| {
            let mut rungs = Vec::new();
            for _ in 0..40 {
                let quota = poller.quota();
                rungs.push(quota);
                poller.served(TRIAL_FRAMES as usize, TRIAL_FRAMES * cost(quota));
            }
            rungs[20..].to_vec()
        };
        // A poll costs 3000 ns, whatever it finds: the more the better.
        let rungs = spent(&|quota| 3000 / quota + 500);
        assert!(rungs.iter().all(|quota| *quota >= 8), "{rungs:?}");
        // Caches overflow beyond 4.
        let rungs = spent(&|quota| 3000 / quota + 400 * quota);
        assert!(rungs.iter().all(|quota| *quota <= 8), "{rungs:?}");
    }
}
