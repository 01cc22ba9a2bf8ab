//! When which request is sent.

use std::time::Duration;

/// The limits of a run; it ends at whichever comes first.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long requests are sent.
    pub duration: Duration,
    /// How many are sent.
    pub requests: Option<u64>,
}

/// When a connection may send its next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At this time; if it is past, at once. Latency counts from this time, so that a slow answer
    /// is charged for all requests that it delayed (coordinated omission).
    At(u64),
    /// Never: the run is over.
    Done,
}

/// Deals out the requests of a run. Times are nanoseconds of the client's clock.
///
/// Closed loop: a connection sends as soon as it may. Open loop: request `k` is due at
/// `start + k / rate`, and the connection that is free first takes it, at that time or late.
#[derive(Clone, Debug)]
pub struct Schedule {
    limits: Limits,
    /// Open loop: nanoseconds between two requests.
    interval_ns: Option<f64>,
    start_ns: u64,
    issued: u64,
}

impl Schedule {
    /// `rate`: requests a second in open loop.
    pub fn new(limits: Limits, rate: Option<f64>) -> Self {
        Self { limits, interval_ns: rate.map(|rate| 1e9 / rate), start_ns: 0, issued: 0 }
    }

    /// The run begins.
    pub fn start(&mut self, now_ns: u64) {
        self.start_ns = now_ns;
    }

    /// When the run began.
    pub fn start_ns(&self) -> u64 {
        self.start_ns
    }

    /// When no more is sent.
    pub fn end_ns(&self) -> u64 {
        let span = u64::try_from(self.limits.duration.as_nanos()).unwrap_or(u64::MAX);
        self.start_ns.saturating_add(span)
    }

    /// Whether no more requests are dealt out.
    pub fn is_over(&self, now_ns: u64) -> bool {
        now_ns >= self.end_ns() || self.limits.requests.is_some_and(|limit| self.issued >= limit)
    }

    /// Takes the next request.
    pub fn next(&mut self, now_ns: u64) -> Next {
        let at = match self.interval_ns {
            None => now_ns,
            Some(interval) => self.start_ns.saturating_add((self.issued as f64 * interval) as u64),
        };
        if at >= self.end_ns() || self.is_over(now_ns) {
            return Next::Done;
        }
        self.issued += 1;
        Next::At(at)
    }

    /// Requests that were due in the whole run and that no connection was free to send.
    pub fn unsent(&self) -> u64 {
        let Some(interval) = self.interval_ns else { return 0 };
        let due = (self.limits.duration.as_nanos() as f64 / interval).ceil() as u64;
        due.min(self.limits.requests.unwrap_or(u64::MAX)).saturating_sub(self.issued)
    }

    /// How far the run is, from 0 to 1.
    pub fn progress(&self, now_ns: u64) -> f64 {
        let span = self.limits.duration.as_nanos().max(1) as f64;
        let by_time = now_ns.saturating_sub(self.start_ns) as f64 / span;
        let by_count = self.limits.requests.map_or(0.0, |n| self.issued as f64 / n.max(1) as f64);
        by_time.max(by_count).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(seconds: u64, requests: Option<u64>) -> Limits {
        Limits { duration: Duration::from_secs(seconds), requests }
    }

    #[test]
    fn a_closed_loop_sends_at_once_until_a_limit() {
        let mut schedule = Schedule::new(limits(1, Some(2)), None);
        schedule.start(100);
        assert_eq!(schedule.next(150), Next::At(150));
        assert_eq!(schedule.next(170), Next::At(170));
        assert_eq!(schedule.next(180), Next::Done);
        let mut schedule = Schedule::new(limits(1, None), None);
        schedule.start(100);
        assert_eq!(schedule.next(1_000_000_099), Next::At(1_000_000_099));
        assert_eq!(schedule.next(1_000_000_100), Next::Done);
        assert_eq!(schedule.unsent(), 0);
    }

    #[test]
    fn an_open_loop_keeps_its_times_however_late_it_is() {
        let mut schedule = Schedule::new(limits(1, None), Some(10.0));
        schedule.start(0);
        assert_eq!(schedule.next(0), Next::At(0));
        assert_eq!(schedule.next(0), Next::At(100_000_000), "taken ahead, to be waited for");
        assert_eq!(schedule.next(700_000_000), Next::At(200_000_000), "late: due long ago");
        assert_eq!(schedule.next(1_000_000_000), Next::Done);
        assert_eq!(schedule.unsent(), 7);
    }
}
