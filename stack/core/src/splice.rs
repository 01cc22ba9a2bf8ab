//! Disk to network: a file's blocks go from the disk queue into a connection's send queue, pulled
//! by the TCP window, without the application and without a copy.
//!
//! ```text
//! window opens -> read 16 KiB into an arena buffer -> its completion appends the buffer to the send
//! queue -> output in the same turn -> the cumulative ACK frees the buffer and opens the window
//! ```
//!
//! Completions may come out of order; they wait for their turn. A file is read ahead of the window by
//! what the connection sends while the disk works (`readahead`). While less than half of all buffers
//! are free, a connection holds at most `limits.splice_buffers`, in the disk queue, waiting, or
//! unacknowledged; while less than a quarter is free, none reads ahead. Where no buffer or no place in
//! the disk queue is free, the transfer is parked and resumed when there is.
//!
//! Where a read fails, what comes before it is sent and acknowledged, and the connection is reset. A
//! file that is no longer what it was when it was opened is noticed before its last byte is sent.

mod reread;

use std::collections::VecDeque;
use std::ops::Range;
use std::task::Waker;

use millstream_buf::{BLOCK_BYTES, IoBuf, SizeClass};
use millstream_disk::{Completion, DiskError, File, Read};
use millstream_tcp::SendError;
use millstream_timer::Instant;

use crate::config::Retention;
use crate::conn::{ConnId, Facts, NONE};
use crate::read::{TASK_READ, TaskReads};
use crate::readahead::DiskPace;
use crate::state::{State, env};
use reread::{REREAD, Reread};

/// Of how many blocks one finds the read-ahead computed anew.
const PACE_EVERY: u32 = 4;

/// Of how many blocks one is preceded by a look at whether the file is still the same.
const CHECK_EVERY: u32 = 64;

/// What may wait to be sent before no more is read: it waits for the link or for its rate then, not for
/// the disk.
const READY_BYTES_MAX: usize = 4 * BLOCK_BYTES;

/// How long errors of the disk are gathered before they are told again.
const TELL_EVERY_NANOS: u64 = 1_000_000_000;

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
    /// The disk failed, or the file was changed. What was good before was sent and acknowledged, and
    /// the connection was reset, since the peer cannot be told otherwise.
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
    /// In the disk queue since then.
    Reading(Instant),
    /// Read, but an earlier one is not.
    Ready(IoBuf),
    /// It could not be read.
    Failed(DiskError),
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
    /// Blocks to be read beyond the window.
    ahead: u32,
    /// The turn in which reads were last begun, and how many they were.
    turn: u64,
    turn_reads: usize,
    /// On the list of those that go on in the next turn.
    again: bool,
    /// Buffers are let go of when they are sent.
    until_tx: bool,
    /// `queued_total` of the connection before the first byte, which is at `start` in the file.
    base_total: u64,
    start: u64,
    reread: Reread,
    /// Where and why it will end before its end.
    failed: Option<(u64, DiskError)>,
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
    /// Reads that ever began.
    begun: u64,
    pub depth: usize,
    /// Connections whose transfer waits for a free buffer or a place in the disk queue.
    pub parked: VecDeque<ConnId>,
    /// Connections whose write waits for a free buffer.
    pub writers: VecDeque<ConnId>,
    /// Connections that have begun as many reads as they may in one turn, or have enough to send.
    again: VecDeque<ConnId>,
    retention: Retention,
    pace: DiskPace,
    /// Reads that failed and were not told yet, and when the last ones were.
    untold_errors: u64,
    told_at: Option<Instant>,
    pub task_reads: TaskReads,
}

impl Splices {
    pub fn new(depth: usize, retention: Retention) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            in_disk: 0,
            begun: 0,
            depth,
            parked: VecDeque::new(),
            writers: VecDeque::new(),
            again: VecDeque::new(),
            retention,
            pace: DiskPace::default(),
            untold_errors: 0,
            told_at: None,
            task_reads: TaskReads::default(),
        }
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
        // What is kept for others is whole blocks.
        let align = if self.cache.is_on() { BLOCK_BYTES as u64 } else { file.align_bytes() as u64 };
        let Some(conn) = self.conns.named_mut(id) else {
            return Err(SendFileError::Connection(std::io::ErrorKind::NotConnected.into()));
        };
        if conn.splice != NONE {
            return Err(SendFileError::Busy);
        }
        if conn.facts.contains(Facts::CLOSED) || !conn.tcb.state().accepts_data() {
            return Err(SendFileError::Connection(std::io::ErrorKind::BrokenPipe.into()));
        }
        let base_total = conn.tcb.queued_total();
        let until_tx = self.splices.retention == Retention::UntilTx && file.is_immutable();
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
            ahead: 0,
            turn: 0,
            turn_reads: 0,
            again: false,
            until_tx,
            base_total,
            start: range.start,
            reread: Reread::None,
            failed: None,
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
        while let Some(block) = splice.blocks.front() {
            let buf = match block {
                Block::Reading(_) => break,
                Block::Failed(error) => {
                    splice.fail(*error);
                    break;
                }
                Block::Ready(buf) => buf,
            };
            let len = buf.len() as u64;
            let last = splice.next_append + len == splice.end;
            if (last || splice.first_block % CHECK_EVERY == CHECK_EVERY - 1)
                && let Err(error) = splice.file.check_unchanged()
            {
                self.metrics.splice_changed += 1;
                splice.fail(error);
                break;
            }
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
            let outcome = match splice.failed {
                None => Ok(()),
                Some((offset, source)) => {
                    conn.tcb.abort(&mut env!(self));
                    Err(SendFileError::Disk { offset, source })
                }
            };
            let failed = outcome.is_err();
            self.splice_end(splice_number, outcome);
            if failed {
                self.settle(number);
            }
            return;
        }
        if parks {
            conn.park(&mut self.splices.parked, number);
        }
        if conn.tcb.wants_transmit() {
            conn.schedule_output(&mut self.output, number);
        }
        self.splice_reread(number);
        if self.splice_read(number, splice_number) {
            // What was in the cache is there already.
            return self.splice_progress(number);
        }
        self.rearm(number);
    }

    /// Takes what the window wants from the cache, or asks the disk for it. Returns whether the block that
    /// is next in order came from the cache.
    fn splice_read(&mut self, number: u32, splice_number: u32) -> bool {
        // What is kept makes way for what is wanted.
        let free = self.arena.free(SizeClass::Block) + self.cache.len();
        let (all, _) = self.arena.stats().blocks;
        let turn = self.metrics.turns;
        let mut is_next = false;
        loop {
            let Some(conn) = self.conns.get_mut(number) else { return is_next };
            let Some(splice) = self.splices.get_mut(splice_number) else { return is_next };
            if splice.next_read >= splice.end || conn.facts.contains(Facts::PARKED) {
                return is_next;
            }
            // What is read or queued but not sent may exceed what the window takes by the read-ahead,
            // no matter how long a peer keeps its window closed.
            let unsent = conn.tcb.unsent_bytes();
            let kept = if splice.until_tx { unsent } else { conn.tcb.unacked_bytes() };
            let held = splice.blocks.len() + kept.div_ceil(BLOCK_BYTES);
            let queued = splice.blocks.len() * BLOCK_BYTES + unsent;
            let taken = match conn.tcb.window_room().min(conn.tcb.send_room(&self.tcp_config)) {
                0 => 0,
                room => room + unsent,
            };
            // One block is always on its way or waiting to be sent: TCP asks a closed window to open
            // only if it has something to send.
            let ahead = if free < all / 4 { 1 } else { splice.ahead.max(1) as usize };
            let too_many = held >= self.limits.splice_buffers && free < all / 2;
            if too_many || queued >= taken + ahead * BLOCK_BYTES {
                return is_next;
            }
            if self.cache.is_on()
                && let Some(buf) = self.cache.get(&splice.file, splice.next_read)
            {
                let part = splice.part(splice.next_read);
                if part.end > buf.len() {
                    // Not to be: blocks are kept under the length that their file has.
                    return is_next;
                }
                buf.memoize();
                is_next |= splice.blocks.is_empty();
                splice.blocks.push_back(Block::Ready(buf.slice(part)));
                splice.next_read += BLOCK_BYTES as u64;
                continue;
            }
            if splice.turn != turn {
                (splice.turn, splice.turn_reads) = (turn, 0);
            }
            if splice.turn_reads >= self.limits.splice_turn_reads || unsent >= READY_BYTES_MAX {
                let id = splice.conn;
                if !std::mem::replace(&mut splice.again, true) {
                    self.splices.again.push_back(id);
                }
                return is_next;
            }
            let buf = if self.splices.in_disk < self.splices.depth {
                match self.arena.alloc(SizeClass::Block) {
                    None if self.cache.relieve() => self.arena.alloc(SizeClass::Block),
                    other => other,
                }
            } else {
                None
            };
            let Some(splice) = self.splices.get_mut(splice_number) else { return is_next };
            let align = splice.file.align_bytes() as u64;
            let block = splice.first_block.wrapping_add(splice.blocks.len() as u32);
            let end = if self.cache.is_on() { splice.file.len() } else { splice.end };
            let until_end = (end - splice.next_read).next_multiple_of(align);
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
                return is_next;
            }
            splice.blocks.push_back(Block::Reading(self.now));
            splice.next_read += len;
            splice.in_disk += 1;
            splice.turn_reads += 1;
            self.splices.in_disk += 1;
            self.splices.begun += 1;
        }
    }

    /// The connection for which a read was made.
    pub fn splice_conn(&self, token: u64) -> Option<u32> {
        if token & (TASK_READ | REREAD) != 0 {
            return None;
        }
        let splice = self.splices.slots.get((token >> 32) as usize)?.as_ref()?;
        Some(splice.conn.number)
    }

    /// Moves on what has had its share of the last turn. Returns how many reads began.
    pub fn splices_again(&mut self) -> usize {
        let before = self.splices.begun;
        for _ in 0..self.splices.again.len() {
            let Some(id) = self.splices.again.pop_front() else { break };
            let Some(conn) = self.conns.named(id) else { continue };
            if let Some(splice) = self.splices.get_mut(conn.splice) {
                splice.again = false;
            }
            self.splice_progress(id.number);
        }
        (self.splices.begun - before) as usize
    }

    /// A read has ended.
    pub fn disk_completed(&mut self, completion: Completion) {
        self.splices.in_disk = self.splices.in_disk.saturating_sub(1);
        if completion.token & TASK_READ != 0 {
            return self.task_read_completed(completion);
        }
        if completion.token & REREAD != 0 {
            return self.reread_completed(completion);
        }
        let Completion { token, buf, result } = completion;
        let (number, block) = ((token >> 32) as u32, token as u32);
        let now = self.now;
        let Some(splice) = self.splices.slots.get_mut(number as usize).and_then(Option::as_mut)
        else {
            return;
        };
        splice.in_disk -= 1;
        let at = block.wrapping_sub(splice.first_block) as usize;
        let over = splice.outcome.is_some() || splice.failed.is_some();
        let Some(place) = splice.blocks.get_mut(at).filter(|_| !over) else {
            // It ended while this read was in flight.
            return self.splice_free_if_over(number);
        };
        if let Block::Reading(since) = place {
            self.splices.pace.note(*since, now);
        }
        let offset = splice.first_offset + (at * BLOCK_BYTES) as u64;
        let part = splice.part(offset);
        let read = match self.cache.is_on() {
            true => (splice.file.len() - offset).min(BLOCK_BYTES as u64) as usize,
            false => part.end,
        };
        let block_read = match result {
            Ok(len) if len < read => Block::Failed(DiskError::Truncated),
            Ok(_) => {
                let buf = self.cache.insert(&splice.file, offset, buf.freeze(0..read));
                Block::Ready(buf.slice(part))
            }
            Err(error) => Block::Failed(error),
        };
        let Some(place) = splice.blocks.get_mut(at) else { return };
        *place = block_read;
        let failed = match place {
            Block::Failed(error) => Some(*error),
            _ => None,
        };
        let conn = splice.conn;
        if block % PACE_EVERY == 0
            && let Some(conn) = self.conns.named(conn)
        {
            splice.ahead =
                self.splices.pace.blocks_ahead(&conn.tcb, self.limits.splice_buffers) as u32;
        }
        if let Some(error) = failed {
            self.note_disk_error(offset, error);
        }
        if at == 0 {
            self.splice_progress(conn.number);
        }
    }

    /// Counts a read that failed, and tells of it, unless others were told of just now: a disk that
    /// goes takes thousands of reads along.
    pub fn note_disk_error(&mut self, offset: u64, error: DiskError) {
        self.metrics.disk_errors += 1;
        self.splices.untold_errors += 1;
        let told = self.splices.told_at;
        if told.is_none_or(|at| self.now.nanos_since(at) >= TELL_EVERY_NANOS) {
            let reads = self.splices.untold_errors;
            tracing::warn!(reads, offset, %error, "disk reads failed; their connections are reset");
            self.splices.untold_errors = 0;
            self.splices.told_at = Some(self.now);
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

    /// Whether somebody waits for buffers.
    pub fn is_waited_for(&self) -> bool {
        !self.splices.parked.is_empty()
            || !self.splices.writers.is_empty()
            || self.splices.task_reads.are_waited_for()
    }

    /// Resumes what waited for buffers, oldest first, while there are some.
    pub fn resume_parked(&mut self) {
        for _ in 0..self.splices.parked.len() {
            if !self.splice_room() || self.slices.is_full() {
                break;
            }
            let Some(id) = self.splices.parked.pop_front() else { break };
            self.unpark(id);
        }
        for _ in 0..self.splices.writers.len() {
            // A buffer of either size does.
            let some = |class| self.arena.free(class) > 0;
            let room = some(SizeClass::Frame) || some(SizeClass::Block) || self.cache.relieve();
            if !room || self.slices.is_full() {
                break;
            }
            let Some(id) = self.splices.writers.pop_front() else { break };
            self.unpark(id);
        }
        if self.splice_room() {
            self.splices.task_reads.wake_waiting();
        }
    }

    /// Its transfer, or its task, tries again. Either may have taken the other's place on the list.
    fn unpark(&mut self, id: ConnId) {
        let Some(conn) = self.conns.named_mut(id) else { return };
        conn.facts.remove(Facts::PARKED);
        if conn.splice == NONE {
            self.wake_both(id.number);
        } else {
            self.splice_progress(id.number);
        }
    }

    /// Whether a read could begin now.
    fn splice_room(&mut self) -> bool {
        self.splices.in_disk < self.splices.depth
            && (self.arena.free(SizeClass::Block) > 0 || self.cache.relieve())
    }
}

impl Splice {
    /// What the transfer wants of the block that begins at `offset` of the file.
    fn part(&self, offset: u64) -> Range<usize> {
        let skip = self.next_append.saturating_sub(offset).min(BLOCK_BYTES as u64);
        let wanted = (self.end - offset).min(BLOCK_BYTES as u64);
        skip as usize..wanted as usize
    }

    /// It ends with what was appended.
    fn fail(&mut self, error: DiskError) {
        self.failed = Some((self.next_append, error));
        self.end = self.next_append;
        self.next_read = self.end;
        self.blocks.clear();
    }
}
