//! A path with delay, a bottleneck and faults, between two packet sockets: frames that come from one
//! end leave at the other, unless something happens to them. Every fault is drawn from a seed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millstream_sim::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Frames taken from one end before the other gets its turn.
const BURST: usize = 64;
/// How long the relay sleeps at most before it looks whether it shall end.
const NAP: Duration = Duration::from_millis(100);
/// Longer than any frame of an interface without offloads.
const FRAME_MAX: usize = 64 << 10;
/// Bytes of an Ethernet header, which is never corrupted: what a switch would not pass on is lost.
const ETHERNET: usize = 14;

/// What happens to frames, in each direction alike. Probabilities are per frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Impairments {
    /// From which all randomness comes.
    pub seed: u64,
    /// It is lost.
    pub loss: f64,
    /// It is held back for 2 to 10 ms while others pass.
    pub reorder: f64,
    /// It goes twice.
    pub duplicate: f64,
    /// One bit of it is flipped.
    pub corrupt: f64,
    /// How long it takes from end to end, one way.
    pub delay: Duration,
    /// Bits a second that pass; 0: without limit.
    pub rate_bps: u64,
    /// Bytes that wait for their turn at that rate; what comes on top is dropped.
    pub queue_bytes: u64,
}

impl Default for Impairments {
    fn default() -> Self {
        Self {
            seed: 1,
            loss: 0.0,
            reorder: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            delay: Duration::ZERO,
            rate_bps: 0,
            queue_bytes: 1 << 20,
        }
    }
}

impl Impairments {
    /// Reads `--seed N --loss P --reorder P --duplicate P --corrupt P --delay-ms MS --rate-mbit N
    /// --queue-bytes N`, in any order.
    ///
    /// # Errors
    /// A sentence that names what was not understood.
    pub fn parse<'a>(args: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut found = Self::default();
        let mut args = args.into_iter();
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number: f64 = value.parse().map_err(|_| format!("{name} {value} is no number"))?;
            match name {
                "--seed" => found.seed = number as u64,
                "--loss" => found.loss = number,
                "--reorder" => found.reorder = number,
                "--duplicate" => found.duplicate = number,
                "--corrupt" => found.corrupt = number,
                "--delay-ms" => found.delay = Duration::from_secs_f64(number / 1e3),
                "--rate-mbit" => found.rate_bps = (number * 1e6) as u64,
                "--queue-bytes" => found.queue_bytes = number as u64,
                _ => return Err(format!("{name} is no impairment")),
            }
        }
        Ok(found)
    }
}

/// What the relay did, in frames of both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed on.
    pub relayed: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Held back.
    pub reordered: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// With a bit flipped.
    pub corrupted: u64,
    /// Dropped at the full queue.
    pub overflowed: u64,
    /// Not taken by the interface.
    pub refused: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { relayed, lost, reordered, duplicated, corrupted, overflowed, refused } = self;
        write!(
            f,
            "relayed {relayed} lost {lost} reordered {reordered} duplicated {duplicated} \
             corrupted {corrupted} overflowed {overflowed} refused {refused}"
        )
    }
}

/// A frame on its way.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    due: Instant,
    /// Keeps the order of equals.
    number: u64,
    frame: Vec<u8>,
}

/// One direction.
struct Direction {
    rng: Rng,
    /// In order of arrival, which is that of departure.
    queue: VecDeque<Flying>,
    /// Held back.
    held: BinaryHeap<Reverse<Flying>>,
    /// When the bottleneck is done with all that it was given.
    free_at: Instant,
    number: u64,
}

impl Direction {
    fn new(rng: Rng) -> Self {
        let (queue, held) = (VecDeque::new(), BinaryHeap::new());
        Self { rng, queue, held, free_at: Instant::now(), number: 0 }
    }

    fn take(&mut self, mut frame: Vec<u8>, how: &Impairments, now: Instant, counts: &mut Counts) {
        if self.rng.chance(how.loss) {
            counts.lost += 1;
            return;
        }
        if self.rng.chance(how.corrupt) && frame.len() > ETHERNET {
            counts.corrupted += 1;
            let bits = (frame.len() - ETHERNET) as u64 * 8;
            let bit = ETHERNET * 8 + self.rng.below(bits) as usize;
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        if self.rng.chance(how.duplicate) {
            counts.duplicated += 1;
            self.enqueue(frame.clone(), how, now, counts);
        }
        self.enqueue(frame, how, now, counts);
    }

    fn enqueue(&mut self, frame: Vec<u8>, how: &Impairments, now: Instant, counts: &mut Counts) {
        let mut due = now;
        if how.rate_bps > 0 {
            let waits = self.free_at.saturating_duration_since(now).as_secs_f64();
            if waits * how.rate_bps as f64 / 8.0 > how.queue_bytes as f64 {
                counts.overflowed += 1;
                return;
            }
            let nanos = frame.len() as u64 * 8 * 1_000_000_000 / how.rate_bps;
            self.free_at = self.free_at.max(now) + Duration::from_nanos(nanos);
            due = self.free_at;
        }
        due += how.delay;
        self.number += 1;
        let number = self.number;
        if self.rng.chance(how.reorder) {
            counts.reordered += 1;
            due += Duration::from_micros(2_000 + self.rng.below(8_000));
            self.held.push(Reverse(Flying { due, number, frame }));
        } else {
            self.queue.push_back(Flying { due, number, frame });
        }
    }

    fn next(&self) -> Option<Instant> {
        let held = self.held.peek().map(|held| held.0.due);
        self.queue.front().map(|front| front.due).into_iter().chain(held).min()
    }

    /// The next frame that is due.
    fn due(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.held.peek().is_some_and(|held| held.0.due <= now) {
            return self.held.pop().map(|held| held.0.frame);
        }
        if self.queue.front().is_some_and(|front| front.due <= now) {
            return self.queue.pop_front().map(|front| front.frame);
        }
        None
    }
}

/// Relays frames between two packet sockets until `stop`.
pub fn relay(ends: [BorrowedFd<'_>; 2], how: &Impairments, stop: &AtomicBool) -> Counts {
    let mut rng = Rng::new(how.seed);
    let mut directions = [Direction::new(rng.fork()), Direction::new(rng.fork())];
    let mut counts = Counts::default();
    let mut buffer = vec![0; FRAME_MAX];
    while !stop.load(Ordering::Relaxed) {
        let mut came = false;
        for (from, direction) in directions.iter_mut().enumerate() {
            for _ in 0..BURST {
                // Drained, or the interface has gone.
                let Ok((len, _)) = recv(ends[from], &mut buffer, RecvFlags::DONTWAIT) else {
                    break;
                };
                came = true;
                let frame = buffer[..len.min(FRAME_MAX)].to_vec();
                direction.take(frame, how, Instant::now(), &mut counts);
            }
            let now = Instant::now();
            while let Some(frame) = direction.due(now) {
                // Its queue is full, or the interface has gone.
                match send(ends[1 - from], &frame, SendFlags::DONTWAIT) {
                    Ok(_) => counts.relayed += 1,
                    Err(_) => counts.refused += 1,
                }
            }
        }
        if came {
            continue;
        }
        let next = directions.iter().filter_map(Direction::next).min();
        let now = Instant::now();
        let nap = next.map_or(NAP, |next| next.saturating_duration_since(now).min(NAP));
        let timeout = Timespec::try_from(nap).ok();
        let mut fds = ends.map(|end| PollFd::from_borrowed_fd(end, PollFlags::IN));
        // A signal ends it early.
        let _ = poll(&mut fds, timeout.as_ref());
    }
    counts
}

/// The relay as a process: its ends are packet sockets on standard input and standard output (see
/// `tests/relay.py`). Says `ready` and, after SIGTERM, what it did, on standard error. Returns its
/// exit code.
pub fn main<'a>(args: impl IntoIterator<Item = &'a str>) -> u8 {
    let how = match Impairments::parse(args) {
        Ok(how) => how,
        Err(error) => {
            eprintln!("{error}");
            return 2;
        }
    };
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let asked = std::sync::Arc::clone(&stop);
    if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGTERM, asked) {
        eprintln!("{error}");
        return 1;
    }
    eprintln!("ready");
    let (input, output) = (std::io::stdin(), std::io::stdout());
    let counts = relay([input.as_fd(), output.as_fd()], &how, &stop);
    eprintln!("{counts}");
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(how: &Impairments, count: usize) -> (Vec<Vec<u8>>, Counts) {
        let (mut direction, mut counts) = (Direction::new(Rng::new(how.seed)), Counts::default());
        let start = Instant::now();
        direction.free_at = start;
        for number in 0..count {
            direction.take(vec![number as u8; 1000], how, start, &mut counts);
        }
        let later = start + Duration::from_secs(60);
        (std::iter::from_fn(|| direction.due(later)).collect(), counts)
    }

    #[test]
    fn without_impairments_everything_passes_in_order() {
        let (passed, counts) = frames(&Impairments::default(), 200);
        assert_eq!(passed.len(), 200);
        assert!(passed.iter().map(|frame| frame[0]).eq(0..200));
        assert_eq!(counts, Counts::default());
    }

    #[test]
    fn each_fault_happens_as_often_as_it_should() {
        let how = Impairments {
            loss: 0.1,
            reorder: 0.1,
            duplicate: 0.1,
            corrupt: 0.1,
            ..Impairments::default()
        };
        let (passed, counts) = frames(&how, 10_000);
        for count in [counts.lost, counts.reordered, counts.duplicated, counts.corrupted] {
            assert!((700..1400).contains(&count), "{counts:?}");
        }
        assert_eq!(passed.len() as u64, 10_000 - counts.lost + counts.duplicated);
        assert_eq!(frames(&how, 10_000), (passed, counts), "a seed is a run");
    }

    #[test]
    fn the_bottleneck_spaces_frames_and_its_queue_is_bounded() {
        let how = Impairments {
            rate_bps: 8_000_000,
            queue_bytes: 10_000,
            delay: Duration::from_millis(20),
            ..Impairments::default()
        };
        let (mut direction, mut counts) = (Direction::new(Rng::new(1)), Counts::default());
        let start = Instant::now();
        direction.free_at = start;
        for _ in 0..30 {
            direction.take(vec![0; 1000], &how, start, &mut counts);
        }
        assert_eq!(counts.overflowed, 19, "one is being sent and ten wait");
        // A thousand bytes take a millisecond.
        for number in 1..=11 {
            let due = start + Duration::from_millis(20 + number);
            assert_eq!(direction.next(), Some(due));
            assert!(direction.due(due - Duration::from_nanos(1)).is_none());
            assert!(direction.due(due).is_some());
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let parsed = Impairments::parse(["--loss", "0.5", "--delay-ms", "2.5"]).unwrap();
        assert_eq!((parsed.loss, parsed.delay), (0.5, Duration::from_micros(2500)));
        assert!(Impairments::parse(["--rain", "1"]).unwrap_err().contains("--rain"));
        assert!(Impairments::parse(["--loss", "much"]).unwrap_err().contains("much"));
        assert!(Impairments::parse(["--loss"]).unwrap_err().contains("value"));
    }
}
