//! One direction of a link: queue, serialiser, wire, receiver's ring.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use millstream_buf::{Arena, IoBuf, IoBufMut};
use millstream_timer::Instant;

use crate::config::{DirectionConfig, WhenFull};
use crate::rng::Rng;
use crate::stats::{DirectionStats, Fate};

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the first end to the second.
    AToB,
    /// From the second end to the first.
    BToA,
}

/// A frame on the wire, or in the receiver's ring.
pub(crate) struct Arrival {
    at: Instant,
    /// Tells arrivals of one moment apart.
    seq: u64,
    pub(crate) frame: IoBuf,
    pub(crate) corrupted: bool,
}

impl Ord for Arrival {
    /// Reversed: the heap's greatest is the next to arrive.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

impl PartialOrd for Arrival {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Arrival {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Arrival {}

/// A stream of random numbers for each fault.
struct Dice {
    loss: Rng,
    burst: Rng,
    jitter: Rng,
    reorder: Rng,
    duplicate: Rng,
    corrupt: Rng,
}

/// A frame that waits for the serialiser.
struct Waiting {
    starts: Instant,
    bytes: usize,
}

pub(crate) struct OneWay {
    pub(crate) config: DirectionConfig,
    pub(crate) stats: DirectionStats,
    dice: Dice,
    in_bad_state: bool,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// When the serialiser is done with all that it was given, and what is left of a nanosecond
    /// then, in units of 1/bandwidth.
    busy_until: Instant,
    busy_rest: u64,
    last_arrival: Instant,
    next_seq: u64,
    on_wire: BinaryHeap<Arrival>,
    ring: VecDeque<Arrival>,
    /// The sender was refused, and wants to know when there is room.
    refused: bool,
    /// Buffers that the sender fills. After the frames in this list, which must go home first.
    pub(crate) arena: Arena,
}

impl OneWay {
    pub(crate) fn new(config: DirectionConfig, arena: Arena, mut rng: Rng) -> Self {
        let arena_stats = arena.stats();
        let buffers = arena_stats.frames.0 + arena_stats.blocks.0;
        let dice = Dice {
            loss: rng.fork(),
            burst: rng.fork(),
            jitter: rng.fork(),
            reorder: rng.fork(),
            duplicate: rng.fork(),
            corrupt: rng.fork(),
        };
        Self {
            config,
            stats: DirectionStats::default(),
            dice,
            in_bad_state: false,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            busy_until: Instant::ZERO,
            busy_rest: 0,
            last_arrival: Instant::ZERO,
            next_seq: 0,
            // A buffer is on the wire twice at most.
            on_wire: BinaryHeap::with_capacity(2 * buffers),
            ring: VecDeque::with_capacity(config.ring_frames.min(2 * buffers)),
            refused: false,
            arena,
        }
    }

    /// Takes effect from the next frame on.
    pub(crate) fn reconfigure(&mut self, now: Instant, config: DirectionConfig) {
        if config.bandwidth_bps != self.config.bandwidth_bps {
            // It was in units of the old bandwidth.
            self.busy_rest = 0;
        }
        self.land(now);
        self.config = config;
    }

    /// Frames that the queue takes now.
    pub(crate) fn room(&mut self, now: Instant, frame_bytes_max: usize) -> usize {
        if self.config.when_full == WhenFull::Drop {
            return usize::MAX;
        }
        self.begin_sending(now);
        let frames = self.config.queue_frames.saturating_sub(self.waiting.len());
        let bytes = self.config.queue_bytes.saturating_sub(self.waiting_bytes);
        let idle = usize::from(self.busy_until <= now);
        let room = frames.min(bytes / frame_bytes_max.max(1)) + idle;
        self.refused |= room == 0;
        room
    }

    /// Whether the queue has no place for a frame of so many bytes. One that finds the serialiser
    /// idle need not wait.
    pub(crate) fn is_full(&mut self, now: Instant, bytes: usize) -> bool {
        self.begin_sending(now);
        let full = self.busy_until > now
            && (self.waiting.len() >= self.config.queue_frames
                || self.waiting_bytes.saturating_add(bytes) > self.config.queue_bytes);
        self.refused |= full && self.config.when_full == WhenFull::Refuse;
        full
    }

    /// Takes a frame: all of its fate is rolled here. `keep` is the filter's verdict.
    pub(crate) fn send(
        &mut self,
        now: Instant,
        up: bool,
        keep: bool,
        mut frame: IoBufMut,
        len: usize,
    ) -> Fate {
        self.stats.offered += 1;
        self.stats.offered_bytes += len as u64;
        let mut mark = false;
        let fate = self.accept(now, up, keep, len, &mut mark);
        match fate {
            Fate::Sent => {
                if mark && frame.get_mut(..len).is_some_and(mark_congestion) {
                    self.stats.marked += 1;
                }
                self.put_on_wire(frame, len);
            }
            _ => self.stats.count_drop(fate),
        }
        fate
    }

    /// `mark`: the queue was so long that the frame is to tell.
    fn accept(&mut self, now: Instant, up: bool, keep: bool, len: usize, mark: &mut bool) -> Fate {
        if !up {
            return Fate::LinkDown;
        }
        if !keep {
            return Fate::Filtered;
        }
        if self.is_full(now, len) {
            return Fate::QueueFull;
        }
        *mark = self.waiting.len() >= self.config.mark_frames;
        // A frame that the wire loses has taken its time in the serialiser.
        self.serialise(now, len);
        let lost = self.dice.loss.chance(self.config.loss);
        if self.burst_loses() {
            Fate::LostInBurst
        } else if lost {
            Fate::Lost
        } else {
            Fate::Sent
        }
    }

    fn burst_loses(&mut self) -> bool {
        let Some(burst) = self.config.burst_loss else { return false };
        let change = if self.in_bad_state { burst.bad_to_good } else { burst.good_to_bad };
        self.in_bad_state ^= self.dice.burst.chance(change);
        // Rolled in both states, so that each frame takes two numbers.
        self.dice.burst.chance(burst.loss_in_bad) && self.in_bad_state
    }

    /// Moves `busy_until` past a frame of `len` bytes.
    fn serialise(&mut self, now: Instant, len: usize) {
        if self.busy_until <= now {
            self.busy_until = now;
            self.busy_rest = 0;
        }
        let starts = self.busy_until;
        let waits_nanos = starts.nanos_since(now);
        self.stats.queued += 1;
        self.stats.waited_nanos += waits_nanos;
        self.stats.waited_nanos_max = self.stats.waited_nanos_max.max(waits_nanos);
        if let Some(bandwidth_bps) = std::num::NonZeroU64::new(self.config.bandwidth_bps) {
            let bits = 8 * (len as u128 + u128::from(self.config.overhead_bytes));
            let total = bits * 1_000_000_000 + u128::from(self.busy_rest);
            let divisor = u128::from(bandwidth_bps.get());
            let nanos = u64::try_from(total / divisor).unwrap_or(u64::MAX);
            self.busy_until = starts.plus_nanos(nanos);
            // Carried over, so that a busy wire keeps its rate exactly.
            self.busy_rest = (total % divisor) as u64;
        }
        if starts > now {
            self.waiting.push_back(Waiting { starts, bytes: len });
            self.waiting_bytes += len;
            let depth = self.waiting.len() as u64;
            self.stats.queue_frames_max = self.stats.queue_frames_max.max(depth);
            self.stats.queue_bytes_max = self.stats.queue_bytes_max.max(self.waiting_bytes as u64);
        }
    }

    fn put_on_wire(&mut self, mut frame: IoBufMut, len: usize) {
        // All dice are thrown for each frame, used or not.
        let jitter = self.dice.jitter.below(self.config.jitter_nanos);
        let held_back = self.dice.reorder.chance(self.config.reorder);
        let held_nanos = 1 + self.dice.reorder.below(self.config.reorder_nanos);
        let twice = self.dice.duplicate.chance(self.config.duplicate);
        let corrupted = self.dice.corrupt.chance(self.config.corrupt) && len > 0;

        let mut at = self.busy_until.plus_nanos(self.config.delay_nanos).plus_nanos(jitter);
        if held_back {
            at = at.plus_nanos(held_nanos);
            self.stats.held_back += 1;
        } else {
            at = at.max(self.last_arrival);
            self.last_arrival = at;
        }
        if corrupted {
            self.flip_bits(&mut frame, len);
            self.stats.corrupted += 1;
        }
        let frame = frame.freeze(0..len);
        if twice {
            self.stats.duplicated += 1;
            self.arrive(at, frame.clone(), corrupted);
        }
        self.arrive(at, frame, corrupted);
    }

    fn flip_bits(&mut self, frame: &mut [u8], len: usize) {
        let bits = 8 * len as u64;
        let first = self.dice.corrupt.below(bits);
        let count = (1 + self.dice.corrupt.below(3)).min(bits);
        // Neighbours, so that no flip takes another back.
        for bit in (first..first + count).map(|bit| bit % bits) {
            if let Some(byte) = frame.get_mut((bit / 8) as usize) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    fn arrive(&mut self, at: Instant, frame: IoBuf, corrupted: bool) {
        self.stats.in_flight += 1;
        self.on_wire.push(Arrival { at, seq: self.next_seq, frame, corrupted });
        self.next_seq += 1;
    }

    /// Takes what has begun to be sent out of the queue.
    fn begin_sending(&mut self, now: Instant) {
        while self.waiting.front().is_some_and(|first| first.starts <= now) {
            let Some(begun) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= begun.bytes;
        }
    }

    /// Frames that wait for the serialiser at this moment, and their bytes.
    pub(crate) fn queue(&mut self, now: Instant) -> (usize, usize) {
        self.begin_sending(now);
        (self.waiting.len(), self.waiting_bytes)
    }

    /// Loses what has arrived and was not taken: its host is gone.
    pub(crate) fn forget_arrivals(&mut self, now: Instant) {
        self.land(now);
        self.stats.dropped_down += self.ring.len() as u64;
        self.stats.in_flight -= self.ring.len() as u64;
        self.ring.clear();
    }

    /// Moves what has arrived into the receiver's ring. Frames leave it only in [`Self::receive`],
    /// which comes here first, so it does no harm that arrivals pass unseen in between.
    fn land(&mut self, now: Instant) {
        while self.on_wire.peek().is_some_and(|next| next.at <= now) {
            let Some(arrival) = self.on_wire.pop() else { break };
            if self.ring.len() < self.config.ring_frames {
                self.ring.push_back(arrival);
            } else {
                self.stats.dropped_ring += 1;
                self.stats.in_flight -= 1;
            }
        }
    }

    /// The next frame that has arrived.
    pub(crate) fn receive(&mut self, now: Instant) -> Option<Arrival> {
        self.land(now);
        let arrival = self.ring.pop_front()?;
        self.stats.in_flight -= 1;
        self.stats.delivered += 1;
        self.stats.delivered_bytes += arrival.frame.len() as u64;
        Some(arrival)
    }

    /// Loses everything that has not arrived.
    pub(crate) fn cut(&mut self, now: Instant) {
        self.land(now);
        self.stats.dropped_down += self.on_wire.len() as u64;
        self.stats.in_flight -= self.on_wire.len() as u64;
        self.on_wire.clear();
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.busy_until = now;
        self.busy_rest = 0;
        self.last_arrival = now;
    }

    /// When the first frame arrives that is not in the ring yet, or did if one is there.
    pub(crate) fn next_arrival(&self) -> Instant {
        let first = self.ring.front().or(self.on_wire.peek());
        first.map_or(Instant::FAR_FUTURE, |arrival| arrival.at)
    }

    /// When the first frame arrives after `now`.
    pub(crate) fn next_arrival_after(&mut self, now: Instant) -> Instant {
        self.land(now);
        self.on_wire.peek().map_or(Instant::FAR_FUTURE, |arrival| arrival.at)
    }

    /// When a sender that was refused finds room.
    pub(crate) fn next_room(&self, now: Instant) -> Instant {
        if !self.refused {
            return Instant::FAR_FUTURE;
        }
        let first = self.waiting.iter().map(|waiting| waiting.starts).find(|starts| *starts > now);
        let room = first.unwrap_or(self.busy_until);
        if room > now { room } else { Instant::FAR_FUTURE }
    }

    /// The sender tries again: it will be refused anew if there is no room.
    pub(crate) fn forget_refusal(&mut self) {
        self.refused = false;
    }
}

/// Sets "congestion experienced" in a frame whose sender can take it (RFC 3168 section 5): in the
/// last two bits of IPv4's type of service or IPv6's traffic class. `false` if it is none.
fn mark_congestion(frame: &mut [u8]) -> bool {
    match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, packet @ ..] => {
            let Some(header) = packet.first_chunk_mut::<20>() else { return false };
            let before = header[1];
            if matches!(before & 3, 0 | 3) {
                return before & 3 == 3;
            }
            header[1] = before | 3;
            // RFC 1624 equation 3: HC' = ~(~HC + ~m + m').
            let checksum = u16::from_be_bytes([header[10], header[11]]);
            let sum = u32::from(!checksum) + u32::from(!u16::from(before)) + u32::from(before | 3);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            [header[10], header[11]] = (!(sum as u16)).to_be_bytes();
            true
        }
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, packet @ ..] => {
            // The traffic class lies across the first two bytes; its low bits in the second one.
            let Some(class) = packet.get_mut(1) else { return false };
            let capable = matches!((*class >> 4) & 3, 1 | 2);
            if capable {
                *class |= 0x30;
            }
            capable || (*class >> 4) & 3 == 3
        }
        _ => false,
    }
}
