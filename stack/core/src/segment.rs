//! Segments of connections: from the channel into TCP.

use millstream_buf::IoBuf;
use millstream_link::{RxBurst, RxFrame};
use millstream_tcp::{Env, Events, Tcb};
use millstream_wire::checksum::Sum;
use millstream_wire::ipv4::Protocol;
use millstream_wire::tcp::{Flags, Header, SeqNumber};

use crate::channel::Packet;
use crate::conn::{Conn, NONE};
use crate::demux::{self, Class};
use crate::flow::FlowKey;
use crate::merge::Pattern;
use crate::state::{State, env};

/// What TCP has to do with a packet.
enum Taken {
    /// It was dealt with, or dropped and counted.
    Events(Events),
    /// It opens a new connection in the place of the one in TIME_WAIT.
    Reopens,
}

/// Runs TCP on a packet of `conn`. The shard comes field by field, since the packet may be borrowed
/// from one of them.
macro_rules! input_packet {
    ($state:expr, $conn:expr, $packet:expr, $input:path) => {
        'packet: {
            let (conn, packet): (&mut Conn, &Packet) = ($conn, $packet);
            let l4 = packet.l4();
            if !packet.checksum_good && !segment_sums_up(&conn.key, packet) {
                $state.rx.drop_l4_checksum += 1;
                break 'packet Taken::Events(Events::empty());
            }
            let Ok((header, header_len)) = Header::parse(l4) else {
                $state.rx.drop_malformed += 1;
                break 'packet Taken::Events(Events::empty());
            };
            if header.flags.contains(Flags::SYN)
                && conn.listener != NONE
                && conn.tcb.may_be_reopened_by(&header)
            {
                break 'packet Taken::Reopens;
            }
            let mut payload = (l4.len() > header_len).then(|| {
                let start = usize::from(packet.l4_offset) + header_len;
                packet.frame.slice(start..usize::from(packet.end))
            });
            if $state.rx_scarce
                && let Some(data) = &payload
            {
                // What is kept must not keep the link's buffers. What fills a gap sets some free.
                if let Some(copy) = $state.staging_blocks.put_whole(data) {
                    $state.metrics.copied_scarce_bytes += copy.len() as u64;
                    payload = Some(copy);
                } else if $state.rx_dire || !conn.tcb.fills_gap(&header) {
                    $state.rx.drop_no_buffer += 1;
                    break 'packet Taken::Events(Events::empty());
                }
            }
            if conn.tcb.uses_ecn() && packet.ecn() == millstream_tcp::CE {
                conn.tcb.note_ce();
            }
            $state.rx.delivered_tcp += 1;
            Taken::Events($input(&mut conn.tcb, &mut env!($state), &header, payload))
        }
    };
}

/// [`Tcb::input`] in a function of its own, for a loop around it.
#[inline(never)]
fn input_outlined(
    tcb: &mut Tcb,
    env: &mut Env<'_>,
    header: &Header<'_>,
    payload: Option<IoBuf>,
) -> Events {
    tcb.input(env, header, payload)
}

impl State {
    /// Serves a frame that came alone while nothing waits. For a connection that is what its channel
    /// and the list of the ready would come to, without the way through them.
    // Not inlined, nor is what sends: in a function of their own the shard's address stays in a
    // register.
    #[inline(never)]
    pub fn serve_lone(&mut self, frame: RxFrame) {
        self.rx.frames_in += 1;
        let (key, packet) = match demux::classify(&self.station, frame) {
            Ok((Class::Tcp(key), packet)) => (key, packet),
            other => {
                self.enqueue(other);
                return self.serve();
            }
        };
        let number = self.find_conn(&key);
        let Some(conn) = number.and_then(|number| self.conns.get_mut(number)) else {
            self.receive_tcp_unconnected(&key, packet);
            return self.serve();
        };
        let number = number.unwrap_or(NONE);
        match input_packet!(self, conn, &packet, Tcb::input) {
            Taken::Events(events) => {
                if conn.after_usual_events(&mut self.output, &mut self.wheel, number, events) {
                    self.after_more_events(number, events);
                }
            }
            Taken::Reopens => self.reopen(number, &packet),
        }
    }

    /// Serves a burst that came while nothing waits, as [`Self::serve_lone`] does a frame, as long as
    /// its frames are for one connection; the rest goes through the channels.
    #[inline(never)]
    pub fn serve_burst(&mut self, burst: &mut RxBurst) {
        let mut frames = burst.drain(..);
        let (mut events, mut whose) = (Events::empty(), None);
        let mut pattern = None;
        for mut frame in &mut frames {
            self.rx.frames_in += 1;
            if let Some(number) = whose
                && let Some(pattern) = &pattern
                && let Some((seq, data)) = Pattern::matches(pattern, &self.station, &frame)
                && let Some(conn) = self.conns.get_mut(number)
                && conn.tcb.takes_next(&env!(self), seq, data.len())
            {
                frame.buf.truncate(data.end);
                frame.buf.advance(data.start);
                conn.tcb.take_next(&mut env!(self), frame.buf);
                self.rx.delivered_tcp += 1;
                continue;
            }
            let classified = demux::classify(&self.station, frame);
            if let Ok((Class::Tcp(key), packet)) = &classified {
                let number = match whose {
                    None => self.find_conn(key),
                    Some(number) => Some(number),
                };
                if let Some(number) = number
                    && let Some(conn) = self.conns.get_mut(number)
                    && conn.key == *key
                {
                    whose = Some(number);
                    match input_packet!(self, conn, packet, input_outlined) {
                        Taken::Events(more) => {
                            events |= more;
                            let merges = more.contains(Events::READABLE) && !self.rx_scarce;
                            pattern = if merges { Pattern::of(packet) } else { None };
                        }
                        Taken::Reopens => {
                            self.reopen(number, packet);
                            (events, whose, pattern) = (Events::empty(), None, None);
                        }
                    }
                    continue;
                }
            }
            self.enqueue(classified);
            break;
        }
        if let Some(number) = whose {
            let wants = self.conns.get(number).is_some_and(|conn| conn.tcb.wants_transmit());
            events.set(Events::TRANSMIT, wants);
            self.after_events(number, events);
        }
        self.rx.frames_in += frames.len() as u64;
        for frame in frames {
            self.enqueue(demux::classify(&self.station, frame));
        }
        self.serve();
    }

    /// Runs TCP on all that waits in a connection's channel.
    #[inline(never)]
    pub fn serve_conn(&mut self, number: u32) {
        let mut events = Events::empty();
        // Looked up for each packet: a SYN in TIME_WAIT puts a new connection in its place.
        while let Some(conn) = self.conns.get_mut(number) {
            conn.channel.scheduled = false;
            // Read where it lies. It was written a moment ago, word by word; to move it as a whole
            // the processor would wait until all of that has reached its cache.
            let Some(packet) = self.channels.front(&conn.channel) else { break };
            match input_packet!(self, conn, packet, input_outlined) {
                Taken::Events(more) => {
                    events |= more;
                    self.channels.pop(&mut conn.channel);
                    if conn.channel.is_empty() {
                        break;
                    }
                }
                Taken::Reopens => {
                    if let Some(packet) = self.channels.pop(&mut conn.channel) {
                        self.reopen(number, &packet);
                    }
                    // What happened to the old one does not concern the new one.
                    events = Events::empty();
                }
            }
        }
        self.after_events(number, events);
    }

    /// Verifies the checksum of a TCP segment, unless the NIC has. Counts a wrong one.
    pub fn check_segment(&mut self, packet: &Packet) -> bool {
        if packet.checksum_good {
            return true;
        }
        let good = if packet.is_ipv6() {
            sums_up_v6(packet)
        } else {
            let (src, dst) = packet.ipv4_addresses();
            sums_up(FlowKey::new(dst, 0, src, 0).addresses(), packet.l4())
        };
        if !good {
            self.rx.drop_l4_checksum += 1;
        }
        good
    }

    /// Forgets a connection in TIME_WAIT and treats the SYN as the first of a new one.
    #[cold]
    fn reopen(&mut self, number: u32, packet: &Packet) {
        let Ok((header, header_len)) = Header::parse(packet.l4()) else { return };
        let Some(key) = self.conns.get(number).map(|conn| conn.key) else { return };
        let (usual, _) = self.isn_for(&key);
        let isn = self.conns.get(number).map(|conn| conn.tcb.isn_beyond(usual));
        self.retain_key(&key);
        self.wake_both(number);
        self.conn_closed(number);
        let listener = self.listener_of(packet, key.local_port());
        match listener.checked_sub(1) {
            Some(listener) => {
                self.open_passively(u32::from(listener), packet, &header, &key, isn);
            }
            None => self.refuse(packet, &header, header_len, &key),
        }
        self.release_key(&key);
    }

    /// Initial sequence number and timestamp offset of a new connection (RFC 6528, RFC 7323 5.4).
    pub fn isn_for(&self, key: &FlowKey) -> (SeqNumber, u32) {
        let (local, remote) = self.endpoints(key);
        (self.isn.isn(self.now, local, remote), self.isn.ts_offset(local, remote))
    }
}

/// Whether the checksum of a segment of a connection is right.
#[inline]
fn segment_sums_up(key: &FlowKey, packet: &Packet) -> bool {
    if key.is_ipv6() { sums_up_v6(packet) } else { sums_up(key.addresses(), packet.l4()) }
}

/// Whether the checksum of a segment over IPv6 is right.
#[inline(never)]
fn sums_up_v6(packet: &Packet) -> bool {
    let Some(pair) = packet.ipv6_pair() else { return false };
    let mut sum = Sum::new();
    sum.add_bytes(pair);
    sum.add_u32(packet.l4().len() as u32);
    sum.add_u32(u32::from(Protocol::TCP.0));
    sum.add_bytes(packet.l4());
    sum.finish() == 0
}

/// Whether the checksum of a segment between two addresses, as they lie in the IP header, is right.
#[inline]
fn sums_up(addresses: [u8; 8], l4: &[u8]) -> bool {
    let mut sum = Sum::new();
    sum.add_bytes(&addresses);
    sum.add_u32(u32::from(Protocol::TCP.0) << 16 | l4.len() as u32);
    sum.add_bytes(l4);
    sum.finish() == 0
}
