//! Packets in scripts.

use crate::cursor::{Cursor, Parse};
use crate::script::{Body, IcmpSpec, PacketSpec, TcpOption, TcpSpec, Tos};

/// Control bits by letter.
const FLAGS: [(char, u16); 9] = [
    ('F', 0x01),
    ('S', 0x02),
    ('R', 0x04),
    ('P', 0x08),
    ('.', 0x10),
    ('U', 0x20),
    ('E', 0x40),
    ('W', 0x80),
    ('A', 0x100),
];

/// The letters of control bits, for people.
pub fn flag_letters(flags: u16) -> String {
    let letters: String =
        FLAGS.iter().filter(|(_, bit)| flags & bit != 0).map(|(letter, _)| letter).collect();
    if letters.is_empty() { "-".into() } else { letters }
}

/// Codes of "destination unreachable".
const UNREACHABLE: [(&str, u8); 16] = [
    ("net_unreachable", 0),
    ("host_unreachable", 1),
    ("protocol_unreachable", 2),
    ("port_unreachable", 3),
    ("frag_needed", 4),
    ("source_route_failed", 5),
    ("net_unknown", 6),
    ("host_unknown", 7),
    ("source_host_isolated", 8),
    ("net_prohibited", 9),
    ("host_prohibited", 10),
    ("net_unreachable_for_tos", 11),
    ("host_unreachable_for_tos", 12),
    ("packet_filtered", 13),
    ("precedence_violation", 14),
    ("precedence_cutoff", 15),
];

/// Reads a packet, from its direction on.
pub(crate) fn packet(cursor: &mut Cursor<'_>) -> Parse<PacketSpec> {
    let inbound = cursor.take("<");
    if !inbound {
        cursor.expect(">")?;
    }
    let (mut tos, mut ttl) = (Tos::Unsaid, None);
    for (open, close) in [("[", "]"), ("(", ")")] {
        if cursor.take(open) {
            loop {
                if cursor.take_word("ttl") {
                    ttl = Some(cursor.number()?);
                } else {
                    tos = ip_mark(cursor)?;
                }
                if !cursor.take(",") {
                    break;
                }
            }
            cursor.expect(close)?;
        }
    }
    let body =
        if cursor.take_word("icmp") { Body::Icmp(icmp(cursor)?) } else { Body::Tcp(tcp(cursor)?) };
    Ok(PacketSpec { inbound, tos, ttl, body })
}

fn ip_mark(cursor: &mut Cursor<'_>) -> Parse<Tos> {
    let start = cursor.clone();
    Ok(match cursor.word()? {
        "noecn" => Tos::Ecn(0),
        "ect1" => Tos::Ecn(1),
        "ect0" => Tos::Ecn(2),
        "ce" => Tos::Ecn(3),
        "ect01" => Tos::EitherEct,
        "tos" => Tos::Byte(cursor.number()?),
        _ => return start.error("expected a mark of ECN, `tos` or `ttl`"),
    })
}

fn tcp(cursor: &mut Cursor<'_>) -> Parse<TcpSpec> {
    let mut ports = None;
    if cursor.sees_number() {
        let source = cursor.number()?;
        cursor.expect(">")?;
        ports = Some((source, cursor.number()?));
    }
    let start = cursor.clone();
    let letters = cursor.while_in(|c| !c.is_whitespace());
    let mut flags = 0;
    for letter in letters.chars().filter(|letter| *letter != '-') {
        match FLAGS.iter().find(|(known, _)| *known == letter) {
            Some((_, bit)) => flags |= bit,
            None => return start.error("expected control bits"),
        }
    }
    let (seq, len) = range(cursor)?;
    let mut spec = TcpSpec {
        ports,
        flags,
        seq,
        len,
        ack: None,
        window: None,
        urgent: 0,
        options: Some(Vec::new()),
    };
    if cursor.take_word("ack") {
        spec.ack = Some(cursor.number()?);
    }
    if cursor.take_word("win") {
        spec.window = Some(cursor.number()?);
    }
    if cursor.take_word("urg") {
        spec.urgent = cursor.number()?;
    }
    if cursor.take("<") {
        if cursor.take("...") {
            spec.options = None;
            cursor.expect(">")?;
        } else {
            spec.options = Some(options(cursor)?);
        }
    }
    Ok(spec)
}

/// `first:end(bytes)`
fn range(cursor: &mut Cursor<'_>) -> Parse<(u32, u32)> {
    let start = cursor.clone();
    let first: u32 = cursor.number()?;
    cursor.expect(":")?;
    let end: u32 = cursor.number()?;
    cursor.expect("(")?;
    let len: u32 = cursor.number()?;
    cursor.expect(")")?;
    if end.wrapping_sub(first) != len {
        return start.error("the two sequence numbers are not as far apart as the length says");
    }
    Ok((first, len))
}

fn options(cursor: &mut Cursor<'_>) -> Parse<Vec<TcpOption>> {
    let mut list = Vec::new();
    loop {
        let start = cursor.clone();
        list.push(match cursor.word()? {
            "eol" => TcpOption::End,
            "nop" => TcpOption::Nop,
            "mss" => TcpOption::Mss(cursor.number()?),
            "wscale" => TcpOption::WindowScale(cursor.number()?),
            "sackOK" => TcpOption::SackOk,
            "sack" => {
                let mut blocks = Vec::new();
                while cursor.sees_number() {
                    let left = cursor.number()?;
                    cursor.expect(":")?;
                    blocks.push((left, cursor.number()?));
                }
                TcpOption::Sack(blocks)
            }
            "TS" => {
                cursor.expect("val")?;
                let value = cursor.number()?;
                cursor.expect("ecr")?;
                TcpOption::Timestamp { value, echo: cursor.number()? }
            }
            "FO" => TcpOption::Other(34, hex(cursor)?),
            "md5" => TcpOption::Other(19, hex(cursor)?),
            _ => return start.error("expected a TCP option"),
        });
        if cursor.take(">") {
            return Ok(list);
        }
        cursor.expect(",")?;
    }
}

/// Bytes in hexadecimal.
fn hex(cursor: &mut Cursor<'_>) -> Parse<Vec<u8>> {
    let start = cursor.clone();
    let digits = cursor.while_in(|c| c.is_ascii_hexdigit());
    let bytes: Option<Vec<u8>> = digits
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    match bytes {
        Some(bytes) if digits.len().is_multiple_of(2) => Ok(bytes),
        _ => start.error("expected bytes in hexadecimal"),
    }
}

fn icmp(cursor: &mut Cursor<'_>) -> Parse<IcmpSpec> {
    let start = cursor.clone();
    let kind = cursor.word()?;
    let mut spec = IcmpSpec { kind: 3, code: 0, mtu: 0, seq: 0, len: 0 };
    match kind {
        "unreachable" => {
            let code = cursor.word()?;
            match UNREACHABLE.iter().find(|(name, _)| *name == code) {
                Some((_, code)) => spec.code = *code,
                None => return start.error("expected a code of `unreachable`"),
            }
        }
        "source_quench" => spec.kind = 4,
        "time_exceeded" => {
            spec.kind = 11;
            cursor.take_word("exc_ttl");
        }
        _ => return start.error("expected `unreachable`, `source_quench` or `time_exceeded`"),
    }
    if cursor.take_word("mtu") {
        spec.mtu = cursor.number()?;
    }
    if cursor.take("[") {
        (spec.seq, spec.len) = range(cursor)?;
        cursor.expect("]")?;
    }
    Ok(spec)
}
