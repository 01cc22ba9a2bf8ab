use std::cell::Cell;

use millstream_buf::IoBuf;
use proptest::prelude::*;

use super::*;
use crate::config::BurstLoss;
use crate::drive::{drive, step};
use crate::flap::{Flapper, Flaps};

fn send(link: &mut SimLink, bytes: &[u8]) -> Result<(), TxError> {
    link.tx(&TxFrame { header: bytes, payload: &[], offload: Default::default() })
}

/// A frame whose first four bytes are its number.
fn numbered(number: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0x5a; len.max(4)];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn number_of(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

/// Takes all frames as they arrive, and notes when.
struct Sink {
    clock: VirtualClock,
    link: SimLink,
    got: Vec<(Instant, Vec<u8>, RxChecksum)>,
}

impl Sink {
    fn new(clock: &VirtualClock, link: SimLink) -> Self {
        Self { clock: clock.clone(), link, got: Vec::new() }
    }

    fn numbers(&self) -> Vec<u32> {
        self.got.iter().map(|(_, bytes, _)| number_of(bytes)).collect()
    }

    fn nanos(&self) -> Vec<u64> {
        self.got.iter().map(|(at, ..)| at.as_nanos()).collect()
    }
}

impl Node for Sink {
    fn turn(&mut self) -> bool {
        let mut burst = RxBurst::new();
        self.link.rx_burst(&mut burst);
        let now = self.clock.now();
        let worked = !burst.is_empty();
        self.got.extend(burst.into_iter().map(|f| (now, f.buf.to_vec(), f.checksum)));
        worked
    }

    fn next_deadline(&self) -> Instant {
        self.link.next_event()
    }
}

fn world(a_to_b: DirectionConfig) -> (VirtualClock, SimLink, Sink, Wire) {
    let clock = VirtualClock::new();
    let config = LinkConfig { a_to_b, ..Default::default() };
    let (a, b, wire) = pair(&clock, &config).unwrap();
    let sink = Sink::new(&clock, b);
    (clock, a, sink, wire)
}

fn conserved(wire: &Wire) -> DirectionStats {
    let stats = wire.stats(Direction::AToB);
    assert_eq!(
        stats.offered + stats.duplicated,
        stats.delivered + stats.dropped() + stats.in_flight
    );
    stats
}

const LONG: Instant = Instant::from_nanos(1 << 50);

#[test]
fn frames_are_serialised_then_delayed() {
    // 1250 bytes at 1 Gb/s are 10 us.
    let (clock, mut a, mut sink, _wire) = world(DirectionConfig::wire(1_000_000_000, 1_000_000));
    for number in 0..3 {
        send(&mut a, &numbered(number, 1250)).unwrap();
    }
    drive(&clock, &mut [&mut sink], Instant::from_micros(2_000));
    // The wire is idle again: the fourth starts at once.
    send(&mut a, &numbered(3, 125)).unwrap();
    drive(&clock, &mut [&mut sink], LONG);
    assert_eq!(sink.nanos(), [1_010_000, 1_020_000, 1_030_000, 3_001_000]);
    assert_eq!(sink.numbers(), [0, 1, 2, 3]);
    assert_eq!((a.stats().tx_bytes, sink.link.stats().rx_bytes), (3875, 3875));
}

#[test]
fn a_busy_wire_keeps_its_rate_to_the_nanosecond() {
    // 8000 bits at 7 Gb/s are 1142.857... ns; with the overhead 1024 bytes are 1170.285... ns.
    for (overhead_bytes, bits) in [(0, 8_000u64), (24, 8_192)] {
        let config = DirectionConfig { overhead_bytes, ..DirectionConfig::wire(7_000_000_000, 0) };
        let (clock, mut a, mut sink, _wire) = world(config);
        for number in 0..700 {
            send(&mut a, &numbered(number, 1000)).unwrap();
        }
        drive(&clock, &mut [&mut sink], LONG);
        let exact: Vec<_> = (1..=700).map(|count| count * bits / 7).collect();
        assert_eq!(sink.nanos(), exact);
    }
}

#[test]
fn a_perfect_wire_delivers_at_once() {
    let (clock, mut a, mut sink, wire) = world(DirectionConfig::default());
    let payload = [IoBuf::from(vec![2, 3]), IoBuf::from(vec![4])];
    a.tx(&TxFrame { header: &[0, 1], payload: &payload, offload: Default::default() }).unwrap();
    assert_eq!(sink.link.next_event(), clock.now());
    assert!(sink.turn() && !sink.turn());
    assert_eq!(sink.got[0].1, [0, 1, 2, 3, 4]);
    assert_eq!(a.stats().tx_copied_bytes, 3);
    assert_eq!(
        (sink.link.next_event(), wire.next_event()),
        (Instant::FAR_FUTURE, Instant::FAR_FUTURE)
    );
}

#[test]
fn a_full_queue_drops_the_last_to_come() {
    let config = DirectionConfig { queue_frames: 2, ..DirectionConfig::wire(8_000_000, 0) };
    let (clock, mut a, mut sink, wire) = world(config);
    // 100 bytes take 100 us. One is being sent, two wait.
    for number in 0..5 {
        send(&mut a, &numbered(number, 100)).unwrap();
    }
    clock.advance_to(Instant::from_micros(100));
    for number in 5..7 {
        send(&mut a, &numbered(number, 100)).unwrap();
    }
    drive(&clock, &mut [&mut sink], LONG);
    assert_eq!(sink.numbers(), [0, 1, 2, 5]);
    let stats = conserved(&wire);
    assert_eq!((stats.dropped_queue, stats.queue_frames_max, stats.in_flight), (3, 2, 0));
}

#[test]
fn a_queue_may_be_limited_in_bytes() {
    let config = DirectionConfig { queue_bytes: 250, ..DirectionConfig::wire(8_000_000, 0) };
    let (clock, mut a, mut sink, wire) = world(config);
    for (number, len) in [(0, 1000), (1, 200), (2, 51), (3, 50)] {
        send(&mut a, &numbered(number, len)).unwrap();
    }
    drive(&clock, &mut [&mut sink], LONG);
    assert_eq!(sink.numbers(), [0, 1, 3]);
    assert_eq!(conserved(&wire).dropped_queue, 1);
}

#[test]
fn a_refusing_queue_says_when_to_come_back() {
    let config = DirectionConfig {
        queue_frames: 2,
        when_full: WhenFull::Refuse,
        ..DirectionConfig::wire(8_000_000, 5_000_000)
    };
    let (clock, mut a, mut sink, wire) = world(config);
    assert_eq!(a.tx_room(), 3);
    for number in 0..3 {
        send(&mut a, &numbered(number, 100)).unwrap();
    }
    assert_eq!(a.tx_room(), 0);
    assert_eq!(send(&mut a, &numbered(3, 100)), Err(TxError::Full));
    assert_eq!(a.next_event(), Instant::from_micros(100));
    assert_eq!(wire.next_event(), Instant::from_micros(100));
    clock.advance_to(Instant::from_micros(100));
    assert_eq!(a.tx_room(), 1);
    send(&mut a, &numbered(3, 100)).unwrap();
    assert_eq!(a.next_event(), Instant::FAR_FUTURE, "nothing was refused since");
    drive(&clock, &mut [&mut sink], LONG);
    assert_eq!(sink.numbers(), [0, 1, 2, 3]);
    let stats = conserved(&wire);
    assert_eq!((stats.refused, stats.dropped()), (1, 0));
}

#[test]
fn without_buffers_the_sender_is_refused() {
    let clock = VirtualClock::new();
    let config = LinkConfig { buffers: 2, ..Default::default() };
    let (mut a, mut b, _wire) = pair(&clock, &config).unwrap();
    send(&mut a, &[1]).unwrap();
    send(&mut a, &[2]).unwrap();
    assert_eq!((a.tx_room(), send(&mut a, &[3])), (0, Err(TxError::Full)));
    let mut burst = RxBurst::new();
    b.rx_burst(&mut burst);
    assert_eq!(a.tx_room(), 0, "the receiver holds both");
    drop(burst);
    assert_eq!(a.tx_room(), 2);
}

#[test]
fn the_mtu_bounds_frames_and_may_be_large() {
    let clock = VirtualClock::new();
    for mtu in [1500, 2026, 9000] {
        let config = LinkConfig { mtu, buffers: 4, ..Default::default() };
        let (mut a, mut b, _wire) = pair(&clock, &config).unwrap();
        let longest = usize::from(mtu) + L2_HEADER_MAX;
        assert_eq!(send(&mut a, &vec![7; longest + 1]), Err(TxError::TooLong));
        send(&mut a, &vec![7; longest]).unwrap();
        let mut burst = RxBurst::new();
        b.rx_burst(&mut burst);
        assert_eq!(burst[0].buf.len(), longest);
    }
}

#[test]
fn a_slow_receiver_loses_at_its_ring() {
    let config = DirectionConfig { ring_frames: 3, ..Default::default() };
    let (clock, mut a, mut sink, wire) = world(config);
    for number in 0..5 {
        send(&mut a, &numbered(number, 60)).unwrap();
    }
    drive(&clock, &mut [&mut sink], Instant::from_micros(1));
    send(&mut a, &numbered(5, 60)).unwrap();
    drive(&clock, &mut [&mut sink], LONG);
    assert_eq!(sink.numbers(), [0, 1, 2, 5]);
    assert_eq!((conserved(&wire).dropped_ring, sink.link.stats().rx_missed), (2, 2));
}

#[test]
fn a_link_that_goes_down_loses_what_has_not_arrived() {
    let (clock, mut a, mut sink, wire) = world(DirectionConfig::wire(8_000_000, 50_000));
    // They leave at 100, 200 and 300 us.
    for number in 0..3 {
        send(&mut a, &numbered(number, 100)).unwrap();
    }
    clock.advance_to(Instant::from_micros(200));
    wire.set_up(false);
    assert!(!a.is_up() && !sink.link.is_up());
    send(&mut a, &numbered(3, 100)).unwrap();
    wire.set_up(true);
    send(&mut a, &numbered(4, 100)).unwrap();
    drive(&clock, &mut [&mut sink], LONG);
    assert_eq!(sink.numbers(), [0, 4]);
    assert_eq!(sink.nanos(), [200_000, 350_000], "the queue was emptied");
    assert_eq!(conserved(&wire).dropped_down, 3);
}

#[test]
fn a_filter_loses_what_the_test_names_and_the_trace_shows_it() {
    let (clock, mut a, mut sink, wire) = world(DirectionConfig::default());
    wire.set_filter(|_, direction, bytes| direction == Direction::BToA || number_of(bytes) != 1);
    let seen = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&seen);
    wire.set_trace(move |at, direction, fate, bytes| {
        log.borrow_mut().push((at, direction, fate, number_of(bytes)));
    });
    for number in 0..3 {
        clock.advance_nanos(10);
        send(&mut a, &numbered(number, 60)).unwrap();
    }
    wire.clear_filter();
    send(&mut a, &numbered(1, 60)).unwrap();
    drive(&clock, &mut [&mut sink], LONG);
    assert_eq!(sink.numbers(), [0, 2, 1]);
    assert_eq!(conserved(&wire).dropped_filter, 1);
    let expected =
        [(10, Fate::Sent, 0), (20, Fate::Filtered, 1), (30, Fate::Sent, 2), (30, Fate::Sent, 1)]
            .map(|(nanos, fate, number)| {
                (Instant::from_nanos(nanos), Direction::AToB, fate, number)
            });
    assert_eq!(*seen.borrow(), expected);
}

#[test]
fn losses_come_as_often_and_as_long_as_configured() {
    let total = BurstLoss { good_to_bad: 0.01, bad_to_good: 0.25, loss_in_bad: 1.0 };
    let half = BurstLoss { loss_in_bad: 0.5, ..total };
    let bursts = |burst| DirectionConfig { burst_loss: Some(burst), ..Default::default() };
    for (config, rate, mean_run) in [
        (DirectionConfig { loss: 0.1, ..Default::default() }, 0.1, 1.11),
        // In the bad state for 4 frames of every 104.
        (bursts(total), 4.0 / 104.0, 4.0),
        // Half of those; the next is lost too if the state lasts and luck does not.
        (bursts(half), 2.0 / 104.0, 1.0 / (1.0 - 0.75 * 0.5)),
    ] {
        let (clock, mut a, mut sink, wire) = world(config);
        const FRAMES: u32 = 100_000;
        for number in 0..FRAMES {
            send(&mut a, &numbered(number, 60)).unwrap();
            step(&clock, &mut [&mut sink], LONG);
        }
        let numbers = sink.numbers();
        let runs = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
        let lost = f64::from(FRAMES) - numbers.len() as f64;
        let stats = conserved(&wire);
        assert_eq!(stats.dropped_loss + stats.dropped_burst, lost as u64);
        assert_eq!(stats.dropped_loss > 0, config.loss > 0.0);
        assert!((lost / f64::from(FRAMES) / rate - 1.0).abs() < 0.1, "{lost} lost");
        assert!((lost / runs as f64 / mean_run - 1.0).abs() < 0.1, "{lost} in {runs} runs");
    }
}

#[test]
fn jitter_keeps_the_order_and_reordering_breaks_it() {
    for (config, ordered) in [
        (DirectionConfig { delay_nanos: 500, jitter_nanos: 9_000, ..Default::default() }, true),
        (
            DirectionConfig {
                delay_nanos: 500,
                reorder: 0.2,
                reorder_nanos: 9_000,
                ..Default::default()
            },
            false,
        ),
    ] {
        let (clock, mut a, mut sink, wire) = world(config);
        let mut sent = Vec::new();
        for number in 0..1000 {
            sent.push(clock.now());
            send(&mut a, &numbered(number, 60)).unwrap();
            let until = clock.now().plus_nanos(1_000);
            drive(&clock, &mut [&mut sink], until);
        }
        drive(&clock, &mut [&mut sink], LONG);
        assert_eq!(sink.got.len(), 1000);
        assert_eq!(sink.numbers().is_sorted(), ordered);
        let delays: Vec<_> = sink
            .got
            .iter()
            .map(|(at, bytes, _)| at.nanos_since(sent[number_of(bytes) as usize]))
            .collect();
        assert!(delays.iter().all(|nanos| (500..=9_500).contains(nanos)));
        assert!(delays.iter().any(|nanos| *nanos > 5_000), "some are late");
        let held_back = conserved(&wire).held_back;
        assert!(if ordered { held_back == 0 } else { (150..250).contains(&held_back) });
    }
}

#[test]
fn duplicates_are_equal_and_counted() {
    let (clock, mut a, mut sink, wire) =
        world(DirectionConfig { duplicate: 1.0, ..Default::default() });
    send(&mut a, &numbered(1, 60)).unwrap();
    send(&mut a, &numbered(2, 60)).unwrap();
    drive(&clock, &mut [&mut sink], LONG);
    assert_eq!(sink.numbers(), [1, 1, 2, 2]);
    assert_eq!(conserved(&wire).duplicated, 2);
}

#[test]
fn corruption_flips_few_bits_and_an_offloading_nic_sees_it() {
    for checksum_offload in [false, true] {
        let clock = VirtualClock::new();
        let a_to_b = DirectionConfig { corrupt: 0.5, ..Default::default() };
        let config = LinkConfig { a_to_b, checksum_offload, ..Default::default() };
        let (mut a, b, wire) = pair(&clock, &config).unwrap();
        let mut sink = Sink::new(&clock, b);
        let frame = [0x33; 90];
        for _ in 0..400 {
            send(&mut a, &frame).unwrap();
        }
        drive(&clock, &mut [&mut sink], LONG);
        let mut corrupted = 0;
        for (_, bytes, checksum) in &sink.got {
            let flips: u32 = bytes.iter().zip(frame).map(|(a, b)| (a ^ b).count_ones()).sum();
            assert!(flips <= 3);
            corrupted += u64::from(flips > 0);
            let expected = match (checksum_offload, flips > 0) {
                (false, _) => RxChecksum::Unknown,
                (true, false) => RxChecksum::Good,
                (true, true) => RxChecksum::Bad,
            };
            assert_eq!(*checksum, expected);
        }
        assert!((150..250).contains(&corrupted));
        assert_eq!(conserved(&wire).corrupted, corrupted);
    }
}

#[test]
fn a_fault_does_not_change_the_luck_of_another() {
    let fates = |config: DirectionConfig| {
        let (clock, mut a, mut sink, wire) = world(config);
        let fates = Rc::new(RefCell::new(Vec::new()));
        let log = Rc::clone(&fates);
        wire.set_trace(move |_, _, fate, _| log.borrow_mut().push(fate));
        for number in 0..500 {
            send(&mut a, &numbered(number, 60)).unwrap();
            step(&clock, &mut [&mut sink], LONG);
        }
        fates.take()
    };
    let plain = DirectionConfig { loss: 0.2, ..Default::default() };
    let busy =
        DirectionConfig { duplicate: 0.3, corrupt: 0.3, reorder: 0.3, jitter_nanos: 99, ..plain };
    assert_eq!(fates(plain), fates(busy));
}

fn any_direction() -> impl Strategy<Value = DirectionConfig> {
    let rate = || prop_oneof![2 => Just(0.0), 1 => 0.0..0.5];
    let wire = (
        prop::sample::select(vec![0u64, 1_000_000, 333_333_333, 10_000_000_000]),
        0u64..2_000_000,
        prop_oneof![Just(0u64), 0u64..500_000],
        0usize..40,
        1usize..40,
        any::<bool>(),
    );
    let faults = (rate(), rate(), rate(), rate(), any::<bool>());
    (wire, faults).prop_map(|(wire, faults)| DirectionConfig {
        bandwidth_bps: wire.0,
        delay_nanos: wire.1,
        jitter_nanos: wire.2,
        queue_frames: wire.3,
        ring_frames: wire.4,
        when_full: if wire.5 { WhenFull::Refuse } else { WhenFull::Drop },
        loss: faults.0,
        reorder: faults.1,
        duplicate: faults.2,
        corrupt: faults.3,
        burst_loss: faults.4.then_some(BurstLoss {
            good_to_bad: 0.1,
            bad_to_good: 0.3,
            loss_in_bad: 0.8,
        }),
        ..Default::default()
    })
}

/// What happens between two sendings.
#[derive(Clone, Debug)]
enum Op {
    Send(usize),
    Advance(u64),
    Receive,
    SetUp(bool),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (4usize..1500).prop_map(Op::Send),
        4 => (0u64..3_000_000).prop_map(Op::Advance),
        4 => Just(Op::Receive),
        1 => any::<bool>().prop_map(Op::SetUp),
    ]
}

type Log = Vec<(Instant, Vec<u8>, RxChecksum)>;

fn run(config: &LinkConfig, ops: &[Op]) -> (Log, DirectionStats) {
    let clock = VirtualClock::new();
    let (mut a, b, wire) = pair(&clock, config).unwrap();
    let mut sink = Sink::new(&clock, b);
    let accepted = Cell::new(0u64);
    for (number, op) in ops.iter().enumerate() {
        match op {
            Op::Send(len) => {
                if send(&mut a, &numbered(number as u32, *len)).is_ok() {
                    accepted.set(accepted.get() + 1);
                }
            }
            Op::Advance(nanos) => clock.advance_nanos(*nanos),
            Op::Receive => while sink.turn() {},
            Op::SetUp(up) => wire.set_up(*up),
        }
        let stats = conserved(&wire);
        assert_eq!(stats.offered, accepted.get());
        assert_eq!(stats.delivered, sink.got.len() as u64);
        assert!(wire.next_event() > clock.now());
    }
    drive(&clock, &mut [&mut sink], LONG);
    (sink.got, conserved(&wire))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..Default::default() })]

    #[test]
    fn every_frame_is_accounted_for_and_a_seed_is_a_run(
        a_to_b in any_direction(),
        seed: u64,
        ops in prop::collection::vec(any_op(), 1..120),
    ) {
        let config = LinkConfig { a_to_b, seed, buffers: 128, ..Default::default() };
        let (log, stats) = run(&config, &ops);
        prop_assert_eq!(stats.in_flight, 0, "all frames come to an end");
        let copies = if stats.duplicated == 0 { 1 } else { 2 };
        prop_assert!(stats.delivered_bytes <= copies * stats.offered_bytes);
        prop_assert_eq!(&run(&config, &ops), &(log, stats), "the same seed is the same run");
    }
}

#[test]
fn another_seed_is_another_run() {
    let direction = DirectionConfig { loss: 0.5, ..Default::default() };
    let ops: Vec<_> = (0..100).map(|_| Op::Send(60)).collect();
    let runs: Vec<_> = (0..2)
        .map(|seed| run(&LinkConfig { seed, ..LinkConfig::symmetric(direction) }, &ops).0)
        .collect();
    assert_ne!(runs[0], runs[1]);
}

#[test]
fn a_long_queue_marks_those_that_understand() {
    let clock = VirtualClock::new();
    let path = DirectionConfig { mark_frames: 2, ..DirectionConfig::wire(1_000_000, 1000) };
    let (mut a, b, wire) = pair(&clock, &LinkConfig::symmetric(path)).unwrap();
    let mut sink = Sink::new(&clock, b);
    // IPv4 with ECT(0), IPv4 without, IPv6 with ECT(1).
    let ipv4 = |tos: u8| {
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..16].copy_from_slice(&[0x45, tos]);
        let sum = !(0x4500u16 + u16::from(tos));
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    let mut ipv6 = vec![0; 60];
    ipv6[12..16].copy_from_slice(&[0x86, 0xdd, 0x60, 0x10]);
    for frame in [ipv4(2), ipv4(2), ipv4(2), ipv4(2), ipv4(0), ipv6] {
        send(&mut a, &frame).unwrap();
    }
    drive(&clock, &mut [&mut sink, &mut wire.clone()], Instant::FAR_FUTURE);
    let tos: Vec<_> = sink.got.iter().map(|(_, bytes, _)| bytes[15]).collect();
    // One is being sent, two wait, and those behind them are marked.
    assert_eq!(tos, [2, 2, 2, 3, 0, 0x30]);
    assert_eq!(wire.stats(Direction::AToB).marked, 2);
    for (_, bytes, _) in sink.got.iter().take(5) {
        let words =
            bytes[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the checksum is right");
    }
}

#[test]
fn the_queue_is_accounted_for() {
    let clock = VirtualClock::new();
    // 1000 bytes take a millisecond.
    let path = DirectionConfig::wire(8_000_000, 0);
    let (mut a, b, wire) = pair(&clock, &LinkConfig::symmetric(path)).unwrap();
    let mut sink = Sink::new(&clock, b);
    for number in 0..3 {
        send(&mut a, &numbered(number, 1000)).unwrap();
    }
    assert_eq!(wire.queue(Direction::AToB), (2, 2000));
    drive(&clock, &mut [&mut sink, &mut wire.clone()], Instant::FAR_FUTURE);
    assert_eq!(wire.queue(Direction::AToB), (0, 0));
    let stats = wire.stats(Direction::AToB);
    assert_eq!((stats.queued, stats.queue_frames_max, stats.queue_bytes_max), (3, 2, 2000));
    assert_eq!((stats.waited_nanos, stats.waited_nanos_max), (3_000_000, 2_000_000));
    assert_eq!(stats.waited_nanos_mean(), 1_000_000);
}

#[test]
fn outages_come_by_schedule_and_a_host_that_restarts_finds_nothing() {
    let clock = VirtualClock::new();
    let (mut a, b, wire) = pair(&clock, &LinkConfig::default()).unwrap();
    let flaps = Flaps { first_nanos: 100, down_nanos: 10, up_nanos: 50, count: 2 };
    let mut flapper = Flapper::new(&wire, &clock, flaps);
    let mut up = Vec::new();
    for nanos in 0..200 {
        drive(&clock, &mut [&mut flapper], Instant::from_nanos(nanos));
        if a.is_up() != up.last().is_none_or(|(_, up)| *up) {
            up.push((nanos, a.is_up()));
        }
    }
    assert_eq!(up, [(100, false), (110, true), (160, false), (170, true)]);
    assert_eq!(flapper.left(), 0);

    send(&mut a, &numbered(1, 60)).unwrap();
    drop(b);
    let mut sink = Sink::new(&clock, wire.reopen(Direction::BToA));
    send(&mut a, &numbered(2, 60)).unwrap();
    drive(&clock, &mut [&mut sink, &mut wire.clone()], Instant::FAR_FUTURE);
    assert_eq!(sink.numbers(), [2]);
    let stats = wire.stats(Direction::AToB);
    assert_eq!((stats.dropped_down, stats.delivered, stats.in_flight), (1, 1, 0));
}
