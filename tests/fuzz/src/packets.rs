//! The parsers of `millstream_wire`: whatever they accept, they must be able to say again.

use std::net::Ipv4Addr;

use millstream_wire::tcp::{self, Flags, Header, Options, SackBlocks, SeqNumber};
use millstream_wire::{arp, ethernet, icmpv4, icmpv6, ipv4, ipv6, ipv6_extension, ndp, udp};

/// A TCP header with its options.
pub fn options(input: &[u8]) {
    let Ok((header, len)) = Header::parse(input) else { return };
    assert!(len <= input.len() && header.options.len() == len - tcp::HEADER_LEN);
    let mut again = [0; 60];
    let emitted = tcp::emit(
        &mut again,
        header.src_port,
        header.dst_port,
        header.seq,
        header.ack,
        header.flags,
        header.window,
        header.urgent,
        header.options,
    );
    assert_eq!(Header::parse(&again[..emitted]), Ok((header, len)), "the same when said again");
    if let Some(lone) = header.lone_timestamp() {
        assert_eq!(header.timestamp(), Some(lone), "the short way says what the long one says");
    }
    let syn = header.syn_options();
    assert!(syn.window_scale.is_none_or(|scale| scale <= tcp::MAX_WINDOW_SCALE));
    let sack = header.sack_blocks();
    assert!(sack.len() <= 4);
    let ours = Options::established(header.timestamp(), &sack);
    let mut again = [0; 60];
    let (seq, ack) = (SeqNumber(1), SeqNumber(2));
    let emitted = tcp::emit(&mut again, 1, 2, seq, ack, Flags::ACK, 3, 0, ours.as_slice());
    let (parsed, _) = Header::parse(&again[..emitted]).expect("what we emit is a header");
    assert_eq!(parsed.timestamp(), header.timestamp());
    let mut kept = sack;
    kept.truncate(if header.timestamp().is_some() { 3 } else { 4 });
    assert_eq!(blocks(&parsed.sack_blocks()), blocks(&kept));
}

fn blocks(blocks: &SackBlocks) -> Vec<(u32, u32)> {
    blocks.as_slice().iter().map(|(start, end)| (start.0, end.0)).collect()
}

/// A frame, and the same bytes as each of what can be in one.
pub fn packets(input: &[u8]) {
    if let Ok(header) = ethernet::Header::parse(input) {
        let payload = header.payload(input);
        match header.ethertype {
            ethernet::EtherType::IPV4 => ipv4_packet(payload),
            ethernet::EtherType::IPV6 => ipv6_packet(payload),
            ethernet::EtherType::ARP => arp_packet(payload),
            _ => {}
        }
    }
    arp_packet(input);
    ipv4_packet(input);
    ipv6_packet(input);
    icmp_message(input);
    icmpv6_message(input);
    udp_datagram(input);
}

/// An IPv6 packet with its extension headers, and the same bytes as an ICMPv6 message.
pub fn ipv6(input: &[u8]) {
    let mut packet = input.to_vec();
    if let Some(first) = packet.first_mut() {
        *first = 0x60 | *first & 0xf;
    }
    ipv6_packet(&packet);
    icmpv6_message(input);
}

fn ipv6_packet(bytes: &[u8]) {
    let Ok(head) = ipv6::Header::parse_head(bytes) else { return };
    let mut again = [0; ipv6::HEADER_LEN];
    head.emit(&mut again);
    assert_eq!(again, bytes[..ipv6::HEADER_LEN]);
    // As an ICMP error may quote it.
    if let Some((_, at)) = ipv6_extension::find_upper(&head, bytes) {
        assert!(at >= ipv6::HEADER_LEN);
    }
    let Ok(header) = ipv6::Header::parse(bytes) else { return };
    assert!(header.packet_len() <= bytes.len());
    assert_eq!(header.payload(bytes).len(), usize::from(header.payload_len));
    let Ok(upper) = ipv6_extension::walk(&header, bytes) else { return };
    let (offset, end) = (usize::from(upper.offset), header.packet_len());
    assert!((ipv6::HEADER_LEN..=end).contains(&offset), "{upper:?}");
    assert!(usize::from(upper.protocol_at) < offset);
    if let Some(fragment) = upper.fragment {
        let mut again = [0; 8];
        fragment.emit(&mut again);
        assert!(upper.fragment_header && fragment.offset % 8 == 0);
        return;
    }
    match upper.protocol {
        ipv4::Protocol::TCP => options(&bytes[offset..end]),
        ipv4::Protocol::UDP => udp_datagram(&bytes[offset..end]),
        ipv4::Protocol::ICMPV6 => icmpv6_message(&bytes[offset..end]),
        _ => {}
    }
}

fn icmpv6_message(bytes: &[u8]) {
    let (src, dst) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
    let mut message = bytes.to_vec();
    if message.len() >= 4 {
        message[2..4].fill(0);
        let len = message.len() as u32;
        let next = ipv4::Protocol::ICMPV6.0;
        let mut sum = millstream_wire::checksum::Sum::ipv6_pseudo(src, dst, next, len);
        sum.add_bytes(&message);
        message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    }
    let Ok(parsed) = icmpv6::Message::parse(src, dst, &message) else { return };
    let quote = parsed.quote();
    match parsed {
        icmpv6::Message::Ndp(ndp::Message::RouterAdvertisement(advertisement)) => {
            assert!(advertisement.options.iter().count() <= bytes.len() / 8);
            return;
        }
        icmpv6::Message::Other { .. } => return,
        _ => {}
    }
    let mut again = vec![0; parsed.emitted_len()];
    assert_eq!(parsed.emit(src, dst, &mut again), again.len());
    match icmpv6::Message::parse(src, dst, &again) {
        Ok(same) if quote.is_some() => assert_eq!(same.quote(), quote),
        same => assert_eq!(same, Ok(parsed)),
    }
}

fn arp_packet(bytes: &[u8]) {
    let Ok(repr) = arp::Repr::parse(bytes) else { return };
    let mut again = [0; arp::PACKET_LEN];
    repr.emit(&mut again);
    assert_eq!(again, bytes[..arp::PACKET_LEN]);
}

fn ipv4_packet(bytes: &[u8]) {
    let Ok(header) = ipv4::Header::parse(bytes) else { return };
    assert!(usize::from(header.total_len) <= bytes.len());
    assert!(header.header_len as u16 <= header.total_len);
    let payload = header.payload(bytes);
    assert_eq!(payload.len(), usize::from(header.payload_len()));
    assert_eq!(header.options(bytes).len(), usize::from(header.header_len) - ipv4::HEADER_LEN);
    let _ = (header.fragment_offset(), header.more_fragments(), header.ecn());
    let _ = ipv4::verify_checksum(&header, bytes);
    match header.protocol {
        ipv4::Protocol::TCP => options(payload),
        ipv4::Protocol::ICMP => icmp_message(payload),
        ipv4::Protocol::UDP => udp_datagram(payload),
        _ => {}
    }
}

/// The checksum would keep everything out, so it is made right first.
fn icmp_message(bytes: &[u8]) {
    let mut message = bytes.to_vec();
    if let Some(field) = message.get_mut(2..4) {
        field.fill(0);
        let sum = millstream_wire::checksum::checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let Ok(parsed) = icmpv4::Message::parse(&message) else { return };
    if let Some(quote) = parsed.quote() {
        let _ = (quote.src(), quote.dst(), quote.src_port(), quote.dst_port(), quote.tcp_seq());
    }
    if matches!(parsed, icmpv4::Message::Other { .. }) {
        return;
    }
    let mut again = vec![0; parsed.emitted_len()];
    assert_eq!(parsed.emit(&mut again), again.len());
    match (icmpv4::Message::parse(&again), parsed) {
        // An error that quotes much is cut.
        (Ok(same), _) if parsed.quote().is_some() => assert_eq!(same.quote(), parsed.quote()),
        (same, parsed) => assert_eq!(same, Ok(parsed)),
    }
}

/// As [`icmp_message`].
fn udp_datagram(bytes: &[u8]) {
    let Ok(header) = udp::Header::parse(bytes) else { return };
    assert!(usize::from(header.len) <= bytes.len());
    assert_eq!(header.payload(bytes).len(), usize::from(header.len) - udp::HEADER_LEN);
    let _ = header.verify_checksum(Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST, bytes);
}
