//! A path with a narrow place in the middle, whose router says so, or does not.

mod common;

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use common::wire::{receive, send};
use common::{CLIENT, SERVER, TestShard, arena, config_v6, pattern, small_limits};
use common::{server_at, server_v6_at};
use millstream_core::{JoinHandle, SendFlags, Shard, TcpStream};
use millstream_disk::MemDisk;
use millstream_link::mem::{MemConfig, MemLink, pair};
use millstream_timer::{Clock, VirtualClock};
use millstream_wire::ethernet::EtherType;
use millstream_wire::ipv4::{self, Protocol};
use millstream_wire::{icmpv4, icmpv6, ipv6};

/// What the router does with a packet that is too big.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// Says what would pass.
    Honest,
    /// Says that it was too big, but not what would pass (RFC 1191 section 5).
    Old,
    /// Drops it without a word.
    Silent,
    /// Passes all, but claims of segments that were never sent that they were too big.
    Forger,
}

struct Path {
    clock: VirtualClock,
    client: TestShard,
    server: TestShard,
    near: MemLink,
    far: MemLink,
    manner: Manner,
    mtu: usize,
    refused: usize,
}

impl Path {
    fn new(mtu: usize, manner: Manner) -> Self {
        let clock = VirtualClock::new();
        let (a, near) = pair(MemConfig::default()).unwrap();
        let (far, b) = pair(MemConfig::default()).unwrap();
        let shard = |address, link| {
            let disk = Box::new(MemDisk::copying(16).unwrap());
            let mut config = config_v6(address, small_limits());
            config.tcp.black_hole_retries = 2;
            // What the links here hold.
            (config.tcp.recv_buffer_bytes, config.tcp.recv_buffer_max_bytes) = (65_535, 0);
            Shard::new(config, link, clock.clone(), arena(512, 64), disk)
        };
        let (client, server) = (shard(CLIENT, a), shard(SERVER, b));
        Self { client, server, near, far, clock, manner, mtu, refused: 0 }
    }

    /// Carries what lies at both ends of the router.
    fn carry(&mut self) -> usize {
        let (there, back) = (receive(&mut self.near), receive(&mut self.far));
        let count = there.len() + back.len();
        for (frames, from_near) in [(there, true), (back, false)] {
            for frame in frames {
                let too_big = frame.len() - 14 > self.mtu;
                let complaint = complaint(&frame, self.mtu as u16, self.manner);
                let (mut source, mut target) = (&mut self.near, &mut self.far);
                if !from_near {
                    (source, target) = (target, source);
                }
                if too_big {
                    self.refused += 1;
                    if let Some(complaint) = complaint.filter(|_| self.manner != Manner::Silent) {
                        send(source, &complaint);
                    }
                }
                if !too_big || self.manner == Manner::Forger {
                    send(target, &frame);
                }
            }
        }
        count
    }

    fn output_of<T>(&mut self, handle: &JoinHandle<T>) -> T {
        for _ in 0..1_000_000 {
            if let Some(output) = handle.take() {
                return output;
            }
            let work = self.client.turn().work + self.server.turn().work + self.carry();
            if work == 0 {
                let next = self.client.next_deadline().min(self.server.next_deadline());
                assert!(next.as_micros() < 600_000_000, "the transfer hangs");
                self.clock.advance_to(next);
            }
        }
        panic!("no end");
    }

    /// Turns both ends for so many seconds.
    fn run_for(&mut self, seconds: u64) {
        let until = self.clock.now().plus_micros(seconds * 1_000_000);
        while self.clock.now() < until {
            let work = self.client.turn().work + self.server.turn().work + self.carry();
            let next = self.client.next_deadline().min(self.server.next_deadline());
            // A slow path: some milliseconds from one exchange to the next.
            let step = self.clock.now().plus_micros(20_000);
            self.clock.advance_to(if work == 0 { next.max(step).min(until) } else { step });
        }
    }

    fn clock_seconds(&self) -> u64 {
        self.clock.now().as_micros() / 1_000_000
    }

    /// Sends data for ever. The connection is in what comes back.
    fn endless(&mut self, address: std::net::SocketAddr) -> Rc<Cell<Option<TcpStream>>> {
        let listener = self.server.stack().listen(address, 4).unwrap();
        let reading = async move {
            let (stream, _) = listener.accept().await;
            while let Ok(Some(_)) = stream.read_buf().await {}
        };
        self.server.stack().spawn(reading).unwrap();
        let stack = self.client.stack().clone();
        let slot: Rc<Cell<Option<TcpStream>>> = Rc::default();
        let kept = Rc::clone(&slot);
        let sending = async move {
            let stream = stack.connect(address).await.unwrap();
            kept.set(Some(stream));
            let bytes = pattern(200_000, 7);
            loop {
                let stream = kept.take().unwrap();
                let room = poll_fn(|cx| match stream.poll_send(cx, &bytes, SendFlags::default()) {
                    Poll::Ready(sent) => Poll::Ready(sent.is_ok()),
                    Poll::Pending => Poll::Ready(true),
                });
                let goes_on = room.await;
                kept.set(Some(stream));
                assert!(goes_on);
                stack.sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        self.client.stack().spawn(sending).unwrap();
        slot
    }

    /// Sends data to the server; returns the segment size at the end, and checks the data.
    fn transfer(&mut self, address: std::net::SocketAddr) -> u16 {
        let listener = self.server.stack().listen(address, 4).unwrap();
        let reading = self
            .server
            .stack()
            .spawn(async move {
                let (stream, _) = listener.accept().await;
                let mut got = Vec::new();
                while let Ok(Some(buf)) = stream.read_buf().await {
                    got.extend_from_slice(&buf);
                }
                got
            })
            .unwrap();
        let stack = self.client.stack().clone();
        let sending = self
            .client
            .stack()
            .spawn(async move {
                let stream = stack.connect(address).await.unwrap();
                stream.write_all(&pattern(200_000, 7)).await.unwrap();
                stream.shutdown();
                while stream.read_buf().await.is_ok_and(|buf| buf.is_some()) {}
                stream.info().unwrap().mss_bytes
            })
            .unwrap();
        assert!(self.output_of(&reading) == pattern(200_000, 7), "the data differs");
        self.output_of(&sending)
    }
}

/// What a router says of a TCP packet that is too big.
fn complaint(frame: &[u8], mtu: u16, manner: Manner) -> Option<Vec<u8>> {
    let (l2, packet) = frame.split_at(14);
    let mut quoted = packet[..packet.len().min(80)].to_vec();
    let mut out = vec![0; 14];
    out[..6].copy_from_slice(&l2[6..12]);
    out[6..12].copy_from_slice(&l2[..6]);
    out[12..14].copy_from_slice(&l2[12..14]);
    if l2[12..14] == EtherType::IPV4.0.to_be_bytes() {
        let header = ipv4::Header::parse(packet).ok()?;
        if manner == Manner::Forger {
            quoted[24] ^= 0x80;
        }
        let next_hop_mtu = if manner == Manner::Old { 0 } else { mtu };
        let code = icmpv4::CODE_TOO_BIG;
        let message = icmpv4::Message::Unreachable { code, next_hop_mtu, original: &quoted };
        let len = message.emitted_len();
        out.resize(14 + 20 + len, 0);
        let repr = ipv4::Repr {
            tos: 0,
            ident: 1,
            dont_fragment: false,
            ttl: 64,
            protocol: Protocol::ICMP,
            src: "198.18.9.9".parse().unwrap(),
            dst: header.src,
            payload_len: len as u16,
        };
        repr.emit(&mut out[14..]);
        message.emit(&mut out[34..]);
    } else {
        let header = ipv6::Header::parse(packet).ok()?;
        if manner == Manner::Forger {
            quoted[44] ^= 0x80;
        }
        let src = "2001:db8:9::9".parse().unwrap();
        let message = icmpv6::Message::TooBig { mtu: mtu.into(), original: &quoted };
        let len = message.emitted_len();
        out.resize(14 + 40 + len, 0);
        let head = ipv6::Header {
            traffic_class: 0,
            flow_label: 0,
            payload_len: len as u16,
            next_header: Protocol::ICMPV6,
            hop_limit: 64,
            src,
            dst: header.src,
        };
        head.emit(&mut out[14..]);
        message.emit(src, header.src, &mut out[54..]);
    }
    Some(out)
}

#[test]
fn segments_shrink_to_what_the_router_says() {
    for (address, headers) in [(server_at(7).into(), 40), (server_v6_at(7).into(), 60)] {
        let mut path = Path::new(1300, Manner::Honest);
        assert_eq!(path.transfer(address), 1300 - headers - 12);
        let metrics = path.client.stack().metrics();
        assert_eq!(metrics.path_mtu_lowered, 1);
        assert!((1..=10).contains(&path.refused), "only the first flight: {}", path.refused);
        assert_eq!(path.client.stack().tcp_stats().rto_fired, 0, "nobody waited");
        // What is known of the path serves the next connection from its beginning.
        let (refused, again) = (path.refused, next_port(address));
        assert_eq!(path.transfer(again), 1300 - headers - 12);
        assert_eq!(path.refused, refused);
    }
}

fn next_port(mut address: std::net::SocketAddr) -> std::net::SocketAddr {
    address.set_port(address.port() + 1);
    address
}

#[test]
fn an_old_router_is_answered_by_plateaus() {
    let mut path = Path::new(1300, Manner::Old);
    // 1500 and 1492 are too big; 1006 is not.
    assert_eq!(path.transfer(server_at(7).into()), 1006 - 40 - 12);
}

#[test]
fn who_has_not_seen_a_segment_is_not_believed() {
    for address in [server_at(7).into(), server_v6_at(7).into()] {
        let mut path = Path::new(1300, Manner::Forger);
        let mss = path.transfer(address);
        assert!(mss > 1400, "{mss}");
        let stack = path.client.stack();
        assert_eq!(stack.metrics().path_mtu_lowered, 0);
        assert!(stack.rx_metrics().drop_unsolicited > 10);
    }
}

#[test]
fn a_path_that_swallows_large_segments_is_found_out() {
    for address in [server_at(7).into(), server_v6_at(7).into()] {
        let mut path = Path::new(1300, Manner::Silent);
        assert_eq!(path.transfer(address), 1220 - 12);
        let stats = path.client.stack().tcp_stats();
        assert_eq!((stats.black_holes, stats.path_limits), (1, 1));
        // The next connection knows.
        let refused = path.refused;
        path.transfer(next_port(address));
        assert_eq!(path.refused, refused);
        // So does UDP.
        let socket = path.client.stack().udp_bind(9).unwrap();
        let fits = vec![0; 1220 + 20 - 8];
        socket.send_to(&fits, address).unwrap();
        let error = socket.send_to(&[fits.as_slice(), &[0]].concat(), address).unwrap_err();
        assert!(error.to_string().contains("does not fit"), "{error}");
    }
}

/// RFC 4821 section 7: data goes on and on, for which larger segments are tried.
#[test]
fn larger_segments_are_tried_until_they_are_as_large_as_pass() {
    for (address, headers) in [(server_at(7).into(), 40), (server_v6_at(7).into(), 60)] {
        let mut path = Path::new(1350, Manner::Silent);
        let stream = path.endless(address);
        let start = path.clock_seconds();
        path.run_for(60);
        let limit = |path: &Path| {
            let info = stream.take().unwrap();
            let limit = info.info().unwrap().mss_bytes + 12 + headers;
            stream.set(Some(info));
            (limit, path.client.stack().tcp_stats())
        };
        let (found, stats) = limit(&path);
        assert!((1343..=1350).contains(&found), "{found} {stats:?}");
        assert_eq!(stats.black_holes, 1);
        assert!(stats.larger_lost <= 6 && stats.larger_passed >= 2, "{stats:?}");
        // No trial was taken for congestion, or waited for.
        assert_eq!(stats.rto_fired, 2, "{stats:?}");
        // It is left at that for ten minutes; then the path, which carries more by now, is searched.
        path.run_for(500);
        assert_eq!(limit(&path).1.larger_tried, stats.larger_tried);
        path.mtu = 1500;
        path.run_for(200);
        let (found, after) = limit(&path);
        assert_eq!(found, 1500);
        assert_eq!((after.larger_lost, after.rto_fired), (stats.larger_lost, stats.rto_fired));
        assert!(path.clock_seconds() - start < 800);
    }
}
