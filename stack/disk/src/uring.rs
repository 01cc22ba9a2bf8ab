//! Reads by io_uring.
//!
//! The poll loop looks at the completion ring in shared memory and enters the kernel only to hand
//! over reads or when the kernel says that completions wait for it (`IORING_SQ_TASKRUN`). Plain
//! `DEFER_TASKRUN` would need an enter to see any completion.

use std::collections::VecDeque;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode};
use millstream_buf::Arena;

use crate::queue::{Completions, DiskError, DiskQueue, DiskSetupError, DiskStats, Read};
use crate::table::{Admitted, Io, Outcome, Table};

/// The kernel takes registered buffers of at most 1 GiB each.
const REGION_BYTES_MAX: usize = 1 << 30;

/// How long dropping a queue waits, in rounds of a second, before it leaks what is in flight.
const DRAIN_ROUNDS: u32 = 10;

pub(crate) struct UringQueue {
    ring: IoUring,
    table: Table,
    /// Slots whose calls lie in the submission ring and have not been taken by the kernel, in order.
    queued: VecDeque<u32>,
    /// The arena's mapping as registered; its length is 0 if it is not.
    region_start: usize,
    region_bytes: usize,
    /// Entering fails for good.
    broken: bool,
    drain_rounds: u32,
    /// The arena stays mapped as long as the kernel has it registered.
    _arena: Arena,
}

impl UringQueue {
    pub(crate) fn open(arena: &Arena, depth: usize) -> Result<Self, DiskSetupError> {
        let ring = set_up(depth as u32).map_err(|source| DiskSetupError::Refused { source })?;
        let mut queue = Self {
            ring,
            table: Table::new(depth),
            queued: VecDeque::with_capacity(depth),
            region_start: 0,
            region_bytes: 0,
            broken: false,
            drain_rounds: DRAIN_ROUNDS,
            _arena: arena.clone(),
        };
        queue.register(arena);
        Ok(queue)
    }

    fn register(&mut self, arena: &Arena) {
        let (start, bytes) = arena.region();
        let regions: Vec<libc::iovec> = (0..bytes)
            .step_by(REGION_BYTES_MAX)
            .map(|at| libc::iovec {
                iov_base: start.as_ptr().wrapping_add(at).cast(),
                iov_len: REGION_BYTES_MAX.min(bytes - at),
            })
            .collect();
        // SAFETY: the regions are the arena's mapping, which `_arena` keeps until the ring is gone.
        match unsafe { self.ring.submitter().register_buffers(&regions) } {
            Ok(()) => {
                self.region_start = start.as_ptr() as usize;
                self.region_bytes = bytes;
            }
            Err(error) => tracing::info!(
                "the kernel does not pin the buffers for io_uring ({error}): reads go on without; raise RLIMIT_MEMLOCK (`ulimit -l`) for fixed buffers"
            ),
        }
    }

    /// The registered region that holds all of a call's memory.
    fn region(&self, io: &Io) -> Option<u16> {
        let first = (io.start as usize).checked_sub(self.region_start)?;
        let last = first + (io.len as usize).checked_sub(1)?;
        let index = first / REGION_BYTES_MAX;
        let inside = last < self.region_bytes && last / REGION_BYTES_MAX == index;
        inside.then(|| u16::try_from(index).ok()).flatten()
    }

    /// Puts the next call of a slot into the submission ring.
    fn push(&mut self, index: u32) {
        let Some(io) = self.table.next_io(index) else { return };
        let entry = match self.region(&io) {
            Some(region) => opcode::ReadFixed::new(Fd(io.fd), io.start, io.len, region)
                .offset(io.offset)
                .build(),
            None => opcode::Read::new(Fd(io.fd), io.start, io.len).offset(io.offset).build(),
        }
        .user_data(io.id);
        // SAFETY: the table keeps the buffer and the file until the answer to this call, or leaks
        // them; it makes no reference to the bytes meanwhile.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            self.queued.push_back(index);
        } else {
            // Cannot be: the ring has an entry for each slot, and a slot has one call at a time.
            self.table.fail(index, DiskError::Io { errno: libc::EBUSY });
        }
    }

    /// Whether the kernel has completions that it shows only after an enter.
    fn kernel_asks(&mut self) -> bool {
        let ring = self.ring.submission();
        ring.taskrun() || ring.cq_overflow()
    }

    fn enter(&mut self) {
        if self.broken {
            return;
        }
        self.table.count_enter();
        let taken = self.ring.submit();
        self.note(taken);
    }

    /// Notes what an enter did.
    fn note(&mut self, taken: std::io::Result<usize>) {
        match taken {
            Ok(count) => {
                self.queued.drain(..count.min(self.queued.len()));
            }
            Err(error) => match error.raw_os_error() {
                // Nothing was taken, or a wait ended: the next round tries again.
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME | libc::ENOMEM) => {}
                _ => self.give_up(&error),
            },
        }
    }

    /// The ring does not work any more. What the kernel has not taken fails now and, since the
    /// ring is never entered again, is never taken; the rest is the kernel's until it answers.
    fn give_up(&mut self, error: &std::io::Error) {
        tracing::error!("io_uring fails ({error}): this shard reads no more from disk");
        self.broken = true;
        while let Some(index) = self.queued.pop_front() {
            self.table.fail(index, DiskError::DeviceGone);
        }
    }

    /// Takes the answers that lie in the completion ring. Calls that follow from them go into the
    /// submission ring.
    fn reap(&mut self) {
        loop {
            // One at a time, since handling one may need the ring.
            let Some(entry) = self.ring.completion().next() else { break };
            if let Outcome::Again(index) = self.table.answer(entry.user_data(), entry.result()) {
                if self.broken {
                    self.table.fail(index, DiskError::DeviceGone);
                } else {
                    self.push(index);
                }
            }
        }
    }

    /// Cancels what can be cancelled and waits for the rest; whether all came home.
    fn drain(&mut self) -> bool {
        self.table.close();
        for _ in 0..self.drain_rounds {
            self.reap();
            let waiting = self.table.in_slots();
            if waiting == 0 {
                return true;
            }
            if self.broken {
                return false;
            }
            if self.queued.is_empty() {
                // What the block layer has cannot be cancelled; then this times out at once.
                let _ = self
                    .ring
                    .submitter()
                    .register_sync_cancel(Some(Timespec::new()), CancelBuilder::any());
                self.reap();
                if self.table.in_slots() == 0 {
                    return true;
                }
            }
            let second = Timespec::new().sec(1);
            let submitter = self.ring.submitter();
            let taken = if self.ring.params().is_feature_ext_arg() {
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&second))
            } else {
                submitter.submit_and_wait(1)
            };
            self.note(taken);
        }
        self.reap();
        self.table.in_slots() == 0
    }
}

impl DiskQueue for UringQueue {
    fn submit(&mut self, read: Read) -> Result<(), Read> {
        if let Admitted::Slot(index) = self.table.admit(read)? {
            if self.broken {
                self.table.fail(index, DiskError::DeviceGone);
            } else {
                self.push(index);
            }
        }
        Ok(())
    }

    fn poll(&mut self, out: &mut Completions) {
        if !self.queued.is_empty() || self.kernel_asks() {
            self.enter();
        }
        self.reap();
        self.table.give_out(out);
    }

    fn in_flight(&self) -> usize {
        self.table.in_flight()
    }

    fn kick(&mut self) {
        if !self.queued.is_empty() {
            self.enter();
        }
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn stats(&self) -> DiskStats {
        self.table.stats()
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        if !self.drain() {
            let count = self.table.leak();
            tracing::warn!(count, "reads do not come back: their buffers are leaked, not reused");
        }
    }
}

/// A ring with the best flags that the kernel knows.
fn set_up(entries: u32) -> std::io::Result<IoUring> {
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(entries)
        .or_else(|error| match error.raw_os_error() {
            // SINGLE_ISSUER came with Linux 6.0, the two others with 5.19.
            Some(libc::EINVAL) => {
                IoUring::builder().setup_coop_taskrun().setup_taskrun_flag().build(entries)
            }
            _ => Err(error),
        })
        .or_else(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => IoUring::new(entries),
            _ => Err(error),
        })?;
    // IORING_OP_READ came with 5.6, as did the probe itself.
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let codes = [opcode::Read::CODE, opcode::ReadFixed::CODE];
    if codes.iter().all(|&code| probe.is_supported(code)) {
        Ok(ring)
    } else {
        Err(std::io::Error::from_raw_os_error(libc::ENOSYS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::File;
    use millstream_buf::{ArenaConfig, HugePages, SizeClass};
    use std::io::{Read as _, Write as _};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    fn arena() -> Arena {
        Arena::new(&ArenaConfig { frames: 4, blocks: 4, huge_pages: HugePages::Never }).unwrap()
    }

    /// A queue, unless this kernel refuses io_uring, which is said and checked to be a refusal; with
    /// MILLSTREAM_REQUIRE_IO_URING set it is a failure.
    fn open(arena: &Arena) -> Option<UringQueue> {
        match UringQueue::open(arena, 4) {
            Ok(queue) => Some(queue),
            Err(DiskSetupError::Refused { source }) => {
                let errno = source.raw_os_error();
                assert!(
                    matches!(errno, Some(libc::ENOSYS | libc::EPERM | libc::EACCES)),
                    "{source}"
                );
                assert!(std::env::var_os("MILLSTREAM_REQUIRE_IO_URING").is_none(), "{source}");
                eprintln!("not run: the kernel refuses io_uring: {source}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A read that does not end: an empty pipe in place of a file.
    fn endless(
        queue: &mut UringQueue,
        arena: &Arena,
    ) -> (std::io::PipeReader, std::io::PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        let file = File::from_fd(reader.try_clone().unwrap().into(), 16384, false);
        let buf = arena.alloc(SizeClass::Block).unwrap();
        assert!(queue.submit(Read { file, offset: 0, len: 512, buf, token: 1 }).is_ok());
        queue.kick();
        let mut out = Completions::new();
        queue.poll(&mut out);
        assert!(out.is_empty() && queue.queued.is_empty() && queue.in_flight() == 1);
        (reader, writer)
    }

    #[test]
    fn drop_cancels_what_is_in_flight_before_it_frees_the_buffer() {
        let arena = arena();
        let Some(mut queue) = open(&arena) else { return };
        let (mut reader, mut writer) = endless(&mut queue, &arena);
        assert_eq!(arena.free(SizeClass::Block), 3);
        drop(queue);
        assert_eq!(arena.free(SizeClass::Block), 4, "cancelled, so the buffer is free");
        // The free list is last in, first out: this is the buffer of the read.
        let mut buf = arena.alloc(SizeClass::Block).unwrap();
        buf.fill(0xee);
        writer.write_all(b"late").unwrap();
        let mut late = [0; 4];
        reader.read_exact(&mut late).unwrap();
        assert_eq!(&late, b"late", "nobody else has read it");
        assert!(buf.iter().all(|&byte| byte == 0xee));
    }

    #[test]
    fn what_does_not_come_back_is_leaked() {
        let arena = arena();
        let Some(mut queue) = open(&arena) else { return };
        let _pipe = endless(&mut queue, &arena);
        queue.drain_rounds = 0;
        drop(queue);
        assert_eq!(arena.free(SizeClass::Block), 3, "never reused");
    }

    #[test]
    fn a_broken_ring_fails_new_reads_and_keeps_the_buffers_of_old_ones() {
        let arena = arena();
        let Some(mut queue) = open(&arena) else { return };
        let _pipe = endless(&mut queue, &arena);
        let read = |token| Read {
            file: File::open("/proc/self/exe".as_ref()).unwrap(),
            offset: 0,
            len: 512,
            buf: arena.alloc(SizeClass::Block).unwrap(),
            token,
        };
        assert!(queue.submit(read(2)).is_ok());
        queue.give_up(&std::io::Error::from_raw_os_error(libc::EBADF));
        assert!(queue.submit(read(3)).is_ok());
        let mut out = Completions::new();
        queue.poll(&mut out);
        let gone: Vec<_> = out.drain(..).map(|done| (done.token, done.result)).collect();
        assert_eq!(gone, [(2, Err(DiskError::DeviceGone)), (3, Err(DiskError::DeviceGone))]);
        assert_eq!((queue.in_flight(), arena.free(SizeClass::Block)), (1, 3));
        drop(queue);
        assert_eq!(arena.free(SizeClass::Block), 3, "the kernel may still write the first one");
    }

    #[test]
    fn idle_polls_make_no_system_call() {
        let arena = arena();
        let Some(mut queue) = open(&arena) else { return };
        let mut out = Completions::new();
        for _ in 0..1000 {
            queue.poll(&mut out);
            queue.kick();
        }
        assert_eq!(queue.stats().enters, 0);
        let _pipe = endless(&mut queue, &arena);
        let enters = queue.stats().enters;
        assert!(enters >= 1);
        for _ in 0..1000 {
            queue.poll(&mut out);
            queue.kick();
        }
        assert_eq!(queue.stats().enters, enters, "one read in flight, nothing to hand over");
    }

    /// The kernel may hold completions back until the next system call; a loop that makes none must
    /// then enter by itself.
    #[test]
    fn one_poll_brings_what_the_kernel_holds_back() {
        let arena = arena();
        let Some(mut queue) = open(&arena) else { return };
        let mut held_back = 0;
        for _ in 0..50 {
            let (_reader, mut writer) = endless(&mut queue, &arena);
            let go = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !go.load(Ordering::Acquire) {
                        std::hint::spin_loop();
                    }
                    writer.write_all(&[1; 512]).unwrap();
                });
                go.store(true, Ordering::Release);
                // No system call from here on but those of the queue.
                let deadline = Instant::now() + Duration::from_secs(60);
                while !queue.kernel_asks() && queue.ring.completion().is_empty() {
                    assert!(Instant::now() < deadline);
                    std::hint::spin_loop();
                }
                held_back += u32::from(queue.kernel_asks());
                let mut out = Completions::new();
                queue.poll(&mut out);
                assert_eq!(out.len(), 1);
                assert_eq!(out[0].result, Ok(512));
            });
        }
        eprintln!("{held_back} of 50 completions were held back");
    }

    #[test]
    fn buffers_of_the_arena_are_fixed_once_it_is_registered() {
        let arena = arena();
        let Some(queue) = open(&arena) else { return };
        let mut buf = arena.alloc(SizeClass::Block).unwrap();
        let io = Io { id: 0, fd: 0, offset: 0, start: buf.as_mut_ptr(), len: 16384 };
        if queue.region_bytes == 0 {
            eprintln!("not run: the kernel does not pin this arena (RLIMIT_MEMLOCK)");
        } else {
            assert_eq!(queue.region(&io), Some(0));
        }
    }

    #[test]
    fn a_call_is_fixed_only_if_one_region_holds_it() {
        let arena = arena();
        let Some(mut queue) = open(&arena) else { return };
        (queue.region_start, queue.region_bytes) = (0x1000, REGION_BYTES_MAX + 0x8000);
        let io = |start: usize, len| Io {
            id: 0,
            fd: 0,
            offset: 0,
            start: std::ptr::without_provenance_mut(start),
            len,
        };
        assert_eq!(queue.region(&io(0x1000, 512)), Some(0));
        assert_eq!(queue.region(&io(0x0fff, 512)), None);
        assert_eq!(queue.region(&io(0x1000 + REGION_BYTES_MAX, 512)), Some(1));
        assert_eq!(queue.region(&io(0x1000 + REGION_BYTES_MAX - 1, 512)), None, "across two");
        assert_eq!(queue.region(&io(0x1000 + REGION_BYTES_MAX + 0x7e00, 512)), Some(1));
        assert_eq!(queue.region(&io(0x1000 + REGION_BYTES_MAX + 0x7e01, 512)), None);
        queue.region_bytes = 0;
        assert_eq!(queue.region(&io(0x1000, 512)), None, "not registered");
    }
}
