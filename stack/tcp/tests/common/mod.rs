//! Two ends joined by a pipe, in virtual time.
#![allow(dead_code)] // each test file uses its part

use std::collections::VecDeque;

use millstream_buf::IoBuf;
use millstream_tcp::{Config, Env, Events, Segment, SendError, SliceSlab, State, Tcb, TcpStats};
use millstream_timer::Instant;
use millstream_wire::tcp::{self, Flags, Header, SeqNumber};

/// A small generator (xorshift64*), so that a seed is a test.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound.max(1)
    }

    /// True in `per_mille` of a thousand cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// A segment on its way, as bytes.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The ECN codepoint of the IP header.
    pub ecn: u8,
    pub header: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn parse(&self) -> Header<'_> {
        Header::parse(&self.header).unwrap().0
    }

    pub fn payload(&self) -> Option<IoBuf> {
        (!self.payload.is_empty()).then(|| IoBuf::from(self.payload.as_slice()))
    }

    /// A segment made by hand.
    pub fn make(
        seq: SeqNumber,
        ack: SeqNumber,
        flags: Flags,
        window: u16,
        options: &[u8],
        payload: &[u8],
    ) -> Self {
        let mut header = vec![0; 60];
        let len = tcp::emit(&mut header, 1, 2, seq, ack, flags, window, 0, options);
        header.truncate(len);
        Self { ecn: 0, header, payload: payload.to_vec() }
    }
}

/// One end with all that it needs.
pub struct End {
    pub tcb: Option<Tcb>,
    pub config: Config,
    pub slab: SliceSlab,
    pub stats: TcpStats,
    pub out: Segment,
    pub events: Events,
    pub isn: SeqNumber,
    pub mss_limit: u16,
    /// What its application has read.
    pub read: Vec<u8>,
    /// Whether its application reads on its own.
    pub reads: bool,
    /// The highest right edge it has announced.
    pub edge: Option<SeqNumber>,
    /// How far an announced edge ever went back.
    pub shrunk_by: i32,
    /// The most that was ever in flight beyond the congestion window.
    pub cwnd_excess: i64,
    sent_until: Option<SeqNumber>,
    /// Segments that it fills in at once, for the link to cut.
    pub segments_max: u16,
    /// Those of a run that are cut, but not on the link yet.
    cut: VecDeque<Frame>,
}

impl End {
    pub fn new(config: Config, isn: u32) -> Self {
        Self {
            tcb: None,
            config,
            slab: SliceSlab::with_capacity(4096),
            stats: TcpStats::default(),
            out: Segment::default(),
            events: Events::empty(),
            isn: SeqNumber(isn),
            mss_limit: 1460,
            read: Vec::new(),
            reads: true,
            edge: None,
            shrunk_by: 0,
            cwnd_excess: i64::MIN,
            sent_until: None,
            segments_max: 44,
            cut: VecDeque::new(),
        }
    }

    pub fn with<R>(&mut self, now: Instant, call: impl FnOnce(&mut Tcb, &mut Env<'_>) -> R) -> R {
        let mut env =
            Env { now, config: &self.config, slices: &mut self.slab, stats: &mut self.stats };
        call(self.tcb.as_mut().expect("the end is open"), &mut env)
    }

    pub fn connect(&mut self, now: Instant) {
        let mut env =
            Env { now, config: &self.config, slices: &mut self.slab, stats: &mut self.stats };
        self.tcb = Some(Tcb::active_open(&mut env, self.isn, 1000, self.mss_limit));
    }

    /// Feeds a frame: to the connection, or to the listener that each end has.
    pub fn input(&mut self, now: Instant, frame: &Frame) -> Events {
        let header = frame.parse();
        if self.tcb.is_none() {
            if header.flags.intersection(Flags::SYN | Flags::ACK | Flags::RST) == Flags::SYN {
                let mut env = Env {
                    now,
                    config: &self.config,
                    slices: &mut self.slab,
                    stats: &mut self.stats,
                };
                let tcb = Tcb::passive_open(&mut env, self.isn, 2000, self.mss_limit, &header);
                self.tcb = Some(tcb);
            }
            return Events::empty();
        }
        let marked = frame.ecn == millstream_tcp::CE;
        let events = self.with(now, |tcb, env| {
            if marked {
                tcb.note_ce();
            }
            tcb.input(env, &header, frame.payload())
        });
        self.events |= events;
        assert_eq!(
            events.contains(Events::TRANSMIT),
            self.tcb.as_ref().unwrap().wants_transmit(),
            "the event tells what wants_transmit tells"
        );
        if self.reads {
            self.read_all(now);
        }
        events
    }

    pub fn read_all(&mut self, now: Instant) {
        while let Some(buf) = self.with(now, |tcb, env| tcb.recv(env)) {
            self.read.extend_from_slice(&buf);
        }
    }

    pub fn timer(&mut self, now: Instant) -> Events {
        let events = self.with(now, |tcb, env| tcb.on_timer(env));
        self.events |= events;
        events
    }

    /// The next segment.
    pub fn transmit(&mut self, now: Instant) -> Option<Frame> {
        self.tcb.as_ref()?;
        if let Some(frame) = self.cut.pop_front() {
            return Some(frame);
        }
        let mut out = std::mem::take(&mut self.out);
        out.segments_max = self.segments_max;
        let sent = self.with(now, |tcb, env| tcb.transmit(env, &mut out));
        self.out = out;
        if !sent {
            assert!(!self.tcb.as_ref().unwrap().wants_transmit(), "nothing sent, yet more wanted");
            return None;
        }
        let out = &self.out;
        let payload: Vec<u8> = out.payload.iter().flat_map(|slice| slice.to_vec()).collect();
        let size = if out.gso_bytes == 0 { payload.len() } else { usize::from(out.gso_bytes) };
        assert!(size + out.options.len() <= usize::from(self.mss_limit).max(88));
        assert!(payload.len() <= size * usize::from(out.segments_max));
        let mut seq = out.seq;
        let mut rest = payload.as_slice();
        loop {
            let (piece, behind) = rest.split_at(size.min(rest.len()));
            let flags = if behind.is_empty() { out.flags } else { out.flags - Flags::PSH };
            let options = out.options.as_slice();
            let mut frame = Frame::make(seq, out.ack, flags, out.window, options, piece);
            frame.ecn = out.ecn;
            self.cut.push_back(frame);
            seq += piece.len() as u32;
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        let frame = self.cut.pop_front()?;
        let info = self.tcb.as_ref().unwrap().info();
        let established = !matches!(
            info.state,
            State::SynSent | State::SynReceived | State::Closed | State::TimeWait
        );
        if out.flags.contains(Flags::ACK) && !out.flags.intersects(Flags::SYN | Flags::RST) {
            let edge = out.ack + (u32::from(out.window) << info.rcv_scale);
            if let Some(before) = self.edge {
                self.shrunk_by = self.shrunk_by.max(before.distance(edge));
            }
            self.edge = Some(self.edge.map_or(edge, |before| before.max(edge)));
        }
        let end = out.seq + payload.len() as u32;
        let new = self.sent_until.is_none_or(|until| end.gt(until));
        if new {
            self.sent_until = Some(end);
        }
        // What is repaired in recovery is in flight already.
        if established && !frame.payload.is_empty() && (new || !info.in_recovery) {
            // Two segments of limited transmit (RFC 3042) may come on top.
            let excess = i64::from(info.flight_bytes)
                - i64::from(info.cwnd_bytes)
                - 2 * i64::from(info.mss_bytes);
            self.cwnd_excess = self.cwnd_excess.max(excess);
        }
        Some(frame)
    }

    /// Queues as much of `bytes` as there is room for; returns how much.
    pub fn send(&mut self, now: Instant, bytes: &[u8]) -> usize {
        let room = self.tcb.as_ref().unwrap().send_room(&self.config).min(bytes.len());
        if room == 0 {
            return 0;
        }
        let buf = IoBuf::from(&bytes[..room]);
        match self.with(now, |tcb, env| tcb.send(env, buf)) {
            Ok(()) => room,
            Err(SendError::Full(_) | SendError::Closed(_)) => 0,
        }
    }

    pub fn close(&mut self, now: Instant) {
        self.with(now, |tcb, env| tcb.close(env));
    }

    pub fn state(&self) -> State {
        self.tcb.as_ref().map_or(State::Closed, Tcb::state)
    }

    pub fn info(&self) -> millstream_tcp::TcpInfo {
        self.tcb.as_ref().unwrap().info()
    }

    /// Drops the record; every slice must come home.
    pub fn release(&mut self) {
        if let Some(mut tcb) = self.tcb.take() {
            tcb.release(&mut self.slab);
        }
        self.out = Segment::default();
        assert_eq!(self.slab.used(), 0, "slices leaked");
        assert_eq!((self.slab.flights_used(), self.slab.records_used()), (0, 0), "records leaked");
    }
}

/// What the pipe does to frames.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub delay_us: u64,
    /// Up to this much more, at random: reorders.
    pub jitter_us: u64,
    pub loss_per_mille: u64,
    pub duplicate_per_mille: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Self { delay_us: 5_000, jitter_us: 0, loss_per_mille: 0, duplicate_per_mille: 0 }
    }
}

type Filter = Box<dyn FnMut(usize, &Frame) -> bool>;

/// The pair.
pub struct Pair {
    pub now: Instant,
    pub ends: [End; 2],
    pub faults: Faults,
    pub rng: Rng,
    /// Frames on their way: due, sender, frame.
    flying: VecDeque<(Instant, usize, Frame)>,
    /// In so many of a thousand cases the pipe marks what may be marked.
    pub mark_per_mille: u64,
    /// Sees each frame with its sender; `false` drops it.
    pub filter: Option<Filter>,
    /// Frames delivered or dropped, by sender.
    pub log: Vec<(Instant, usize, Frame)>,
}

impl Pair {
    pub fn new(client: Config, server: Config) -> Self {
        Self {
            now: Instant::from_micros(1_000_000),
            ends: [End::new(client, 0x1000_0000), End::new(server, 0x2000_0000)],
            faults: Faults::default(),
            rng: Rng::new(1),
            flying: VecDeque::new(),
            mark_per_mille: 0,
            filter: None,
            log: Vec::new(),
        }
    }

    /// A pair with an established connection.
    pub fn connected(client: Config, server: Config) -> Self {
        let mut pair = Self::new(client, server);
        pair.connect();
        pair
    }

    pub fn connect(&mut self) {
        self.ends[0].connect(self.now);
        self.run_for(200_000);
        assert_eq!(self.ends[0].state(), State::Established);
        assert_eq!(self.ends[1].state(), State::Established);
    }

    /// Lets both ends send what they want.
    pub fn pump(&mut self) {
        for from in 0..2 {
            let mut burst = 0;
            while let Some(frame) = self.ends[from].transmit(self.now) {
                burst += 1;
                assert!(burst < 10_000, "an end never stops sending");
                self.launch(from, frame);
            }
        }
    }

    pub fn launch(&mut self, from: usize, mut frame: Frame) {
        if frame.ecn == millstream_tcp::ECT_0 && self.rng.chance(self.mark_per_mille) {
            frame.ecn = millstream_tcp::CE;
        }
        self.log.push((self.now, from, frame.clone()));
        if self.filter.as_mut().is_some_and(|filter| !filter(from, &frame)) {
            return;
        }
        let faults = self.faults;
        if self.rng.chance(faults.loss_per_mille) {
            return;
        }
        let copies = 1 + usize::from(self.rng.chance(faults.duplicate_per_mille));
        for _ in 0..copies {
            let delay = faults.delay_us + self.rng.below(faults.jitter_us + 1);
            let due = self.now.plus_micros(delay);
            let at = self.flying.partition_point(|(other, ..)| *other <= due);
            self.flying.insert(at, (due, from, frame.clone()));
        }
    }

    /// When something happens next.
    fn next(&self) -> Instant {
        let mut next = self.flying.front().map_or(Instant::FAR_FUTURE, |flying| flying.0);
        for end in &self.ends {
            if let Some(tcb) = &end.tcb {
                next = next.min(tcb.deadline());
            }
        }
        next
    }

    /// One thing that happens; `false` if nothing will, before `until`.
    pub fn step(&mut self, until: Instant) -> bool {
        self.pump();
        let next = self.next();
        if next > until {
            self.now = until;
            return false;
        }
        self.now = self.now.max(next);
        if self.flying.front().is_some_and(|flying| flying.0 <= self.now) {
            let (_, from, frame) = self.flying.pop_front().unwrap();
            self.ends[1 - from].input(self.now, &frame);
        } else {
            for end in &mut self.ends {
                if end.tcb.as_ref().is_some_and(|tcb| tcb.deadline() <= self.now) {
                    end.timer(self.now);
                    assert!(
                        end.tcb.as_ref().unwrap().deadline() > self.now,
                        "a timer that fired is still due"
                    );
                }
            }
        }
        true
    }

    pub fn run_for(&mut self, micros: u64) {
        let until = self.now.plus_micros(micros);
        while self.step(until) {}
    }

    /// Sends `streams[i]` from end `i`, and waits until both are there; fails after `limit_us`.
    pub fn transfer(&mut self, streams: [&[u8]; 2], limit_us: u64) {
        let until = self.now.plus_micros(limit_us);
        let before = [self.ends[0].read.len(), self.ends[1].read.len()];
        let mut queued = [0, 0];
        loop {
            for end in 0..2 {
                queued[end] += self.ends[end].send(self.now, &streams[end][queued[end]..]);
            }
            let read = [self.ends[0].read.len() - before[0], self.ends[1].read.len() - before[1]];
            if read == [streams[1].len(), streams[0].len()] {
                break;
            }
            let more = self.step(until);
            assert!(
                more,
                "stuck: {read:?} of {:?}, {:?} / {:?}",
                [streams[1].len(), streams[0].len()],
                self.ends[0].tcb,
                self.ends[1].tcb
            );
        }
        assert!(self.ends[0].read[before[0]..] == *streams[1], "what end 0 read differs");
        assert!(self.ends[1].read[before[1]..] == *streams[0], "what end 1 read differs");
    }

    /// Drops both records and checks that nothing leaked.
    pub fn release(&mut self) {
        for end in &mut self.ends {
            end.release();
        }
    }

    /// Frames that `from` has sent since `start` of the log.
    pub fn sent(&self, from: usize, start: usize) -> Vec<&Frame> {
        self.log[start..].iter().filter(|entry| entry.1 == from).map(|entry| &entry.2).collect()
    }
}

/// Bytes that tell where they stand.
pub fn stream(len: usize, seed: u64) -> Vec<u8> {
    (0..len).map(|at| ((at as u64 * 31 + seed * 7) % 251) as u8).collect()
}
