//! When the loop asks its link, when it sleeps, and what its trigger points tell.

mod common;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use common::{CLIENT, SERVER, World, arena, config, server_at, small_limits};
use millstream_core::{Idle, Limits, Polling, Quota, Shard, ShardConfig, Stack, TimerSource};
use millstream_disk::{DiskQueue, MemDisk};
use millstream_link::mem::{MemConfig, MemLink, pair};
use millstream_link::{Capabilities, Link, LinkStats, RxBurst, TxError, TxFrame};
use millstream_timer::{Backup, Instant, TriggerSource, TscClock};
use rustix::event::{EventfdFlags, eventfd};

fn disk() -> Box<dyn DiskQueue> {
    Box::new(MemDisk::copying(16).unwrap())
}

fn world(server: impl Fn(ShardConfig) -> ShardConfig) -> World {
    World::configured(
        64,
        |_| disk(),
        |address| {
            let config = config(address, small_limits());
            if address == SERVER { server(config) } else { config }
        },
    )
}

/// Serves echoes of single bytes at port 7.
fn echo(stack: &Stack) {
    let listener = stack.listen(server_at(7), 16).unwrap();
    let there = stack.clone();
    let accept = async move {
        loop {
            let (stream, _) = listener.accept().await;
            let serve = async move {
                stream.set_nodelay(true);
                while let Ok(Some(bytes)) = stream.read_buf().await {
                    stream.send_buf(bytes).await.unwrap();
                }
            };
            there.spawn(serve).unwrap();
        }
    };
    stack.spawn(accept).unwrap();
}

/// Round trips of a byte over one connection; returns the longest.
async fn ping(stack: Stack, count: usize) -> Duration {
    let stream = stack.connect(server_at(7)).await.unwrap();
    let mut longest = Duration::ZERO;
    for _ in 0..count {
        let start = stack.now();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_buf().await.unwrap().unwrap().len(), 1);
        longest = longest.max(stack.now() - start);
    }
    longest
}

#[test]
fn a_quota_holds_no_frame_up_for_longer_than_its_bound() {
    for quota in [Quota::Frames(1), Quota::Frames(32), Quota::Auto] {
        let polling = Polling::Quota(quota);
        let mut world = world(|config| ShardConfig { polling, ..config });
        echo(world.server.stack());
        let stack = world.client.stack().clone();
        let longest = world.client_runs(ping(stack, 500));
        assert!(longest <= Duration::from_micros(101), "{longest:?} with {quota:?}");
        assert_eq!(world.server.stack().rx_metrics().unaccounted(), 0);
    }
}

#[test]
fn with_interrupts_each_frame_has_a_turn_of_its_own() {
    let mut world = world(|config| ShardConfig { polling: Polling::Interrupt, ..config });
    echo(world.server.stack());
    let stack = world.client.stack().clone();
    world.client_runs(ping(stack.clone(), 3));
    for _ in 0..6 {
        let task = ping(stack.clone(), 1);
        stack.spawn(task).unwrap();
    }
    for _ in 0..8 {
        world.client.turn();
    }
    let frames: Vec<_> = (0..6).map(|_| world.server.turn().frames).collect();
    assert_eq!(frames, [1; 6]);
}

#[test]
fn trigger_points_are_told_by_source() {
    let mut world = world(|config| ShardConfig { trace_triggers: true, ..config });
    let server = world.server.stack().clone();
    assert!(world.client.stack().trigger_stats().is_none(), "not asked for");
    echo(&server);
    let stack = world.client.stack().clone();
    world.client_runs(ping(stack.clone(), 100));
    let sleeper = server.clone();
    server.spawn(async move { sleeper.sleep(Duration::from_micros(700)).await }).unwrap();
    world.client_runs(async move { stack.sleep(Duration::from_millis(1)).await });
    let stats = server.trigger_stats().unwrap();
    for (source, least) in [
        (TriggerSource::RxBurst, 100),
        (TriggerSource::Channel, 100),
        (TriggerSource::Task, 100),
        (TriggerSource::Tx, 100),
        (TriggerSource::Idle, 1),
    ] {
        assert!(stats.count(source) >= least, "{}: {}", source.name(), stats.count(source));
    }
    assert_eq!(stats.count(TriggerSource::Disk), 0);
    assert_eq!(stats.intervals_ns().len(), stats.total() - 1);
    // In virtual time the loop is never late by more than the wheel's tick.
    assert!(!stats.late_ns().is_empty());
    assert_eq!(server.metrics().timers_fired, stats.late_ns().len());
    assert_eq!(stats.late_ns().max(), 0);
    server.clear_trigger_stats();
    assert_eq!(server.trigger_stats().unwrap().total(), 0);
}

/// A crowd that falls due at one instant is fired in parts, and packets flow between them.
#[test]
fn packets_flow_while_a_crowd_of_timers_fires() {
    const CROWD: usize = 50_000;
    let limits = Limits { tasks: CROWD + 64, sleepers: CROWD + 64, ..small_limits() };
    let configured = |address| config(address, limits);
    let mut world = World::configured(64, |_| disk(), configured);
    echo(world.server.stack());
    let server = world.server.stack().clone();
    let awake = Rc::new(Cell::new(0));
    let at = Instant::from_micros(2_000_000);
    for _ in 0..CROWD {
        let (stack, awake) = (server.clone(), Rc::clone(&awake));
        let task = async move {
            stack.sleep_until(at).await;
            awake.set(awake.get() + 1);
        };
        server.spawn(task).unwrap();
    }
    let stack = world.client.stack().clone();
    let trips = Rc::new(Cell::new(0));
    let counted = Rc::clone(&trips);
    let client = stack.clone();
    let task = async move {
        let stream = client.connect(server_at(7)).await.unwrap();
        client.sleep_until(at).await;
        loop {
            stream.write_all(b"x").await.unwrap();
            stream.read_buf().await.unwrap().unwrap();
            counted.set(counted.get() + 1);
        }
    };
    stack.spawn(task).unwrap();
    while awake.get() == 0 {
        let work = world.client.turn().work + world.server.turn().work;
        if work == 0 {
            let next = world.client.next_deadline().min(world.server.next_deadline());
            world.clock.advance_to(next.min(at));
        }
    }
    // The clock stands still from here on.
    let mut turns = 0;
    while awake.get() < CROWD {
        let before = server.metrics().timers_fired;
        world.server.turn();
        world.client.turn();
        assert!(server.metrics().timers_fired - before <= 256);
        turns += 1;
    }
    assert!(turns >= CROWD / 256 - 1, "{turns}");
    assert!(trips.get() + 4 >= turns, "{} round trips in {turns} turns", trips.get());
}

/// A link on which a frame comes each time that somebody rings.
struct Rung {
    link: MemLink,
    peer: RefCell<MemLink>,
    bell: Option<Arc<OwnedFd>>,
    armed: Rc<Cell<usize>>,
}

impl Link for Rung {
    fn capabilities(&self) -> &Capabilities {
        self.link.capabilities()
    }
    fn rx_burst(&mut self, frames: &mut RxBurst) {
        let bell = self.bell.as_ref().unwrap();
        if rustix::io::read(bell, &mut [0; 8]).is_ok() {
            // A frame of a type that nobody knows.
            let frame = TxFrame { header: &[0xff; 60], payload: &[], offload: Default::default() };
            self.peer.borrow_mut().tx(&frame).unwrap();
        }
        self.link.rx_burst(frames)
    }
    fn tx_room(&mut self) -> usize {
        self.link.tx_room()
    }
    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
        self.link.tx(frame)
    }
    fn flush(&mut self) {}
    fn rx_event(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_deref().map(AsFd::as_fd)
    }
    fn arm_rx(&mut self) {
        self.armed.set(self.armed.get() + 1);
    }
    fn disarm_rx(&mut self) {
        self.armed.set(self.armed.get() - 1);
    }
    fn stats(&self) -> LinkStats {
        self.link.stats()
    }
}

#[test]
fn a_frame_ends_the_sleep_of_an_idle_loop() {
    let bell = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
    let (link, peer) = pair(MemConfig::default()).unwrap();
    let armed = Rc::new(Cell::new(0));
    let link = Rung {
        link,
        peer: RefCell::new(peer),
        bell: Some(Arc::clone(&bell)),
        armed: Rc::clone(&armed),
    };
    let config = ShardConfig { trace_triggers: true, ..config(CLIENT, small_limits()) };
    let mut shard = Shard::new(config, link, TscClock::new(), arena(64, 16), disk());
    let done = Arc::new(AtomicBool::new(false));
    let rings = {
        let done = Arc::clone(&done);
        std::thread::spawn(move || {
            // However long the loop takes to fall asleep, a ring finds it so in the end.
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(3));
                let _ = rustix::io::write(&bell, &1_u64.to_ne_bytes());
            }
        })
    };
    let stack = shard.stack().clone();
    shard.block_on(Idle::Adaptive, async move {
        while stack.metrics().rx_wakes < 5 {
            stack.sleep(Duration::from_millis(20)).await;
        }
    });
    done.store(true, Ordering::Relaxed);
    rings.join().unwrap();
    let stack = shard.stack();
    assert!(stack.rx_metrics().drop_ethertype >= 5);
    assert!(stack.metrics().sleeps >= 5);
    assert!(armed.get() <= 1, "each asking is taken back");
    // It slept, so its turns are few: a spinning loop takes 20,000 in the time.
    assert_eq!(stack.rx_metrics().unaccounted(), 0);
}

#[test]
fn a_loop_without_interrupts_naps_and_wakes_for_timers_and_threads() {
    let (link, _peer) = pair(MemConfig::default()).unwrap();
    let config = config(CLIENT, small_limits());
    let mut shard = Shard::new(config, link, TscClock::new(), arena(64, 16), disk());
    let stack = shard.stack().clone();
    let mut started = false;
    let (flag, theirs) = {
        let flag = Arc::new(AtomicBool::new(false));
        (Arc::clone(&flag), flag)
    };
    shard.block_on(Idle::Adaptive, async move {
        stack.sleep(Duration::from_millis(5)).await;
        poll_fn(move |cx| {
            if !std::mem::replace(&mut started, true) {
                let (waker, flag) = (cx.waker().clone(), Arc::clone(&theirs));
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(5));
                    flag.store(true, Ordering::Release);
                    waker.wake();
                });
            }
            if flag.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    });
    assert!(shard.stack().metrics().sleeps > 0);
}

#[test]
fn timers_fire_by_signals_too() {
    let (link, _peer) = pair(MemConfig::default()).unwrap();
    let config = ShardConfig { timers: TimerSource::Signal, ..config(CLIENT, small_limits()) };
    let mut shard = Shard::new(config, link, TscClock::new(), arena(64, 16), disk());
    for idle in [Idle::Spin, Idle::Adaptive] {
        let stack = shard.stack().clone();
        shard.block_on(idle, async move {
            for micros in [50, 0, 1_000, 20, 3_000] {
                stack.sleep(Duration::from_micros(micros)).await;
            }
        });
    }
    assert!(shard.stack().metrics().timers_fired >= 8);
}

#[test]
fn a_task_that_computes_for_long_is_told_to_give_way() {
    let (link, _peer) = pair(MemConfig::default()).unwrap();
    let config = config(CLIENT, small_limits());
    let mut shard = Shard::new(config, link, TscClock::new(), arena(64, 16), disk());
    assert_eq!(shard.stack().backup_ticks(), None);
    shard.set_backup(Backup::start(1000).unwrap());
    let stack = shard.stack().clone();
    shard.block_on(Idle::Spin, async move {
        for _ in 0..3 {
            while !stack.should_yield() {
                std::hint::spin_loop();
            }
            let mut yielded = false;
            poll_fn(|cx| {
                cx.waker().wake_by_ref();
                if std::mem::replace(&mut yielded, true) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
        // Who does not look holds the loop up, which is counted.
        let (_, before) = stack.backup_ticks().unwrap();
        while stack.backup_ticks().unwrap().1 < before + 3 {
            std::hint::spin_loop();
        }
    });
}
