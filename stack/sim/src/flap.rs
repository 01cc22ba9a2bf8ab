//! A link that goes down and comes back.

use millstream_timer::{Clock, Instant, VirtualClock};

use crate::drive::Node;
use crate::link::Wire;

/// When a link is down: a number of outages of one length, at one distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flaps {
    /// When the first one begins.
    pub first_nanos: u64,
    /// How long one lasts.
    pub down_nanos: u64,
    /// How long the link is up between two of them.
    pub up_nanos: u64,
    /// How many there are.
    pub count: u32,
}

/// Takes a link down and up again by a schedule.
#[derive(Debug)]
pub struct Flapper {
    wire: Wire,
    clock: VirtualClock,
    flaps: Flaps,
    down: bool,
    next: Instant,
}

impl Flapper {
    /// Begins with the link up.
    pub fn new(wire: &Wire, clock: &VirtualClock, flaps: Flaps) -> Self {
        let next = if flaps.count == 0 {
            Instant::FAR_FUTURE
        } else {
            clock.now().plus_nanos(flaps.first_nanos)
        };
        Self { wire: wire.clone(), clock: clock.clone(), flaps, down: false, next }
    }

    /// Outages that have not ended yet.
    pub fn left(&self) -> u32 {
        self.flaps.count
    }
}

impl Node for Flapper {
    fn turn(&mut self) -> bool {
        if self.next > self.clock.now() {
            return false;
        }
        self.down = !self.down;
        self.wire.set_up(!self.down);
        let span_nanos = if self.down {
            self.flaps.down_nanos
        } else {
            self.flaps.count -= 1;
            self.flaps.up_nanos
        };
        self.next = if self.flaps.count == 0 {
            Instant::FAR_FUTURE
        } else {
            self.next.plus_nanos(span_nanos.max(1))
        };
        true
    }

    fn next_deadline(&self) -> Instant {
        self.next
    }
}
