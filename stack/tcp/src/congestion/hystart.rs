//! Slow start, and how the first one ends before it overflows a queue: HyStart++ (RFC 9406).
//!
//! It watches the least round-trip time of each round. When that has grown, growth slows down to a
//! quarter (conservative slow start); if it then shrinks again, the growth was noise, and slow
//! start goes on; if not, slow start is over after five rounds.
//!
//! Linux's own HyStart, of before this RFC, leaves slow start at once, and also does so upon a train
//! of close ACKs as long as half a round trip. This follows the RFC.

use super::{Ack, CWND_MAX, Window};

/// The round-trip time that a round must gain on the one before: an eighth, between these bounds.
const MIN_RTT_THRESH_US: u32 = 4_000;
const MAX_RTT_THRESH_US: u32 = 16_000;
const MIN_RTT_DIVISOR: u32 = 8;

/// Samples that a round needs before it is compared.
const N_RTT_SAMPLE: u8 = 8;

/// By how much conservative slow start is slower.
const CSS_GROWTH_DIVISOR: u32 = 4;

/// How many rounds it may last.
const CSS_ROUNDS: u8 = 5;

/// No sample.
const INFINITE: u32 = u32::MAX;

/// What HyStart++ remembers of the round and of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HyStart {
    last_round_min_us: u32,
    current_round_min_us: u32,
    /// Least round-trip time when conservative slow start began; `INFINITE` outside of it.
    baseline_us: u32,
    /// Low bits of how much will be delivered when all is that was out at the round's beginning.
    round_end: u32,
    samples: u8,
    css_rounds: u8,
    /// L of RFC 9406 section 4.2: see [`growth_max`].
    growth_segments: u8,
    started: bool,
}

/// Bytes by which one ACK grows the window in slow start at most; [`u8::MAX`] segments are any number.
pub(super) const fn growth_max(segments: u8, mss: u32) -> u32 {
    if segments == u8::MAX { u32::MAX } else { mss.saturating_mul(segments as u32) }
}

impl HyStart {
    pub(super) const fn new(growth_segments: u8) -> Self {
        Self {
            last_round_min_us: INFINITE,
            current_round_min_us: INFINITE,
            baseline_us: INFINITE,
            round_end: 0,
            samples: 0,
            css_rounds: 0,
            growth_segments,
            started: false,
        }
    }

    /// What it was made with.
    pub(super) const fn growth_segments(&self) -> u8 {
        self.growth_segments
    }

    const fn in_css(&self) -> bool {
        self.baseline_us != INFINITE
    }

    /// Grows the window (RFC 9406 section 4.2). `true`: slow start is over, and the threshold is
    /// the window.
    pub(super) fn on_ack(&mut self, window: &mut Window, ack: &Ack) -> bool {
        let limit = growth_max(self.growth_segments, ack.mss);
        let mut growth = ack.delivered.min(limit);
        if self.in_css() {
            growth /= CSS_GROWTH_DIVISOR;
        }
        window.cwnd = window.cwnd.saturating_add(growth).min(CWND_MAX);
        if ack.rtt_us != 0 {
            self.current_round_min_us = self.current_round_min_us.min(ack.rtt_us);
            self.samples = self.samples.saturating_add(1);
        }
        if self.samples >= N_RTT_SAMPLE && self.current_round_min_us != INFINITE {
            self.compare();
        }
        if self.end_round_if_due(ack) {
            window.ssthresh = window.cwnd;
            return true;
        }
        false
    }

    fn compare(&mut self) {
        if self.in_css() {
            if self.current_round_min_us < self.baseline_us {
                // The delay was not that of a queue of ours.
                self.baseline_us = INFINITE;
                self.css_rounds = 0;
            }
        } else if self.last_round_min_us != INFINITE {
            let threshold = (self.last_round_min_us / MIN_RTT_DIVISOR)
                .clamp(MIN_RTT_THRESH_US, MAX_RTT_THRESH_US);
            if self.current_round_min_us >= self.last_round_min_us.saturating_add(threshold) {
                self.baseline_us = self.current_round_min_us;
                self.css_rounds = 0;
            }
        }
    }

    /// Begins the next round if all is delivered that was out when this one began. `true`: it was
    /// the last of conservative slow start. The round in which that began counts, although it was
    /// not a whole one.
    fn end_round_if_due(&mut self, ack: &Ack) -> bool {
        let delivered = ack.total_delivered as u32;
        if self.started && (delivered.wrapping_sub(self.round_end) as i32) < 0 {
            return false;
        }
        if self.started {
            self.last_round_min_us = self.current_round_min_us;
            self.current_round_min_us = INFINITE;
            self.samples = 0;
            self.css_rounds += u8::from(self.in_css());
        }
        // The first flight is a round of its own, so its first ACK only tells how long that is.
        self.started = true;
        self.round_end = delivered.wrapping_add(ack.flight);
        self.css_rounds >= CSS_ROUNDS
    }
}

/// Slow start after the first one (RFC 5681 section 3.1), by at most `limit` bytes; returns what is
/// left of `delivered` when the threshold is reached.
pub(super) fn slow_start(window: &mut Window, delivered: u32, limit: u32) -> u32 {
    let growth = delivered.min(limit).min(window.ssthresh.saturating_sub(window.cwnd));
    window.cwnd = window.cwnd.saturating_add(growth).min(CWND_MAX);
    if window.cwnd < window.ssthresh { 0 } else { delivered - growth }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u32 = 1000;

    /// A round of `segments` ACKs, all with this round-trip time.
    fn round(
        hystart: &mut HyStart,
        window: &mut Window,
        total: &mut u64,
        segments: u32,
        rtt_us: u32,
    ) -> bool {
        let mut over = false;
        for _ in 0..segments {
            *total += u64::from(MSS);
            let ack = Ack {
                delivered: MSS,
                mss: MSS,
                rtt_us,
                flight: segments * MSS,
                total_delivered: *total,
                cwnd_limited: true,
                ..Ack::default()
            };
            over |= hystart.on_ack(window, &ack);
        }
        over
    }

    #[test]
    fn growing_delay_slows_growth_and_then_ends_it() {
        let mut hystart = HyStart::new(u8::MAX);
        let mut window = Window { cwnd: 10 * MSS, ssthresh: u32::MAX };
        let mut total = 0;
        assert!(!round(&mut hystart, &mut window, &mut total, 20, 40_000));
        assert!(!round(&mut hystart, &mut window, &mut total, 20, 40_000));
        assert_eq!(window.cwnd, 50 * MSS);
        // 5 ms are an eighth of 40 ms.
        assert!(!round(&mut hystart, &mut window, &mut total, 20, 44_999));
        assert!(!hystart.in_css());
        assert!(!round(&mut hystart, &mut window, &mut total, 20, 50_623));
        assert!(hystart.in_css());
        let before = window.cwnd;
        assert!(!round(&mut hystart, &mut window, &mut total, 20, 50_700));
        assert_eq!(window.cwnd, before + 5 * MSS);
        let mut rounds = 2;
        while !round(&mut hystart, &mut window, &mut total, 20, 51_000) {
            rounds += 1;
            assert!(rounds < 10);
        }
        assert_eq!(rounds + 1, u32::from(CSS_ROUNDS) + 1);
        assert_eq!(window.ssthresh, window.ssthresh.min(window.cwnd));
        assert_ne!(window.ssthresh, u32::MAX);
    }

    #[test]
    fn shrinking_delay_resumes_slow_start() {
        let mut hystart = HyStart::new(u8::MAX);
        let mut window = Window { cwnd: 10 * MSS, ssthresh: u32::MAX };
        let mut total = 0;
        round(&mut hystart, &mut window, &mut total, 20, 40_000);
        round(&mut hystart, &mut window, &mut total, 20, 60_000);
        assert!(hystart.in_css());
        for _ in 0..10 {
            assert!(!round(&mut hystart, &mut window, &mut total, 20, 45_000));
            assert!(!hystart.in_css());
        }
        assert_eq!(window.ssthresh, u32::MAX);
    }

    #[test]
    fn few_samples_and_small_differences_prove_nothing() {
        let mut hystart = HyStart::new(u8::MAX);
        let mut window = Window { cwnd: 10 * MSS, ssthresh: u32::MAX };
        let mut total = 0;
        for rtt_us in [1_000, 4_900, 8_800, 12_700] {
            round(&mut hystart, &mut window, &mut total, 20, rtt_us);
        }
        assert!(!hystart.in_css(), "less than 4 ms more");
        for rtt_us in [40_000, 80_000, 160_000] {
            round(&mut hystart, &mut window, &mut total, 7, rtt_us);
        }
        assert!(!hystart.in_css(), "less than eight samples");
    }

    #[test]
    fn a_wide_ack_counts_for_so_many_segments() {
        let ack = Ack { delivered: 20 * MSS, mss: MSS, ..Ack::default() };
        for (most, segments) in [(1, 1), (8, 8), (u8::MAX, 20)] {
            let mut window = Window { cwnd: 10 * MSS, ssthresh: u32::MAX };
            HyStart::new(most).on_ack(&mut window, &ack);
            assert_eq!(window.cwnd, (10 + segments) * MSS);
        }
    }

    #[test]
    fn slow_start_stops_at_the_threshold() {
        let mut window = Window { cwnd: 10_000, ssthresh: 12_000 };
        assert_eq!(slow_start(&mut window, 1500, u32::MAX), 0);
        assert_eq!(slow_start(&mut window, 1500, u32::MAX), 1000);
        assert_eq!(window.cwnd, 12_000);
        window = Window { cwnd: 1000, ssthresh: 12_000 };
        assert_eq!(slow_start(&mut window, 9000, 2000), 0);
        assert_eq!(window.cwnd, 3000);
    }
}
