//! The queue of reads over a controller.
//!
//! A read has a slot from its submission to its completion. The command's number is the slot's and
//! a generation, so a completion counts once; one that belongs to no command in flight makes the
//! controller untrustworthy, and it is reset. The buffer stays in the slot until the completion, or
//! until a reset has proved that DMA is over; then the read is tried again. If neither comes, the
//! buffer is leaked, and its read fails with another buffer in its place.

use std::collections::VecDeque;
use std::time::Duration;

use millstream_buf::{Arena, IoBufMut, SizeClass};
use millstream_timer::Instant;

use super::access::{Device, DmaMemory, IovaTable, PAGE_BYTES, Pause};
use super::command::{Command, Entry};
use super::controller::{Controller, Event, NVME_DEPTH_MAX};
use super::error::NvmeError;
use super::identify::{ControllerInfo, NamespaceInfo};
use super::prp;
use super::status::Status;
use crate::file::{DeviceId, File};
use crate::queue::{
    Completion, Completions, DiskError, DiskQueue, DiskSetupError, DiskStats, Read,
};
use crate::table::check;

/// How often a read is given to the device before it fails.
const TRIES_MAX: u8 = 3;
/// The queue looks after its commands so often in the time that one may take.
const SWEEPS: u8 = 8;
/// An abort may take so many sweeps; then the controller is reset.
const ABORT_SWEEPS: u8 = 2;
/// Bytes of the buffer for [`NvmeQueue::read_at`].
const SCRATCH_BYTES: usize = 512 << 10;
/// Blocks of one command at most: its field has 16 bits.
const BLOCKS_MAX: usize = 1 << 16;
/// How often opening and closing look at the device.
const PAUSE_NANOS: u64 = 50_000;

/// How a namespace is read.
#[derive(Clone, Copy, Debug)]
pub struct NvmeConfig {
    /// Reads in flight at most: 1 to [`NVME_DEPTH_MAX`]; fewer if the controller's queues are
    /// shorter.
    pub depth: usize,
    /// A read that takes longer is aborted, and if that does not help in a quarter of this time the
    /// controller is reset.
    pub timeout: Duration,
    /// The namespace's number; else the first that is active.
    pub namespace: Option<u32>,
}

impl Default for NvmeConfig {
    /// 128 deep, 5 s, the first namespace.
    fn default() -> Self {
        Self { depth: 128, timeout: Duration::from_secs(5), namespace: None }
    }
}

/// What happened beside reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NvmeStats {
    /// Reads that took too long.
    pub timeouts: u64,
    /// Aborts that were asked for.
    pub aborts: u64,
    /// Resets of the controller.
    pub resets: u64,
    /// Reads that were given to the device again.
    pub retries: u64,
    /// Events that the device told of.
    pub events: u64,
    /// Buffers that were leaked, since the device may still write them.
    pub leaked: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// To be given to the device (again).
    Waiting,
    /// The device has it.
    InFlight,
}

struct Job {
    /// `None`: the queue's own scratch.
    buf: Option<IoBufMut>,
    token: u64,
    /// Address of the buffer.
    start: usize,
    /// First byte on the namespace.
    from: u64,
    /// Whole blocks to be brought, what of them is there, and what the command in flight brings.
    bytes: u32,
    done: u32,
    asked: u32,
    /// Bytes that the caller wanted.
    want: u32,
}

struct Slot {
    job: Option<Job>,
    /// Number of the command in flight: slot and generation.
    cid: u16,
    state: State,
    /// Sweeps that it has seen in flight.
    age: u8,
    tries: u8,
    aborting: bool,
}

/// Reads from one namespace of an NVMe controller, without the kernel.
///
/// It is a [`DiskQueue`] for [`File`]s on its namespace: see [`Self::file`].
pub struct NvmeQueue<D: Device, C: Pause> {
    controller: Controller<D>,
    clock: C,
    id: DeviceId,
    namespace: NamespaceInfo,
    block_shift: u32,
    /// Bytes of one command at most: whole blocks.
    command_bytes_max: u32,
    slots: Box<[Slot]>,
    slot_mask: u16,
    /// Last in, first out.
    free: Vec<u16>,
    waiting: VecDeque<u16>,
    ready: VecDeque<Completion>,
    /// Reads whose buffer was leaked: their failure waits for a buffer to be told with.
    orphans: VecDeque<u64>,
    /// What became of a read into the scratch.
    scratch_result: Option<Result<usize, DiskError>>,
    next_sweep: Instant,
    sweep_nanos: u64,
    reads_at_sweep: u64,
    stats: DiskStats,
    nvme: NvmeStats,
    /// A page for each slot's list. `None` when it had to be leaked, like the scratch.
    lists: Option<DmaMemory>,
    scratch: Option<DmaMemory>,
    arena_iovas: IovaTable,
    /// Mapped as long as the device exists.
    arena: Arena,
}

impl<D: Device, C: Pause> NvmeQueue<D, C> {
    /// Takes over a controller: stops what it does, starts it, and opens a namespace. Waits until
    /// that is done, which takes as long as the controller says at most.
    ///
    /// `arena` is where the buffers of the reads come from; the device gets access to all of it.
    ///
    /// # Errors
    /// [`NvmeError`] says what is wrong with the device or the namespace.
    pub fn open(
        device: D,
        arena: &Arena,
        clock: C,
        config: &NvmeConfig,
    ) -> Result<Self, NvmeError> {
        let depth = config.depth;
        if depth == 0 || depth > NVME_DEPTH_MAX {
            return Err(DiskSetupError::Depth { depth }.into());
        }
        let mut controller =
            Controller::begin(device, depth, config.timeout, config.namespace, clock.now())?;
        loop {
            let now = clock.now();
            controller.device.turn(now);
            let _ = controller.advance(now);
            if controller.is_ready() {
                break;
            }
            if controller.is_over() {
                return Err(controller.take_error().unwrap_or(NvmeError::Gone));
            }
            clock.pause_nanos(PAUSE_NANOS);
        }
        Self::with_controller(controller, arena, clock, config)
    }

    fn with_controller(
        mut controller: Controller<D>,
        arena: &Arena,
        clock: C,
        config: &NvmeConfig,
    ) -> Result<Self, NvmeError> {
        let (Some(namespace), Some(info)) = (controller.namespace(), controller.info()) else {
            return Err(NvmeError::Gone);
        };
        let command_bytes_max =
            info.transfer_bytes_max.min(prp::PRP_BYTES_MAX).min(namespace.block_bytes * BLOCKS_MAX);
        let name = controller.device.name().to_owned();
        let access = |what| {
            move |source| NvmeError::Access {
                device: name,
                what,
                mend: "give it more locked memory (`ulimit -l`) and huge pages",
                source,
            }
        };
        let depth = usize::from(controller.io.entries()) - 1;
        let (start, bytes) = arena.region();
        // SAFETY: `arena` is cloned into the queue, whose device is dropped before it.
        let mapped = unsafe { controller.device.map(start, bytes) };
        let arena_iovas = mapped.map_err(access.clone()("letting it reach the buffers"))?;
        let lists = controller.device.queue_memory(depth * PAGE_BYTES);
        let lists = lists.map_err(access.clone()("getting memory for its lists"))?;
        let scratch = controller.device.queue_memory(SCRATCH_BYTES);
        let scratch = scratch.map_err(access("getting memory for its lists"))?;
        let slot_mask = (depth.next_power_of_two() - 1) as u16;
        let slot = |index| Slot {
            job: None,
            cid: index,
            state: State::Free,
            age: 0,
            tries: 0,
            aborting: false,
        };
        let sweep_nanos = (config.timeout.as_nanos() as u64 / u64::from(SWEEPS)).max(1);
        Ok(Self {
            next_sweep: clock.now().plus_nanos(sweep_nanos),
            id: DeviceId::fresh(),
            block_shift: namespace.block_bytes.ilog2(),
            // Whole blocks: a transfer limit is at least a page, a block may be larger.
            command_bytes_max: (command_bytes_max - command_bytes_max % namespace.block_bytes)
                .max(namespace.block_bytes) as u32,
            namespace,
            controller,
            clock,
            slots: (0..depth as u16).map(slot).collect(),
            slot_mask,
            free: (0..depth as u16).rev().collect(),
            waiting: VecDeque::with_capacity(depth),
            ready: VecDeque::with_capacity(depth),
            orphans: VecDeque::with_capacity(depth),
            scratch_result: None,
            sweep_nanos,
            reads_at_sweep: 0,
            stats: DiskStats::default(),
            nvme: NvmeStats::default(),
            lists: Some(lists),
            scratch: Some(scratch),
            arena_iovas,
            arena: arena.clone(),
        })
    }

    /// The namespace as a file: all of its bytes, read only. Reads of it, and of slices of it,
    /// belong to this queue.
    pub fn file(&self) -> File {
        File::on_device(self.id, self.namespace.bytes(), self.namespace.block_bytes)
    }

    /// The namespace.
    pub fn namespace(&self) -> NamespaceInfo {
        self.namespace
    }

    /// The controller.
    pub fn info(&self) -> Option<&ControllerInfo> {
        self.controller.info()
    }

    /// What happened beside reads.
    pub fn nvme_stats(&self) -> NvmeStats {
        NvmeStats { resets: self.controller.resets, events: self.controller.events, ..self.nvme }
    }

    /// The device, for tests that break it.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.controller.device
    }

    /// Whether it takes reads now: not while the controller is reset, nor after it was given up.
    pub fn is_ready(&self) -> bool {
        self.controller.is_ready()
    }

    /// Reads `len` bytes from `offset` on and waits for them: for what is needed at start, such as
    /// superblocks and directories. No other read may be in flight.
    ///
    /// # Errors
    /// [`DiskError`], also if other reads are in flight or the bytes are not all on the namespace.
    pub fn read_at(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        let busy = DiskError::Io { errno: libc::EBUSY };
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.namespace.bytes());
        if self.in_flight() > 0 {
            return Err(busy);
        }
        let end = end.ok_or(DiskError::Truncated)?;
        let mut bytes = Vec::with_capacity(len);
        let block = self.namespace.block_bytes as u64;
        let mut from = offset / block * block;
        while from < end {
            let part = (end.next_multiple_of(block) - from).min(SCRATCH_BYTES as u64) as usize;
            self.read_scratch(from, part)?;
            let skip = offset.saturating_sub(from) as usize;
            let take = (end - from).min(part as u64) as usize - skip;
            let at = bytes.len();
            bytes.resize(at + take, 0);
            let scratch = self.scratch.as_ref().ok_or(DiskError::DeviceGone)?;
            scratch.copy_out(skip, &mut bytes[at..]);
            from += part as u64;
        }
        Ok(bytes)
    }

    fn read_scratch(&mut self, from: u64, bytes: usize) -> Result<(), DiskError> {
        let scratch = self.scratch.as_ref().filter(|_| !self.controller.is_dead());
        let start = scratch.ok_or(DiskError::DeviceGone)?.start().as_ptr() as usize;
        let job = Job {
            buf: None,
            token: 0,
            start,
            from,
            bytes: bytes as u32,
            done: 0,
            asked: 0,
            want: bytes as u32,
        };
        self.scratch_result = None;
        self.admit(job);
        self.kick();
        let mut none = Completions::new();
        loop {
            self.poll(&mut none);
            if let Some(result) = self.scratch_result.take() {
                return result.map(|_| ());
            }
            self.clock.pause_nanos(PAUSE_NANOS / 10);
        }
    }

    /// Waits for what is in flight, stops the controller in good order, and lets go of the device.
    fn close(&mut self) {
        let until = self.clock.now().plus_nanos(2 * self.sweep_nanos * u64::from(SWEEPS));
        let mut out = Completions::new();
        while self.controller.is_ready() && self.in_flight() > 0 && self.clock.now() < until {
            self.poll(&mut out);
            out.clear();
            self.clock.pause_nanos(PAUSE_NANOS);
        }
        self.controller.close(self.clock.now());
        loop {
            let now = self.clock.now();
            self.controller.device.turn(now);
            if let Some(event) = self.controller.advance(now) {
                self.react(event);
            }
            if self.controller.is_over() {
                return;
            }
            self.clock.pause_nanos(PAUSE_NANOS);
        }
    }

    /// Gives a job a slot and, if the controller is up, puts its command into the ring.
    fn admit(&mut self, job: Job) -> bool {
        let Some(index) = self.free.pop() else { return false };
        let slot = &mut self.slots[usize::from(index)];
        slot.job = Some(job);
        slot.tries = 0;
        if self.controller.is_ready() {
            self.issue(index);
        } else {
            slot.state = State::Waiting;
            self.waiting.push_back(index);
        }
        true
    }

    /// Puts the next command of a slot into the ring.
    #[inline]
    fn issue(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        let (Some(job), Some(lists)) = (&mut slot.job, &self.lists) else { return };
        job.asked = (job.bytes - job.done).min(self.command_bytes_max);
        let start = job.start + job.done as usize;
        let (table, scratch) = (&self.arena_iovas, &self.scratch);
        let iova = |at: usize| {
            table.iova(at).or_else(|| {
                let scratch = scratch.as_ref()?;
                scratch.iova(at.checked_sub(scratch.start().as_ptr() as usize)?)
            })
        };
        let list = (lists, usize::from(index) * PAGE_BYTES);
        let Some(prp) = prp::build(iova, start, job.asked as usize, list) else {
            let (len, align_bytes) = (job.want as usize, 4);
            let capacity = job.bytes as usize;
            self.finish(index, Err(DiskError::BadBuffer { capacity, len, align_bytes }));
            return;
        };
        let lba = (job.from + u64::from(job.done)) >> self.block_shift;
        let blocks = job.asked >> self.block_shift;
        slot.state = State::InFlight;
        slot.age = 0;
        slot.aborting = false;
        let command = Command::read(slot.cid, self.namespace.nsid, lba, blocks, prp);
        self.controller.io.push(&command);
    }

    /// Takes the completions that have come.
    #[inline]
    fn reap(&mut self, out: &mut Completions, now: Instant) {
        while !out.is_full() {
            let Some(entry) = self.controller.io.pop() else { break };
            let known = entry.ok().filter(|entry| self.is_known(entry));
            let Some(entry) = known else {
                self.stats.unknown += 1;
                let event = self.controller.trouble(NvmeError::Nonsense, now);
                if let Some(event) = event {
                    self.react(event);
                }
                return;
            };
            self.complete(entry, out);
        }
        self.controller.io.tell(&mut self.controller.device);
    }

    #[inline]
    fn is_known(&self, entry: &Entry) -> bool {
        let slot = self.slots.get(usize::from(entry.cid & self.slot_mask));
        slot.is_some_and(|slot| slot.cid == entry.cid && slot.state == State::InFlight)
    }

    #[inline]
    fn complete(&mut self, entry: Entry, out: &mut Completions) {
        let index = entry.cid & self.slot_mask;
        let mask = self.slot_mask;
        let slot = &mut self.slots[usize::from(index)];
        // The next command of this slot has another number.
        slot.cid = next_cid(slot.cid, mask);
        let Some(job) = &mut slot.job else { return };
        if !entry.status.is_success() {
            return self.failed(index, entry.status);
        }
        job.done += job.asked;
        if job.done < job.bytes {
            self.stats.continued += 1;
            return self.issue(index);
        }
        let want = job.want as usize;
        slot.state = State::Free;
        if let Some(Job { buf: Some(buf), token, .. }) = slot.job.take() {
            self.free.push(index);
            self.stats.reads += 1;
            self.stats.bytes += want as u64;
            out.push(Completion { token, buf, result: Ok(want) });
        } else {
            self.free.push(index);
            self.scratch_result = Some(Ok(want));
        }
    }

    /// A command failed: the read is tried again where that may help.
    #[cold]
    fn failed(&mut self, index: u16, status: Status) {
        let slot = &mut self.slots[usize::from(index)];
        slot.tries += 1;
        if !status.may_retry() || slot.tries >= TRIES_MAX {
            let error = if status.is_media() {
                DiskError::Media { status }
            } else {
                DiskError::Refused { status }
            };
            return self.finish(index, Err(error));
        }
        self.nvme.retries += 1;
        if slot.tries == 1 {
            return self.issue(index);
        }
        // What failed twice is given some time.
        slot.state = State::Waiting;
        self.waiting.push_back(index);
    }

    /// Ends a read whose buffer the device does not write any more.
    fn finish(&mut self, index: u16, result: Result<usize, DiskError>) {
        let slot = &mut self.slots[usize::from(index)];
        slot.state = State::Free;
        let Some(job) = slot.job.take() else { return };
        self.free.push(index);
        match result {
            Ok(len) => {
                self.stats.reads += 1;
                self.stats.bytes += len as u64;
            }
            Err(_) => self.stats.errors += 1,
        }
        match job.buf {
            Some(buf) => self.ready.push_back(Completion { token: job.token, buf, result }),
            None => self.scratch_result = Some(result),
        }
    }

    fn issue_waiting(&mut self) {
        for _ in 0..self.waiting.len() {
            let Some(index) = self.waiting.pop_front() else { break };
            self.issue(index);
        }
    }

    /// What is not done at every poll: time-outs, the device's health, the steps of a reset.
    #[cold]
    fn look_after(&mut self, now: Instant) {
        if let Some(event) = self.controller.advance(now) {
            self.react(event);
        }
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now.plus_nanos(self.sweep_nanos);
        if !self.controller.is_ready() {
            return;
        }
        if self.stats.reads > self.reads_at_sweep {
            self.controller.prove();
        }
        self.reads_at_sweep = self.stats.reads;
        if let Some(event) = self.controller.check(now) {
            return self.react(event);
        }
        if self.controller.is_ready() {
            self.issue_waiting();
            self.expire(now);
        }
    }

    /// Aborts what takes too long. A process that stood still for a while finds its commands only
    /// one sweep older, so that it does not abort what has completed meanwhile.
    fn expire(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if slot.state != State::InFlight {
                continue;
            }
            slot.age += 1;
            if slot.age <= SWEEPS {
                continue;
            }
            if slot.aborting {
                let event = self.controller.trouble(NvmeError::Late, now);
                if let Some(event) = event {
                    self.react(event);
                }
                return;
            }
            slot.aborting = true;
            slot.age = SWEEPS - ABORT_SWEEPS;
            self.nvme.timeouts += 1;
            let cid = slot.cid;
            if self.controller.can_abort() {
                self.nvme.aborts += 1;
                self.controller.abort(cid);
            }
        }
    }

    #[cold]
    fn react(&mut self, event: Event) {
        match event {
            Event::Ready => self.issue_waiting(),
            Event::DmaOver => self.take_back(),
            Event::Lost { dma_over } => {
                if dma_over {
                    self.take_back();
                } else {
                    self.leak();
                }
                while let Some(index) = self.waiting.pop_front() {
                    self.finish(index, Err(DiskError::DeviceGone));
                }
            }
        }
        self.kick();
    }

    /// The controller stands still: what it had is ours again, and is tried again.
    fn take_back(&mut self) {
        for index in 0..self.slots.len() as u16 {
            let mask = self.slot_mask;
            let slot = &mut self.slots[usize::from(index)];
            if slot.state != State::InFlight {
                continue;
            }
            slot.cid = next_cid(slot.cid, mask);
            slot.tries += 1;
            if slot.tries >= TRIES_MAX {
                self.finish(index, Err(DiskError::TimedOut));
            } else {
                self.nvme.retries += 1;
                slot.state = State::Waiting;
                self.waiting.push_back(index);
            }
        }
    }

    /// Nothing proves that the device writes no more: what it has is never used again.
    fn leak(&mut self) {
        for slot in &mut self.slots {
            if slot.state != State::InFlight {
                continue;
            }
            let Some(job) = slot.job.take() else { continue };
            self.nvme.leaked += 1;
            self.stats.errors += 1;
            match job.buf {
                Some(buf) => {
                    std::mem::forget(buf);
                    self.orphans.push_back(job.token);
                }
                None => self.scratch_result = Some(Err(DiskError::DeviceGone)),
            }
        }
        std::mem::forget(self.lists.take());
        std::mem::forget(self.scratch.take());
    }

    /// Tells of reads that were over before the device saw them, and of those whose buffer is lost.
    #[cold]
    fn give_out(&mut self, out: &mut Completions) {
        while !out.is_full() {
            if let Some(completion) = self.ready.pop_front() {
                out.push(completion);
                continue;
            }
            if self.orphans.is_empty() {
                return;
            }
            let Some(buf) = self.arena.alloc(SizeClass::Block) else { return };
            let Some(token) = self.orphans.pop_front() else { return };
            out.push(Completion { token, buf, result: Err(DiskError::DeviceGone) });
        }
    }

    /// What a read comes to that needs no device, or where on the namespace it begins.
    fn place(&mut self, read: &mut Read, want: usize) -> Result<u64, Result<usize, DiskError>> {
        if let Some(start) = read.file.start_on(self.id) {
            return match self.controller.is_dead() {
                true => Err(Err(DiskError::DeviceGone)),
                false => Ok(start + read.offset),
            };
        }
        if !read.file.is_in_memory() {
            return Err(Err(DiskError::OtherDevice));
        }
        let copied = read.file.copy_to(read.offset, &mut read.buf[..want]);
        self.stats.copied_bytes += if copied { want as u64 } else { 0 };
        Err(copied.then_some(want).ok_or(DiskError::Truncated))
    }
}

/// The number of a slot's next command. Never 0xffff, which the specification keeps for itself.
#[inline]
fn next_cid(cid: u16, slot_mask: u16) -> u16 {
    let next = cid.wrapping_add(slot_mask + 1);
    if next == u16::MAX { next.wrapping_add(slot_mask + 1) } else { next }
}

impl<D: Device, C: Pause> DiskQueue for NvmeQueue<D, C> {
    #[inline]
    fn submit(&mut self, mut read: Read) -> Result<(), Read> {
        if self.in_flight() >= self.slots.len() {
            return Err(read);
        }
        let placed = match check(&read) {
            Ok(0) => Err(Ok(0)),
            Ok(want) => self.place(&mut read, want).map(|from| (want, from)),
            Err(error) => Err(Err(error)),
        };
        let (want, from) = match placed {
            Ok(placed) => placed,
            Err(result) => {
                match result {
                    Ok(len) => {
                        self.stats.reads += 1;
                        self.stats.bytes += len as u64;
                    }
                    Err(_) => self.stats.errors += 1,
                }
                self.ready.push_back(Completion { token: read.token, buf: read.buf, result });
                return Ok(());
            }
        };
        let start = read.buf.as_mut_ptr() as usize;
        let job = Job {
            buf: Some(read.buf),
            token: read.token,
            start,
            from,
            bytes: want.next_multiple_of(1 << self.block_shift) as u32,
            done: 0,
            asked: 0,
            want: want as u32,
        };
        let admitted = self.admit(job);
        debug_assert!(admitted, "a slot is free for each read that may be in flight");
        Ok(())
    }

    #[inline]
    fn poll(&mut self, out: &mut Completions) {
        let now = self.clock.now();
        self.controller.device.turn(now);
        if self.controller.is_ready() {
            self.reap(out, now);
        }
        if now >= self.next_sweep || !self.controller.is_ready() {
            self.look_after(now);
        }
        if !self.ready.is_empty() || !self.orphans.is_empty() {
            self.give_out(out);
        }
        self.kick();
    }

    #[inline]
    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() - self.lost() + self.ready.len() + self.orphans.len()
    }

    #[inline]
    fn kick(&mut self) {
        if self.controller.is_ready() && self.controller.io.holds_back() {
            self.controller.io.tell(&mut self.controller.device);
        }
    }

    fn name(&self) -> &'static str {
        "nvme"
    }

    fn stats(&self) -> DiskStats {
        DiskStats { in_flight: self.in_flight(), ..self.stats }
    }
}

impl<D: Device, C: Pause> NvmeQueue<D, C> {
    /// Slots whose buffer was leaked: they are never used again.
    #[inline]
    fn lost(&self) -> usize {
        self.nvme.leaked as usize
    }
}

impl<D: Device, C: Pause> Drop for NvmeQueue<D, C> {
    fn drop(&mut self) {
        self.close();
        // Every phase ends, so here the controller is at rest or was given up with `leak`.
        debug_assert!(self.controller.is_over());
    }
}
