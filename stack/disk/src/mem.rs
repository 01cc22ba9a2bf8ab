//! Disks in memory, for benchmarks and tests.

use std::collections::VecDeque;

use crate::queue::{
    Completion, Completions, DEPTH_MAX, DiskError, DiskQueue, DiskSetupError, DiskStats, Read,
};
use crate::table::check;

/// A disk that is infinitely fast and makes no system call. Reads complete at the next
/// [`poll`](DiskQueue::poll), in order.
#[derive(Debug)]
pub struct MemDisk {
    ready: VecDeque<Completion>,
    depth: usize,
    copies: bool,
    stats: DiskStats,
}

impl MemDisk {
    /// A disk that copies the bytes of files in memory, and counts them as copied.
    ///
    /// # Errors
    /// [`DiskSetupError::Depth`].
    pub fn copying(depth: usize) -> Result<Self, DiskSetupError> {
        Self::new(depth, true)
    }

    /// The null disk: reads of any file succeed at once and bring nothing. The buffer comes back
    /// holding whatever it held, so that what a copy costs can be told from all the rest.
    ///
    /// # Errors
    /// [`DiskSetupError::Depth`].
    pub fn null(depth: usize) -> Result<Self, DiskSetupError> {
        Self::new(depth, false)
    }

    fn new(depth: usize, copies: bool) -> Result<Self, DiskSetupError> {
        if depth == 0 || depth > DEPTH_MAX {
            return Err(DiskSetupError::Depth { depth });
        }
        let ready = VecDeque::with_capacity(depth);
        Ok(Self { ready, depth, copies, stats: DiskStats::default() })
    }

    fn read(&mut self, read: &mut Read) -> Result<usize, DiskError> {
        let want = check(read)?;
        if self.copies && want > 0 {
            if !read.file.copy_to(read.offset, &mut read.buf[..want]) {
                return Err(DiskError::NotInMemory);
            }
            self.stats.copied_bytes += want as u64;
        }
        Ok(want)
    }
}

impl DiskQueue for MemDisk {
    fn submit(&mut self, mut read: Read) -> Result<(), Read> {
        if self.ready.len() >= self.depth {
            return Err(read);
        }
        let result = self.read(&mut read);
        match result {
            Ok(len) => {
                self.stats.reads += 1;
                self.stats.bytes += len as u64;
            }
            Err(_) => self.stats.errors += 1,
        }
        self.ready.push_back(Completion { token: read.token, buf: read.buf, result });
        Ok(())
    }

    fn poll(&mut self, out: &mut Completions) {
        while !out.is_full() {
            let Some(completion) = self.ready.pop_front() else { break };
            out.push(completion);
        }
    }

    fn in_flight(&self) -> usize {
        self.ready.len()
    }

    fn kick(&mut self) {}

    fn name(&self) -> &'static str {
        if self.copies { "mem" } else { "null" }
    }

    fn stats(&self) -> DiskStats {
        DiskStats { in_flight: self.in_flight(), ..self.stats }
    }
}
