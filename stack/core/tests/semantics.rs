//! Regions under the eight data semantics, over a path that loses, between whole shards in virtual time:
//! what a writer does after the call is not seen by the peer, in retransmissions neither.

mod common;

use std::cell::RefCell;
use std::rc::Rc;

use common::{CLIENT, SERVER, arena, config, pattern, server_at, small_limits};
use millstream_buf::{After, Agg, DataSemantics, Exchange, Region, Thresholds};
use millstream_core::{Shard, Stack};
use millstream_disk::MemDisk;
use millstream_sim::{DirectionConfig, LinkConfig, Node, SimLink, Wire, pair};
use millstream_timer::{Instant, VirtualClock};

const SIZES: usize = millstream_buf::SIZES_BYTES.len();

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
    fn new(loss: f64, seed: u64) -> Self {
        let clock = VirtualClock::new();
        let path = DirectionConfig { loss, ..DirectionConfig::wire(100_000_000, 2_000_000) };
        let link = LinkConfig { seed, ..LinkConfig::symmetric(path) };
        let (a, b, wire) = pair(&clock, &link).unwrap();
        let shard = |address, link| {
            let disk = Box::new(MemDisk::copying(8).unwrap());
            let config = config(address, small_limits());
            Host(Shard::new(config, link, clock.clone(), arena(1024, 96), disk))
        };
        Self { client: shard(CLIENT, a), server: shard(SERVER, b), wire, clock }
    }

    fn run_until(&mut self, mut done: impl FnMut() -> bool) {
        while !done() {
            let mut nodes: [&mut dyn Node; 3] =
                [&mut self.client, &mut self.server, &mut self.wire];
            let more = millstream_sim::step(&self.clock, &mut nodes, Instant::FAR_FUTURE);
            assert!(more.is_some() || done(), "nothing will happen any more");
        }
    }
}

/// Thresholds of no machine: tests must not hang on the speed of this one.
fn exchange(stack: &Stack) -> Exchange {
    let thresholds =
        Thresholds { copy_below_bytes: 100, copy_ns: [1.0; SIZES], refer_ns: [1.0; SIZES] };
    Exchange::with(&stack.arena(), 4, thresholds)
}

/// Takes one connection and keeps all that it brings.
fn collect(stack: &Stack, port: u16) -> Rc<RefCell<Option<Vec<u8>>>> {
    let listener = stack.listen(server_at(port), 4).unwrap();
    let whole = Rc::new(RefCell::new(None));
    let kept = Rc::clone(&whole);
    stack
        .spawn(async move {
            let (stream, _) = listener.accept().await;
            let mut bytes = Vec::new();
            while let Some(slice) = stream.read_buf().await.unwrap() {
                bytes.extend_from_slice(&slice);
            }
            *kept.borrow_mut() = Some(bytes);
        })
        .unwrap();
    whole
}

/// Sends `len` bytes in regions of several sizes and does its worst to each as soon as the call returns.
async fn hostile_writer(stack: Stack, semantics: DataSemantics, data: Vec<u8>) -> u64 {
    let exchange = exchange(&stack);
    let stream = stack.connect(server_at(9)).await.unwrap();
    stream.set_semantics(semantics);
    assert_eq!(stream.semantics(), semantics);
    let mut copied = 0;
    let mut at = 0;
    for size in [40, 1_000, 2_048, 30_000, 5, 65_536, 16_384, 99, 100, 50_000].iter().cycle() {
        if at == data.len() {
            break;
        }
        let len = (*size).min(data.len() - at);
        let mut region = if semantics.is_application_allocated() {
            Region::new(&stack.arena(), len).unwrap()
        } else {
            exchange.cache().allocate(len, semantics).unwrap()
        };
        region.write(0, &data[at..at + len]).unwrap();
        let (after, sent) = stream.send_region(&exchange, region).await.unwrap();
        at += len;
        match after {
            After::Mine(mut region) => {
                // Early: most of it is not even on the wire.
                for place in (0..len).step_by(5_000) {
                    copied += region.write(place, &[0xbb]).unwrap() as u64;
                }
            }
            After::Lent(lent) => {
                stream.released(sent).await.unwrap();
                let mut region = lent.reclaim().expect("all handles are back");
                assert_eq!(region.write(0, &[0xbb]).unwrap(), 0);
            }
            After::Gone => {
                let mut next = exchange.cache().allocate(len, semantics).unwrap();
                next.write(0, &vec![0xbb; len]).unwrap();
            }
            After::Readable(view) => {
                let mut first = [0];
                view.peek(0, &mut first);
                view.release(semantics, exchange.cache());
            }
        }
    }
    let sent = stream.sent();
    stream.shutdown();
    stream.released(sent).await.unwrap();
    assert!(stream.is_released(sent));
    copied
}

#[test]
fn the_peer_sees_what_was_sent_whatever_is_written_later() {
    for (number, semantics) in DataSemantics::ALL.into_iter().enumerate() {
        let mut world = World::new(0.05, 77 + number as u64);
        let data = pattern(600_000, 3 + number as u64);
        let received = collect(world.server.0.stack(), 9);
        let stack = world.client.0.stack().clone();
        let writer = hostile_writer(stack.clone(), semantics, data.clone());
        let writer = stack.spawn(writer).unwrap();
        let mut copied = None;
        world.run_until(|| {
            copied = copied.or_else(|| writer.take());
            copied.is_some() && received.borrow().is_some()
        });
        assert!(received.borrow().as_deref() == Some(&data[..]), "{semantics}");
        let retransmits = stack.tcp_stats().retransmits;
        assert!(retransmits > 5, "{semantics}: {retransmits} retransmissions");
        // The writer of emulated copy pays for writing early, nobody else does.
        let pays = semantics == DataSemantics::EmulatedCopy;
        assert_eq!(copied > Some(0), pays, "{semantics}: {copied:?} bytes copied on write");
        let by_call = stack.metrics().copied_api_bytes;
        match semantics {
            DataSemantics::Copy => assert_eq!(by_call, data.len() as u64),
            DataSemantics::EmulatedCopy | DataSemantics::EmulatedShare => {
                assert!(by_call > 0 && by_call < 1_000, "short ones alone: {by_call}");
            }
            _ => assert_eq!(by_call, 0, "{semantics}"),
        }
        let (client, server) = (stack.clone(), world.server.0.stack().clone());
        world.run_until(|| client.connections() + server.connections() == 0);
        drop(writer);
        let held = client.arena().audit().held;
        assert!(held.len() <= 2, "{semantics}: more than the two staging buffers: {held:?}");
    }
}

#[test]
fn regions_come_in_under_every_semantics() {
    for semantics in DataSemantics::ALL {
        let mut world = World::new(0.02, 5);
        let data = pattern(200_000, 9);
        let server = world.server.0.stack().clone();
        let listener = server.listen(server_at(9), 4).unwrap();
        let receiver = server.clone();
        let receiving = server
            .spawn(async move {
                let (stream, _) = listener.accept().await;
                let exchange = exchange(&receiver);
                let mut whole = Vec::new();
                let mut inbox = Agg::new();
                loop {
                    if !semantics.is_application_allocated() {
                        match stream.receive_region(&exchange).await.unwrap() {
                            Some(region) => {
                                region.slices().for_each(|s| whole.extend_from_slice(s))
                            }
                            None => return whole,
                        }
                        continue;
                    }
                    let mut region = Region::new(exchange.arena(), 7_001).unwrap();
                    let mut at = 0;
                    while at < region.len() {
                        let into = stream
                            .receive_into(&exchange, &mut region, at, &mut inbox, semantics)
                            .await
                            .unwrap();
                        if into == 0 {
                            break;
                        }
                        at += into;
                    }
                    let mut bytes = vec![0; at];
                    region.copy_to(0, &mut bytes);
                    whole.extend_from_slice(&bytes);
                    if at < region.len() {
                        return whole;
                    }
                }
            })
            .unwrap();
        let stack = world.client.0.stack().clone();
        let sent = data.clone();
        let client = stack.clone();
        stack
            .spawn(async move {
                let stream = client.connect(server_at(9)).await.unwrap();
                stream.write_all(&sent).await.unwrap();
                stream.shutdown();
                stream.flushed().await.unwrap();
            })
            .unwrap();
        let mut got = None;
        world.run_until(|| {
            got = got.take().or_else(|| receiving.take());
            got.is_some()
        });
        assert!(got.as_deref() == Some(&data[..]), "{semantics}");
    }
}
