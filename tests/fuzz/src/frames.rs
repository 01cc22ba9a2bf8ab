//! Frames into a living shard: one with established connections both ways, a listener, a UDP socket,
//! and applications that do as the input says.
//!
//! Every byte that a peer sends tells by its sequence number what it is, and every byte that the
//! applications send by its place in the stream; so whatever order, overlap and damage an input makes
//! of segments, what is read and what is sent can be checked byte by byte.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4};
use std::task::{Context, Poll, Waker};

use arbitrary::{Arbitrary, Unstructured};
use millstream_buf::{Arena, ArenaConfig, HugePages};
use millstream_core::{
    ConnectError, Ipv4Config, Ipv6Config, JoinHandle, Limits, Shard, ShardConfig, TcpListener,
    TcpStream, UdpSocket,
};
use millstream_disk::{File, MemDisk};
use millstream_link::mem::{MemConfig, MemLink, pair};
use millstream_timer::VirtualClock;
use millstream_wire::tcp::Flags;
use millstream_wire::{icmpv4, ipv4, udp};

use crate::input::{Near, Span, byte_at, bytes_at};
use crate::peer::{
    FLOWS_MAX, Flow, Ipv4Packet, OUR_MAC, OURS, OURS_V6, Peer, Segment, THEIRS, THEIRS_V6,
    ipv6_packet, segment_bytes,
};

const ECHO_PORT: u16 = 80;
const V6_PORT: u16 = 81;
const UDP_PORT: u16 = 53;
const PEER_PORT: u16 = 7;
/// Turns in which the shard must have come to rest.
const TURNS_MAX: usize = 2_000;
/// Frames that it may send meanwhile: all windows at once, and answers to all frames that came.
const FRAMES_MAX: usize = 4_000;
/// Bytes that an application sends in all.
const STREAM_MAX: usize = 1 << 20;
/// When everything has been let go, each connection's record is gone after this: fifteen
/// retransmissions, or a FIN-WAIT-2, and a TIME-WAIT.
const END_US: u64 = 7_200_000_000;

#[derive(Arbitrary, Debug)]
enum Op {
    /// What a peer in its senses sends: data in order and an ACK.
    Data(u8, u16),
    Ack(u8),
    Fin(u8),
    /// A segment that may be wrong in every field.
    Segment {
        flow: u8,
        seq: Near,
        ack: Near,
        flags: u8,
        window: u16,
        urgent: u16,
        stamp: Near,
        echo: Near,
        sack: Option<[(Near, Near); 2]>,
        raw_options: Option<[u8; 12]>,
        len: u16,
        damage: Option<(u8, u8)>,
    },
    Syn {
        flow: u8,
        port: Option<u16>,
        isn: u32,
        flags: u8,
        options: [u8; 20],
    },
    Stranger {
        src: u32,
        ports: (u16, u16),
        flags: u8,
        seq: u32,
        ack: u32,
    },
    Udp {
        port: Option<u16>,
        from: u16,
        len: u8,
        lie: Option<u16>,
        no_checksum: bool,
    },
    Icmp {
        kind: u8,
        code: u8,
        rest: u32,
        flow: Option<u8>,
        seq: Near,
        cut: u8,
        raw: [u8; 8],
    },
    Arp {
        raw: [u8; 28],
        like_a_reply: bool,
    },
    Ipv4 {
        src: u32,
        dst: Option<u32>,
        protocol: u8,
        fragment: u16,
        options: [u8; 12],
        len: u8,
    },
    /// Anything in an IPv6 packet, behind extension headers of which the types are right.
    Ipv6 {
        from: u8,
        to: u8,
        extensions: Vec<(u8, [u8; 7])>,
        protocol: u8,
        len: u8,
    },
    /// ICMPv6, neighbour discovery above all.
    Icmpv6 {
        from: u8,
        to: u8,
        kind: u8,
        code: u8,
        body: [u8; 44],
        option: Option<[u8; 8]>,
        hops: bool,
    },
    SegmentV6 {
        from: u8,
        port: u8,
        seq: Near,
        ack: Near,
        flags: u8,
        len: u8,
    },
    Ethernet {
        ethertype: u16,
        len: u8,
    },
    Wait(Span),
    Read(u8, u16),
    ReadBuf(u8),
    Write(u8, u16),
    SendFile(u8),
    Shutdown(u8),
    Abort(u8),
    DropStream(u8),
    NoDelay(u8, bool),
    Accept,
    Connect,
    UdpSend(u8),
    UdpReceive,
}

#[derive(Arbitrary, Debug)]
struct Setup {
    isn: [u32; 2],
    syn_options: Option<[u8; 20]>,
    recv_buffer: u16,
    send_buffer: u16,
    scarce: bool,
}

struct App {
    stream: TcpStream,
    /// Number of the next byte to be read; not known of connections that a mutated SYN opened.
    read_at: Option<u32>,
    written: usize,
}

struct World {
    clock: VirtualClock,
    shard: Shard<MemLink, VirtualClock>,
    peer: Peer,
    apps: Vec<App>,
    listener: Option<TcpListener>,
    listener_v6: Option<TcpListener>,
    udp: Option<UdpSocket>,
    connecting: Vec<JoinHandle<Result<TcpStream, ConnectError>>>,
    file: File,
}

/// Buffers of the link, in each direction.
fn slots(setup: &Setup) -> usize {
    if setup.scarce { 64 } else { 512 }
}

/// The options of a usual SYN: MSS 1460, SACK permitted, timestamps, window scale 7.
const SYN_OPTIONS: [u8; 20] = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];

impl World {
    fn new(setup: &Setup) -> Self {
        let clock = VirtualClock::new();
        let (theirs, ours) =
            pair(MemConfig { slots: slots(setup), ..MemConfig::default() }).expect("memory");
        let memory = ArenaConfig { frames: 256, blocks: 16, huge_pages: HugePages::Never };
        let arena = Arena::new(&memory).expect("memory");
        let limits = Limits {
            connections: 16,
            channel_packets: 128,
            connection_packets: 64,
            socket_packets: 64,
            slices: 512,
            tasks: 16,
            sleepers: 16,
            ..Limits::default()
        };
        let ipv4 = Ipv4Config { address: OURS, prefix_len: 24, gateway: None };
        let mut config = ShardConfig { limits, secret: [7; 48], ..ShardConfig::new(ipv4) };
        let addresses = vec![(OURS_V6, 64)];
        config.ipv6 = Some(Ipv6Config { addresses, slaac: true, ..Ipv6Config::default() });
        config.tcp.recv_buffer_bytes = u32::from(setup.recv_buffer).max(100);
        config.tcp.send_buffer_bytes = u32::from(setup.send_buffer).max(100);
        let disk = Box::new(MemDisk::copying(32).expect("memory"));
        let shard = Shard::new(config, ours, clock.clone(), arena, disk);
        let stack = shard.stack().clone();
        let listener = stack.listen(SocketAddrV4::new(OURS, ECHO_PORT), 4).expect("a free port");
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), V6_PORT);
        let listener_v6 = Some(stack.listen(any, 4).expect("a free port"));
        let udp = Some(stack.udp_bind(UDP_PORT).expect("a free port"));
        let file = File::in_memory(bytes_at(0, 40_000));
        let (apps, connecting) = (Vec::new(), Vec::new());
        let listener = Some(listener);
        let peer = Peer::new(theirs);
        Self { clock, shard, peer, apps, listener, listener_v6, udp, connecting, file }
    }

    /// One connection that the peer opens, and one that the shard opens.
    fn open(&mut self, setup: &Setup) {
        self.peer.send_arp_reply();
        let flow = |our_port, their_port, snd_nxt| Flow {
            our_port,
            their_port,
            snd_nxt,
            ..Flow::default()
        };
        let options = setup.syn_options.unwrap_or(SYN_OPTIONS);
        self.peer.flows.push(flow(ECHO_PORT, 40_000, setup.isn[0]));
        self.peer.send_syn(0, Flags::empty(), &options);
        self.turn();
        self.peer.send_data(0, 0, Flags::empty());
        self.turn();
        self.accept();
        if let Some(app) = self.apps.last_mut() {
            app.read_at = Some(setup.isn[0].wrapping_add(1));
        }
        self.peer.next_isn = setup.isn[1];
        self.connect();
        // The shard asks who the peer is.
        self.turn();
        self.peer.send_arp_reply();
        self.turn();
        if self.peer.flows.len() > 1 {
            self.peer.send_syn(1, Flags::ACK, &options);
            self.turn();
        }
        if let Some(app) = self.apps.get_mut(1) {
            app.read_at = Some(setup.isn[1].wrapping_add(1));
        }
    }

    fn accept(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        let Some(listener) = &self.listener else { return };
        if self.apps.len() < 12
            && let Poll::Ready((stream, _)) = listener.poll_accept(&mut cx)
        {
            self.apps.push(App { stream, read_at: None, written: 0 });
        }
    }

    fn connect(&mut self) {
        if self.connecting.len() + self.apps.len() >= 12 {
            return;
        }
        let stack = self.shard.stack().clone();
        let task = async move { stack.connect(SocketAddrV4::new(THEIRS, PEER_PORT)).await };
        if let Ok(handle) = self.shard.stack().spawn(task) {
            self.connecting.push(handle);
        }
    }

    /// Lets the shard do all that there is to do at this moment.
    fn turn(&mut self) {
        let (mut frames, mut idle) = (0, 0);
        for _ in 0..TURNS_MAX {
            let work = self.shard.turn().work;
            let sent = self.peer.receive();
            frames += sent;
            assert!(frames < FRAMES_MAX, "frames without end");
            let metrics = self.shard.stack().rx_metrics();
            assert_eq!(metrics.unaccounted(), 0, "{metrics:?}");
            // A datagram that waits for its neighbour's address counts as work.
            idle = if work <= 1 && sent == 0 { idle + 1 } else { 0 };
            if work == 0 || idle == 4 {
                self.finish_connects();
                return;
            }
        }
        let stack = self.shard.stack();
        panic!("the shard does not come to rest: {:?} {:?}", stack.metrics(), stack.tcp_stats());
    }

    fn finish_connects(&mut self) {
        let (apps, room) = (&mut self.apps, 12);
        self.connecting.retain(|handle| match handle.take() {
            Some(Ok(stream)) if apps.len() < room => {
                apps.push(App { stream, read_at: None, written: 0 });
                false
            }
            Some(_) => false,
            None => true,
        });
    }

    /// Passes time, timer by timer.
    fn wait(&mut self, us: u64) {
        let until = millstream_timer::Clock::now(&self.clock).plus_micros(us);
        for _ in 0..20_000 {
            let next = self.shard.next_deadline();
            if next > until {
                self.clock.advance_to(until);
                return self.turn();
            }
            self.clock.advance_to(next);
            self.turn();
        }
        panic!("timers without end");
    }

    fn flow(&self, number: u8) -> usize {
        usize::from(number) % self.peer.flows.len()
    }

    fn with_app(&mut self, number: u8, call: impl FnOnce(&mut App, &mut Context<'_>)) {
        let count = self.apps.len();
        if let Some(app) = self.apps.get_mut(usize::from(number) % count.max(1)) {
            call(app, &mut Context::from_waker(Waker::noop()));
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Data(flow, len) => {
                let flow = self.flow(flow);
                self.peer.send_data(flow, usize::from(len) % 1449, Flags::PSH);
            }
            Op::Ack(flow) => {
                let flow = self.flow(flow);
                self.peer.send_data(flow, 0, Flags::empty());
            }
            Op::Fin(flow) => {
                let flow = self.flow(flow);
                self.peer.send_data(flow, 0, Flags::FIN);
            }
            Op::Segment { .. } => self.segment(op),
            Op::Syn { flow, port, isn, flags, options } => {
                self.syn(flow, port, isn, flags, options)
            }
            Op::Stranger { src, ports, flags, seq, ack } => {
                let segment = Segment {
                    seq,
                    ack,
                    flags: Flags::from_bits_retain(flags),
                    window: 100,
                    urgent: 0,
                    options: &[],
                    payload: &[],
                };
                let src = src.into();
                let bytes = segment_bytes(ports.0, ports.1, src, &segment);
                let packet = Ipv4Packet { src, ..Ipv4Packet::new(ipv4::Protocol::TCP, &bytes) };
                self.peer.send_ipv4(&packet, None);
            }
            Op::Udp { .. } => self.datagram(op),
            Op::Icmp { .. } => self.icmp(op),
            Op::Arp { mut raw, like_a_reply } => {
                if like_a_reply {
                    raw[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
                    raw[24..].copy_from_slice(&OURS.octets());
                }
                self.peer.send_ethernet(0x0806, &raw);
            }
            Op::Ipv4 { src, dst, protocol, fragment, options, len } => {
                let payload = bytes_at(0, usize::from(len));
                let packet = Ipv4Packet {
                    src: src.into(),
                    dst: dst.map_or(OURS, Into::into),
                    protocol,
                    fragment,
                    options: &options,
                    payload: &payload,
                };
                self.peer.send_ipv4(&packet, None);
            }
            Op::Ipv6 { .. } | Op::Icmpv6 { .. } | Op::SegmentV6 { .. } => self.ipv6(op),
            Op::Ethernet { ethertype, len } => {
                let payload = bytes_at(u32::from(ethertype), usize::from(len));
                self.peer.send_ethernet(ethertype, &payload);
            }
            Op::Wait(span) => self.wait(span.0),
            _ => self.application(op),
        }
        if self.peer.room() < 8 {
            self.turn();
        }
    }

    fn segment(&mut self, op: Op) {
        let Op::Segment {
            flow,
            seq,
            ack,
            flags,
            window,
            urgent,
            stamp,
            echo,
            sack,
            raw_options,
            len,
            damage,
        } = op
        else {
            return;
        };
        let flow = self.flow(flow);
        let mut options = self.peer.stamps(flow, stamp.0, echo.0);
        let state = &self.peer.flows[flow];
        let seq = state.snd_nxt.wrapping_add_signed(seq.0);
        if let Some(blocks) = sack {
            options.extend_from_slice(&[1, 1, 5, 18]);
            for (start, end) in blocks {
                options.extend(state.rcv_nxt.wrapping_add_signed(start.0).to_be_bytes());
                options.extend(state.rcv_nxt.wrapping_add_signed(end.0).to_be_bytes());
            }
        }
        if let Some(raw) = raw_options {
            options = raw.to_vec();
        }
        let payload = bytes_at(seq, usize::from(len) % 1461);
        let segment = Segment {
            seq,
            ack: state.rcv_nxt.wrapping_add_signed(ack.0),
            flags: Flags::from_bits_retain(flags),
            window,
            urgent,
            options: &options,
            payload: &payload,
        };
        self.peer.send_segment(flow, &segment, damage.filter(|(_, change)| *change != 0));
    }

    fn syn(&mut self, flow: u8, port: Option<u16>, isn: u32, flags: u8, options: [u8; 20]) {
        if let Some(port) = port
            && self.peer.flows.len() < FLOWS_MAX
        {
            let our_port = if port % 2 == 0 { ECHO_PORT } else { port };
            let fresh = Flow { our_port, their_port: port, ..Flow::default() };
            self.peer.flows.push(fresh);
        }
        let flow = if port.is_some() { self.peer.flows.len() - 1 } else { self.flow(flow) };
        let old = self.peer.flows[flow].snd_nxt;
        let seq = if port.is_some() { isn } else { old.wrapping_add_signed(isn as i16 as i32) };
        let segment = Segment {
            seq,
            ack: isn,
            flags: Flags::SYN | Flags::from_bits_retain(flags & 0xd8),
            window: 0x7fff,
            urgent: 0,
            options: &options,
            payload: &[],
        };
        self.peer.send_segment(flow, &segment, None);
        if port.is_some() {
            self.peer.flows[flow].snd_nxt = seq.wrapping_add(1);
        }
    }

    fn datagram(&mut self, op: Op) {
        let Op::Udp { port, from, len, lie, no_checksum } = op else { return };
        let payload = bytes_at(0, usize::from(len));
        let to = port.unwrap_or(UDP_PORT);
        let mut bytes = vec![0; udp::HEADER_LEN + payload.len()];
        let repr = udp::Repr { src_port: from, dst_port: to, payload_len: payload.len() as u16 };
        let mut sum = millstream_wire::checksum::Sum::new();
        sum.add_bytes(&payload);
        repr.emit(&mut bytes, THEIRS, OURS, sum);
        bytes[udp::HEADER_LEN..].copy_from_slice(&payload);
        if let Some(len) = lie {
            bytes[4..6].copy_from_slice(&len.to_be_bytes());
        }
        if no_checksum {
            bytes[6..8].fill(0);
        }
        self.peer.send_ipv4(&Ipv4Packet::new(ipv4::Protocol::UDP, &bytes), None);
    }

    /// A message that quotes a segment which the shard may have sent.
    fn icmp(&mut self, op: Op) {
        let Op::Icmp { kind, code, rest, flow, seq, cut, raw } = op else { return };
        let mut body = raw.to_vec();
        if let Some(flow) = flow {
            let flow = &self.peer.flows[self.flow(flow)];
            let repr = ipv4::Repr {
                tos: 0,
                ident: 0,
                dont_fragment: true,
                ttl: 64,
                protocol: ipv4::Protocol::TCP,
                src: OURS,
                dst: THEIRS,
                payload_len: 1000,
            };
            body = vec![0; ipv4::HEADER_LEN];
            repr.emit(&mut body);
            body.extend(flow.our_port.to_be_bytes());
            body.extend(flow.their_port.to_be_bytes());
            body.extend(flow.rcv_nxt.wrapping_add_signed(seq.0).to_be_bytes());
            body.truncate(body.len() - usize::from(cut % 32).min(body.len()));
        }
        // Mostly errors, and echoes.
        let kind = if kind < 128 { [3, 8, 11, 12][usize::from(kind) % 4] } else { kind };
        let mut bytes = vec![kind, code, 0, 0];
        bytes.extend(rest.to_be_bytes());
        bytes.extend(body);
        let sum = millstream_wire::checksum::checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        debug_assert!(bytes.len() >= icmpv4::HEADER_LEN);
        self.peer.send_ipv4(&Ipv4Packet::new(ipv4::Protocol::ICMP, &bytes), None);
    }

    fn ipv6(&mut self, op: Op) {
        let (routers, nodes) = (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), [THEIRS_V6, OURS_V6]);
        let source = |from: u8| match from % 8 {
            0 => Ipv6Addr::UNSPECIFIED,
            1 => nodes[1],
            2 | 3 => routers,
            4 => Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, from.into()),
            _ => nodes[0],
        };
        let target = |to: u8| match to % 8 {
            0 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
            1 => millstream_wire::ipv6::solicited_node(OURS_V6),
            2 => Ipv6Addr::from_bits(u128::from(to)),
            3 => millstream_wire::ipv6::link_local(millstream_wire::ipv6::interface_id(OUR_MAC)),
            _ => OURS_V6,
        };
        let packet = match op {
            Op::Ipv6 { from, to, extensions, protocol, len } => {
                let payload = bytes_at(0, usize::from(len));
                let kinds: Vec<u8> = extensions
                    .iter()
                    .take(10)
                    .map(|(kind, _)| [0, 43, 44, 60][usize::from(*kind) % 4])
                    .chain([protocol])
                    .collect();
                let mut bytes = Vec::new();
                for ((_, rest), next) in extensions.iter().zip(kinds.iter().skip(1)) {
                    bytes.push(*next);
                    bytes.extend_from_slice(rest);
                }
                let sum_at = match protocol {
                    6 => Some(16),
                    17 => Some(6),
                    58 => Some(2),
                    _ => None,
                };
                let upper = (protocol, &payload[..], sum_at);
                ipv6_packet((source(from), target(to)), kinds[0], &bytes, upper, 64)
            }
            Op::Icmpv6 { from, to, kind, code, body, option, hops } => {
                // Mostly what is known.
                let kind =
                    [1, 2, 3, 4, 128, 129, 133, 134, 135, 136, 137, kind][usize::from(kind) % 12];
                let mut payload = vec![kind, if code < 200 { 0 } else { code }, 0, 0];
                let fixed = match kind {
                    133 => 4,
                    134 => 12,
                    135 | 136 => 20,
                    137 => 36,
                    _ => body.len(),
                };
                payload.extend_from_slice(&body[..fixed]);
                if matches!(kind, 135..=137) && code < 128 {
                    payload[8..24].copy_from_slice(&target(to | 4).octets());
                }
                if let Some(mut option) = option {
                    option[0] %= 6;
                    option[1] = 1 + option[1] / 200;
                    payload.extend_from_slice(&option);
                }
                let upper = (58, &payload[..], Some(2));
                let hops = if hops { 255 } else { 64 };
                ipv6_packet((source(from), target(to)), 58, &[], upper, hops)
            }
            Op::SegmentV6 { from, port, seq, ack, flags, len } => {
                let payload = bytes_at(seq.0 as u32, usize::from(len));
                let segment = Segment {
                    seq: seq.0 as u32,
                    ack: ack.0 as u32,
                    flags: Flags::from_bits_retain(flags),
                    window: 1000,
                    urgent: 0,
                    options: &[],
                    payload: &payload,
                };
                let bytes = segment_bytes(u16::from(port) + 1, V6_PORT, THEIRS, &segment);
                let upper = (6, &bytes[..], Some(16));
                ipv6_packet((source(from), OURS_V6), 6, &[], upper, 64)
            }
            _ => return,
        };
        self.peer.send_ethernet(0x86dd, &packet);
    }

    fn application(&mut self, op: Op) {
        // What has arrived is looked at before the application acts.
        self.turn();
        match op {
            Op::Read(app, len) => self.with_app(app, |app, cx| {
                let mut out = vec![0; usize::from(len)];
                if let Poll::Ready(Ok(count)) = app.stream.poll_read(cx, &mut out) {
                    app.check(&out[..count]);
                }
            }),
            Op::ReadBuf(app) => self.with_app(app, |app, cx| {
                if let Poll::Ready(Ok(Some(buf))) = app.stream.poll_read_buf(cx) {
                    app.check(&buf);
                }
            }),
            Op::Write(app, len) => self.with_app(app, |app, cx| {
                let len = usize::from(len).min(STREAM_MAX - app.written);
                let bytes = bytes_at(app.written as u32, len);
                if let Poll::Ready(Ok(count)) = app.stream.poll_write(cx, &bytes) {
                    app.written += count;
                }
            }),
            Op::SendFile(number) => {
                // The file's bytes are those of the beginning of a stream.
                let file = self.file.clone();
                let count = self.apps.len();
                let at = usize::from(number) % count.max(1);
                if self.apps.get(at).is_some_and(|app| app.written == 0) {
                    let app = self.apps.swap_remove(at);
                    let task = async move {
                        let _ = app.stream.send_file(&file, 0..file.len()).await;
                    };
                    let _ = self.shard.stack().spawn(task);
                }
            }
            Op::Shutdown(app) => self.with_app(app, |app, _| app.stream.shutdown()),
            Op::Abort(app) => self.with_app(app, |app, _| app.stream.abort()),
            Op::NoDelay(app, on) => self.with_app(app, |app, _| app.stream.set_nodelay(on)),
            Op::DropStream(app) => {
                let count = self.apps.len();
                if let Some(at) = usize::from(app).checked_rem(count) {
                    self.apps.swap_remove(at);
                }
            }
            Op::Accept => self.accept(),
            Op::Connect => self.connect(),
            Op::UdpSend(len) => {
                let payload = bytes_at(0, usize::from(len) * 8);
                if let Some(udp) = &self.udp {
                    let _ = udp.send_to(&payload, SocketAddrV4::new(THEIRS, 9));
                }
            }
            Op::UdpReceive => {
                if let Some(udp) = &self.udp {
                    let _ = udp.poll_recv_from(&mut Context::from_waker(Waker::noop()));
                }
            }
            _ => {}
        }
        self.turn();
    }
}

impl App {
    fn check(&mut self, bytes: &[u8]) {
        let Some(at) = &mut self.read_at else { return };
        for byte in bytes {
            assert_eq!(*byte, byte_at(*at), "what is read differs");
            *at = at.wrapping_add(1);
        }
    }
}

/// Runs the script of an input.
pub fn run(input: &[u8]) {
    let mut u = Unstructured::new(input);
    let Ok(setup) = u.arbitrary::<Setup>() else { return };
    let mut world = World::new(&setup);
    world.open(&setup);
    while !u.is_empty() {
        let Ok(op) = u.arbitrary::<Op>() else { break };
        world.apply(op);
    }
    world.turn();
    // Everything is let go, and the peer has gone away: nothing may stay.
    world.apps.clear();
    world.listener = None;
    world.listener_v6 = None;
    world.udp = None;
    world.wait(END_US);
    world.connecting.clear();
    world.apps.clear();
    world.wait(END_US);
    let stack = world.shard.stack();
    assert_eq!(stack.connections(), 0, "a connection stays for ever");
    assert_eq!(world.peer.room(), slots(&setup), "received frames are missing");
    let stats = stack.arena_stats();
    assert!(stats.frames.0 - stats.frames.1 <= 1, "frames are missing: {stats:?}");
    assert!(stats.blocks.0 - stats.blocks.1 <= 1, "blocks are missing: {stats:?}");
}
