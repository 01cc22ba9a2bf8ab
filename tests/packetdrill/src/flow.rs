//! A connection as the script sees it, its packets injected and expected.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::packet::{TcpPacket, describe_options, icmp_error};
use crate::parse_packet::flag_letters;
use crate::player::{PORT, Player, REMOTE};
use crate::script::{Body, EventTime, IcmpSpec, PacketSpec, TcpOption, TcpSpec, Tos};

const FIN: u16 = 0x01;
const SYN: u16 = 0x02;
const PSH: u16 = 0x08;
const ACK: u16 = 0x10;
const CWR: u16 = 0x80;

/// How far a connection has come, in the eyes of the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A socket, no more.
    New,
    /// It listens.
    Listening,
    /// It connects; its SYN was not seen.
    Connecting,
    /// Its SYN was seen.
    SynSent,
    /// A SYN was injected.
    SynInjected,
    /// The answer to that was seen.
    SynAckSent,
    /// The handshake is done.
    Established,
}

/// A connection. In a script sequence numbers count from the initial ones.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub phase: Phase,
    pub descriptor: Option<i32>,
    local: (Ipv4Addr, u16),
    remote: (Ipv4Addr, u16),
    /// The stack's initial number, in the script and on the wire.
    script_local_isn: u32,
    local_isn: u32,
    remote_isn: u32,
    /// Timestamps of the script and what was on the wire in their place.
    timestamps: HashMap<u32, u32>,
    first_timestamp: Option<(u32, u32)>,
    /// Bytes that the application has written and read.
    pub written: u32,
    pub read: u32,
}

impl Flow {
    pub fn new(phase: Phase, descriptor: Option<i32>) -> Self {
        Self {
            phase,
            descriptor,
            local: (Ipv4Addr::UNSPECIFIED, 0),
            remote: (REMOTE, PORT),
            script_local_isn: 0,
            local_isn: 0,
            remote_isn: 0,
            timestamps: HashMap::new(),
            first_timestamp: None,
            written: 0,
            read: 0,
        }
    }

    /// From the stack's numbers in the script to those on the wire.
    fn local_offset(&self, syn: bool) -> u32 {
        if syn { self.local_isn.wrapping_sub(self.script_local_isn) } else { self.local_isn }
    }

    fn remote_offset(&self, syn: bool) -> u32 {
        if syn { 0 } else { self.remote_isn }
    }

    /// Numbers from the wire as the script has them.
    fn to_script(&self, packet: &mut TcpPacket) {
        let syn = packet.flags & SYN != 0;
        packet.seq = packet.seq.wrapping_sub(self.local_offset(syn));
        if packet.flags & ACK != 0 {
            packet.ack = packet.ack.wrapping_sub(self.remote_offset(syn));
        }
        let offset = 0u32.wrapping_sub(self.remote_offset(syn));
        move_sacks(&mut packet.options, offset);
    }
}

fn move_sacks(options: &mut [TcpOption], offset: u32) {
    for option in options {
        if let TcpOption::Sack(blocks) = option {
            for (left, right) in blocks {
                *left = left.wrapping_add(offset);
                *right = right.wrapping_add(offset);
            }
        }
    }
}

/// What stands at a place in a stream, so that a wrong place is seen.
pub(crate) fn stream_byte(at: u32) -> u8 {
    (at ^ at >> 8 ^ at >> 16).wrapping_mul(167) as u8
}

/// Bytes of a stream from a place on.
pub(crate) fn stream_bytes(at: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| stream_byte(at.wrapping_add(i))).collect()
}

impl Player {
    /// Injects a packet.
    pub(crate) fn inject(&mut self, spec: &PacketSpec) -> Result<(), String> {
        let packet = match &spec.body {
            Body::Tcp(tcp) => self.inbound_segment(spec, tcp)?.emit(),
            Body::Icmp(icmp) => self.inbound_error(icmp)?,
        };
        self.sockets.world().inject(&packet);
        Ok(())
    }

    fn inbound_segment(&mut self, spec: &PacketSpec, tcp: &TcpSpec) -> Result<TcpPacket, String> {
        let local = self.local();
        let listening = self.flow().is_none_or(|flow| flow.phase == Phase::Listening);
        if listening {
            let mut flow = Flow::new(Phase::SynInjected, None);
            flow.local = (*local.ip(), local.port());
            flow.remote = (REMOTE, self.next_remote_port);
            flow.remote_isn = tcp.seq;
            self.next_remote_port += 1;
            self.begin_flow(flow);
        }
        let Some(flow) = self.flow() else { return Err("no connection".into()) };
        let syn = tcp.flags & SYN != 0;
        match flow.phase {
            Phase::SynAckSent if tcp.flags & ACK != 0 => flow.phase = Phase::Established,
            Phase::SynSent if syn => {
                if tcp.flags & ACK != 0 {
                    flow.phase = Phase::Established;
                }
                flow.remote_isn = tcp.seq;
            }
            _ => {}
        }
        let mut options = tcp.options.clone().unwrap_or_default();
        let offset = flow.local_offset(syn);
        move_sacks(&mut options, offset);
        for option in &mut options {
            if let TcpOption::Timestamp { echo, .. } = option
                && tcp.flags & ACK != 0
            {
                *echo = match (flow.timestamps.get(echo), flow.first_timestamp) {
                    (Some(live), _) => *live,
                    (None, Some((script, live))) => echo.wrapping_sub(script).wrapping_add(live),
                    (None, None) => return Err(format!("no timestamp {echo} was sent")),
                };
            }
        }
        let (source_port, port) = tcp.ports.unwrap_or((flow.remote.1, flow.local.1));
        Ok(TcpPacket {
            source: (flow.remote.0, source_port),
            destination: (flow.local.0, port),
            tos: match spec.tos {
                Tos::Unsaid => 0,
                Tos::Ecn(bits) => bits,
                Tos::EitherEct => 2,
                Tos::Byte(byte) => byte,
            },
            ttl: spec.ttl.unwrap_or(255),
            seq: tcp.seq.wrapping_add(flow.remote_offset(syn)),
            ack: match tcp.ack {
                Some(ack) if tcp.flags & ACK != 0 => ack.wrapping_add(offset),
                _ => 0,
            },
            flags: tcp.flags,
            window: tcp.window.unwrap_or(0),
            urgent: tcp.urgent,
            options,
            payload: stream_bytes(tcp.seq.wrapping_sub(u32::from(!syn)), tcp.len as usize),
        })
    }

    fn inbound_error(&mut self, icmp: &IcmpSpec) -> Result<Vec<u8>, String> {
        let flow = self.flow().ok_or("no connection")?;
        let quoted = TcpPacket {
            source: flow.local,
            destination: flow.remote,
            tos: 0,
            ttl: 64,
            seq: icmp.seq.wrapping_add(flow.local_offset(flow.phase == Phase::SynSent)),
            ack: 0,
            flags: ACK,
            window: 0,
            urgent: 0,
            options: Vec::new(),
            payload: vec![0; icmp.len as usize],
        };
        let error = (icmp.kind, icmp.code, icmp.mtu);
        Ok(icmp_error(flow.remote.0, flow.local.0, error, &quoted))
    }

    /// Waits for a packet, and compares.
    pub(crate) fn expect(&mut self, spec: &PacketSpec, kind: EventTime) -> Result<(), String> {
        let Body::Tcp(tcp) = &spec.body else {
            return Err("only TCP segments can be expected".into());
        };
        let mut whole: Option<TcpPacket> = None;
        let mut moment;
        loop {
            let (at, segment) = self.outbound_segment(tcp, kind)?;
            moment = at;
            let segment_len = segment.payload.len();
            whole = Some(match whole {
                None => segment,
                Some(before) => join(before, segment, tcp)?,
            });
            let len = whole.as_ref().map_or(0, |whole| whole.payload.len());
            if len >= tcp.len as usize || segment_len == 0 {
                break;
            }
        }
        let Some(packet) = whole else { return Err("no packet".into()) };
        let due = self.due;
        let outcome = self
            .compare(spec, tcp, &packet)
            .and_then(|()| self.check_time(kind, due, moment, self.last_due(), "the packet"));
        outcome.map_err(|error| {
            format!(
                "{error}\n    expected {}\n    sent     {}",
                describe_spec(spec, tcp),
                describe(&packet)
            )
        })
    }

    /// The next segment of the flow under test, in the numbers of the script, and when it was sent.
    fn outbound_segment(
        &mut self,
        tcp: &TcpSpec,
        kind: EventTime,
    ) -> Result<(i64, TcpPacket), String> {
        loop {
            let (at, bytes) = self.next_packet(kind)?;
            let at = self.script_time(at);
            let Some(mut packet) = TcpPacket::parse(&bytes)? else { continue };
            let Some(flow) = self.flow() else { continue };
            match flow.phase {
                Phase::Connecting if packet.destination == flow.remote => {
                    flow.local = packet.source;
                    flow.local_isn = packet.seq;
                    flow.script_local_isn = tcp.seq;
                    flow.phase = Phase::SynSent;
                }
                _ if packet.destination != flow.remote || packet.source != flow.local => continue,
                Phase::SynInjected if packet.flags & (SYN | ACK) == SYN | ACK => {
                    flow.local_isn = packet.seq;
                    flow.script_local_isn = tcp.seq;
                    flow.phase = Phase::SynAckSent;
                }
                _ => {}
            }
            flow.to_script(&mut packet);
            return Ok((at, packet));
        }
    }

    fn compare(
        &mut self,
        spec: &PacketSpec,
        tcp: &TcpSpec,
        packet: &TcpPacket,
    ) -> Result<(), String> {
        let fits = match spec.tos {
            Tos::Unsaid => true,
            Tos::Ecn(bits) => packet.tos & 3 == bits,
            Tos::EitherEct => matches!(packet.tos & 3, 1 | 2),
            Tos::Byte(byte) => packet.tos == byte,
        };
        if !fits {
            return Err(format!("type of service is {:#04x}", packet.tos));
        }
        if spec.ttl.is_some_and(|ttl| ttl != packet.ttl) {
            return Err(format!("hop limit is {}", packet.ttl));
        }
        if packet.payload.len() != tcp.len as usize {
            return Err(format!("{} bytes of payload", packet.payload.len()));
        }
        if packet.flags != tcp.flags {
            return Err(format!("flags are {}", flag_letters(packet.flags)));
        }
        if packet.seq != tcp.seq {
            return Err(format!("sequence number is {}", packet.seq));
        }
        if packet.ack != tcp.ack.unwrap_or(0) {
            return Err(format!("acknowledgement is {}", packet.ack));
        }
        if tcp.window.is_some_and(|window| window != packet.window) {
            return Err(format!("window is {}", packet.window));
        }
        if packet.urgent != tcp.urgent {
            return Err(format!("urgent pointer is {}", packet.urgent));
        }
        let syn = packet.flags & SYN != 0;
        let at = packet.seq.wrapping_sub(u32::from(!syn));
        // What a reset or a keep-alive question carries is not the stream.
        if packet.payload != stream_bytes(at, packet.payload.len()) {
            return Err("the payload is not what was written".into());
        }
        match &tcp.options {
            Some(options) => self.compare_options(options, &packet.options),
            None => Ok(()),
        }
    }

    fn compare_options(&mut self, script: &[TcpOption], sent: &[TcpOption]) -> Result<(), String> {
        let tolerance = self.timestamp_tolerance_us();
        let tick = self.timestamp_tick_us;
        let flow = self.flow().ok_or("no connection")?;
        let same = script.len() == sent.len()
            && script.iter().zip(sent).all(|(script, sent)| match (script, sent) {
                (
                    TcpOption::Timestamp { value, echo },
                    TcpOption::Timestamp { value: live, echo: live_echo },
                ) => {
                    flow.timestamps.insert(*value, *live);
                    let first = *flow.first_timestamp.get_or_insert((*value, *live));
                    let mapped = live.wrapping_sub(first.1).wrapping_add(first.0);
                    let off = i64::from(mapped.wrapping_sub(*value) as i32).abs() * tick;
                    off <= tolerance && echo == live_echo
                }
                (script, sent) => script == sent,
            });
        if same { Ok(()) } else { Err(format!("options are <{}>", describe_options(sent))) }
    }
}

/// Two segments in a row as one, as a device gets them that cuts segments itself.
fn join(mut first: TcpPacket, next: TcpPacket, tcp: &TcpSpec) -> Result<TcpPacket, String> {
    // What may differ is what stands in the first only, or the last.
    let apart = FIN | PSH | CWR;
    let expected = first.seq.wrapping_add(first.payload.len() as u32);
    let same = next.seq == expected
        && next.ack == first.ack
        && next.window == first.window
        && next.flags & !apart == first.flags & !apart
        && next.options.len() == first.options.len()
        && !next.payload.is_empty();
    if !same {
        return Err(format!(
            "after {} of {} bytes came {}",
            first.payload.len(),
            tcp.len,
            describe(&next)
        ));
    }
    first.flags = next.flags & !CWR | first.flags & CWR;
    first.payload.extend(next.payload);
    Ok(first)
}

fn describe(packet: &TcpPacket) -> String {
    let end = packet.seq.wrapping_add(packet.payload.len() as u32);
    let flags = flag_letters(packet.flags);
    let mut text = format!("{flags} {}:{end}({})", packet.seq, packet.payload.len());
    if packet.flags & ACK != 0 {
        text += &format!(" ack {}", packet.ack);
    }
    format!("{text} win {} <{}>", packet.window, describe_options(&packet.options))
}

fn describe_spec(spec: &PacketSpec, tcp: &TcpSpec) -> String {
    let end = tcp.seq.wrapping_add(tcp.len);
    let mut text = format!("{} {}:{end}({})", flag_letters(tcp.flags), tcp.seq, tcp.len);
    if let Some(ack) = tcp.ack {
        text += &format!(" ack {ack}");
    }
    if let Some(window) = tcp.window {
        text += &format!(" win {window}");
    }
    if spec.tos != Tos::Unsaid {
        text += &format!(" {:?}", spec.tos);
    }
    let options = tcp.options.as_ref().map_or("...".into(), |options| describe_options(options));
    format!("{text} <{options}>")
}

impl Player {
    /// The flow that comes with a socket.
    pub(crate) fn new_flow(&mut self, descriptor: i32, phase: Phase, local: SocketAddrV4) {
        let mut flow = Flow::new(phase, Some(descriptor));
        flow.local = (*local.ip(), local.port());
        self.begin_flow(flow);
    }
}
