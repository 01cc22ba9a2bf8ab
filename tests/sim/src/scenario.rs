//! What a seed stands for.

use std::fmt;

use millstream_sim::{BurstLoss, DirectionConfig, Flaps, LinkConfig, Rng, WhenFull};
use millstream_tcp::{Algorithm, Clocking, Config, KeepAlive, PacingRate};

use crate::rand::{pick, spread, spread_u64};

/// Frames that a scenario may cost, about: it bounds the time that the grid takes.
const FRAMES: u64 = 500;

/// Where an application's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It writes so many at a time.
    Write(u32),
    /// It queues slices of so many without copying them.
    Slices(u32),
    /// A file on a simulated disk.
    File,
}

/// How an application reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Everything, at once.
    Fast,
    /// So many bytes, then a pause, over and over: the window closes.
    Slow {
        /// Bytes at a time.
        bytes: u32,
        /// Length of a pause.
        pause_us: u64,
    },
    /// Once it has read so many bytes it stops for a while.
    Stall {
        /// Bytes before it.
        after: u32,
        /// Length of the pause.
        pause_us: u64,
    },
}

/// How a client ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It closes its direction when it has written all, and reads to the end.
    Shutdown,
    /// As `Shutdown`, but it writes only when it has read all: the server closes first.
    ServerFirst,
    /// It resets the connection when it has written so many bytes.
    Abort(u64),
}

/// One connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// When the client connects.
    pub start_us: u64,
    /// Bytes from client to server.
    pub up: u64,
    /// Bytes from server to client.
    pub down: u64,
    /// Where the client's bytes come from.
    pub up_source: Source,
    /// Where the server's bytes come from.
    pub down_source: Source,
    /// How the client reads.
    pub client_reads: Reading,
    /// How the server reads.
    pub server_reads: Reading,
    /// How the client ends it.
    pub ending: Ending,
}

/// What happens besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The server is gone from this moment on, without a word.
    Vanish {
        /// When.
        at_us: u64,
    },
    /// The server is gone, and comes back after a while having forgotten everything.
    Restart {
        /// When it goes.
        at_us: u64,
        /// For how long it is gone.
        away_us: u64,
    },
}

/// The settings of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Receive buffer of a connection.
    pub recv_bytes: u32,
    /// Send buffer of a connection.
    pub send_bytes: u32,
    /// Timestamps offered.
    pub timestamps: bool,
    /// Selective acknowledgements offered.
    pub sack: bool,
    /// Window scaling offered.
    pub scaling: bool,
    /// Nagle's algorithm.
    pub nagle: bool,
    /// Initial window in segments.
    pub initial_segments: u8,
    /// Length of TIME-WAIT.
    pub time_wait_us: u64,
}

/// A whole scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// From which it was drawn.
    pub seed: u64,
    /// The path.
    pub link: LinkConfig,
    /// Outages.
    pub flaps: Flaps,
    /// What happens to the server.
    pub fault: Fault,
    /// The client's settings.
    pub client: Host,
    /// The server's settings.
    pub server: Host,
    /// The connections.
    pub flows: Vec<Flow>,
}

impl Scenario {
    /// The scenario of a seed.
    pub fn from_seed(seed: u64) -> Self {
        let rng = &mut Rng::new(seed);
        let clean = rng.chance(0.25);
        let (a_to_b, b_to_a) = draw_paths(rng, clean);
        let mtu = pick(rng, &[576, 1280, 1500, 1500, 1500, 1500, 9000]);
        let link = LinkConfig {
            a_to_b,
            b_to_a,
            mtu,
            // All are touched at start, so their number is what a small scenario costs.
            buffers: if mtu > 2000 { 128 } else { pick(rng, &[256, 512, 1000]) },
            checksum_offload: rng.chance(0.2),
            seed: rng.below(u64::MAX),
        };
        let (client, server) = (draw_host(rng, clean), draw_host(rng, clean));
        let mut scenario = Self {
            seed,
            link,
            flaps: Flaps { first_nanos: 0, down_nanos: 0, up_nanos: 0, count: 0 },
            fault: Fault::None,
            client,
            server,
            flows: Vec::new(),
        };
        let ideal_us = scenario.draw_flows(rng, clean);
        if !clean && rng.chance(0.15) {
            scenario.flaps = Flaps {
                first_nanos: rng.below(1 + 1000 * ideal_us),
                down_nanos: spread_u64(rng, 1_000_000, 30_000_000_000),
                up_nanos: spread_u64(rng, 1_000_000, 30_000_000_000),
                count: 1 + rng.below(4) as u32,
            };
        }
        if !clean && rng.chance(0.08) {
            let at_us = rng.below(1 + 2 * ideal_us);
            scenario.fault = if rng.chance(0.5) {
                Fault::Vanish { at_us }
            } else {
                Fault::Restart { at_us, away_us: spread_u64(rng, 1000, 60_000_000) }
            };
        }
        scenario
    }

    /// Draws the flows; returns about how long they take if nothing goes wrong.
    fn draw_flows(&mut self, rng: &mut Rng, clean: bool) -> u64 {
        let count = match rng.below(20) {
            0..8 => 1,
            8..15 => 2 + rng.below(7),
            15..19 => 9 + rng.below(40),
            _ => 49 + rng.below(208),
        };
        // Some segments of each flow take seconds on a slow path, or the handshakes time out.
        let slowest_bps = self.link.a_to_b.bandwidth_bps.min(self.link.b_to_a.bandwidth_bps);
        let count = count.min(1 + slowest_bps / 4000);
        for direction in [&mut self.link.a_to_b, &mut self.link.b_to_a] {
            let a_minute = 60 * direction.bandwidth_bps / (8 * u64::from(self.link.mtu));
            direction.queue_frames = direction.queue_frames.min(1 + a_minute as usize);
        }
        let payload = u64::from(self.link.mtu) - 40;
        // A slow path is given less, so that a clean run takes some minutes of virtual time at most.
        let total = (spread_u64(rng, 4, FRAMES) * payload).min(slowest_bps / 8 * 300).max(2000);
        let ideal_us = (8_000_000.0 * total as f64 / slowest_bps as f64) as u64
            + 10 * self.rtt_nanos() / 1000
            + 1;
        let same = rng.chance(0.5);
        let window_us = if rng.chance(0.5) { 1 } else { ideal_us };
        for _ in 0..count {
            let share = total / count;
            let bytes = |rng: &mut Rng| match rng.below(8) {
                0 => 0,
                1 => rng.below(100),
                _ if same => share,
                _ => rng.below(2 * share + 1),
            };
            let (mut up, mut down) = (bytes(rng), bytes(rng));
            if same && rng.chance(0.7) {
                // All in one direction.
                (up, down) = (0, share);
            }
            let source = |rng: &mut Rng| match rng.below(4) {
                0 => Source::Write(spread_u64(rng, 1, 2000) as u32),
                1 => Source::Slices(spread_u64(rng, 500, 60_000) as u32),
                _ => Source::Write(20_000),
            };
            let reading = |rng: &mut Rng, bytes: u64| match rng.below(12) {
                0 if !clean => Reading::Slow {
                    bytes: spread_u64(rng, 1 + bytes / 30, 2 + bytes) as u32,
                    pause_us: spread_u64(rng, 1000, 10_000_000),
                },
                1 if !clean => Reading::Stall {
                    after: rng.below(bytes + 1) as u32,
                    pause_us: spread_u64(rng, 100_000, 300_000_000),
                },
                _ => Reading::Fast,
            };
            let ending = match rng.below(16) {
                0 if !clean => Ending::Abort(rng.below(up + 1)),
                1..4 => Ending::ServerFirst,
                _ => Ending::Shutdown,
            };
            self.flows.push(Flow {
                start_us: rng.below(window_us),
                up,
                down,
                up_source: source(rng),
                down_source: if rng.chance(0.3) { Source::File } else { source(rng) },
                client_reads: reading(rng, down),
                server_reads: reading(rng, up),
                ending,
            });
        }
        ideal_us
    }

    /// Round-trip time of the empty path, not counting the time that a frame takes to be sent.
    pub fn rtt_nanos(&self) -> u64 {
        self.link.a_to_b.delay_nanos + self.link.b_to_a.delay_nanos
    }

    /// Whether nothing but a full queue can lose, change or reorder a frame, or keep a reader from
    /// reading.
    pub fn is_clean(&self) -> bool {
        let clean = |direction: &DirectionConfig| {
            direction.loss == 0.0
                && direction.burst_loss.is_none()
                && direction.reorder == 0.0
                && direction.duplicate == 0.0
                && direction.corrupt == 0.0
        };
        clean(&self.link.a_to_b)
            && clean(&self.link.b_to_a)
            && self.flaps.count == 0
            && self.fault == Fault::None
            && self.flows.iter().all(|flow| {
                flow.client_reads == Reading::Fast
                    && flow.server_reads == Reading::Fast
                    && !matches!(flow.ending, Ending::Abort(_))
            })
    }

    /// Whether a connection may be given up, since one side is gone or resets it.
    pub fn may_fail(&self, flow: usize) -> bool {
        self.fault != Fault::None
            || self.flows.get(flow).is_some_and(|flow| matches!(flow.ending, Ending::Abort(_)))
    }

    /// Both hosts' congestion controller. Not drawn, so that a seed plays what it always did.
    pub fn controller(&self) -> Algorithm {
        Algorithm::ALL[self.seed as usize % Algorithm::ALL.len()]
    }

    /// Whether losses are found by time, and lost tails by probes: not in each fifth scenario.
    pub fn rack(&self) -> bool {
        !(self.seed / Algorithm::ALL.len() as u64).is_multiple_of(5)
    }

    /// What clocks both hosts' segments out, and the rate that the server's connections have, not
    /// drawn from the same numbers either. In half of the scenarios both are the default. A rate may
    /// be a fifth of what the path carries, or five times as much; where it is taken for the path's
    /// ([`Clocking::Rate`]) the server starts with it, and where there is none, with what an earlier
    /// flow has seen.
    pub fn clocking(&self) -> (Clocking, Option<PacingRate>) {
        let rate = || {
            let bottleneck = self.link.b_to_a.bandwidth_bps / 8;
            let rng = &mut Rng::new(!self.seed);
            // A segment takes a quarter of a second at most: longer pauses would look like a stall.
            let least = 4 * u64::from(self.link.mtu);
            let rate = spread_u64(rng, bottleneck / 5, 5 * bottleneck).max(least);
            PacingRate::new(rate.clamp(PacingRate::MIN, PacingRate::MAX)).ok()
        };
        match self.seed / 20 % 8 {
            1 | 5 => (Clocking::Rate, None),
            3 => (Clocking::Auto, rate()),
            7 => (Clocking::Rate, rate()),
            _ => (Clocking::Auto, None),
        }
    }

    /// TCP's settings of a host.
    pub fn tcp(&self, host: &Host) -> Config {
        let peer_fails = (0..self.flows.len()).any(|flow| self.may_fail(flow));
        Config {
            recv_buffer_bytes: host.recv_bytes,
            send_buffer_bytes: host.send_bytes,
            timestamps: host.timestamps,
            sack: host.sack,
            window_scaling: host.scaling,
            nagle: host.nagle,
            initial_window_segments: host.initial_segments,
            time_wait_us: host.time_wait_us,
            congestion: self.controller(),
            clocking: self.clocking().0,
            rack: self.rack(),
            // With three of ten frames lost in each direction one exchange in two fails: what gives
            // up after this many would be chance.
            data_retries: 40,
            syn_retries: 12,
            // Who waits for a peer that is gone is to notice.
            keepalive: peer_fails.then_some(KeepAlive {
                idle_us: 30_000_000,
                interval_us: 5_000_000,
                probes: 40,
            }),
            // Who has closed waits for a reader that pauses, and for a window whose opening was lost.
            fin_wait_2_us: if self.is_clean() { 60_000_000 } else { 600_000_000 },
            ..Config::default()
        }
    }
}

fn draw_host(rng: &mut Rng, clean: bool) -> Host {
    let least = if clean { 65_536 } else { 1000 };
    Host {
        recv_bytes: spread_u64(rng, least, 4 << 20) as u32,
        send_bytes: spread_u64(rng, least, 4 << 20) as u32,
        timestamps: rng.chance(0.8),
        sack: rng.chance(0.8),
        scaling: rng.chance(0.9),
        nagle: rng.chance(0.7),
        initial_segments: pick(rng, &[10, 10, 10, 4, 1]),
        // A short one is over before a lost ACK can be repeated.
        time_wait_us: if clean && rng.chance(0.5) { 1_000_000 } else { 60_000_000 },
    }
}

fn draw_paths(rng: &mut Rng, clean: bool) -> (DirectionConfig, DirectionConfig) {
    let there = draw_direction(rng, clean);
    let mut back = draw_direction(rng, clean);
    if rng.chance(0.5) {
        back = there;
    } else {
        // Delays of one order, and a way back that carries the acknowledgements.
        back.delay_nanos = there.delay_nanos * (1 + rng.below(20)) / 10;
        back.bandwidth_bps = (there.bandwidth_bps / spread_u64(rng, 1, 50)).max(1000);
    }
    if rng.chance(0.5) { (there, back) } else { (back, there) }
}

fn draw_direction(rng: &mut Rng, clean: bool) -> DirectionConfig {
    let bandwidth_bps = spread(rng, 1e3, 4e11) as u64;
    let delay_nanos = spread_u64(rng, 5_000, 500_000_000);
    let mut direction = DirectionConfig {
        overhead_bytes: 24,
        jitter_nanos: if rng.chance(0.3) { 1 + delay_nanos / 10 } else { 0 },
        queue_frames: spread_u64(rng, 1, 2000) as usize,
        ..DirectionConfig::wire(bandwidth_bps, delay_nanos)
    };
    if rng.chance(0.2) {
        direction.mark_frames = rng.below(direction.queue_frames as u64) as usize;
    }
    if rng.chance(0.1) {
        direction.when_full = WhenFull::Refuse;
    }
    if clean {
        direction.queue_frames = direction.queue_frames.max(50);
        return direction;
    }
    if rng.chance(0.5) {
        direction.loss = spread(rng, 0.0005, 0.3);
    }
    if rng.chance(0.25) {
        direction.burst_loss = Some(BurstLoss {
            good_to_bad: spread(rng, 0.0005, 0.05),
            bad_to_good: spread(rng, 0.05, 0.5),
            loss_in_bad: spread(rng, 0.2, 1.0),
        });
    }
    if rng.chance(0.3) {
        direction.reorder = spread(rng, 0.001, 0.3);
        direction.reorder_nanos = spread_u64(rng, 1000, 2 * delay_nanos);
    }
    if rng.chance(0.3) {
        direction.duplicate = spread(rng, 0.001, 0.2);
    }
    if rng.chance(0.3) {
        direction.corrupt = spread(rng, 0.001, 0.05);
    }
    direction
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (controller, rack) = (self.controller(), self.rack());
        write!(f, "seed {} | {controller:?}, rack {rack} | ", self.seed)?;
        let (clocking, rate) = self.clocking();
        if clocking != Clocking::Auto || rate.is_some() {
            let rate = rate.map_or(0, |rate| rate.bytes_per_s());
            write!(f, "{clocking:?}, {rate} bytes/s | ")?;
        }
        write!(f, "{:?} | ", self.link)?;
        if self.flaps.count > 0 {
            write!(f, "{:?} | ", self.flaps)?;
        }
        if self.fault != Fault::None {
            write!(f, "{:?} | ", self.fault)?;
        }
        write!(f, "client {:?} | server {:?} | ", self.client, self.server)?;
        match &self.flows[..] {
            flows @ ([] | [_] | [_, _] | [_, _, _]) => write!(f, "{flows:?}"),
            [first, .., last] => {
                write!(f, "{} flows, from {first:?} to {last:?}", self.flows.len())
            }
        }
    }
}
