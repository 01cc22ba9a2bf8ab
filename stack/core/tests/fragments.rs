//! Fragments, IP options and VLAN tags, made by the test itself.

mod common;

use common::wire::{Wire, frame_v4, frame_v6, packets_v6, send, udp_v4, udp_v6};
use common::{
    CLIENT, CLIENT_V6, SERVER, SERVER_V6, World, config, config_v6, pattern, server_at,
    server_v6_at, small_limits,
};
use millstream_core::{ShardConfig, UdpSocket};
use millstream_disk::MemDisk;
use millstream_wire::icmpv6;
use millstream_wire::ipv4::Protocol;
use millstream_wire::ipv6_extension::Fragment;

const MORE: u16 = 0x2000;

fn wire() -> Wire {
    let mut wire = Wire::new(config_v6(SERVER, small_limits()));
    wire.pass(2);
    wire
}

/// A fragment of a packet with `whole` behind its headers.
fn fragment(v6: bool, whole: &[u8], start: usize, end: usize) -> Vec<u8> {
    let more = end < whole.len();
    if v6 {
        let mut payload = vec![0; 8];
        let head = Fragment { next_header: Protocol::UDP, offset: start as u16, more, ident: 5 };
        head.emit(&mut payload);
        payload.extend_from_slice(&whole[start..end]);
        frame_v6((CLIENT_V6, SERVER_V6), Protocol(44), 64, &payload)
    } else {
        let word = (start / 8) as u16 | if more { MORE } else { 0 };
        frame_v4((CLIENT, SERVER), Protocol::UDP, word, &[], &whole[start..end])
    }
}

fn datagram(v6: bool, len: usize) -> Vec<u8> {
    let data = pattern(len, 3);
    if v6 { udp_v6((CLIENT_V6, SERVER_V6), 53, &data) } else { udp_v4((CLIENT, SERVER), 53, &data) }
}

/// The datagrams that wait in a socket.
fn received(wire: &mut Wire, socket: &UdpSocket) -> Vec<Vec<u8>> {
    wire.answers();
    let mut all = Vec::new();
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    while let std::task::Poll::Ready((data, _)) = socket.poll_recv_from(&mut cx) {
        all.push(data.to_vec());
    }
    all
}

#[test]
fn a_datagram_in_fragments_arrives_whole() {
    for v6 in [false, true] {
        let mut wire = wire();
        let socket = wire.shard.stack().udp_bind(53).unwrap();
        let whole = datagram(v6, 9000);
        let mut cuts: Vec<_> = (0..whole.len()).step_by(1400).collect();
        cuts.reverse();
        for start in cuts {
            wire.send(&fragment(v6, &whole, start, whole.len().min(start + 1400)));
        }
        assert_eq!(received(&mut wire, &socket), [pattern(9000, 3)]);
        let (rx, metrics) = (wire.shard.stack().rx_metrics(), wire.shard.stack().metrics());
        assert_eq!((rx.fragments_kept, metrics.reassembled, rx.delivered_udp), (7, 1, 1));
        wire.assert_accounted();
        drop(socket);
        assert_eq!(
            wire.shard.stack().arena_stats().blocks.0,
            wire.shard.stack().arena_stats().blocks.1
        );
    }
}

#[test]
fn fragments_that_overlap_or_are_too_long_are_dropped() {
    for v6 in [false, true] {
        let mut wire = wire();
        let socket = wire.shard.stack().udp_bind(53).unwrap();
        let whole = datagram(v6, 3000);
        wire.send(&fragment(v6, &whole, 0, 1400));
        // RFC 5722, and the same for IPv4: an attacker could change what was checked before.
        let mut other = whole.clone();
        other[1399] ^= 1;
        wire.send(&fragment(v6, &other, 1392, 2792));
        wire.send(&fragment(v6, &whole, 1400, whole.len()));
        assert!(received(&mut wire, &socket).is_empty());
        let rx = wire.shard.stack().rx_metrics();
        assert_eq!((rx.fragments_kept, rx.drop_fragment_overlap), (1, 2));
        wire.assert_accounted();
        // The block is free; the memory of the refused packet goes with its time.
        wire.pass(61);
        assert_eq!(wire.shard.stack().metrics().reassembly_timeouts, 1);
        let huge = vec![0; 65_000];
        wire.send(&fragment(v6, &huge, 63_992, 64_992));
        wire.answers();
        assert_eq!(wire.shard.stack().rx_metrics().drop_fragment_too_long, 1);
        wire.assert_accounted();
    }
}

#[test]
fn fragments_that_stay_alone_are_given_up_and_told() {
    for v6 in [false, true] {
        let mut wire = wire();
        let whole = datagram(v6, 3000);
        wire.send(&fragment(v6, &whole, 0, 1400));
        assert!(wire.answers().is_empty());
        let sent = wire.pass(61);
        let stats = wire.shard.stack().arena_stats();
        assert_eq!(
            (wire.shard.stack().metrics().reassembly_timeouts, stats.blocks.0),
            (1, stats.blocks.1)
        );
        if v6 {
            let (header, message) = &packets_v6(&sent)[0];
            let (src, dst) = (header.src, header.dst);
            assert_eq!((src, dst), (SERVER_V6, CLIENT_V6));
            let error = icmpv6::Message::parse(src, dst, message);
            let expected = icmpv6::Message::TimeExceeded {
                code: icmpv6::CODE_REASSEMBLY,
                original: &fragment(v6, &whole, 0, 1400)[14..14 + 48 + 8],
            };
            assert_eq!(error, Ok(expected));
        } else {
            let sent: Vec<_> = sent.iter().filter(|f| f[12..14] == [8, 0]).collect();
            assert_eq!(sent.len(), 1);
            // ICMP, time exceeded, of reassembly, about the first fragment.
            assert_eq!((sent[0][23], &sent[0][34..36]), (1, &[11, 1][..]));
            assert_eq!(sent[0][42..70], fragment(v6, &whole, 0, 1400)[14..42]);
        }
        wire.assert_accounted();
    }
}

#[test]
fn options_are_skipped_and_source_routes_refused() {
    let mut wire = wire();
    let socket = wire.shard.stack().udp_bind(53).unwrap();
    let datagram = udp_v4((CLIENT, SERVER), 53, b"hello");
    let with = |options: &[u8]| frame_v4((CLIENT, SERVER), Protocol::UDP, 0, options, &datagram);
    wire.send(&with(&[0x94, 4, 0, 0]));
    wire.send(&with(&[1, 7, 3, 4]));
    assert_eq!(received(&mut wire, &socket).len(), 2);
    for refused in [&[0x83, 3, 4, 0][..], &[0x89, 7, 4, 192, 0, 2, 1, 0], &[7, 9, 4, 0]] {
        wire.send(&with(refused));
    }
    assert!(received(&mut wire, &socket).is_empty());
    assert_eq!(wire.shard.stack().rx_metrics().drop_ip_options, 3);
    wire.assert_accounted();
}

fn in_vlan(vlan: Option<u16>, config: ShardConfig) -> ShardConfig {
    ShardConfig { vlan, ..config }
}

#[test]
fn two_shards_talk_in_a_vlan() {
    let disk =
        |_: &_| -> Box<dyn millstream_disk::DiskQueue> { Box::new(MemDisk::copying(16).unwrap()) };
    let config = |address| in_vlan(Some(7), config_v6(address, small_limits()));
    let mut world = World::configured(64, disk, config);
    let any = std::net::SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), 7);
    let listener = world.server.stack().listen(any, 4).unwrap();
    let serving = async move {
        loop {
            let (stream, _) = listener.accept().await;
            while let Ok(Some(buf)) = stream.read_buf().await {
                stream.send_buf(buf).await.unwrap();
            }
        }
    };
    world.server.stack().spawn(serving).unwrap();
    let stack = world.client.stack().clone();
    world.client_runs(async move {
        for address in [std::net::SocketAddr::from(server_at(7)), server_v6_at(7).into()] {
            let stream = stack.connect(address).await.unwrap();
            stream.write_all(&[5; 5000]).await.unwrap();
            let (mut out, mut have) = ([0; 5000], 0);
            while have < out.len() {
                have += stream.read(&mut out[have..]).await.unwrap();
            }
            assert_eq!(out, [5; 5000]);
        }
    });
    world.settle();
    world.assert_clean(true);
    assert_eq!(world.server.stack().rx_metrics().drop_vlan, 0);
}

/// The frame with an 802.1Q tag.
fn tagged(frame: &[u8], control: u16) -> Vec<u8> {
    let tag = [0x81, 0, (control >> 8) as u8, control as u8];
    [&frame[..12], &tag, &frame[12..]].concat()
}

#[test]
fn frames_of_other_vlans_are_dropped() {
    let datagram = udp_v4((CLIENT, SERVER), 53, b"hello");
    let frame = frame_v4((CLIENT, SERVER), Protocol::UDP, 0, &[], &datagram);
    for (vlan, good, bad) in [
        (
            Some(7),
            vec![tagged(&frame, 7), tagged(&frame, 0xe007)],
            vec![frame.clone(), tagged(&frame, 8), tagged(&frame, 0)],
        ),
        (
            None,
            vec![frame.clone(), tagged(&frame, 0xe000)],
            vec![tagged(&frame, 7), tagged(&tagged(&frame, 7), 0)],
        ),
    ] {
        let mut wire = Wire::new(in_vlan(vlan, config(SERVER, small_limits())));
        let socket = wire.shard.stack().udp_bind(53).unwrap();
        for frame in &good {
            wire.send(frame);
        }
        assert_eq!(received(&mut wire, &socket).len(), good.len());
        for frame in &bad {
            send(&mut wire.link, frame);
        }
        assert!(received(&mut wire, &socket).is_empty());
        assert_eq!(wire.shard.stack().rx_metrics().drop_vlan, bad.len() as u64);
        wire.assert_accounted();
    }
}
