//! A server's shard and a client's, each in a thread of its own, joined by rings: what runs on one
//! core is measured while another makes it work, without a network.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millstream::buf::{Arena, ArenaConfig, IoBuf, SizeClass};
use millstream::core::{
    Idle, Ipv4Config, Polling, Shard, ShardConfig, ShardMetrics, Stack, TimerSource,
};
use millstream::disk::{QueueKind, Root, open_queue};
use millstream::dpdk_port::{Device, Eal, EalConfig, Port, PortConfig, PortQueue, UnboundQueue};
use millstream::http::{FileServer, ServerConfig};
use millstream::link::{
    Capabilities, HEADER_MAX, Link, LinkStats, RxBurst, TxError, TxFrame, TxOffload,
};
use millstream::timer::{Backup, TriggerStats, TscClock};
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use super::load::{Limits, Schedule};
use super::session::Run;
use super::tally::Tally;
use super::{Plan, stack};
use crate::error::AppError;

const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const PORT: u16 = 80;
/// Frames in the device each way.
const DESCRIPTORS: u16 = 1024;
/// Bytes of the file that is asked for, as in the paper.
const FILE_BYTES: usize = 6 * 1024;
/// Connections that ask for it.
const CONNECTIONS: usize = 64;
/// Datagrams in flight, and their bytes.
const DATAGRAMS: usize = 32;
const DATAGRAM: [u8; 64] = [7; 64];
/// Until a load runs evenly.
const WARM_UP: Duration = Duration::from_millis(300);
/// The client goes on for so long behind the measured stretch.
const RUN_OUT: Duration = Duration::from_millis(200);
/// How often the end of a run is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What the server is given to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Files of 6 KB over 64 connections.
    Http,
    /// Bytes over one connection, as fast as they go.
    Bulk,
    /// Datagrams that are sent back.
    Udp,
    /// Nothing.
    Idle,
    /// A task that computes without end, and gives way when the backup ticks.
    Compute,
}

impl Load {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Http, Self::Bulk, Self::Udp, Self::Idle, Self::Compute];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Bulk => "bulk",
            Self::Udp => "udp",
            Self::Idle => "idle",
            Self::Compute => "compute",
        }
    }
}

/// How a run is made.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// What the server does.
    pub load: Load,
    /// When its shard polls.
    pub polling: Polling,
    /// How its timers fire.
    pub timers: TimerSource,
    /// Whether it records trigger points.
    pub trace: bool,
    /// Between two events that do nothing, besides.
    pub event_interval: Option<Duration>,
    /// How long is measured.
    pub span: Duration,
}

impl Setup {
    /// A load for so long, on a shard as it is by default.
    pub fn new(load: Load, span: Duration) -> Self {
        Self {
            load,
            polling: Polling::Spin,
            timers: TimerSource::Soft,
            trace: false,
            event_interval: None,
            span,
        }
    }
}

/// What was measured, on the server's side.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What trigger points saw, if that was recorded.
    pub triggers: Option<TriggerStats>,
    /// Requests, datagrams or turns of the loop, a second.
    pub rate: f64,
    /// Events that fired, a second.
    pub event_rate: f64,
    /// The part of the time that its thread held a CPU.
    pub cpu: f64,
    /// What its shard did meanwhile.
    pub sleeps: u64,
    /// Ticks of the backup, and those that found the loop held up.
    pub backup: Option<(u64, u64)>,
}

/// Threads that are to run apart: the server's CPU, and the client's.
fn cpus() -> (usize, usize) {
    let allowed = sched_getaffinity(None).unwrap_or_default();
    let mut list = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let first = list.next().unwrap_or(0);
    (first, list.next().unwrap_or(first))
}

fn stay_on(cpu: usize) {
    let mut one = CpuSet::new();
    one.set(cpu);
    // Refused, the scheduler puts the threads where it likes.
    let _ = sched_setaffinity(None, &one);
}

/// The folder with the file, gone at the end.
struct Site(PathBuf);

impl Site {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("millstream-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        let site = Self(path);
        std::fs::write(site.0.join("file"), vec![b'x'; FILE_BYTES])?;
        Ok(site)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts DPDK for runs of [`run`].
///
/// # Errors
/// [`AppError`]
pub fn start() -> Result<&'static Eal, AppError> {
    Eal::init(&EalConfig::default()).map_err(AppError::runtime)
}

/// Makes one run.
///
/// # Errors
/// [`AppError`]
pub fn run(eal: &'static Eal, setup: Setup) -> Result<Outcome, AppError> {
    let site = Site::new().map_err(AppError::runtime)?;
    let ports = PortConfig {
        rx_descriptors: DESCRIPTORS,
        tx_descriptors: DESCRIPTORS,
        ..PortConfig::new(Device::Ring)
    };
    let (mut near, mut far) = Port::ring_pair(eal, &ports).map_err(AppError::runtime)?;
    let queue = |port: &mut Port| {
        port.take_queue(0).ok_or_else(|| AppError::runtime("a ring has no queue; this is an error"))
    };
    let (server_queue, client_queue) = (queue(&mut near)?, queue(&mut far)?);
    let (server_bell, client_bell) = bells().map_err(AppError::runtime)?;
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let (server_cpu, client_cpu) = cpus();
    // Before the threads are pinned, for it ticks beside the server.
    let backup = Backup::start(1000).map_err(AppError::runtime)?;
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            stay_on(client_cpu);
            // What is asked before anybody listens is asked again a second later.
            while !ready.load(Ordering::Acquire) {
                std::thread::sleep(LOOK_EVERY);
            }
            let outcome = client(client_queue, client_bell, setup);
            done.store(true, Ordering::Release);
            outcome
        });
        let server = scope.spawn(|| {
            stay_on(server_cpu);
            let outcome =
                server(server_queue, server_bell, setup, &site.0, backup, [&ready, &done]);
            ready.store(true, Ordering::Release);
            outcome
        });
        let failed = |_| AppError::runtime("a thread of the benchmark failed");
        let answered = client.join().map_err(failed)??;
        let mut outcome = server.join().map_err(failed)??;
        if let Some(rate) = answered {
            outcome.rate = rate;
        }
        Ok(outcome)
    })
}

fn shard(
    queue: UnboundQueue,
    bell: Bell,
    address: Ipv4Addr,
    configure: impl FnOnce(&mut ShardConfig),
) -> Result<Shard<Belled, TscClock>, AppError> {
    let mut link = queue.bind().map_err(AppError::runtime)?;
    let arena = Arena::new(&ArenaConfig::default()).map_err(AppError::runtime)?;
    link.register(&arena).map_err(AppError::runtime)?;
    let mut config = ShardConfig::new(Ipv4Config { address, prefix_len: 24, gateway: None });
    config.tcp.nagle = false;
    configure(&mut config);
    let disk = open_queue(QueueKind::Auto, &arena, config.limits.disk_depth);
    let disk = disk.map_err(AppError::runtime)?;
    Ok(Shard::new(config, Belled { link, bell, sent: false }, TscClock::new(), arena, disk))
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn server(
    queue: UnboundQueue,
    bell: Bell,
    setup: Setup,
    site: &Path,
    backup: Backup,
    [ready, done]: [&AtomicBool; 2],
) -> Result<Outcome, AppError> {
    let mut shard = shard(queue, bell, SERVER, |config| {
        config.polling = setup.polling;
        config.timers = setup.timers;
        config.trace_triggers = setup.trace;
    })?;
    shard.set_backup(backup);
    let stack = shard.stack().clone();
    let served = Rc::new(Cell::new(0_u64));
    let fill = open_queue(QueueKind::Pread, &stack.arena(), FileServer::FILL_DEPTH);
    let root = Root::open(site).map_err(AppError::runtime)?;
    let files =
        FileServer::new(&stack, root, fill.map_err(AppError::runtime)?, ServerConfig::default());
    let spawned = serve(setup.load, &stack, files, &served);
    spawned.map_err(AppError::runtime)?;
    let events = Rc::new(Cell::new(0_u64));
    if let Some(interval) = setup.event_interval {
        let task = periodic(stack.clone(), interval, Rc::clone(&events));
        stack.spawn(task).map_err(AppError::runtime)?;
    }
    ready.store(true, Ordering::Release);
    let measured: Rc<RefCell<Option<Outcome>>> = Rc::default();
    let slot = Rc::clone(&measured);
    // Its end is looked for between its turns: the flag is not the shard's to wait for.
    let future = async move {
        stack.sleep(WARM_UP).await;
        let before = (stack.now(), cpu_seconds(), served.get(), events.get(), stack.metrics());
        // It ticked while the shard was made, too.
        let ticks_before = stack.backup_ticks().unwrap_or_default();
        stack.clear_trigger_stats();
        stack.sleep(setup.span).await;
        let seconds = stack.now().nanos_since(before.0).max(1) as f64 / 1e9;
        let metrics: ShardMetrics = stack.metrics();
        let count = match setup.load {
            Load::Idle | Load::Compute => metrics.turns - before.4.turns,
            _ => served.get() - before.2,
        };
        *slot.borrow_mut() = Some(Outcome {
            triggers: stack.trigger_stats(),
            rate: count as f64 / seconds,
            event_rate: (events.get() - before.3) as f64 / seconds,
            cpu: (cpu_seconds() - before.1) / seconds,
            sleeps: metrics.sleeps - before.4.sleeps,
            backup: stack
                .backup_ticks()
                .map(|(ticks, missed)| (ticks - ticks_before.0, missed - ticks_before.1)),
        });
        stack
    };
    let stack = shard.block_on(Idle::Spin, future);
    while !done.load(Ordering::Acquire) {
        let there = stack.clone();
        shard.block_on(Idle::Spin, async move { there.sleep(LOOK_EVERY).await });
    }
    let outcome = measured.borrow_mut().take();
    outcome.ok_or_else(|| AppError::runtime("the server's thread measured nothing"))
}

/// Puts a load on the server.
fn serve(
    load: Load,
    stack: &Stack,
    files: FileServer,
    served: &Rc<Cell<u64>>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (there, served) = (stack.clone(), Rc::clone(served));
    match load {
        Load::Http => {
            let listener = stack.listen(SocketAddrV4::new(SERVER, PORT), 1024)?;
            stack.spawn(async move { files.serve(listener).await })?;
        }
        Load::Bulk => {
            let listener = stack.listen(SocketAddrV4::new(SERVER, PORT), 16)?;
            let block = stack.arena().alloc(SizeClass::Block).ok_or("the arena has no block")?;
            let block = block.freeze(0..16 * 1024);
            stack.spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await;
                    while stream.send_buf(block.clone()).await.is_ok() {
                        served.set(served.get() + 1);
                    }
                }
            })?;
        }
        Load::Udp => {
            let socket = stack.udp_bind(PORT)?;
            stack.spawn(async move {
                loop {
                    let (data, from) = socket.recv_from().await;
                    if socket.send_to(&data, from).is_ok() {
                        served.set(served.get() + 1);
                    }
                }
            })?;
        }
        Load::Idle => {}
        Load::Compute => {
            stack.spawn(async move {
                loop {
                    while !there.should_yield() {
                        std::hint::spin_loop();
                    }
                    give_way().await;
                }
            })?;
        }
    }
    Ok(())
}

/// Lets the loop turn once.
async fn give_way() {
    let mut gave = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut gave, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

/// An event that does nothing, at even intervals; those that it is too late for are skipped.
async fn periodic(stack: Stack, interval: Duration, fired: Rc<Cell<u64>>) {
    let mut due = stack.now();
    loop {
        due = due.max(stack.now()) + interval;
        stack.sleep_until(due).await;
        fired.set(fired.get() + 1);
    }
}

/// Drives the server; requests a second, if it counts some.
fn client(queue: UnboundQueue, bell: Bell, setup: Setup) -> Result<Option<f64>, AppError> {
    let mut shard = shard(queue, bell, CLIENT, |_| {})?;
    let stack = shard.stack().clone();
    let span = WARM_UP + setup.span + RUN_OUT;
    if setup.load == Load::Http {
        let server = SocketAddr::from((SERVER, PORT));
        let plan = Plan {
            remote: server,
            connections: CONNECTIONS,
            pipeline: 1,
            timeout: Duration::from_secs(2),
        };
        let limits = Limits { duration: span, requests: None };
        let schedule = Schedule::new(limits, None);
        let run = Run::new(schedule, Tally::new(false), &server.to_string(), &["/file".to_owned()]);
        let ran = shard.block_on(Idle::Spin, stack::run(stack, plan, run));
        let ran = ran.map_err(AppError::runtime)?;
        let failed = ran.tally.failed_total();
        if failed > 0 {
            return Err(AppError::runtime(format!("{failed} requests had no good answer")));
        }
        return Ok(Some(ran.tally.latency.len() as f64 / span.as_secs_f64()));
    }
    let task = drive(stack.clone(), setup.load);
    stack.spawn(task).map_err(AppError::runtime)?;
    shard.block_on(Idle::Spin, async move { stack.sleep(span).await });
    Ok(None)
}

async fn drive(stack: Stack, load: Load) {
    let server = SocketAddrV4::new(SERVER, PORT);
    match load {
        Load::Bulk => {
            // The server's thread may not listen yet: until it does it refuses.
            loop {
                if let Ok(stream) = stack.connect(server).await {
                    while let Ok(Some(_)) = stream.read_buf().await {}
                }
                stack.sleep(LOOK_EVERY).await;
            }
        }
        Load::Udp => {
            let Ok(socket) = stack.udp_bind(0) else { return };
            loop {
                for _ in 0..DATAGRAMS {
                    let _ = socket.send_to(&DATAGRAM, server);
                }
                // Each answer brings the next question; when some were lost, all are asked anew.
                let answers = async {
                    loop {
                        socket.recv_from().await;
                        let _ = socket.send_to(&DATAGRAM, server);
                    }
                };
                let _: Option<()> = stack.timeout(Duration::from_millis(50), answers).await;
            }
        }
        Load::Http | Load::Idle | Load::Compute => {}
    }
}

/// What one end knows of the other's sleep: a device's interrupt, without a device. Each arming
/// brings one signal, with the first frame that is sent after it.
struct Bell {
    ours: Arc<Signal>,
    theirs: Arc<Signal>,
}

struct Signal {
    event: OwnedFd,
    armed: AtomicBool,
}

fn bells() -> io::Result<(Bell, Bell)> {
    let signal = || -> io::Result<_> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Arc::new(Signal { event, armed: AtomicBool::new(false) }))
    };
    let (near, far) = (signal()?, signal()?);
    let bell = |ours: &Arc<Signal>, theirs: &Arc<Signal>| Bell {
        ours: Arc::clone(ours),
        theirs: Arc::clone(theirs),
    };
    Ok((bell(&near, &far), bell(&far, &near)))
}

/// A ring that signals.
struct Belled {
    link: PortQueue,
    bell: Bell,
    /// Frames were taken since the last flush.
    sent: bool,
}

impl Link for Belled {
    fn capabilities(&self) -> &Capabilities {
        self.link.capabilities()
    }
    #[inline]
    fn rx_burst(&mut self, frames: &mut RxBurst) {
        self.link.rx_burst(frames);
    }
    #[inline]
    fn tx_room(&mut self) -> usize {
        self.link.tx_room()
    }
    #[inline]
    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
        self.sent = true;
        self.link.tx(frame)
    }
    #[inline]
    fn lend(&mut self) -> Option<&mut [u8; HEADER_MAX]> {
        self.link.lend()
    }
    #[inline]
    fn tx_lent(
        &mut self,
        header_len: usize,
        payload: &[IoBuf],
        offload: TxOffload,
    ) -> Result<(), TxError> {
        self.sent = true;
        self.link.tx_lent(header_len, payload, offload)
    }
    #[inline]
    fn flush(&mut self) {
        self.link.flush();
        let theirs = &self.bell.theirs;
        // The ring's own order does not keep this from looking before the frames are there.
        std::sync::atomic::fence(Ordering::SeqCst);
        if std::mem::take(&mut self.sent)
            && theirs.armed.load(Ordering::SeqCst)
            && theirs.armed.swap(false, Ordering::SeqCst)
        {
            let _ = rustix::io::write(&theirs.event, &1_u64.to_ne_bytes());
        }
    }
    fn rx_buffers(&self) -> Option<(usize, usize)> {
        self.link.rx_buffers()
    }
    fn rx_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.bell.ours.event.as_fd())
    }
    fn arm_rx(&mut self) {
        self.bell.ours.armed.store(true, Ordering::SeqCst);
    }
    fn disarm_rx(&mut self) {
        self.bell.ours.armed.store(false, Ordering::SeqCst);
        let _ = rustix::io::read(&self.bell.ours.event, &mut [0; 8]);
    }
    fn stats(&self) -> LinkStats {
        self.link.stats()
    }
}
