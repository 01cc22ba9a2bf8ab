//! Two ends of a connection. The input says what each application does, what the path does with
//! each segment, and how time passes. Then the path heals, and everything must arrive.

use std::collections::VecDeque;

use arbitrary::{Arbitrary, Unstructured};
use millstream_buf::IoBuf;
use millstream_tcp::{Config, Env, Segment, SliceSlab, State, Tcb, TcpStats};
use millstream_timer::Instant;
use millstream_wire::tcp::{self, Flags, Header, SeqNumber};

use crate::input::{Span, byte_at, bytes_at};

/// Segments that may be on their way in a direction; the path drops what comes on top.
const FLYING_MAX: usize = 256;
/// Slices that an end may hold.
const SLICES: usize = 2048;
/// Bytes that an application sends in all.
const STREAM_MAX: u32 = 1 << 20;
/// One way through the healed path.
const DELAY_US: u64 = 10_000;
/// With everything healed, no connection needs longer: a back-off may just have begun, of two
/// minutes at most, and both windows may have been closed.
const PATIENCE_US: u64 = 3_600_000_000;
/// Back-off below which an end will not give up before it has asked again: a SYN is repeated 6 times.
const PATIENT_BACKOFF: u8 = 5;

#[derive(Arbitrary, Debug)]
enum Op {
    /// The oldest segment arrives.
    Deliver(bool),
    /// Any of those on their way arrives.
    DeliverAny(bool, u8),
    DeliverAll,
    Drop(bool, u8),
    Duplicate(bool, u8),
    Wait(Span),
    Send(bool, u16),
    /// Reads so many slices.
    Read(bool, u8),
    Close(bool),
    Cork(bool, bool),
    NoDelay(bool, bool),
    KeepAlive(bool, bool),
}

#[derive(Arbitrary, Debug)]
struct Setup {
    timestamps: [bool; 2],
    sack: [bool; 2],
    scaling: [bool; 2],
    nagle: [bool; 2],
    recv_buffer: [u16; 2],
    send_buffer: [u16; 2],
    slices_max: [u8; 2],
    ranges_max: [u8; 2],
    mss: [u16; 2],
    isn: [u32; 2],
    ts_offset: [u32; 2],
    both_open: bool,
}

struct End {
    tcb: Option<Tcb>,
    config: Config,
    slices: SliceSlab,
    stats: TcpStats,
    out: Segment,
    isn: SeqNumber,
    ts_offset: u32,
    mss: u16,
    sent: u32,
    read: u32,
    closed: bool,
}

impl End {
    fn new(setup: &Setup, number: usize) -> Self {
        let config = Config {
            timestamps: setup.timestamps[number],
            sack: setup.sack[number],
            window_scaling: setup.scaling[number],
            nagle: setup.nagle[number],
            recv_buffer_bytes: u32::from(setup.recv_buffer[number]).max(1) * 8,
            send_buffer_bytes: u32::from(setup.send_buffer[number]).max(1) * 8,
            // Half of them do not grow.
            recv_buffer_max_bytes: u32::from(setup.mss[number] & 1) * 600_000,
            send_buffer_max_bytes: u32::from(setup.mss[number] >> 1 & 1) * 600_000,
            recv_slices_max: u16::from(setup.slices_max[number]).max(8),
            reassembly_ranges_max: u16::from(setup.ranges_max[number] % 40).max(1),
            ..Config::default()
        };
        Self {
            tcb: None,
            config,
            slices: SliceSlab::with_capacity(SLICES),
            stats: TcpStats::default(),
            out: Segment::default(),
            isn: SeqNumber(setup.isn[number]),
            ts_offset: setup.ts_offset[number],
            mss: setup.mss[number] % 9_000,
            sent: 0,
            read: 0,
            closed: false,
        }
    }

    fn with<R>(
        &mut self,
        now: Instant,
        call: impl FnOnce(&mut Tcb, &mut Env<'_>) -> R,
    ) -> Option<R> {
        let mut env =
            Env { now, config: &self.config, slices: &mut self.slices, stats: &mut self.stats };
        self.tcb.as_mut().map(|tcb| call(tcb, &mut env))
    }

    fn open(&mut self, now: Instant, syn: Option<&Header<'_>>) {
        let (isn, ts_offset, mss) = (self.isn, self.ts_offset, self.mss);
        let mut env =
            Env { now, config: &self.config, slices: &mut self.slices, stats: &mut self.stats };
        self.tcb = Some(match syn {
            Some(syn) => Tcb::passive_open(&mut env, isn, ts_offset, mss, syn),
            None => Tcb::active_open(&mut env, isn, ts_offset, mss),
        });
    }

    fn input(&mut self, now: Instant, (head, payload): &(Vec<u8>, Vec<u8>)) {
        let (header, _) = Header::parse(head).expect("an end sent it");
        if self.tcb.is_none() {
            if header.flags.intersection(Flags::SYN | Flags::ACK | Flags::RST) == Flags::SYN {
                self.open(now, Some(&header));
            }
            return;
        }
        let payload = (!payload.is_empty()).then(|| IoBuf::from(payload.as_slice()));
        self.with(now, |tcb, env| tcb.input(env, &header, payload));
    }

    fn transmit(&mut self, now: Instant) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut out = std::mem::take(&mut self.out);
        let sent = self.with(now, |tcb, env| tcb.transmit(env, &mut out)) == Some(true);
        self.out = out;
        if !sent {
            return None;
        }
        let out = &self.out;
        let payload: Vec<u8> = out.payload.iter().flat_map(|slice| slice.to_vec()).collect();
        // What is sent is what the application gave, wherever it is repeated from.
        if !out.flags.intersects(Flags::SYN | Flags::RST) {
            let place = out.seq.0.wrapping_sub(self.isn.0).wrapping_sub(1);
            for (offset, byte) in payload.iter().enumerate() {
                assert_eq!(
                    *byte,
                    byte_at(place.wrapping_add(offset as u32)),
                    "what is sent differs"
                );
            }
        }
        let mut head = vec![0; 60];
        let options = out.options.as_slice();
        let len = tcp::emit(&mut head, 1, 2, out.seq, out.ack, out.flags, out.window, 0, options);
        head.truncate(len);
        Some((head, payload))
    }

    fn send(&mut self, now: Instant, len: usize) {
        let config = self.config.clone();
        let room = self.tcb.as_ref().map_or(0, |tcb| tcb.send_room(&config));
        let len = len.min(room).min((STREAM_MAX - self.sent) as usize);
        if len == 0 || self.closed {
            return;
        }
        let buf = IoBuf::from(bytes_at(self.sent, len));
        if self.with(now, |tcb, env| tcb.send(env, buf)).is_some_and(|sent| sent.is_ok()) {
            self.sent += len as u32;
        }
    }

    fn read(&mut self, now: Instant, slices: usize) {
        for _ in 0..slices {
            let Some(Some(buf)) = self.with(now, |tcb, env| tcb.recv(env)) else { break };
            for (offset, byte) in buf.iter().enumerate() {
                assert_eq!(*byte, byte_at(self.read + offset as u32), "what is read differs");
            }
            self.read += buf.len() as u32;
        }
    }

    fn failed(&self) -> bool {
        self.tcb.as_ref().is_some_and(|tcb| tcb.error().is_some())
    }

    /// Whether a close would make an end of it (RFC 9293 section 3.10.4).
    fn is_opening(&self) -> bool {
        self.tcb.as_ref().is_some_and(|tcb| tcb.state() == State::SynSent)
    }

    /// Whether it has still many repetitions before it gives up.
    fn is_patient(&self) -> bool {
        !self.failed() && self.tcb.as_ref().is_none_or(|tcb| tcb.info().backoff < PATIENT_BACKOFF)
    }

    fn assert_bounded(&self) {
        let Some(tcb) = &self.tcb else { return };
        // Buffers grow, and no further than is set.
        let config = &self.config;
        let most = config.recv_buffer_bytes.max(config.recv_buffer_max_bytes) as usize;
        assert!(tcb.readable_bytes() <= most, "{} readable", tcb.readable_bytes());
        let queued = tcb.unacked_bytes();
        let ended = tcb.state() == State::Closed;
        let most = config.send_buffer_bytes.max(config.send_buffer_max_bytes) as usize;
        assert!(ended || queued <= most, "{queued} queued");
        let info = tcb.info();
        assert!(info.rto_us <= 120_000_000 && info.mss_bytes > 0 && info.cwnd_bytes < 1 << 31);
    }
}

struct Pair {
    now: Instant,
    ends: [End; 2],
    /// By sender.
    flying: [VecDeque<(Vec<u8>, Vec<u8>)>; 2],
    /// Somebody may give up: by asking in vain whether the other is still there, or by closing what
    /// was not open yet.
    excused: bool,
}

impl Pair {
    /// Lets both ends send what they want.
    fn pump(&mut self) {
        for (end, flying) in self.ends.iter_mut().zip(&mut self.flying) {
            let mut burst = 0;
            while let Some(segment) = end.transmit(self.now) {
                burst += 1;
                assert!(burst < 20_000, "an end never stops sending");
                if flying.len() < FLYING_MAX {
                    flying.push_back(segment);
                }
            }
        }
    }

    fn deliver(&mut self, from: usize, index: usize) {
        let len = self.flying[from].len();
        if let Some(segment) = (len > 0).then(|| self.flying[from].remove(index % len)).flatten() {
            self.ends[1 - from].input(self.now, &segment);
        }
    }

    fn fire(&mut self) {
        for end in &mut self.ends {
            if end.tcb.as_ref().is_some_and(|tcb| tcb.deadline() <= self.now) {
                end.with(self.now, |tcb, env| tcb.on_timer(env));
                let deadline = end.tcb.as_ref().map(Tcb::deadline);
                assert!(deadline > Some(self.now), "a timer that fired is still due");
            }
        }
    }

    fn next_timer(&self) -> Instant {
        let deadlines = self.ends.iter().flat_map(|end| end.tcb.as_ref()).map(Tcb::deadline);
        deadlines.min().unwrap_or(Instant::FAR_FUTURE)
    }

    /// Passes time, timer by timer, without anything arriving.
    fn wait(&mut self, us: u64) {
        let until = self.now.plus_micros(us);
        for _ in 0..10_000 {
            let next = self.next_timer();
            if next > until {
                self.now = until;
                return;
            }
            self.now = self.now.max(next);
            self.fire();
            self.pump();
        }
        panic!("timers without end");
    }

    fn apply(&mut self, op: Op) {
        let now = self.now;
        match op {
            Op::Deliver(from) => self.deliver(usize::from(from), 0),
            Op::DeliverAny(from, index) => self.deliver(usize::from(from), usize::from(index)),
            Op::DeliverAll => {
                for from in 0..2 {
                    for _ in 0..self.flying[from].len() {
                        self.deliver(from, 0);
                    }
                }
            }
            Op::Drop(from, index) => {
                let flying = &mut self.flying[usize::from(from)];
                flying.remove(usize::from(index) % flying.len().max(1));
            }
            Op::Duplicate(from, index) => {
                let flying = &mut self.flying[usize::from(from)];
                if let Some(segment) = flying.get(usize::from(index) % flying.len().max(1)).cloned()
                    && flying.len() < FLYING_MAX
                {
                    flying.push_back(segment);
                }
            }
            Op::Wait(span) => self.wait(span.0),
            Op::Send(end, len) => self.ends[usize::from(end)].send(now, usize::from(len)),
            Op::Read(end, slices) => self.ends[usize::from(end)].read(now, usize::from(slices)),
            Op::Close(end) => {
                let end = &mut self.ends[usize::from(end)];
                self.excused |= end.is_opening();
                end.closed |= end.with(now, |tcb, env| tcb.close(env)).is_some();
            }
            Op::Cork(end, on) => {
                self.ends[usize::from(end)].with(now, |tcb, env| tcb.set_cork(env, on));
            }
            Op::NoDelay(end, on) => {
                self.ends[usize::from(end)].with(now, |tcb, _| tcb.set_nodelay(on));
            }
            Op::KeepAlive(end, on) => {
                self.excused |= on;
                self.ends[usize::from(end)].with(now, |tcb, env| tcb.set_keepalive(env, on));
            }
        }
        self.pump();
        self.ends.iter().for_each(End::assert_bounded);
    }

    /// From now on every segment arrives after the delay, applications read, and both close. Ends when
    /// both are done, or one has failed.
    fn heal(&mut self) {
        let until = self.now.plus_micros(PATIENCE_US);
        let mut arrivals: [VecDeque<Instant>; 2] = Default::default();
        loop {
            for end in &mut self.ends {
                end.read(self.now, usize::MAX);
                if !end.closed && end.tcb.is_some() && !end.is_opening() {
                    end.with(self.now, |tcb, env| tcb.close(env));
                    end.closed = true;
                }
            }
            self.pump();
            for (flying, arrivals) in self.flying.iter().zip(&mut arrivals) {
                while arrivals.len() < flying.len() {
                    arrivals.push_back(self.now.plus_micros(DELAY_US));
                }
            }
            let over = |end: &End| {
                let tcb = end.tcb.as_ref();
                tcb.map_or(self.excused, |tcb| {
                    matches!(tcb.state(), State::Closed | State::TimeWait)
                })
            };
            if self.ends.iter().all(over) || self.ends.iter().any(End::failed) {
                return;
            }
            let arrival = arrivals.iter().filter_map(|arrivals| arrivals.front()).min().copied();
            let next = self.next_timer().min(arrival.unwrap_or(Instant::FAR_FUTURE));
            assert!(next < until, "wedged: {:?} / {:?}", self.ends[0].tcb, self.ends[1].tcb);
            self.now = self.now.max(next);
            for (from, arrivals) in arrivals.iter_mut().enumerate() {
                while arrivals.front().is_some_and(|at| *at <= self.now) {
                    arrivals.pop_front();
                    self.deliver(from, 0);
                }
            }
            self.fire();
        }
    }
}

/// Runs the script of an input.
pub fn run(input: &[u8]) {
    let mut u = Unstructured::new(input);
    let Ok(setup) = u.arbitrary::<Setup>() else { return };
    let mut pair = Pair {
        now: Instant::from_micros(1_000_000),
        ends: [End::new(&setup, 0), End::new(&setup, 1)],
        flying: Default::default(),
        excused: false,
    };
    let now = pair.now;
    pair.ends[0].open(now, None);
    if setup.both_open {
        pair.ends[1].open(now, None);
    }
    pair.pump();
    while !u.is_empty() {
        let Ok(op) = u.arbitrary::<Op>() else { break };
        pair.apply(op);
    }
    // Who is about to give up need not deliver any more, and takes the other along.
    let must_arrive = !pair.excused && pair.ends.iter().all(End::is_patient);
    pair.heal();
    if must_arrive {
        for (end, other) in [(0, 1), (1, 0)] {
            let (sender, receiver) = (&pair.ends[end], &pair.ends[other]);
            assert_eq!(sender.sent, receiver.read, "lost: {:?} / {:?}", sender.tcb, receiver.tcb);
        }
    }
    for end in &mut pair.ends {
        if let Some(mut tcb) = end.tcb.take() {
            tcb.release(&mut end.slices);
        }
        end.out = Segment::default();
        assert_eq!(end.slices.used(), 0, "slices leaked");
    }
}
