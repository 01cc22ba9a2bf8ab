//! Segments of connections: from the channel into TCP.

use millstream_tcp::Events;
use millstream_wire::checksum::Sum;
use millstream_wire::ipv4::Protocol;
use millstream_wire::tcp::{Flags, Header, SeqNumber};

use crate::channel::Packet;
use crate::conn::NONE;
use crate::flow::FlowKey;
use crate::state::{State, env};

impl State {
    /// Runs TCP on all that waits in a connection's channel.
    // Not inlined, nor is what sends: in a function of their own the shard's address stays in a
    // register.
    #[inline(never)]
    pub fn serve_conn(&mut self, number: u32) {
        let mut events = Events::empty();
        // Looked up for each packet: a SYN in TIME_WAIT puts a new connection in its place.
        'packets: while let Some(conn) = self.conns.get_mut(number) {
            conn.channel.scheduled = false;
            // Read where it lies. It was written a moment ago, word by word; to move it as a whole
            // the processor would wait until all of that has reached its cache.
            let Some(packet) = self.channels.front(&conn.channel) else { break };
            'packet: {
                let l4 = packet.l4();
                if !packet.checksum_good && !sums_up(conn.key.addresses(), l4) {
                    self.rx.drop_l4_checksum += 1;
                    break 'packet;
                }
                let Ok((header, header_len)) = Header::parse(l4) else {
                    self.rx.drop_malformed += 1;
                    break 'packet;
                };
                if header.flags.contains(Flags::SYN)
                    && conn.listener != NONE
                    && conn.tcb.may_be_reopened_by(&header)
                {
                    if let Some(packet) = self.channels.pop(&mut conn.channel) {
                        self.reopen(number, &packet);
                    }
                    // What happened to the old one does not concern the new one.
                    events = Events::empty();
                    continue 'packets;
                }
                let mut payload = (l4.len() > header_len).then(|| {
                    let start = usize::from(packet.l4_offset) + header_len;
                    packet.frame.slice(start..usize::from(packet.end))
                });
                if self.rx_scarce
                    && let Some(data) = &payload
                {
                    // What is kept must not keep the link's buffers.
                    let Some(copy) = self.staging_blocks.put_whole(data) else {
                        self.rx.drop_no_buffer += 1;
                        break 'packet;
                    };
                    self.metrics.copied_scarce_bytes += copy.len() as u64;
                    payload = Some(copy);
                }
                self.rx.delivered_tcp += 1;
                events |= conn.tcb.input(&mut env!(self), &header, payload);
            }
            self.channels.pop(&mut conn.channel);
            if conn.channel.is_empty() {
                break;
            }
        }
        self.after_events(number, events);
    }

    /// Verifies the checksum of a TCP segment, unless the NIC has. Counts a wrong one.
    pub fn check_segment(&mut self, packet: &Packet) -> bool {
        if packet.checksum_good {
            return true;
        }
        let (src, dst) = packet.ipv4_addresses();
        let key = FlowKey::new(dst, 0, src, 0);
        let good = sums_up(key.addresses(), packet.l4());
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
        self.conn_closed(number);
        let listener = self.listener_ports[usize::from(key.local_port())];
        match listener.checked_sub(1) {
            Some(listener) => self.open_passively(u32::from(listener), packet, &header, &key),
            None => self.refuse(packet, &header, header_len, &key),
        }
    }

    /// Initial sequence number and timestamp offset of a new connection (RFC 6528, RFC 7323 5.4).
    pub fn isn_for(&self, key: &FlowKey) -> (SeqNumber, u32) {
        let (local, remote) = (key.local_addr().into(), key.remote_addr().into());
        (self.isn.isn(self.now, local, remote), self.isn.ts_offset(local, remote))
    }

    /// Payload that fits the link (RFC 9293 section 3.7.1: options are not counted).
    pub fn mss(&self) -> u16 {
        self.capabilities.mtu.saturating_sub(40).max(64)
    }
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
