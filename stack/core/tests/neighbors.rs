//! Neighbours that do not answer, and what others notice of them.

mod common;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use common::wire::*;
use common::*;
use millstream_wire::checksum::Sum;
use millstream_wire::ethernet::{Address, EtherType};
use millstream_wire::ipv4::Protocol;
use millstream_wire::{arp, tcp};

fn arp_frame(operation: arp::Operation, from: (Address, Ipv4Addr), target_ip: Ipv4Addr) -> Vec<u8> {
    let repr = arp::Repr {
        operation,
        sender_mac: from.0,
        sender_ip: from.1,
        target_mac: SHARD_MAC,
        target_ip,
    };
    let mut bytes = vec![0; arp::PACKET_LEN];
    repr.emit(&mut bytes);
    frame(EtherType::ARP, &bytes)
}

fn arps(frames: &[Vec<u8>]) -> Vec<arp::Repr> {
    frames
        .iter()
        .filter(|frame| frame[12..14] == EtherType::ARP.0.to_be_bytes())
        .map(|frame| arp::Repr::parse(&frame[14..]).unwrap())
        .collect()
}

fn silent(n: u32) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 0, (n % 250 + 3) as u8)
}

#[test]
fn silent_neighbours_hold_up_nobody_and_are_asked_once_a_second() {
    let mut wire = Wire::new(config(SERVER, small_limits()));
    let socket = wire.shard.stack().udp_bind(53).unwrap();
    let mut asked: HashMap<Ipv4Addr, usize> = HashMap::new();
    // For a second a flood of datagrams to neighbours that are not there: the clock stands still.
    for _ in 0..4 {
        for n in 0..250 {
            socket.send_to(b"x", SocketAddrV4::new(silent(n), 9)).unwrap();
        }
        for _ in 0..10 {
            wire.shard.turn();
            for request in arps(&receive(&mut wire.link)) {
                *asked.entry(request.target_ip).or_default() += 1;
            }
        }
    }
    assert!(asked.len() >= 100, "{}", asked.len());
    assert_eq!(asked.values().max(), Some(&1));
    // Meanwhile we answer who asks for us.
    let question = arp_frame(arp::Operation::Request, (OUR_MAC, CLIENT), SERVER);
    let answers = arps(&wire.ask(&question));
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].operation, arp::Operation::Reply);
    // And who has asked us is sent to at once.
    socket.send_to(b"x", SocketAddrV4::new(CLIENT, 9)).unwrap();
    assert_eq!(wire.answers().len(), 1);
    // In the end everything is either sent or counted.
    let sent = wire.pass(4).len();
    assert!(sent <= 2 * asked.len(), "two more questions each: {sent}");
    let metrics = wire.shard.stack().metrics();
    assert_eq!(metrics.drop_other_out, 1000);
    wire.assert_accounted();
}

#[test]
fn the_last_three_datagrams_wait_for_a_neighbour_and_go_in_order() {
    let mut wire = Wire::new(config(SERVER, small_limits()));
    let socket = wire.shard.stack().udp_bind(53).unwrap();
    for n in 0..5u8 {
        socket.send_to(&[n; 4], SocketAddrV4::new(CLIENT, 9)).unwrap();
    }
    assert_eq!(arps(&wire.answers()).len(), 1);
    let sent = wire.ask(&arp_frame(arp::Operation::Reply, (OUR_MAC, CLIENT), SERVER));
    let last: Vec<u8> = sent.iter().map(|frame| *frame.last().unwrap()).collect();
    assert_eq!(last, [2, 3, 4]);
    assert!(sent.iter().all(|frame| frame[..6] == OUR_MAC.0));
    assert_eq!(wire.shard.stack().metrics().drop_other_out, 2);
    assert!(wire.pass(3).is_empty(), "nothing is left");
}

/// A segment from the peer's port 999 to port 80.
fn segment(seq: u32, ack: u32, flags: tcp::Flags) -> Vec<u8> {
    let mut bytes = vec![0; tcp::HEADER_LEN];
    let (seq, ack) = (tcp::SeqNumber(seq), tcp::SeqNumber(ack));
    tcp::emit(&mut bytes, 999, 80, seq, ack, flags, 60_000, 0, &[]);
    let mut sum = Sum::ipv4_pseudo(CLIENT, SERVER, Protocol::TCP.0, bytes.len() as u16);
    sum.add_bytes(&bytes);
    bytes[16..18].copy_from_slice(&sum.finish().to_be_bytes());
    frame_v4((CLIENT, SERVER), Protocol::TCP, 0, &[], &bytes)
}

/// The stations to which TCP segments went.
fn stations(frames: &[Vec<u8>]) -> Vec<[u8; 6]> {
    let tcp = |frame: &&Vec<u8>| {
        frame[12..14] == EtherType::IPV4.0.to_be_bytes() && frame[23] == Protocol::TCP.0
    };
    frames.iter().filter(tcp).map(|frame| frame[..6].try_into().unwrap()).collect()
}

#[test]
fn a_connection_follows_its_peer_to_another_station() {
    let mut wire = Wire::new(config(SERVER, small_limits()));
    let stack = wire.shard.stack().clone();
    let listener = stack.listen(server_at(80), 8).unwrap();
    let talk = async move {
        let (stream, _) = listener.accept().await;
        stream.write_all(b"data").await.unwrap();
        std::future::pending::<()>().await;
    };
    stack.spawn(talk).unwrap();
    let answer = wire.ask(&segment(1000, 0, tcp::Flags::SYN));
    let isn = u32::from_be_bytes(answer[0][38..42].try_into().unwrap());
    let sent = wire.ask(&segment(1001, isn.wrapping_add(1), tcp::Flags::ACK));
    assert_eq!(stations(&sent), [OUR_MAC.0]);
    // The data is not acknowledged: the first time-out asks for the peer, in vain.
    let sent = wire.pass(3);
    assert_eq!(stations(&sent).last(), Some(&OUR_MAC.0), "it keeps the station that it has");
    assert!(arps(&sent).iter().any(|request| request.target_ip == CLIENT));
    // The peer has moved, and answers.
    let other = Address([2, 0, 0, 0, 0, 9]);
    wire.ask(&arp_frame(arp::Operation::Request, (other, CLIENT), SERVER));
    assert_eq!(stations(&wire.pass(20)).last(), Some(&other.0));
    wire.assert_accounted();
}

#[test]
fn what_was_said_to_all_is_believed_but_to_be_proved() {
    let mut wire = Wire::new(config(SERVER, small_limits()));
    let socket = wire.shard.stack().udp_bind(53).unwrap();
    wire.ask(&arp_frame(arp::Operation::Request, (OUR_MAC, CLIENT), SERVER));
    let other = Address([2, 0, 0, 0, 0, 9]);
    wire.ask(&arp_frame(arp::Operation::Reply, (other, CLIENT), CLIENT));
    socket.send_to(b"x", SocketAddrV4::new(CLIENT, 9)).unwrap();
    assert_eq!(wire.answers()[0][..6], other.0);
    let sent = wire.pass(7);
    assert_eq!(arps(&sent)[0].target_ip, CLIENT);
    assert_eq!(sent[0][..6], other.0, "it alone is asked whether it is so");
}
