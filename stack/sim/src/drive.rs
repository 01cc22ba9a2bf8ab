//! Running nodes through virtual time.

use millstream_timer::{Clock, Instant, VirtualClock};

/// Passes without any moving of the clock after which a node is taken to be stuck.
const PASSES_MAX: u32 = 1_000_000;

/// Something that lives in the virtual world: a host's shard, an application, a link.
pub trait Node {
    /// Does what there is to do at this moment. `false`: there was nothing.
    fn turn(&mut self) -> bool;

    /// When it wants its next turn, if nobody gives it work before. [`Instant::FAR_FUTURE`]: never.
    fn next_deadline(&self) -> Instant;
}

/// Runs all nodes in order, over and over, until none has work at this moment, then moves the clock
/// to the earliest deadline, but not beyond `until`. `None`: there is nothing more before `until`,
/// where the clock stands now (or stays where it was, if `until` is [`Instant::FAR_FUTURE`]).
///
/// # Panics
/// If the nodes do not come to rest: they work without end at one moment, or one's deadline stays
/// in the past.
pub fn step(clock: &VirtualClock, nodes: &mut [&mut dyn Node], until: Instant) -> Option<Instant> {
    for _ in 0..PASSES_MAX {
        let mut worked = false;
        for node in nodes.iter_mut() {
            worked |= node.turn();
        }
        if worked {
            continue;
        }
        let next = nodes.iter().map(|node| node.next_deadline()).min();
        let next = next.unwrap_or(Instant::FAR_FUTURE);
        if next == Instant::FAR_FUTURE && until == Instant::FAR_FUTURE {
            return None;
        }
        if next > clock.now() {
            clock.advance_to(next.min(until));
            return (next <= until).then_some(next);
        }
        // A deadline has passed although nobody worked: a timing wheel may need several turns for
        // a large slot, so try again.
    }
    let overdue = nodes.iter().position(|node| node.next_deadline() <= clock.now());
    panic!(
        "the nodes do not come to rest at {} ns (overdue: node {overdue:?}); a turn must say whether \
         it worked, and a deadline must move on once it was served",
        clock.now().as_nanos()
    );
}

/// Runs the nodes through everything that happens up to `until`, that moment included, and leaves
/// the clock there. With [`Instant::FAR_FUTURE`] it runs them until nothing is left to happen.
///
/// # Panics
/// As [`step`].
pub fn drive(clock: &VirtualClock, nodes: &mut [&mut dyn Node], until: Instant) {
    while step(clock, nodes, until).is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Works at given moments, and notes when it did.
    struct Ticker {
        clock: VirtualClock,
        due: Vec<Instant>,
        done: Vec<Instant>,
    }

    impl Ticker {
        fn new(clock: &VirtualClock, micros: &[u64]) -> Self {
            let due = micros.iter().rev().map(|micros| Instant::from_micros(*micros)).collect();
            Self { clock: clock.clone(), due, done: Vec::new() }
        }
    }

    impl Node for Ticker {
        fn turn(&mut self) -> bool {
            let due = self.next_deadline() <= self.clock.now();
            if due {
                self.due.pop();
                self.done.push(self.clock.now());
            }
            due
        }

        fn next_deadline(&self) -> Instant {
            self.due.last().copied().unwrap_or(Instant::FAR_FUTURE)
        }
    }

    #[test]
    fn the_clock_jumps_from_deadline_to_deadline() {
        let clock = VirtualClock::new();
        let mut a = Ticker::new(&clock, &[0, 5, 5, 90_000_000]);
        let mut b = Ticker::new(&clock, &[7, 10, 11]);
        let until = Instant::from_micros(10);
        drive(&clock, &mut [&mut a, &mut b], until);
        assert_eq!(clock.now(), until);
        assert_eq!(a.done, [0, 5, 5].map(Instant::from_micros));
        assert_eq!(b.done, [7, 10].map(Instant::from_micros));
        let later = Instant::from_micros(100_000_000);
        let next = step(&clock, &mut [&mut a, &mut b], later);
        assert_eq!(next, Some(Instant::from_micros(11)));
        drive(&clock, &mut [&mut a, &mut b], later);
        assert_eq!((a.due.len(), b.due.len(), clock.now()), (0, 0, later));
        let mut last = Ticker::new(&clock, &[200_000_000]);
        drive(&clock, &mut [&mut last], Instant::FAR_FUTURE);
        assert_eq!(clock.now(), Instant::from_micros(200_000_000));
    }

    #[test]
    #[should_panic(expected = "overdue: node Some(1)")]
    fn a_node_that_never_serves_its_deadline_is_named() {
        struct Stuck;
        impl Node for Stuck {
            fn turn(&mut self) -> bool {
                false
            }
            fn next_deadline(&self) -> Instant {
                Instant::ZERO
            }
        }
        let clock = VirtualClock::new();
        let mut idle = Ticker::new(&clock, &[]);
        drive(&clock, &mut [&mut idle, &mut Stuck], Instant::from_micros(1));
    }
}
