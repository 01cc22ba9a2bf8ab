//! Neighbours that do not answer, and what others notice of them.

mod common;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use common::wire::*;
use common::*;
use millstream_wire::arp;
use millstream_wire::ethernet::{Address, EtherType};

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
    let sent = wire.pass(5).len();
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
