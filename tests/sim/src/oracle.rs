//! Playing a scenario, and judging it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::io::ErrorKind;

use millstream_disk::DiskQueue;
use millstream_sim::{Direction, DirectionStats, WhenFull};
use millstream_tcp::State;
use millstream_timer::Instant;

use crate::flows::{End, PROLOGUE, Side};
use crate::scenario::{Ending, Fault, Flow, Host, Scenario};
use crate::world::{World, in_use};

/// Virtual time after which a scenario has not come to an end.
const SECONDS_MAX: u64 = 200_000;
/// Steps in time after which it turns in circles.
const STEPS_MAX: u64 = 4_000_000;
/// Added to a time-out before a sender that is silent counts as stalled.
const SLACK_NANOS: u64 = 1_000_000_000;
/// How often a side is looked at that has nothing to send.
const LOOK_NANOS: u64 = 20_000_000_000;

/// Jain's index over the rates of flows that carry the same, at the least.
const FAIR: f64 = 0.3;

/// What was seen in a run that was right.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Frames that were sent.
    pub frames: u64,
    /// Frames that the link dropped, for whatever reason.
    pub dropped: u64,
    /// Payload bytes that the flows carried.
    pub bytes: u64,
    /// Payload bytes that were sent again.
    pub again_bytes: u64,
    /// Payload bytes that the link dropped when they were sent.
    pub lost_bytes: u64,
    /// From the first SYN to the last byte.
    pub nanos: u64,
    /// Time-outs.
    pub rto_fired: u64,
    /// Jain's index over the flows' rates, where they are comparable.
    pub jain: Option<f64>,
    /// Share of the bottleneck that was used, where the path is clean.
    pub utilisation: Option<f64>,
    /// The longest time that a frame waited in the queue of either direction.
    pub waited_nanos_max: u64,
    /// The mean time that a frame waited in the queue of the busier direction.
    pub waited_nanos_mean: u64,
    /// Frames that were marked as having met congestion.
    pub marked: u64,
    /// The run's end, in virtual nanoseconds: tells one run from another.
    pub end_nanos: u64,
}

/// What did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The oracle.
    pub oracle: &'static str,
    /// What it saw.
    pub what: String,
    /// The scenario, in one line.
    pub scenario: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  {}", self.oracle, self.what, self.scenario)
    }
}

type Verdict = Result<(), (&'static str, String)>;

/// Fails with the name of an oracle unless a condition holds.
macro_rules! hold {
    ($condition:expr, $oracle:literal, $($what:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err(($oracle, format!($($what)+)));
        }
    };
}

/// Plays a scenario to its end.
///
/// # Errors
/// The first oracle that failed.
pub fn run(scenario: &Scenario) -> Result<Measured, Box<Failure>> {
    Run::new(scenario).finish()
}

/// As [`run`], and prints each frame.
///
/// # Errors
/// As [`run`].
pub fn run_traced(scenario: &Scenario) -> Result<Measured, Box<Failure>> {
    let run = Run::new(scenario);
    run.world.watch.monitor.borrow_mut().print = true;
    run.finish()
}

/// When a side of a flow was last seen to hear something from its peer.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    acked: u64,
    /// What the peer has beyond that, which starts the time-out anew too.
    sacked: u32,
    at: Instant,
    /// The time-out then: the timer that runs may have been set with it.
    rto_us: u64,
}

struct Run<'a> {
    scenario: &'a Scenario,
    world: World,
    steps: u64,
    /// When to look at which side of which flow.
    looks: BinaryHeap<Reverse<(Instant, usize, bool)>>,
    moved: Vec<[Moved; 2]>,
    fault: Fault,
    /// When the last application was done.
    done_at: Instant,
    restarted: bool,
}

impl<'a> Run<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let world = World::new(scenario);
        let now = world.now();
        let flows = 0..scenario.flows.len();
        let looks =
            flows.flat_map(|flow| [Reverse((now, flow, false)), Reverse((now, flow, true))]);
        Self {
            looks: looks.collect(),
            moved: vec![[Moved::default(); 2]; scenario.flows.len()],
            fault: scenario.fault,
            steps: 0,
            done_at: now,
            restarted: false,
            scenario,
            world,
        }
    }

    fn finish(mut self) -> Result<Measured, Box<Failure>> {
        self.play().and_then(|()| self.judge()).map_err(|(oracle, what)| {
            Box::new(Failure { oracle, what, scenario: self.scenario.to_string() })
        })
    }

    fn play(&mut self) -> Verdict {
        let mut goes_on = true;
        while !self.applications_done() {
            hold!(goes_on, "wedge", "nothing will happen any more: {}", self.state());
            goes_on = self.step("the applications are not done")?;
        }
        self.done_at = {
            let board = self.world.watch.board.borrow();
            let ends = board.iter().flat_map(|progress| [progress.span.1, progress.server_end]);
            ends.flatten().max().unwrap_or(self.world.now())
        };
        // Connections end, TIME_WAIT and all, and the last frames arrive.
        let quiet = |world: &World| {
            world.connections() == (0, 0)
                && (world.disk.in_flight() == 0 || world.server_stack().is_none())
                && [Direction::AToB, Direction::BToA]
                    .iter()
                    .all(|direction| world.wire.stats(*direction).in_flight == 0)
        };
        while !quiet(&self.world) {
            hold!(goes_on, "wedge", "connections are left for ever: {}", self.state());
            goes_on = self.step("connections are left")?;
        }
        Ok(())
    }

    fn applications_done(&self) -> bool {
        let board = self.world.watch.board.borrow();
        board.iter().all(|progress| {
            let (taken, done) = progress.server_done;
            let server_there = self.world.server_stack().is_some();
            progress.client_done && (!taken || done || !server_there || self.restarted)
        })
    }

    /// One step in time, with all that is checked on the way. `false`: there will not be another.
    fn step(&mut self, purpose: &str) -> Result<bool, (&'static str, String)> {
        let look = self.looks.peek().map_or(Instant::FAR_FUTURE, |look| look.0.0);
        let fault = self.fault_at();
        let more = self.world.step(look.min(fault));
        self.steps += 1;
        let now = self.world.now();
        if let Some(breach) = self.world.watch.breach() {
            return Err(("wire", breach));
        }
        let in_time = now < Instant::from_micros(SECONDS_MAX * 1_000_000);
        hold!(
            in_time && self.steps < STEPS_MAX,
            "end",
            "no end after {} steps: {purpose}: {}",
            self.steps,
            self.state()
        );
        if now >= fault {
            self.strike(now);
        }
        while let Some(Reverse((at, flow, server))) = self.looks.peek().copied() {
            if at > now {
                break;
            }
            self.looks.pop();
            self.look(now, flow, server)?;
        }
        Ok(more.is_some() || look.min(fault) != Instant::FAR_FUTURE)
    }

    fn fault_at(&self) -> Instant {
        let at = |micros: u64| Instant::from_micros(1_000_000 + micros);
        match self.fault {
            Fault::None => Instant::FAR_FUTURE,
            Fault::Vanish { at_us } | Fault::Restart { at_us, .. } => at(at_us),
        }
    }

    fn strike(&mut self, now: Instant) {
        match self.fault {
            Fault::None => {}
            Fault::Vanish { .. } => {
                self.world.server_goes();
                self.fault = Fault::None;
            }
            Fault::Restart { at_us, away_us } if away_us > 0 => {
                self.world.server_goes();
                self.fault = Fault::Restart { at_us: at_us + away_us, away_us: 0 };
            }
            Fault::Restart { .. } => {
                self.world.server_comes_back(self.scenario);
                self.restarted = true;
                self.fault = Fault::None;
            }
        }
        debug_assert!(now >= Instant::ZERO);
    }

    /// A sender with something to send, or something not acknowledged, is never silent for longer
    /// than its time-out.
    fn look(&mut self, now: Instant, flow: usize, server: bool) -> Verdict {
        let (direction, prologue) = match server {
            true => (Direction::BToA, 0),
            false => (Direction::AToB, PROLOGUE as u64),
        };
        let (stream, queued, port, over) = {
            let board = self.world.watch.board.borrow();
            let progress = &board[flow];
            let end = if server { &progress.server } else { &progress.client };
            let over = progress.client_done && (!server || progress.server_done.1);
            (end.stream.upgrade(), end.written + prologue, progress.port, over)
        };
        let Some(stream) = stream else {
            if !over {
                self.looks.push(Reverse((now.plus_nanos(LOOK_NANOS), flow, server)));
            }
            return Ok(());
        };
        let moved = &mut self.moved[flow][usize::from(server)];
        let (acked, info) = (stream.acked_total(), stream.info());
        let config = self.world.wire.config(direction);
        let (free, _) = self.world.wire.buffers(direction);
        let blocked = free < 64
            || (config.when_full == WhenFull::Refuse && self.world.wire.queue(direction).0 > 0);
        let open = info.is_some_and(|info| !matches!(info.state, State::Closed | State::TimeWait));
        let in_flight = info.is_some_and(|info| info.flight_bytes > 0);
        let waits = open && (in_flight || queued > acked) && !blocked;
        let sacked = info.map_or(0, |info| info.sacked);
        if (acked, sacked) != (moved.acked, moved.sacked) || !waits {
            *moved = Moved { acked, sacked, at: now, rto_us: moved.rto_us };
        }
        let mut next = now.plus_nanos(LOOK_NANOS);
        if let (Some(info), true) = (info, waits) {
            let sent_at = {
                let monitor = self.world.watch.monitor.borrow();
                let both = monitor.get(port).copied().unwrap_or_default();
                if server { both.server.last_at } else { both.client.last_at }
            };
            let host = if server { &self.scenario.server } else { &self.scenario.client };
            let rto_us = u64::from(info.rto_us) << info.backoff.min(16);
            let rto_us = rto_us.min(u64::from(self.scenario.tcp(host).max_rto_us));
            let longest_us = rto_us.max(moved.rto_us);
            moved.rto_us = rto_us;
            // Twice, since the timer may have been set before measurements made the time-out shorter.
            let bound = sent_at.max(moved.at).plus_nanos(2000 * longest_us + SLACK_NANOS);
            hold!(
                now <= bound,
                "stall",
                "flow {flow} {}: nothing sent since {:.6} s, now {:.6} s, {} of {queued} acknowledged, {info:?}",
                if server { "server" } else { "client" },
                sent_at.as_nanos() as f64 / 1e9,
                now.as_nanos() as f64 / 1e9,
                acked
            );
            next = bound.plus_nanos(1);
        }
        self.looks.push(Reverse((next, flow, server)));
        Ok(())
    }

    /// What there is to know about a run that does not end.
    fn state(&self) -> String {
        let board = self.world.watch.board.borrow();
        let open = board
            .iter()
            .enumerate()
            .filter(|(_, progress)| !progress.client_done || !progress.server_done.1);
        let flows: Vec<_> = open
            .take(2)
            .map(|(flow, progress)| {
                let info = |end: &End| end.stream.upgrade().and_then(|stream| stream.info());
                format!(
                    "flow {flow} {progress:?} client {:?} server {:?}",
                    info(&progress.client),
                    info(&progress.server)
                )
            })
            .collect();
        format!(
            "at {:.3} s, {:?} connections, {flows:?}, {:?}",
            self.world.now().as_nanos() as f64 / 1e9,
            self.world.connections(),
            self.world.wire
        )
    }

    // ---- Afterwards ------------------------------------------------------------------------

    fn judge(&mut self) -> Result<Measured, (&'static str, String)> {
        {
            let board = self.world.watch.board.borrow();
            for (number, progress) in board.iter().enumerate() {
                let flow = &self.scenario.flows[number];
                let fails = self.scenario.may_fail(number);
                if let (Some(why), false) = (&progress.refused, fails) {
                    return Err(("connect", format!("flow {number}: {why}")));
                }
                judge_end(number, Side::Client, &progress.client, flow, fails)?;
                judge_end(number, Side::Server, &progress.server, flow, fails)?;
                if let Ending::Abort(_) = flow.ending {
                    let ended = matches!(progress.server.reading, Some(Ok(())));
                    hold!(!ended, "reset", "flow {number}: the server took a reset for the end");
                }
            }
        }
        self.judge_account()?;
        let measured = self.measure();
        self.judge_repetitions(&measured)?;
        self.judge_path(&measured)?;
        Ok(measured)
    }

    /// Nothing is left anywhere, and every frame has a name.
    fn judge_account(&self) -> Verdict {
        let client = self.world.client_stack();
        let stacks = [
            Some((client, Direction::BToA)),
            self.world.server_stack().map(|stack| (stack, Direction::AToB)),
        ];
        for (stack, inbound) in stacks.into_iter().flatten() {
            let rx = stack.rx_metrics();
            hold!(rx.unaccounted() == 0, "account", "{} frames: {rx:?}", rx.unaccounted());
            let delivered = self.world.wire.stats(inbound).delivered;
            let all_taken = self.scenario.fault != Fault::None || rx.frames_in == delivered;
            hold!(all_taken, "account", "{delivered} frames delivered, {} taken", rx.frames_in);
            hold!(rx.frames_waiting == 0, "leak", "{} frames wait in channels", rx.frames_waiting);
            hold!(stack.slices_in_use() == 0, "leak", "{} slices", stack.slices_in_use());
            // The cursors of small and of large writes may each hold a buffer.
            let used = in_use(&stack.arena_stats());
            hold!(used.0 <= 1 && used.1 <= 1, "leak", "{used:?} frames and blocks of the arena");
        }
        for direction in [Direction::AToB, Direction::BToA] {
            let stats = self.world.wire.stats(direction);
            let sum = stats.delivered + stats.dropped() + stats.in_flight;
            hold!(stats.offered + stats.duplicated == sum, "account", "{stats:?}");
            let (free, total) = self.world.wire.buffers(direction);
            hold!(free == total, "leak", "{} buffers of the link", total - free);
        }
        Ok(())
    }

    /// Segments that arrived, and for which a host had no memory or no place.
    fn unkept(&self) -> u64 {
        let stacks = [Some(self.world.client_stack()), self.world.server_stack()];
        let unkept = |stack: &millstream_core::Stack| {
            let tcp = stack.tcp_stats();
            let rx = stack.rx_metrics();
            let named = rx.iter().filter(|(name, _)| name.starts_with("drop_"));
            named.map(|(_, count)| count).sum::<u64>()
                + tcp.receive_bound_drops
                + tcp.slab_full_drops
                + tcp.reneged_drops
        };
        stacks.iter().flatten().map(unkept).sum()
    }

    fn stats(&self) -> [DirectionStats; 2] {
        [Direction::AToB, Direction::BToA].map(|direction| self.world.wire.stats(direction))
    }

    fn measure(&self) -> Measured {
        let stats = self.stats();
        let monitor = self.world.watch.monitor.borrow();
        let halves = || monitor.connections().flat_map(|both| [&both.client, &both.server]);
        let stacks = [Some(self.world.client_stack()), self.world.server_stack()];
        let board = self.world.watch.board.borrow();
        let starts = board.iter().filter_map(|progress| progress.span.0);
        let ends = board.iter().filter_map(|progress| progress.span.1);
        let nanos = match (starts.min(), ends.max()) {
            (Some(start), Some(end)) => end.nanos_since(start),
            _ => 0,
        };
        let busier =
            if stats[0].waited_nanos > stats[1].waited_nanos { &stats[0] } else { &stats[1] };
        let bytes = board.iter().map(|progress| progress.client.read + progress.server.read).sum();
        Measured {
            frames: monitor.frames,
            dropped: stats.iter().map(DirectionStats::dropped).sum(),
            bytes,
            again_bytes: halves().map(|half| half.again_bytes).sum(),
            lost_bytes: halves().map(|half| half.lost_bytes).sum(),
            nanos,
            rto_fired: stacks.iter().flatten().map(|stack| stack.tcp_stats().rto_fired).sum(),
            jain: self.jain(),
            utilisation: self.utilisation(nanos),
            waited_nanos_max: stats.iter().map(|stats| stats.waited_nanos_max).max().unwrap_or(0),
            waited_nanos_mean: busier.waited_nanos_mean(),
            marked: stats.iter().map(|stats| stats.marked).sum(),
            end_nanos: self.world.now().as_nanos(),
        }
    }

    /// Jain's index of the rates, if all flows are downloads of the same size that begin at once.
    fn jain(&self) -> Option<f64> {
        let first = self.scenario.flows.first()?;
        let alike =
            |flow: &Flow| (flow.up, flow.down, flow.ending) == (first.up, first.down, first.ending);
        if self.scenario.flows.len() < 2 || first.up > 0 || !self.scenario.flows.iter().all(alike) {
            return None;
        }
        let board = self.world.watch.board.borrow();
        let rates = board.iter().map(|progress| match progress.span {
            (Some(start), Some(end)) => 1e9 / end.nanos_since(start).max(1) as f64,
            _ => 0.0,
        });
        Some(jain(&rates.collect::<Vec<_>>()))
    }

    /// The share of the busier direction's rate that carried payload.
    fn utilisation(&self, nanos: u64) -> Option<f64> {
        if !self.scenario.is_clean() || nanos == 0 {
            return None;
        }
        let board = self.world.watch.board.borrow();
        let used = |bytes: u64, bps: u64| 8e9 * bytes as f64 / nanos as f64 / bps.max(1) as f64;
        let link = &self.scenario.link;
        let up = used(board.iter().map(|p| p.server.read).sum(), link.a_to_b.bandwidth_bps);
        let down = used(board.iter().map(|p| p.client.read).sum(), link.b_to_a.bandwidth_bps);
        Some(up.max(down))
    }

    /// What is sent again stands in a proportion to what was lost or came late.
    fn judge_repetitions(&self, measured: &Measured) -> Verdict {
        if self.scenario.fault != Fault::None {
            // What a host that is gone had sent is not counted any more.
            return Ok(());
        }
        let stats = self.stats();
        let sum = |count: fn(&DirectionStats) -> u64| stats.iter().map(count).sum::<u64>();
        let late = 3 * sum(|stats| stats.held_back);
        let lost = sum(|stats| stats.dropped() + stats.corrupted);
        let stacks = [Some(self.world.client_stack()), self.world.server_stack()];
        let probes: u64 = stacks
            .iter()
            .flatten()
            .map(|stack| stack.tcp_stats())
            .map(|stats| stats.loss_probes + stats.window_probes)
            .sum();
        // What a host had no memory for is lost as well.
        let lost = lost + self.unkept();
        let segment = u64::from(self.scenario.link.mtu);
        // A time-out without SACK sends all that is out again.
        let window = self.scenario.client.send_bytes.max(self.scenario.server.send_bytes);
        let window = u64::from(window).min(measured.bytes);
        let mut allowed = segment * (2 * (late + lost) + probes + 10) + measured.rto_fired * window;
        if !(self.scenario.client.sack && self.scenario.server.sack) {
            // What comes late is then repaired as a loss, and each ACK of what was out tells of the
            // next one (RFC 6582 section 3.2): every second segment of a window may go again.
            allowed += late / 3 * window / 2;
        }
        hold!(
            measured.again_bytes <= allowed,
            "repetitions",
            "{} bytes were sent again, {allowed} are plenty; {measured:?}",
            measured.again_bytes
        );
        Ok(())
    }

    /// What the path allows, and what it does not excuse.
    fn judge_path(&self, measured: &Measured) -> Verdict {
        // Marks are a reason to be slow.
        if self.scenario.is_clean() && measured.marked == 0 {
            let bound_nanos = self.clean_nanos(measured);
            hold!(
                measured.nanos <= bound_nanos,
                "utilisation",
                "{:.3} s on a clean path where {:.3} s are plenty; {measured:?}",
                measured.nanos as f64 / 1e9,
                bound_nanos as f64 / 1e9
            );
            // The last application is done when the last FIN has come; a millisecond of grace, since
            // that of the other side may have come before.
            let waited = self.world.now().nanos_since(self.done_at);
            let flows = self.scenario.flows.len();
            let segments = measured.bytes / u64::from(self.scenario.link.mtu);
            let comparable = flows <= 16 && segments >= 50 * flows as u64;
            if let (Some(jain), true) = (measured.jain, comparable) {
                // Not of the shares at a moment, but of when the same was done; 1/n is the least.
                hold!(jain >= FAIR, "fairness", "Jain's index is {jain:.3}; {measured:?}");
            }
            let least = self.scenario.client.time_wait_us.min(self.scenario.server.time_wait_us);
            hold!(
                waited + 1_000_000 >= 1000 * least,
                "time-wait",
                "all was over {:.3} s after the last application",
                waited as f64 / 1e9
            );
        }
        Ok(())
    }

    /// A time that a clean path leaves no excuse for exceeding.
    fn clean_nanos(&self, measured: &Measured) -> u64 {
        let scenario = self.scenario;
        let link = &scenario.link;
        let rtt = scenario.rtt_nanos() as f64
            + link.a_to_b.jitter_nanos as f64
            + link.b_to_a.jitter_nanos as f64;
        let stats = self.stats();
        let wire = |stats: &DirectionStats, bps: u64, overhead: u32| {
            8e9 * (stats.offered_bytes + stats.offered * u64::from(overhead)) as f64 / bps as f64
        };
        let sending = wire(&stats[0], link.a_to_b.bandwidth_bps, link.a_to_b.overhead_bytes)
            + wire(&stats[1], link.b_to_a.bandwidth_bps, link.b_to_a.overhead_bytes);
        // A rate that is set holds for each connection by itself.
        let rate = scenario.clocking().1.map_or(u64::MAX, |rate| rate.bytes_per_s());
        let down = scenario.flows.iter().map(|flow| flow.down).max().unwrap_or(0);
        let sending = sending + 1e9 * down as f64 / rate as f64;
        let least = |bytes: fn(&Host) -> u32| bytes(&scenario.client).min(bytes(&scenario.server));
        let window = least(|host| host.recv_bytes).min(least(|host| host.send_bytes));
        let scaled = scenario.client.scaling && scenario.server.scaling;
        let window = if scaled { window } else { window.min(65_535) };
        let most = scenario.flows.iter().map(|flow| flow.up + flow.down).max().unwrap_or(0) as f64;
        let rounds = 12.0 + 2.0 * (most / 500.0).max(1.0).log2() + measured.dropped as f64;
        // Half a window a round trip, of which each may meet a delayed ACK.
        let turns = 2.0 * most / f64::from(window.max(500));
        let rtt = rtt + if window < 65_535 { 50e6 } else { 0.0 };
        let rounds = rounds + turns;
        // Without SACK one loss is found a round trip, and the ACK that tells of it may be a delayed
        // one; what the receiver had no room for ahead of order is lost as well.
        let sack = scenario.client.sack && scenario.server.sack;
        let repairs = if sack { 0 } else { measured.dropped + self.unkept() };
        let rounds = rounds + if sack { 0.0 } else { self.unkept() as f64 };
        let delayed = 50e6 * repairs as f64;
        let last_start = scenario.flows.iter().map(|flow| flow.start_us).max().unwrap_or(0);
        // Each time-out costs its time, and what was sent again is in `sending` already.
        let timeouts = measured.rto_fired as f64 * 3e9;
        (1000 * last_start + 2_000_000_000)
            .saturating_add((2.0 * sending + rounds * rtt + delayed + timeouts) as u64)
    }
}

fn judge_end(number: usize, side: Side, end: &End, flow: &Flow, fails: bool) -> Verdict {
    let expected = if side == Side::Client { flow.down } else { flow.up };
    let at = || format!("flow {number} {side:?}: {end:?}, expected {expected} bytes");
    hold!(end.differs_at.is_none(), "stream", "{}", at());
    hold!(end.read <= expected, "stream", "more than was sent: {}", at());
    if matches!(end.reading, Some(Ok(()))) {
        hold!(end.read == expected, "stream", "an early end: {}", at());
    }
    for outcome in [&end.reading, &end.writing] {
        if let Some(Err(error)) = outcome {
            let kind = error.kind();
            let legal = matches!(
                kind,
                ErrorKind::ConnectionReset
                    | ErrorKind::TimedOut
                    | ErrorKind::BrokenPipe
                    | ErrorKind::NotConnected
                    | ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
            );
            hold!(fails && legal, "error", "{}", at());
        }
    }
    if !fails {
        let both = end.reading.is_some() && end.writing.is_some();
        hold!(both && end.read == expected, "stream", "{}", at());
    }
    Ok(())
}

/// Jain's index of fairness: 1 if all are equal, 1/n if one has everything.
pub fn jain(rates: &[f64]) -> f64 {
    let sum: f64 = rates.iter().sum();
    let squares: f64 = rates.iter().map(|rate| rate * rate).sum();
    if squares == 0.0 { 1.0 } else { sum * sum / (rates.len() as f64 * squares) }
}
