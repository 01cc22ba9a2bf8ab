//! IPv4 packets, written and read byte by byte: the peer of the stack under test does not use the
//! stack's own code for headers, so that the two cannot err alike.

use std::net::Ipv4Addr;

use crate::script::TcpOption;

/// Protocol numbers.
const ICMP: u8 = 1;
const TCP: u8 = 6;

/// A TCP segment in an IPv4 packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpPacket {
    /// Sender's address and port.
    pub source: (Ipv4Addr, u16),
    /// Receiver's address and port.
    pub destination: (Ipv4Addr, u16),
    /// Type of service.
    pub tos: u8,
    /// Hop limit.
    pub ttl: u8,
    /// Number of the first byte.
    pub seq: u32,
    /// Next byte wanted, whatever the flags.
    pub ack: u32,
    /// Control bits.
    pub flags: u16,
    /// The window field.
    pub window: u16,
    /// The urgent pointer.
    pub urgent: u16,
    /// The options.
    pub options: Vec<TcpOption>,
    /// The payload.
    pub payload: Vec<u8>,
}

impl TcpPacket {
    /// As it lies on the wire.
    pub fn emit(&self) -> Vec<u8> {
        let options = emit_options(&self.options);
        let mut segment = Vec::with_capacity(20 + options.len() + self.payload.len());
        segment.extend(self.source.1.to_be_bytes());
        segment.extend(self.destination.1.to_be_bytes());
        segment.extend(self.seq.to_be_bytes());
        segment.extend(self.ack.to_be_bytes());
        let words = (20 + options.len()) as u16 / 4;
        segment.extend((words << 12 | self.flags).to_be_bytes());
        segment.extend(self.window.to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(self.urgent.to_be_bytes());
        segment.extend(options);
        segment.extend(&self.payload);
        let sum = tcp_sum(self.source.0, self.destination.0, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        ipv4(self.source.0, self.destination.0, self.tos, self.ttl, TCP, &segment)
    }

    /// Reads a packet; `Ok(None)` if it is not TCP.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(packet: &[u8]) -> Result<Option<Self>, String> {
        let (source, destination, protocol, body) = parse_ipv4(packet)?;
        if protocol != TCP {
            return Ok(None);
        }
        if body.len() < 20 {
            return Err("the TCP header is cut short".into());
        }
        if tcp_sum(source, destination, body) != 0 {
            return Err("the TCP checksum is wrong".into());
        }
        let word = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
        let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
        let header_len = usize::from(word(12) >> 12) * 4;
        if !(20..=body.len()).contains(&header_len) {
            return Err("the TCP data offset is wrong".into());
        }
        Ok(Some(Self {
            source: (source, word(0)),
            destination: (destination, word(2)),
            tos: packet[1],
            ttl: packet[8],
            seq: long(4),
            ack: long(8),
            flags: word(12) & 0xfff,
            window: word(14),
            urgent: word(18),
            options: parse_options(&body[20..header_len])?,
            payload: body[header_len..].to_vec(),
        }))
    }
}

/// An ICMP error that quotes the packet's IPv4 header and 8 bytes more.
pub fn icmp_error(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    (kind, code, mtu): (u8, u8, u16),
    quoted: &TcpPacket,
) -> Vec<u8> {
    let quoted = quoted.emit();
    let mut message = vec![kind, code, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(&quoted[..28.min(quoted.len())]);
    let sum = !fold(add(0, &message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(source, destination, 0, 64, ICMP, &message)
}

fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    tos: u8,
    ttl: u8,
    protocol: u8,
    body: &[u8],
) -> Vec<u8> {
    let total = (20 + body.len()) as u16;
    let [a, b] = total.to_be_bytes();
    let mut packet = vec![0x45, tos, a, b, 0, 0, 0, 0, ttl, protocol, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = !fold(add(0, &packet));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(body);
    packet
}

fn parse_ipv4(packet: &[u8]) -> Result<(Ipv4Addr, Ipv4Addr, u8, &[u8]), String> {
    if packet.len() < 20 || packet[0] != 0x45 {
        return Err("not an IPv4 header of 20 bytes".into());
    }
    if fold(add(0, &packet[..20])) != 0xffff {
        return Err("the IPv4 header checksum is wrong".into());
    }
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    if total != packet.len() {
        return Err("the IPv4 length is not the packet's".into());
    }
    let address =
        |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    Ok((address(12), address(16), packet[9], &packet[20..]))
}

fn add(mut sum: u64, bytes: &[u8]) -> u64 {
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    sum
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn tcp_sum(source: Ipv4Addr, destination: Ipv4Addr, segment: &[u8]) -> u16 {
    let mut sum = add(0, &source.octets());
    sum = add(sum, &destination.octets());
    sum += u64::from(TCP) + segment.len() as u64;
    !fold(add(sum, segment))
}

/// Options as bytes, padded with zeros to a multiple of four.
fn emit_options(options: &[TcpOption]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for option in options {
        match option {
            TcpOption::End => bytes.push(0),
            TcpOption::Nop => bytes.push(1),
            TcpOption::Mss(mss) => {
                bytes.extend([2, 4]);
                bytes.extend(mss.to_be_bytes());
            }
            TcpOption::WindowScale(shift) => bytes.extend([3, 3, *shift]),
            TcpOption::SackOk => bytes.extend([4, 2]),
            TcpOption::Sack(blocks) => {
                bytes.extend([5, 2 + 8 * blocks.len() as u8]);
                for (left, right) in blocks {
                    bytes.extend(left.to_be_bytes());
                    bytes.extend(right.to_be_bytes());
                }
            }
            TcpOption::Timestamp { value, echo } => {
                bytes.extend([8, 10]);
                bytes.extend(value.to_be_bytes());
                bytes.extend(echo.to_be_bytes());
            }
            TcpOption::Other(kind, content) => {
                bytes.extend([*kind, 2 + content.len() as u8]);
                bytes.extend(content);
            }
        }
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn parse_options(mut bytes: &[u8]) -> Result<Vec<TcpOption>, String> {
    let mut options = Vec::new();
    while let [kind, rest @ ..] = bytes {
        if *kind < 2 {
            options.push(if *kind == 0 { TcpOption::End } else { TcpOption::Nop });
            bytes = rest;
            if *kind == 0 {
                break;
            }
            continue;
        }
        let len = rest.first().map_or(0, |len| usize::from(*len));
        if len < 2 || len > bytes.len() {
            return Err("a TCP option has a wrong length".into());
        }
        let content = &bytes[2..len];
        let long = |at: usize| {
            u32::from_be_bytes([content[at], content[at + 1], content[at + 2], content[at + 3]])
        };
        options.push(match (*kind, content.len()) {
            (2, 2) => TcpOption::Mss(u16::from_be_bytes([content[0], content[1]])),
            (3, 1) => TcpOption::WindowScale(content[0]),
            (4, 0) => TcpOption::SackOk,
            (5, len) if len % 8 == 0 => TcpOption::Sack(
                (0..len / 8).map(|block| (long(block * 8), long(block * 8 + 4))).collect(),
            ),
            (8, 8) => TcpOption::Timestamp { value: long(0), echo: long(4) },
            _ => TcpOption::Other(*kind, content.to_vec()),
        });
        bytes = &bytes[len..];
    }
    Ok(options)
}

/// Options, for people.
pub fn describe_options(options: &[TcpOption]) -> String {
    let words: Vec<String> = options
        .iter()
        .map(|option| match option {
            TcpOption::End => "eol".into(),
            TcpOption::Nop => "nop".into(),
            TcpOption::Mss(mss) => format!("mss {mss}"),
            TcpOption::WindowScale(shift) => format!("wscale {shift}"),
            TcpOption::SackOk => "sackOK".into(),
            TcpOption::Sack(blocks) => {
                let blocks: Vec<_> = blocks.iter().map(|(a, b)| format!("{a}:{b}")).collect();
                format!("sack {}", blocks.join(" "))
            }
            TcpOption::Timestamp { value, echo } => format!("TS val {value} ecr {echo}"),
            TcpOption::Other(kind, content) => format!("option {kind} ({} bytes)", content.len()),
        })
        .collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_wire::{ipv4 as wire_ip, tcp as wire_tcp};

    fn sample() -> TcpPacket {
        TcpPacket {
            source: (Ipv4Addr::new(192, 0, 2, 1), 4000),
            destination: (Ipv4Addr::new(198, 18, 0, 1), 80),
            tos: 2,
            ttl: 64,
            seq: 1,
            ack: 2,
            flags: 0x18,
            window: 5,
            urgent: 0,
            options: vec![
                TcpOption::Nop,
                TcpOption::Nop,
                TcpOption::Timestamp { value: 7, echo: 8 },
                TcpOption::Sack(vec![(1, 2), (3, 4)]),
                TcpOption::Nop,
                TcpOption::Nop,
            ],
            payload: vec![1, 2, 3],
        }
    }

    #[test]
    fn what_is_written_is_read_here_and_by_the_stack() {
        let packet = sample();
        let bytes = packet.emit();
        assert_eq!(TcpPacket::parse(&bytes).unwrap().unwrap(), packet);
        let ip = wire_ip::Header::parse(&bytes).unwrap();
        assert!(wire_ip::verify_checksum(&ip, &bytes));
        let (header, len) = wire_tcp::Header::parse(&bytes[20..]).unwrap();
        assert_eq!(header.sack_blocks().len(), 2);
        assert_eq!(header.timestamp().unwrap().value, 7);
        assert_eq!(len, 20 + 32);
    }

    #[test]
    fn damage_is_seen() {
        let mut bytes = sample().emit();
        *bytes.last_mut().unwrap() ^= 1;
        assert!(TcpPacket::parse(&bytes).unwrap_err().contains("TCP checksum"));
        bytes[15] ^= 1;
        assert!(TcpPacket::parse(&bytes).unwrap_err().contains("header checksum"));
    }
}
