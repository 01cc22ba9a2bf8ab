//! What is to be sent or acknowledged.

use arrayvec::ArrayVec;
use millstream_buf::IoBuf;
use millstream_wire::tcp::SeqNumber;

use crate::segment::MAX_SLICES;
use crate::slab::{NIL, SEALED, SliceSlab};

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
                if acked > 0
                    && let Some(buf) = &mut node.buf
                {
                    buf.advance(acked as usize);
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
        let Some(buf) = &node.buf else { break };
        let skip = seq.bytes_since(node.seq);
        let rest = node.len().saturating_sub(skip);
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
}
