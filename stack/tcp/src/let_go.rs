//! Bytes that are let go of when they have been sent, and brought again if they are lost: for those
//! who can make them anew, as from a disk (Atlas, SIGCOMM 2017). What is in flight then holds no
//! buffers.

use millstream_buf::IoBuf;
use millstream_wire::tcp::SeqNumber;

use crate::slab::SliceSlab;
use crate::tcb::{Env, Marks, Tcb};

impl Tcb {
    /// The number of the byte that `total` were queued before, if it is not acknowledged.
    fn number_of(&self, total: u64) -> Option<SeqNumber> {
        let ahead = total.checked_sub(self.acked_total())?;
        Some(self.first_data() + u32::try_from(ahead).ok()?)
    }

    /// Lets go of the buffers of all whole slices that were sent and behind whose first byte at least
    /// `from_total` bytes of the stream lie ([`Tcb::queued_total`]). Returns where in the stream bytes
    /// are wanted again, if some are: see [`Tcb::refill`].
    pub fn let_go_of_sent(&mut self, slices: &mut SliceSlab, from_total: u64) -> Option<u64> {
        let from = self.number_of(from_total).unwrap_or(self.first_data());
        let until = self.snd_nxt.min(self.snd_end);
        self.marks.insert(Marks::VOIDS);
        let wanted = self.send_queue.let_go(slices, from, until)?;
        let ahead = wanted.distance(self.first_data());
        Some(self.acked_total() + u64::try_from(ahead).ok()?)
    }

    /// Brings bytes of the stream from `total` on again. Those that nobody misses are left out.
    /// `false` if the slab has no room; then it may be tried again.
    pub fn refill(&mut self, slices: &mut SliceSlab, total: u64, buf: &IoBuf) -> bool {
        let acked = self.acked_total().saturating_sub(total);
        let skip = usize::try_from(acked).unwrap_or(usize::MAX).min(buf.len());
        let rest = buf.slice(skip..buf.len());
        match self.number_of(total + skip as u64) {
            Some(seq) if !rest.is_empty() => self.send_queue.refill(slices, seq, &rest),
            _ => true,
        }
    }

    /// Whether the byte `seq`, which is to be sent again, must be brought first.
    #[inline]
    pub(crate) fn lacks(&self, env: &mut Env<'_>, seq: SeqNumber) -> bool {
        self.marks.contains(Marks::VOIDS) && self.send_queue.want(env.slices, seq)
    }

    /// Whether something is wanted without which a segment cannot be sent.
    #[cold]
    pub(crate) fn lacks_any(&self, env: &Env<'_>) -> bool {
        self.marks.contains(Marks::VOIDS) && self.send_queue.wants_any(env.slices)
    }
}
