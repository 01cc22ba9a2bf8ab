//! Data in flight: a record for each segment, or run of segments that were sent at once, and for each
//! connection that has any a [`Flight`].
//!
//! Both come from arrays that the connections of a shard share, inside of their
//! [`SliceSlab`](crate::SliceSlab), so that an idle connection owns none. A connection whose flight
//! is one segment, sent once, needs none either: its numbers are in the connection's own record.
//! When the array of records is full, records merge: what is known gets coarser, nothing fails. So do
//! they beyond a number that keeps a walk along one flight short, whatever a peer acknowledges.

use arrayvec::ArrayVec;
use millstream_wire::tcp::SeqNumber;

use crate::mtu::Trial;
use crate::rate::RateState;
use crate::recovery::{Probe, Prr, Rack, Undo};
use crate::slab::NIL;

bitflags::bitflags! {
    /// What became of a segment.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Fate: u16 {
        /// The peer has it (RFC 2018).
        const SACKED = 1;
        /// It is taken for lost.
        const LOST = 1 << 1;
        /// It was sent again, and that is in flight.
        const RESENT = 1 << 2;
        /// It was sent again at some time: an ACK of it measures nothing (Karn).
        const EVER_RESENT = 1 << 3;
        /// It stands for more than was sent again, for want of records.
        const COARSE = 1 << 4;
        /// The application, not the network, set the pace when it was sent.
        const APP_LIMITED = 1 << 5;
        /// It stands in the order of sending.
        const TIMED = 1 << 6;
        /// It stands for segments that were sent at different times: `sent_us` is that of the last.
        const MERGED = 1 << 7;
        /// It was a part of such a one, and when it was sent is not known.
        const VAGUE = 1 << 8;
        /// It is the rest of a run that is sent again at one go, whose last segment gets PSH.
        const RUN_END = 1 << 9;
    }
}

/// A segment in flight, or several that share a fate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) start: SeqNumber,
    pub(crate) end: SeqNumber,
    /// Neighbours in the order of numbers. `next` also chains free records.
    pub(crate) next: u32,
    pub(crate) prev: u32,
    /// Neighbours in the order of sending.
    pub(crate) later: u32,
    pub(crate) earlier: u32,
    pub(crate) sent_us: u32,
    /// How many segments of the flight had been sent before: tells what moments cannot.
    pub(crate) order: u32,
    /// What had been delivered, and found lost, when it was sent: [`RateState`].
    pub(crate) delivered: u32,
    pub(crate) delivered_us: u32,
    pub(crate) first_sent_us: u32,
    pub(crate) lost: u32,
    /// In flight when it was sent, itself included.
    pub(crate) tx_flight: u32,
    pub(crate) segments: u16,
    pub(crate) fate: Fate,
}

impl Record {
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.end.bytes_since(self.start)
    }

    /// Its part below `end`, which is inside of it.
    pub(crate) fn until(mut self, end: SeqNumber) -> Self {
        self.end = end;
        self.fate.set(Fate::VAGUE, self.is(Fate::MERGED));
        self
    }

    /// Where it stands in the order of sending, for [`sent_after`](crate::rate::sent_after).
    #[inline]
    pub(crate) fn place(&self) -> (u32, u32) {
        (self.order, self.end.0)
    }

    #[inline]
    pub(crate) fn is(&self, fate: Fate) -> bool {
        self.fate.intersects(fate)
    }

    /// Lost, and not sent again.
    #[inline]
    pub(crate) fn waits(&self) -> bool {
        self.fate.intersection(Fate::LOST | Fate::RESENT) == Fate::LOST
    }
}

/// Records of one flight, up to which whatever is sent at a time gets its own: segments enough for
/// 100 ms at half a gigabit a second even if each is sent alone.
pub(crate) const FINE_RECORDS: u32 = 4_096;

/// Beyond so many records, new ones stand for more segments at a time.
const MERGED_SEGMENTS: [(u32, u16); 2] = [(FINE_RECORDS + 128, 16), (FINE_RECORDS + 256, 256)];

/// Most records of one flight: what is cut for losses and selective acknowledgements comes on top.
/// Where every other segment of such a flight is lost, as when slow start overshoots, that is a record
/// for each.
pub(crate) const RECORDS_MAX: u32 = 16_384;

/// Most selective blocks in an ACK.
pub(crate) const BLOCKS_MAX: usize = 4;

/// Ranges of numbers, ascending and apart from each other.
pub(crate) type Ranges = ArrayVec<(SeqNumber, SeqNumber), BLOCKS_MAX>;

/// The records of a shard.
#[derive(Debug)]
pub(crate) struct Records {
    nodes: Vec<Record>,
    free: u32,
    used: usize,
    max: usize,
}

impl Records {
    /// Memory for `max` records is set aside, but touched only as far as they are used.
    fn with_capacity(max: usize) -> Self {
        let max = max.min(NIL as usize - 1);
        Self { nodes: Vec::with_capacity(max), free: NIL, used: 0, max }
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&Record> {
        self.nodes.get(index as usize)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Record> {
        self.nodes.get_mut(index as usize)
    }

    #[inline]
    fn insert(&mut self, record: Record) -> Option<u32> {
        let index = self.free;
        if let Some(node) = self.nodes.get_mut(index as usize) {
            self.free = node.next;
            *node = record;
            self.used += 1;
            return Some(index);
        }
        if self.nodes.len() == self.max {
            return None;
        }
        self.nodes.push(record);
        self.used += 1;
        Some(self.nodes.len() as u32 - 1)
    }

    #[inline]
    fn remove(&mut self, index: u32) {
        if let Some(node) = self.nodes.get_mut(index as usize) {
            node.next = self.free;
            self.free = index;
            self.used -= 1;
        }
    }
}

/// What a connection knows about its data in flight.
#[derive(Debug)]
pub(crate) struct Flight {
    /// The records, in the order of numbers and of sending.
    pub(crate) head: u32,
    tail: u32,
    pub(crate) oldest: u32,
    newest: u32,
    order: u32,
    /// How many records there are.
    count: u32,
    /// What the ACK before acknowledged selectively, all of which the records tell.
    pub(crate) known: Ranges,
    /// Where the last block of SACKs began, and where lost segments may wait.
    pub(crate) sack_hint: u32,
    pub(crate) lost_hint: u32,
    /// Bytes and segments that the peer has beyond what it acknowledged cumulatively. Without SACK
    /// they are guessed from duplicate ACKs.
    pub(crate) sacked_bytes: u32,
    pub(crate) sacked_segments: u32,
    pub(crate) lost_bytes: u32,
    /// Bytes sent again and in flight.
    pub(crate) resent_bytes: u32,
    /// Bytes lost and not sent again.
    pub(crate) waiting_bytes: u32,
    /// Behind the highest byte that was selectively acknowledged.
    pub(crate) fack: SeqNumber,
    /// Behind the highest number sent when the state last changed (RFC 6582, "recover").
    pub(crate) high_seq: SeqNumber,
    /// Most segments that were in flight, whether the window was full, and until when that counts
    /// (RFC 7661).
    pub(crate) out_max_bytes: u32,
    pub(crate) usage_seq: SeqNumber,
    pub(crate) window_full: bool,
    pub(crate) rack: Rack,
    pub(crate) prr: Prr,
    pub(crate) probe: Probe,
    pub(crate) undo: Undo,
    pub(crate) rate: RateState,
    pub(crate) trial: Trial,
}

impl Flight {
    fn new(una: SeqNumber) -> Self {
        Self {
            head: NIL,
            tail: NIL,
            oldest: NIL,
            newest: NIL,
            order: 0,
            count: 0,
            known: Ranges::new(),
            sack_hint: NIL,
            lost_hint: NIL,
            sacked_bytes: 0,
            sacked_segments: 0,
            lost_bytes: 0,
            resent_bytes: 0,
            waiting_bytes: 0,
            fack: una,
            high_seq: una,
            out_max_bytes: 0,
            usage_seq: una,
            window_full: false,
            rack: Rack::default(),
            prr: Prr::default(),
            probe: Probe::default(),
            undo: Undo::default(),
            rate: RateState::default(),
            trial: Trial::default(),
        }
    }

    /// Bytes that are out but not in flight, less what was sent again: modulo 2^32, since a probe
    /// can have been sent again without being lost.
    #[inline]
    pub(crate) fn left_out(&self) -> u32 {
        (self.sacked_bytes + self.lost_bytes).wrapping_sub(self.resent_bytes)
    }

    /// Whether it knows of nothing but data sent once.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.sacked_bytes == 0 && self.lost_bytes == 0 && self.resent_bytes == 0
    }

    /// The last record.
    pub(crate) fn last<'a>(&self, records: &'a Records) -> Option<&'a Record> {
        records.get(self.tail)
    }

    /// The place of the last record.
    pub(crate) fn last_index(&self) -> u32 {
        self.tail
    }

    /// Adds the numbers from `start` up to `end`, sent now for the first time in so many segments.
    #[inline]
    pub(crate) fn push(
        &mut self,
        records: &mut Records,
        (start, end): (SeqNumber, SeqNumber),
        segments: u16,
        now_us: u32,
        tx_flight: u32,
    ) {
        if self.count >= FINE_RECORDS && self.merges_next(records) {
            return self.merge_into_tail(records, end, segments, now_us);
        }
        let rate = &self.rate;
        let app_limited = rate.app_limited_until != 0;
        let record = Record {
            start,
            end,
            next: NIL,
            prev: self.tail,
            later: NIL,
            earlier: NIL,
            sent_us: now_us,
            order: 0,
            delivered: rate.delivered as u32,
            delivered_us: rate.delivered_us,
            first_sent_us: rate.first_sent_us,
            lost: rate.lost,
            tx_flight,
            segments,
            fate: if app_limited { Fate::APP_LIMITED } else { Fate::empty() },
        };
        match records.insert(record) {
            Some(index) => {
                match records.get_mut(self.tail) {
                    Some(tail) => tail.next = index,
                    None => self.head = index,
                }
                self.tail = index;
                self.count += 1;
                self.append_timed(records, index);
            }
            None => self.merge_into_tail(records, end, segments, now_us),
        }
    }

    /// Whether the last record is to stand for the next segment too.
    #[cold]
    fn merges_next(&self, records: &Records) -> bool {
        let bound = MERGED_SEGMENTS.iter().find(|(count, _)| self.count < *count);
        let Some((_, segments)) = bound else { return true };
        let told_apart = Fate::SACKED | Fate::LOST | Fate::RESENT | Fate::EVER_RESENT;
        self.last(records).is_some_and(|last| !last.is(told_apart) && last.segments < *segments)
    }

    /// For want of a record the last one stands for more. If there is none at all, the numbers are
    /// not recorded, and the flight is to be closed.
    #[cold]
    fn merge_into_tail(&mut self, records: &mut Records, end: SeqNumber, more: u16, now_us: u32) {
        let tail = self.tail;
        let Some(record) = records.get_mut(tail) else { return };
        let added = end.bytes_since(record.end);
        record.end = end;
        record.segments = record.segments.saturating_add(more);
        if record.sent_us != now_us {
            record.sent_us = now_us;
            record.fate.insert(Fate::MERGED);
        }
        // The sums follow the record, whatever it was.
        let fate = record.fate;
        if fate.contains(Fate::RESENT) {
            record.fate.insert(Fate::COARSE);
        }
        if fate.contains(Fate::SACKED) {
            // Not all of it is there any more.
            self.known.clear();
            record.fate.remove(Fate::SACKED);
            let (len, segments) = (record.len(), u32::from(record.segments));
            self.sacked_bytes -= (len - added).min(self.sacked_bytes);
            self.sacked_segments -= (segments - u32::from(more)).min(self.sacked_segments);
        } else {
            if fate.contains(Fate::LOST) {
                self.lost_bytes += added;
            }
            if fate.contains(Fate::RESENT) {
                self.resent_bytes += added;
            } else if fate.contains(Fate::LOST) {
                self.waiting_bytes += added;
            }
        }
        if !fate.contains(Fate::LOST) || fate.contains(Fate::RESENT) {
            self.unlink_timed(records, tail);
            self.append_timed(records, tail);
        }
    }

    /// Puts a record behind all others in the order of sending.
    #[inline]
    pub(crate) fn append_timed(&mut self, records: &mut Records, index: u32) {
        let newest = self.newest;
        self.order = self.order.wrapping_add(1);
        if let Some(record) = records.get_mut(index) {
            record.order = self.order;
            record.fate.insert(Fate::TIMED);
            record.earlier = newest;
            record.later = NIL;
        }
        match records.get_mut(newest) {
            Some(newest) => newest.later = index,
            None => self.oldest = index,
        }
        self.newest = index;
    }

    /// Takes a record out of the order of sending.
    #[inline]
    pub(crate) fn unlink_timed(&mut self, records: &mut Records, index: u32) {
        let Some(record) = records.get_mut(index) else { return };
        if !record.fate.contains(Fate::TIMED) {
            return;
        }
        record.fate.remove(Fate::TIMED);
        let (earlier, later) = (record.earlier, record.later);
        match records.get_mut(earlier) {
            Some(earlier) => earlier.later = later,
            None => self.oldest = later,
        }
        match records.get_mut(later) {
            Some(later) => later.earlier = earlier,
            None => self.newest = earlier,
        }
    }

    /// The next record in the order of sending.
    pub(crate) fn later(&self, records: &Records, index: u32) -> u32 {
        records.get(index).map_or(NIL, |record| record.later)
    }

    /// Takes a record out of both orders and frees it. The sums are the caller's.
    #[inline]
    pub(crate) fn unlink(&mut self, records: &mut Records, index: u32) {
        self.unlink_timed(records, index);
        let Some(record) = records.get(index) else { return };
        let (prev, next) = (record.prev, record.next);
        match records.get_mut(prev) {
            Some(prev) => prev.next = next,
            None => self.head = next,
        }
        match records.get_mut(next) {
            Some(next) => next.prev = prev,
            None => self.tail = prev,
        }
        if self.sack_hint == index {
            self.sack_hint = prev;
        }
        if self.lost_hint == index {
            self.lost_hint = next;
        }
        self.count -= 1;
        records.remove(index);
    }

    /// Cuts a record in two at `at`, which lies within it; `false` if there is no record for the
    /// upper part, or the flight has had its share of them.
    pub(crate) fn split(&mut self, records: &mut Records, index: u32, at: SeqNumber) -> bool {
        let Some(&record) = records.get(index) else { return false };
        if at.le(record.start) || at.ge(record.end) || self.count >= RECORDS_MAX {
            return false;
        }
        // Segments of a record are of like size, but for the last.
        let share = u64::from(record.end.bytes_since(at)) * u64::from(record.segments);
        let above = share.div_ceil(u64::from(record.len())) as u16;
        let below = record.segments.saturating_sub(above).max(1);
        let upper =
            Record { start: at, prev: index, earlier: index, segments: above.max(1), ..record };
        let Some(new) = records.insert(upper) else { return false };
        self.count += 1;
        if record.is(Fate::SACKED) {
            let more = u32::from(below) + u32::from(upper.segments) - u32::from(record.segments);
            self.sacked_segments += more;
        }
        match records.get_mut(record.next) {
            Some(next) => next.prev = new,
            None => self.tail = new,
        }
        if record.is(Fate::TIMED) {
            match records.get_mut(record.later) {
                Some(later) => later.earlier = new,
                None => self.newest = new,
            }
        }
        if let Some(lower) = records.get_mut(index) {
            lower.end = at;
            lower.next = new;
            lower.segments = below;
            lower.fate.set(Fate::VAGUE, record.is(Fate::MERGED));
            lower.fate.remove(Fate::RUN_END);
            if record.is(Fate::TIMED) {
                lower.later = new;
            }
        }
        true
    }

    /// Makes one of a record and the one before it, if both are there and neither needs to be told
    /// from the other. Returns where they are now.
    pub(crate) fn merge_sacked(&mut self, records: &mut Records, index: u32) -> u32 {
        let Some(&record) = records.get(index) else { return index };
        let prev = record.prev;
        let Some(before) = records.get_mut(prev) else { return index };
        let alike = Fate::SACKED | Fate::EVER_RESENT;
        if !record.is(Fate::SACKED)
            || before.fate.intersection(alike) != record.fate.intersection(alike)
        {
            return index;
        }
        before.end = record.end;
        before.segments = before.segments.saturating_add(record.segments);
        self.unlink(records, index);
        prev
    }

    /// Frees all records.
    fn clear(&mut self, records: &mut Records) {
        let mut index = self.head;
        while let Some(record) = records.get(index) {
            let next = record.next;
            records.remove(index);
            index = next;
        }
        self.head = NIL;
        self.count = 0;
    }
}

/// All flights and records of a shard.
#[derive(Debug)]
pub(crate) struct Flights {
    flights: Vec<Flight>,
    free: Vec<u32>,
    pub(crate) records: Records,
    max: usize,
}

impl Flights {
    /// Room for `max` flights, and `records_max` records.
    pub(crate) fn with_capacity(max: usize, records_max: usize) -> Self {
        Self {
            flights: Vec::with_capacity(max),
            free: Vec::with_capacity(max),
            records: Records::with_capacity(records_max),
            max,
        }
    }

    /// Flights in use.
    pub(crate) fn used(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// Records in use.
    pub(crate) fn records_used(&self) -> usize {
        self.records.used
    }

    /// A flight for a connection whose oldest number is `una`; [`NIL`] if there is none.
    #[inline]
    pub(crate) fn open(&mut self, una: SeqNumber) -> u32 {
        let flight = Flight::new(una);
        if let Some(index) = self.free.pop() {
            if let Some(slot) = self.flights.get_mut(index as usize) {
                *slot = flight;
            }
            return index;
        }
        if self.flights.len() == self.max {
            return NIL;
        }
        self.flights.push(flight);
        self.flights.len() as u32 - 1
    }

    /// A flight is over.
    #[inline]
    pub(crate) fn close(&mut self, index: u32) {
        if let Some(flight) = self.flights.get_mut(index as usize) {
            flight.clear(&mut self.records);
            self.free.push(index);
        }
    }

    /// A flight, and the records among which its own are.
    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<(&mut Flight, &mut Records)> {
        let flight = self.flights.get_mut(index as usize)?;
        Some((flight, &mut self.records))
    }

    /// A flight, and the records among which its own are.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<(&Flight, &Records)> {
        Some((self.flights.get(index as usize)?, &self.records))
    }
}
