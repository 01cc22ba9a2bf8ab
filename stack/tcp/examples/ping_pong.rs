//! Two ends in memory that send one byte back and forth: what to run under a profiler to see what
//! `input` and `transmit` cost.
//!
//! ```text
//! cargo build --release --example ping_pong -p millstream-tcp
//! valgrind --tool=callgrind target/release/examples/ping_pong 100000
//! ```

use millstream_buf::{Arena, ArenaConfig, HugePages, SizeClass, Staging};
use millstream_tcp::{Config, Env, Segment, SliceSlab, State, Tcb, TcpStats};
use millstream_timer::Instant;
use millstream_wire::tcp::{Header, SeqNumber};

struct End {
    tcb: Option<Tcb>,
    slab: SliceSlab,
    stats: TcpStats,
    out: Segment,
}

impl End {
    fn new() -> Self {
        Self {
            tcb: None,
            slab: SliceSlab::with_capacity(64),
            stats: TcpStats::default(),
            out: Segment::default(),
        }
    }

    fn env<'a>(
        &'a mut self,
        now: Instant,
        config: &'a Config,
    ) -> (&'a mut Option<Tcb>, Env<'a>, &'a mut Segment) {
        let env = Env { now, config, slices: &mut self.slab, stats: &mut self.stats };
        (&mut self.tcb, env, &mut self.out)
    }
}

/// Hands what `from` sends to `to`, as headers in memory.
fn carry(from: &mut End, to: &mut End, now: Instant, config: &Config) -> bool {
    if !transmit(from, now, config) {
        return false;
    }
    let payload = from.out.payload.pop();
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
    let (tcb, mut env, _) = to.env(now, config);
    match tcb {
        Some(tcb) => input(tcb, &mut env, &header, payload),
        None => *tcb = Some(Tcb::passive_open(&mut env, SeqNumber(9), 0, 1460, &header)),
    }
    true
}

#[inline(never)]
fn transmit(end: &mut End, now: Instant, config: &Config) -> bool {
    let (tcb, mut env, out) = end.env(now, config);
    tcb.as_mut().is_some_and(|tcb| tcb.transmit(&mut env, out))
}

#[inline(never)]
fn input(
    tcb: &mut Tcb,
    env: &mut Env<'_>,
    header: &Header<'_>,
    payload: Option<millstream_buf::IoBuf>,
) {
    tcb.input(env, header, payload);
}

#[inline(never)]
fn read(end: &mut End, now: Instant, config: &Config) -> usize {
    let (tcb, mut env, _) = end.env(now, config);
    let mut count = 0;
    while let Some(buf) = tcb.as_mut().and_then(|tcb| tcb.recv(&mut env)) {
        count += buf.len();
    }
    count
}

#[inline(never)]
fn write(end: &mut End, staging: &mut Staging, now: Instant, config: &Config) {
    let (tcb, mut env, _) = end.env(now, config);
    if let (Some(tcb), Some(buf)) = (tcb, staging.put(b"x")) {
        tcb.send(&mut env, buf).expect("the peer acknowledges each byte");
    }
}

fn main() {
    let rounds: u64 = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let config = Config { quick_acks: 0, ..Config::default() };
    let arena = Arena::new(&ArenaConfig { frames: 64, blocks: 0, huge_pages: HugePages::Never })
        .expect("64 frames");
    let mut staging = Staging::new(arena, SizeClass::Frame);
    let (mut client, mut server) = (End::new(), End::new());
    let mut now = Instant::from_micros(1_000_000);
    let (_, mut env, _) = client.env(now, &config);
    let tcb = Tcb::active_open(&mut env, SeqNumber(7), 0, 1460);
    client.tcb = Some(tcb);
    while carry(&mut client, &mut server, now, &config)
        || carry(&mut server, &mut client, now, &config)
    {}
    assert_eq!(server.tcb.as_ref().map(Tcb::state), Some(State::Established));
    for _ in 0..rounds {
        now = now.plus_nanos(1_000);
        write(&mut client, &mut staging, now, &config);
        assert!(carry(&mut client, &mut server, now, &config));
        assert_eq!(read(&mut server, now, &config), 1);
        write(&mut server, &mut staging, now, &config);
        assert!(carry(&mut server, &mut client, now, &config));
        assert_eq!(read(&mut client, now, &config), 1);
    }
    println!(
        "{rounds} rounds, {} on the fast path",
        client.stats.fast_path + server.stats.fast_path
    );
    for end in [&mut client, &mut server] {
        if let Some(tcb) = &mut end.tcb {
            tcb.release(&mut end.slab);
        }
    }
}
