//! A host with a processor, its NIC, and who is on the other side.
//!
//! The host's clock is a [`CpuClock`](crate::CpuClock) and runs ahead while it works; the others have
//! a clock of their own and are brought up to the host's time whenever it looks at its NIC. Frames
//! take a delay in either direction, so that what the host sends reaches nobody before his time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use millstream_buf::{Arena, ArenaConfig, ArenaError, HugePages, IoBuf, SizeClass};
use millstream_link::{
    Capabilities, Link, LinkStats, RxBurst, RxChecksum, RxFrame, TxError, TxFrame,
};
use millstream_timer::{Clock, Instant, VirtualClock};

use crate::{CpuClock, Node, Rng};

/// Bytes of a frame of a flood at most.
pub const FLOOD_FRAME_MAX: usize = 256;

/// Passes of the others without any moving of their clock after which they are taken to be stuck.
const PASSES_MAX: u32 = 1_000_000;

/// Writes frame number n of a flood and returns its length.
pub type Compose = Box<dyn FnMut(u64, &mut [u8; FLOOD_FRAME_MAX]) -> usize>;

/// Frames that nobody waits an answer for, at a rate.
pub struct Flood {
    /// From when on.
    pub start: Instant,
    /// Until when.
    pub end: Instant,
    /// Frames a second, at random moments.
    pub rate: f64,
    /// What they are.
    pub compose: Compose,
}

struct Source {
    flood: Flood,
    next: Instant,
    count: u64,
}

/// How a host is connected.
#[derive(Clone, Copy, Debug)]
pub struct NicConfig {
    /// Frames that wait in the NIC to be received; those beyond are missed.
    pub ring_frames: usize,
    /// From one side to the other in nanoseconds.
    pub delay_nanos: u64,
    /// Others than floods.
    pub peers: usize,
    /// From which all randomness comes.
    pub seed: u64,
}

impl Default for NicConfig {
    fn default() -> Self {
        Self { ring_frames: 1024, delay_nanos: 10_000, peers: 1, seed: 1 }
    }
}

struct Peer {
    mac: [u8; 6],
    ring: VecDeque<IoBuf>,
}

struct State {
    config: NicConfig,
    arena: Arena,
    rng: Rng,
    sources: Vec<Source>,
    ring: VecDeque<IoBuf>,
    /// To the host, in order of arrival.
    inbound: VecDeque<(Instant, IoBuf)>,
    /// To the others, in order of arrival.
    outbound: VecDeque<(Instant, IoBuf)>,
    peers: Vec<Peer>,
    stats: LinkStats,
}

/// The address of the host's NIC. Peers have others that end in 1, 2 and so on.
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0];

impl State {
    /// Lets everything arrive at the host that does by `now`.
    fn arrive(&mut self, now: Instant) {
        loop {
            let from_peers = self.inbound.front().map(|(at, _)| *at);
            let source = (0..self.sources.len()).min_by_key(|&i| self.sources[i].next);
            let flood_at = source.map(|i| self.sources[i].next);
            let next = [from_peers, flood_at].into_iter().flatten().min();
            if next.is_none_or(|at| at > now) {
                return;
            }
            let room = self.ring.len() < self.config.ring_frames;
            self.stats.rx_missed += u64::from(!room);
            if from_peers == next {
                if let Some((_, frame)) = self.inbound.pop_front()
                    && room
                {
                    self.ring.push_back(frame);
                }
            } else if let Some(source) = source.and_then(|i| self.sources.get_mut(i)) {
                if room
                    && let Some(mut buf) = self.arena.alloc(SizeClass::Frame)
                    && let Some(bytes) = buf.first_chunk_mut()
                {
                    let len = (source.flood.compose)(source.count, bytes);
                    self.ring.push_back(buf.freeze(0..len));
                }
                source.advance(&mut self.rng);
            }
        }
    }

    /// Lets everything arrive at the others that does by `now`.
    fn deliver(&mut self, now: Instant) {
        while let Some((at, _)) = self.outbound.front()
            && *at <= now
        {
            let Some((_, frame)) = self.outbound.pop_front() else { return };
            let to: [u8; 6] = frame.first_chunk().copied().unwrap_or_default();
            for peer in &mut self.peers {
                if to == peer.mac || to[0] & 1 != 0 {
                    peer.ring.push_back(frame.clone());
                }
            }
        }
    }

    fn copy(&self, frame: &TxFrame<'_>) -> Result<IoBuf, TxError> {
        let mut buf = self.arena.alloc(SizeClass::Frame).ok_or(TxError::Full)?;
        let mut end = 0;
        for bytes in std::iter::once(frame.header).chain(frame.payload.iter().map(|s| &**s)) {
            buf.get_mut(end..end + bytes.len()).ok_or(TxError::TooLong)?.copy_from_slice(bytes);
            end += bytes.len();
        }
        Ok(buf.freeze(0..end))
    }
}

impl Source {
    /// The moment of the next frame: independent of all others (a Poisson process).
    fn advance(&mut self, rng: &mut Rng) {
        self.count += 1;
        let uniform = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let nanos = -(1.0 - uniform).ln() * 1e9 / self.flood.rate;
        self.next = self.next.plus_nanos(nanos as u64);
        if self.next >= self.flood.end {
            self.next = Instant::FAR_FUTURE;
        }
    }
}

/// Everybody but the host, with their clock.
pub struct Others {
    /// Their clock.
    pub clock: VirtualClock,
    state: Rc<RefCell<State>>,
    nodes: Vec<Box<dyn Node>>,
}

impl Others {
    /// Lets them do all that they do up to `until`.
    ///
    /// # Panics
    /// If they do not come to rest.
    fn run_until(&mut self, until: Instant) {
        for _ in 0..PASSES_MAX {
            let now = self.clock.now();
            self.state.borrow_mut().deliver(now);
            let mut worked = false;
            for node in &mut self.nodes {
                worked |= node.turn();
            }
            if worked {
                continue;
            }
            let next = self.next();
            if next > until {
                return self.clock.advance_to(until);
            }
            self.clock.advance_to(next);
        }
        panic!("the peers do not come to rest at {} ns", self.clock.now().as_nanos());
    }

    /// When the next of them wants to do something, or something comes to them.
    fn next(&self) -> Instant {
        let frame = self.state.borrow().outbound.front().map(|(at, _)| *at);
        let nodes = self.nodes.iter().map(|node| node.next_deadline());
        nodes.chain(frame).min().unwrap_or(Instant::FAR_FUTURE)
    }
}

/// The host's end.
pub struct Nic {
    clock: CpuClock,
    state: Rc<RefCell<State>>,
    others: Rc<RefCell<Others>>,
    capabilities: Capabilities,
}

/// A peer's end.
pub struct PeerLink {
    clock: VirtualClock,
    number: usize,
    state: Rc<RefCell<State>>,
    capabilities: Capabilities,
}

/// The way from the driver of an experiment to what goes on at the NIC.
#[derive(Clone)]
pub struct Network {
    state: Rc<RefCell<State>>,
    others: Rc<RefCell<Others>>,
}

fn capabilities(mac: [u8; 6]) -> Capabilities {
    Capabilities {
        driver: "virtual",
        mac,
        mtu: 1500,
        tx_slices_max: usize::MAX,
        tx_ipv4_checksum: false,
        tx_tcp_checksum: false,
        tx_udp_checksum: false,
        rx_checksum: false,
        tso_bytes_max: 0,
        copies_payload: true,
    }
}

impl Network {
    /// A host's NIC and the ends of its peers.
    ///
    /// # Errors
    /// [`ArenaError`] if there is no memory for the frames.
    pub fn new(
        clock: &CpuClock,
        config: NicConfig,
    ) -> Result<(Self, Nic, Vec<PeerLink>), ArenaError> {
        let arena =
            Arena::new(&ArenaConfig { frames: 16_384, blocks: 0, huge_pages: HugePages::Never })?;
        let mac = |number: usize| [2, 0, 0, 0, 0, 1 + number as u8];
        let peer = |number| Peer { mac: mac(number), ring: VecDeque::new() };
        let state = Rc::new(RefCell::new(State {
            config,
            arena,
            rng: Rng::new(config.seed),
            sources: Vec::new(),
            ring: VecDeque::with_capacity(config.ring_frames),
            inbound: VecDeque::new(),
            outbound: VecDeque::new(),
            peers: (0..config.peers).map(peer).collect(),
            stats: LinkStats::default(),
        }));
        let theirs = VirtualClock::new();
        let others = Rc::new(RefCell::new(Others {
            clock: theirs.clone(),
            state: Rc::clone(&state),
            nodes: Vec::new(),
        }));
        let nic = Nic {
            clock: clock.clone(),
            state: Rc::clone(&state),
            others: Rc::clone(&others),
            capabilities: capabilities(HOST_MAC),
        };
        let link = |number| PeerLink {
            clock: theirs.clone(),
            number,
            state: Rc::clone(&state),
            capabilities: capabilities(mac(number)),
        };
        let links = (0..config.peers).map(link).collect();
        Ok((Self { state, others }, nic, links))
    }

    /// The clock of everybody but the host.
    pub fn clock(&self) -> VirtualClock {
        self.others.borrow().clock.clone()
    }

    /// Somebody more lives on the other side.
    pub fn add(&self, node: Box<dyn Node>) {
        self.others.borrow_mut().nodes.push(node);
    }

    /// Sends frames to the host.
    pub fn flood(&self, flood: Flood) {
        let mut state = self.state.borrow_mut();
        let next = flood.start;
        let mut source = Source { flood, next, count: 0 };
        if source.flood.rate > 0.0 {
            source.advance(&mut state.rng);
            source.count = 0;
            state.sources.push(source);
        }
    }

    /// The moment of the next thing that the host does not do itself.
    pub fn next_event(&self) -> Instant {
        let others = self.others.borrow().next();
        let state = self.state.borrow();
        let inbound = state.inbound.front().map(|(at, _)| *at);
        let floods = state.sources.iter().map(|source| source.next);
        floods.chain(inbound).min().unwrap_or(Instant::FAR_FUTURE).min(others)
    }
}

impl Link for Nic {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn rx_burst(&mut self, frames: &mut RxBurst) {
        let now = self.clock.now();
        self.others.borrow_mut().run_until(now);
        let mut state = self.state.borrow_mut();
        state.arrive(now);
        while !frames.is_full()
            && let Some(buf) = state.ring.pop_front()
        {
            state.stats.rx_frames += 1;
            state.stats.rx_bytes += buf.len() as u64;
            frames.push(RxFrame { buf, checksum: RxChecksum::Unknown });
        }
    }

    fn tx_room(&mut self) -> usize {
        self.state.borrow().arena.free(SizeClass::Frame)
    }

    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
        let mut state = self.state.borrow_mut();
        let copy = state.copy(frame)?;
        let at = self.clock.now().plus_nanos(state.config.delay_nanos);
        state.stats.tx_frames += 1;
        state.stats.tx_bytes += copy.len() as u64;
        state.outbound.push_back((at, copy));
        Ok(())
    }

    fn flush(&mut self) {}

    fn stats(&self) -> LinkStats {
        self.state.borrow().stats
    }
}

impl Link for PeerLink {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn rx_burst(&mut self, frames: &mut RxBurst) {
        let mut state = self.state.borrow_mut();
        let Some(peer) = state.peers.get_mut(self.number) else { return };
        while !frames.is_full()
            && let Some(buf) = peer.ring.pop_front()
        {
            frames.push(RxFrame { buf, checksum: RxChecksum::Unknown });
        }
    }

    fn tx_room(&mut self) -> usize {
        self.state.borrow().arena.free(SizeClass::Frame)
    }

    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
        let mut state = self.state.borrow_mut();
        let copy = state.copy(frame)?;
        let at = self.clock.now().plus_nanos(state.config.delay_nanos);
        state.inbound.push_back((at, copy));
        Ok(())
    }

    fn flush(&mut self) {}

    fn stats(&self) -> LinkStats {
        LinkStats::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuCosts;

    fn frame(to: [u8; 6]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..6].copy_from_slice(&to);
        bytes
    }

    fn send(link: &mut impl Link, to: [u8; 6]) {
        let offload = millstream_link::TxOffload::default();
        link.tx(&TxFrame { header: &frame(to), payload: &[], offload }).unwrap();
    }

    #[test]
    fn frames_take_their_time_in_both_directions() {
        let cpu = CpuClock::new(CpuCosts::default());
        let (network, mut nic, mut peers) = Network::new(&cpu, NicConfig::default()).unwrap();
        let mut burst = RxBurst::new();
        cpu.work(3_000);
        send(&mut nic, [2, 0, 0, 0, 0, 1]);
        send(&mut nic, [2, 0, 0, 0, 0, 9]);
        assert_eq!(network.next_event(), Instant::from_micros(13));
        cpu.work(9_000);
        nic.rx_burst(&mut burst);
        peers[0].rx_burst(&mut burst);
        assert!(burst.is_empty());
        cpu.idle_until(Instant::from_micros(13));
        nic.rx_burst(&mut burst);
        peers[0].rx_burst(&mut burst);
        assert_eq!(burst.len(), 1, "the one that is for it");
        burst.clear();
        send(&mut peers[0], HOST_MAC);
        assert_eq!(network.next_event(), Instant::from_micros(23));
        cpu.idle_until(Instant::from_micros(23));
        nic.rx_burst(&mut burst);
        assert_eq!(burst.len(), 1);
    }

    #[test]
    fn a_flood_comes_at_its_rate_and_what_finds_no_room_is_missed() {
        let cpu = CpuClock::new(CpuCosts::default());
        let config = NicConfig { ring_frames: 100, ..NicConfig::default() };
        let (network, mut nic, _) = Network::new(&cpu, config).unwrap();
        network.flood(Flood {
            start: Instant::ZERO,
            end: Instant::from_micros(10_000),
            rate: 1e6,
            compose: Box::new(|_, bytes| {
                bytes[..64].copy_from_slice(&frame(HOST_MAC));
                64
            }),
        });
        cpu.idle_until(Instant::from_micros(20_000));
        let mut burst = RxBurst::new();
        nic.rx_burst(&mut burst);
        assert_eq!(burst.len(), 32);
        let all = 100 + nic.stats().rx_missed;
        assert!((9_500..10_500).contains(&all), "{all}");
        assert_eq!(network.next_event(), Instant::FAR_FUTURE);
    }
}
