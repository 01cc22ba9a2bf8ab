//! What one connection of the generator says and hears, whatever carries it.

use std::collections::VecDeque;

use super::load::{Next, Schedule};
use super::response::Parser;
use super::tally::{Failure, Tally};

/// What all connections of a run share.
#[derive(Debug)]
pub struct Run {
    /// When what is sent.
    pub schedule: Schedule,
    /// What came back.
    pub tally: Tally,
    /// Requests sent and not answered.
    pub outstanding: u64,
    /// The requests, as they are sent in turn.
    requests: Vec<Vec<u8>>,
    next_request: usize,
}

impl Run {
    /// A run that asks for each of `paths` in turn.
    pub fn new(schedule: Schedule, tally: Tally, host: &str, paths: &[String]) -> Self {
        let requests = paths
            .iter()
            .map(|path| {
                let agent = concat!("millstream/", env!("CARGO_PKG_VERSION"));
                format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\n\r\n")
                    .into_bytes()
            })
            .collect();
        Self { schedule, tally, outstanding: 0, requests, next_request: 0 }
    }

    /// All connections are there: the run begins.
    pub fn start(&mut self, now_ns: u64) {
        self.schedule.start(now_ns);
        self.tally.start(now_ns);
    }

    /// The run is over; what is still unanswered has failed.
    pub fn finish(&mut self, now_ns: u64) {
        self.tally.failed(Failure::TimedOut, self.outstanding);
        self.outstanding = 0;
        self.tally.finish(now_ns);
    }

    #[inline]
    fn request(&mut self) -> &[u8] {
        let request = &self.requests[self.next_request];
        self.next_request = (self.next_request + 1) % self.requests.len();
        request
    }
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// Answers.
    Answer,
    /// Answers, or this moment, when another request is due.
    AnswerUntil(u64),
    /// This moment.
    Until(u64),
    /// Nothing: it has nothing left to do.
    Finished,
}

/// One connection. It survives a reconnect.
#[derive(Debug)]
pub struct Session {
    parser: Parser,
    /// Intended times of the requests that are not answered, oldest first.
    in_flight: VecDeque<u64>,
    pipeline: usize,
    /// A request that was taken and is not due yet.
    reserved: Option<u64>,
    closing: bool,
}

impl Session {
    /// At most `pipeline` requests are unanswered at a time.
    pub fn new(pipeline: usize) -> Self {
        Self {
            parser: Parser::default(),
            in_flight: VecDeque::with_capacity(pipeline),
            pipeline,
            reserved: None,
            closing: false,
        }
    }

    /// Appends the requests that are due to `out`.
    #[inline]
    pub fn fill(&mut self, run: &mut Run, now_ns: u64, out: &mut Vec<u8>) -> Waits {
        while self.in_flight.len() < self.pipeline && !self.closing {
            let due = match self.reserved.take() {
                Some(at) => at,
                None => match run.schedule.next(now_ns) {
                    Next::At(at) => at,
                    Next::Done => break,
                },
            };
            if due > now_ns {
                self.reserved = Some(due);
                break;
            }
            out.extend_from_slice(run.request());
            self.in_flight.push_back(due);
            run.outstanding += 1;
        }
        match (self.in_flight.is_empty(), self.reserved) {
            (true, None) => Waits::Finished,
            (true, Some(at)) => Waits::Until(at),
            (false, None) => Waits::Answer,
            (false, Some(at)) => Waits::AnswerUntil(at),
        }
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// The answer cannot be read: the connection is of no more use. What was in flight is counted.
    #[inline]
    pub fn received(&mut self, run: &mut Run, now_ns: u64, data: &[u8]) -> Result<(), Failure> {
        run.tally.received_bytes += data.len() as u64;
        let (in_flight, closing) = (&mut self.in_flight, &mut self.closing);
        let mut unasked = false;
        let parsed = self.parser.feed(data, |response| {
            let Some(intended_ns) = in_flight.pop_front() else {
                unasked = true;
                return;
            };
            *closing |= response.close;
            run.outstanding -= 1;
            run.tally.answered(intended_ns, now_ns, &response);
        });
        if parsed.is_err() || unasked {
            self.broken(run, Failure::Malformed);
            return Err(Failure::Malformed);
        }
        Ok(())
    }

    /// The server said that it closes: open another connection once this one is at its end.
    pub fn is_closing(&self) -> bool {
        self.closing && self.in_flight.is_empty()
    }

    /// Whether there is something left to say or to hear.
    pub fn wants_more(&self, run: &Run, now_ns: u64) -> bool {
        !self.in_flight.is_empty() || self.reserved.is_some() || !run.schedule.is_over(now_ns)
    }

    /// The connection ended in good order.
    pub fn ended(&mut self, run: &mut Run) {
        let inside = self.parser.is_inside();
        self.broken(run, if inside { Failure::Truncated } else { Failure::Closed });
    }

    /// The connection is of no more use: whatever is unanswered has failed. Ready for another one.
    pub fn broken(&mut self, run: &mut Run, failure: Failure) {
        let lost = self.in_flight.len() as u64;
        if self.closing {
            // Announced: the requests behind the last answer were not refused but never read.
            run.tally.failed(Failure::Closed, lost);
        } else {
            run.tally.failed(failure, lost);
        }
        run.outstanding -= lost;
        self.in_flight.clear();
        self.parser = Parser::default();
        self.closing = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::load::Limits;
    use std::time::Duration;

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab";

    fn run(requests: u64, rate: Option<f64>) -> Run {
        let limits = Limits { duration: Duration::from_secs(1), requests: Some(requests) };
        let paths = ["/a".to_owned(), "/b".to_owned()];
        let mut run = Run::new(Schedule::new(limits, rate), Tally::new(false), "h", &paths);
        run.start(0);
        run
    }

    #[test]
    fn paths_take_turns_and_answers_are_timed_from_the_intended_moment() {
        let mut run = run(3, Some(1000.0));
        let mut session = Session::new(1);
        let mut out = Vec::new();
        assert_eq!(session.fill(&mut run, 0, &mut out), Waits::Answer);
        assert!(out.starts_with(b"GET /a HTTP/1.1\r\nHost: h\r\n"));
        // The answer takes 5 ms: the next request was due after one.
        session.received(&mut run, 5_000_000, OK).unwrap();
        out.clear();
        assert_eq!(session.fill(&mut run, 5_000_000, &mut out), Waits::Answer);
        assert!(out.starts_with(b"GET /b"));
        session.received(&mut run, 5_500_000, OK).unwrap();
        let near = |value: u64, ns: u64| value.abs_diff(ns) < ns / 500;
        assert!(near(run.tally.latency.max(), 5_000_000), "the first");
        assert!(near(run.tally.latency.min(), 4_500_000), "sent late, and that counts");
    }

    #[test]
    fn a_request_that_is_not_due_is_waited_for() {
        let mut run = run(2, Some(1000.0));
        let mut session = Session::new(1);
        let mut out = Vec::new();
        session.fill(&mut run, 0, &mut out);
        session.received(&mut run, 100, OK).unwrap();
        assert_eq!(session.fill(&mut run, 100, &mut out), Waits::Until(1_000_000));
        assert_eq!(session.fill(&mut run, 1_000_000, &mut out), Waits::Answer);
        session.received(&mut run, 1_000_100, OK).unwrap();
        assert_eq!(session.fill(&mut run, 1_000_200, &mut out), Waits::Finished);
    }

    #[test]
    fn every_request_is_answered_or_has_failed() {
        let mut run = run(8, None);
        let mut session = Session::new(4);
        let mut out = Vec::new();
        session.fill(&mut run, 0, &mut out);
        session.received(&mut run, 1, &[OK, &OK[..20]].concat()).unwrap();
        session.ended(&mut run);
        assert_eq!(run.tally.failures[&Failure::Truncated], 3);
        session.fill(&mut run, 2, &mut out);
        session.broken(&mut run, Failure::Reset);
        assert_eq!(run.tally.failures[&Failure::Reset], 4);
        assert_eq!((run.tally.latency.len(), run.outstanding), (1, 0));
        assert_eq!(session.fill(&mut run, 3, &mut out), Waits::Finished);
    }

    #[test]
    fn an_answer_that_nobody_asked_for_is_an_error() {
        let mut run = run(1, None);
        let mut session = Session::new(1);
        session.fill(&mut run, 0, &mut Vec::new());
        let twice = [OK, OK].concat();
        assert_eq!(session.received(&mut run, 1, &twice), Err(Failure::Malformed));
    }
}
