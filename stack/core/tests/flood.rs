//! SYN cookies: floods of SYNs that nobody means, and clients that get through.

mod common;
mod raw;

use std::net::{Ipv4Addr, SocketAddrV4};

use common::{CLIENT, SERVER, arena, config, pattern, server_at, small_limits};
use millstream_core::{Limits, Shard, ShardConfig, Stack, SynCookiePolicy};
use millstream_link::{Link, TxFrame, TxOffload};
use millstream_sim::{
    DirectionConfig, DiskConfig, LinkConfig, Node, SimDisk, SimLink, Wire, pair, step,
};
use millstream_timer::{Clock, Instant, VirtualClock};
use millstream_wire::tcp::{Flags, Options, Timestamp};
use raw::RawWorld;

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

impl World {
    fn new(direction: DirectionConfig, seed: u64, policy: SynCookiePolicy) -> Self {
        let clock = VirtualClock::new();
        let link = LinkConfig { seed, ..LinkConfig::symmetric(direction) };
        let (a, b, wire) = pair(&clock, &link).unwrap();
        let shard = |address, link| {
            let disk = Box::new(SimDisk::new(&clock, &DiskConfig::default()).unwrap());
            let limits = Limits { connections: 256, channel_packets: 2048, ..small_limits() };
            let config = ShardConfig { syn_cookies: policy, ..config(address, limits) };
            Host(Shard::new(config, link, clock.clone(), arena(1024, 64), disk))
        };
        let (client, server) = (shard(CLIENT, a), shard(SERVER, b));
        Self { client, server, wire, clock }
    }

    fn step(&mut self, until: Instant) -> bool {
        let mut nodes: [&mut dyn Node; 3] = [&mut self.client, &mut self.server, &mut self.wire];
        step(&self.clock, &mut nodes, until).is_some()
    }

    fn run_for(&mut self, micros: u64) {
        let until = self.clock.now().plus_micros(micros);
        while self.step(until) {}
    }

    /// An echo server on port 80.
    fn serve(&self, backlog: usize) -> Stack {
        let stack = self.server.0.stack().clone();
        let listener = stack.listen(server_at(80), backlog).unwrap();
        let spawner = stack.clone();
        let accept = async move {
            loop {
                let (stream, _) = listener.accept().await;
                let echo = async move {
                    while let Ok(Some(bytes)) = stream.read_buf().await {
                        if stream.send_buf(bytes).await.is_err() {
                            break;
                        }
                    }
                };
                drop(spawner.spawn(echo));
            }
        };
        stack.spawn(accept).unwrap();
        stack
    }
}

/// Sends `bytes` on a new connection and asks for them back.
async fn echoed(stack: Stack, bytes: Vec<u8>) -> bool {
    let Ok(stream) = stack.connect(server_at(80)).await else { return false };
    if stream.write_all(&bytes).await.is_err() {
        return false;
    }
    stream.shutdown();
    let mut back = Vec::new();
    while let Ok(Some(slice)) = stream.read_buf().await {
        back.extend_from_slice(&slice);
    }
    back == bytes
}

#[test]
fn clients_get_through_a_flood_of_a_hundred_thousand() {
    let wire = DirectionConfig::wire(10_000_000_000, 100_000);
    let mut world = World::new(wire, 1, SynCookiePolicy::Auto);
    let server = world.serve(32);
    let client = world.client.0.stack().clone();
    let mut outcomes = Vec::new();
    let mut most = 0;
    for number in 0..100_000u32 {
        let from = Ipv4Addr::from_bits(0xc613_0000 | number & 0xffff);
        let from = SocketAddrV4::new(from, 1024 + (number >> 16) as u16);
        let options = Options::syn(1460, Some(7), true, Some(Timestamp { value: 1, echo: 0 }));
        let header = raw::frame(from, number, 0, Flags::SYN, options.as_slice());
        let offload = TxOffload::default();
        let _ = world.client.0.link().tx(&TxFrame { header: &header, payload: &[], offload });
        if number % 100 == 99 {
            world.run_for(1_000);
            most = most.max(server.connections());
        }
        if number % 2_000 == 1_000 {
            let task = echoed(client.clone(), pattern(5_000, u64::from(number)));
            outcomes.push(client.spawn(task).unwrap());
        }
    }
    world.run_for(1_000_000);
    let served = outcomes.iter().filter(|outcome| outcome.take() == Some(true)).count();
    assert_eq!((served, outcomes.len()), (50, 50));
    let metrics = server.metrics();
    assert!(metrics.syn_cookies_sent > 90_000, "{metrics:?}");
    assert!(metrics.syn_cookies_accepted >= 40, "{metrics:?}");
    assert_eq!(metrics.half_open_evicted, 0);
    assert!(most <= 32 + 50, "{most} connections at a time");
    assert_eq!(server.rx_metrics().unaccounted(), 0, "{:?}", server.rx_metrics());
}

#[test]
fn without_cookies_nothing_is_kept_of_them() {
    let wire = DirectionConfig::wire(1_000_000_000, 100_000);
    let mut world = World::new(wire, 1, SynCookiePolicy::Off);
    let server = world.serve(32);
    let client = world.client.0.stack().clone();
    let outcome = client.spawn(echoed(client.clone(), pattern(5_000, 3))).unwrap();
    world.run_for(1_000_000);
    assert_eq!(outcome.take(), Some(true));
    assert_eq!(server.metrics().syn_cookies_sent, 0);
}

#[test]
fn connections_that_a_cookie_opened_are_as_good_as_others() {
    for seed in 0..30 {
        let wire = DirectionConfig {
            loss: 0.03,
            reorder: 0.05,
            duplicate: 0.05,
            corrupt: 0.01,
            ..DirectionConfig::wire(50_000_000, 5_000_000)
        };
        let mut world = World::new(wire, seed, SynCookiePolicy::Always);
        let server = world.serve(8);
        let client = world.client.0.stack().clone();
        let outcome = client.spawn(echoed(client.clone(), pattern(200_000, seed))).unwrap();
        for _ in 0..600 {
            world.run_for(1_000_000);
            if server.connections() + client.connections() == 0 {
                break;
            }
        }
        assert_eq!(outcome.take(), Some(true), "seed {seed}");
        let metrics = server.metrics();
        assert_eq!((metrics.syn_cookies_accepted, metrics.accepted), (1, 1), "seed {seed}");
        assert_eq!(server.rx_metrics().unaccounted(), 0, "seed {seed}");
    }
}

#[test]
fn a_cookie_that_comes_late_or_from_elsewhere_opens_nothing() {
    let limits = small_limits();
    let always = SynCookiePolicy::Always;
    let mut world = RawWorld::new(ShardConfig { syn_cookies: always, ..config(SERVER, limits) });
    let stack = world.shard.stack().clone();
    let _listener = stack.listen(server_at(80), 2).unwrap();
    let answer = world.say(5000, 100, 0, Flags::SYN, &[])[0];
    assert_eq!((answer.flags, answer.ack), (Flags::SYN | Flags::ACK, 101));
    assert_eq!(stack.connections(), 0, "nothing is kept");
    let cookie = answer.seq.wrapping_add(1);
    let refused = world.say(5001, 101, cookie, Flags::ACK, &[]);
    assert!(refused[0].flags.contains(Flags::RST));
    let refused = world.say(5000, 101, cookie.wrapping_add(1), Flags::ACK, &[]);
    assert!(refused[0].flags.contains(Flags::RST));
    assert_eq!((stack.connections(), stack.metrics().syn_cookies_rejected), (0, 2));
    assert_eq!(world.say(5000, 101, cookie, Flags::ACK, &[]), []);
    assert_eq!((stack.connections(), stack.metrics().syn_cookies_accepted), (1, 1));
    // The same again belongs to the connection that there is.
    world.say(5000, 101, cookie, Flags::ACK, &[]);
    assert_eq!(stack.connections(), 1);

    let late = world.say(6000, 100, 0, Flags::SYN, &[])[0].seq.wrapping_add(1);
    world.pass(130);
    let refused = world.say(6000, 101, late, Flags::ACK, &[]);
    assert!(refused[0].flags.contains(Flags::RST));
    assert_eq!(stack.rx_metrics().unaccounted(), 0);
}

#[test]
fn a_full_backlog_takes_no_cookie_until_there_is_room() {
    let limits = small_limits();
    let always = SynCookiePolicy::Always;
    let mut world = RawWorld::new(ShardConfig { syn_cookies: always, ..config(SERVER, limits) });
    let stack = world.shard.stack().clone();
    let listener = stack.listen(server_at(80), 1).unwrap();
    let cookies: Vec<u32> = [5000, 5001]
        .map(|port| world.say(port, 100, 0, Flags::SYN, &[])[0].seq.wrapping_add(1))
        .to_vec();
    world.say(5000, 101, cookies[0], Flags::ACK, &[]);
    assert_eq!(world.say(5001, 101, cookies[1], Flags::ACK, &[]), [], "not a word");
    assert_eq!((stack.connections(), stack.rx_metrics().drop_backlog_full), (1, 1));
    // Once the first is accepted, the second peer's next segment opens its connection.
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(listener.poll_accept(&mut cx).is_ready());
    world.say(5001, 101, cookies[1], Flags::ACK, &[]);
    assert_eq!(stack.connections(), 2);
}
