//! A disk under the virtual clock.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;

use millstream_disk::{
    Completion, Completions, DiskError, DiskQueue, DiskSetupError, DiskStats, MemDisk, Read,
};
use millstream_timer::{Clock, Instant, VirtualClock};

use crate::drive::Node;
use crate::rng::Rng;

/// The error number of an injected fault: `EIO`.
const EIO: i32 = 5;

/// What a simulated disk is like. Probabilities are from 0 to 1 a read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiskConfig {
    /// Reads that may be in flight.
    pub depth: usize,
    /// Reads that the device serves at a time; the others wait. One disk arm has 1, flash has many.
    pub channels: usize,
    /// From the beginning of service to the first byte.
    pub latency_nanos: u64,
    /// Added to the latency: anything below this. With several channels it makes reads overtake
    /// each other.
    pub jitter_nanos: u64,
    /// Bits a second that one channel transfers; 0 is without limit.
    pub bandwidth_bps: u64,
    /// Probability that a read fails with `EIO`.
    pub error: f64,
    /// Probability that a read takes [`Self::stall_nanos`] more.
    pub stall: f64,
    /// How long a stall is.
    pub stall_nanos: u64,
    /// From which all randomness comes.
    pub seed: u64,
}

impl Default for DiskConfig {
    /// About a data-centre NVMe drive: 128 deep, 16 channels, 70 to 90 us, 16 x 3.2 Gb/s; no fault.
    fn default() -> Self {
        Self {
            depth: 128,
            channels: 16,
            latency_nanos: 70_000,
            jitter_nanos: 20_000,
            bandwidth_bps: 3_200_000_000,
            error: 0.0,
            stall: 0.0,
            stall_nanos: 10_000_000,
            seed: 1,
        }
    }
}

/// A simulated disk. It reads files in memory ([`millstream_disk::File::in_memory`]), and a read
/// takes its time.
///
/// Its moving of bytes stands for DMA: it is not counted as copying. Clones are handles on the same
/// queue, so a test keeps one for breaking what it gave to a shard. As a [`Node`] a handle does no
/// work, but has deadlines: the moments at which reads complete.
#[derive(Clone)]
pub struct SimDisk(Rc<RefCell<Inner>>);

struct Inner {
    clock: VirtualClock,
    config: DiskConfig,
    /// Checks reads and moves their bytes.
    mover: MemDisk,
    /// Submitted, not yet kicked.
    submitted: Vec<Completion>,
    /// When each channel is done with what it was given.
    channels: Vec<Instant>,
    in_service: BinaryHeap<Pending>,
    next_seq: u64,
    fail_next: VecDeque<DiskError>,
    gone: bool,
    service_dice: Rng,
    fault_dice: Rng,
    stats: DiskStats,
}

struct Pending {
    at: Instant,
    seq: u64,
    completion: Completion,
}

impl Ord for Pending {
    /// Reversed: the heap's greatest is the next to complete.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pending {}

impl SimDisk {
    /// A disk under `clock`.
    ///
    /// # Errors
    /// [`DiskSetupError::Depth`].
    pub fn new(clock: &VirtualClock, config: &DiskConfig) -> Result<Self, DiskSetupError> {
        let mut rng = Rng::new(config.seed);
        Ok(Self(Rc::new(RefCell::new(Inner {
            clock: clock.clone(),
            config: *config,
            mover: MemDisk::copying(config.depth)?,
            submitted: Vec::with_capacity(config.depth),
            channels: vec![Instant::ZERO; config.channels.max(1)],
            in_service: BinaryHeap::with_capacity(config.depth),
            next_seq: 0,
            fail_next: VecDeque::new(),
            gone: false,
            service_dice: rng.fork(),
            fault_dice: rng.fork(),
            stats: DiskStats::default(),
        }))))
    }

    /// Lets the next read that is submitted fail, after its usual time. Several calls are for
    /// several reads.
    pub fn fail_next(&self, error: DiskError) {
        self.0.borrow_mut().fail_next.push_back(error);
    }

    /// Takes the device away, or brings it back. While it is gone all reads, those in flight too,
    /// complete at once with [`DiskError::DeviceGone`].
    pub fn set_gone(&self, gone: bool) {
        let mut inner = self.0.borrow_mut();
        inner.gone = gone;
        if gone {
            let now = inner.clock.now();
            let mut pending = std::mem::take(&mut inner.in_service).into_vec();
            for read in pending.iter_mut().filter(|read| read.at > now) {
                read.at = now;
                read.completion.result = Err(DiskError::DeviceGone);
            }
            inner.in_service = pending.into();
            inner.channels.fill(now);
        }
    }

    /// When the next read completes (a moment in the past if one has and was not taken).
    pub fn next_event(&self) -> Instant {
        self.0.borrow().in_service.peek().map_or(Instant::FAR_FUTURE, |next| next.at)
    }
}

impl Inner {
    fn in_flight(&self) -> usize {
        self.submitted.len() + self.in_service.len()
    }

    /// Begins the service of what was submitted.
    fn start(&mut self) {
        let now = self.clock.now();
        let mut submitted = std::mem::take(&mut self.submitted);
        for completion in submitted.drain(..) {
            let at = self.serve(now, &completion);
            self.in_service.push(Pending { at, seq: self.next_seq, completion });
            self.next_seq += 1;
        }
        self.submitted = submitted;
    }

    /// When a read that enters the device now completes.
    fn serve(&mut self, now: Instant, completion: &Completion) -> Instant {
        let jitter = self.service_dice.below(self.config.jitter_nanos);
        let stalls = self.fault_dice.chance(self.config.stall);
        let free = self.channels.iter_mut().min();
        let Some(free) = free.filter(|_| !self.gone) else { return now };
        let bits = 8 * completion.result.unwrap_or(0) as u128;
        let transfer_nanos = match self.config.bandwidth_bps {
            0 => 0,
            bandwidth_bps => (bits * 1_000_000_000).div_ceil(u128::from(bandwidth_bps)),
        };
        *free = (*free)
            .max(now)
            .plus_nanos(self.config.latency_nanos)
            .plus_nanos(jitter)
            .plus_nanos(u64::try_from(transfer_nanos).unwrap_or(u64::MAX))
            .plus_nanos(if stalls { self.config.stall_nanos } else { 0 });
        *free
    }
}

impl DiskQueue for SimDisk {
    fn submit(&mut self, read: Read) -> Result<(), Read> {
        let mut inner = self.0.borrow_mut();
        if inner.in_flight() >= inner.config.depth {
            return Err(read);
        }
        inner.mover.submit(read)?;
        let mut moved = Completions::new();
        inner.mover.poll(&mut moved);
        for mut completion in moved {
            let bad_luck = {
                let error = inner.config.error;
                inner.fault_dice.chance(error)
            };
            let injected = if inner.gone {
                Some(DiskError::DeviceGone)
            } else {
                inner.fail_next.pop_front().or(bad_luck.then_some(DiskError::Io { errno: EIO }))
            };
            if let (Ok(_), Some(error)) = (completion.result, injected) {
                completion.result = Err(error);
            }
            inner.submitted.push(completion);
        }
        Ok(())
    }

    fn poll(&mut self, out: &mut Completions) {
        let mut inner = self.0.borrow_mut();
        inner.start();
        let now = inner.clock.now();
        while !out.is_full() && inner.in_service.peek().is_some_and(|next| next.at <= now) {
            let Some(Pending { completion, .. }) = inner.in_service.pop() else { break };
            match completion.result {
                Ok(len) => {
                    inner.stats.reads += 1;
                    inner.stats.bytes += len as u64;
                }
                Err(_) => inner.stats.errors += 1,
            }
            out.push(completion);
        }
    }

    fn in_flight(&self) -> usize {
        self.0.borrow().in_flight()
    }

    fn kick(&mut self) {
        self.0.borrow_mut().start();
    }

    fn name(&self) -> &'static str {
        "sim"
    }

    fn stats(&self) -> DiskStats {
        let inner = self.0.borrow();
        DiskStats { in_flight: inner.in_flight(), ..inner.stats }
    }
}

impl Node for SimDisk {
    fn turn(&mut self) -> bool {
        false
    }

    /// The next completion after now; what has completed is for the disk's user to poll.
    fn next_deadline(&self) -> Instant {
        let inner = self.0.borrow();
        let now = inner.clock.now();
        let later = inner.in_service.iter().map(|read| read.at).filter(|at| *at > now);
        later.min().unwrap_or(Instant::FAR_FUTURE)
    }
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimDisk").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_buf::{Arena, ArenaConfig, HugePages, SizeClass};
    use millstream_disk::File;
    use proptest::prelude::*;

    struct World {
        clock: VirtualClock,
        arena: Arena,
        disk: SimDisk,
        file: File,
        /// Moments, tokens and results.
        done: Vec<(u64, u64, Result<usize, DiskError>)>,
    }

    fn byte_at(offset: u64) -> u8 {
        (offset.wrapping_mul(0x9e37_79b9) >> 13) as u8
    }

    impl World {
        fn new(config: &DiskConfig) -> Self {
            let clock = VirtualClock::new();
            let arena = ArenaConfig { frames: 200, blocks: 0, huge_pages: HugePages::Never };
            Self {
                disk: SimDisk::new(&clock, config).unwrap(),
                clock,
                arena: Arena::new(&arena).unwrap(),
                file: File::in_memory((0..10_000).map(byte_at).collect::<Vec<_>>()),
                done: Vec::new(),
            }
        }

        /// Reads 1000 bytes from sector `token` on.
        fn submit(&mut self, token: u64) -> bool {
            let buf = self.arena.alloc(SizeClass::Frame).unwrap();
            let (file, offset) = (self.file.clone(), 512 * token);
            self.disk.submit(Read { file, offset, len: 1000, buf, token }).is_ok()
        }

        fn poll(&mut self) {
            let mut out = Completions::new();
            self.disk.poll(&mut out);
            for completion in out {
                if let Ok(len) = completion.result {
                    let right = completion.buf[..len]
                        .iter()
                        .zip(512 * completion.token..)
                        .all(|(byte, offset)| *byte == byte_at(offset));
                    assert!(right, "the bytes of read {}", completion.token);
                }
                let nanos = self.clock.now().as_nanos();
                self.done.push((nanos, completion.token, completion.result));
            }
        }

        fn run(&mut self) {
            self.disk.kick();
            self.poll();
            while self.disk.next_deadline() < Instant::FAR_FUTURE {
                self.clock.advance_to(self.disk.next_deadline());
                self.poll();
            }
            assert_eq!(self.arena.free(SizeClass::Frame), 200, "all buffers are back");
        }

        fn tokens(&self) -> Vec<u64> {
            self.done.iter().map(|(_, token, _)| *token).collect()
        }
    }

    const PLAIN: DiskConfig = DiskConfig {
        depth: 8,
        channels: 2,
        latency_nanos: 50_000,
        jitter_nanos: 0,
        bandwidth_bps: 1_000_000_000,
        error: 0.0,
        stall: 0.0,
        stall_nanos: 0,
        seed: 1,
    };

    #[test]
    fn reads_take_their_time_on_their_channels() {
        let mut world = World::new(&PLAIN);
        (0..3).for_each(|token| assert!(world.submit(token)));
        world.clock.advance_nanos(100);
        assert_eq!(world.disk.next_event(), Instant::FAR_FUTURE, "nothing begins before the kick");
        world.run();
        // 1000 bytes at 1 Gb/s are 8 us; the third waits for a channel.
        let expected = [(58_100, 0), (58_100, 1), (116_100, 2)];
        assert_eq!(world.done, expected.map(|(at, token)| (at, token, Ok(1000))));
        assert_eq!(world.disk.stats().reads, 3);
        assert_eq!(world.disk.stats().copied_bytes, 0);
    }

    #[test]
    fn the_end_of_the_file_and_bad_reads_are_as_on_any_disk() {
        let mut world = World::new(&PLAIN);
        assert!(world.submit(19) && world.submit(30));
        let buf = world.arena.alloc(SizeClass::Frame).unwrap();
        let file = world.file.clone();
        world.disk.submit(Read { file, offset: 1, len: 9, buf, token: 7 }).unwrap();
        world.run();
        let results: Vec<_> =
            world.done.iter().map(|(_, token, result)| (*token, *result)).collect();
        assert!(results.contains(&(19, Ok(10_000 - 19 * 512))));
        assert!(results.contains(&(30, Ok(0))));
        let unaligned = DiskError::Unaligned { offset: 1, align_bytes: 512 };
        assert!(results.contains(&(7, Err(unaligned))));
    }

    #[test]
    fn a_full_queue_gives_the_read_back() {
        let mut world = World::new(&DiskConfig { depth: 2, ..PLAIN });
        assert_eq!([0, 1, 2].map(|token| world.submit(token)), [true, true, false]);
        world.run();
        assert!(world.submit(2));
        assert_eq!(world.disk.in_flight(), 1);
        world.run();
        assert_eq!(world.tokens(), [0, 1, 2]);
        assert!(SimDisk::new(&VirtualClock::new(), &DiskConfig { depth: 0, ..PLAIN }).is_err());
    }

    #[test]
    fn a_stalled_read_is_overtaken() {
        let stall = DiskConfig { stall: 0.3, stall_nanos: 9_000_000, depth: 100, ..PLAIN };
        let mut world = World::new(&DiskConfig { channels: 100, ..stall });
        (0..15).for_each(|token| assert!(world.submit(token)));
        world.run();
        let stalled = world.done.iter().filter(|(at, ..)| *at > 9_000_000).count();
        assert!((1..15).contains(&stalled));
        assert!(!world.tokens().is_sorted());
    }

    #[test]
    fn a_test_may_name_the_read_that_fails() {
        let mut world = World::new(&PLAIN);
        world.disk.fail_next(DiskError::Truncated);
        assert!(world.submit(0) && world.submit(1));
        world.run();
        // A failed read transfers nothing.
        let expected = [(50_000, 0, Err(DiskError::Truncated)), (58_000, 1, Ok(1000))];
        assert_eq!(world.done, expected);
        assert_eq!(world.disk.stats().errors, 1);
    }

    #[test]
    fn a_device_that_goes_answers_at_once() {
        let mut world = World::new(&PLAIN);
        (0..4).for_each(|token| assert!(world.submit(token)));
        world.disk.kick();
        world.clock.advance_nanos(58_000);
        world.disk.clone().set_gone(true);
        assert!(world.submit(4));
        world.run();
        let gone = Err(DiskError::DeviceGone);
        let expected = [(0, Ok(1000)), (1, Ok(1000)), (2, gone), (3, gone), (4, gone)];
        assert_eq!(world.done, expected.map(|(token, result)| (58_000, token, result)));
        world.disk.set_gone(false);
        assert!(world.submit(5));
        world.run();
        assert_eq!(world.done[5], (116_000, 5, Ok(1000)), "its channels have nothing else to do");
    }

    proptest! {
        #[test]
        fn every_read_comes_back_once_and_a_seed_is_a_run(
            channels in 1usize..20,
            jitter_nanos in 0u64..100_000,
            bandwidth_bps in prop::sample::select(vec![0u64, 1_000_000, 10_000_000_000]),
            faults in (0.0..0.5, 0.0..0.5),
            seed: u64,
            reads in prop::collection::vec((0u64..30, 0u64..200_000), 1..60),
        ) {
            let config = DiskConfig {
                depth: 16,
                channels,
                jitter_nanos,
                bandwidth_bps,
                error: faults.0,
                stall: faults.1,
                seed,
                ..Default::default()
            };
            let run = || {
                let mut world = World::new(&config);
                let mut taken = Vec::new();
                for (token, pause_nanos) in &reads {
                    if world.submit(*token) {
                        taken.push(*token);
                    }
                    world.clock.advance_nanos(*pause_nanos);
                    world.poll();
                    assert_eq!(taken.len(), world.done.len() + world.disk.in_flight());
                }
                world.run();
                let mut tokens = world.tokens();
                tokens.sort_unstable();
                taken.sort_unstable();
                assert_eq!(tokens, taken);
                let stats = world.disk.stats();
                assert_eq!(stats.reads + stats.errors, taken.len() as u64);
                world.done
            };
            prop_assert_eq!(run(), run());
        }
    }
}
