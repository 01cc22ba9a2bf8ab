//! Nothing is allocated once a connection is open, lossy or not.

mod common;

use allocation_counter::measure;
use millstream_buf::{Arena, ArenaConfig, HugePages, IoBuf, SizeClass, Staging};
use millstream_tcp::{Config, Env, Events, Segment, SliceSlab, State, Tcb, TcpStats};
use millstream_timer::Instant;
use millstream_wire::tcp::{Header, SeqNumber};

struct End {
    tcb: Option<Tcb>,
    slab: SliceSlab,
    stats: TcpStats,
    out: Segment,
}

/// Moves one segment; drops it if told to. `true` if there was one.
fn carry(ends: &mut [End; 2], from: usize, now: Instant, config: &Config, lose: bool) -> bool {
    let [a, b] = ends;
    let (from, to) = if from == 0 { (a, b) } else { (b, a) };
    let mut env = Env { now, config, slices: &mut from.slab, stats: &mut from.stats };
    let Some(tcb) = &mut from.tcb else { return false };
    if !tcb.transmit(&mut env, &mut from.out) {
        return false;
    }
    if lose {
        return true;
    }
    let header = Header {
        src_port: 1,
        dst_port: 2,
        seq: from.out.seq,
        ack: from.out.ack,
        flags: from.out.flags,
        window: from.out.window,
        urgent: 0,
        options: from.out.options.as_slice(),
    };
    assert!(from.out.payload.len() <= 1, "these tests send one slice a segment");
    let payload: Option<IoBuf> = from.out.payload.pop();
    let mut env = Env { now, config, slices: &mut to.slab, stats: &mut to.stats };
    match &mut to.tcb {
        Some(tcb) => {
            let events = tcb.input(&mut env, &header, payload);
            if events.contains(Events::READABLE) {
                while tcb.recv(&mut env).is_some() {}
            }
        }
        None => to.tcb = Some(Tcb::passive_open(&mut env, SeqNumber(9), 0, 1460, &header)),
    }
    true
}

fn connect(now: Instant, config: &Config) -> [End; 2] {
    let mut ends = [0, 1].map(|_| End {
        tcb: None,
        slab: SliceSlab::with_capacity(2048),
        stats: TcpStats::default(),
        out: Segment::default(),
    });
    let client = &mut ends[0];
    let mut env = Env { now, config, slices: &mut client.slab, stats: &mut client.stats };
    client.tcb = Some(Tcb::active_open(&mut env, SeqNumber(7), 0, 1460));
    while carry(&mut ends, 0, now, config, false) || carry(&mut ends, 1, now, config, false) {}
    assert!(ends.iter().all(|end| end.tcb.as_ref().unwrap().state() == State::Established));
    ends
}

fn send(end: &mut End, now: Instant, config: &Config, buf: IoBuf) -> bool {
    let mut env = Env { now, config, slices: &mut end.slab, stats: &mut end.stats };
    end.tcb.as_mut().unwrap().send(&mut env, buf).is_ok()
}

fn release(ends: &mut [End; 2]) {
    for end in ends {
        end.tcb.as_mut().unwrap().release(&mut end.slab);
        end.out.payload.clear();
        assert_eq!(end.slab.used(), 0);
    }
}

#[test]
fn ping_pong_allocates_nothing() {
    let config = Config { quick_acks: 0, ..Config::default() };
    let arena =
        Arena::new(&ArenaConfig { frames: 64, blocks: 0, huge_pages: HugePages::Never }).unwrap();
    let mut staging = Staging::new(arena.clone(), SizeClass::Frame);
    let mut now = Instant::from_micros(1_000_000);
    let mut ends = connect(now, &config);
    let allocated = measure(|| {
        for _ in 0..10_000 {
            now = now.plus_nanos(1000);
            for from in 0..2 {
                let byte = staging.put(b"x").unwrap();
                assert!(send(&mut ends[from], now, &config, byte));
                assert!(carry(&mut ends, from, now, &config, false));
                assert!(!carry(&mut ends, from, now, &config, false));
            }
        }
    });
    assert_eq!(allocated.count_total, 0);
    assert!(ends[0].stats.fast_path > 9_990 && ends[1].stats.fast_path > 9_990);
    assert_eq!(ends[0].stats.segments_out, 10_002, "each answer carries the ACK");
    release(&mut ends);
    drop(staging);
    assert_eq!(arena.free(SizeClass::Frame), 64);
}

#[test]
fn bulk_allocates_nothing_even_with_losses() {
    let config = Config::default();
    let arena =
        Arena::new(&ArenaConfig { frames: 0, blocks: 64, huge_pages: HugePages::Never }).unwrap();
    let block = arena.alloc(SizeClass::Block).unwrap().freeze(0..14_480);
    let mut now = Instant::from_micros(1_000_000);
    let mut ends = connect(now, &config);
    let mut random = common::Rng::new(5);
    let goal = 4 << 20;
    let allocated = measure(|| {
        while ends[0].tcb.as_ref().unwrap().acked_total() < goal {
            while send(&mut ends[0], now, &config, block.clone()) {}
            let mut quiet = true;
            for from in 0..2 {
                while carry(&mut ends, from, now, &config, random.chance(10)) {
                    quiet = false;
                }
            }
            let next = ends.iter().map(|end| end.tcb.as_ref().unwrap().deadline()).min().unwrap();
            now = now.plus_micros(100);
            if quiet && next > now {
                now = next;
            }
            for end in &mut ends {
                let mut env =
                    Env { now, config: &config, slices: &mut end.slab, stats: &mut end.stats };
                end.tcb.as_mut().unwrap().on_timer(&mut env);
            }
        }
    });
    assert_eq!(allocated.count_total, 0);
    assert!(ends[0].stats.fast_retransmits > 0 && ends[1].stats.out_of_order > 0);
    release(&mut ends);
}
