//! Buffers that are let go of when they are sent, and what is lost, read again.

use millstream_buf::{BLOCK_BYTES, SizeClass};
use millstream_disk::{Completion, DiskError, Read};

use super::SendFileError;
use crate::config::Retention;
use crate::state::{State, env};

/// In the token of a read of what was let go of; the rest is the transfer's number.
pub(super) const REREAD: u64 = 1 << 62;

/// Bytes that were let go of and are to be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reread {
    None,
    /// Those from here in the stream on are wanted.
    Wanted(u64),
    /// They are in the disk queue.
    Reading(u64),
}

impl State {
    /// A connection has sent what it may. Its file's buffers are let go of if that is wanted, and what
    /// is missing for sending it again is asked for.
    #[inline]
    pub fn splice_sent(&mut self, number: u32) {
        if self.splices.retention == Retention::UntilTx {
            self.let_go_of_sent(number);
        }
    }

    fn let_go_of_sent(&mut self, number: u32) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        let Some(splice) = self.splices.get_mut(conn.splice).filter(|splice| splice.until_tx)
        else {
            return;
        };
        let wanted = conn.tcb.let_go_of_sent(&mut self.slices, splice.base_total);
        if let (Some(total), Reread::None) = (wanted, splice.reread) {
            splice.reread = Reread::Wanted(total);
            self.splice_reread(number);
        }
    }

    /// Asks the disk again for what is to be sent again.
    pub(super) fn splice_reread(&mut self, number: u32) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        let splice_number = conn.splice;
        let Some(splice) = self.splices.get_mut(splice_number) else { return };
        let Reread::Wanted(total) = splice.reread else { return };
        let offset = splice.start + (total - splice.base_total);
        let align = splice.file.align_bytes() as u64;
        let start = offset / align * align;
        let len = (splice.next_append - start).next_multiple_of(align).min(BLOCK_BYTES as u64);
        let (file, token) = (splice.file.clone(), REREAD | u64::from(splice_number));
        let buf = if self.splices.in_disk < self.splices.depth {
            self.arena.alloc(SizeClass::Block)
        } else {
            None
        };
        let submitted = buf.is_some_and(|buf| {
            let read = Read { file, offset: start, len: len as usize, buf, token };
            self.disk.submit(read).is_ok()
        });
        if !submitted {
            self.metrics.splice_parked += 1;
            return conn.park(&mut self.splices.parked, number);
        }
        self.splices.in_disk += 1;
        if let Some(splice) = self.splices.get_mut(splice_number) {
            splice.reread = Reread::Reading(total);
            splice.in_disk += 1;
        }
    }

    /// What was let go of is there again.
    pub(super) fn reread_completed(&mut self, completion: Completion) {
        let number = completion.token as u32;
        let Some(splice) = self.splices.slots.get_mut(number as usize).and_then(Option::as_mut)
        else {
            return;
        };
        splice.in_disk -= 1;
        let Reread::Reading(total) = splice.reread else { return };
        splice.reread = Reread::None;
        if splice.outcome.is_some() {
            return self.splice_free_if_over(number);
        }
        let (id, unchanged) = (splice.conn, splice.file.check_unchanged());
        let offset = splice.start + (total - splice.base_total);
        let skip = (offset % splice.file.align_bytes() as u64) as usize;
        let end = (splice.next_append - (offset - skip as u64)).min(BLOCK_BYTES as u64) as usize;
        let result = match completion.result {
            Ok(len) if len < end => Err(DiskError::Truncated),
            other => unchanged.and(other),
        };
        let Some(conn) = self.conns.named_mut(id) else { return };
        match result {
            Ok(_) => {
                let buf = completion.buf.freeze(skip..end);
                if conn.tcb.refill(&mut self.slices, total, &buf) {
                    self.metrics.reread_bytes += buf.len() as u64;
                    conn.schedule_output(&mut self.output, id.number);
                } else {
                    splice.reread = Reread::Wanted(total);
                    conn.park(&mut self.splices.parked, id.number);
                }
            }
            Err(source) => {
                conn.tcb.abort(&mut env!(self));
                self.note_disk_error(offset, source);
                self.splice_end(number, Err(SendFileError::Disk { offset, source }));
                self.settle(id.number);
            }
        }
    }
}
