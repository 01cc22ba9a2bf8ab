//! What a data segment costs in TCP alone: no link, no sockets, no checksums.

use std::error::Error;

use millstream::buf::{Arena, ArenaConfig, HugePages, IoBuf, SizeClass};
use millstream::tcp::{Config, Env, Segment, SliceSlab, State, Tcb, TcpStats};
use millstream::timer::Instant;
use millstream::wire::tcp::{Header, SeqNumber};

use crate::callgrind::counted_part;

/// Payload and options of a segment on an Ethernet, over IPv4.
const LIMIT: u16 = 1460;
/// Payload beside a timestamp.
const PAYLOAD: usize = 1448;
/// Segments in a slice of the sender's.
const SLICE_SEGMENTS: usize = 10;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `Tcb::input` of a data segment.
    DataIn,
    /// `Tcb::transmit` of a data segment.
    DataOut,
    /// `Tcb::input` of an ACK.
    AckIn,
    /// `Tcb::transmit` of an ACK.
    AckOut,
}

impl Part {
    /// As it is called on the command line.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "data-in" => Self::DataIn,
            "data-out" => Self::DataOut,
            "ack-in" => Self::AckIn,
            "ack-out" => Self::AckOut,
            _ => return None,
        })
    }
}

struct End {
    tcb: Option<Tcb>,
    slab: SliceSlab,
    stats: TcpStats,
}

impl End {
    fn new(tcb: Option<Tcb>) -> Self {
        Self { tcb, slab: SliceSlab::with_capacity(1024), stats: TcpStats::default() }
    }

    fn act<R>(
        &mut self,
        now: Instant,
        config: &Config,
        act: impl FnOnce(&mut Tcb, &mut Env<'_>) -> R,
    ) -> Option<R> {
        let mut env = Env { now, config, slices: &mut self.slab, stats: &mut self.stats };
        self.tcb.as_mut().map(|tcb| act(tcb, &mut env))
    }

    fn transmit(&mut self, out: &mut Segment, now: Instant, config: &Config, count: bool) -> bool {
        let act = |tcb: &mut Tcb, env: &mut Env<'_>| {
            if count { counted_part(|| tcb.transmit(env, out)) } else { tcb.transmit(env, out) }
        };
        self.act(now, config, act).unwrap_or(false)
    }

    fn input(
        &mut self,
        segment: &Segment,
        payload: Option<IoBuf>,
        now: Instant,
        config: &Config,
        count: bool,
    ) {
        let header = header(segment);
        self.act(now, config, |tcb, env| {
            if count {
                counted_part(|| tcb.input(env, &header, payload))
            } else {
                tcb.input(env, &header, payload)
            }
        });
    }
}

/// As it would be read off a frame.
fn header(segment: &Segment) -> Header<'_> {
    Header {
        src_port: 1,
        dst_port: 2,
        seq: segment.seq,
        ack: segment.ack,
        flags: segment.flags,
        window: segment.window,
        urgent: 0,
        options: segment.options.as_slice(),
    }
}

/// A connection that carries data one way, segment by segment, in bursts as its window allows.
pub struct Stream {
    config: Config,
    now: Instant,
    sender: End,
    receiver: End,
    out: Segment,
    /// What the application sends, again and again.
    slice: IoBuf,
    /// What the link receives into.
    frame: IoBuf,
}

impl Stream {
    /// One that is open, with timestamps and selective acknowledgements.
    pub fn new() -> Result<Self, Box<dyn Error>> {
        let config = Config { quick_acks: 0, ..Config::default() };
        let arena =
            Arena::new(&ArenaConfig { frames: 8, blocks: 8, huge_pages: HugePages::Never })?;
        let slice = arena.alloc(SizeClass::Block).ok_or("no block")?;
        let frame = arena.alloc(SizeClass::Frame).ok_or("no frame")?;
        let now = Instant::from_micros(1_000_000);
        let mut sender = End::new(None);
        let mut env =
            Env { now, config: &config, slices: &mut sender.slab, stats: &mut sender.stats };
        sender.tcb = Some(Tcb::active_open(&mut env, SeqNumber(7), 0, LIMIT));
        let mut stream = Self {
            config,
            now,
            sender,
            receiver: End::new(None),
            out: Segment::default(),
            slice: slice.freeze(0..SLICE_SEGMENTS * PAYLOAD),
            frame: frame.freeze(0..PAYLOAD),
        };
        stream.open()?;
        Ok(stream)
    }

    fn open(&mut self) -> Result<(), Box<dyn Error>> {
        let Self { config, now, sender, receiver, out, .. } = self;
        sender.transmit(out, *now, config, false);
        let mut env =
            Env { now: *now, config, slices: &mut receiver.slab, stats: &mut receiver.stats };
        let syn = header(out);
        receiver.tcb = Some(Tcb::passive_open(&mut env, SeqNumber(9), 0, LIMIT, &syn));
        receiver.transmit(out, *now, config, false);
        sender.input(out, None, *now, config, false);
        sender.transmit(out, *now, config, false);
        receiver.input(out, None, *now, config, false);
        let info = receiver.tcb.as_ref().map(Tcb::info).ok_or("no connection")?;
        let agreed = info.state == State::Established && info.sack && info.timestamps;
        if agreed { Ok(()) } else { Err("the ends did not agree on SACK and timestamps".into()) }
    }

    /// Carries `segments` full segments. What `part` says of them is counted.
    pub fn run(&mut self, segments: u64, part: Option<Part>) -> Result<(), Box<dyn Error>> {
        let Self { config, now, sender, receiver, out, slice, frame } = self;
        let counts = |what: Part| part == Some(what);
        let mut carried = 0;
        while carried < segments {
            let before = carried;
            // Rounds of 100 us; the application always has something to send.
            *now = now.plus_micros(100);
            while sender.act(*now, config, |tcb, env| tcb.send(env, slice.clone()).is_ok())
                == Some(true)
            {}
            while carried < segments && sender.transmit(out, *now, config, counts(Part::DataOut)) {
                if out.payload_len() != PAYLOAD {
                    return Err(format!("a segment of {} bytes", out.payload_len()).into());
                }
                out.payload.clear();
                let payload = Some(frame.clone());
                receiver.input(out, payload, *now, config, counts(Part::DataIn));
                receiver.act(*now, config, |tcb, env| while tcb.recv(env).is_some() {});
                carried += 1;
                // An ACK for every second segment.
                let due = receiver.act(*now, config, |tcb, _| tcb.owes_ack()) == Some(true);
                if due && receiver.transmit(out, *now, config, counts(Part::AckOut)) {
                    sender.input(out, None, *now, config, counts(Part::AckIn));
                }
            }
            if carried == before {
                // The last one of an odd window waits for its delayed ACK.
                *now = now.plus_micros(u64::from(config.delayed_ack_us));
                receiver.act(*now, config, |tcb, env| tcb.on_timer(env));
                if !receiver.transmit(out, *now, config, false) {
                    return Err("the stream stopped".into());
                }
                sender.input(out, None, *now, config, false);
            }
        }
        Ok(())
    }

    /// The share of segments and ACKs that header prediction took.
    pub fn predicted(&self) -> f64 {
        let stats = [&self.sender.stats, &self.receiver.stats];
        let [fast, all] =
            [stats.map(|stats| stats.fast_path), stats.map(|stats| stats.segments_in)];
        fast.iter().sum::<u64>() as f64 / all.iter().sum::<u64>() as f64
    }
}
