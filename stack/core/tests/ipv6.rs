//! IPv6 between two shards, and against frames that the test makes itself.

mod common;

use std::net::{Ipv6Addr, SocketAddrV6};

use common::wire::{OUR_MAC, SHARD_MAC, Wire, frame_v6, icmp_v6, packets_v6, syn_v6, udp_v6};
use common::{
    CLIENT_V6, SERVER, SERVER_V6, World, config_v6, pattern, server_at, server_v6_at, small_limits,
};
use millstream_core::{ConnectError, Ipv6Config, ListenError, ShardConfig, Stack};
use millstream_timer::Instant;
use millstream_wire::checksum::Sum;
use millstream_wire::ipv4::Protocol;
use millstream_wire::{icmpv6, ipv6, ipv6_extension, ndp, tcp};
use proptest::prelude::*;

const BOTH: (Ipv6Addr, Ipv6Addr) = (CLIENT_V6, SERVER_V6);

/// Echoes each connection until its end.
fn echo(stack: &Stack, address: impl Into<std::net::SocketAddr>) {
    let listener = stack.listen(address, 16).unwrap();
    let spawner = stack.clone();
    stack
        .spawn(async move {
            loop {
                let (stream, peer) = listener.accept().await;
                assert_eq!(stream.peer_addr(), Some(peer));
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

fn settled(config: ShardConfig) -> Wire {
    let mut wire = Wire::new(config);
    wire.pass(2);
    wire
}

fn server() -> ShardConfig {
    config_v6(SERVER, small_limits())
}

#[test]
fn a_stream_goes_there_and_back() {
    let mut world = World::v6();
    echo(world.server.stack(), server_v6_at(7));
    let stack = world.client.stack().clone();
    let data = pattern(500_000, 3);
    let sent = data.clone();
    let got = world.client_runs(async move {
        let stream = stack.connect(server_v6_at(7)).await.unwrap();
        assert_eq!(stream.peer_addr(), Some(server_v6_at(7).into()));
        assert_eq!(stream.local_addr().unwrap().ip(), CLIENT_V6);
        // Headers of 60 bytes, and timestamps.
        assert_eq!(stream.info().unwrap().mss_bytes, 1500 - 60 - 12);
        let mut got = Vec::new();
        for piece in sent.chunks(50_000) {
            stream.write_all(piece).await.unwrap();
            let mut room = vec![0; piece.len()];
            let mut have = 0;
            while have < room.len() {
                have += stream.read(&mut room[have..]).await.unwrap();
            }
            got.extend(room);
        }
        got
    });
    assert_eq!(got, data);
    world.settle();
    world.assert_clean(true);
    assert_eq!(world.client.stack().tcp_stats().retransmits, 0);
}

#[test]
fn many_connections_share_their_addresses_and_give_them_back() {
    let mut world = World::v6();
    echo(world.server.stack(), server_v6_at(7));
    for _ in 0..3 {
        let stack = world.client.stack().clone();
        world.client_runs(async move {
            let mut streams = Vec::new();
            for n in 0..20u8 {
                let stream = stack.connect(server_v6_at(7)).await.unwrap();
                stream.write_all(&[n; 100]).await.unwrap();
                streams.push(stream);
            }
            for (n, stream) in streams.iter().enumerate() {
                let mut out = [0; 200];
                assert_eq!(stream.read(&mut out).await.unwrap(), 100);
                assert_eq!(usize::from(out[99]), n);
            }
        });
        world.settle();
    }
    world.assert_clean(false);
}

#[test]
fn a_listener_takes_the_versions_it_was_told() {
    let mut world = World::v6();
    echo(world.server.stack(), std::net::SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 7));
    echo(world.server.stack(), server_at(8));
    echo(world.server.stack(), server_v6_at(9));
    let stack = world.client.stack().clone();
    world.client_runs(async move {
        stack.connect(server_at(7)).await.unwrap();
        stack.connect(server_v6_at(7)).await.unwrap();
        stack.connect(server_at(8)).await.unwrap();
        let refused = stack.connect(server_v6_at(8)).await;
        assert!(matches!(refused, Err(ConnectError::Refused(_))), "IPv4 alone");
        stack.connect(server_v6_at(9)).await.unwrap();
        let refused = stack.connect(server_at(9)).await;
        assert!(matches!(refused, Err(ConnectError::Refused(_))), "IPv6 alone");
    });
    let foreign = std::net::SocketAddr::new(CLIENT_V6.into(), 10);
    let not_ours = world.server.stack().listen(foreign, 4).map(|_| ());
    assert!(matches!(not_ours, Err(ListenError::NotOurs(..))));
    world.settle();
    world.assert_clean(false);
}

#[test]
fn udp_goes_both_ways() {
    let mut world = World::v6();
    let server = world.server.stack().udp_bind(53).unwrap();
    let serving = async move {
        loop {
            let (data, from) = server.recv_from().await;
            let mut answer = data.to_vec();
            answer.reverse();
            server.send_to(&answer, from).unwrap();
        }
    };
    world.server.stack().spawn(serving).unwrap();
    let stack = world.client.stack().clone();
    let got = world.client_runs(async move {
        stack.sleep(std::time::Duration::from_secs(2)).await;
        let socket = stack.udp_bind(0).unwrap();
        socket.send_to(b"nobody", server_v6_at(54)).unwrap();
        socket.send_to(b"abc", server_v6_at(53)).unwrap();
        let (data, from) = socket.recv_from().await;
        assert_eq!(from, server_v6_at(53).into());
        data.to_vec()
    });
    assert_eq!(got, b"cba");
    assert_eq!(world.server.stack().rx_metrics().drop_udp_no_socket, 1);
    assert_eq!(world.client.stack().rx_metrics().unaccounted(), 0);
}

#[test]
fn a_silent_neighbour_and_a_missing_route_are_unreachable() {
    let mut world = World::v6();
    let stack = world.client.stack().clone();
    world.client_runs(async move {
        for address in ["2001:db8::77", "2001:db8:1::1"] {
            let ip: Ipv6Addr = address.parse().unwrap();
            let remote = std::net::SocketAddr::new(ip.into(), 80);
            let result = stack.connect(remote).await;
            assert!(matches!(result, Err(ConnectError::Unreachable(_))), "{address}");
        }
    });
}

#[test]
fn an_address_is_proved_before_it_is_used() {
    let mut wire = Wire::new(server());
    let first = packets_v6(&wire.answers());
    // Probes for the link-local address and the configured one, from nobody (RFC 4862 5.4.2).
    let probed: Vec<_> = first
        .iter()
        .map(|(header, message)| {
            assert_eq!((header.src, header.hop_limit), (Ipv6Addr::UNSPECIFIED, 255));
            match icmpv6::Message::parse(header.src, header.dst, message).unwrap() {
                icmpv6::Message::Ndp(ndp::Message::NeighborSolicitation { target, source_mac }) => {
                    assert_eq!(source_mac, None);
                    assert_eq!(header.dst, ipv6::solicited_node(target));
                    target
                }
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(probed.len(), 2);
    assert!(probed.contains(&SERVER_V6));
    assert_eq!(wire.shard.stack().ipv6_address(), None);
    assert!(wire.ask(&solicitation(SERVER_V6)).is_empty(), "not ours yet");
    wire.pass(2);
    assert_eq!(wire.shard.stack().ipv6_address(), Some(SERVER_V6));
    let answers = packets_v6(&wire.ask(&solicitation(SERVER_V6)));
    let (header, message) = &answers[0];
    let expected = icmpv6::Message::Ndp(ndp::Message::NeighborAdvertisement {
        router: false,
        solicited: true,
        override_known: true,
        target: SERVER_V6,
        target_mac: Some(SHARD_MAC),
    });
    assert_eq!(icmpv6::Message::parse(header.src, header.dst, message), Ok(expected));
    assert_eq!((header.src, header.dst, header.hop_limit), (SERVER_V6, CLIENT_V6, 255));
    wire.assert_accounted();
}

/// "Who has the target?", from the test's station.
fn solicitation(target: Ipv6Addr) -> Vec<u8> {
    let both = (CLIENT_V6, ipv6::solicited_node(target));
    let question = ndp::Message::NeighborSolicitation { target, source_mac: Some(OUR_MAC) };
    frame_v6(both, Protocol::ICMPV6, 255, &icmp_v6(both, &icmpv6::Message::Ndp(question)))
}

#[test]
fn an_address_that_somebody_has_is_not_taken() {
    let mut wire = Wire::new(server());
    wire.answers();
    let both = (SERVER_V6, ipv6::ALL_NODES);
    let defence = icmpv6::Message::Ndp(ndp::Message::NeighborAdvertisement {
        router: false,
        solicited: false,
        override_known: true,
        target: SERVER_V6,
        target_mac: Some(OUR_MAC),
    });
    wire.send(&frame_v6(both, Protocol::ICMPV6, 255, &icmp_v6(both, &defence)));
    wire.pass(5);
    assert_eq!(wire.shard.stack().metrics().duplicate_addresses, 1);
    let left = wire.shard.stack().ipv6_address().unwrap();
    assert!(left.is_unicast_link_local());
    assert!(wire.ask(&solicitation(SERVER_V6)).is_empty());
    wire.assert_accounted();
}

#[test]
fn messages_from_beyond_the_link_are_not_believed() {
    let mut wire = settled(server());
    let both = (CLIENT_V6, SERVER_V6);
    let question = ndp::Message::NeighborSolicitation { target: SERVER_V6, source_mac: None };
    let message = icmp_v6(both, &icmpv6::Message::Ndp(question));
    assert!(wire.ask(&frame_v6(both, Protocol::ICMPV6, 254, &message)).is_empty());
    assert_eq!(wire.ask(&frame_v6(both, Protocol::ICMPV6, 255, &message)).len(), 1);
    assert_eq!(wire.shard.stack().rx_metrics().drop_malformed, 1);
    wire.assert_accounted();
}

fn advertisement(options: &[u8], lifetime_s: u16) -> Vec<u8> {
    let router: Ipv6Addr = "fe80::1".parse().unwrap();
    let both = (router, ipv6::ALL_NODES);
    let message =
        icmpv6::Message::Ndp(ndp::Message::RouterAdvertisement(ndp::RouterAdvertisement {
            hop_limit: 133,
            lifetime_s,
            options: ndp::Options::parse(options).unwrap(),
            ..ndp::RouterAdvertisement::default()
        }));
    frame_v6(both, Protocol::ICMPV6, 255, &icmp_v6(both, &message))
}

#[test]
fn a_router_gives_address_route_mtu_and_hop_limit() {
    let ipv6 = Ipv6Config { slaac: true, ..Ipv6Config::default() };
    let mut wire = Wire::new(ShardConfig { ipv6: Some(ipv6), ..server() });
    let asked = packets_v6(&wire.pass(2));
    assert!(asked.iter().any(|(header, _)| header.dst == ipv6::ALL_ROUTERS));
    let mut options = vec![0; ndp::PREFIX_OPTION_LEN + ndp::MTU_OPTION_LEN];
    ndp::Prefix {
        prefix: "2001:db8:5::".parse().unwrap(),
        prefix_len: 64,
        on_link: true,
        autonomous: true,
        valid_s: 7200,
        preferred_s: 7200,
    }
    .emit(&mut options);
    ndp::emit_mtu_option(1400, &mut options[ndp::PREFIX_OPTION_LEN..]);
    options.extend([1, 1, 2, 0, 0, 0, 0, 1]);
    wire.send(&advertisement(&options, 1800));
    let probed = packets_v6(&wire.pass(2));
    let own: Ipv6Addr = "2001:db8:5::ff:fe00:2".parse().unwrap();
    assert!(probed.iter().any(|(header, _)| header.dst == ipv6::solicited_node(own)));
    assert_eq!(wire.shard.stack().ipv6_address(), Some(own));
    // To another network: over the router, whose station the advertisement told, in small segments.
    let stack = wire.shard.stack().clone();
    let far: std::net::SocketAddr = "[2001:db8:77::1]:80".parse().unwrap();
    wire.shard.stack().spawn(async move { stack.connect(far).await.map(|_| ()) }).unwrap();
    let frames = wire.answers();
    assert_eq!(frames[0][..6], OUR_MAC.0);
    let (header, segment) = &packets_v6(&frames)[0];
    assert_eq!((header.src, header.hop_limit, header.next_header), (own, 133, Protocol::TCP));
    let (syn, _) = tcp::Header::parse(segment).unwrap();
    assert_eq!(syn.syn_options().mss, Some(1400 - 60));
    wire.assert_accounted();
}

#[test]
fn echoes_are_answered_with_what_they_carried() {
    let mut wire = settled(server());
    for len in [0, 1, 56, 1452 - 8] {
        let data = pattern(len, 9);
        let request = icmpv6::Message::EchoRequest { ident: 7, seq: 8, data: &data };
        let asked = frame_v6(BOTH, Protocol::ICMPV6, 64, &icmp_v6(BOTH, &request));
        let (header, message) = packets_v6(&wire.ask(&asked)).remove(0);
        let reply = icmpv6::Message::EchoReply { ident: 7, seq: 8, data: &data };
        assert_eq!(icmpv6::Message::parse(header.src, header.dst, &message), Ok(reply));
    }
    // To all nodes: answered from an address of our own.
    let both = (CLIENT_V6, ipv6::ALL_NODES);
    let request = icmpv6::Message::EchoRequest { ident: 7, seq: 8, data: &[] };
    let asked = frame_v6(both, Protocol::ICMPV6, 64, &icmp_v6(both, &request));
    assert_eq!(packets_v6(&wire.ask(&asked))[0].0.src, SERVER_V6);
    wire.assert_accounted();
}

#[test]
fn closed_ports_are_told() {
    let mut wire = settled(server());
    let asked = frame_v6(BOTH, Protocol::UDP, 64, &udp_v6(BOTH, 99, b"hello"));
    let (header, message) = packets_v6(&wire.ask(&asked)).remove(0);
    let error = icmpv6::Message::parse(header.src, header.dst, &message).unwrap();
    let expected = icmpv6::Message::Unreachable { code: icmpv6::CODE_PORT, original: &asked[14..] };
    assert_eq!(error, expected);
    let asked = frame_v6(BOTH, Protocol::TCP, 64, &syn_v6(BOTH, 5000, 99));
    let (_, segment) = packets_v6(&wire.ask(&asked)).remove(0);
    let (reset, _) = tcp::Header::parse(&segment).unwrap();
    assert_eq!((reset.flags, reset.ack.0), (tcp::Flags::RST | tcp::Flags::ACK, 1001));
    let mut wrong = syn_v6(BOTH, 5000, 99);
    wrong[4] ^= 1;
    assert!(wire.ask(&frame_v6(BOTH, Protocol::TCP, 64, &wrong)).is_empty());
    assert_eq!(wire.shard.stack().rx_metrics().drop_l4_checksum, 1);
    wire.assert_accounted();
}

/// The problem that an answer reports, if it is one.
fn problem(frames: &[Vec<u8>]) -> Option<(u8, u32)> {
    let (header, message) = packets_v6(frames).pop()?;
    match icmpv6::Message::parse(header.src, header.dst, &message).unwrap() {
        icmpv6::Message::ParameterProblem { code, pointer, .. } => Some((code, pointer)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn extension_headers_are_skipped_or_refused() {
    let mut wire = settled(server());
    let socket = wire.shard.stack().udp_bind(53).unwrap();
    let datagram = udp_v6(BOTH, 53, b"hello");
    let with = |kind: u8, extension: [u8; 8]| {
        let payload = [&extension[..], &datagram].concat();
        frame_v6(BOTH, Protocol(kind), 64, &payload)
    };
    let udp = Protocol::UDP.0;
    // Destination options that may be skipped, and a route that has been travelled.
    assert!(wire.ask(&with(60, [udp, 0, 1, 4, 0, 0, 0, 0])).is_empty());
    assert!(wire.ask(&with(43, [udp, 0, 0, 0, 0, 0, 0, 0])).is_empty());
    assert_eq!(wire.shard.stack().rx_metrics().frames_waiting, 2);
    // A route that goes on (RFC 5095), and an option that wants to be understood.
    let route = wire.ask(&with(43, [udp, 0, 0, 1, 0, 0, 0, 0]));
    assert_eq!(problem(&route), Some((ipv6_extension::PROBLEM_FIELD, 42)));
    let option = wire.ask(&with(60, [udp, 0, 0x80, 4, 0, 0, 0, 0]));
    assert_eq!(problem(&option), Some((ipv6_extension::PROBLEM_OPTION, 42)));
    assert_eq!(wire.shard.stack().rx_metrics().drop_extension, 2);
    assert!(wire.ask(&with(60, [udp, 0, 0x40, 4, 0, 0, 0, 0])).is_empty());
    assert_eq!(wire.shard.stack().rx_metrics().drop_extension, 3);
    // Nobody here speaks protocol 99.
    let unknown = wire.ask(&frame_v6(BOTH, Protocol(99), 64, b"what is this?"));
    assert_eq!(problem(&unknown), Some((ipv6_extension::PROBLEM_NEXT_HEADER, 6)));
    // No answer to what was sent to a group.
    let group = (CLIENT_V6, ipv6::ALL_NODES);
    assert!(wire.ask(&frame_v6(group, Protocol(99), 64, b"what is this?")).is_empty());
    drop(socket);
    wire.assert_accounted();
}

/// The link pads short frames: what stands there is no part of the packet.
#[test]
fn padding_is_nobodys_port() {
    let mut wire = settled(server());
    let mut frame = frame_v6((CLIENT_V6, SERVER_V6), Protocol::TCP, 64, &[]);
    frame.extend_from_slice(&[0, 1, 0, 80, 0, 0]);
    assert!(wire.ask(&frame).is_empty());
    let metrics = wire.shard.stack().rx_metrics();
    assert_eq!((metrics.unaccounted(), metrics.drop_malformed), (0, 1));
}

/// The moment has come, but not yet the wheel's next tick: whoever waits must let the loop turn.
#[test]
fn who_waits_for_an_address_lets_the_loop_turn() {
    let mut wire = Wire::new(server());
    wire.answers();
    wire.clock.advance_to(Instant::from_micros(1_000_000));
    let stack = wire.shard.stack().clone();
    let client = stack.clone();
    let connect =
        async move { client.connect(SocketAddrV6::new(CLIENT_V6, 9, 0, 0)).await.is_ok() };
    stack.spawn(connect).unwrap();
    wire.shard.turn();
}

#[test]
fn frames_for_others_are_not_ours() {
    let mut wire = settled(server());
    let other: Ipv6Addr = "2001:db8::99".parse().unwrap();
    assert!(wire.ask(&frame_v6((CLIENT_V6, other), Protocol::UDP, 64, &[0; 8])).is_empty());
    let group: Ipv6Addr = "ff02::fb".parse().unwrap();
    assert!(wire.ask(&frame_v6((CLIENT_V6, group), Protocol::UDP, 64, &[0; 8])).is_empty());
    assert_eq!(wire.shard.stack().rx_metrics().drop_not_for_us, 2);
    assert!(wire.ask(&frame_v6((group, SERVER_V6), Protocol::UDP, 64, &[0; 8])).is_empty());
    let mut short = frame_v6(BOTH, Protocol::UDP, 64, &[0; 8]);
    short.truncate(60);
    assert!(wire.ask(&short).is_empty());
    assert_eq!(wire.shard.stack().rx_metrics().drop_malformed, 1);
    wire.assert_accounted();
    // A shard without IPv6 knows nothing of it.
    let mut wire = Wire::new(ShardConfig { ipv6: None, ..server() });
    assert!(wire.ask(&frame_v6(BOTH, Protocol::UDP, 64, &[0; 8])).is_empty());
    assert_eq!(wire.shard.stack().rx_metrics().drop_ethertype, 1);
}

/// Bytes that make extension headers and messages of neighbour discovery more often than chance.
fn hostile_bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        prop::sample::select(vec![0u8, 1, 2, 3, 4, 5, 6, 17, 43, 44, 58, 60, 128]),
        133u8..138,
        any::<u8>(),
    ];
    prop::collection::vec(byte, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever comes: nothing breaks, every frame has a name, memory comes back.
    #[test]
    fn any_packets_do_no_harm(
        packets in prop::collection::vec(
            (hostile_bytes(), prop::sample::select(vec![0u8, 6, 17, 43, 44, 58, 60]), 0u8..4, 0u8..3, any::<bool>()),
            1..40,
        ),
    ) {
        let ipv6 = Ipv6Config { addresses: vec![(SERVER_V6, 64)], slaac: true, ..Ipv6Config::default() };
        let mut wire = settled(ShardConfig { ipv6: Some(ipv6), ..server() });
        echo(wire.shard.stack(), server_v6_at(7));
        let sources = [CLIENT_V6, Ipv6Addr::UNSPECIFIED, "fe80::1".parse().unwrap(), SERVER_V6];
        let targets = [SERVER_V6, ipv6::ALL_NODES, ipv6::solicited_node(SERVER_V6)];
        for (mut payload, next, source, target, near) in packets {
            let both = (sources[usize::from(source)], targets[usize::from(target)]);
            if next == Protocol::ICMPV6.0 && payload.len() >= 4 {
                payload[2..4].fill(0);
                let mut sum = Sum::ipv6_pseudo(both.0, both.1, next, payload.len() as u32);
                sum.add_bytes(&payload);
                payload[2..4].copy_from_slice(&sum.finish().to_be_bytes());
            }
            let hops = if near { 255 } else { 64 };
            wire.ask(&frame_v6(both, Protocol(next), hops, &payload));
        }
        wire.pass(200);
        wire.assert_accounted();
        let stats = wire.shard.stack().arena_stats();
        prop_assert_eq!(stats.blocks.0, stats.blocks.1);
    }
}
