//! What stays of a connection that both sides have closed, and for how long.

mod common;
mod raw;

use common::{SERVER, config, server_at, small_limits};
use millstream_core::{ConnectError, Limits, ShardConfig, SynCookiePolicy};
use millstream_wire::tcp::Options;
use millstream_wire::tcp::{Flags, SackBlocks, Timestamp};
use raw::RawWorld;

const FIN: Flags = Flags::ACK.union(Flags::FIN);

/// A server that accepts on port 80 and lets go at once.
fn world(limits: Limits) -> RawWorld {
    let config = ShardConfig { limits, ..config(SERVER, limits) };
    let world = RawWorld::new(config);
    let stack = world.shard.stack().clone();
    let listener = stack.listen(server_at(80), 8).unwrap();
    stack
        .spawn(async move {
            while {
                listener.accept().await;
                true
            } {}
        })
        .unwrap();
    world
}

/// Opens a connection and closes it; the server was first, so it is the one in TIME_WAIT. Returns the
/// server's next number; the peer's is 102.
fn open_and_close(world: &mut RawWorld, port: u16, options: &[u8]) -> u32 {
    let said = world.say(port, 100, 0, Flags::SYN, options);
    assert_eq!((said[0].flags, said[0].ack), (Flags::SYN | Flags::ACK, 101));
    let next = said[0].seq.wrapping_add(1);
    let stamp = stamped(options, 1);
    let said = world.say(port, 101, next, Flags::ACK, stamp.as_slice());
    assert!(said.iter().any(|sent| sent.flags.contains(Flags::FIN)), "{said:?}");
    let next = next.wrapping_add(1);
    let said = world.say(port, 101, next, FIN, stamp.as_slice());
    let last = said.last().expect("the last ACK");
    assert_eq!((last.seq, last.ack, last.flags), (next, 102, Flags::ACK));
    next
}

fn stamped(options: &[u8], later: u32) -> Options {
    let stamp = (!options.is_empty()).then_some(Timestamp { value: 1000 + later, echo: 0 });
    Options::established(stamp, &SackBlocks::EMPTY)
}

/// The options of a SYN with timestamps.
fn stamps() -> Options {
    Options::syn(1460, None, false, Some(Timestamp { value: 1000, echo: 0 }))
}

#[test]
fn everything_but_a_small_record_is_free_at_once() {
    let mut world = world(small_limits());
    let next = open_and_close(&mut world, 5000, &[]);
    let stack = world.shard.stack().clone();
    assert_eq!((stack.connections(), stack.time_waits()), (0, 1));
    // The last ACK was lost: the FIN comes again, and is answered again.
    let said = world.say(5000, 101, next, FIN, &[]);
    assert_eq!(said.len(), 1);
    assert_eq!((said[0].seq, said[0].ack, said[0].flags), (next, 102, Flags::ACK));
    // RFC 1337.
    assert_eq!(world.say(5000, 102, 0, Flags::RST, &[]), []);
    assert_eq!(world.say(5000, 102, next, Flags::ACK, &[]), [], "an ACK needs no ACK");
    assert_eq!(stack.time_waits(), 1);
    let metrics = stack.rx_metrics();
    assert_eq!((metrics.delivered_time_wait, metrics.unaccounted()), (3, 0));
}

#[test]
fn it_lasts_as_long_as_is_set_from_the_last_fin_on() {
    let mut world = world(small_limits());
    let next = open_and_close(&mut world, 5000, &[]);
    open_and_close(&mut world, 5001, &[]);
    let stack = world.shard.stack().clone();
    world.pass(50);
    assert_eq!(stack.time_waits(), 2);
    assert_eq!(world.say(5000, 101, next, FIN, &[]).len(), 1);
    world.pass(11);
    assert_eq!(stack.time_waits(), 1, "the one whose FIN came again");
    world.pass(48);
    assert_eq!(stack.time_waits(), 1);
    world.pass(2);
    assert_eq!(stack.time_waits(), 0);
    // Now nobody knows it any more.
    let said = world.say(5000, 101, next, FIN, &[]);
    assert!(said[0].flags.contains(Flags::RST));
}

#[test]
fn a_newer_syn_reopens_it_and_an_older_one_does_not() {
    // By the number, or, with timestamps, by the time (RFC 6191).
    for (options, old, new) in
        [(Options::EMPTY, (90, 0), (200, 0)), (stamps(), (5000, -500), (1, 500))]
    {
        let mut world = world(small_limits());
        let next = open_and_close(&mut world, 5000, options.as_slice());
        let stack = world.shard.stack().clone();
        let syn = |later: i32| {
            let value = 1001_u32.wrapping_add_signed(later);
            let stamp = (options != Options::EMPTY).then_some(Timestamp { value, echo: 0 });
            Options::syn(1460, None, false, stamp)
        };
        let said = world.say(5000, old.0, 0, Flags::SYN, syn(old.1).as_slice());
        assert_eq!((said[0].seq, said[0].ack, said[0].flags), (next, 102, Flags::ACK));
        assert_eq!((stack.connections(), stack.time_waits()), (0, 1));
        let said = world.say(5000, new.0, 0, Flags::SYN, syn(new.1).as_slice());
        assert_eq!((said[0].ack, said[0].flags), (new.0 + 1, Flags::SYN | Flags::ACK));
        assert!(is_beyond(said[0].seq, next));
        assert_eq!((stack.connections(), stack.time_waits()), (1, 0));
        assert_eq!(stack.rx_metrics().unaccounted(), 0);
    }
}

#[test]
fn the_oldest_makes_way() {
    let mut world = world(Limits { time_wait: 4, ..small_limits() });
    for port in 5000..5010 {
        open_and_close(&mut world, port, &[]);
    }
    let stack = world.shard.stack().clone();
    assert_eq!((stack.time_waits(), stack.metrics().time_wait_recycled), (4, 6));
    let said = world.say(5000, 101, 7, FIN, &[]);
    assert!(said[0].flags.contains(Flags::RST), "the oldest is forgotten");
    let said = world.say(5009, 101, 7, FIN, &[]);
    assert_eq!(said[0].flags, Flags::ACK, "the newest is not");
}

/// No old duplicate of what was sent below `next` fits into the window of a connection that begins at
/// `isn` (RFC 9293 section 3.6.1).
fn is_beyond(isn: u32, next: u32) -> bool {
    (65_536..1 << 20).contains(&isn.wrapping_sub(next))
}

/// Nor is a connection in TIME_WAIT that is still held reopened among its own numbers.
#[test]
fn one_that_is_held_is_reopened_beyond_its_numbers() {
    let mut world = RawWorld::new(config(SERVER, small_limits()));
    let stack = world.shard.stack().clone();
    let listener = stack.listen(server_at(80), 8).unwrap();
    stack
        .spawn(async move {
            let mut held = Vec::new();
            loop {
                let (stream, _) = listener.accept().await;
                stream.shutdown();
                held.push(stream);
            }
        })
        .unwrap();
    let next = open_and_close(&mut world, 5000, &[]);
    assert_eq!((stack.connections(), stack.time_waits()), (1, 0));
    let said = world.say(5000, 200, 0, Flags::SYN, &[]);
    assert_eq!((said[0].ack, said[0].flags), (201, Flags::SYN | Flags::ACK));
    assert!(is_beyond(said[0].seq, next));
}

/// A cookie cannot be beyond the numbers of the connection before.
#[test]
fn what_is_reopened_gets_no_cookie() {
    let config =
        ShardConfig { syn_cookies: SynCookiePolicy::Always, ..config(SERVER, small_limits()) };
    let mut world = RawWorld::new(config);
    let stack = world.shard.stack().clone();
    let listener = stack.listen(server_at(80), 8).unwrap();
    stack
        .spawn(async move {
            loop {
                drop(listener.accept().await);
            }
        })
        .unwrap();
    let next = open_and_close(&mut world, 5000, &[]);
    assert_eq!(stack.time_waits(), 1);
    let cookies = stack.metrics().syn_cookies_sent;
    let said = world.say(5000, 200, 0, Flags::SYN, &[]);
    assert_eq!((said[0].ack, said[0].flags), (201, Flags::SYN | Flags::ACK));
    assert!(is_beyond(said[0].seq, next));
    assert_eq!((stack.metrics().syn_cookies_sent, stack.connections()), (cookies, 1));
    assert_eq!(stack.rx_metrics().unaccounted(), 0);
}

/// A wait that began anew stands in front until its old time is over, and one that was reopened behind
/// it: neither makes the next one last longer.
#[test]
fn what_is_reopened_makes_no_other_wait() {
    let mut world = world(small_limits());
    let next = open_and_close(&mut world, 5000, &[]);
    for port in 5001..5004 {
        open_and_close(&mut world, port, &[]);
    }
    let stack = world.shard.stack().clone();
    world.pass(30);
    assert_eq!(world.say(5000, 101, next, FIN, &[]).len(), 1);
    for port in [5001, 5002] {
        assert_eq!(world.say(port, 200, 0, Flags::SYN, &[]).len(), 1);
    }
    assert_eq!(stack.time_waits(), 2);
    world.pass(31);
    assert_eq!(stack.time_waits(), 1, "the one whose FIN came again");
    world.pass(30);
    assert_eq!(stack.time_waits(), 0);
}

#[test]
fn nobody_connects_with_its_addresses_meanwhile() {
    let mut world = world(small_limits());
    open_and_close(&mut world, 5000, &[]);
    let stack = world.shard.stack().clone();
    let peer = RawWorld::peer(5000).into();
    let refused = stack.start_connect(Some(80), peer).map(drop);
    assert!(matches!(refused, Err(ConnectError::NoPort(_))), "{refused:?}");
    assert_eq!((stack.connections(), stack.time_waits()), (0, 1));
    world.pass(61);
    assert!(stack.start_connect(Some(80), peer).is_ok());
}

/// The FIN that brings TIME_WAIT and the SYN that ends it come in one burst: who reads from the old
/// connection is told of its end before it is forgotten.
#[test]
fn a_reader_is_told_though_its_connection_is_reopened_in_the_same_burst() {
    let mut world = RawWorld::new(config(SERVER, small_limits()));
    let stack = world.shard.stack().clone();
    let listener = stack.listen(server_at(80), 8).unwrap();
    let told = std::rc::Rc::new(std::cell::Cell::new(0));
    let (tell, spawner) = (std::rc::Rc::clone(&told), stack.clone());
    let serve = async move {
        loop {
            let (stream, _) = listener.accept().await;
            let tell = std::rc::Rc::clone(&tell);
            let task = async move {
                stream.shutdown();
                let _ = stream.read(&mut [0; 10]).await;
                tell.set(tell.get() + 1);
            };
            drop(spawner.spawn(task));
        }
    };
    drop(stack.spawn(serve).unwrap());
    let said = world.say(5000, 100, 0, Flags::SYN, &[]);
    let next = said[0].seq.wrapping_add(1);
    let said = world.say(5000, 101, next, Flags::ACK, &[]);
    assert!(said.iter().any(|sent| sent.flags.contains(Flags::FIN)), "{said:?}");
    world.put(5000, 101, next.wrapping_add(1), FIN, &[]);
    world.put(5000, 200_000, 0, Flags::SYN, &[]);
    world.hear();
    assert_eq!(told.get(), 1);
    assert_eq!(stack.rx_metrics().unaccounted(), 0);
}
