//! The two ends of a simulated link, and the hand that shakes it.

use std::cell::RefCell;
use std::rc::Rc;

use millstream_buf::{Arena, ArenaConfig, ArenaError, FRAME_BYTES, HugePages, SizeClass};
use millstream_link::{
    Capabilities, Link, LinkStats, RxBurst, RxChecksum, RxFrame, TxError, TxFrame,
};
use millstream_timer::{Clock, Instant, VirtualClock};

use crate::config::{DirectionConfig, LinkConfig, WhenFull};
use crate::drive::Node;
use crate::rng::Rng;
use crate::stats::{DirectionStats, Fate};
use crate::wire::{Direction, OneWay};

/// Bytes of an Ethernet header with two VLAN tags.
const L2_HEADER_MAX: usize = 22;

type Trace = Box<dyn FnMut(Instant, Direction, Fate, &[u8])>;
type Filter = Box<dyn FnMut(Instant, Direction, &[u8]) -> bool>;

struct Inner {
    clock: VirtualClock,
    capabilities: Capabilities,
    class: SizeClass,
    up: bool,
    a_to_b: OneWay,
    b_to_a: OneWay,
    trace: Option<Trace>,
    filter: Option<Filter>,
}

impl Inner {
    fn one_way(&mut self, direction: Direction) -> &mut OneWay {
        match direction {
            Direction::AToB => &mut self.a_to_b,
            Direction::BToA => &mut self.b_to_a,
        }
    }

    fn buffers(&mut self, direction: Direction) -> (usize, usize) {
        let class = self.class;
        let arena = &self.one_way(direction).arena;
        let stats = arena.stats();
        let total = match class {
            SizeClass::Frame => stats.frames.0,
            SizeClass::Block => stats.blocks.0,
        };
        (arena.free(class), total)
    }
}

/// One end of a simulated link.
pub struct SimLink {
    inner: Rc<RefCell<Inner>>,
    clock: VirtualClock,
    capabilities: Capabilities,
    class: SizeClass,
    /// The direction in which this end sends.
    outbound: Direction,
    inbound: Direction,
    stats: LinkStats,
}

/// A simulated link as its network sees it: for watching it and for breaking it.
///
/// Clones are handles on the same link. As a [`Node`] it does no work, but has deadlines: the
/// moments at which frames arrive.
#[derive(Clone)]
pub struct Wire(Rc<RefCell<Inner>>);

/// Makes both ends of a link, and a handle on what lies between them. The ends' addresses are
/// 02:00:00:00:00:01 and 02:00:00:00:00:02.
///
/// # Errors
/// [`ArenaError`] if there is no memory for the buffers.
pub fn pair(
    clock: &VirtualClock,
    config: &LinkConfig,
) -> Result<(SimLink, SimLink, Wire), ArenaError> {
    let class = if usize::from(config.mtu) + L2_HEADER_MAX <= FRAME_BYTES {
        SizeClass::Frame
    } else {
        SizeClass::Block
    };
    let arena = || {
        let (frames, blocks) = match class {
            SizeClass::Frame => (config.buffers, 0),
            SizeClass::Block => (0, config.buffers),
        };
        Arena::new(&ArenaConfig { frames, blocks, huge_pages: HugePages::Never })
    };
    let mut rng = Rng::new(config.seed);
    let capabilities = Capabilities {
        driver: "sim",
        mac: [0; 6],
        mtu: config.mtu,
        tx_slices_max: usize::MAX,
        tx_ipv4_checksum: config.checksum_offload,
        tx_tcp_checksum: config.checksum_offload,
        tx_udp_checksum: config.checksum_offload,
        rx_checksum: config.checksum_offload,
        tso_bytes_max: 0,
        copies_payload: true,
    };
    let inner = Rc::new(RefCell::new(Inner {
        clock: clock.clone(),
        capabilities,
        class,
        up: true,
        a_to_b: OneWay::new(config.a_to_b, arena()?, rng.fork()),
        b_to_a: OneWay::new(config.b_to_a, arena()?, rng.fork()),
        trace: None,
        filter: None,
    }));
    let wire = Wire(inner);
    Ok((wire.end(Direction::AToB), wire.end(Direction::BToA), wire))
}

impl SimLink {
    /// When this end has something to do: frames arrive (a moment in the past if some have arrived
    /// and were not taken), or there is room again after a refusal.
    pub fn next_event(&self) -> Instant {
        let mut inner = self.inner.borrow_mut();
        let room = inner.one_way(self.outbound).next_room(self.clock.now());
        inner.one_way(self.inbound).next_arrival().min(room)
    }

    fn frame_bytes_max(&self) -> usize {
        usize::from(self.capabilities.mtu) + L2_HEADER_MAX
    }
}

impl Link for SimLink {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn rx_burst(&mut self, frames: &mut RxBurst) {
        let now = self.clock.now();
        let mut inner = self.inner.borrow_mut();
        let one_way = inner.one_way(self.inbound);
        while !frames.is_full() {
            let Some(arrival) = one_way.receive(now) else { break };
            let checksum = match (self.capabilities.rx_checksum, arrival.corrupted) {
                (false, _) => RxChecksum::Unknown,
                (true, false) => RxChecksum::Good,
                (true, true) => RxChecksum::Bad,
            };
            self.stats.rx_frames += 1;
            self.stats.rx_bytes += arrival.frame.len() as u64;
            frames.push(RxFrame { buf: arrival.frame, checksum });
        }
    }

    fn tx_room(&mut self) -> usize {
        let (now, bytes_max) = (self.clock.now(), self.frame_bytes_max());
        let mut inner = self.inner.borrow_mut();
        let one_way = inner.one_way(self.outbound);
        one_way.forget_refusal();
        one_way.room(now, bytes_max).min(one_way.arena.free(self.class))
    }

    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
        let (now, len) = (self.clock.now(), frame.len());
        if len > self.frame_bytes_max() {
            return Err(TxError::TooLong);
        }
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        let (up, direction) = (inner.up, self.outbound);
        let one_way = inner.one_way(direction);
        one_way.forget_refusal();
        if up && one_way.config.when_full == WhenFull::Refuse && one_way.is_full(now, len) {
            one_way.stats.refused += 1;
            return Err(TxError::Full);
        }
        let Some(mut slot) = one_way.arena.alloc(self.class) else {
            one_way.stats.refused += 1;
            return Err(TxError::Full);
        };
        let mut end = 0;
        for part in std::iter::once(frame.header).chain(frame.payload.iter().map(|part| &**part)) {
            let next = end + part.len();
            slot.get_mut(end..next).ok_or(TxError::TooLong)?.copy_from_slice(part);
            end = next;
        }
        self.stats.tx_frames += 1;
        self.stats.tx_bytes += len as u64;
        self.stats.tx_copied_bytes += (len - frame.header.len()) as u64;

        let bytes = slot.get(..len).unwrap_or_default();
        let keep = inner.filter.as_mut().is_none_or(|filter| filter(now, direction, bytes));
        // The trace shows the frame as it was sent, so it must be copied before bits are flipped.
        let traced = inner.trace.is_some().then(|| bytes.to_vec());
        let fate = inner.one_way(direction).send(now, up, keep, slot, len);
        if let (Some(trace), Some(bytes)) = (&mut inner.trace, traced) {
            trace(now, direction, fate, &bytes);
        }
        Ok(())
    }

    fn flush(&mut self) {}

    fn is_up(&self) -> bool {
        self.inner.borrow().up
    }

    fn rx_buffers(&self) -> Option<(usize, usize)> {
        Some(self.inner.borrow_mut().buffers(self.inbound))
    }

    fn stats(&self) -> LinkStats {
        let mut inner = self.inner.borrow_mut();
        let rx_missed = inner.one_way(self.inbound).stats.dropped_ring;
        LinkStats { rx_missed, ..self.stats }
    }
}

impl Wire {
    /// The end that sends in direction `outbound`.
    fn end(&self, outbound: Direction) -> SimLink {
        let inner = self.0.borrow();
        let (last, inbound) = match outbound {
            Direction::AToB => (1, Direction::BToA),
            Direction::BToA => (2, Direction::AToB),
        };
        SimLink {
            inner: Rc::clone(&self.0),
            clock: inner.clock.clone(),
            capabilities: Capabilities { mac: [2, 0, 0, 0, 0, last], ..inner.capabilities.clone() },
            class: inner.class,
            outbound,
            inbound,
            stats: LinkStats::default(),
        }
    }

    /// A new handle on the end that sends in direction `outbound`, for a host that has restarted:
    /// what had arrived there and was not taken is lost. The old handle must be gone.
    pub fn reopen(&self, outbound: Direction) -> SimLink {
        let end = self.end(outbound);
        let mut inner = self.0.borrow_mut();
        let now = inner.clock.now();
        inner.one_way(end.inbound).forget_arrivals(now);
        drop(inner);
        end
    }

    /// Frames that wait in a direction's queue at this moment, and their bytes.
    pub fn queue(&self, direction: Direction) -> (usize, usize) {
        let mut inner = self.0.borrow_mut();
        let now = inner.clock.now();
        inner.one_way(direction).queue(now)
    }

    /// Buffers of a direction that are free, and all of them.
    pub fn buffers(&self, direction: Direction) -> (usize, usize) {
        self.0.borrow_mut().buffers(direction)
    }

    /// The next moment after now at which a frame arrives, or at which a refused sender finds room.
    pub fn next_event(&self) -> Instant {
        let mut inner = self.0.borrow_mut();
        let now = inner.clock.now();
        let mut next = |direction| {
            let one_way = inner.one_way(direction);
            one_way.next_arrival_after(now).min(one_way.next_room(now))
        };
        next(Direction::AToB).min(next(Direction::BToA))
    }

    /// Takes the carrier away or gives it back. What is in the queue and on the wire when it goes
    /// is lost; what has arrived is not.
    pub fn set_up(&self, up: bool) {
        let mut inner = self.0.borrow_mut();
        if inner.up && !up {
            let now = inner.clock.now();
            inner.a_to_b.cut(now);
            inner.b_to_a.cut(now);
        }
        inner.up = up;
    }

    /// Changes a direction from the next frame on. Frames under way are not affected.
    pub fn configure(&self, direction: Direction, config: DirectionConfig) {
        let mut inner = self.0.borrow_mut();
        let now = inner.clock.now();
        inner.one_way(direction).reconfigure(now, config);
    }

    /// How a direction is configured.
    pub fn config(&self, direction: Direction) -> DirectionConfig {
        self.0.borrow_mut().one_way(direction).config
    }

    /// Counters of a direction.
    pub fn stats(&self, direction: Direction) -> DirectionStats {
        self.0.borrow_mut().one_way(direction).stats
    }

    /// Shows every frame that is sent, and its [`Fate`], to `trace`. It must not use the link.
    pub fn set_trace(&self, trace: impl FnMut(Instant, Direction, Fate, &[u8]) + 'static) {
        self.0.borrow_mut().trace = Some(Box::new(trace));
    }

    /// Lets only those frames pass for which `keep` is true: for losing just the third one. It must
    /// not use the link.
    pub fn set_filter(&self, keep: impl FnMut(Instant, Direction, &[u8]) -> bool + 'static) {
        self.0.borrow_mut().filter = Some(Box::new(keep));
    }

    /// Lets all frames pass again.
    pub fn clear_filter(&self) {
        self.0.borrow_mut().filter = None;
    }
}

impl Node for Wire {
    fn turn(&mut self) -> bool {
        false
    }

    fn next_deadline(&self) -> Instant {
        self.next_event()
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire")
            .field("a_to_b", &self.stats(Direction::AToB))
            .field("b_to_a", &self.stats(Direction::BToA))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
