//! What is to be sent or acknowledged.

use arrayvec::ArrayVec;
use millstream_buf::IoBuf;
use millstream_wire::tcp::SeqNumber;

use crate::segment::MAX_SLICES;
use crate::slab::{KEPT, NIL, SEALED, SliceSlab, VOID};

/// A list of slices from the oldest unacknowledged byte on, with a cursor on the slice that holds
/// the next byte to send.
#[derive(Debug)]
pub(crate) struct SendQueue {
    head: u32,
    tail: u32,
    cursor: u32,
}

impl SendQueue {
    pub(crate) const EMPTY: Self = Self { head: NIL, tail: NIL, cursor: NIL };

    /// Adds a slice whose first byte has the number `seq`; gives it back if the slab is full.
    #[inline]
    pub(crate) fn push(
        &mut self,
        slab: &mut SliceSlab,
        buf: IoBuf,
        seq: SeqNumber,
    ) -> Result<(), IoBuf> {
        if let Some(tail) = slab.get_mut(self.tail)
            && tail.range_stamp != SEALED
            && let Some(last) = &mut tail.buf
            && last.try_join(&buf)
        {
            return Ok(());
        }
        let index = slab.insert(buf, seq)?;
        match slab.get_mut(self.tail) {
            Some(tail) => tail.next = index,
            None => self.head = index,
        }
        self.tail = index;
        if self.cursor == NIL {
            self.cursor = index;
        }
        Ok(())
    }

    /// Ends a record with the last slice.
    pub(crate) fn seal(&self, slab: &mut SliceSlab) {
        if let Some(tail) = slab.get_mut(self.tail) {
            tail.range_stamp = SEALED;
        }
    }

    /// Whether a record ends before the number `end`.
    pub(crate) fn record_ends_at(&self, slab: &SliceSlab, end: SeqNumber) -> bool {
        let mut index = self.head;
        while let Some(node) = slab.get(index) {
            let behind = node.seq + node.len();
            if behind.ge(end) {
                return behind == end && node.range_stamp == SEALED;
            }
            index = node.next;
        }
        false
    }

    /// Lets go of everything before `una`.
    #[inline(always)]
    pub(crate) fn release_until(&mut self, slab: &mut SliceSlab, una: SeqNumber) {
        while self.head != NIL {
            let Some(node) = slab.get_mut(self.head) else { return };
            let acked = una.distance(node.seq);
            if acked < node.len() as i32 {
                if acked > 0 {
                    match &mut node.buf {
                        Some(buf) => buf.advance(acked as usize),
                        None => node.range_nodes -= acked as u32,
                    }
                    node.seq = una;
                }
                return;
            }
            let (_, next) = slab.remove(self.head);
            if self.cursor == self.head {
                self.cursor = next;
            }
            self.head = next;
        }
        self.tail = NIL;
    }

    /// Puts the cursor back on the oldest byte.
    pub(crate) fn rewind(&mut self) {
        self.cursor = self.head;
    }

    /// Adds handles on up to `len` bytes from `seq` on to `out`; returns how many bytes there are:
    /// fewer if they lie in too many slices. Moves the cursor.
    #[inline(always)]
    pub(crate) fn gather_next(
        &mut self,
        slab: &SliceSlab,
        seq: SeqNumber,
        len: u32,
        out: &mut ArrayVec<IoBuf, MAX_SLICES>,
    ) -> u32 {
        let (count, cursor) = gather(slab, self.cursor, seq, len, out);
        self.cursor = cursor;
        count
    }

    /// As [`Self::gather_next`] for a run of segments of `mss` bytes: where slices run out, it ends
    /// with a whole segment, or else what is left of the last would go alone. Returns what is asked
    /// for then, too.
    #[inline(always)]
    pub(crate) fn gather_run(
        &mut self,
        slab: &SliceSlab,
        seq: SeqNumber,
        len: u32,
        mss: u32,
        out: &mut ArrayVec<IoBuf, MAX_SLICES>,
    ) -> (u32, u32) {
        let cursor = self.cursor;
        let count = self.gather_next(slab, seq, len, out);
        if count == len || count <= mss || !out.is_full() {
            return (count, len);
        }
        out.clear();
        self.cursor = cursor;
        let len = count / mss * mss;
        (self.gather_next(slab, seq, len, out), len)
    }

    /// As [`Self::gather_next`] from the oldest byte on, leaving the cursor where it is.
    pub(crate) fn gather_first(
        &self,
        slab: &SliceSlab,
        seq: SeqNumber,
        len: u32,
        out: &mut ArrayVec<IoBuf, MAX_SLICES>,
    ) -> u32 {
        gather(slab, self.head, seq, len, out).0
    }

    /// Lets go of the buffers of what lies between `from` and `until`, all of which was sent; the
    /// numbers stay. Returns from where on some of it is wanted again, see [`Self::want`].
    pub(crate) fn let_go(
        &mut self,
        slab: &mut SliceSlab,
        from: SeqNumber,
        until: SeqNumber,
    ) -> Option<SeqNumber> {
        let (mut before, mut index, mut wanted) = (NIL, self.head, None);
        while let Some(node) = slab.get_mut(index) {
            let (len, next) = (node.len(), node.next);
            if (node.seq + len).gt(until) {
                break;
            }
            if node.range_stamp == VOID {
                if node.range_next != NIL {
                    if node.range_end.lt(node.seq) {
                        // It was acknowledged meanwhile.
                        node.range_next = NIL;
                    } else {
                        wanted = wanted.or(Some(node.range_end));
                    }
                }
            } else if node.range_stamp == 0 && from.le(node.seq) {
                node.buf = None;
                (node.range_stamp, node.range_nodes, node.range_next) = (VOID, len, NIL);
            }
            // Neighbours become one.
            let void = node.range_stamp == VOID && node.range_next == NIL;
            let joins = void
                && slab.get_mut(before).is_some_and(|before| {
                    let joins = before.range_stamp == VOID && before.range_next == NIL;
                    if joins {
                        before.range_nodes += len;
                        before.next = next;
                    }
                    joins
                });
            if joins {
                slab.remove(index);
                for end in [&mut self.cursor, &mut self.tail] {
                    if *end == index {
                        *end = before;
                    }
                }
            } else {
                before = index;
            }
            index = next;
        }
        wanted
    }

    /// Whether the byte `seq` was let go of. Then it is noted that it is wanted again.
    pub(crate) fn want(&self, slab: &mut SliceSlab, seq: SeqNumber) -> bool {
        let mut index = self.head;
        while let Some(node) = slab.get_mut(index) {
            if seq.bytes_since(node.seq) < node.len() {
                let void = node.range_stamp == VOID;
                if void && (node.range_next == NIL || seq.lt(node.range_end)) {
                    (node.range_end, node.range_next) = (seq, 0);
                }
                return void;
            }
            index = node.next;
        }
        false
    }

    /// Whether anything is wanted again.
    pub(crate) fn wants_any(&self, slab: &SliceSlab) -> bool {
        let mut index = self.head;
        while let Some(node) = slab.get(index) {
            if node.range_stamp == VOID && node.range_next != NIL {
                return true;
            }
            index = node.next;
        }
        false
    }

    /// Puts bytes from `seq` on back in the place of those that were let go of, and lets them stay
    /// until they are acknowledged. What is not missing, or not in the queue any more, is left out.
    /// `false` if the slab has no room.
    pub(crate) fn refill(&mut self, slab: &mut SliceSlab, seq: SeqNumber, buf: &IoBuf) -> bool {
        let end = seq + buf.len() as u32;
        let mut index = self.head;
        while let Some(node) = slab.get_mut(index) {
            let (start, behind, next) = (node.seq, node.seq + node.len(), node.next);
            if start.ge(end) {
                break;
            }
            if node.range_stamp != VOID || behind.le(seq) {
                index = next;
                continue;
            }
            let (from, until) = (start.max(seq), behind.min(end));
            let part = buf.slice(from.bytes_since(seq) as usize..until.bytes_since(seq) as usize);
            let Ok(filled) = slab.insert(part, from) else { return false };
            let mut last = filled;
            if until != behind {
                // The rest behind it stays away.
                let Ok(rest) = slab.insert(buf.slice(0..0), until) else {
                    slab.remove(filled);
                    return false;
                };
                if let Some(node) = slab.get_mut(rest) {
                    node.buf = None;
                    node.range_nodes = behind.bytes_since(until);
                    (node.range_stamp, node.range_next, node.next) = (VOID, NIL, next);
                }
                last = rest;
            }
            if let Some(node) = slab.get_mut(filled) {
                node.range_stamp = KEPT;
                node.next = if last == filled { next } else { last };
            }
            if let Some(node) = slab.get_mut(index) {
                // Of no length if nothing before it is missing; the next acknowledgement removes it.
                node.range_nodes = from.bytes_since(start);
                (node.range_next, node.next) = (NIL, filled);
            }
            if self.tail == index {
                self.tail = last;
            }
            index = next;
        }
        true
    }

    /// Frees all.
    pub(crate) fn clear(&mut self, slab: &mut SliceSlab) {
        slab.remove_list(self.head);
        *self = Self::EMPTY;
    }
}

/// The cursor stays on a slice that is used up if none follows, since that slice may yet grow.
#[inline(always)]
fn gather(
    slab: &SliceSlab,
    mut cursor: u32,
    mut seq: SeqNumber,
    len: u32,
    out: &mut ArrayVec<IoBuf, MAX_SLICES>,
) -> (u32, u32) {
    let mut left = len;
    while let Some(node) = slab.get(cursor) {
        let skip = seq.bytes_since(node.seq);
        let rest = node.len().saturating_sub(skip);
        let Some(buf) = &node.buf else {
            // Let go of: it can be passed over, but not sent.
            if rest > 0 || node.next == NIL {
                break;
            }
            cursor = node.next;
            continue;
        };
        if rest > 0 {
            let count = rest.min(left);
            if out.try_push(buf.slice(skip as usize..(skip + count) as usize)).is_err() {
                break;
            }
            left -= count;
            seq += count;
            if node.range_stamp == SEALED {
                break;
            }
        }
        if left == 0 || node.next == NIL {
            break;
        }
        cursor = node.next;
    }
    (len - left, cursor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(out: &ArrayVec<IoBuf, MAX_SLICES>) -> Vec<u8> {
        out.iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn gathers_across_slices_and_wraps() {
        let mut slab = SliceSlab::with_capacity(8);
        let mut queue = SendQueue::EMPTY;
        let start = SeqNumber(u32::MAX - 1);
        queue.push(&mut slab, IoBuf::from(vec![0, 1, 2]), start).unwrap();
        queue.push(&mut slab, IoBuf::from(vec![3, 4, 5]), start + 3).unwrap();
        let mut out = ArrayVec::new();
        assert_eq!(queue.gather_next(&slab, start, 4, &mut out), 4);
        assert_eq!(bytes(&out), [0, 1, 2, 3]);
        out.clear();
        assert_eq!(queue.gather_next(&slab, start + 4, 9, &mut out), 2);
        assert_eq!(bytes(&out), [4, 5]);
        queue.release_until(&mut slab, start + 1);
        out.clear();
        assert_eq!(queue.gather_first(&slab, start + 1, 3, &mut out), 3);
        assert_eq!(bytes(&out), [1, 2, 3]);
        out.clear();
        queue.release_until(&mut slab, start + 6);
        assert_eq!(slab.used(), 0);
        queue.push(&mut slab, IoBuf::from(vec![6]), start + 6).unwrap();
        assert_eq!(queue.gather_next(&slab, start + 6, 9, &mut out), 1);
    }

    #[test]
    fn a_record_ends_its_segment() {
        let mut slab = SliceSlab::with_capacity(4);
        let mut queue = SendQueue::EMPTY;
        let whole = IoBuf::from(vec![0, 1, 2, 3, 4, 5]);
        queue.push(&mut slab, whole.slice(0..2), SeqNumber(10)).unwrap();
        queue.seal(&mut slab);
        queue.push(&mut slab, whole.slice(2..6), SeqNumber(12)).unwrap();
        let mut out = ArrayVec::new();
        assert_eq!(queue.gather_next(&slab, SeqNumber(10), 9, &mut out), 2);
        out.clear();
        assert_eq!(queue.gather_next(&slab, SeqNumber(12), 9, &mut out), 4);
        out.clear();
        assert_eq!(queue.gather_first(&slab, SeqNumber(10), 9, &mut out), 2);
        assert_eq!(bytes(&out), [0, 1]);
    }

    #[test]
    fn neighbours_join_and_are_still_found() {
        let mut slab = SliceSlab::with_capacity(1);
        let mut queue = SendQueue::EMPTY;
        let whole = IoBuf::from(vec![0, 1, 2, 3, 4, 5]);
        queue.push(&mut slab, whole.slice(0..2), SeqNumber(10)).unwrap();
        let mut out = ArrayVec::new();
        assert_eq!(queue.gather_next(&slab, SeqNumber(10), 9, &mut out), 2);
        queue.push(&mut slab, whole.slice(2..6), SeqNumber(12)).unwrap();
        out.clear();
        assert_eq!(queue.gather_next(&slab, SeqNumber(12), 9, &mut out), 4);
        assert_eq!(bytes(&out), [2, 3, 4, 5]);
        assert!(queue.push(&mut slab, IoBuf::from(vec![9]), SeqNumber(16)).is_err());
    }

    #[test]
    fn what_was_let_go_of_is_wanted_and_comes_back() {
        let mut slab = SliceSlab::with_capacity(8);
        let mut queue = SendQueue::EMPTY;
        let start = SeqNumber(u32::MAX - 5);
        for block in 0..4 {
            let buf = IoBuf::from((block * 10..block * 10 + 10).collect::<Vec<u8>>());
            queue.push(&mut slab, buf, start + u32::from(block) * 10).unwrap();
        }
        // The first slice is somebody else's, the last one is not wholly sent.
        assert_eq!(queue.let_go(&mut slab, start + 10, start + 35), None);
        assert_eq!(slab.used(), 3, "two became one without a buffer");
        let mut out = ArrayVec::new();
        assert_eq!(queue.gather_first(&slab, start + 5, 9, &mut out), 5, "up to what is missing");
        out.clear();
        assert_eq!(queue.gather_first(&slab, start + 12, 9, &mut out), 0);
        assert!(!queue.want(&mut slab, start + 9) && !queue.want(&mut slab, start + 30));
        assert!(queue.want(&mut slab, start + 20) && queue.want(&mut slab, start + 12));
        assert!(queue.wants_any(&slab));
        assert_eq!(queue.let_go(&mut slab, start, start + 35), Some(start + 12), "the lowest");
        // More than is missing is brought.
        let buf = IoBuf::from((12..25).collect::<Vec<u8>>());
        assert!(queue.refill(&mut slab, start + 12, &buf));
        assert!(!queue.wants_any(&slab) && !queue.want(&mut slab, start + 12));
        assert_eq!(queue.gather_first(&slab, start + 12, 20, &mut out), 13);
        assert_eq!(bytes(&out), (12..25).collect::<Vec<u8>>());
        assert_eq!(queue.let_go(&mut slab, start, start + 35), None);
        out.clear();
        assert_eq!(queue.gather_first(&slab, start + 12, 20, &mut out), 13, "it stays now");
        queue.release_until(&mut slab, start + 27);
        out.clear();
        assert!(queue.want(&mut slab, start + 27));
        assert_eq!(queue.gather_first(&slab, start + 30, 10, &mut out), 10);
        queue.release_until(&mut slab, start + 40);
        assert_eq!(slab.used(), 0);
    }

    #[test]
    fn new_data_is_found_behind_what_was_let_go_of() {
        let mut slab = SliceSlab::with_capacity(4);
        let mut queue = SendQueue::EMPTY;
        let start = SeqNumber(7);
        queue.push(&mut slab, IoBuf::from(vec![1; 10]), start).unwrap();
        let mut out = ArrayVec::new();
        assert_eq!(queue.gather_next(&slab, start, 10, &mut out), 10);
        out.clear();
        queue.let_go(&mut slab, start, start + 10);
        queue.push(&mut slab, IoBuf::from(vec![2; 10]), start + 10).unwrap();
        assert_eq!(queue.gather_next(&slab, start + 10, 10, &mut out), 10);
        queue.let_go(&mut slab, start, start + 20);
        assert_eq!(slab.used(), 1);
        queue.push(&mut slab, IoBuf::from(vec![3; 10]), start + 20).unwrap();
        out.clear();
        assert_eq!(queue.gather_next(&slab, start + 20, 10, &mut out), 10);
        assert_eq!(bytes(&out), [3; 10]);
        queue.clear(&mut slab);
        assert_eq!(slab.used(), 0);
    }

    proptest::proptest! {
        /// Whatever is let go of, brought back and acknowledged, what can be sent is right, and what
        /// cannot is wanted.
        #[test]
        fn no_byte_changes_on_its_way(
            ops in proptest::collection::vec((0..5_u8, 0..400_u32, 1..60_u32), 1..60),
        ) {
            let byte = |at: u32| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8;
            let make = |at: u32, len: u32| IoBuf::from((at..at + len).map(byte).collect::<Vec<u8>>());
            let start = SeqNumber(u32::MAX - 100);
            let mut slab = SliceSlab::with_capacity(64);
            let mut queue = SendQueue::EMPTY;
            let (mut una, mut nxt, mut end) = (0, 0, 0);
            for (op, at, len) in ops {
                match op {
                    0 => {
                        let pushed = queue.push(&mut slab, make(end, len), start + end).is_ok();
                        end += if pushed { len } else { 0 };
                    }
                    1 => {
                        let mut out = ArrayVec::new();
                        let sent = queue.gather_next(&slab, start + nxt, len.min(end - nxt), &mut out);
                        let right = bytes(&out).iter().copied().eq((nxt..nxt + sent).map(byte));
                        proptest::prop_assert!(right);
                        nxt += sent;
                    }
                    2 => {
                        queue.let_go(&mut slab, start + una.max(at.min(nxt)), start + nxt);
                    }
                    3 => {
                        una += len.min(nxt - una);
                        queue.release_until(&mut slab, start + una);
                    }
                    _ if una < nxt => {
                        let seq = una + at % (nxt - una);
                        if queue.want(&mut slab, start + seq) {
                            let wanted = queue.let_go(&mut slab, start + nxt, start + nxt);
                            proptest::prop_assert!(wanted.is_some());
                            let filled = queue.refill(&mut slab, start + seq, &make(seq, len));
                            proptest::prop_assert!(filled || slab.used() > 60);
                            if !filled {
                                continue;
                            }
                        }
                        let mut out = ArrayVec::new();
                        let sent = queue.gather_first(&slab, start + seq, len, &mut out);
                        proptest::prop_assert!(sent > 0 && seq + sent <= end);
                        let right = bytes(&out).iter().copied().eq((seq..seq + sent).map(byte));
                        proptest::prop_assert!(right);
                    }
                    _ => {}
                }
            }
            queue.release_until(&mut slab, start + end);
            proptest::prop_assert_eq!(slab.used(), 0);
        }
    }
}
