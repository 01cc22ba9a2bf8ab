//! Reads by worker threads that call `pread`, for kernels that refuse io_uring.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use crate::queue::{Completions, DiskError, DiskQueue, DiskSetupError, DiskStats, Read};
use crate::table::{Admitted, Io, Outcome, Table};

/// Threads of one queue: so that a second read is under way while the first one's bytes come.
const WORKERS: usize = 2;

/// A call on its way to a worker.
struct Task(Io);

// SAFETY: a worker uses the pointer only to let the kernel write the bytes it stands for. The
// buffer and the descriptor stay in the queue's table, untouched, until the worker has answered.
unsafe impl Send for Task {}

struct Answer {
    id: u64,
    result: i32,
}

pub(crate) struct PreadQueue {
    table: Table,
    /// Slots that wait for the next kick.
    queued: VecDeque<u32>,
    /// `None` once the queue is being dropped.
    tasks: Option<Sender<Task>>,
    answers: Receiver<Answer>,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl PreadQueue {
    pub(crate) fn open(depth: usize) -> Result<Self, DiskSetupError> {
        // Each slot has one call at a time, so neither channel is ever full.
        let (tasks, tasks_out) = bounded(depth);
        let (answers_in, answers) = bounded(depth);
        let mut queue = Self {
            table: Table::new(depth),
            queued: VecDeque::with_capacity(depth),
            tasks: Some(tasks),
            answers,
            stop: Arc::new(AtomicBool::new(false)),
            workers: Vec::new(),
        };
        for _ in 0..WORKERS.min(depth) {
            let (tasks, answers) = (tasks_out.clone(), answers_in.clone());
            let stop = Arc::clone(&queue.stop);
            let worker = std::thread::Builder::new()
                .name("millstream-disk".into())
                .spawn(move || work(&tasks, &answers, &stop))
                .map_err(|source| DiskSetupError::Thread { source })?;
            queue.workers.push(worker);
        }
        Ok(queue)
    }

    fn reap(&mut self) {
        while let Ok(Answer { id, result }) = self.answers.try_recv() {
            self.table.count_enter();
            if let Outcome::Again(index) = self.table.answer(id, result) {
                self.queued.push_back(index);
            }
        }
    }
}

/// A worker's life.
fn work(tasks: &Receiver<Task>, answers: &Sender<Answer>, stop: &AtomicBool) {
    while let Ok(Task(io)) = tasks.recv() {
        let result = if stop.load(Ordering::Relaxed) { -libc::ECANCELED } else { pread(&io) };
        if answers.send(Answer { id: io.id, result }).is_err() {
            break;
        }
    }
}

/// Bytes read, or a negative `errno`.
fn pread(io: &Io) -> i32 {
    let Ok(offset) = libc::off_t::try_from(io.offset) else { return -libc::EINVAL };
    // SAFETY: `len` bytes from `start` lie in a buffer that the queue keeps, untouched, until this
    // call is answered; so does it keep the descriptor.
    let count = unsafe { libc::pread(io.fd, io.start.cast(), io.len as usize, offset) };
    if count < 0 {
        -std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
    } else {
        i32::try_from(count).unwrap_or(i32::MAX)
    }
}

impl DiskQueue for PreadQueue {
    fn submit(&mut self, read: Read) -> Result<(), Read> {
        if let Admitted::Slot(index) = self.table.admit(read)? {
            self.queued.push_back(index);
        }
        Ok(())
    }

    fn poll(&mut self, out: &mut Completions) {
        self.reap();
        self.kick();
        self.table.give_out(out);
    }

    fn in_flight(&self) -> usize {
        self.table.in_flight()
    }

    fn kick(&mut self) {
        while let (Some(tasks), Some(&index)) = (&self.tasks, self.queued.front()) {
            if let Some(io) = self.table.next_io(index) {
                match tasks.try_send(Task(io)) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => break,
                    Err(TrySendError::Disconnected(_)) => {
                        self.table.fail(index, DiskError::DeviceGone);
                    }
                }
            }
            self.queued.pop_front();
        }
    }

    fn name(&self) -> &'static str {
        "pread"
    }

    fn stats(&self) -> DiskStats {
        self.table.stats()
    }
}

impl Drop for PreadQueue {
    fn drop(&mut self) {
        self.table.close();
        self.stop.store(true, Ordering::Relaxed);
        self.tasks = None;
        // When the workers are gone nobody writes into the buffers, which the table then frees.
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!("a disk thread panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::File;
    use millstream_buf::{Arena, ArenaConfig, HugePages, SizeClass};

    #[test]
    fn no_worker_is_left_when_drop_frees_the_buffers() {
        let arena = Arena::new(&ArenaConfig { frames: 0, blocks: 8, huge_pages: HugePages::Never });
        let arena = arena.unwrap();
        let file = File::open(&std::env::current_exe().unwrap()).unwrap();
        for _ in 0..100 {
            let mut queue = PreadQueue::open(8).unwrap();
            while let Some(buf) = arena.alloc(SizeClass::Block) {
                let read = Read { file: file.clone(), offset: 0, len: buf.len(), buf, token: 0 };
                assert!(queue.submit(read).is_ok());
            }
            queue.kick();
            // Each worker holds a handle as long as it runs.
            let stop = Arc::clone(&queue.stop);
            drop(queue);
            assert_eq!(Arc::strong_count(&stop), 1);
            assert_eq!(arena.free(SizeClass::Block), 8);
        }
    }

    #[test]
    fn a_queue_without_workers_says_that_the_disk_is_gone() {
        let arena = Arena::new(&ArenaConfig { frames: 0, blocks: 1, huge_pages: HugePages::Never });
        let arena = arena.unwrap();
        let mut queue = PreadQueue::open(1).unwrap();
        let (tasks, nobody) = bounded(1);
        drop(nobody);
        queue.tasks = Some(tasks);
        let file = File::open(&std::env::current_exe().unwrap()).unwrap();
        let buf = arena.alloc(SizeClass::Block).unwrap();
        assert!(queue.submit(Read { file, offset: 0, len: 512, buf, token: 0 }).is_ok());
        let mut out = Completions::new();
        queue.poll(&mut out);
        assert_eq!(out[0].result, Err(DiskError::DeviceGone));
    }
}
