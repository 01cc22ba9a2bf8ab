//! Transfers of regions between two shards, for comparing data semantics. The figures compile this file
//! too, so it knows of the library alone.
//!
//! The link hands headers over and never touches payload, as a card with DMA looks to the processor, and
//! its "card" computes checksums. What is counted is the time that the sending shard spends: its
//! application's call, TCP's output, the acknowledgements, and what the application does to its buffer.

use std::cell::RefCell;
use std::error::Error;
use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::task::{Poll, Waker};

use millstream::buf::{
    Arena, ArenaConfig, BLOCK_BYTES, DataSemantics, Exchange, FRAME_BYTES, HugePages, Region,
    SizeClass, Thresholds, evict,
};
use millstream::core::{Ipv4Config, Shard, ShardConfig, Stack};
use millstream::disk::MemDisk;
use millstream::link::handover::{self, HandoverConfig, HandoverLink};
use millstream::timer::TscClock;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SENDER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const RECEIVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const PORT: u16 = 9;
/// Buffers of the sender: the largest region four times over.
const ARENA: ArenaConfig = ArenaConfig { frames: 2048, blocks: 1024, huge_pages: HugePages::Try };
/// Larger than the largest transfer, so that a transfer is not cut by a window.
const SOCKET_BYTES: u32 = 8 << 20;
/// Regions that the emulated move keeps.
const HIDDEN_MAX: usize = 8;
/// Turns without a result after which a transfer is given up.
const TURNS_MAX: u64 = 10_000_000;

/// One transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// What happens to the buffer.
    pub semantics: DataSemantics,
    /// Bytes.
    pub len: usize,
    /// Neither the data nor the buffers that it could be copied to are in cache.
    pub cold: bool,
    /// The writer changes a byte of each 16 KiB as soon as it may.
    pub touches: bool,
}

/// What a transfer cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Nanoseconds of the sending shard.
    pub ns: f64,
    /// Payload bytes that its processor copied.
    pub copied_bytes: u64,
}

/// What the driver and the sender's task tell each other.
#[derive(Default)]
struct Desk {
    order: Option<(Case, Region)>,
    waker: Option<Waker>,
    /// The region for the next transfer of that kind, and bytes copied on write.
    done: Option<(Region, u64)>,
    failure: Option<String>,
}

/// Two shards with one connection.
pub struct Transfers {
    sender: Shard<HandoverLink, TscClock>,
    receiver: Shard<HandoverLink, TscClock>,
    clock: TscClock,
    desk: Rc<RefCell<Desk>>,
    /// A region that was used last, for the next transfer of the same length.
    region: Option<Region>,
    thresholds: Thresholds,
}

impl Transfers {
    /// Opens the connection and measures the thresholds, which the emulated semantics go by.
    ///
    /// # Errors
    /// What the shards could not be made of.
    pub fn new() -> Result<Self> {
        let (a, b) = handover::pair(HandoverConfig { slots: 4096, ..HandoverConfig::default() })?;
        let shard = |address, link, memory: &ArenaConfig| -> Result<_> {
            let ipv4 = Ipv4Config { address, prefix_len: 24, gateway: None };
            let mut config = ShardConfig::new(ipv4);
            config.tcp.send_buffer_bytes = SOCKET_BYTES;
            config.tcp.recv_buffer_bytes = SOCKET_BYTES;
            // The last segment of a transfer is acknowledged at once, or there would be a pause.
            config.tcp.delayed_ack_us = 1;
            config.tcp.nagle = false;
            let disk = Box::new(MemDisk::null(1)?);
            Ok(Shard::new(config, link, TscClock::new(), Arena::new(memory)?, disk))
        };
        let sender = shard(SENDER, a, &ARENA)?;
        let receiver = shard(RECEIVER, b, &ArenaConfig { blocks: 16, ..ARENA })?;
        let desk = Rc::new(RefCell::new(Desk::default()));
        let arena = sender.stack().arena();
        let exchange = Exchange::new(&arena, HIDDEN_MAX);
        let thresholds = *exchange.thresholds();
        receiver.stack().spawn(sink(receiver.stack().clone()))?;
        sender.stack().spawn(send(sender.stack().clone(), exchange, Rc::clone(&desk)))?;
        Ok(Self { sender, receiver, clock: TscClock::new(), desk, region: None, thresholds })
    }

    /// What was measured at the start.
    pub fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// Makes one transfer.
    ///
    /// # Errors
    /// If the connection ends or nothing happens any more.
    pub fn run(&mut self, case: Case) -> Result<Cost> {
        let arena = self.sender.stack().arena();
        let region = match self.region.take() {
            Some(region) if region.len() == case.len => region,
            _ => fresh(&arena, case.len)?,
        };
        if case.cold {
            region.slices().for_each(|slice| evict(slice));
            evict_next(&arena, case.len);
        } else {
            region.slices().for_each(|slice| {
                std::hint::black_box(slice.iter().step_by(64).fold(0, |sum, byte| sum ^ byte));
            });
        }
        let copied = self.copied();
        let waker = {
            let mut desk = self.desk.borrow_mut();
            desk.order = Some((case, region));
            desk.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        let mut spent = 0;
        for _ in 0..TURNS_MAX {
            let start = self.clock.raw();
            let work = self.sender.turn().work;
            if work > 0 {
                spent += self.clock.raw() - start;
            }
            self.receiver.turn();
            let mut desk = self.desk.borrow_mut();
            if let Some(failure) = desk.failure.take() {
                return Err(failure.into());
            }
            if let Some((region, on_write)) = desk.done.take() {
                drop(desk);
                self.region = Some(region);
                let ns = self.clock.nanos_between(0, spent) as f64;
                return Ok(Cost { ns, copied_bytes: self.copied() - copied + on_write });
            }
        }
        Err("the two ends stopped talking".into())
    }

    fn copied(&self) -> u64 {
        self.sender.stack().metrics().copied_api_bytes + self.sender.link_stats().tx_copied_bytes
    }
}

fn fresh(arena: &Arena, len: usize) -> Result<Region> {
    let mut region = Region::new(arena, len)?;
    let block = vec![0x5a; BLOCK_BYTES];
    for at in (0..len).step_by(BLOCK_BYTES) {
        region.write(at, &block[..BLOCK_BYTES.min(len - at)])?;
    }
    Ok(region)
}

/// Drops from cache the buffers that are handed out next: those that came back last.
fn evict_next(arena: &Arena, len: usize) {
    for (class, bytes) in [(SizeClass::Block, BLOCK_BYTES), (SizeClass::Frame, FRAME_BYTES)] {
        let count = len.div_ceil(bytes).min(256) + 1;
        let mut taken: Vec<_> = std::iter::from_fn(|| arena.alloc(class)).take(count).collect();
        taken.iter().for_each(|buf| evict(buf));
        // The last taken goes back first, so that the order stays.
        while taken.pop().is_some() {}
    }
}

async fn sink(stack: Stack) {
    let Ok(listener) = stack.listen(SocketAddrV4::new(RECEIVER, PORT), 1) else { return };
    let (stream, _) = listener.accept().await;
    while let Ok(Some(_)) = stream.read_buf().await {}
}

/// The application: takes orders from the desk.
async fn send(stack: Stack, exchange: Exchange, desk: Rc<RefCell<Desk>>) {
    if let Err(error) = serve(&stack, &exchange, &desk).await {
        desk.borrow_mut().failure = Some(error.to_string());
    }
}

async fn serve(stack: &Stack, exchange: &Exchange, desk: &Rc<RefCell<Desk>>) -> Result<()> {
    let stream = stack.connect(SocketAddrV4::new(RECEIVER, PORT)).await?;
    loop {
        let (case, region) = poll_fn(|cx| {
            let mut desk = desk.borrow_mut();
            match desk.order.take() {
                Some(order) => Poll::Ready(order),
                None => {
                    desk.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        let Case { semantics, len, touches, .. } = case;
        let mut on_write = 0;
        let (mut after, sent) = stream.send_region_as(exchange, region, 0..len, semantics).await?;
        if let millstream::buf::After::Mine(region) = &mut after
            && touches
        {
            on_write += touch(region)?;
        }
        stream.released(sent).await?;
        let next = match after {
            millstream::buf::After::Mine(region) => region,
            millstream::buf::After::Lent(lent) => {
                let mut region = lent.reclaim().map_err(|_| "a device still holds a region")?;
                if touches {
                    on_write += touch(&mut region)?;
                }
                region
            }
            other => {
                if let millstream::buf::After::Readable(view) = other {
                    let mut byte = [0];
                    if touches {
                        view.peek(0, &mut byte);
                    }
                    view.release(semantics, exchange.cache());
                }
                // What the system allocates for the next transfer.
                let mut region = exchange.cache().allocate(len, semantics)?;
                if touches {
                    on_write += touch(&mut region)?;
                }
                region
            }
        };
        desk.borrow_mut().done = Some((next, on_write));
    }
}

/// Changes a byte of each block; returns what had to be copied for it.
fn touch(region: &mut Region) -> Result<u64> {
    let mut copied = 0;
    for at in (0..region.len()).step_by(BLOCK_BYTES) {
        copied += region.write(at, &[0xa5])? as u64;
    }
    Ok(copied)
}
