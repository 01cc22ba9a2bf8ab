//! What a run measured.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;

use super::response::Response;

/// Longest latency that is told apart, in nanoseconds.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// Why a request has no good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The connection could not be opened.
    Connect,
    /// The connection was reset or failed.
    Reset,
    /// The connection was closed before the answer began.
    Closed,
    /// The connection was closed inside the answer: fewer bytes than Content-Length said.
    Truncated,
    /// The answer is not HTTP, or does not say its length.
    Malformed,
    /// No answer came until the end of the run and the time-out behind it.
    TimedOut,
}

impl Failure {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "could not connect",
            Self::Reset => "connection reset",
            Self::Closed => "closed before the answer",
            Self::Truncated => "body shorter than Content-Length",
            Self::Malformed => "malformed answer",
            Self::TimedOut => "timed out",
        }
    }
}

/// The latencies of one stretch of the run.
#[derive(Debug)]
struct Interval {
    start_ns: u64,
    end_ns: u64,
    latency: Histogram<u64>,
}

/// Counts and latencies of a run.
#[derive(Debug)]
pub struct Tally {
    /// Nanoseconds from the intended time of sending to the last byte of the answer.
    pub latency: Histogram<u64>,
    /// Bytes of bodies.
    pub body_bytes: u64,
    /// Bytes received, heads and bodies.
    pub received_bytes: u64,
    /// Answers by status code.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without a good answer.
    pub failures: BTreeMap<Failure, u64>,
    /// Connections that were opened again because the server closed them.
    pub reconnects: u64,
    /// When the last answer came.
    pub last_ns: u64,
    current: Histogram<u64>,
    current_start_ns: u64,
    intervals: Vec<Interval>,
    keep_intervals: bool,
    /// The status of the last answer and how many such came in a row: they are added up in one go.
    streak: (u16, u64),
}

fn histogram() -> Histogram<u64> {
    // Three digits: each value is known to a thousandth.
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("these bounds are valid")
}

impl Tally {
    /// `keep_intervals`: latencies are kept for each second too.
    pub fn new(keep_intervals: bool) -> Self {
        Self {
            latency: histogram(),
            body_bytes: 0,
            received_bytes: 0,
            statuses: BTreeMap::new(),
            failures: BTreeMap::new(),
            reconnects: 0,
            last_ns: 0,
            current: histogram(),
            current_start_ns: 0,
            intervals: Vec::new(),
            keep_intervals,
            streak: (0, 0),
        }
    }

    /// The run begins.
    pub fn start(&mut self, now_ns: u64) {
        (self.last_ns, self.current_start_ns) = (now_ns, now_ns);
    }

    /// An answer came to a request that was to be sent at `intended_ns`.
    #[inline]
    pub fn answered(&mut self, intended_ns: u64, now_ns: u64, response: &Response) {
        self.latency.saturating_record(now_ns.saturating_sub(intended_ns).max(1));
        if self.keep_intervals {
            self.current.saturating_record(now_ns.saturating_sub(intended_ns).max(1));
        }
        self.body_bytes += response.body_bytes;
        self.last_ns = now_ns;
        if self.streak.0 != response.status {
            self.end_streak();
            self.streak.0 = response.status;
        }
        self.streak.1 += 1;
    }

    fn end_streak(&mut self) {
        let (status, count) = std::mem::take(&mut self.streak);
        if count > 0 {
            *self.statuses.entry(status).or_default() += count;
        }
    }

    /// `count` requests have failed.
    pub fn failed(&mut self, failure: Failure, count: u64) {
        if count > 0 {
            *self.failures.entry(failure).or_default() += count;
        }
    }

    /// All failures.
    pub fn failed_total(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Called now and then: ends the interval if it is a second old.
    pub fn tick(&mut self, now_ns: u64) {
        if self.keep_intervals && now_ns.saturating_sub(self.current_start_ns) >= 1_000_000_000 {
            self.end_interval(now_ns);
        }
    }

    fn end_interval(&mut self, now_ns: u64) {
        if self.current.is_empty() {
            return;
        }
        let latency = std::mem::replace(&mut self.current, histogram());
        self.intervals.push(Interval { start_ns: self.current_start_ns, end_ns: now_ns, latency });
        self.current_start_ns = now_ns;
    }

    /// The run is over.
    pub fn finish(&mut self, now_ns: u64) {
        self.end_streak();
        self.end_interval(now_ns);
    }

    /// Writes the intervals as a histogram log (version 2, as the HdrHistogram tools read it).
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_log(&self, path: &Path, what: &str, epoch: SystemTime) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        let mut serializer = V2DeflateSerializer::new();
        let mut writer = IntervalLogWriterBuilder::new()
            .add_comment(&format!("{what}; latencies in nanoseconds, the column of maxima in ms"))
            .with_start_time(epoch)
            .with_base_time(epoch)
            .with_max_value_divisor(1e6)
            .begin_log_with(&mut file, &mut serializer)?;
        let first = self.intervals.first().map_or(0, |interval| interval.start_ns);
        for interval in &self.intervals {
            let start = Duration::from_nanos(interval.start_ns - first);
            let span = Duration::from_nanos(interval.end_ns - interval.start_ns);
            writer
                .write_histogram(&interval.latency, start, span, None)
                .map_err(|error| io::Error::other(format!("{error:?}")))?;
        }
        drop(writer);
        io::Write::flush(&mut file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    #[test]
    fn the_log_holds_every_answer_once() {
        let mut tally = Tally::new(true);
        tally.start(0);
        let good = Response { status: 200, body_bytes: 5, close: false };
        tally.answered(0, 1_000, &good);
        tally.tick(500_000_000);
        tally.answered(10, 1_500_000_000, &Response { status: 404, ..good });
        tally.tick(1_600_000_000);
        tally.answered(1_700_000_000, 1_700_002_000, &good);
        tally.finish(1_800_000_000);
        assert_eq!(tally.statuses, BTreeMap::from([(200, 2), (404, 1)]));
        assert_eq!((tally.body_bytes, tally.latency.len()), (15, 3));

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.hlog");
        tally.write_log(&path, "test", SystemTime::UNIX_EPOCH).unwrap();
        let text = std::fs::read(&path).unwrap();
        let mut seen = Vec::new();
        for entry in IntervalLogIterator::new(&text) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                seen.push((
                    interval.start_timestamp().as_millis(),
                    (interval.max() / 10.0).round(),
                ));
            }
        }
        assert_eq!(seen, [(0, 150.0), (1600, 0.0)], "start in ms, maximum in 10 ms");
    }
}
