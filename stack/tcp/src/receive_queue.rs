//! What has arrived: in order, and ahead of order.

use millstream_buf::{IoBuf, copy_short};
use millstream_wire::tcp::{SackBlocks, SeqNumber};

use crate::slab::{NIL, SliceSlab};

/// Slices that the application may read.
#[derive(Debug)]
pub(crate) struct ReceiveQueue {
    head: u32,
    tail: u32,
    /// Bytes in it.
    pub(crate) bytes: u32,
    /// Slices in it.
    pub(crate) slices: u32,
}

impl ReceiveQueue {
    pub(crate) const EMPTY: Self = Self { head: NIL, tail: NIL, bytes: 0, slices: 0 };

    /// Adds a slice; `false` if the slab is full.
    #[inline(always)]
    pub(crate) fn push(&mut self, slab: &mut SliceSlab, buf: IoBuf, seq: SeqNumber) -> bool {
        if self.tail != NIL && self.join(slab, &buf) {
            return true;
        }
        let len = buf.len() as u32;
        let Ok(index) = slab.insert(buf, seq) else { return false };
        self.link(slab, index, index);
        self.bytes += len;
        self.slices += 1;
        true
    }

    /// Makes one slice of the last one and `buf` if that lies right behind it in the same buffer,
    /// as small segments do that were copied into a shared one.
    #[inline]
    pub(crate) fn join(&mut self, slab: &mut SliceSlab, buf: &IoBuf) -> bool {
        let tail = slab.get_mut(self.tail).and_then(|tail| tail.buf.as_mut());
        let joined = tail.is_some_and(|last| last.try_join(buf));
        if joined {
            self.bytes += buf.len() as u32;
        }
        joined
    }

    #[inline]
    fn link(&mut self, slab: &mut SliceSlab, first: u32, last: u32) {
        match slab.get_mut(self.tail) {
            Some(tail) => tail.next = first,
            None => self.head = first,
        }
        self.tail = last;
    }

    /// Takes the first slice.
    #[inline]
    pub(crate) fn pop(&mut self, slab: &mut SliceSlab) -> Option<IoBuf> {
        if self.head == NIL {
            return None;
        }
        let (buf, next) = slab.remove(self.head);
        self.head = next;
        if next == NIL {
            self.tail = NIL;
        }
        let buf = buf?;
        self.bytes -= buf.len() as u32;
        self.slices -= 1;
        Some(buf)
    }

    /// Copies bytes out; returns how many.
    #[inline]
    pub(crate) fn read(&mut self, slab: &mut SliceSlab, out: &mut [u8]) -> usize {
        if self.bytes == 0 {
            return 0;
        }
        // One slice that is taken whole is what an exchange of messages has.
        if self.slices == 1
            && let Some(out) = out.get_mut(..self.bytes as usize)
            && let Some(buf) = self.pop(slab)
        {
            copy_short(out, &buf);
            return out.len();
        }
        self.read_slices(slab, out)
    }

    fn read_slices(&mut self, slab: &mut SliceSlab, out: &mut [u8]) -> usize {
        let mut count = 0;
        while count < out.len() {
            let Some(buf) = slab.get_mut(self.head).and_then(|node| node.buf.as_mut()) else {
                break;
            };
            let part = buf.len().min(out.len() - count);
            out[count..count + part].copy_from_slice(&buf[..part]);
            count += part;
            if part == buf.len() {
                self.pop(slab);
            } else {
                buf.advance(part);
                self.bytes -= part as u32;
            }
        }
        count
    }

    /// Copies bytes out and leaves them; returns how many.
    pub(crate) fn peek(&self, slab: &SliceSlab, out: &mut [u8]) -> usize {
        let mut count = 0;
        let mut at = self.head;
        while count < out.len()
            && let Some(node) = slab.get(at)
            && let Some(buf) = &node.buf
        {
            let part = buf.len().min(out.len() - count);
            out[count..count + part].copy_from_slice(&buf[..part]);
            count += part;
            at = node.next;
        }
        count
    }

    /// Frees all.
    pub(crate) fn clear(&mut self, slab: &mut SliceSlab) {
        slab.remove_list(self.head);
        *self = Self::EMPTY;
    }
}

/// What became of a segment that reassembly was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// All that was new is kept.
    Kept,
    /// Nothing was new.
    Duplicate,
    /// A bound of the connection was met; what went before it is kept.
    Bound,
    /// The slab is full, or what is ahead of order has its share of it; what went before it is
    /// kept.
    SlabFull,
}

/// Slices that arrived ahead of order, as a list of ranges, each a list of slices without a gap.
///
/// Finding a place walks ranges, of which there are few, and not slices.
#[derive(Debug)]
pub(crate) struct Reassembly {
    head: u32,
    /// Slices in it.
    pub(crate) slices: u32,
    ranges: u16,
    /// Counts insertions, to tell which range grew last.
    stamp: u32,
}

impl Reassembly {
    pub(crate) const EMPTY: Self = Self { head: NIL, slices: 0, ranges: 0, stamp: 0 };

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head == NIL
    }

    /// Keeps those bytes of `buf`, whose first has the number `start`, that are not here yet, in at
    /// most `slices_max` slices and `ranges_max` ranges in all.
    pub(crate) fn insert(
        &mut self,
        slab: &mut SliceSlab,
        start: SeqNumber,
        buf: &IoBuf,
        slices_max: u32,
        ranges_max: u16,
    ) -> Inserted {
        let end = start + buf.len() as u32;
        let mut seq = start;
        let mut result = Inserted::Duplicate;
        let (mut previous, mut current) = (NIL, self.head);
        self.stamp = self.stamp.wrapping_add(1);
        while seq.lt(end) {
            // Ranges that end before the segment begins. One that ends right there is grown.
            while let Some(range) = slab.get(current)
                && range.range_end.lt(seq)
            {
                (previous, current) = (current, range.range_next);
            }
            let found = slab.get(current).map(|range| (range.seq, range.range_end));
            if let Some((range_start, range_end)) = found
                && range_start.le(seq)
            {
                if let Some(range) = slab.get_mut(current) {
                    range.range_stamp = self.stamp;
                }
                if range_end.ge(end) {
                    break;
                }
                let next = slab.get(current).map_or(NIL, |range| range.range_next);
                let piece_end = slab.get(next).map_or(end, |next| end.min(next.seq));
                if piece_end.gt(range_end) {
                    let piece = slice(buf, start, range_end, piece_end);
                    if !join_tail(slab, current, &piece, piece_end) {
                        match self.new_node(slab, piece, range_end, slices_max) {
                            Ok(node) => append(slab, current, node, piece_end),
                            Err(refused) => return refused,
                        }
                    }
                    result = Inserted::Kept;
                }
                self.merge_with_next(slab, current);
                seq = slab.get(current).map_or(end, |range| range.range_end);
            } else {
                let piece_end = found.map_or(end, |(range_start, _)| end.min(range_start));
                if self.ranges >= ranges_max && found.is_none_or(|(at, _)| at != piece_end) {
                    return Inserted::Bound;
                }
                let piece = slice(buf, start, seq, piece_end);
                match self.new_node(slab, piece, seq, slices_max) {
                    Ok(node) => {
                        self.new_range(slab, previous, node, current, piece_end);
                        current = node;
                    }
                    Err(refused) => return refused,
                }
                result = Inserted::Kept;
                self.merge_with_next(slab, current);
                seq = slab.get(current).map_or(end, |range| range.range_end);
            }
        }
        result
    }

    fn new_node(
        &mut self,
        slab: &mut SliceSlab,
        piece: IoBuf,
        seq: SeqNumber,
        slices_max: u32,
    ) -> Result<u32, Inserted> {
        if self.slices >= slices_max {
            return Err(Inserted::Bound);
        }
        let node = slab.insert_ahead(piece, seq).map_err(|_| Inserted::SlabFull)?;
        self.slices += 1;
        Ok(node)
    }

    fn new_range(
        &mut self,
        slab: &mut SliceSlab,
        previous: u32,
        node: u32,
        next: u32,
        end: SeqNumber,
    ) {
        if let Some(range) = slab.get_mut(node) {
            range.range_end = end;
            range.range_tail = node;
            range.range_next = next;
            range.range_nodes = 1;
            range.range_stamp = self.stamp;
        }
        match slab.get_mut(previous) {
            Some(previous) => previous.range_next = node,
            None => self.head = node,
        }
        self.ranges += 1;
    }

    /// If the range behind `range` begins where it ends, makes one of the two.
    fn merge_with_next(&mut self, slab: &mut SliceSlab, range: u32) {
        let Some((end, next, tail)) =
            slab.get(range).map(|head| (head.range_end, head.range_next, head.range_tail))
        else {
            return;
        };
        let Some((next_end, next_tail, next_next, next_nodes)) = slab
            .get(next)
            .filter(|next| next.seq == end)
            .map(|next| (next.range_end, next.range_tail, next.range_next, next.range_nodes))
        else {
            return;
        };
        let joined = slab.join(tail, next);
        let behind = joined.unwrap_or(next);
        if let Some(tail) = slab.get_mut(tail) {
            tail.next = behind;
        }
        if let Some(head) = slab.get_mut(range) {
            head.range_end = next_end;
            head.range_tail = if behind == NIL { tail } else { next_tail };
            head.range_next = next_next;
            head.range_nodes += next_nodes - u32::from(joined.is_some());
        }
        if joined.is_some() {
            slab.no_longer_ahead(1);
            self.slices -= 1;
        }
        self.ranges -= 1;
    }

    /// Number of the first byte that is ahead of order.
    pub(crate) fn first(&self, slab: &SliceSlab) -> Option<SeqNumber> {
        slab.get(self.head).map(|range| range.seq)
    }

    /// Lets go of the upper half of the highest range, to make room for what is in order: the peer
    /// must be ready to send again even what it was told is here (RFC 2018 section 8). Returns how
    /// many slices that frees, 0 if there are none.
    #[cold]
    pub(crate) fn renege(&mut self, slab: &mut SliceSlab) -> u32 {
        let (mut previous, mut last) = (NIL, self.head);
        let nodes = loop {
            let Some(range) = slab.get(last) else { return 0 };
            if range.range_next == NIL {
                break range.range_nodes;
            }
            (previous, last) = (last, range.range_next);
        };
        let kept = nodes / 2;
        if kept == 0 {
            match slab.get_mut(previous) {
                Some(previous) => previous.range_next = NIL,
                None => self.head = NIL,
            }
            self.ranges -= 1;
            slab.remove_list(last);
        } else {
            // Half of it, so that each slice is walked over about once in its life.
            let mut tail = last;
            for _ in 1..kept {
                tail = slab.get(tail).map_or(NIL, |node| node.next);
            }
            let cut = slab.get_mut(tail).map_or(NIL, |tail| std::mem::replace(&mut tail.next, NIL));
            let end = slab.get(cut).map(|node| node.seq);
            if let (Some(range), Some(end)) = (slab.get_mut(last), end) {
                range.range_end = end;
                range.range_tail = tail;
                range.range_nodes = kept;
            }
            slab.remove_list(cut);
        }
        let freed = nodes - kept;
        self.slices -= freed;
        slab.no_longer_ahead(freed);
        freed
    }

    /// Lets go of everything from `edge` on. Returns how many slices that frees.
    #[cold]
    pub(crate) fn cut(&mut self, slab: &mut SliceSlab, edge: SeqNumber) -> u32 {
        let (mut previous, mut current) = (NIL, self.head);
        while let Some(range) = slab.get(current)
            && range.range_end.le(edge)
        {
            (previous, current) = (current, range.range_next);
        }
        let mut freed = 0;
        if let Some(range) = slab.get(current)
            && range.seq.lt(edge)
        {
            // It goes beyond the edge: its slices up to there stay, the last one in part.
            let mut kept = 1;
            let mut tail = current;
            while let Some(next) = slab.get(tail).map(|node| node.next)
                && slab.get(next).is_some_and(|node| node.seq.lt(edge))
            {
                tail = next;
                kept += 1;
            }
            if let Some(node) = slab.get_mut(tail) {
                let len = edge.bytes_since(node.seq) as usize;
                if let Some(buf) = &mut node.buf {
                    buf.truncate(len.min(buf.len()));
                }
                let rest = std::mem::replace(&mut node.next, NIL);
                slab.remove_list(rest);
            }
            let next = slab.get_mut(current).map_or(NIL, |range| {
                freed = range.range_nodes - kept;
                range.range_end = edge;
                range.range_tail = tail;
                range.range_nodes = kept;
                range.range_next
            });
            (previous, current) = (current, next);
        }
        match slab.get_mut(previous) {
            Some(previous) => previous.range_next = NIL,
            None => self.head = NIL,
        }
        while let Some(range) = slab.get(current) {
            freed += range.range_nodes;
            let next = range.range_next;
            slab.remove_list(current);
            self.ranges -= 1;
            current = next;
        }
        self.slices -= freed;
        slab.no_longer_ahead(freed);
        freed
    }

    /// If the first range begins at `rcv_nxt`, moves it to `queue`. Returns the next number wanted.
    pub(crate) fn deliver(
        &mut self,
        slab: &mut SliceSlab,
        queue: &mut ReceiveQueue,
        rcv_nxt: SeqNumber,
    ) -> SeqNumber {
        let Some(range) = slab.get(self.head).filter(|range| range.seq == rcv_nxt) else {
            return rcv_nxt;
        };
        let (head, end, tail) = (self.head, range.range_end, range.range_tail);
        let (next, nodes) = (range.range_next, range.range_nodes);
        slab.no_longer_ahead(nodes);
        self.head = next;
        self.slices -= nodes;
        self.ranges -= 1;
        let joined = slab.join(queue.tail, head);
        let first = joined.unwrap_or(head);
        if first != NIL {
            queue.link(slab, first, tail);
        }
        queue.bytes += end.bytes_since(rcv_nxt);
        queue.slices += nodes - u32::from(joined.is_some());
        end
    }

    /// Adds the ranges to `blocks`, the one that grew last first (RFC 2018 section 4).
    pub(crate) fn sack_blocks(&self, slab: &SliceSlab, blocks: &mut SackBlocks) {
        // The up to four youngest ranges, youngest first.
        let mut youngest = [(u32::MAX, SeqNumber(0), SeqNumber(0)); 4];
        let mut count = 0;
        let mut current = self.head;
        while let Some(range) = slab.get(current) {
            let entry = (self.stamp.wrapping_sub(range.range_stamp), range.seq, range.range_end);
            let mut at = count;
            while at > 0 && youngest[at - 1].0 > entry.0 {
                at -= 1;
            }
            if at < youngest.len() {
                count = (count + 1).min(youngest.len());
                youngest[at..count].rotate_right(1);
                youngest[at] = entry;
            }
            current = range.range_next;
        }
        for (_, start, end) in &youngest[..count] {
            blocks.push(*start, *end);
        }
    }

    /// Frees all.
    pub(crate) fn clear(&mut self, slab: &mut SliceSlab) {
        let mut range = self.head;
        while let Some(head) = slab.get(range) {
            let next = head.range_next;
            slab.remove_list(range);
            range = next;
        }
        slab.no_longer_ahead(self.slices);
        *self = Self::EMPTY;
    }
}

/// Grows the last slice of a range by `piece`, if that lies right behind it in the same buffer.
fn join_tail(slab: &mut SliceSlab, range: u32, piece: &IoBuf, end: SeqNumber) -> bool {
    let tail = slab.get(range).map_or(NIL, |head| head.range_tail);
    let tail = slab.get_mut(tail).and_then(|tail| tail.buf.as_mut());
    let joined = tail.is_some_and(|last| last.try_join(piece));
    if joined && let Some(head) = slab.get_mut(range) {
        head.range_end = end;
    }
    joined
}

fn append(slab: &mut SliceSlab, range: u32, node: u32, end: SeqNumber) {
    let Some(head) = slab.get_mut(range) else { return };
    let tail = std::mem::replace(&mut head.range_tail, node);
    head.range_end = end;
    head.range_nodes += 1;
    if let Some(tail) = slab.get_mut(tail) {
        tail.next = node;
    }
}

fn slice(buf: &IoBuf, start: SeqNumber, from: SeqNumber, to: SeqNumber) -> IoBuf {
    buf.slice(from.bytes_since(start) as usize..to.bytes_since(start) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn insert(reassembly: &mut Reassembly, slab: &mut SliceSlab, at: u32, len: u32) -> Inserted {
        let bytes: Vec<u8> = (at..at + len).map(|seq| (seq % 251) as u8).collect();
        reassembly.insert(slab, SeqNumber(at), &IoBuf::from(bytes), 100, 100)
    }

    #[test]
    fn blocks_come_youngest_first() {
        let mut slab = SliceSlab::with_capacity(40);
        let mut reassembly = Reassembly::EMPTY;
        for at in [30, 10, 50, 70, 90] {
            assert_eq!(insert(&mut reassembly, &mut slab, at, 5), Inserted::Kept);
        }
        assert_eq!(insert(&mut reassembly, &mut slab, 35, 5), Inserted::Kept);
        let mut blocks = SackBlocks::EMPTY;
        reassembly.sack_blocks(&slab, &mut blocks);
        let starts: Vec<u32> = blocks.as_slice().iter().map(|block| block.0.0).collect();
        assert_eq!(starts, [30, 90, 70, 50]);
        assert_eq!(blocks.as_slice()[0].1, SeqNumber(40));
        assert_eq!(insert(&mut reassembly, &mut slab, 31, 4), Inserted::Duplicate);
        reassembly.clear(&mut slab);
        assert_eq!(slab.used(), 0);
    }

    #[test]
    fn bounds_hold() {
        let mut slab = SliceSlab::with_capacity(40);
        let mut reassembly = Reassembly::EMPTY;
        let buf = IoBuf::from(vec![0; 5]);
        for at in [10, 20] {
            reassembly.insert(&mut slab, SeqNumber(at), &buf, 3, 2);
        }
        assert_eq!(reassembly.insert(&mut slab, SeqNumber(40), &buf, 3, 2), Inserted::Bound);
        assert_eq!(reassembly.insert(&mut slab, SeqNumber(15), &buf, 3, 2), Inserted::Kept);
        assert_eq!(reassembly.insert(&mut slab, SeqNumber(25), &buf, 3, 2), Inserted::Bound);
    }

    #[test]
    fn neighbours_in_order_become_one() {
        let mut slab = SliceSlab::with_capacity(4);
        let mut queue = ReceiveQueue::EMPTY;
        let all = IoBuf::from((0..100).collect::<Vec<u8>>());
        for at in 0..9 {
            assert!(queue.push(&mut slab, all.slice(at * 10..at * 10 + 10), SeqNumber(0)));
        }
        assert_eq!((queue.slices, queue.bytes, slab.used()), (1, 90, 1));
        assert_eq!(&*queue.pop(&mut slab).unwrap(), &all[..90]);
        assert!(queue.push(&mut slab, all.slice(90..100), SeqNumber(0)));
        assert_eq!((queue.slices, queue.bytes, slab.used()), (1, 10, 1));
    }

    proptest! {
        /// Whatever order and overlap segments come in, what is delivered is the stream, and no
        /// node is lost.
        #[test]
        fn any_order_gives_the_stream(
            segments in prop::collection::vec((0u32..300, 1u32..60), 1..60),
            shared in any::<bool>(),
            reneges in any::<bool>(),
        ) {
            let base = u32::MAX - 150;
            let all = IoBuf::from((0..400u32).map(|seq| (seq % 251) as u8).collect::<Vec<u8>>());
            let mut slab = SliceSlab::with_capacity(4000);
            let mut reassembly = Reassembly::EMPTY;
            let mut queue = ReceiveQueue::EMPTY;
            let mut have = [false; 400];
            let mut next = SeqNumber(base);
            for (at, len) in segments {
                let delivered = next.bytes_since(SeqNumber(base));
                let (from, to) = (at.max(delivered), at + len);
                if from < to {
                    let bytes = all.slice(from as usize..to as usize);
                    // In one buffer neighbours become one slice, in two they do not.
                    let bytes = if shared { bytes } else { IoBuf::from(bytes.to_vec()) };
                    let new = (from..to).any(|seq| !have[seq as usize]);
                    let result = reassembly.insert(&mut slab, SeqNumber(base) + from, &bytes, 1000, 1000);
                    prop_assert_eq!(result, if new { Inserted::Kept } else { Inserted::Duplicate });
                    have[from as usize..to as usize].fill(true);
                    next = reassembly.deliver(&mut slab, &mut queue, next);
                }
                if reneges && len % 8 == 0 {
                    let before = (slab.used(), reassembly.is_empty());
                    let freed = reassembly.renege(&mut slab);
                    prop_assert_eq!((slab.used() + freed as usize, freed == 0), before);
                    let mut kept = next;
                    let mut current = reassembly.head;
                    while let Some(range) = slab.get(current) {
                        (kept, current) = (range.range_end, range.range_next);
                    }
                    have[kept.bytes_since(SeqNumber(base)) as usize..].fill(false);
                }
                let expected = have.iter().position(|have| !have).unwrap() as u32;
                prop_assert_eq!(next.bytes_since(SeqNumber(base)), expected);
                // The ranges left are the runs of what is here beyond that, least first.
                let mut current = reassembly.head;
                let mut seq = expected;
                let (mut ranges, mut slices) = (0, 0);
                while let Some(range) = slab.get(current) {
                    while !have[seq as usize] { seq += 1; }
                    prop_assert_eq!(range.seq, SeqNumber(base) + seq);
                    while have[seq as usize] { seq += 1; }
                    prop_assert_eq!(range.range_end, SeqNumber(base) + seq);
                    ranges += 1;
                    slices += range.range_nodes;
                    current = range.range_next;
                }
                prop_assert!(have[seq as usize..].iter().all(|have| !have));
                prop_assert_eq!((reassembly.ranges, reassembly.slices), (ranges, slices));
                prop_assert_eq!(slab.ahead(), slices as usize);
                prop_assert!(!shared || slices == u32::from(ranges));
            }
            let mut read = Vec::new();
            let slices = queue.slices;
            let mut popped = 0;
            while let Some(buf) = queue.pop(&mut slab) { read.extend_from_slice(&buf); popped += 1; }
            prop_assert_eq!(slices, popped);
            prop_assert!(!shared || popped <= 1);
            prop_assert_eq!(queue.bytes, 0);
            let stream: Vec<u8> = (0..read.len()).map(|seq| (seq % 251) as u8).collect();
            prop_assert_eq!(read, stream);
            reassembly.clear(&mut slab);
            prop_assert_eq!(slab.used(), 0);
        }
    }
}
