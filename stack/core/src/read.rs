//! Reads that a task waits for, and the sending of files by them: the baseline that splicing is
//! measured against.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use millstream_buf::{BLOCK_BYTES, IoBuf, SizeClass};
use millstream_disk::{Completion, DiskError, File, Read};

use crate::splice::SendFileError;
use crate::stack::Stack;
use crate::state::State;
use crate::stream::TcpStream;

/// In the token of a read that a task waits for; the rest is its number.
pub(crate) const TASK_READ: u64 = 1 << 63;

/// A read under way, or over.
struct TaskRead {
    waker: Option<Waker>,
    /// Bytes at the front of the buffer that were not asked for.
    skip: usize,
    len: usize,
    outcome: Option<Result<IoBuf, DiskError>>,
    /// Nobody waits any more; the number is freed when the read is over.
    abandoned: bool,
}

/// The reads of a shard's tasks. Bounded by the depth of the disk queue, and by the tasks.
#[derive(Default)]
pub(crate) struct TaskReads {
    slots: Vec<Option<TaskRead>>,
    free: Vec<u32>,
    /// Who waits for a buffer or a place in the disk queue.
    waiting: Vec<Waker>,
}

impl TaskReads {
    /// Wakes all that wait for a buffer or a place, so that they try again.
    pub fn wake_waiting(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    /// Whether there are such.
    pub fn are_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn release(&mut self, number: u32) {
        if let Some(slot) = self.slots.get_mut(number as usize) {
            *slot = None;
            self.free.push(number);
        }
    }
}

impl State {
    /// Asks for `len` bytes from `offset` on; `None` if there is no buffer or place now.
    fn start_task_read(&mut self, file: &File, offset: u64, len: usize) -> Option<u32> {
        if self.splices.in_disk >= self.splices.depth {
            return None;
        }
        let buf = self.arena.alloc(SizeClass::Block)?;
        let align = file.align_bytes() as u64;
        let start = offset / align * align;
        let skip = (offset - start) as usize;
        let reads = &mut self.splices.task_reads;
        let number = reads.free.pop().unwrap_or_else(|| {
            reads.slots.push(None);
            reads.slots.len() as u32 - 1
        });
        let token = TASK_READ | u64::from(number);
        let read = Read { file: file.clone(), offset: start, len: skip + len, buf, token };
        if self.disk.submit(read).is_err() {
            self.splices.task_reads.free.push(number);
            return None;
        }
        self.splices.in_disk += 1;
        let read = TaskRead { waker: None, skip, len, outcome: None, abandoned: false };
        if let Some(slot) = self.splices.task_reads.slots.get_mut(number as usize) {
            *slot = Some(read);
        }
        Some(number)
    }

    /// A task's read has ended.
    pub fn task_read_completed(&mut self, completion: Completion) {
        let number = completion.token as u32;
        let reads = &mut self.splices.task_reads;
        let Some(Some(read)) = reads.slots.get_mut(number as usize) else { return };
        if read.abandoned {
            return reads.release(number);
        }
        let (skip, end) = (read.skip, read.skip + read.len);
        read.outcome = Some(match completion.result {
            Ok(len) if len < end => Err(DiskError::Truncated),
            Ok(_) => Ok(completion.buf.freeze(skip..end)),
            Err(error) => Err(error),
        });
        if let Some(waker) = read.waker.take() {
            waker.wake();
        }
    }
}

/// A future for the bytes of a file; see [`Stack::read_file`].
struct ReadFile<'a> {
    stack: Stack,
    file: &'a File,
    offset: u64,
    len: usize,
    number: Option<u32>,
}

impl Future for ReadFile<'_> {
    type Output = Result<IoBuf, DiskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let stack = self.stack.clone();
        let mut state = stack.state();
        let number = match self.number {
            Some(number) => number,
            None => match state.start_task_read(self.file, self.offset, self.len) {
                Some(number) => {
                    self.number = Some(number);
                    number
                }
                None => {
                    let waiting = &mut state.splices.task_reads.waiting;
                    if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                        waiting.push(cx.waker().clone());
                    }
                    return Poll::Pending;
                }
            },
        };
        let reads = &mut state.splices.task_reads;
        let Some(Some(read)) = reads.slots.get_mut(number as usize) else {
            return Poll::Ready(Err(DiskError::DeviceGone));
        };
        match read.outcome.take() {
            Some(outcome) => {
                reads.release(number);
                self.number = None;
                Poll::Ready(outcome)
            }
            None => {
                read.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for ReadFile<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut state = self.stack.state();
        let reads = &mut state.splices.task_reads;
        match reads.slots.get_mut(number as usize) {
            Some(Some(read)) if read.outcome.is_none() => read.abandoned = true,
            _ => reads.release(number),
        }
    }
}

impl Stack {
    /// Reads bytes of `file` from `offset` on into a buffer, as many as `len`, as are in the file,
    /// and as fit a buffer of 16 KiB, in which the file's alignment may take some: at least one,
    /// unless the file ends there. Waits for a buffer if none is free.
    ///
    /// # Errors
    /// [`DiskError`]
    pub async fn read_file(
        &self,
        file: &File,
        offset: u64,
        len: usize,
    ) -> Result<IoBuf, DiskError> {
        let skip = (offset % file.align_bytes() as u64) as usize;
        let left = usize::try_from(file.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = len.min(left).min(BLOCK_BYTES - skip);
        ReadFile { stack: self.clone(), file, offset, len, number: None }.await
    }
}

/// Resets a connection whose transfer is given up midway: the peer cannot be told otherwise.
struct Unfinished<'a>(Option<&'a TcpStream>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(stream) = self.0 {
            stream.abort();
        }
    }
}

impl TcpStream {
    /// What [`Self::send_file`] does where the disk and the network are not spliced: the task reads
    /// into a buffer and writes from there, as over the kernel's `read` and `write`.
    pub(crate) async fn read_and_send(
        &self,
        file: &File,
        range: Range<u64>,
    ) -> Result<(), SendFileError> {
        if range.start > range.end || range.end > file.len() {
            return Err(SendFileError::Range { range, len: file.len() });
        }
        let mut unfinished = Unfinished(Some(self));
        let mut offset = range.start;
        while offset < range.end {
            let wanted = usize::try_from(range.end - offset).unwrap_or(usize::MAX);
            let read = self.stack.read_file(file, offset, wanted).await;
            let last = read.as_ref().is_ok_and(|buf| buf.len() == wanted);
            let unchanged = if last { file.check_unchanged() } else { Ok(()) };
            let buf = match unchanged.and(read) {
                Ok(buf) => buf,
                Err(source) => {
                    // What was good goes first.
                    self.flushed().await?;
                    self.stack.state().note_disk_error(offset, source);
                    return Err(SendFileError::Disk { offset, source });
                }
            };
            self.write_all(&buf).await?;
            offset += buf.len() as u64;
        }
        self.flushed().await?;
        unfinished.0 = None;
        Ok(())
    }
}
