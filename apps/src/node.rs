//! From a profile to a stack that runs.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;

use millstream::buf::{Arena, PageKind};
use millstream::core::{Idle, Polling, Shard, Stack};
use millstream::disk::{DiskQueue, QueueKind, open_queue};
use millstream::dpdk_port::{Eal, Port, PortQueue};
use millstream::http::FileServer;
use millstream::link::{Link, LinkStats};
use millstream::timer::{Backup, TscClock};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::config::Config;
use crate::error::AppError;
use crate::memory;

/// One shard over one DPDK port.
pub struct Node {
    // Dropped first: its queue goes before its port.
    shard: Shard<PortQueue, TscClock>,
    idle: Idle,
    facts: Facts,
    /// Where the process might run before DPDK pinned the shard.
    affinity: CpuSet,
    _port: Port,
}

/// What it stands on, for the line that it prints.
#[derive(Clone, Debug)]
pub struct Facts {
    driver: &'static str,
    device: String,
    pages: PageKind,
    disk: &'static str,
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { driver, device, pages, disk } = self;
        write!(f, "{driver}")?;
        if !device.is_empty() {
            write!(f, " ({device})")?;
        }
        let pages = match pages {
            PageKind::Huge => "2 MiB pages",
            PageKind::Base => "4 KiB pages (no huge pages)",
        };
        write!(f, " | {pages} | {disk} | 1 shard")
    }
}

/// Opens the node that a profile describes.
///
/// # Errors
/// [`AppError`]
pub fn open(profile: &Path) -> Result<Node, AppError> {
    Node::open(&Config::load(profile, &[])?)
}

impl Node {
    /// Starts DPDK, opens the port, maps the arena, opens the disk queue.
    ///
    /// # Errors
    /// [`AppError`] with what is missing.
    pub fn open(config: &Config) -> Result<Self, AppError> {
        let device = config.device()?;
        memory::check(config)?;
        let affinity = affinity().map_err(AppError::runtime)?;
        if let Some(cpu) = config.shard.cpu
            && (cpu >= CpuSet::MAX_CPU || !affinity.is_set(cpu))
        {
            let cpus: Vec<_> = (0..CpuSet::MAX_CPU).filter(|&cpu| affinity.is_set(cpu)).collect();
            return Err(AppError::runtime(format!(
                "shard.cpu is {cpu}, but this process may run on {cpus:?} only: choose one of these"
            )));
        }
        let eal = Eal::init(&config.eal()).map_err(AppError::runtime)?;
        let mut port = Port::open(eal, &config.port(device)).map_err(AppError::runtime)?;
        let Some(queue) = port.take_queue(0) else {
            return Err(AppError::runtime("the port has no queue; choose another driver"));
        };
        let mut link = queue.bind().map_err(AppError::runtime)?;
        let arena = Arena::new(&config.arena()).map_err(AppError::runtime)?;
        link.register(&arena).map_err(AppError::runtime)?;
        let disk =
            unpinned(&affinity, || open_queue(config.disk.queue.into(), &arena, config.disk.depth))
                .map_err(AppError::runtime)?;
        let facts = Facts {
            driver: link.capabilities().driver,
            device: config.device_name(),
            pages: arena.pages(),
            disk: disk.name(),
        };
        if config.shard.polling() == Polling::Interrupt && link.rx_event().is_none() {
            return Err(AppError::usage(format!(
                "shard.polling is \"interrupt\", but {} cannot interrupt: choose a tap or a network \
                 card, or shard.polling = \"spin\"",
                link.capabilities().driver
            )));
        }
        let mut shard = Shard::new(config.shard_config(), link, TscClock::new(), arena, disk);
        if config.shard.backup_hz > 0 {
            // Not on the CPU that the shard has for itself: it is to tick when that one is busy.
            let backup = unpinned(&affinity, || Backup::start(config.shard.backup_hz));
            shard.set_backup(backup.map_err(AppError::runtime)?);
        }
        Ok(Self { shard, idle: config.shard.idle.into(), facts, affinity, _port: port })
    }

    /// The application's handle.
    pub fn stack(&self) -> &Stack {
        self.shard.stack()
    }

    /// What it stands on.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Makes something that starts threads of its own: they may run where the process might before
    /// DPDK pinned the shard.
    pub fn unpinned<T>(&self, make: impl FnOnce() -> T) -> T {
        unpinned(&self.affinity, make)
    }

    /// A queue for the small reads that fill a file server's cache. Worker threads: they do not
    /// compete with the transfers for the ring's places.
    ///
    /// # Errors
    /// [`AppError`] if no thread can be started.
    pub fn fill_queue(&self) -> Result<Box<dyn DiskQueue>, AppError> {
        unpinned(&self.affinity, || {
            open_queue(QueueKind::Pread, &self.stack().arena(), FileServer::FILL_DEPTH)
        })
        .map_err(AppError::runtime)
    }

    /// Turns the loop until the future that `start` makes has ended.
    pub fn block_on<F>(self, start: impl FnOnce(Stack) -> F) -> F::Output
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.run(start).0
    }

    /// As [`Self::block_on`], and gives the link's counters too.
    pub fn run<F>(mut self, start: impl FnOnce(Stack) -> F) -> (F::Output, LinkStats)
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let future = start(self.shard.stack().clone());
        let output = self.shard.block_on(self.idle, future);
        (output, self.shard.link_stats())
    }
}

/// Where this thread may run.
fn affinity() -> io::Result<CpuSet> {
    Ok(sched_getaffinity(None)?)
}

/// Makes a disk queue with the affinity that the process was given. Worker threads and those of
/// io_uring inherit their maker's: they must not wait for the CPU on which a pinned shard polls.
fn unpinned<T>(given: &CpuSet, make: impl FnOnce() -> T) -> T {
    let Ok(pinned) = affinity() else { return make() };
    // Both sets are the kernel's own words; were they refused, only speed would suffer.
    let _ = sched_setaffinity(None, given);
    let made = make();
    let _ = sched_setaffinity(None, &pinned);
    made
}
