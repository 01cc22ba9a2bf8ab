//! The sockets API between two shards.

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use common::{SERVER, World, pattern, server_at};
use futures::{AsyncReadExt, AsyncWriteExt};
use millstream_buf::IoBuf;
use millstream_core::{ConnectError, ListenError, Stack};
use millstream_tcp::Algorithm;

/// Echoes each connection until its end.
fn echo(stack: &Stack, port: u16) {
    let listener = stack.listen(server_at(port), 16).unwrap();
    let spawner = stack.clone();
    stack
        .spawn(async move {
            loop {
                let (stream, _) = listener.accept().await;
                spawner
                    .spawn(async move {
                        while let Ok(Some(buf)) = stream.read_buf().await {
                            if stream.send_buf(buf).await.is_err() {
                                break;
                            }
                        }
                        stream.shutdown();
                    })
                    .unwrap();
            }
        })
        .unwrap();
}

#[test]
fn a_byte_goes_there_and_back() {
    let mut world = World::new();
    echo(world.server.stack(), 7);
    let stack = world.client.stack().clone();
    let got = world.client_runs(async move {
        let stream = stack.connect(server_at(7)).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        let mut out = [0; 8];
        let count = stream.read(&mut out).await.unwrap();
        out[..count].to_vec()
    });
    assert_eq!(got, b"x");
    world.settle();
    world.assert_clean(false);
}

#[test]
fn bulk_through_futures_io_is_equal() {
    let mut world = World::new();
    echo(world.server.stack(), 7);
    let stack = world.client.stack().clone();
    let data = pattern(3_000_000, 5);
    let sent = data.clone();
    let got = world.client_runs(async move {
        let stream = Rc::new(stack.connect(server_at(7)).await.unwrap());
        let reader = Rc::clone(&stream);
        let expected = sent.len();
        let reading = stack
            .spawn(async move {
                let mut got = Vec::new();
                let mut out = vec![0; 10_000];
                while got.len() < expected {
                    let count = reader.read(&mut out).await.unwrap();
                    assert!(count > 0);
                    got.extend_from_slice(&out[..count]);
                }
                got
            })
            .unwrap();
        stream.write_all(&sent).await.unwrap();
        stream.shutdown();
        let got = reading.await;
        assert_eq!(stream.read(&mut [0; 10]).await.unwrap(), 0, "the echo ends after us");
        got
    });
    assert!(got == data);
    world.settle();
    world.assert_clean(true);
}

#[test]
fn async_read_and_write_traits_work() {
    let mut world = World::new();
    echo(world.server.stack(), 7);
    let stack = world.client.stack().clone();
    let got = world.client_runs(async move {
        let mut stream = stack.connect(server_at(7)).await.unwrap();
        AsyncWriteExt::write_all(&mut stream, b"half-close").await.unwrap();
        stream.close().await.unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        got
    });
    assert_eq!(got, "half-close");
    world.settle();
    world.assert_clean(false);
}

#[test]
fn a_closed_port_refuses() {
    let mut world = World::new();
    let stack = world.client.stack().clone();
    let outcome = world.client_runs(async move { stack.connect(server_at(81)).await.map(|_| ()) });
    assert!(matches!(outcome, Err(ConnectError::Refused(_))), "{outcome:?}");
    assert_eq!(world.server.stack().metrics().resets_out, 1);
    world.settle();
    world.assert_clean(false);
}

#[test]
fn a_silent_neighbour_is_unreachable() {
    let mut world = World::new();
    let stack = world.client.stack().clone();
    let nobody = std::net::SocketAddrV4::new(std::net::Ipv4Addr::new(198, 18, 0, 77), 80);
    let outcome = world.client_runs(async move { stack.connect(nobody).await.map(|_| ()) });
    assert!(matches!(outcome, Err(ConnectError::Unreachable(_))), "{outcome:?}");
}

#[test]
fn no_route_is_unreachable() {
    let mut world = World::new();
    let stack = world.client.stack().clone();
    let elsewhere = std::net::SocketAddrV4::new(std::net::Ipv4Addr::new(192, 0, 2, 1), 80);
    let outcome = world.client_runs(async move { stack.connect(elsewhere).await.map(|_| ()) });
    assert!(matches!(outcome, Err(ConnectError::Unreachable(_))), "{outcome:?}");
}

#[test]
fn dropping_unread_data_resets() {
    let mut world = World::new();
    let listener = world.server.stack().listen(server_at(9), 4).unwrap();
    let server = world.server.stack().clone();
    world
        .server
        .stack()
        .spawn(async move {
            let (stream, _) = listener.accept().await;
            server.sleep(Duration::from_millis(10)).await;
            drop(stream);
            // The listener stays.
            server.sleep(Duration::from_secs(100)).await;
            drop(listener);
        })
        .unwrap();
    let stack = world.client.stack().clone();
    let error = world.client_runs(async move {
        let stream = stack.connect(server_at(9)).await.unwrap();
        stream.write_all(b"never read").await.unwrap();
        stream.read(&mut [0; 8]).await.unwrap_err().kind()
    });
    assert_eq!(error, std::io::ErrorKind::ConnectionReset);
}

#[test]
fn the_backlog_bounds_what_waits() {
    let mut world = World::new();
    let _listener = world.server.stack().listen(server_at(9), 2).unwrap();
    let stack = world.client.stack().clone();
    for _ in 0..5 {
        let stack = stack.clone();
        let spawner = world.client.stack().clone();
        spawner
            .spawn(async move {
                // Those that got a cookie hold themselves for connected.
                if let Ok(stream) = stack.connect(server_at(9)).await {
                    let _ = stream.read(&mut [0; 1]).await;
                }
            })
            .unwrap();
    }
    let waiter = world.client.stack().clone();
    world.client_runs(async move { waiter.sleep(Duration::from_secs(3)).await });
    // Two that wait to be accepted, and two whose handshakes were under way meanwhile.
    assert_eq!(world.server.stack().connections(), 4);
    assert!(world.server.stack().rx_metrics().drop_backlog_full >= 1);
}

#[test]
fn a_listener_that_goes_resets_what_it_had() {
    let mut world = World::new();
    let listener = world.server.stack().listen(server_at(9), 4).unwrap();
    assert!(matches!(
        world.server.stack().listen(server_at(9), 4).map(|_| ()),
        Err(ListenError::InUse(9))
    ));
    let stack = world.client.stack().clone();
    let connected = world.client_runs(async move { stack.connect(server_at(9)).await.unwrap() });
    drop(listener);
    let kind =
        world.client_runs(async move { connected.read(&mut [0; 1]).await.unwrap_err().kind() });
    assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
    world.settle();
    world.assert_clean(false);
    let again = world.server.stack().listen(server_at(9), 4);
    assert!(again.is_ok());
}

#[test]
fn udp_goes_both_ways_and_a_closed_port_is_counted() {
    let mut world = World::new();
    let server = world.server.stack().udp_bind(53).unwrap();
    world
        .server
        .stack()
        .spawn(async move {
            loop {
                let (data, from) = server.recv_from().await;
                let mut answer = data.to_vec();
                answer.reverse();
                server.send_to(&answer, from).unwrap();
            }
        })
        .unwrap();
    let stack = world.client.stack().clone();
    let got = world.client_runs(async move {
        let socket = stack.udp_bind(0).unwrap();
        socket.send_to(b"nobody", std::net::SocketAddrV4::new(SERVER, 54)).unwrap();
        socket.send_to(b"abc", std::net::SocketAddrV4::new(SERVER, 53)).unwrap();
        socket.recv_from().await.0.to_vec()
    });
    assert_eq!(got, b"cba");
    assert_eq!(world.server.stack().rx_metrics().drop_udp_no_socket, 1);
    assert_eq!(world.client.stack().rx_metrics().unaccounted(), 0);
}

#[test]
fn sleep_and_timeout_follow_the_clock() {
    let mut world = World::new();
    let stack = world.client.stack().clone();
    let (slept, timed_out) = world.client_runs(async move {
        let start = stack.now();
        stack.sleep(Duration::from_millis(250)).await;
        let slept = stack.now().micros_since(start);
        let forever = std::future::pending::<()>();
        (slept, stack.timeout(Duration::from_secs(1), forever).await.is_none())
    });
    assert!((250_000..250_010).contains(&slept), "{slept}");
    assert!(timed_out);
}

#[test]
fn what_write_copied_cannot_change() {
    let mut world = World::new();
    echo(world.server.stack(), 7);
    let stack = world.client.stack().clone();
    let got = world.client_runs(async move {
        let stream = stack.connect(server_at(7)).await.unwrap();
        let mut mine = pattern(5000, 1);
        let expected = mine.clone();
        let count = stream.write(&mine).await.unwrap();
        assert_eq!(count, mine.len());
        mine.fill(0);
        // A handle on a buffer behaves in the same way: writing makes a private copy.
        let arena = stack.arena();
        let mut buf = arena.alloc(millstream_buf::SizeClass::Frame).unwrap();
        buf[..4].copy_from_slice(b"then");
        let mut handle: IoBuf = buf.freeze(0..4);
        stream.send_buf(handle.clone()).await.unwrap();
        let (bytes, copied) = handle.make_mut(&arena).unwrap();
        bytes.fill(0);
        assert_eq!(copied, 4);
        stream.shutdown();
        let mut got = Vec::new();
        while let Some(buf) = stream.read_buf().await.unwrap() {
            got.extend_from_slice(&buf);
        }
        (got, expected)
    });
    assert_eq!(got.0[..5000], got.1[..]);
    assert_eq!(&got.0[5000..], b"then");
    world.settle();
    world.assert_clean(true);
}

/// A link that has few buffers left says so; what is kept is copied then, and the link goes on.
#[test]
fn data_that_nobody_reads_does_not_stop_the_link() {
    use millstream_link::{Capabilities, Link, LinkStats, RxBurst, TxError, TxFrame};

    /// The in-memory link with a count of the frames that the receiver holds: the sender's slots.
    struct Scarce(millstream_link::mem::MemLink, Rc<Cell<bool>>);
    impl Link for Scarce {
        fn capabilities(&self) -> &Capabilities {
            self.0.capabilities()
        }
        fn rx_burst(&mut self, frames: &mut RxBurst) {
            self.0.rx_burst(frames)
        }
        fn tx_room(&mut self) -> usize {
            self.0.tx_room()
        }
        fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
            self.0.tx(frame)
        }
        fn flush(&mut self) {
            self.0.flush()
        }
        fn rx_buffers(&self) -> Option<(usize, usize)> {
            Some((if self.1.get() { 0 } else { 100 }, 100))
        }
        fn stats(&self) -> LinkStats {
            self.0.stats()
        }
    }

    let clock = millstream_timer::VirtualClock::new();
    let (a, b) = millstream_link::mem::pair(millstream_link::mem::MemConfig {
        slots: 64,
        ..Default::default()
    })
    .unwrap();
    let scarce = Rc::new(Cell::new(true));
    let disk = || Box::new(millstream_disk::MemDisk::copying(1).unwrap());
    let limits = common::small_limits();
    let client_config = common::config(common::CLIENT, limits);
    let server_config = common::config(SERVER, limits);
    let link = Scarce(b, Rc::clone(&scarce));
    let mut client = millstream_core::Shard::new(
        client_config,
        a,
        clock.clone(),
        common::arena(256, 16),
        disk(),
    );
    let mut server = millstream_core::Shard::new(
        server_config,
        link,
        clock.clone(),
        common::arena(256, 64),
        disk(),
    );
    let listener = server.stack().listen(server_at(9), 4).unwrap();
    let taken: Rc<Cell<Option<millstream_core::TcpStream>>> = Rc::default();
    let slot = Rc::clone(&taken);
    server.stack().spawn(async move { slot.set(Some(listener.accept().await.0)) }).unwrap();
    let stack = client.stack().clone();
    client
        .stack()
        .spawn(async move {
            let stream = stack.connect(server_at(9)).await.unwrap();
            // More than the link has buffers for: 64 frames of 1448 bytes.
            let _ = stream.write_all(&pattern(200_000, 1)).await;
            stack.sleep(Duration::from_secs(1000)).await;
        })
        .unwrap();
    for _ in 0..2000 {
        let work = client.turn().work + server.turn().work;
        if work == 0 {
            clock.advance_to(client.next_deadline().min(server.next_deadline()));
        }
    }
    let stream = taken.take().unwrap();
    let mut got = Vec::new();
    let mut read = Box::pin(async {
        let mut out = vec![0; 4096];
        while got.len() < 200_000 {
            let count = stream.read(&mut out).await.unwrap();
            got.extend_from_slice(&out[..count]);
        }
    });
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    while read.as_mut().poll(&mut context).is_pending() {
        client.turn();
        server.turn();
    }
    drop(read);
    assert!(got == pattern(200_000, 1));
    assert!(server.stack().metrics().copied_scarce_bytes >= 190_000);
}

/// A listener and a stream choose their own.
#[test]
fn a_congestion_controller_is_chosen_per_socket() {
    let mut world = World::new();
    let listener = world.server.stack().listen(server_at(7), 16).unwrap();
    listener.set_congestion(Algorithm::Dctcp);
    let (stack, chosen) = (world.server.stack().clone(), Rc::new(Cell::new(None)));
    let told = Rc::clone(&chosen);
    stack
        .spawn(async move {
            let (stream, _) = listener.accept().await;
            told.set(stream.info().map(|info| info.congestion));
            while let Ok(Some(buf)) = stream.read_buf().await {
                if stream.send_buf(buf).await.is_err() {
                    break;
                }
            }
            stream.shutdown();
        })
        .unwrap();
    let stack = world.client.stack().clone();
    let ours = world.client_runs(async move {
        let stream = stack.connect(server_at(7)).await.unwrap();
        let before = stream.info().unwrap().congestion;
        stream.set_congestion(Algorithm::NewReno);
        let after = stream.info().unwrap().congestion;
        stream.write_all(b"x").await.unwrap();
        let count = stream.read(&mut [0; 8]).await.unwrap();
        stream.set_congestion(Algorithm::Cubic);
        (before, after, stream.info().unwrap().congestion, count)
    });
    assert_eq!(ours, (Algorithm::Cubic, Algorithm::NewReno, Algorithm::NewReno, 1));
    assert_eq!(chosen.get(), Some(Algorithm::Dctcp));
    world.settle();
    world.assert_clean(false);
}
