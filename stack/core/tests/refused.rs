//! Packets that get no answer, whatever they ask.

mod common;

use std::net::{Ipv4Addr, Ipv6Addr};

use common::wire::*;
use common::*;
use millstream_wire::checksum::{Sum, checksum};
use millstream_wire::ipv4::Protocol;
use millstream_wire::{icmpv4, icmpv6, tcp};

fn wire() -> Wire {
    let mut wire = Wire::new(config_v6(SERVER, small_limits()));
    // The addresses of IPv6 are proved.
    wire.pass(2);
    wire
}

fn echo_v4(data: &[u8]) -> Vec<u8> {
    let message = icmpv4::Message::EchoRequest { ident: 1, seq: 1, data };
    let mut bytes = vec![0; message.emitted_len()];
    message.emit(&mut bytes);
    bytes
}

fn echo_frame_v4(src: Ipv4Addr) -> Vec<u8> {
    frame_v4((src, SERVER), Protocol::ICMP, 0, &[], &echo_v4(b"data"))
}

fn echo_frame_v6(src: Ipv6Addr) -> Vec<u8> {
    let message = icmpv6::Message::EchoRequest { ident: 1, seq: 1, data: b"data" };
    frame_v6((src, SERVER_V6), Protocol::ICMPV6, 64, &icmp_v6((src, SERVER_V6), &message))
}

fn udp_frame_v4(src: Ipv4Addr) -> Vec<u8> {
    frame_v4((src, SERVER), Protocol::UDP, 0, &[], &udp_v4((src, SERVER), 9999, b"data"))
}

fn syn_frame_v4(src: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0; tcp::HEADER_LEN];
    let (seq, ack) = (tcp::SeqNumber(1000), tcp::SeqNumber(0));
    tcp::emit(&mut bytes, 999, 80, seq, ack, tcp::Flags::SYN, 60_000, 0, &[]);
    let mut sum = Sum::ipv4_pseudo(src, SERVER, Protocol::TCP.0, bytes.len() as u16);
    sum.add_bytes(&bytes);
    bytes[16..18].copy_from_slice(&sum.finish().to_be_bytes());
    frame_v4((src, SERVER), Protocol::TCP, 0, &[], &bytes)
}

fn syn_frame_v6(src: Ipv6Addr) -> Vec<u8> {
    frame_v6((src, SERVER_V6), Protocol::TCP, 64, &syn_v6((src, SERVER_V6), 999, 80))
}

/// What is asked of one host in a frame to many stations.
#[test]
fn what_one_host_is_asked_in_a_frame_to_many() {
    let mut wire = wire();
    let _listener = wire.shard.stack().listen(server_at(80), 8).unwrap();
    let to_all = [0xff; 6];
    let to_nodes = [0x33, 0x33, 0, 0, 0, 1];
    let frames = [
        (to_all, echo_frame_v4(CLIENT)),
        (to_all, udp_frame_v4(CLIENT)),
        (to_all, syn_frame_v4(CLIENT)),
        (to_nodes, echo_frame_v6(CLIENT_V6)),
        (to_nodes, syn_frame_v6(CLIENT_V6)),
    ];
    let before = wire.shard.stack().rx_metrics().drop_not_for_us;
    for (n, (station, mut frame)) in (1..).zip(frames) {
        assert_eq!(wire.ask(&frame).len(), 1, "{n}: sent to us it is answered");
        let open = wire.shard.stack().connections();
        frame[..6].copy_from_slice(&station);
        assert!(wire.ask(&frame).is_empty(), "{n}");
        assert_eq!(wire.shard.stack().rx_metrics().drop_not_for_us, before + n);
        assert_eq!(wire.shard.stack().connections(), open);
    }
    wire.assert_accounted();
}

#[test]
fn what_comes_from_where_no_host_is() {
    let mut wire = wire();
    let _listener = wire.shard.stack().listen(server_at(80), 8).unwrap();
    let sources = [
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::new(127, 0, 0, 1),
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::new(240, 0, 0, 1),
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(198, 18, 0, 255),
        SERVER,
    ];
    let v4 = sources.into_iter().flat_map(|src| {
        [echo_frame_v4(src), udp_frame_v4(src), syn_frame_v4(src)]
            .map(|frame| (src.to_string(), frame))
    });
    let sources = ["::1", "::ffff:192.0.2.1", "ff02::1"].map(|src| src.parse().unwrap());
    let v6 = sources.into_iter().chain([SERVER_V6]).flat_map(|src: Ipv6Addr| {
        [echo_frame_v6(src), syn_frame_v6(src)].map(|frame| (src.to_string(), frame))
    });
    for (n, (src, frame)) in (1..).zip(v4.chain(v6)) {
        assert!(wire.ask(&frame).is_empty(), "{src}");
        assert_eq!(wire.shard.stack().rx_metrics().drop_martian, n, "{src}");
        assert_eq!(wire.shard.stack().connections(), 0, "{src}");
    }
    wire.assert_accounted();
}

/// Put together from fragments a request may be longer than any packet of ours.
#[test]
fn echoes_fit_the_link() {
    let mut wire = wire();
    for (len, fits) in [(1472, true), (1473, false), (1492, false), (3000, false)] {
        let data = pattern(len, 3);
        let message = echo_v4(&data);
        wire.send(&frame_v4((CLIENT, SERVER), Protocol::ICMP, 0x2000, &[], &message[..800]));
        wire.send(&frame_v4((CLIENT, SERVER), Protocol::ICMP, 0x2064, &[], &message[800..1000]));
        let answers =
            wire.ask(&frame_v4((CLIENT, SERVER), Protocol::ICMP, 125, &[], &message[1000..]));
        assert_eq!(answers.len(), usize::from(fits), "{len}");
        if let Some(answer) = answers.first() {
            assert_eq!(answer.len(), 14 + 1500);
            // Only the kind differs, and with it the checksum.
            assert_eq!(answer[34], 0);
            assert_eq!(answer[38..], message[4..]);
            assert_eq!(checksum(&answer[34..]), 0);
        }
    }
    assert_eq!(wire.shard.stack().rx_metrics().drop_echo_too_long, 3);
    let message = icmpv6::Message::EchoRequest { ident: 1, seq: 1, data: &[7; 1460] };
    let message = icmp_v6((CLIENT_V6, SERVER_V6), &message);
    let part = |offset: u16, more: bool, bytes: &[u8]| {
        let word = (offset | u16::from(more)).to_be_bytes();
        let mut payload = vec![Protocol::ICMPV6.0, 0, word[0], word[1], 0, 0, 0, 9];
        payload.extend_from_slice(bytes);
        frame_v6((CLIENT_V6, SERVER_V6), Protocol(44), 64, &payload)
    };
    wire.send(&part(0, true, &message[..800]));
    assert!(wire.ask(&part(800, false, &message[800..])).is_empty());
    assert_eq!(wire.shard.stack().rx_metrics().drop_echo_too_long, 4);
    assert_eq!(wire.shard.stack().metrics().drop_other_out, 0);
    wire.assert_accounted();
}
