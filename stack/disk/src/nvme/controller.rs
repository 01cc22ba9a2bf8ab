//! The life of a controller: off, started, asked who it is, ready, reset, shut down.
//!
//! Nothing here waits. [`Controller::advance`] looks whether what was begun has ended, begins what
//! comes next, and gives up on what takes too long; so a shard goes on with its connections while
//! its disk is reset.
//!
//! ```text
//! Stopping -> Starting -> Asking (identify, queues) -> Ready -> Closing -> Off
//!    ^___________|____________|_______________________|            \-> Dead
//! ```

use std::time::Duration;

use millstream_timer::Instant;

use super::access::{Device, DmaMemory, PAGE_BYTES};
use super::admin::{Admin, Answer, Tag};
use super::command::{self, Command};
use super::error::NvmeError;
use super::identify::{ControllerInfo, NamespaceInfo, Page, active};
use super::registers::{
    self, ACQ, ALL_ONES, AQA, ASQ, CAP, CC, CC_ENABLE, CC_SETTINGS, CC_SHUTDOWN, CSTS, CSTS_FATAL,
    CSTS_READY, Cap, DOORBELLS,
};
use super::ring::{Layout, Ring};

/// The most commands in flight: so that a queue fits the 64 KiB that are contiguous.
pub const NVME_DEPTH_MAX: usize = 1023;

/// Entries of the admin queues.
const ADMIN_ENTRIES: u16 = 17;
/// Resets in a row, without a read in between that went well, after which a controller is given up.
const ATTEMPTS_MAX: u32 = 3;
/// A shutdown that does not say how long it takes.
const SHUTDOWN_DEFAULT: Duration = Duration::from_secs(5);

// The driver's memory. The first 64 KiB have all but the submission queue of the reads.
const ADMIN_SQ: usize = 0;
const ADMIN_CQ: usize = PAGE_BYTES;
const ANSWER: usize = 2 * PAGE_BYTES;
const LOG: usize = 3 * PAGE_BYTES;
const IO_CQ: usize = 4 * PAGE_BYTES;
const IO_SQ: usize = 64 << 10;
const MEMORY_BYTES: usize = 128 << 10;

/// The pair of queues for reads.
pub(crate) const IO_QUEUE: u16 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    IdentifyController,
    Queues,
    Events,
    Active,
    IdentifyNamespace,
    CreateCq,
    CreateSq,
}

impl Step {
    fn what(self) -> &'static str {
        match self {
            Self::IdentifyController => "identify controller",
            Self::Queues => "set number of queues",
            Self::Events => "set asynchronous events",
            Self::Active => "list active namespaces",
            Self::IdentifyNamespace => "identify namespace",
            Self::CreateCq => "create completion queue",
            Self::CreateSq => "create submission queue",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// `CC.EN` is 0; waits for `CSTS.RDY` to become 0.
    Stopping,
    /// `CC.EN` is 1; waits for `CSTS.RDY` to become 1.
    Starting,
    /// Waits for the answer to a command of the set-up.
    Asking(Step),
    /// Takes reads.
    Ready,
    /// Deletes its queues, the submission queue first, and then is told of the shutdown.
    Closing(Close),
    /// At rest: no DMA.
    Off,
    /// Given up.
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    DeleteSq,
    DeleteCq,
    Shutdown,
}

/// What [`Controller::advance`] has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The controller has stopped, so no command is in flight and no DMA either.
    DmaOver,
    /// It takes reads.
    Ready,
    /// It is given up. Unless `dma_over`, it may still write to the buffers it was given.
    Lost { dma_over: bool },
}

/// A controller, its admin queue and its queue of reads.
pub(crate) struct Controller<D> {
    pub(crate) device: D,
    cap: Cap,
    phase: Phase,
    /// When the phase is given up.
    until: Instant,
    /// `None` when it had to be leaked, since the device may still write it.
    memory: Option<DmaMemory>,
    admin: Admin,
    pub(crate) io: Ring,
    admin_timeout: Duration,
    wanted_nsid: Option<u32>,
    info: Option<ControllerInfo>,
    namespace: Option<NamespaceInfo>,
    /// Why it was reset last, or given up.
    error: Option<NvmeError>,
    /// Stops for good when it has stopped, in good order or because of `error`.
    closing: bool,
    doomed: bool,
    attempts: u32,
    pub(crate) resets: u64,
    pub(crate) events: u64,
}

impl<D: Device> Controller<D> {
    /// Begins to stop whatever the controller does, so as to start it. `depth` reads at a time, or
    /// fewer if it has not room for as many.
    pub(crate) fn begin(
        mut device: D,
        depth: usize,
        admin_timeout: Duration,
        nsid: Option<u32>,
        now: Instant,
    ) -> Result<Self, NvmeError> {
        if device.read32(CSTS) == ALL_ONES {
            return Err(NvmeError::Gone);
        }
        let cap = Cap(device.read64(CAP));
        if !cap.has_nvm() {
            return Err(NvmeError::Unsupported { why: "it has no NVM command set" });
        }
        if cap.page_bytes_min() > PAGE_BYTES as u64 {
            return Err(NvmeError::Unsupported { why: "it has no pages of 4 KiB" });
        }
        let doorbells_end = cap.cq_doorbell(IO_QUEUE) + 4;
        if device.bar_bytes() < doorbells_end.max(DOORBELLS) {
            return Err(NvmeError::Unsupported { why: "its BAR is too small for its doorbells" });
        }
        let entries = (depth.min(NVME_DEPTH_MAX) + 1).min(cap.queue_entries_max());
        if entries < 2 {
            return Err(NvmeError::Unsupported { why: "its queues have one entry" });
        }
        let access = |device: &D, what, source| NvmeError::Access {
            device: device.name().to_owned(),
            what,
            mend: "give it more locked memory (`ulimit -l`) and huge pages",
            source,
        };
        let memory = device
            .queue_memory(MEMORY_BYTES)
            .map_err(|source| access(&device, "getting memory for its queues", source))?;
        let layout = Layout { sq_offset: IO_SQ, cq_offset: IO_CQ, entries: entries as u16 };
        let io = Ring::new(&memory, layout, IO_QUEUE, cap);
        let layout = Layout { sq_offset: ADMIN_SQ, cq_offset: ADMIN_CQ, entries: ADMIN_ENTRIES };
        let admin = Admin::new(Ring::new(&memory, layout, 0, cap));
        let mut controller = Self {
            device,
            cap,
            phase: Phase::Off,
            until: now,
            memory: Some(memory),
            admin,
            io,
            admin_timeout,
            wanted_nsid: nsid,
            info: None,
            namespace: None,
            error: None,
            closing: false,
            doomed: false,
            attempts: 0,
            resets: 0,
            events: 0,
        };
        controller.stop(now);
        Ok(controller)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.phase == Phase::Dead
    }

    /// At rest or given up: nothing will change any more.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Off | Phase::Dead)
    }

    pub(crate) fn info(&self) -> Option<&ControllerInfo> {
        self.info.as_ref()
    }

    pub(crate) fn namespace(&self) -> Option<NamespaceInfo> {
        self.namespace
    }

    pub(crate) fn take_error(&mut self) -> Option<NvmeError> {
        self.error.take()
    }

    /// Whether an abort may be asked for.
    pub(crate) fn can_abort(&self) -> bool {
        let limit = self.info.as_ref().map_or(0, |info| info.aborts_max);
        self.phase == Phase::Ready && self.admin.aborts() < limit
    }

    /// Asks for the abort of a read.
    pub(crate) fn abort(&mut self, cid: u16) {
        self.admin.submit(Tag::Abort, |own| Command::abort(own, IO_QUEUE, cid));
        self.admin.ring.tell(&mut self.device);
    }

    /// Reads go well again.
    pub(crate) fn prove(&mut self) {
        self.attempts = 0;
    }

    /// Whether the device is still there and well; to be asked now and then, since it costs a read
    /// of a register.
    pub(crate) fn check(&mut self, now: Instant) -> Option<Event> {
        if self.phase != Phase::Ready {
            return None;
        }
        match self.device.read32(CSTS) {
            ALL_ONES => self.trouble(NvmeError::Gone, now),
            csts if csts & CSTS_FATAL != 0 => self.trouble(NvmeError::Fatal, now),
            csts if csts & CSTS_READY == 0 => self.trouble(NvmeError::Fatal, now),
            _ => None,
        }
    }

    /// Something is wrong: the controller is reset, or given up if that cannot help.
    pub(crate) fn trouble(&mut self, error: NvmeError, now: Instant) -> Option<Event> {
        let gone = matches!(error, NvmeError::Gone);
        if gone || self.is_over() {
            self.error = Some(error);
            return self.die(false);
        }
        self.attempts += 1;
        let last = error.is_final() || self.attempts > ATTEMPTS_MAX;
        tracing::warn!(
            device = self.device.name(),
            "{error}: {}",
            if last { "given up" } else { "reset" }
        );
        self.doomed |= last;
        self.error = Some(error);
        self.resets += 1;
        self.stop(now);
        None
    }

    /// Begins an orderly end.
    pub(crate) fn close(&mut self, now: Instant) {
        self.closing = true;
        if self.phase == Phase::Ready {
            self.phase = Phase::Closing(Close::DeleteSq);
            self.until = now + self.admin_timeout;
            self.admin.submit(Tag::SetUp, |cid| Command::delete(command::DELETE_SQ, cid, IO_QUEUE));
            self.admin.ring.tell(&mut self.device);
        }
    }

    /// Looks whether what was begun has ended.
    pub(crate) fn advance(&mut self, now: Instant) -> Option<Event> {
        match self.phase {
            Phase::Stopping => self.stopping(now),
            Phase::Starting => self.starting(now),
            Phase::Asking(step) => match self.answer() {
                Err(error) => self.trouble(error, now),
                Ok(Some(answer)) => self.answered(step, answer, now),
                Ok(None) if now >= self.until => {
                    let error = match self.device.read32(CSTS) {
                        ALL_ONES => NvmeError::Gone,
                        _ => NvmeError::NoAnswer { what: step.what() },
                    };
                    self.trouble(error, now)
                }
                Ok(None) => None,
            },
            Phase::Ready => match self.answer() {
                Err(error) => self.trouble(error, now),
                Ok(_) => None,
            },
            Phase::Closing(step) => self.closing(step, now),
            Phase::Off | Phase::Dead => None,
        }
    }

    fn stop(&mut self, now: Instant) {
        let cc = self.device.read32(CC);
        if cc & CC_ENABLE != 0 {
            self.device.write32(CC, cc & !CC_ENABLE);
        }
        self.phase = Phase::Stopping;
        self.until = now + self.cap.ready_timeout();
    }

    fn stopping(&mut self, now: Instant) -> Option<Event> {
        let csts = self.device.read32(CSTS);
        if csts == ALL_ONES {
            return self.trouble(NvmeError::Gone, now);
        }
        if csts & CSTS_READY != 0 {
            if now < self.until {
                return None;
            }
            self.error = Some(self.stuck(false));
            if !self.device.reset_function() {
                return self.die(false);
            }
        }
        self.admin.forget();
        if !self.closing && !self.doomed {
            self.start(now);
            return Some(Event::DmaOver);
        }
        if let Err(error) = self.device.set_bus_master(false) {
            tracing::debug!(device = self.device.name(), "bus mastering stays on: {error}");
        }
        if self.doomed {
            return self.die(true);
        }
        self.phase = Phase::Off;
        Some(Event::DmaOver)
    }

    fn start(&mut self, now: Instant) {
        let Some(memory) = &self.memory else { return };
        let admin_bytes = usize::from(ADMIN_ENTRIES) * command::COMMAND_BYTES;
        let rings = (
            memory.contiguous(ADMIN_SQ, admin_bytes),
            memory.contiguous(ADMIN_CQ, usize::from(ADMIN_ENTRIES) * command::ENTRY_BYTES),
        );
        // Rings that the device cannot reach never answer; the phase's deadline says so.
        let (Some(sq), Some(cq)) = rings else { return };
        self.admin.ring.clear();
        let size = u32::from(ADMIN_ENTRIES - 1);
        if let Err(error) = self.device.set_bus_master(true) {
            tracing::warn!(device = self.device.name(), "bus mastering stays off: {error}");
        }
        self.device.write32(AQA, size | size << 16);
        self.device.write64(ASQ, sq);
        self.device.write64(ACQ, cq);
        self.device.write32(CC, CC_SETTINGS | CC_ENABLE);
        self.phase = Phase::Starting;
        self.until = now + self.cap.ready_timeout();
    }

    fn starting(&mut self, now: Instant) -> Option<Event> {
        match self.device.read32(CSTS) {
            ALL_ONES => self.trouble(NvmeError::Gone, now),
            csts if csts & CSTS_FATAL != 0 => self.trouble(NvmeError::Fatal, now),
            csts if csts & CSTS_READY != 0 => {
                if self.closing {
                    self.stop(now);
                } else {
                    self.ask(Step::IdentifyController, now);
                }
                None
            }
            _ if now >= self.until => {
                let stuck = self.stuck(true);
                self.trouble(stuck, now)
            }
            _ => None,
        }
    }

    fn stuck(&self, ready: bool) -> NvmeError {
        NvmeError::Stuck { ready, waited_ms: self.cap.ready_timeout().as_millis() as u64 }
    }

    /// Asks a question of the set-up.
    fn ask(&mut self, step: Step, now: Instant) {
        self.phase = Phase::Asking(step);
        self.until = now + self.admin_timeout;
        let Some(memory) = &self.memory else { return };
        let entries = self.io.entries();
        let places = (
            memory.iova(ANSWER),
            memory.contiguous(IO_SQ, usize::from(entries) * command::COMMAND_BYTES),
            memory.contiguous(IO_CQ, usize::from(entries) * command::ENTRY_BYTES),
        );
        // As for the admin queue: what cannot be reached is not answered.
        let (Some(page), Some(sq), Some(cq)) = places else { return };
        match step {
            Step::IdentifyController | Step::Active | Step::IdentifyNamespace => {
                memory.clear(ANSWER, PAGE_BYTES);
            }
            Step::CreateCq => self.io.clear(),
            _ => {}
        }
        let nsid = self.wanted_nsid.unwrap_or(0);
        let identify = |cns, nsid| move |cid| Command::identify(cid, cns, nsid, page);
        match step {
            Step::IdentifyController => {
                self.admin.submit(Tag::SetUp, identify(command::CNS_CONTROLLER, 0));
            }
            Step::Active => self.admin.submit(Tag::SetUp, identify(command::CNS_ACTIVE, 0)),
            Step::IdentifyNamespace => {
                self.admin.submit(Tag::SetUp, identify(command::CNS_NAMESPACE, nsid));
            }
            Step::Queues => self
                .admin
                .submit(Tag::SetUp, |cid| Command::set_feature(cid, command::FEATURE_QUEUES, 0)),
            // All critical warnings, and changes of namespaces.
            Step::Events => self.admin.submit(Tag::SetUp, |cid| {
                Command::set_feature(cid, command::FEATURE_ASYNC, 0x1f | 1 << 8)
            }),
            Step::CreateCq => {
                self.admin.submit(Tag::SetUp, |cid| Command::create_cq(cid, IO_QUEUE, entries, cq))
            }
            Step::CreateSq => {
                self.admin.submit(Tag::SetUp, |cid| Command::create_sq(cid, IO_QUEUE, entries, sq))
            }
        }
        self.admin.ring.tell(&mut self.device);
    }

    fn answered(&mut self, step: Step, answer: Answer, now: Instant) -> Option<Event> {
        // A controller may tell of fewer events, or of none.
        if !answer.status.is_success() && step != Step::Events {
            let error = match step {
                Step::IdentifyNamespace => NvmeError::Namespace {
                    nsid: self.wanted_nsid.unwrap_or(0),
                    why: "the controller does not know it; name one that `nvme list` shows",
                },
                _ => NvmeError::Command { what: step.what(), status: answer.status },
            };
            return self.trouble(error, now);
        }
        match self.learn(step) {
            Err(error) => self.trouble(error, now),
            Ok(Some(next)) => {
                self.ask(next, now);
                None
            }
            Ok(None) => {
                self.phase = Phase::Ready;
                self.admin.submit(Tag::Event, Command::async_event);
                self.admin.ring.tell(&mut self.device);
                if self.closing {
                    self.close(now);
                }
                Some(Event::Ready)
            }
        }
    }

    /// Takes in an answer of the set-up; what to ask next.
    fn learn(&mut self, step: Step) -> Result<Option<Step>, NvmeError> {
        let page = self.page();
        Ok(match step {
            Step::IdentifyController => {
                let info =
                    ControllerInfo::parse(&page).map_err(|why| NvmeError::Unsupported { why })?;
                if self.info.as_ref().is_some_and(|known| known.serial != info.serial) {
                    let why = "another one is in its place since it was reset";
                    return Err(NvmeError::Unsupported { why });
                }
                self.info = Some(info);
                Some(Step::Queues)
            }
            Step::Queues => Some(Step::Events),
            Step::Events if self.wanted_nsid.is_some() => Some(Step::IdentifyNamespace),
            Step::Events => Some(Step::Active),
            Step::Active => {
                let first = active(&page).next();
                self.wanted_nsid = Some(
                    first.ok_or(NvmeError::Unsupported { why: "it has no active namespace" })?,
                );
                Some(Step::IdentifyNamespace)
            }
            Step::IdentifyNamespace => {
                self.namespace = Some(self.parse_namespace(&page)?);
                Some(Step::CreateCq)
            }
            Step::CreateCq => Some(Step::CreateSq),
            Step::CreateSq => None,
        })
    }

    fn parse_namespace(&self, page: &Page) -> Result<NamespaceInfo, NvmeError> {
        let nsid = self.wanted_nsid.unwrap_or(0);
        let info =
            NamespaceInfo::parse(nsid, page).map_err(|why| NvmeError::Namespace { nsid, why })?;
        if self.namespace.is_some_and(|known| known != info) {
            return Err(NvmeError::Changed { nsid });
        }
        Ok(info)
    }

    fn page(&self) -> Box<Page> {
        let mut page = Box::new([0; PAGE_BYTES]);
        if let Some(memory) = &self.memory {
            memory.copy_out(ANSWER, page.as_mut_slice());
        }
        page
    }

    /// Takes what came on the admin queue: the answer that the set-up waits for, if it is there.
    fn answer(&mut self) -> Result<Option<Answer>, NvmeError> {
        let mut wanted = None;
        while let Some((tag, answer)) = self.admin.next()? {
            match tag {
                Tag::SetUp => wanted = Some(answer),
                Tag::Abort => {}
                Tag::Event => self.event(answer),
                Tag::Log { log } => self.logged(log, answer),
                Tag::Recheck => {
                    if answer.status.is_success() {
                        let page = self.page();
                        self.parse_namespace(&page)?;
                    }
                }
            }
        }
        self.admin.ring.tell(&mut self.device);
        Ok(wanted)
    }

    /// The device tells of something; its log page must be read before it tells of more.
    fn event(&mut self, answer: Answer) {
        if !answer.status.is_success() {
            return;
        }
        self.events += 1;
        let log = (answer.result >> 16) as u8;
        let (kind, info) = (answer.result & 7, answer.result >> 8 & 0xff);
        tracing::warn!(
            device = self.device.name(),
            kind,
            info,
            log,
            "the NVMe device tells of an event"
        );
        let Some(page) = self.memory.as_ref().and_then(|memory| memory.iova(LOG)) else { return };
        // The list of changed namespaces has a page, the others at most 512 bytes that we look at.
        let bytes = if log == 4 { PAGE_BYTES as u32 } else { 512 };
        self.admin.submit(Tag::Log { log }, |cid| Command::get_log(cid, log, bytes, page));
    }

    fn logged(&mut self, log: u8, answer: Answer) {
        if let (2, true, Some(memory)) = (log, answer.status.is_success(), &self.memory) {
            let mut warning = [0];
            memory.copy_out(LOG, &mut warning);
            if warning[0] != 0 {
                tracing::error!(
                    device = self.device.name(),
                    "the NVMe device's health is critical ({}); replace it soon",
                    critical(warning[0])
                );
            }
        }
        if let (4, Some(page)) = (log, self.memory.as_ref().and_then(|memory| memory.iova(ANSWER)))
        {
            let nsid = self.wanted_nsid.unwrap_or(0);
            self.admin.submit(Tag::Recheck, |cid| {
                Command::identify(cid, command::CNS_NAMESPACE, nsid, page)
            });
        }
        self.admin.submit(Tag::Event, Command::async_event);
    }

    fn closing(&mut self, step: Close, now: Instant) -> Option<Event> {
        let late = now >= self.until;
        if step == Close::Shutdown {
            let csts = self.device.read32(CSTS);
            if csts == ALL_ONES {
                return self.trouble(NvmeError::Gone, now);
            }
            if registers::shutdown_complete(csts) || late {
                self.stop(now);
            }
            return None;
        }
        match self.answer() {
            // Whatever it said, the next step is safe, and stopping it ends all.
            Ok(Some(_)) if step == Close::DeleteSq => {
                self.phase = Phase::Closing(Close::DeleteCq);
                self.until = now + self.admin_timeout;
                self.admin
                    .submit(Tag::SetUp, |cid| Command::delete(command::DELETE_CQ, cid, IO_QUEUE));
                self.admin.ring.tell(&mut self.device);
            }
            Ok(None) if !late => {}
            _ => {
                let cc = self.device.read32(CC);
                self.device.write32(CC, cc & !(3 << 14) | CC_SHUTDOWN);
                let said = self.info.as_ref().map_or(0, |info| info.shutdown_us);
                let wait = Duration::from_micros(said.into()).max(SHUTDOWN_DEFAULT);
                self.phase = Phase::Closing(Close::Shutdown);
                self.until = now + wait;
            }
        }
        None
    }

    fn die(&mut self, dma_over: bool) -> Option<Event> {
        if self.phase == Phase::Dead {
            return None;
        }
        self.phase = Phase::Dead;
        if !dma_over {
            // The device may still write its queues: they are never used again.
            std::mem::forget(self.memory.take());
        }
        tracing::error!(
            device = self.device.name(),
            "the NVMe device is given up: {}",
            self.error.as_ref().map_or_else(String::new, ToString::to_string)
        );
        Some(Event::Lost { dma_over })
    }
}

/// Which warnings a health log raises.
fn critical(bits: u8) -> String {
    let names = ["spare blocks are few", "temperature", "reliability", "read-only", "backup"];
    let raised = names.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1);
    raised.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}
