//! Rates of listeners and paths, on whole shards over a simulated link.

mod common;

use std::cell::RefCell;
use std::net::SocketAddrV4;
use std::rc::Rc;

use common::{CLIENT, SERVER, arena, config};
use millstream_buf::IoBuf;
use millstream_core::{ClientRate, Limits, Shard, Stack, TcpStream};
use millstream_disk::MemDisk;
use millstream_sim::{Direction, DirectionConfig, LinkConfig, Node, SimLink, Wire, pair, step};
use millstream_tcp::{Clocking, Config, KnownStart, PacingRate};
use millstream_timer::{Clock, Instant, VirtualClock};

const SERVER_AT: SocketAddrV4 = SocketAddrV4::new(SERVER, 80);
const RTT_US: u64 = 20_000;

struct Host(Shard<SimLink, VirtualClock>);

impl Node for Host {
    fn turn(&mut self) -> bool {
        self.0.turn().work > 0
    }

    fn next_deadline(&self) -> Instant {
        self.0.next_deadline()
    }
}

struct World {
    clock: VirtualClock,
    client: Host,
    server: Host,
    wire: Wire,
}

fn link(bandwidth_bps: u64) -> DirectionConfig {
    DirectionConfig {
        queue_frames: 50,
        ring_frames: 1 << 14,
        ..DirectionConfig::wire(bandwidth_bps, RTT_US * 500)
    }
}

impl World {
    /// A server that answers each connection with so many bytes as its first four bytes say.
    fn new(clocking: Clocking, bandwidth_bps: u64) -> Self {
        let clock = VirtualClock::at(Instant::from_micros(1_000_000));
        let both = LinkConfig { buffers: 8192, ..LinkConfig::symmetric(link(bandwidth_bps)) };
        let (a, b, wire) = pair(&clock, &both).unwrap();
        let limits = Limits { slices: 1 << 15, channel_packets: 1 << 13, ..Limits::default() };
        let limits = Limits { connections: 64, connection_packets: 1 << 13, ..limits };
        let host = |address, link| {
            let mut config = config(address, limits);
            config.tcp = Config {
                clocking,
                nagle: false,
                recv_buffer_bytes: 16 << 20,
                send_buffer_bytes: 16 << 20,
                recv_slices_max: u16::MAX,
                time_wait_us: 1000,
                ..Config::default()
            };
            let disk = Box::new(MemDisk::copying(64).unwrap());
            Host(Shard::new(config, link, clock.clone(), arena(256, 16), disk))
        };
        Self { client: host(CLIENT, a), server: host(SERVER, b), wire, clock }
    }

    fn serve(&self, rates: impl FnOnce(&millstream_core::TcpListener)) {
        let stack = self.server.0.stack().clone();
        let listener = stack.listen(SERVER_AT, 16).unwrap();
        rates(&listener);
        let stack2 = stack.clone();
        let task = async move {
            loop {
                let (stream, _) = listener.accept().await;
                stack2.spawn(answer(stream)).unwrap();
            }
        };
        stack.spawn(task).unwrap();
    }

    /// Downloads so many bytes; milliseconds from the request to the end.
    fn download(&mut self, bytes: u32) -> f64 {
        let stack = self.client.0.stack().clone();
        let took: Rc<RefCell<Option<u64>>> = Rc::default();
        let slot = Rc::clone(&took);
        self.client.0.stack().spawn(fetch(stack, bytes, slot)).unwrap();
        let until = self.clock.now().plus_nanos(600_000_000_000);
        while took.borrow().is_none() {
            let mut nodes: [&mut dyn Node; 3] =
                [&mut self.client, &mut self.server, &mut self.wire];
            let more = step(&self.clock, &mut nodes, until);
            assert!(more.is_some(), "the download does not end");
        }
        let took = took.borrow().unwrap();
        took as f64 / 1e6
    }

    /// Lets connections end.
    fn rest(&mut self, seconds: u64) {
        let until = self.clock.now().plus_nanos(seconds * 1_000_000_000);
        while self.clock.now() < until {
            let mut nodes: [&mut dyn Node; 3] =
                [&mut self.client, &mut self.server, &mut self.wire];
            step(&self.clock, &mut nodes, until);
        }
    }

    fn path(&self, bandwidth_bps: u64) {
        for direction in [Direction::AToB, Direction::BToA] {
            self.wire.configure(direction, link(bandwidth_bps));
        }
    }

    /// Starts at a known rate, and failed ones.
    fn starts(&self) -> (u64, u64) {
        let stats = self.server.0.stack().tcp_stats();
        (stats.known_starts, stats.known_starts_failed)
    }

    fn dropped(&self) -> u64 {
        self.wire.stats(Direction::BToA).dropped()
    }
}

async fn answer(stream: TcpStream) {
    let mut request = [0; 4];
    if !matches!(stream.read(&mut request).await, Ok(4)) {
        return;
    }
    let slice = IoBuf::from(vec![0x5a; 64 * 1024]);
    let mut left = u32::from_be_bytes(request) as usize;
    while left > 0 {
        let count = left.min(slice.len());
        if stream.send_buf(slice.slice(0..count)).await.is_err() {
            return;
        }
        left -= count;
    }
    stream.shutdown();
    let _ = stream.read(&mut request).await;
}

async fn fetch(stack: Stack, bytes: u32, took: Rc<RefCell<Option<u64>>>) {
    let stream = stack.connect(SERVER_AT).await.unwrap();
    let start = stack.now();
    stream.write_all(&bytes.to_be_bytes()).await.unwrap();
    let mut read = 0;
    while let Some(data) = stream.read_buf().await.unwrap() {
        read += data.len();
    }
    assert_eq!(read, bytes as usize);
    *took.borrow_mut() = Some(stack.now().nanos_since(start));
}

/// 250 kB/s to one network, 1 MB/s to the others, whatever the link takes.
#[test]
fn a_listener_has_rates_for_networks() {
    let rate = |bytes_per_s| PacingRate::new(bytes_per_s).unwrap();
    for (network, millis) in [("198.18.0.0", 4000.0), ("192.0.2.0", 1000.0)] {
        let mut world = World::new(Clocking::Auto, 1_000_000_000);
        world.serve(|listener| {
            let client = ClientRate::new(network.parse().unwrap(), 24, rate(250_000)).unwrap();
            listener.set_pacing_rates(Some(rate(1_000_000)), &[client]);
        });
        let took = world.download(1_000_000);
        assert!((millis..1.04 * millis + 20.0).contains(&took), "{took} for {network}");
        assert_eq!((world.starts(), world.dropped()), ((0, 0), 0));
    }
}

/// The second connection knows what the first has seen, and is faster for it.
#[test]
fn a_remembered_rate_makes_the_next_connection_faster() {
    // 100 packets need four round trips of slow start; the path holds 165.
    let bytes = 100 * 1448;
    for (clocking, faster) in [(Clocking::Auto, false), (Clocking::Rate, true)] {
        let mut world = World::new(clocking, 100_000_000);
        world.serve(|_| {});
        world.download(4_000_000);
        world.rest(2);
        let mut first = World::new(clocking, 100_000_000);
        first.serve(|_| {});
        let unknown = first.download(bytes);
        let known = world.download(bytes);
        assert_eq!(known < 0.75 * unknown, faster, "{known} after {unknown}");
        assert_eq!(world.starts(), (u64::from(faster), 0));
        // Ten minutes later nothing is believed.
        world.rest(601);
        assert!(world.download(bytes) > 0.9 * unknown);
        assert_eq!(world.starts().0, u64::from(faster));
    }
}

/// What was remembered of a path of 1 Gbit/s is wrong by a factor of a hundred: one window of half
/// of it is lost in part, once, and the next connections are careful.
#[test]
fn a_path_that_became_slower_loses_half_a_window_once() {
    let mut world = World::new(Clocking::Rate, 1_000_000_000);
    world.serve(|_| {});
    world.download(40_000_000);
    world.rest(2);
    let (before, starts) = (world.dropped(), world.starts());
    world.path(10_000_000);
    let took = world.download(4_000_000);
    assert_eq!(world.starts(), (starts.0 + 1, starts.1 + 1));
    let lost = world.dropped() - before;
    // The path held 1727 packets; half of them are 863.
    assert!(lost > 100, "{lost}: it was a guess");
    assert!(lost <= 870, "{lost}");
    // As fast as this path is, but for the beginning.
    let ideal = 4_000_000.0 * 8.0 / 10_000.0;
    assert!(took < 1.35 * ideal, "{took}, not {ideal}");
    let mut all = lost;
    for _ in 0..5 {
        world.rest(2);
        let before = world.dropped();
        world.download(1_000_000);
        all += world.dropped() - before;
        assert!(world.dropped() - before < 200, "the next ones are careful");
    }
    assert!(all < 1400, "{all}");

    // And it is forgiven when the path is fast again: from the low rate it grows as usual.
    world.path(1_000_000_000);
    world.rest(2);
    world.download(40_000_000);
    world.rest(2);
    let failed = world.starts().1;
    let took = world.download(1_000_000);
    assert!(took < 60.0, "{took}");
    assert_eq!(world.starts().1, failed);
}

/// Connections that open at the same time do not all start at the one rate that was seen.
#[test]
fn one_connection_at_a_time_starts_at_what_is_remembered() {
    let mut world = World::new(Clocking::Rate, 100_000_000);
    world.serve(|_| {});
    world.download(4_000_000);
    world.rest(2);
    let done: Rc<RefCell<usize>> = Rc::default();
    for _ in 0..4 {
        let stack = world.client.0.stack().clone();
        let (slot, count) = (Rc::default(), Rc::clone(&done));
        let task = async move {
            fetch(stack, 400_000, slot).await;
            *count.borrow_mut() += 1;
        };
        world.client.0.stack().spawn(task).unwrap();
    }
    while *done.borrow() < 4 {
        world.rest(1);
    }
    assert_eq!(world.starts(), (1, 0));
}

/// A browser opens several connections and asks when all are open.
#[test]
fn connections_that_open_before_they_are_asked_are_no_exception() {
    let mut world = World::new(Clocking::Rate, 100_000_000);
    world.serve(|_| {});
    world.download(4_000_000);
    world.rest(2);
    let done: Rc<RefCell<usize>> = Rc::default();
    for _ in 0..4 {
        let stack = world.client.0.stack().clone();
        let count = Rc::clone(&done);
        let task = async move {
            let stream = stack.connect(SERVER_AT).await.unwrap();
            stack.sleep(std::time::Duration::from_millis(100)).await;
            stream.write_all(&400_000_u32.to_be_bytes()).await.unwrap();
            while stream.read_buf().await.unwrap().is_some() {}
            *count.borrow_mut() += 1;
        };
        world.client.0.stack().spawn(task).unwrap();
    }
    while *done.borrow() < 4 {
        world.rest(1);
    }
    assert_eq!(world.starts().0, 1);
}

/// What a stream says of its start.
#[test]
fn a_stream_tells_how_it_started() {
    let mut world = World::new(Clocking::Rate, 100_000_000);
    let stack = world.server.0.stack().clone();
    let listener = stack.listen(SERVER_AT, 16).unwrap();
    let told: Rc<RefCell<Vec<KnownStart>>> = Rc::default();
    let slot = Rc::clone(&told);
    let task = async move {
        let (stream, _) = listener.accept().await;
        slot.borrow_mut().push(stream.known_start());
        stream.set_pacing_rate(Some(PacingRate::new(10_000_000).unwrap()));
        slot.borrow_mut().push(stream.known_start());
        answer(stream).await;
    };
    stack.spawn(task).unwrap();
    world.download(1_000_000);
    assert_eq!(*told.borrow(), [KnownStart::None, KnownStart::Unproven]);
}
