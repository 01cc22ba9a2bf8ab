//! Reads in flight: one slot each, and what to do next when the kernel answers.
//!
//! Both kernel drivers keep their reads here; a driver only carries an [`Io`] to the kernel and its
//! answer back. The table owns the buffer and the file meanwhile, and makes no reference to the
//! buffer's bytes while an answer is due.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use millstream_buf::IoBufMut;

use crate::file::File;
use crate::queue::{Completion, Completions, DiskError, DiskStats, Read};

/// How often a read may be interrupted (`EINTR`, `EAGAIN`) before it fails.
const INTERRUPTS_MAX: u32 = 64;

/// One call for the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Io {
    /// Slot and generation; comes back with the answer.
    pub(crate) id: u64,
    pub(crate) fd: RawFd,
    pub(crate) offset: u64,
    pub(crate) start: *mut u8,
    pub(crate) len: u32,
}

/// What became of a read that was offered.
pub(crate) enum Admitted {
    /// It wants the kernel; this is its slot.
    Slot(u32),
    /// It is over already.
    Ready,
}

/// What an answer means for the driver.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The read is over, or the answer belonged to none.
    Settled,
    /// The read of this slot wants another call.
    Again(u32),
}

struct Job {
    file: File,
    fd: RawFd,
    offset: u64,
    /// Bytes to be brought: not beyond the end of the file.
    want: usize,
    /// Bytes that are there; the next call starts after them.
    done: usize,
    /// Bytes of the last call.
    asked: usize,
    /// Whether that call bypasses the page cache: the file may change its way in between.
    direct: bool,
    interrupts: u32,
    buf: IoBufMut,
    token: u64,
}

struct Slot {
    generation: u32,
    job: Option<Job>,
}

pub(crate) struct Table {
    slots: Box<[Slot]>,
    /// Last in, first out.
    free: Vec<u32>,
    ready: VecDeque<Completion>,
    stats: DiskStats,
    /// Set when the queue is dropped: nothing is tried again.
    closing: bool,
}

/// The bytes that a read brings if all goes well, or why it can never go well.
pub(crate) fn check(read: &Read) -> Result<usize, DiskError> {
    let align_bytes = read.file.align_bytes();
    if !read.offset.is_multiple_of(align_bytes as u64) {
        return Err(DiskError::Unaligned { offset: read.offset, align_bytes });
    }
    let left = read.file.len().saturating_sub(read.offset);
    let want = usize::try_from(left).unwrap_or(usize::MAX).min(read.len);
    let capacity = read.buf.len();
    let too_large = want.checked_next_multiple_of(align_bytes).is_none_or(|len| len > capacity);
    let crooked = read.file.is_direct()
        && !(read.buf.as_ptr() as usize).is_multiple_of(read.file.memory_align_bytes());
    if too_large || crooked || read.len > capacity {
        return Err(DiskError::BadBuffer { capacity, len: read.len, align_bytes });
    }
    Ok(want)
}

impl Table {
    pub(crate) fn new(depth: usize) -> Self {
        Self {
            slots: (0..depth).map(|_| Slot { generation: 0, job: None }).collect(),
            free: (0..depth as u32).rev().collect(),
            ready: VecDeque::with_capacity(depth),
            stats: DiskStats::default(),
            closing: false,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_slots() + self.ready.len()
    }

    /// Reads that wait for the kernel, or for being given to it.
    pub(crate) fn in_slots(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn stats(&self) -> DiskStats {
        DiskStats { in_flight: self.in_flight(), ..self.stats }
    }

    pub(crate) fn count_enter(&mut self) {
        self.stats.enters += 1;
    }

    #[allow(clippy::result_large_err)]
    pub(crate) fn admit(&mut self, mut read: Read) -> Result<Admitted, Read> {
        if self.in_flight() >= self.slots.len() {
            return Err(read);
        }
        let want = match check(&read) {
            Ok(want) => want,
            Err(error) => {
                self.finish(read.token, read.buf, Err(error));
                return Ok(Admitted::Ready);
            }
        };
        if want == 0 {
            self.finish(read.token, read.buf, Ok(0));
            return Ok(Admitted::Ready);
        }
        let Some(fd) = read.file.raw_fd() else {
            let copied = read.file.copy_to(read.offset, &mut read.buf[..want]);
            self.stats.copied_bytes += if copied { want as u64 } else { 0 };
            let error = match read.file.is_in_memory() {
                true => DiskError::Truncated,
                false => DiskError::OtherDevice,
            };
            self.finish(read.token, read.buf, copied.then_some(want).ok_or(error));
            return Ok(Admitted::Ready);
        };
        let Some(index) = self.free.pop() else { return Err(read) };
        let Read { file, offset, buf, token, .. } = read;
        let job = Job {
            file,
            fd,
            offset,
            want,
            done: 0,
            asked: 0,
            direct: false,
            interrupts: 0,
            buf,
            token,
        };
        self.slots[index as usize].job = Some(job);
        Ok(Admitted::Slot(index))
    }

    /// The next call for a slot, under a fresh generation.
    pub(crate) fn next_io(&mut self, index: u32) -> Option<Io> {
        let slot = self.slots.get_mut(index as usize)?;
        let job = slot.job.as_mut()?;
        let left = job.want - job.done;
        // The buffer has room for whole sectors: `check` saw to it.
        let align = job.file.align_bytes();
        job.direct = job.file.is_direct();
        job.asked = if job.direct { left.next_multiple_of(align) } else { left };
        slot.generation = slot.generation.wrapping_add(1);
        Some(Io {
            id: u64::from(slot.generation) << 32 | u64::from(index),
            fd: job.fd,
            offset: job.file.base() + job.offset + job.done as u64,
            start: job.buf[job.done..].as_mut_ptr(),
            len: job.asked.try_into().unwrap_or(u32::MAX),
        })
    }

    /// Takes the kernel's answer to a call: bytes read, or a negative `errno`.
    pub(crate) fn answer(&mut self, id: u64, result: i32) -> Outcome {
        let (index, generation) = (id as u32, (id >> 32) as u32);
        let Some((slot, job)) = self
            .slots
            .get_mut(index as usize)
            .filter(|slot| slot.generation == generation)
            .and_then(|slot| slot.job.take().map(|job| (slot, job)))
        else {
            self.stats.unknown += 1;
            return Outcome::Settled;
        };
        // A second answer to the same call would be unknown.
        slot.generation = slot.generation.wrapping_add(1);
        let mut job = job;
        let verdict = match job.judge(result) {
            Verdict::Again if self.closing => Err(DiskError::Io { errno: libc::ECANCELED }),
            Verdict::Again => {
                self.stats.continued += 1;
                slot.job = Some(job);
                return Outcome::Again(index);
            }
            Verdict::Buffered => match job.file.give_up_direct() {
                Ok(changed) => {
                    self.stats.direct_refused += u64::from(changed);
                    slot.job = Some(job);
                    return Outcome::Again(index);
                }
                Err(errno) => Err(DiskError::Io { errno }),
            },
            Verdict::Over(verdict) => verdict,
        };
        self.free.push(index);
        self.finish(job.token, job.buf, verdict);
        Outcome::Settled
    }

    /// Ends a read that the kernel has never seen, or that it has answered.
    pub(crate) fn fail(&mut self, index: u32, error: DiskError) {
        let job = self.slots.get_mut(index as usize).and_then(|slot| slot.job.take());
        if let Some(job) = job {
            self.free.push(index);
            self.finish(job.token, job.buf, Err(error));
        }
    }

    pub(crate) fn give_out(&mut self, out: &mut Completions) {
        while !out.is_full() {
            let Some(completion) = self.ready.pop_front() else { break };
            out.push(completion);
        }
    }

    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    /// Lets go of files and buffers without giving them back, because the kernel may still write.
    pub(crate) fn leak(&mut self) -> usize {
        let jobs = self.slots.iter_mut().filter_map(|slot| slot.job.take());
        jobs.map(std::mem::forget).count()
    }

    fn finish(&mut self, token: u64, buf: IoBufMut, result: Result<usize, DiskError>) {
        match result {
            Ok(len) => {
                self.stats.reads += 1;
                self.stats.bytes += len as u64;
            }
            Err(_) => self.stats.errors += 1,
        }
        self.ready.push_back(Completion { token, buf, result });
    }
}

enum Verdict {
    Over(Result<usize, DiskError>),
    Again,
    /// Direct reads are refused: again through the page cache.
    Buffered,
}

impl Job {
    fn judge(&mut self, result: i32) -> Verdict {
        let brought = match result {
            0.. => (result as usize).min(self.asked),
            _ => match result.saturating_neg() {
                libc::EINTR | libc::EAGAIN if self.interrupts < INTERRUPTS_MAX => {
                    self.interrupts += 1;
                    return Verdict::Again;
                }
                libc::EINVAL if self.direct => return Verdict::Buffered,
                errno => return Verdict::Over(Err(DiskError::from_errno(errno))),
            },
        };
        let there = self.done + brought;
        if there >= self.want {
            return Verdict::Over(Ok(self.want));
        }
        // A direct read must start at a sector again, so what came of a part of one is read twice.
        let step = if self.direct { self.file.align_bytes() } else { 1 };
        let next = there - there % step;
        if next <= self.done {
            return Verdict::Over(Err(DiskError::Truncated));
        }
        self.done = next;
        Verdict::Again
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_buf::{Arena, ArenaConfig, HugePages, SizeClass};
    use std::os::fd::OwnedFd;

    fn arena() -> Arena {
        Arena::new(&ArenaConfig { frames: 4, blocks: 4, huge_pages: HugePages::Never }).unwrap()
    }

    fn file(len: u64, direct: bool) -> File {
        let fd: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        File::from_fd(fd, len, direct)
    }

    fn read(arena: &Arena, file: &File, len: usize) -> Read {
        let buf = arena.alloc(SizeClass::Block).unwrap();
        Read { file: file.clone(), offset: 0, len, buf, token: 7 }
    }

    fn start(table: &mut Table, read: Read) -> (u32, Io) {
        let Ok(Admitted::Slot(index)) = table.admit(read) else { panic!("wants the kernel") };
        (index, table.next_io(index).unwrap())
    }

    fn results(table: &mut Table) -> Vec<Result<usize, DiskError>> {
        let mut out = Completions::new();
        table.give_out(&mut out);
        out.into_iter().map(|completion| completion.result).collect()
    }

    #[test]
    fn a_buffered_short_read_goes_on_at_the_byte() {
        let (arena, mut table) = (arena(), Table::new(2));
        let (index, first) = start(&mut table, read(&arena, &file(5000, false), 16384));
        assert_eq!((first.offset, first.len), (0, 5000), "not beyond the end");
        assert_eq!(table.answer(first.id, 1001), Outcome::Again(index));
        let second = table.next_io(index).unwrap();
        assert_eq!((second.offset, second.len), (1001, 3999));
        assert_eq!(second.start as usize - first.start as usize, 1001);
        assert_eq!(table.answer(second.id, 3999), Outcome::Settled);
        assert_eq!(results(&mut table), [Ok(5000)]);
        assert_eq!(table.stats().continued, 1);
    }

    #[test]
    fn a_direct_short_read_goes_on_at_the_sector() {
        let (arena, mut table) = (arena(), Table::new(2));
        let (index, first) = start(&mut table, read(&arena, &file(5000, true), 16384));
        assert_eq!(first.len, 5120, "whole sectors");
        assert_eq!(table.answer(first.id, 1001), Outcome::Again(index));
        let second = table.next_io(index).unwrap();
        assert_eq!((second.offset, second.len), (512, 4608));
        assert_eq!(second.start as usize - first.start as usize, 512);
        // More than was wanted lies in the last sector; it is not counted.
        assert_eq!(table.answer(second.id, 4608), Outcome::Settled);
        assert_eq!(results(&mut table), [Ok(5000)]);
    }

    #[test]
    fn no_progress_means_the_file_was_cut_short() {
        let arena = arena();
        for (direct, answer) in [(false, 0), (true, 0), (true, 511)] {
            let mut table = Table::new(1);
            let (_, io) = start(&mut table, read(&arena, &file(5000, direct), 4096));
            assert_eq!(table.answer(io.id, answer), Outcome::Settled);
            assert_eq!(results(&mut table), [Err(DiskError::Truncated)]);
        }
    }

    #[test]
    fn an_answer_longer_than_the_question_is_not_believed() {
        let (arena, mut table) = (arena(), Table::new(1));
        let (_, io) = start(&mut table, read(&arena, &file(100_000, false), 4096));
        table.answer(io.id, i32::MAX);
        assert_eq!(results(&mut table), [Ok(4096)]);
    }

    #[test]
    fn stale_and_invented_answers_are_counted_and_ignored() {
        let (arena, mut table) = (arena(), Table::new(1));
        let (index, old) = start(&mut table, read(&arena, &file(5000, false), 4096));
        assert_eq!(table.answer(old.id, 100), Outcome::Again(index));
        assert_eq!(table.answer(old.id, 100), Outcome::Settled, "the same answer twice");
        let new = table.next_io(index).unwrap();
        for id in [old.id, u64::MAX, new.id + 1, new.id ^ (1 << 40)] {
            assert_eq!(table.answer(id, 4096), Outcome::Settled);
        }
        assert_eq!(table.stats().unknown, 5);
        assert_eq!(table.in_flight(), 1, "the read still waits for its own");
        table.answer(new.id, 3996);
        assert_eq!(results(&mut table), [Ok(4096)]);
    }

    #[test]
    fn interrupts_are_tried_again_but_not_for_ever() {
        let (arena, mut table) = (arena(), Table::new(1));
        let (index, mut io) = start(&mut table, read(&arena, &file(5000, false), 4096));
        let mut tries = 0;
        while table.answer(io.id, -libc::EAGAIN) == Outcome::Again(index) {
            io = table.next_io(index).unwrap();
            tries += 1;
        }
        assert_eq!(tries, INTERRUPTS_MAX);
        assert_eq!(results(&mut table), [Err(DiskError::Io { errno: libc::EAGAIN })]);
    }

    #[test]
    fn every_read_in_flight_survives_the_loss_of_direct_reads() {
        let (arena, mut table) = (arena(), Table::new(2));
        let file = file(5000, true);
        let (a, io_a) = start(&mut table, read(&arena, &file, 16384));
        let (b, io_b) = start(&mut table, read(&arena, &file, 16384));
        assert_eq!(table.answer(io_a.id, -libc::EINVAL), Outcome::Again(a));
        assert!(!file.is_direct());
        assert_eq!(table.answer(io_b.id, -libc::EINVAL), Outcome::Again(b));
        assert_eq!(table.stats().direct_refused, 1, "one file");
        let again = table.next_io(a).unwrap();
        assert_eq!(again.len, 5000);
        assert_eq!(table.answer(again.id, -libc::EINVAL), Outcome::Settled, "only once");
        assert_eq!(results(&mut table), [Err(DiskError::Io { errno: libc::EINVAL })]);
    }

    #[test]
    fn devices_that_vanish_have_their_own_error() {
        let (arena, mut table) = (arena(), Table::new(1));
        for (errno, error) in
            [(libc::EIO, DiskError::Io { errno: libc::EIO }), (libc::ENODEV, DiskError::DeviceGone)]
        {
            let (_, io) = start(&mut table, read(&arena, &file(5000, false), 4096));
            table.answer(io.id, -errno);
            assert_eq!(results(&mut table), [Err(error)]);
        }
        assert_eq!(table.stats().errors, 2);
    }

    #[test]
    fn a_full_table_gives_the_read_back_until_completions_are_taken() {
        let (arena, mut table) = (arena(), Table::new(1));
        let file = file(5000, false);
        let (_, io) = start(&mut table, read(&arena, &file, 4096));
        assert_eq!(table.admit(read(&arena, &file, 4096)).err().unwrap().token, 7);
        table.answer(io.id, 4096);
        assert!(table.admit(read(&arena, &file, 4096)).is_err(), "its completion is not taken");
        results(&mut table);
        assert!(table.admit(read(&arena, &file, 4096)).is_ok());
    }

    #[test]
    fn impossible_reads_fail_by_completion() {
        let (arena, mut table) = (arena(), Table::new(4));
        let file = file(1 << 40, true);
        let mut unaligned = read(&arena, &file, 100);
        unaligned.offset = 100;
        let too_long = read(&arena, &file, 16385);
        let mut at_the_end = read(&arena, &file, 100);
        at_the_end.offset = 1 << 40;
        let mut far_beyond = read(&arena, &file, 100);
        far_beyond.offset = u64::MAX - 511;
        for read in [unaligned, too_long, at_the_end, far_beyond] {
            assert!(matches!(table.admit(read), Ok(Admitted::Ready)));
        }
        let results = results(&mut table);
        assert_eq!(results[0], Err(DiskError::Unaligned { offset: 100, align_bytes: 512 }));
        assert!(matches!(results[1], Err(DiskError::BadBuffer { len: 16385, .. })));
        assert_eq!(results[2..], [Ok(0), Ok(0)]);
    }

    #[test]
    fn leaked_buffers_never_come_back() {
        let arena = arena();
        let mut table = Table::new(2);
        start(&mut table, read(&arena, &file(5000, false), 4096));
        assert_eq!(table.leak(), 1);
        drop(table);
        assert_eq!(arena.free(SizeClass::Block), 3);
    }
}
