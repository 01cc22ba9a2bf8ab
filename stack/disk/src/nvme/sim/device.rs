//! The controller: registers, queues, reads.

use std::collections::VecDeque;
use std::io;
use std::ptr::NonNull;

use millstream_timer::Instant;

use super::faults::{Content, Dice, SimConfig, pattern};
use super::memory::Memory;
use crate::nvme::access::{Bar, Device, Dma, DmaMemory, IovaTable, PAGE_BYTES};
use crate::nvme::command::{COMMAND_BYTES, Command, ENTRY_BYTES, READ};
use crate::nvme::registers::{
    ACQ, ALL_ONES, AQA, ASQ, CAP, CC, CC_ENABLE, CC_SHUTDOWN, CSTS, CSTS_FATAL, CSTS_READY,
    DOORBELLS, VS,
};
use crate::nvme::status::Status;

const BAR_BYTES: usize = 0x2000;
/// Queues: the admin queue and one for reads.
pub(super) const QUEUES: usize = 2;

/// What a controller has seen and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimStats {
    /// Reads that were completed with success.
    pub reads: u64,
    /// Commands of the admin queue.
    pub admin: u64,
    /// Completions that were posted.
    pub completions: u64,
    /// Doorbells that were rung.
    pub doorbells: u64,
    /// What the driver did against the specification.
    pub violations: u64,
    /// Addresses that the driver used and never mapped.
    pub faults: u64,
    /// Times that the controller was enabled.
    pub starts: u64,
    /// Orderly shutdowns.
    pub shutdowns: u64,
    /// Data that was written although its command was never completed.
    pub ghosts: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Queue {
    pub(super) sq: u64,
    pub(super) cq: u64,
    pub(super) sq_entries: u16,
    pub(super) cq_entries: u16,
    sq_head: u16,
    sq_tail: u16,
    cq_tail: u16,
    cq_head: u16,
    /// The phase bit that the next completion gets.
    phase: bool,
}

impl Queue {
    pub(super) fn reset_cq(&mut self, ring: u64, entries: u16) {
        (self.cq, self.cq_entries) = (ring, entries);
        (self.cq_tail, self.cq_head, self.phase) = (0, 0, true);
    }

    pub(super) fn reset_sq(&mut self, ring: u64, entries: u16) {
        (self.sq, self.sq_entries) = (ring, entries);
        (self.sq_head, self.sq_tail) = (0, 0);
    }

    fn cq_is_full(&self) -> bool {
        (self.cq_tail + 1) % self.cq_entries.max(1) == self.cq_head
    }
}

/// A completion on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    at: Instant,
    queue: usize,
    pub(super) cid: u16,
    status: Status,
    result: u32,
    /// What is read when it is due.
    read: Option<Command>,
    /// Whether the driver hears of it.
    told: bool,
}

/// How `CC.EN` is being followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    Off,
    Starting(Instant),
    On,
    Stopping(Instant),
}

/// A simulated controller: see the module.
#[derive(Debug)]
pub struct SimDevice {
    pub(super) config: SimConfig,
    pub(super) memory: Memory,
    pub(super) queues: [Queue; QUEUES],
    pub(super) stats: SimStats,
    pub(super) pending: VecDeque<Pending>,
    /// Numbers of asynchronous event requests.
    pub(super) event_requests: VecDeque<u16>,
    dice: Dice,
    now: Instant,
    cc: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    power: Power,
    fatal: bool,
    gone: bool,
    shut_down: bool,
    bus_master: bool,
    /// Nothing can go wrong or take time, so a read completes at its doorbell.
    prompt: bool,
}

impl SimDevice {
    /// A controller that is off.
    pub fn new(config: SimConfig) -> Self {
        let mut device = Self {
            memory: Memory::default(),
            queues: [Queue::default(); QUEUES],
            stats: SimStats::default(),
            pending: VecDeque::new(),
            event_requests: VecDeque::new(),
            dice: Dice::new(config.seed),
            now: Instant::ZERO,
            cc: 0,
            aqa: 0,
            asq: 0,
            acq: 0,
            power: Power::Off,
            fatal: false,
            gone: false,
            shut_down: false,
            bus_master: false,
            prompt: false,
            config,
        };
        device.changed();
        device
    }

    /// What it has seen and done.
    pub fn stats(&self) -> SimStats {
        self.stats
    }

    /// Changes what it is like, from the next command on.
    pub fn configure(&mut self, change: impl FnOnce(&mut SimConfig)) {
        change(&mut self.config);
        self.changed();
    }

    /// Pulls the device out: every register reads as all ones, and nothing is completed.
    pub fn pull_out(&mut self) {
        self.gone = true;
    }

    /// Sets `CSTS.CFS`.
    pub fn fail(&mut self) {
        self.fatal = true;
    }

    /// Whether it runs.
    pub fn is_on(&self) -> bool {
        self.power == Power::On && !self.gone
    }

    fn changed(&mut self) {
        let config = &self.config;
        self.prompt = config.latency_nanos == 0
            && config.jitter_nanos == 0
            && config.faults == super::Faults::default();
    }

    fn enable(&mut self) {
        self.stats.starts += 1;
        self.shut_down = false;
        self.fatal = false;
        self.queues = [Queue::default(); QUEUES];
        self.queues[0].reset_sq(self.asq, (self.aqa & 0xfff) as u16 + 1);
        self.queues[0].reset_cq(self.acq, (self.aqa >> 16 & 0xfff) as u16 + 1);
        if self.cc & 0xff_fff0 != crate::nvme::registers::CC_SETTINGS || !self.bus_master {
            self.stats.violations += 1;
        }
        self.power = Power::Starting(self.now.plus_nanos(self.config.ready_nanos));
    }

    fn write_cc(&mut self, value: u32) {
        let changed = self.cc ^ value;
        self.cc = value;
        if changed & CC_ENABLE != 0 {
            if value & CC_ENABLE != 0 {
                self.enable();
            } else {
                self.power = Power::Stopping(self.now.plus_nanos(self.config.ready_nanos));
            }
        }
        if value & CC_SHUTDOWN != 0 && changed & CC_SHUTDOWN != 0 {
            self.shut_down = true;
            self.stats.shutdowns += 1;
        }
    }

    fn step_power(&mut self) {
        match self.power {
            Power::Starting(at) if self.now >= at && !self.config.faults.never_ready => {
                self.power = Power::On;
            }
            Power::Stopping(at) if self.now >= at && !self.config.faults.never_stops => {
                self.power = Power::Off;
                // From here on nothing is written.
                self.pending.clear();
                self.event_requests.clear();
                self.queues = [Queue::default(); QUEUES];
            }
            _ => {}
        }
    }

    fn csts(&self) -> u32 {
        let ready = matches!(self.power, Power::On | Power::Stopping(_));
        let shutdown = if self.shut_down { 2 << 2 } else { 0 };
        (u32::from(ready) * CSTS_READY) | (u32::from(self.fatal) * CSTS_FATAL) | shutdown
    }

    #[inline]
    fn doorbell(&mut self, at: usize, value: u32) {
        self.stats.doorbells += 1;
        let index = (at - DOORBELLS) / (4 << self.config.doorbell_stride);
        let Some(queue) = self.queues.get_mut(index / 2) else {
            self.stats.violations += 1;
            return;
        };
        if self.power != Power::On {
            self.stats.violations += 1;
            return;
        }
        if index.is_multiple_of(2) {
            if value >= u32::from(queue.sq_entries) {
                self.stats.violations += 1;
                return;
            }
            queue.sq_tail = value as u16;
            self.fetch(index / 2);
        } else {
            if value >= u32::from(queue.cq_entries) {
                self.stats.violations += 1;
                return;
            }
            queue.cq_head = value as u16;
        }
    }

    /// Takes the commands behind a doorbell.
    #[inline]
    fn fetch(&mut self, number: usize) {
        if self.fatal {
            return;
        }
        loop {
            let queue = &mut self.queues[number];
            if queue.sq_head == queue.sq_tail {
                return;
            }
            let from = queue.sq + u64::from(queue.sq_head) * COMMAND_BYTES as u64;
            queue.sq_head = (queue.sq_head + 1) % queue.sq_entries;
            let mut command = Command([0; 8]);
            for (index, word) in command.0.iter_mut().enumerate() {
                let Some(value) = self.memory.read64(from + 8 * index as u64) else {
                    self.stats.faults += 1;
                    return;
                };
                *word = value;
            }
            if number == 0 {
                self.admin(&command);
            } else {
                self.take(command);
            }
        }
    }

    /// Takes a read.
    #[inline]
    fn take(&mut self, command: Command) {
        if self.prompt && self.pending.is_empty() && !self.queues[1].cq_is_full() {
            let status = self.execute(&command);
            return self.post(1, cid(&command), status, 0);
        }
        let (at, faults) = (self.now.plus_nanos(self.delay()), self.config.faults);
        if self.dice.happens(faults.fatal) {
            self.fatal = true;
            return;
        }
        let dropped = self.dice.happens(faults.drop);
        let media = self.dice.happens(faults.media);
        let pending = Pending {
            at: if dropped { self.now.plus_nanos(self.dice.below(20_000_000_000)) } else { at },
            queue: 1,
            cid: cid(&command),
            status: if media { Status::new(2, 0x81, false) } else { Status::SUCCESS },
            result: 0,
            read: Some(command),
            told: !dropped,
        };
        self.schedule(pending);
    }

    fn delay(&mut self) -> u64 {
        let config = &self.config;
        let mut nanos = config.latency_nanos;
        if config.jitter_nanos > 0 {
            nanos += self.dice.below(config.jitter_nanos);
        }
        if self.dice.happens(config.faults.stall) {
            nanos += config.faults.stall_nanos;
        }
        nanos
    }

    /// Completes an admin command at once.
    pub(super) fn answer(&mut self, command: &Command, status: Status, result: u32) {
        let pending = Pending {
            at: self.now,
            queue: 0,
            cid: cid(command),
            status,
            result,
            read: None,
            told: true,
        };
        self.schedule(pending);
        self.post_due();
    }

    fn schedule(&mut self, pending: Pending) {
        let place = self.pending.partition_point(|other| other.at <= pending.at);
        self.pending.insert(place, pending);
    }

    /// Takes a read back, if it has not been completed; it completes as aborted.
    pub(super) fn abort_read(&mut self, number: u16) -> bool {
        let found = self
            .pending
            .iter_mut()
            .find(|pending| pending.queue == 1 && pending.cid == number && pending.read.is_some());
        let Some(pending) = found else { return false };
        pending.status = Status::new(0, 0x07, false);
        pending.read = None;
        pending.told = true;
        pending.at = self.now;
        let pending = *pending;
        self.pending.retain(|other| other.queue != 1 || other.cid != number);
        self.schedule(pending);
        true
    }

    /// Posts what is due.
    fn post_due(&mut self) {
        let mut index = 0;
        while let Some(&pending) = self.pending.get(index) {
            if pending.at > self.now {
                return;
            }
            let lives = self.power == Power::On && !self.fatal;
            if !pending.told || !lives {
                // Its data is written all the same: it was on its way. It is not told.
                self.pending.remove(index);
                if let Some(read) = pending.read {
                    self.stats.ghosts += 1;
                    self.execute(&read);
                }
                continue;
            }
            if self.queues[pending.queue].cq_is_full() {
                index += 1;
                continue;
            }
            self.pending.remove(index);
            let mut status = pending.status;
            if let (Some(read), true) = (pending.read, status.is_success()) {
                status = self.execute(&read);
            }
            self.post(pending.queue, pending.cid, status, pending.result);
            if pending.queue == 1 {
                self.tamper(pending.cid, status);
            }
        }
    }

    /// Posts a completion again, or one that is garbage.
    fn tamper(&mut self, number: u16, status: Status) {
        let faults = self.config.faults;
        if self.dice.happens(faults.duplicate) && !self.queues[1].cq_is_full() {
            self.post(1, number, status, 0);
        }
        if self.dice.happens(faults.corrupt) && !self.queues[1].cq_is_full() {
            let garbage = self.dice.next();
            self.post(1, garbage as u16, Status::from_bits((garbage >> 16) as u16), 0);
        }
    }

    /// Does a read, with all the checks that a controller makes.
    #[inline]
    fn execute(&mut self, command: &Command) -> Status {
        let [head, _, _, prp1, prp2, lba, tail, _] = command.0;
        let blocks = (tail & 0xffff) + 1;
        if head as u8 != READ {
            self.stats.violations += 1;
            return Status::new(0, 0x01, true);
        }
        if head >> 32 != 1 {
            return Status::new(0, 0x0b, true);
        }
        if lba.checked_add(blocks).is_none_or(|end| end > self.config.blocks) {
            return Status::new(0, 0x80, true);
        }
        let bytes = blocks as usize * self.config.block_bytes;
        if self.config.mdts != 0 && bytes > PAGE_BYTES << self.config.mdts {
            self.stats.violations += 1;
            return Status::new(0, 0x02, true);
        }
        if self.config.bad.iter().any(|bad| lba < bad.end && bad.start < lba + blocks) {
            return Status::new(2, 0x81, true);
        }
        if self.transfer(prp1, prp2, lba * self.config.block_bytes as u64, bytes).is_none() {
            self.stats.faults += 1;
            return Status::new(0, 0x04, false);
        }
        self.stats.reads += 1;
        Status::SUCCESS
    }

    /// Writes the bytes of a read to the pages that it names. `None`: one is not within reach.
    #[inline]
    fn transfer(&mut self, prp1: u64, prp2: u64, from: u64, bytes: usize) -> Option<()> {
        if !prp1.is_multiple_of(4) {
            return None;
        }
        let first = bytes.min(PAGE_BYTES - prp1 as usize % PAGE_BYTES);
        self.move_bytes(prp1, from, first)?;
        let mut done = first;
        if bytes - done > PAGE_BYTES {
            for index in 0..(bytes - done).div_ceil(PAGE_BYTES) {
                let page = self.memory.read64(prp2 + 8 * index as u64)?;
                done += self.move_page(page, from, done, bytes)?;
            }
        } else if bytes > done {
            self.move_page(prp2, from, done, bytes)?;
        }
        Some(())
    }

    fn move_page(&mut self, page: u64, from: u64, done: usize, bytes: usize) -> Option<usize> {
        // All pages but the first begin at their beginning.
        if !page.is_multiple_of(PAGE_BYTES as u64) {
            return None;
        }
        let part = (bytes - done).min(PAGE_BYTES);
        self.move_bytes(page, from + done as u64, part)?;
        Some(part)
    }

    #[inline]
    fn move_bytes(&mut self, iova: u64, from: u64, bytes: usize) -> Option<()> {
        match &self.config.content {
            Content::Nothing => self.memory.reach(iova, bytes).map(|_| ()),
            Content::Stamps => {
                self.memory.reach(iova, bytes)?;
                self.memory.write32(iova, pattern(from) as u32)?;
                self.memory.write32(iova + 4, (pattern(from) >> 32) as u32)
            }
            Content::Pattern => {
                for at in (0..bytes as u64).step_by(8) {
                    self.memory.write(iova + at, &pattern(from + at).to_le_bytes())?;
                }
                Some(())
            }
            Content::Bytes(all) => {
                let there = usize::try_from(from).ok().and_then(|from| all.get(from..));
                let there = there.unwrap_or_default();
                let part = &there[..there.len().min(bytes)];
                self.memory.write(iova, part)?;
                self.memory.write(iova + part.len() as u64, &vec![0; bytes - part.len()])
            }
        }
    }

    /// Writes a completion, whose phase bit comes last.
    #[inline]
    fn post(&mut self, number: usize, cid: u16, status: Status, result: u32) {
        let queue = &mut self.queues[number];
        let at = queue.cq + u64::from(queue.cq_tail) * ENTRY_BYTES as u64;
        let middle = u32::from(queue.sq_head) | (number as u32) << 16;
        let last = u32::from(cid) | u32::from(queue.phase) << 16 | u32::from(status.bits()) << 17;
        queue.cq_tail += 1;
        if queue.cq_tail == queue.cq_entries {
            queue.cq_tail = 0;
            queue.phase = !queue.phase;
        }
        let written = self.memory.write32(at, result).is_some()
            && self.memory.write32(at + 8, middle).is_some()
            && self.memory.write32(at + 12, last).is_some();
        self.stats.completions += 1;
        self.stats.faults += u64::from(!written);
    }
}

pub(super) fn cid(command: &Command) -> u16 {
    (command.0[0] >> 16) as u16
}

impl Bar for SimDevice {
    fn read32(&mut self, at: usize) -> u32 {
        if self.gone {
            return ALL_ONES;
        }
        let cap = u64::from(self.config.queue_entries - 1)
            | 1 << 16
            | u64::from(self.config.timeout_halves) << 24
            | u64::from(self.config.doorbell_stride) << 32
            | 1 << 37;
        match at {
            CAP => cap as u32,
            _ if at == CAP + 4 => (cap >> 32) as u32,
            VS => 0x0002_0000,
            CC => self.cc,
            CSTS => {
                self.step_power();
                self.csts()
            }
            _ => 0,
        }
    }

    #[inline]
    fn write32(&mut self, at: usize, value: u32) {
        if self.gone {
            return;
        }
        let low = |word: &mut u64| *word = *word >> 32 << 32 | u64::from(value);
        let high = |word: &mut u64| *word = *word & 0xffff_ffff | u64::from(value) << 32;
        match at {
            DOORBELLS.. => self.doorbell(at, value),
            CC => self.write_cc(value),
            AQA => self.aqa = value,
            ASQ => low(&mut self.asq),
            ACQ => low(&mut self.acq),
            _ if at == ASQ + 4 => high(&mut self.asq),
            _ if at == ACQ + 4 => high(&mut self.acq),
            _ => self.stats.violations += 1,
        }
    }

    fn bar_bytes(&self) -> usize {
        BAR_BYTES
    }
}

impl Dma for SimDevice {
    fn queue_memory(&mut self, bytes: usize) -> io::Result<DmaMemory> {
        let memory = DmaMemory::anonymous(bytes, false)?;
        let iovas = self.memory.map(memory.start(), memory.bytes())?;
        Ok(memory.with_iovas(iovas))
    }

    unsafe fn map(&mut self, start: NonNull<u8>, bytes: usize) -> io::Result<IovaTable> {
        self.memory.map(start, bytes)
    }
}

impl Device for SimDevice {
    fn name(&self) -> &str {
        "simulated"
    }

    fn set_bus_master(&mut self, on: bool) -> io::Result<()> {
        self.bus_master = on;
        Ok(())
    }

    #[inline]
    fn turn(&mut self, now: Instant) {
        self.now = now;
        if self.power != Power::On {
            self.step_power();
        }
        if !self.pending.is_empty() && !self.gone {
            self.post_due();
        }
    }
}
