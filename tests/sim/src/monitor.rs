//! What every frame on the wire must obey, whoever sent it. It sees frames as they leave, and knows
//! nothing of either end's mind.

use std::collections::HashMap;

use millstream_sim::{Direction, Fate};
use millstream_timer::Instant;
use millstream_wire::tcp::{Flags, Header, SeqNumber};

/// Where TCP begins in a frame without VLAN tags or IP options.
const TCP_OFFSET: usize = 34;
/// Breaches that are kept.
const BREACHES_MAX: usize = 8;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Half {
    /// Number of its SYN, when that was seen.
    syn: Option<SeqNumber>,
    /// Behind the highest number sent.
    sent_end: SeqNumber,
    fin: Option<SeqNumber>,
    reset: bool,
    /// The highest number that it has acknowledged.
    ack: Option<SeqNumber>,
    /// Behind the highest number that it has allowed.
    edge: Option<SeqNumber>,
    scales: bool,
    scale: u8,
    mss: u16,
    tsval: Option<u32>,
    /// Segments of data.
    pub data_segments: u64,
    /// Payload bytes sent, each as often as it was.
    pub data_bytes: u64,
    /// Payload bytes that had been sent before.
    pub again_bytes: u64,
    /// Payload bytes that the link dropped on the spot.
    pub lost_bytes: u64,
    /// When it last sent anything.
    pub last_at: Instant,
}

/// A connection, by the client's port.
#[derive(Clone, Copy, Debug, Default)]
pub struct Both {
    /// From the client.
    pub client: Half,
    /// From the server.
    pub server: Half,
}

/// Looks at each frame.
#[derive(Debug)]
pub struct Monitor {
    server_port: u16,
    connections: HashMap<u16, Both>,
    breaches: Vec<String>,
    /// Client ports whose client, or server, has sent new data since the list was last taken.
    pub fresh: Vec<(u16, Direction)>,
    /// Frames seen.
    pub frames: u64,
    /// Whether to print them.
    pub print: bool,
}

impl Monitor {
    /// For connections to one port.
    pub fn new(server_port: u16) -> Self {
        Self {
            server_port,
            connections: HashMap::new(),
            breaches: Vec::new(),
            fresh: Vec::new(),
            frames: 0,
            print: false,
        }
    }

    /// What is known of a connection.
    pub fn get(&self, port: u16) -> Option<&Both> {
        self.connections.get(&port)
    }

    /// All connections.
    pub fn connections(&self) -> impl Iterator<Item = &Both> {
        self.connections.values()
    }

    /// The first thing that was wrong.
    pub fn breach(&self) -> Option<&str> {
        self.breaches.first().map(String::as_str)
    }

    /// A host was restarted: it knows nothing of its connections.
    pub fn forget(&mut self) {
        for both in self.connections.values_mut() {
            for half in [&mut both.client, &mut both.server] {
                *half = Half { last_at: half.last_at, ..Half::default() };
            }
        }
    }

    fn report(&mut self, now: Instant, port: u16, direction: Direction, what: String) {
        if self.breaches.len() < BREACHES_MAX {
            let at = now.as_nanos() as f64 / 1e9;
            self.breaches.push(format!("at {at:.6} s port {port} {direction:?}: {what}"));
        }
    }

    /// A frame leaves.
    pub fn see(&mut self, now: Instant, direction: Direction, fate: Fate, frame: &[u8]) {
        self.frames += 1;
        if frame.get(12..14) != Some(&[8, 0]) || frame.get(23) != Some(&6) {
            return;
        }
        let total = frame.get(16..18).map_or(0, |len| u16::from_be_bytes([len[0], len[1]]));
        let end = 14 + usize::from(total);
        let Some(segment) = frame.get(TCP_OFFSET..end) else {
            return self.report(now, 0, direction, "an IP packet longer than its frame".into());
        };
        let Ok((header, header_len)) = Header::parse(segment) else {
            return self.report(now, 0, direction, "a TCP header that cannot be parsed".into());
        };
        let len = (segment.len() - header_len) as u32;
        if self.print {
            let way = if direction == Direction::AToB { '>' } else { '<' };
            println!(
                "{:.6} {way} {}-{} seq {} ack {} len {len} win {} {:?} {:?} {fate:?}",
                now.as_nanos() as f64 / 1e9,
                header.src_port,
                header.dst_port,
                header.seq.0,
                header.ack.0,
                header.window,
                header.flags,
                header.sack_blocks().as_slice(),
            );
        }
        let port = if direction == Direction::AToB { header.src_port } else { header.dst_port };
        let server_port =
            if direction == Direction::AToB { header.dst_port } else { header.src_port };
        if server_port != self.server_port {
            return self.report(
                now,
                port,
                direction,
                format!("a port {server_port} out of nowhere"),
            );
        }
        let both = self.connections.entry(port).or_default();
        let mut before = *both;
        let (sender, peer) = match direction {
            Direction::AToB => (&mut before.client, &mut before.server),
            Direction::BToA => (&mut before.server, &mut before.client),
        };
        let fresh = sender.data_segments;
        let again = sender.again_bytes;
        let verdict = check(sender, peer, &header, len, now, direction);
        if fate != Fate::Sent {
            sender.lost_bytes += u64::from(len);
        }
        if sender.data_segments != fresh && sender.again_bytes == again {
            self.fresh.push((port, direction));
        }
        *both = before;
        if let Err(what) = verdict {
            let what = format!(
                "{what} (seq {:?} ack {:?} len {len} {:?})",
                header.seq, header.ack, header.flags
            );
            self.report(now, port, direction, what);
        }
    }
}

/// Checks a segment against what its sender and the peer have sent before.
fn check(
    sender: &mut Half,
    peer: &mut Half,
    header: &Header<'_>,
    len: u32,
    now: Instant,
    direction: Direction,
) -> Result<(), &'static str> {
    let flags = header.flags;
    sender.last_at = now;
    if flags.contains(Flags::SYN) {
        if flags.intersects(Flags::FIN | Flags::RST) {
            return Err("a SYN with FIN or RST");
        }
        if len > 0 {
            return Err("a SYN with data");
        }
        if sender.syn != Some(header.seq) {
            if direction == Direction::AToB {
                // A new connection of this port.
                *peer = Half::default();
            }
            *sender = Half { syn: Some(header.seq), sent_end: header.seq + 1, ..Half::default() };
            sender.last_at = now;
            let options = header.syn_options();
            sender.scale = options.window_scale.unwrap_or(0).min(14);
            sender.mss = options.mss.unwrap_or(536);
            sender.tsval = options.timestamp.map(|timestamp| timestamp.value);
            if direction == Direction::BToA && options.window_scale.is_none() {
                // Scaling is for both or for none (RFC 7323 section 2.2).
                peer.scale = 0;
            }
            if direction == Direction::BToA && !peer.scales {
                sender.scale = 0;
            }
            sender.scales = options.window_scale.is_some();
        }
        if flags.contains(Flags::ACK) {
            sender.ack = Some(header.ack);
        }
        if sender.edge.is_none() && flags.contains(Flags::ACK) {
            sender.edge = Some(header.ack + u32::from(header.window));
        }
        return Ok(());
    }
    if flags.contains(Flags::RST) {
        sender.reset = true;
        return if len == 0 { Ok(()) } else { Err("a reset with data") };
    }
    let Some(_) = sender.syn else {
        // The SYN was before the monitor's time, or this host has forgotten the connection.
        return Ok(());
    };
    if !flags.contains(Flags::ACK) {
        return Err("a segment without ACK");
    }
    if let (Some(before), Some(timestamp)) = (sender.tsval, header.timestamp()) {
        if (timestamp.value.wrapping_sub(before) as i32) < 0 {
            return Err("a timestamp that goes back");
        }
        sender.tsval = Some(timestamp.value);
    }
    if peer.syn.is_some() {
        if header.ack.gt(peer.sent_end) {
            return Err("an acknowledgement of what was never sent");
        }
        if sender.ack.is_some_and(|before| header.ack.lt(before)) {
            return Err("an acknowledgement that goes back");
        }
        sender.ack = Some(header.ack);
        let edge = header.ack + (u32::from(header.window) << sender.scale);
        if sender.edge.is_some_and(|before| before.distance(edge) > (1 << sender.scale)) {
            return Err("a window edge that goes back");
        }
        sender.edge = Some(sender.edge.map_or(edge, |before| before.max(edge)));
    }
    let fin = flags.contains(Flags::FIN);
    let end = header.seq + len + u32::from(fin);
    if len > 0 || fin {
        if sender.reset {
            return Err("data after a reset");
        }
        let options_len = header.options.len() as u32;
        if len > 0 && peer.mss > 0 && len + options_len > u32::from(peer.mss).max(88) {
            return Err("more than the peer's MSS");
        }
        if header.seq.gt(sender.sent_end) {
            return Err("a gap in what is sent");
        }
        if sender.fin.is_some_and(|fin| (header.seq + len).gt(fin)) {
            return Err("data behind the FIN");
        }
        if let Some(edge) = peer.edge
            // A closed window is asked with one number beyond it (RFC 9293 section 3.8.6.1).
            && end.gt(edge + 1)
        {
            return Err("data beyond the peer's window");
        }
        if fin {
            sender.fin = Some(header.seq + len);
        }
        sender.data_segments += u64::from(len > 0);
        sender.data_bytes += u64::from(len);
        let new = end.distance(sender.sent_end).max(0) as u32;
        sender.again_bytes += u64::from(len - new.min(len));
        sender.sent_end = sender.sent_end.max(end);
    }
    Ok(())
}
