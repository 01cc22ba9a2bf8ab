//! The NVMe driver against a simulated controller that misbehaves, in virtual time.

use std::cell::RefCell;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Duration;

use millstream_buf::{Arena, ArenaConfig, BLOCK_BYTES, HugePages, IoBufMut, SizeClass};
use millstream_disk::nvme::sim::{Content, Faults, SimConfig, SimDevice, SimStats, pattern};
use millstream_disk::nvme::{
    Bar, Device, Dma, DmaMemory, IovaTable, NvmeConfig, NvmeError, NvmeQueue, NvmeStats,
};
use millstream_disk::{Completion, Completions, DiskError, DiskQueue, File, Read};
use millstream_timer::{Clock, Instant, VirtualClock};
use proptest::prelude::*;

const MS: u64 = 1_000_000;
/// How long a read may take in these tests.
const TIMEOUT: Duration = Duration::from_millis(800);

/// A handle on the device that the driver owns.
#[derive(Clone)]
struct Shared(Rc<RefCell<SimDevice>>);

impl Bar for Shared {
    fn read32(&mut self, at: usize) -> u32 {
        self.0.borrow_mut().read32(at)
    }
    fn write32(&mut self, at: usize, value: u32) {
        self.0.borrow_mut().write32(at, value);
    }
    fn bar_bytes(&self) -> usize {
        self.0.borrow().bar_bytes()
    }
}

impl Dma for Shared {
    fn queue_memory(&mut self, bytes: usize) -> io::Result<DmaMemory> {
        self.0.borrow_mut().queue_memory(bytes)
    }
    unsafe fn map(&mut self, start: NonNull<u8>, bytes: usize) -> io::Result<IovaTable> {
        // SAFETY: the caller's promise; `World` drops its handle on the device after the queue.
        unsafe { self.0.borrow_mut().map(start, bytes) }
    }
}

impl Device for Shared {
    fn name(&self) -> &str {
        "simulated"
    }
    fn set_bus_master(&mut self, on: bool) -> io::Result<()> {
        self.0.borrow_mut().set_bus_master(on)
    }
    fn turn(&mut self, now: Instant) {
        self.0.borrow_mut().turn(now);
    }
}

struct World {
    queue: Option<NvmeQueue<Shared, VirtualClock>>,
    sim: Shared,
    clock: VirtualClock,
    arena: Arena,
    file: File,
}

fn arena(blocks: usize) -> Arena {
    Arena::new(&ArenaConfig { frames: 0, blocks, huge_pages: HugePages::Never }).unwrap()
}

fn try_world(sim: SimConfig, depth: usize) -> Result<World, NvmeError> {
    let (clock, arena) = (VirtualClock::new(), arena(32));
    let sim = Shared(Rc::new(RefCell::new(SimDevice::new(sim))));
    let config = NvmeConfig { depth, timeout: TIMEOUT, namespace: None };
    let queue = NvmeQueue::open(sim.clone(), &arena, clock.clone(), &config)?;
    let file = queue.file();
    Ok(World { queue: Some(queue), sim, clock, arena, file })
}

fn world(sim: SimConfig, depth: usize) -> World {
    try_world(sim, depth).unwrap()
}

impl World {
    fn queue(&mut self) -> &mut NvmeQueue<Shared, VirtualClock> {
        self.queue.as_mut().unwrap()
    }

    fn faults(&self, change: impl FnOnce(&mut Faults)) {
        self.sim.0.borrow_mut().configure(|config| change(&mut config.faults));
    }

    fn sim_stats(&self) -> SimStats {
        self.sim.0.borrow().stats()
    }

    fn nvme_stats(&mut self) -> NvmeStats {
        self.queue().nvme_stats()
    }

    fn buf(&self) -> IoBufMut {
        self.arena.alloc(SizeClass::Block).unwrap()
    }

    /// Submits a read of `len` bytes at `offset`; its token is its offset.
    fn submit(&mut self, offset: u64, len: usize) {
        let (file, buf) = (self.file.clone(), self.buf());
        self.queue().submit(Read { file, offset, len, buf, token: offset }).unwrap();
    }

    /// Lets time pass in steps of 100 us and collects what completes.
    fn run_for(&mut self, nanos: u64) -> Vec<Completion> {
        let end = self.clock.now().plus_nanos(nanos);
        let (mut all, mut out) = (Vec::new(), Completions::new());
        while self.clock.now() < end {
            self.queue().poll(&mut out);
            all.extend(out.drain(..));
            self.clock.advance_nanos(100_000);
        }
        all
    }

    fn read(&mut self, offset: u64, len: usize) -> Completion {
        self.submit(offset, len);
        self.run_for(5_000 * MS).pop().expect("every read completes")
    }

    /// Shuts down and says what the device saw.
    fn close(mut self) -> SimStats {
        self.queue = None;
        let stats = self.sim_stats();
        assert_eq!((stats.violations, stats.faults), (0, 0), "{stats:?}");
        stats
    }
}

#[track_caller]
fn assert_pattern(done: &Completion, offset: u64, len: usize) {
    assert_eq!(done.result, Ok(len));
    for (index, word) in done.buf[..len / 8 * 8].chunks_exact(8).enumerate() {
        let at = offset + 8 * index as u64;
        assert_eq!(u64::from_le_bytes(word.try_into().unwrap()), pattern(at), "at byte {at}");
    }
}

#[test]
fn reads_of_all_lengths_bring_what_is_there() {
    for (block_bytes, mdts, doorbell_stride) in [(512, 5, 0), (4096, 1, 2), (512, 0, 1)] {
        let sim = SimConfig { block_bytes, mdts, doorbell_stride, ..SimConfig::default() };
        let mut world = world(sim, 8);
        assert_eq!(world.file.align_bytes(), block_bytes);
        for (offset, len) in
            [(0, 512), (4096, 4096), (8192, 8192), (12288, 12288), (1 << 20, 16384), (4096, 1000)]
        {
            let done = world.read(offset, len);
            assert_pattern(&done, offset, len);
        }
        // A limit of two pages makes two commands of the largest reads, and two of those of 12 KiB.
        let continued = world.queue().stats().continued;
        assert_eq!(continued, if mdts == 1 { 2 } else { 0 });
        let stats = world.close();
        assert_eq!((stats.starts, stats.shutdowns), (1, 1));
    }
}

#[test]
fn the_end_of_the_namespace_is_the_end_of_the_file() {
    let mut world = world(SimConfig { blocks: 100, ..SimConfig::default() }, 4);
    assert_eq!(world.file.len(), 51_200);
    let last = world.read(50_688, 4096);
    assert_pattern(&last, 50_688, 512);
    assert_eq!(world.read(51_200, 4096).result, Ok(0));
    // One that has become smaller refuses.
    world.sim.0.borrow_mut().configure(|config| config.blocks = 50);
    let refused = world.read(50_688, 512).result.unwrap_err();
    assert!(refused.to_string().contains("0/80h, beyond the end"), "{refused}");
    assert_eq!(world.nvme_stats().retries, 0, "the device says that this would not help");
    world.close();
}

#[test]
fn a_full_queue_gives_the_read_back() {
    let sim = SimConfig { queue_entries: 5, latency_nanos: MS, ..SimConfig::default() };
    let mut world = world(sim, 64);
    for index in 0..4 {
        world.submit(index * 4096, 4096);
    }
    let (file, buf) = (world.file.clone(), world.buf());
    let fifth = Read { file, offset: 0, len: 512, buf, token: 9 };
    assert_eq!(world.queue().submit(fifth).unwrap_err().token, 9, "no deeper than the device");
    assert_eq!(world.queue().in_flight(), 4);
    assert_eq!(world.run_for(10 * MS).len(), 4);
    world.close();
}

#[test]
fn phases_turn_and_generations_wrap_over_many_rounds() {
    let jitter = SimConfig { jitter_nanos: 3 * MS, latency_nanos: 1000, ..SimConfig::default() };
    let mut world = world(SimConfig { content: Content::Stamps, ..jitter }, 3);
    let mut seen = 0;
    // Far more than the 16,384 numbers that a slot's commands have.
    for round in 0..25_000_u64 {
        for index in 0..3 {
            world.submit((round * 3 + index) % 4096 * 512, 512);
        }
        let mut out = Completions::new();
        while world.queue().in_flight() > 0 {
            world.clock.advance_nanos(MS);
            world.queue().poll(&mut out);
            for done in out.drain(..) {
                let stamp = u64::from_le_bytes(done.buf[..8].try_into().unwrap());
                assert_eq!((done.result, stamp), (Ok(512), pattern(done.token)));
                seen += 1;
            }
        }
    }
    assert_eq!((seen, world.nvme_stats()), (75_000, NvmeStats::default()));
    world.close();
}

#[test]
fn a_media_error_fails_its_read_alone() {
    let bad: Vec<_> = std::iter::once(8..9).collect();
    let mut world = world(SimConfig { bad, ..SimConfig::default() }, 8);
    for offset in [0, 4096, 8192] {
        world.submit(offset, 4096);
    }
    let mut done = world.run_for(10 * MS);
    done.sort_by_key(|done| done.token);
    assert_pattern(&done[0], 0, 4096);
    assert!(matches!(done[1].result, Err(DiskError::Media { status }) if status.code() == 0x81));
    assert_pattern(&done[2], 8192, 4096);
    let stats = world.queue().stats();
    assert_eq!((stats.reads, stats.errors, world.nvme_stats().resets), (2, 1, 0));
    world.close();
}

#[test]
fn errors_that_may_pass_are_tried_again_and_not_for_ever() {
    let mut world = world(SimConfig::default(), 8);
    world.faults(|faults| faults.media = 1.0);
    assert!(matches!(world.read(0, 512).result, Err(DiskError::Media { .. })));
    assert_eq!(world.nvme_stats().retries, 2);
    world.faults(|faults| faults.media = 0.5);
    let good = (0..20).filter(|index| world.read(index * 512, 512).result == Ok(512)).count();
    assert!(good > 12, "{good} of 20");
    world.close();
}

#[test]
fn a_late_read_is_aborted_and_tried_again() {
    let mut world = world(SimConfig::default(), 8);
    world.faults(|faults| faults.drop = 1.0);
    world.submit(4096, 4096);
    world.queue().kick();
    world.faults(|faults| faults.drop = 0.0);
    assert!(world.run_for(790 * MS).is_empty(), "not before its time");
    let done = world.run_for(400 * MS).pop().unwrap();
    assert_pattern(&done, 4096, 4096);
    let stats = world.nvme_stats();
    assert_eq!((stats.timeouts, stats.aborts, stats.resets, stats.retries), (1, 1, 0, 1));
    world.close();
}

#[test]
fn a_controller_that_does_not_answer_is_reset_and_goes_on() {
    let ready_nanos = 500 * MS;
    let mut world = world(SimConfig { ready_nanos, ..SimConfig::default() }, 8);
    world.faults(|faults| (faults.drop, faults.ignores_aborts) = (1.0, true));
    for offset in [0, 4096, 8192] {
        world.submit(offset, 4096);
    }
    world.queue().kick();
    world.faults(|faults| faults.drop = 0.0);
    let mut done = world.run_for(5_000 * MS);
    done.sort_by_key(|done| done.token);
    for (index, done) in done.iter().enumerate() {
        assert_pattern(done, index as u64 * 4096, 4096);
    }
    let stats = world.nvme_stats();
    assert_eq!((done.len(), stats.timeouts, stats.resets, stats.leaked), (3, 3, 1, 0));
    // A time-out of 800 ms and a sweep, an abort of a quarter, two changes of CSTS.RDY.
    assert!(stats.retries == 3 && world.sim_stats().starts == 2);
    assert_eq!(world.close().shutdowns, 1);
}

#[test]
fn reads_are_taken_while_the_controller_is_reset() {
    let mut world = world(SimConfig { ready_nanos: 300 * MS, ..SimConfig::default() }, 8);
    world.sim.0.borrow_mut().fail();
    assert!(world.run_for(250 * MS).is_empty());
    assert!(!world.queue().is_ready(), "being reset");
    world.submit(512, 512);
    assert_eq!(world.queue().in_flight(), 1);
    let done = world.run_for(1_000 * MS).pop().unwrap();
    assert_pattern(&done, 512, 512);
    assert_eq!(world.nvme_stats().resets, 1);
    world.close();
}

#[test]
fn buffers_of_a_controller_that_does_not_stop_are_leaked() {
    let mut world = world(SimConfig { content: Content::Pattern, ..SimConfig::default() }, 8);
    world.faults(|faults| {
        (faults.drop, faults.ignores_aborts, faults.never_stops) = (1.0, true, true);
    });
    for offset in [4096, 8192] {
        world.submit(offset, 4096);
    }
    let done = world.run_for(3_500 * MS);
    assert_eq!(done.len(), 2, "no connection waits for ever");
    assert!(done.iter().all(|done| done.result == Err(DiskError::DeviceGone)));
    assert_eq!(world.nvme_stats().leaked, 2);
    assert_eq!(world.read(0, 512).result, Err(DiskError::DeviceGone));
    // All the buffers that there are: those which the device may write are not among them.
    drop(done);
    let mut held: Vec<IoBufMut> =
        std::iter::from_fn(|| world.arena.alloc(SizeClass::Block)).collect();
    assert_eq!(held.len(), 30, "two of 32 are never used again");
    for buf in &mut held {
        buf.fill(0xee);
    }
    let ghosts = world.sim_stats().ghosts;
    world.run_for(20_000 * MS);
    assert!(world.sim_stats().ghosts > ghosts, "it does write");
    assert!(held.iter().all(|buf| buf.iter().all(|&byte| byte == 0xee)));
}

#[test]
fn a_device_that_is_pulled_out_is_given_up() {
    let mut world = world(SimConfig { latency_nanos: MS, ..SimConfig::default() }, 8);
    world.submit(0, 512);
    world.queue().kick();
    world.sim.0.borrow_mut().pull_out();
    let done = world.run_for(200 * MS).pop().expect("found within a sweep");
    assert_eq!(done.result, Err(DiskError::DeviceGone));
    assert_eq!(world.read(0, 512).result, Err(DiskError::DeviceGone));
    assert_eq!(world.queue().read_at(0, 512), Err(DiskError::DeviceGone));
}

#[test]
fn a_controller_that_does_not_start_again_gives_its_buffers_back() {
    let mut world = world(SimConfig { latency_nanos: 100 * MS, ..SimConfig::default() }, 8);
    world.submit(0, 512);
    world.faults(|faults| faults.never_ready = true);
    world.sim.0.borrow_mut().fail();
    let done = world.run_for(20_000 * MS);
    assert_eq!(done[0].result, Err(DiskError::DeviceGone));
    drop(done);
    assert_eq!(world.nvme_stats().leaked, 0);
    assert_eq!(world.arena.free(SizeClass::Block), 32, "it has stopped, so they are ours");
}

#[test]
fn completions_that_make_no_sense_reset_the_controller() {
    for fault in [
        (|faults: &mut Faults| faults.duplicate = 1.0) as fn(&mut Faults),
        |faults: &mut Faults| faults.corrupt = 1.0,
    ] {
        let mut world = world(SimConfig { latency_nanos: MS, ..SimConfig::default() }, 4);
        world.faults(fault);
        world.submit(4096, 512);
        let done = world.run_for(3 * MS).pop().unwrap();
        assert_pattern(&done, 4096, 512);
        world.faults(|faults| *faults = Faults::default());
        assert_pattern(&world.read(8192, 512), 8192, 512);
        assert_eq!(world.queue().stats().unknown, 1);
        assert_eq!(world.nvme_stats().resets, 1);
    }
}

#[test]
fn events_are_read_and_asked_for_again() {
    let mut world = world(SimConfig::default(), 4);
    for _ in 0..5 {
        // The temperature is critical; its log is page 2.
        assert!(world.sim.0.borrow_mut().tell_event(1 | 1 << 8, 2));
        world.run_for(300 * MS);
    }
    assert_eq!(world.nvme_stats().events, 5);
    assert_pattern(&world.read(0, 512), 0, 512);
    // A namespace changed, and not ours.
    assert!(world.sim.0.borrow_mut().tell_event(2, 4));
    world.run_for(300 * MS);
    assert_pattern(&world.read(0, 512), 0, 512);
    // Ours did.
    world.sim.0.borrow_mut().configure(|config| config.blocks = 77);
    assert!(world.sim.0.borrow_mut().tell_event(2, 4));
    world.run_for(1_000 * MS);
    assert_eq!(world.read(0, 512).result, Err(DiskError::DeviceGone));
    assert_eq!(world.arena.free(SizeClass::Block), 32);
}

#[test]
fn what_cannot_be_driven_is_refused_with_a_sentence() {
    let refusal = |sim| try_world(sim, 8).err().unwrap().to_string();
    let dead = Faults { never_ready: true, ..Faults::default() };
    let stuck = refusal(SimConfig { faults: dead, ..SimConfig::default() });
    assert!(stuck.contains("did not become ready within 1000 ms"), "{stuck}");
    let odd = refusal(SimConfig { block_bytes: 32 << 10, ..SimConfig::default() });
    assert!(odd.contains("namespace 1 cannot be used: its block size"), "{odd}");
    let (clock, arena) = (VirtualClock::new(), arena(8));
    let open = |depth, namespace| {
        let config = NvmeConfig { depth, timeout: TIMEOUT, namespace };
        let device = SimDevice::new(SimConfig::default());
        NvmeQueue::open(device, &arena, clock.clone(), &config).err().map(|error| error.to_string())
    };
    assert_eq!(open(8, Some(1)), None);
    let missing = open(8, Some(7)).unwrap();
    assert!(missing.contains("namespace 7 cannot be used"), "{missing}");
    for depth in [0, 1024] {
        assert!(open(depth, None).unwrap().contains("cannot be"), "{depth}");
    }
}

#[test]
fn bytes_needed_at_start_are_read_at_any_place() {
    let mut world = world(SimConfig::default(), 4);
    for (offset, len) in [(0, 1), (1024, 128), (511, 2), (4096, 700_000), (3, 1 << 20)] {
        let bytes = world.queue().read_at(offset, len).unwrap();
        assert_eq!(bytes.len(), len);
        for (at, &byte) in (offset..).zip(&bytes) {
            assert_eq!(byte, pattern(at / 8 * 8).to_le_bytes()[at as usize % 8]);
        }
    }
    assert_eq!(world.queue().read_at((1 << 30) - 1, 2), Err(DiskError::Truncated));
    world.close();
}

#[test]
fn files_of_others_are_refused_and_those_in_memory_are_copied() {
    let mut world = world(SimConfig::default(), 4);
    let other = try_world(SimConfig::default(), 4).unwrap();
    let kernel = File::open("/proc/self/exe".as_ref()).unwrap();
    for file in [other.file.clone(), kernel] {
        let buf = world.buf();
        world.queue().submit(Read { file, offset: 0, len: 512, buf, token: 0 }).unwrap();
        assert_eq!(world.run_for(MS).pop().unwrap().result, Err(DiskError::OtherDevice));
    }
    let (file, buf) = (File::in_memory(vec![7; 600]), world.buf());
    world.queue().submit(Read { file, offset: 512, len: 512, buf, token: 0 }).unwrap();
    let done = world.run_for(MS).pop().unwrap();
    assert!(done.result == Ok(88) && done.buf[..88].iter().all(|&byte| byte == 7));
    assert_eq!(world.queue().stats().copied_bytes, 88);
}

/// A buffer that was given back, full of a mark that nobody may change.
struct Held {
    buf: IoBufMut,
    until: Instant,
}

#[derive(Clone, Debug)]
struct Chaos {
    faults: Faults,
    latency_nanos: u64,
    jitter_nanos: u64,
    ready_nanos: u64,
    depth: usize,
    mdts: u8,
    seed: u64,
}

fn chaos() -> impl Strategy<Value = Chaos> {
    let rare = || prop_oneof![3 => Just(0.0), 1 => 0.0..0.05];
    let faults = (rare(), rare(), rare(), rare(), rare(), rare(), any::<bool>());
    let faults = faults.prop_map(|(drop, duplicate, corrupt, media, stall, fatal, deaf)| Faults {
        drop,
        duplicate,
        // Garbage may by chance be a completion of a read in flight, which no driver can tell.
        corrupt: if duplicate > 0.0 { 0.0 } else { corrupt },
        media,
        stall,
        stall_nanos: 1_500 * MS,
        fatal: fatal / 5.0,
        ignores_aborts: deaf,
        ..Faults::default()
    });
    let times = (0..20 * MS, 0..50 * MS, 0..900 * MS);
    (faults, times, 1usize..24, 0u8..3, any::<u64>()).prop_map(
        |(faults, times, depth, mdts, seed)| {
            let (latency_nanos, jitter_nanos, ready_nanos) = times;
            Chaos { faults, latency_nanos, jitter_nanos, ready_nanos, depth, mdts, seed }
        },
    )
}

/// Runs reads under chaos. Every read completes once; good ones have their bytes; no buffer is
/// written after it was given back, whatever the device still does; the driver keeps to the rules.
fn survive(chaos: &Chaos) {
    let mut world = world(
        SimConfig {
            latency_nanos: chaos.latency_nanos,
            jitter_nanos: chaos.jitter_nanos,
            ready_nanos: chaos.ready_nanos,
            mdts: chaos.mdts,
            seed: chaos.seed,
            ..SimConfig::default()
        },
        chaos.depth,
    );
    world.faults(|faults| *faults = chaos.faults);
    let garbage = chaos.faults.corrupt > 0.0;
    let (mut submitted, mut completed, mut good) = (0_u64, 0_u64, 0_u64);
    let mut held: Vec<Held> = Vec::new();
    let mut state = chaos.seed;
    let mut dice = |limit: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    };
    let mut out = Completions::new();
    let begin = world.clock.now();
    while completed < 300 {
        assert!(world.clock.now().nanos_since(begin) < 600_000 * MS, "it ends: {chaos:?}");
        while submitted < 300 && world.arena.free(SizeClass::Block) > 0 && dice(4) > 0 {
            let (offset, len) = (dice(1 << 20) * 512, (1 + dice(32) as usize) * 512);
            let (file, mut buf) = (world.file.clone(), world.buf());
            buf[..len].fill(0xdd);
            let token = offset << 16 | len as u64;
            let Ok(()) = world.queue().submit(Read { file, offset, len, buf, token }) else {
                break;
            };
            submitted += 1;
        }
        world.clock.advance_nanos(1 + dice(5 * MS));
        world.queue().poll(&mut out);
        for mut done in out.drain(..) {
            completed += 1;
            let (offset, len) = (done.token >> 16, (done.token & 0xffff) as usize);
            if done.result.is_ok() {
                good += 1;
                if !garbage {
                    assert_pattern(&done, offset, len);
                }
            }
            done.buf.fill(0xee);
            let until = world.clock.now().plus_nanos(dice(3_000 * MS));
            held.push(Held { buf: done.buf, until });
        }
        let now = world.clock.now();
        held.retain(|held| {
            if held.until > now {
                return true;
            }
            let mark = held.buf.iter().all(|&byte| byte == 0xee);
            assert!(mark || garbage, "written after it was given back: {chaos:?}");
            false
        });
    }
    assert_eq!(submitted, completed);
    let dead = world.queue().nvme_stats().resets > 3;
    assert!(good > 0 || dead, "{chaos:?}");
    let stats = world.sim_stats();
    assert_eq!((stats.violations, stats.faults), (0, 0), "{chaos:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_misbehaviour_loses_a_read_or_writes_a_buffer_that_was_given_back(chaos in chaos()) {
        survive(&chaos);
    }
}

#[test]
fn blocks_larger_than_a_page_are_read_whole() {
    let sim = SimConfig { block_bytes: BLOCK_BYTES, mdts: 2, ..SimConfig::default() };
    let mut world = world(sim, 4);
    assert_pattern(&world.read(BLOCK_BYTES as u64, 1000), BLOCK_BYTES as u64, 1000);
    world.close();
}
