//! Trigger points: where a loop looks for due events, and how far apart they lie.

use hdrhistogram::Histogram;

use crate::Instant;

/// What a loop has just done when it passes a trigger point: the trigger states of the paper's
/// section 5.3, as far as a poll loop has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerSource {
    /// It took a burst of frames from the link.
    RxBurst,
    /// It served the channels that frames were put into.
    Channel,
    /// A task of the application ran.
    Task,
    /// It handed segments to the link.
    Tx,
    /// It took completions from the disk.
    Disk,
    /// It looked for work and found none.
    Idle,
}

impl TriggerSource {
    /// All sources, in the order of a turn.
    pub const ALL: [Self; 6] =
        [Self::RxBurst, Self::Channel, Self::Task, Self::Tx, Self::Disk, Self::Idle];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::RxBurst => "rx burst",
            Self::Channel => "channel drain",
            Self::Task => "application task",
            Self::Tx => "tx",
            Self::Disk => "disk completion",
            Self::Idle => "idle",
        }
    }
}

/// The longest span that a histogram tells from longer ones: a minute.
const LONGEST_NANOS: u64 = 60_000_000_000;

/// Histograms of what trigger points see, in nanoseconds: 90 KiB, taken at once. Recording
/// allocates nothing and costs some nanoseconds.
#[derive(Clone, Debug)]
pub struct TriggerStats {
    intervals_ns: Histogram<u64>,
    late_ns: Histogram<u64>,
    answer_ns: Histogram<u64>,
    counts: [u64; TriggerSource::ALL.len()],
    last: Option<Instant>,
}

impl TriggerStats {
    /// Nothing recorded.
    pub fn new() -> Self {
        let empty = || {
            // Two digits: a tenth of a microsecond shows where intervals are ten of them.
            let mut histogram = Histogram::new_with_bounds(1, LONGEST_NANOS, 2)
                .unwrap_or_else(|_| unreachable!("bounds are constants in order"));
            histogram.auto(false);
            histogram
        };
        Self {
            intervals_ns: empty(),
            late_ns: empty(),
            answer_ns: empty(),
            counts: [0; TriggerSource::ALL.len()],
            last: None,
        }
    }

    /// The loop passes a trigger point.
    #[inline]
    pub fn pass(&mut self, source: TriggerSource, now: Instant) {
        self.counts[source as usize] += 1;
        if let Some(last) = self.last {
            self.intervals_ns.saturating_record(now.nanos_since(last));
        }
        self.last = Some(now);
    }

    /// The loop comes out of a sleep, which counts as no interval: it ends in time for the next
    /// event.
    #[inline]
    pub fn resume(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// An event was fired so long after it was due.
    #[inline]
    pub fn fired(&mut self, late_ns: u64) {
        self.late_ns.saturating_record(late_ns);
    }

    /// The first segments after a sleep that a frame ended left so long after the waking.
    #[inline]
    pub fn answered(&mut self, nanos: u64) {
        self.answer_ns.saturating_record(nanos);
    }

    /// Between a trigger point and the next, in nanoseconds.
    pub fn intervals_ns(&self) -> &Histogram<u64> {
        &self.intervals_ns
    }

    /// From an event's time to its firing, in nanoseconds.
    pub fn late_ns(&self) -> &Histogram<u64> {
        &self.late_ns
    }

    /// From waking to the first segments sent, in nanoseconds.
    pub fn answer_ns(&self) -> &Histogram<u64> {
        &self.answer_ns
    }

    /// Trigger points of a source.
    pub fn count(&self, source: TriggerSource) -> u64 {
        self.counts[source as usize]
    }

    /// Trigger points of all sources.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl Default for TriggerStats {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_between_neighbours_and_sleep_is_none() {
        let mut stats = TriggerStats::new();
        let at = Instant::from_micros;
        stats.pass(TriggerSource::RxBurst, at(10));
        stats.pass(TriggerSource::Task, at(12));
        stats.pass(TriggerSource::Idle, at(13));
        stats.resume(at(5000));
        stats.pass(TriggerSource::RxBurst, at(5002));
        assert_eq!(stats.intervals_ns().len(), 3);
        assert_eq!(stats.total(), 4);
        assert_eq!(stats.count(TriggerSource::RxBurst), 2);
        assert!((1990..2020).contains(&stats.intervals_ns().max()));
        // A clock that goes back, and one that jumps, make no nonsense.
        stats.pass(TriggerSource::Idle, at(1));
        stats.pass(TriggerSource::Idle, Instant::FAR_FUTURE);
        assert_eq!(stats.intervals_ns().len(), 5);
        assert!(stats.intervals_ns().max() >= LONGEST_NANOS);
    }

    #[test]
    fn names_are_told_apart() {
        let names: std::collections::HashSet<_> =
            TriggerSource::ALL.iter().map(|source| source.name()).collect();
        assert_eq!(names.len(), TriggerSource::ALL.len());
    }
}
