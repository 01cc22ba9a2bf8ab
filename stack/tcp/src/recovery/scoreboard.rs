//! The scoreboard: what ACKs and losses do to the records of a flight (RFC 2018, RFC 6675).

use millstream_wire::tcp::SeqNumber;

use crate::flight::{Fate, Flight, Ranges, Record, Records};
use crate::rate::RateStart;
use crate::slab::NIL;

/// What an ACK brought about.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Bytes newly delivered.
    pub(crate) delivered: u32,
    /// Bytes found lost.
    pub(crate) lost: u32,
    /// The cumulative ACK moved on.
    pub(crate) advanced: bool,
    /// Something was selectively acknowledged.
    pub(crate) sacked: bool,
    /// Something that was never sent again, and was sent before the state changed, was delivered.
    pub(crate) original: bool,
    /// Something that was sent again was acknowledged cumulatively.
    pub(crate) resent: bool,
    /// A duplicate was reported (RFC 2883), and whether it is that of a loss probe.
    pub(crate) dsack: bool,
    pub(crate) dsack_of_probe: bool,
    /// A segment that was sent again is lost again.
    pub(crate) lost_resent: bool,
    /// When the first and the last segment were sent of those that were acknowledged cumulatively,
    /// or else selectively, and never sent again.
    pub(crate) acked_sent_us: Option<(u32, u32)>,
    pub(crate) sacked_sent_us: Option<(u32, u32)>,
    /// The lowest number that came late: what was sent after it was there before.
    pub(crate) late: Option<SeqNumber>,
    pub(crate) rate: Option<RateStart>,
    /// The timer was set, since more will be known about losses in a while.
    pub(crate) timer_set: bool,
}

/// What of a record the numbers from `start` up to `end` cover in whole segments. No receiver keeps
/// a part of one; who says so could have a record made of every byte.
fn covered(
    record: &Record,
    start: SeqNumber,
    end: SeqNumber,
    mss: u32,
) -> Option<(SeqNumber, SeqNumber)> {
    let (mut low, mut high) = (record.start, record.end);
    if start.gt(low) {
        low += start.bytes_since(low).div_ceil(mss).saturating_mul(mss);
    }
    if end.lt(high) {
        high = record.start + end.bytes_since(record.start) / mss * mss;
    }
    let whole = (low, high) == (record.start, record.end);
    (low.lt(high) && (whole || record.segments > 1)).then_some((low, high))
}

/// `blocks` in ascending order, those that touch made one.
pub(crate) fn in_order(blocks: &mut Ranges) {
    blocks.sort_unstable_by(|first, second| first.0.distance(second.0).cmp(&0));
    let mut ranges = Ranges::new();
    for (start, end) in blocks.drain(..) {
        match ranges.last_mut() {
            Some(last) if start.le(last.1) => last.1 = last.1.max(end),
            _ => ranges.push((start, end)),
        }
    }
    *blocks = ranges;
}

impl Flight {
    /// A segment was delivered.
    #[inline]
    fn note_delivered(
        &mut self,
        record: &Record,
        now_us: u32,
        min_rtt_us: u32,
        progress: &mut Progress,
    ) {
        progress.delivered += record.len();
        if record.is(Fate::EVER_RESENT) && now_us.wrapping_sub(record.sent_us) < min_rtt_us {
            // Too early for the repetition: it was the first one that arrived, of which nothing is
            // known any more (RFC 8985 section 6.2, step 2).
            return;
        }
        progress.rate = RateStart::later(progress.rate, record);
        self.rack.advance(record, now_us);
    }

    /// Everything before `ack` has arrived.
    #[inline]
    pub(crate) fn advance(
        &mut self,
        records: &mut Records,
        ack: SeqNumber,
        fack: SeqNumber,
        now_us: u32,
        min_rtt_us: u32,
        progress: &mut Progress,
    ) {
        progress.advanced = true;
        while let Some(&record) = records.get(self.head) {
            if record.start.ge(ack) {
                break;
            }
            let whole = record.end.le(ack);
            let acked = if whole { record } else { record.until(ack) };
            let len = acked.len();
            if record.is(Fate::SACKED) {
                self.sacked_bytes -= len.min(self.sacked_bytes);
                if whole {
                    self.sacked_segments -= u32::from(record.segments).min(self.sacked_segments);
                }
            } else {
                self.note_delivered(&acked, now_us, min_rtt_us, progress);
                if record.is(Fate::EVER_RESENT) {
                    progress.resent = true;
                } else {
                    let sent_us = record.sent_us;
                    if !acked.is(Fate::VAGUE) {
                        let first = progress.acked_sent_us.map_or(sent_us, |(first, _)| first);
                        progress.acked_sent_us = Some((first, sent_us));
                    }
                    if acked.end.le(self.high_seq) {
                        progress.original = true;
                    }
                    if record.start.lt(fack) {
                        let late = progress.late.map_or(record.start, |at| at.min(record.start));
                        progress.late = Some(late);
                    }
                }
            }
            if record.is(Fate::LOST) {
                self.lost_bytes -= len;
            }
            if record.is(Fate::RESENT) {
                self.resent_bytes -= len;
            }
            if record.waits() {
                self.waiting_bytes -= len;
            }
            if whole {
                let head = self.head;
                self.unlink(records, head);
                continue;
            }
            self.trim_head(records, ack);
            break;
        }
        if self.fack.lt(ack) {
            self.fack = ack;
        }
    }

    /// A part of the first record was acknowledged, for which the sums are right already.
    fn trim_head(&mut self, records: &mut Records, ack: SeqNumber) {
        let Some(record) = records.get_mut(self.head) else { return };
        let (segments, whole) = (u64::from(record.segments), u64::from(record.len()));
        record.start = ack;
        // Those that are left, the one that was cut among them.
        record.segments = (segments * u64::from(record.len())).div_ceil(whole.max(1)) as u16;
        if record.is(Fate::SACKED) {
            let gone = segments as u32 - u32::from(record.segments);
            self.sacked_segments -= gone.min(self.sacked_segments);
        }
        if record.is(Fate::COARSE) {
            // What was sent again has arrived; the rest was not sent again yet.
            let len = record.len();
            record.fate.remove(Fate::COARSE | Fate::RESENT);
            self.resent_bytes -= len;
            if record.is(Fate::LOST) {
                self.waiting_bytes += len;
                self.lost_hint = self.head;
            }
        }
    }

    /// The peer has what lies in `blocks`, all of which is out. What the ACK before said already costs
    /// nothing; the rest takes one walk.
    pub(crate) fn sack(
        &mut self,
        records: &mut Records,
        blocks: &Ranges,
        mss: u32,
        now_us: u32,
        min_rtt_us: u32,
        progress: &mut Progress,
    ) {
        if self.sacked_bytes == 0 {
            // Of an earlier time, or taken back.
            self.known.clear();
        }
        // What was the highest when this ACK came is what "late" is measured by.
        let fack = self.fack;
        let known = std::mem::take(&mut self.known);
        let (mut at, mut complete) = (None, true);
        for &(start, end) in blocks {
            let from =
                known.iter().fold(
                    start,
                    |from, (low, high)| {
                        if low.le(from) && high.gt(from) { *high } else { from }
                    },
                );
            if from.ge(end) {
                continue;
            }
            let mut index = at.unwrap_or_else(|| self.near(records, from));
            while let Some(&record) = records.get(index) {
                if record.start.ge(end) {
                    break;
                }
                if record.is(Fate::SACKED) {
                    self.sack_hint = index;
                }
                let covered = if record.end.le(from) || record.is(Fate::SACKED) {
                    None
                } else {
                    covered(&record, start, end, mss)
                };
                let cut = covered.and_then(|(low, high)| {
                    // Without a record for the rest it stays unknown that the peer has it.
                    let cut = self.cut_out(records, index, low, high);
                    complete &= cut.is_some();
                    cut
                });
                let Some(cut) = cut else {
                    if record.end.gt(end) {
                        break;
                    }
                    index = record.next;
                    continue;
                };
                index = self.sack_record(records, cut, fack, now_us, min_rtt_us, progress);
                self.sack_hint = index;
                index = records.get(index).map_or(NIL, |record| record.next);
            }
            at = Some(index);
        }
        if complete {
            self.known = blocks.clone();
        }
    }

    /// A record at or below `at`, found from the nearest of three places, so that a walk is short
    /// wherever a peer's blocks stand.
    fn near(&self, records: &Records, at: SeqNumber) -> u32 {
        let below = |index: u32| records.get(index).map(|record| at.distance(record.start));
        let head = below(self.head).unwrap_or(0);
        let mut index = match below(self.sack_hint) {
            Some(hint) if hint >= 0 => return self.sack_hint,
            Some(hint) if -hint < head => self.sack_hint,
            _ => self.head,
        };
        let last = self.last_index();
        if index == self.head && below(last).is_some_and(|last| last.abs() < head) {
            index = last;
        }
        while let Some(record) = records.get(index)
            && record.start.gt(at)
            && index != self.head
        {
            index = record.prev;
        }
        index
    }

    /// Makes the numbers from `low` up to `high`, which lie in one record, a record of their own.
    fn cut_out(
        &mut self,
        records: &mut Records,
        mut index: u32,
        low: SeqNumber,
        high: SeqNumber,
    ) -> Option<u32> {
        let record = *records.get(index)?;
        if low != record.start {
            if !self.split(records, index, low) {
                return None;
            }
            index = records.get(index)?.next;
        }
        (high == record.end || self.split(records, index, high)).then_some(index)
    }

    /// One record is selectively acknowledged as a whole. Returns where it is now.
    fn sack_record(
        &mut self,
        records: &mut Records,
        index: u32,
        fack: SeqNumber,
        now_us: u32,
        min_rtt_us: u32,
        progress: &mut Progress,
    ) -> u32 {
        let Some(&record) = records.get(index) else { return index };
        progress.sacked = true;
        self.note_delivered(&record, now_us, min_rtt_us, progress);
        if !record.is(Fate::EVER_RESENT) {
            let sent_us = record.sent_us;
            if !record.is(Fate::VAGUE) {
                let first = progress.sacked_sent_us.map_or(sent_us, |(first, _)| first);
                progress.sacked_sent_us = Some((first, sent_us));
            }
            if record.end.le(self.high_seq) {
                progress.original = true;
            }
            if record.start.lt(fack) {
                let late = progress.late.map_or(record.start, |late| late.min(record.start));
                progress.late = Some(late);
            }
        }
        let len = record.len();
        self.forget_loss(records, index);
        self.unlink_timed(records, index);
        if let Some(record) = records.get_mut(index) {
            record.fate.insert(Fate::SACKED);
        }
        self.sacked_bytes += len;
        self.sacked_segments += u32::from(record.segments);
        self.fack = self.fack.max(record.end);
        let index = self.merge_sacked(records, index);
        let next = records.get(index).map_or(NIL, |record| record.next);
        self.merge_sacked(records, next);
        index
    }

    /// Neither lost nor sent again, as far as the sums go.
    pub(crate) fn forget_loss(&mut self, records: &mut Records, index: u32) {
        let Some(record) = records.get_mut(index) else { return };
        let len = record.len();
        if record.waits() {
            self.waiting_bytes -= len;
        }
        if record.is(Fate::LOST) {
            self.lost_bytes -= len;
        }
        if record.is(Fate::RESENT) {
            self.resent_bytes -= len;
        }
        record.fate.remove(Fate::LOST | Fate::RESENT | Fate::COARSE);
    }

    /// A record, or its repetition, is lost.
    pub(crate) fn mark_lost(&mut self, records: &mut Records, index: u32, progress: &mut Progress) {
        self.unlink_timed(records, index);
        let Some(record) = records.get_mut(index) else { return };
        if record.is(Fate::SACKED) || record.waits() {
            return;
        }
        let len = record.len();
        if record.is(Fate::RESENT) {
            progress.lost_resent = true;
            self.resent_bytes -= len;
        }
        if !record.is(Fate::LOST) {
            self.lost_bytes += len;
        }
        record.fate.remove(Fate::RESENT | Fate::COARSE);
        record.fate.insert(Fate::LOST);
        self.waiting_bytes += len;
        self.rate.lost = self.rate.lost.wrapping_add(len);
        progress.lost += len;
        let start = record.start;
        match records.get(self.lost_hint) {
            Some(hint) if hint.start.le(start) => {}
            _ => self.lost_hint = index,
        }
    }

    /// The lowest record that is lost and not sent again.
    pub(crate) fn next_lost(&mut self, records: &Records) -> Option<u32> {
        let mut index = if self.lost_hint == NIL { self.head } else { self.lost_hint };
        while let Some(record) = records.get(index) {
            if record.waits() {
                self.lost_hint = index;
                return Some(index);
            }
            index = record.next;
        }
        None
    }

    /// A record is sent again, now, up to `end`, which is its own end unless it is to be coarse.
    pub(crate) fn resend(
        &mut self,
        records: &mut Records,
        index: u32,
        coarse: bool,
        now_us: u32,
        tx_flight: u32,
    ) {
        self.unlink_timed(records, index);
        let (rate, lost_next) = (self.rate, records.get(index).map_or(NIL, |record| record.next));
        let Some(record) = records.get_mut(index) else { return };
        let len = record.len();
        if record.waits() {
            self.waiting_bytes -= len;
        }
        if !record.is(Fate::RESENT) {
            self.resent_bytes += len;
        }
        record.fate.remove(Fate::MERGED | Fate::VAGUE);
        record.fate.insert(Fate::RESENT | Fate::EVER_RESENT);
        record.fate.set(Fate::COARSE, coarse);
        record.fate.set(Fate::APP_LIMITED, rate.app_limited_until != 0);
        record.sent_us = now_us;
        record.delivered = rate.delivered as u32;
        record.delivered_us = rate.delivered_us;
        record.first_sent_us = rate.first_sent_us;
        record.lost = rate.lost;
        record.tx_flight = tx_flight;
        if self.lost_hint == index {
            self.lost_hint = lost_next;
        }
        self.append_timed(records, index);
    }

    /// RFC 6675 section 4, `IsLost`: above what is lost the peer has three segments. Walks from the
    /// lowest number up; what the peer has above shrinks on the way.
    pub(crate) fn mark_lost_by_count(
        &mut self,
        records: &mut Records,
        mss: u32,
        threshold: u32,
        progress: &mut Progress,
    ) {
        let (mut segments, mut bytes) = (self.sacked_segments, self.sacked_bytes);
        let mut index = self.head;
        while let Some(&record) = records.get(index) {
            if segments < threshold && bytes <= (threshold - 1) * mss {
                break;
            }
            if record.is(Fate::SACKED) {
                segments = segments.saturating_sub(u32::from(record.segments));
                bytes = bytes.saturating_sub(record.len());
            } else if !record.is(Fate::LOST) {
                self.mark_lost(records, index, progress);
            }
            index = record.next;
        }
    }

    /// Without SACK: the oldest segment is lost (RFC 5681 section 3.2, RFC 6582 section 3.2).
    pub(crate) fn mark_head_lost(
        &mut self,
        records: &mut Records,
        mss: u32,
        progress: &mut Progress,
    ) {
        let head = self.head;
        let Some(record) = records.get(head) else { return };
        if record.is(Fate::LOST) {
            return;
        }
        let at = record.start + mss;
        self.split(records, head, at);
        self.mark_lost(records, head, progress);
    }

    /// A time-out: everything that the peer does not have is lost, but what was sent too recently to
    /// be (RFC 8985 section 6.3). If it has the first segment and yet did not acknowledge it, what
    /// it said it had it has no more (RFC 2018 section 8). Returns whether that is so.
    pub(crate) fn mark_lost_by_timeout(
        &mut self,
        records: &mut Records,
        too_recent: impl Fn(&Record) -> bool,
        progress: &mut Progress,
    ) -> bool {
        let reneged = records.get(self.head).is_some_and(|head| head.is(Fate::SACKED));
        if reneged {
            self.sacked_bytes = 0;
            self.sacked_segments = 0;
        }
        let mut index = self.head;
        while let Some(&record) = records.get(index) {
            if reneged {
                if let Some(record) = records.get_mut(index) {
                    record.fate.remove(Fate::SACKED);
                }
                self.mark_lost(records, index, progress);
            } else if index == self.head || !too_recent(&record) {
                self.mark_lost(records, index, progress);
            }
            index = record.next;
        }
        self.lost_hint = self.head;
        reneged
    }

    /// What was taken for lost was not (RFC 5682, RFC 4015).
    pub(crate) fn unmark_lost(&mut self, records: &mut Records) {
        let mut index = self.head;
        while let Some(&record) = records.get(index) {
            if record.is(Fate::LOST) {
                if let Some(record) = records.get_mut(index) {
                    record.fate.remove(Fate::LOST);
                }
                if !record.is(Fate::TIMED) {
                    // Its place in the order of sending is gone; behind all others it is judged
                    // last.
                    self.append_timed(records, index);
                }
            }
            index = record.next;
        }
        self.lost_bytes = 0;
        self.waiting_bytes = 0;
        self.lost_hint = NIL;
    }
}

#[cfg(test)]
mod tests;
