//! Two hosts, what lies between them, and the loop over time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;

use millstream_buf::{Arena, ArenaConfig, ArenaStats, HugePages};
use millstream_core::{Ipv4Config, Limits, Shard, ShardConfig, Stack};
use millstream_link::{Link, RxBurst};
use millstream_sim::{Direction, DiskConfig, Flapper, Node, SimDisk, SimLink, Wire, pair, step};
use millstream_tcp::{Algorithm, State};
use millstream_timer::{Clock, Instant, VirtualClock};

use crate::flows::{Board, Progress, client, serve};
use crate::monitor::Monitor;
use crate::scenario::{Host, Scenario};

/// The port that servers listen on.
pub const PORT: u16 = 80;
/// The clients' address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The servers' address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

/// Buffers of a host, 2 MiB in all.
const FRAMES: usize = 512;
const BLOCKS: usize = 63;

/// One host: a shard, or what is left of it.
pub enum Station {
    /// It is there, and what it sends is looked at.
    Up(Box<Shard<SimLink, VirtualClock>>, Rc<Watch>),
    /// It is gone: frames fall on the floor.
    Gone(SimLink),
    /// Between the two.
    Nowhere,
}

impl Node for Station {
    fn turn(&mut self) -> bool {
        match self {
            Self::Up(shard, watch) => {
                let worked = shard.turn().work > 0;
                watch.check_windows();
                worked
            }
            Self::Gone(link) => {
                let mut burst = RxBurst::new();
                link.rx_burst(&mut burst);
                !burst.is_empty()
            }
            Self::Nowhere => false,
        }
    }

    fn next_deadline(&self) -> Instant {
        match self {
            Self::Up(shard, _) => shard.next_deadline(),
            Self::Gone(_) | Self::Nowhere => Instant::FAR_FUTURE,
        }
    }
}

/// Looks at what hosts send: at frames as such, and at what their senders know at that moment.
#[derive(Debug)]
pub struct Watch {
    /// How the flows fare.
    pub board: Board,
    /// What the frames told.
    pub monitor: RefCell<Monitor>,
    /// The first breach of a window.
    pub breach: RefCell<Option<String>>,
    /// Flows by the client's port.
    flows: RefCell<HashMap<u16, usize>>,
}

impl Watch {
    /// Has seen nothing yet.
    pub fn new(board: Board) -> Self {
        Self {
            board,
            monitor: RefCell::new(Monitor::new(PORT)),
            breach: RefCell::default(),
            flows: RefCell::default(),
        }
    }

    /// A sender that has just sent something new has no more in flight than its window allows.
    fn check_windows(&self) {
        loop {
            let (port, direction, segments) = {
                let fresh = &mut self.monitor.borrow_mut().fresh;
                let Some(last) = fresh.pop() else { return };
                let before = fresh.len();
                fresh.retain(|other| *other != last);
                (last.0, last.1, 1 + before - fresh.len())
            };
            let Some(flow) = self.flow_of(port) else { continue };
            let stream = {
                let board = self.board.borrow();
                let progress = &board[flow];
                match direction {
                    Direction::AToB => progress.client.stream.upgrade(),
                    Direction::BToA => progress.server.stream.upgrade(),
                }
            };
            let Some(info) = stream.and_then(|stream| stream.info()) else { continue };
            // Limited transmit (RFC 3042) may send two segments more.
            let allowed = info.cwnd_bytes.saturating_add(2 * u32::from(info.mss_bytes));
            let synchronised = !matches!(info.state, State::Closed | State::TimeWait);
            // BBR may make its window smaller than what is out, and then a lone new segment is the
            // probe of RFC 8985 section 7.3, which no window holds back.
            let probe = segments == 1 && info.congestion == Algorithm::Bbr;
            // The peer's window is the monitor's concern: what was sent again counts twice here.
            if synchronised
                && !info.in_recovery
                && !probe
                && info.flight_bytes > allowed
                && self.breach.borrow().is_none()
            {
                let what = format!("flow {flow} {direction:?} sends beyond its window: {info:?}");
                *self.breach.borrow_mut() = Some(what);
            }
        }
    }

    fn flow_of(&self, port: u16) -> Option<usize> {
        let mut flows = self.flows.borrow_mut();
        if let Some(flow) = flows.get(&port) {
            return Some(*flow);
        }
        let flow = self.board.borrow().iter().position(|progress| progress.port == port)?;
        flows.insert(port, flow);
        Some(flow)
    }

    /// The first breach of anything.
    pub fn breach(&self) -> Option<String> {
        let wire = self.monitor.borrow().breach().map(str::to_owned);
        wire.or_else(|| self.breach.borrow().clone())
    }
}

/// Everything.
pub struct World {
    /// Of both hosts.
    pub clock: VirtualClock,
    /// Opens the connections.
    pub client: Station,
    /// Takes them.
    pub server: Station,
    /// The link.
    pub wire: Wire,
    /// Its outages.
    pub flapper: Flapper,
    /// The server's disk.
    pub disk: SimDisk,
    /// How the flows fare, and what they sent.
    pub watch: Rc<Watch>,
}

impl World {
    /// Both hosts, with the applications ready to start.
    pub fn new(scenario: &Scenario) -> Self {
        let clock = VirtualClock::at(Instant::from_micros(1_000_000));
        let (a, b, wire) = pair(&clock, &scenario.link).expect("memory for the link");
        let disk = sim_disk(&clock, scenario.seed);
        let board: Board = Rc::default();
        board.borrow_mut().resize_with(scenario.flows.len(), Progress::default);
        let watch = Rc::new(Watch::new(board));
        let seeing = Rc::clone(&watch);
        wire.set_trace(move |now, direction, fate, frame| {
            seeing.monitor.borrow_mut().see(now, direction, fate, frame);
        });
        let flapper = Flapper::new(&wire, &clock, scenario.flaps);
        let mut world = Self {
            client: Station::Nowhere,
            server: Station::Nowhere,
            clock,
            wire,
            flapper,
            disk,
            watch,
        };
        world.client = boot(
            &world.clock,
            &world.watch,
            scenario,
            &scenario.client,
            CLIENT,
            a,
            &sim_disk(&world.clock, scenario.seed),
        );
        world.server =
            boot(&world.clock, &world.watch, scenario, &scenario.server, SERVER, b, &world.disk);
        world.start_server(scenario);
        let stack = world.client_stack();
        for (number, flow) in scenario.flows.iter().enumerate() {
            let board = Rc::clone(&world.watch.board);
            let task = client(stack.clone(), SocketAddrV4::new(SERVER, PORT), number, *flow, board);
            stack.spawn(task).expect("a task for each flow");
        }
        world
    }

    fn start_server(&self, scenario: &Scenario) {
        let Station::Up(server, _) = &self.server else { return };
        let stack = server.stack().clone();
        let listener = stack.listen(SocketAddrV4::new(SERVER, PORT), scenario.flows.len() + 16);
        let listener = listener.expect("the port is free");
        listener.set_pacing_rates(scenario.clocking().1, &[]);
        let flows = scenario.flows.clone().into();
        let task = serve(stack.clone(), listener, flows, Rc::clone(&self.watch.board));
        stack.spawn(task).expect("a task for the server");
    }

    /// The client's handle.
    pub fn client_stack(&self) -> Stack {
        match &self.client {
            Station::Up(shard, _) => shard.stack().clone(),
            _ => unreachable!("the client stays"),
        }
    }

    /// The server's handle, while it is there.
    pub fn server_stack(&self) -> Option<Stack> {
        match &self.server {
            Station::Up(shard, _) => Some(shard.stack().clone()),
            _ => None,
        }
    }

    /// The moment.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The server is gone, without a word.
    pub fn server_goes(&mut self) {
        self.server = Station::Nowhere;
        self.server = Station::Gone(self.wire.reopen(Direction::BToA));
    }

    /// The server is back, and has forgotten everything.
    pub fn server_comes_back(&mut self, scenario: &Scenario) {
        self.server = Station::Nowhere;
        let link = self.wire.reopen(Direction::BToA);
        // What the old one has asked its disk for must not come to the new one.
        self.disk = sim_disk(&self.clock, scenario.seed);
        self.server =
            boot(&self.clock, &self.watch, scenario, &scenario.server, SERVER, link, &self.disk);
        self.watch.monitor.borrow_mut().forget();
        self.start_server(scenario);
    }

    /// One step in time, up to `until`; `None` if nothing will happen before it.
    pub fn step(&mut self, until: Instant) -> Option<Instant> {
        let mut nodes: [&mut dyn Node; 5] =
            [&mut self.flapper, &mut self.client, &mut self.server, &mut self.wire, &mut self.disk];
        step(&self.clock, &mut nodes, until)
    }

    /// Connections at both ends, in any state, TIME_WAIT included.
    pub fn connections(&self) -> (usize, usize) {
        let all = |stack: Stack| stack.connections() + stack.time_waits();
        (all(self.client_stack()), self.server_stack().map_or(0, all))
    }
}

/// A disk of a host.
pub fn sim_disk(clock: &VirtualClock, seed: u64) -> SimDisk {
    let config = DiskConfig { jitter_nanos: 300_000, seed, ..DiskConfig::default() };
    SimDisk::new(clock, &config).expect("memory for a disk queue")
}

/// A host with all its memory.
pub fn boot(
    clock: &VirtualClock,
    watch: &Rc<Watch>,
    scenario: &Scenario,
    host: &Host,
    address: Ipv4Addr,
    link: SimLink,
    disk: &SimDisk,
) -> Station {
    let flows = scenario.flows.len();
    let mut config = ShardConfig::new(Ipv4Config { address, prefix_len: 24, gateway: None });
    config.tcp = scenario.tcp(host);
    config.limits = Limits {
        connections: 2 * flows + 64,
        channel_packets: 1024,
        slices: 8192,
        tasks: 2 * flows + 64,
        sleepers: 2 * flows + 64,
        ..Limits::default()
    };
    config.secret = [address.octets()[3] ^ scenario.seed as u8; 48];
    let arena = ArenaConfig { frames: FRAMES, blocks: BLOCKS, huge_pages: HugePages::Never };
    let arena = Arena::new(&arena).expect("memory for a host");
    let shard = Shard::new(config, link, clock.clone(), arena, Box::new(disk.clone()));
    Station::Up(Box::new(shard), Rc::clone(watch))
}

/// Buffers of an arena that are in use: frames, blocks.
pub fn in_use(stats: &ArenaStats) -> (usize, usize) {
    (stats.frames.0 - stats.frames.1, stats.blocks.0 - stats.blocks.1)
}
