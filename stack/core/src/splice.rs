//! Disk to network: a file's blocks go from the disk queue into a connection's send queue, pulled
//! by the TCP window, without the application and without a copy.
//!
//! ```text
//! window opens -> read 16 KiB into an arena buffer -> its completion appends the buffer to the send
//! queue -> output in the same turn -> the cumulative ACK frees the buffer and opens the window
//! ```
//!
//! Completions may come out of order; they wait for their turn. A connection holds at most
//! `limits.splice_buffers` buffers, in the disk queue, waiting, or unacknowledged. Where no buffer
//! or no place in the disk queue is free, the transfer is parked and resumed when there is.

use std::collections::VecDeque;
use std::ops::Range;
use std::task::Waker;

use millstream_buf::{BLOCK_BYTES, IoBuf, SizeClass};
use millstream_disk::{Completion, DiskError, File, Read};
use millstream_tcp::SendError;

use crate::conn::{ConnId, Facts, NONE};
use crate::state::{State, env};

/// Blocks read beyond what the window wants, so that the next ACK finds data waiting.
const READ_AHEAD_BLOCKS: usize = 2;

/// Why a file was not sent to its end.
#[derive(Debug, thiserror::Error)]
pub enum SendFileError {
    /// The range is not inside the file.
    #[error("bytes {}..{} are not inside the file of {len} bytes", range.start, range.end)]
    Range {
        /// What was asked for.
        range: Range<u64>,
        /// The file's length.
        len: u64,
    },
    /// The connection sends another file.
    #[error("the connection is still sending another file; wait for it")]
    Busy,
    /// The connection ended.
    #[error("the connection ended: {0}")]
    Connection(#[from] std::io::Error),
    /// The disk failed, or the file became shorter. What was good before was sent, and the
    /// connection was reset, since the peer cannot be told otherwise.
    #[error("reading at byte {offset} failed, the connection was reset: {source}")]
    Disk {
        /// Where in the file.
        offset: u64,
        /// What the disk said.
        source: DiskError,
    },
}

/// A block on its way.
enum Block {
    /// In the disk queue.
    Reading,
    /// Read, but an earlier one is not.
    Ready(IoBuf),
}

/// A transfer in progress.
pub(crate) struct Splice {
    conn: ConnId,
    file: File,
    /// Where the next read starts.
    next_read: u64,
    /// The first byte not appended to the send queue yet.
    next_append: u64,
    end: u64,
    /// Blocks from `next_append` on, in order.
    blocks: VecDeque<Block>,
    /// Number of the first of `blocks`.
    first_block: u32,
    /// Where in the file the read of the first of `blocks` began.
    first_offset: u64,
    in_disk: u32,
    /// `queued_total` of the connection when the last byte was appended.
    finish_at: Option<u64>,
    /// How it ended; the application has not looked yet.
    outcome: Option<Result<(), SendFileError>>,
    /// Nobody waits for the outcome.
    detached: bool,
    /// Who waits for it.
    waker: Option<Waker>,
}

/// All transfers of a shard.
pub(crate) struct Splices {
    slots: Vec<Option<Splice>>,
    free: Vec<u32>,
    /// Reads in the disk queue.
    pub in_disk: usize,
    pub depth: usize,
    /// Connections whose transfer or write waits for a free buffer.
    pub parked: VecDeque<ConnId>,
}

impl Splices {
    pub fn new(depth: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), in_disk: 0, depth, parked: VecDeque::new() }
    }

    fn get_mut(&mut self, number: u32) -> Option<&mut Splice> {
        self.slots.get_mut(number as usize)?.as_mut()
    }
}

impl State {
    /// Starts a transfer on a connection that has none.
    pub fn splice_start(
        &mut self,
        id: ConnId,
        file: File,
        range: Range<u64>,
    ) -> Result<u32, SendFileError> {
        if range.start > range.end || range.end > file.len() {
            return Err(SendFileError::Range { range, len: file.len() });
        }
        let align = file.align_bytes() as u64;
        let Some(conn) = self.conns.named_mut(id) else {
            return Err(SendFileError::Connection(std::io::ErrorKind::NotConnected.into()));
        };
        if conn.splice != NONE {
            return Err(SendFileError::Busy);
        }
        if conn.facts.contains(Facts::CLOSED) || !conn.tcb.state().accepts_data() {
            return Err(SendFileError::Connection(std::io::ErrorKind::BrokenPipe.into()));
        }
        let number = self.splices.free.pop().unwrap_or_else(|| {
            self.splices.slots.push(None);
            self.splices.slots.len() as u32 - 1
        });
        self.splices.slots[number as usize] = Some(Splice {
            conn: id,
            next_read: range.start / align * align,
            next_append: range.start,
            end: range.end,
            file,
            blocks: VecDeque::with_capacity(self.limits.splice_buffers),
            first_block: 0,
            first_offset: range.start / align * align,
            in_disk: 0,
            finish_at: None,
            outcome: None,
            detached: false,
            waker: None,
        });
        conn.splice = number;
        self.splice_progress(id.number);
        Ok(number)
    }

    /// Moves a connection's transfer on: after an ACK, a completion, or when buffers came free.
    pub fn splice_progress(&mut self, number: u32) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        let splice_number = conn.splice;
        let Some(splice) = self.splices.get_mut(splice_number) else { return };

        // Append what is next in order.
        let mut parks = false;
        while let Some(Block::Ready(buf)) = splice.blocks.front() {
            let len = buf.len() as u64;
            match conn.tcb.send(&mut env!(self), buf.clone()) {
                Ok(()) => {}
                Err(SendError::Closed(_)) => {
                    let error = std::io::ErrorKind::BrokenPipe.into();
                    return self.splice_end(splice_number, Err(SendFileError::Connection(error)));
                }
                Err(SendError::Full(_)) => {
                    // The next ACK tries again; without one to come, whoever frees memory does.
                    parks = conn.tcb.unacked_bytes() == 0;
                    break;
                }
            }
            splice.blocks.pop_front();
            splice.first_block = splice.first_block.wrapping_add(1);
            splice.first_offset += BLOCK_BYTES as u64;
            splice.next_append += len;
            self.metrics.spliced_bytes += len;
        }
        if splice.next_append == splice.end && splice.finish_at.is_none() {
            splice.finish_at = Some(conn.tcb.queued_total());
        }
        if splice.finish_at.is_some_and(|at| conn.tcb.acked_total() >= at) {
            return self.splice_end(splice_number, Ok(()));
        }
        if parks {
            conn.park(&mut self.splices.parked, number);
        }
        if conn.tcb.wants_transmit() {
            conn.schedule_output(&mut self.output, number);
        }
        self.splice_read(number, splice_number);
        self.rearm(number);
    }

    /// Asks the disk for what the window wants.
    fn splice_read(&mut self, number: u32, splice_number: u32) {
        loop {
            let Some(conn) = self.conns.get_mut(number) else { return };
            let Some(splice) = self.splices.get_mut(splice_number) else { return };
            if splice.next_read >= splice.end {
                return;
            }
            // What is read or queued but not sent may exceed what the window takes by the read-ahead,
            // no matter how long a peer keeps its window closed.
            let held = splice.blocks.len() + conn.tcb.unacked_bytes().div_ceil(BLOCK_BYTES);
            let unsent = conn.tcb.unsent_bytes();
            let ahead = splice.blocks.len() * BLOCK_BYTES + unsent;
            let taken = match conn.tcb.window_room() {
                0 => 0,
                room => room + unsent,
            };
            if held >= self.limits.splice_buffers
                || ahead >= taken + READ_AHEAD_BLOCKS * BLOCK_BYTES
                || conn.facts.contains(Facts::PARKED)
            {
                return;
            }
            let buf = if self.splices.in_disk < self.splices.depth {
                self.arena.alloc(SizeClass::Block)
            } else {
                None
            };
            let Some(splice) = self.splices.get_mut(splice_number) else { return };
            let align = splice.file.align_bytes() as u64;
            let block = splice.first_block.wrapping_add(splice.blocks.len() as u32);
            let until_end = (splice.end - splice.next_read).next_multiple_of(align);
            let len = until_end.min(BLOCK_BYTES as u64);
            let submitted = buf.is_some_and(|buf| {
                let token = u64::from(splice_number) << 32 | u64::from(block);
                let file = splice.file.clone();
                let read = Read { file, offset: splice.next_read, len: len as usize, buf, token };
                self.disk.submit(read).is_ok()
            });
            if !submitted {
                self.metrics.splice_parked += 1;
                if let Some(conn) = self.conns.get_mut(number) {
                    conn.park(&mut self.splices.parked, number);
                }
                return;
            }
            splice.blocks.push_back(Block::Reading);
            splice.next_read += len;
            splice.in_disk += 1;
            self.splices.in_disk += 1;
        }
    }

    /// The connection for which a read was made.
    pub fn splice_conn(&mut self, token: u64) -> Option<u32> {
        self.splices.get_mut((token >> 32) as u32).map(|splice| splice.conn.number)
    }

    /// A read has ended.
    pub fn disk_completed(&mut self, completion: Completion) {
        let Completion { token, buf, result } = completion;
        let (number, block) = ((token >> 32) as u32, token as u32);
        self.splices.in_disk = self.splices.in_disk.saturating_sub(1);
        let Some(splice) = self.splices.get_mut(number) else { return };
        splice.in_disk -= 1;
        let at = block.wrapping_sub(splice.first_block) as usize;
        if splice.outcome.is_some() || at >= splice.blocks.len() {
            // It ended while this read was in flight.
            return self.splice_free_if_over(number);
        }
        let offset = splice.first_offset + (at * BLOCK_BYTES) as u64;
        let skip = splice.next_append.saturating_sub(offset).min(BLOCK_BYTES as u64);
        let wanted = (splice.end - offset).min(BLOCK_BYTES as u64);
        let result = match result {
            Ok(len) if (len as u64) < wanted => Err(DiskError::Truncated),
            other => other,
        };
        match result {
            Ok(_) => {
                splice.blocks[at] = Block::Ready(buf.freeze(skip as usize..wanted as usize));
                if at == 0 {
                    let conn = splice.conn.number;
                    self.splice_progress(conn);
                }
            }
            Err(source) => {
                tracing::warn!(offset, error = %source, "a disk read failed; its connection is reset");
                self.metrics.disk_errors += 1;
                let id = splice.conn;
                if let Some(conn) = self.conns.named_mut(id) {
                    conn.tcb.abort(&mut env!(self));
                }
                self.splice_end(number, Err(SendFileError::Disk { offset, source }));
                self.settle(id.number);
            }
        }
    }

    fn splice_end(&mut self, number: u32, outcome: Result<(), SendFileError>) {
        let Some(splice) = self.splices.get_mut(number) else { return };
        if splice.outcome.is_none() {
            splice.outcome = Some(outcome);
            splice.blocks.clear();
            if let Some(waker) = splice.waker.take() {
                waker.wake();
            }
        }
        let id = splice.conn;
        if let Some(conn) = self.conns.named_mut(id)
            && conn.splice == number
        {
            conn.splice = NONE;
            if conn.facts.contains(Facts::WRITE_WAITING) {
                conn.facts.remove(Facts::WRITE_WAITING);
                if let Some(waker) = &conn.write_waker {
                    waker.wake_by_ref();
                }
            }
            if conn.facts.contains(Facts::SHUTDOWN_AFTER_FILE) {
                conn.tcb.close(&mut env!(self));
                conn.schedule_output(&mut self.output, id.number);
            }
        }
        self.splice_free_if_over(number);
    }

    /// The connection is gone: its transfer ends, its reads are waited for.
    pub fn splice_abandon(&mut self, conn: u32) {
        let Some(conn) = self.conns.get(conn) else { return };
        let number = conn.splice;
        if number != NONE {
            let error = std::io::ErrorKind::ConnectionAborted.into();
            self.splice_end(number, Err(SendFileError::Connection(error)));
        }
    }

    fn splice_free_if_over(&mut self, number: u32) {
        let Some(splice) = self.splices.get_mut(number) else { return };
        if splice.in_disk == 0 && splice.outcome.is_some() && splice.detached {
            self.splices.slots[number as usize] = None;
            self.splices.free.push(number);
        }
    }

    /// Has `waker` called when a transfer ends.
    pub fn splice_wake(&mut self, number: u32, waker: &Waker) {
        if let Some(splice) = self.splices.get_mut(number) {
            splice.waker = Some(waker.clone());
        }
    }

    /// The outcome of a transfer, once.
    pub fn splice_outcome(&mut self, number: u32) -> Option<Result<(), SendFileError>> {
        let splice = self.splices.get_mut(number)?;
        splice.outcome.as_ref()?;
        let outcome = splice.outcome.replace(Ok(()));
        splice.detached = true;
        self.splice_free_if_over(number);
        outcome
    }

    /// Nobody waits for a transfer any more; it goes on, since half a file on the wire cannot be
    /// taken back.
    pub fn splice_detach(&mut self, number: u32) {
        if let Some(splice) = self.splices.get_mut(number) {
            splice.detached = true;
        }
        self.splice_free_if_over(number);
    }

    /// Resumes what waited for buffers, oldest first, while there are some.
    pub fn resume_parked(&mut self) {
        for _ in 0..self.splices.parked.len() {
            let Some(id) = self.splices.parked.pop_front() else { return };
            let Some(conn) = self.conns.named_mut(id) else { continue };
            // A file needs a block and a place in the disk queue, a write the one or the other buffer.
            let blocks = self.arena.free(SizeClass::Block) > 0;
            let room = match conn.splice {
                NONE => blocks || self.arena.free(SizeClass::Frame) > 0,
                _ => blocks && self.splices.in_disk < self.splices.depth,
            };
            if !room || self.slices.is_full() {
                self.splices.parked.push_back(id);
                continue;
            }
            conn.facts.remove(Facts::PARKED);
            if conn.splice != NONE {
                self.splice_progress(id.number);
            } else {
                self.wake_both(id.number);
            }
        }
    }
}
