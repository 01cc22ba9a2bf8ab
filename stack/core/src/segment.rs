//! Segments of connections: from the channel into TCP.

use millstream_tcp::{Events, State as TcpState};
use millstream_wire::checksum::Sum;
use millstream_wire::ipv4::Protocol;
use millstream_wire::tcp::{Flags, Header, SeqNumber};

use crate::channel::Packet;
use crate::conn::{Conn, NONE};
use crate::flow::FlowKey;
use crate::state::{State, env};

impl State {
    /// Runs TCP on all that waits in a connection's channel.
    #[inline]
    pub fn serve_conn(&mut self, number: u32) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        let mut channel = std::mem::take(&mut conn.channel);
        let mut events = Events::empty();
        while let Some(packet) = self.channels.pop(&mut channel) {
            if self.check_segment(&packet) {
                events |= self.conn_input(number, &packet);
            }
        }
        self.after_events(number, events);
    }

    /// Verifies the checksum of a TCP segment, unless the NIC has. Counts a wrong one.
    #[inline]
    pub fn check_segment(&mut self, packet: &Packet) -> bool {
        if packet.checksum_good {
            return true;
        }
        let l4 = packet.l4();
        let (src, dst) = packet.ipv4_addresses();
        let mut sum = Sum::ipv4_pseudo(src, dst, Protocol::TCP.0, l4.len() as u16);
        sum.add_bytes(l4);
        let good = sum.finish() == 0;
        if !good {
            self.rx.drop_l4_checksum += 1;
        }
        good
    }

    /// Runs TCP on one segment, whose checksum is right.
    #[inline]
    pub fn conn_input(&mut self, number: u32, packet: &Packet) -> Events {
        let l4 = packet.l4();
        let Ok((header, header_len)) = Header::parse(l4) else {
            self.rx.drop_malformed += 1;
            return Events::empty();
        };
        let Some(conn) = self.conns.get_mut(number) else {
            self.rx.drop_socket_closed += 1;
            return Events::empty();
        };
        if header.flags.contains(Flags::SYN)
            && conn.tcb.state() == TcpState::TimeWait
            && may_reopen(conn, &header)
        {
            return self.reopen(number, packet, &header, header_len);
        }
        let payload = (l4.len() > header_len).then(|| {
            let start = usize::from(packet.l4_offset) + header_len;
            packet.frame.slice(start..usize::from(packet.end))
        });
        self.rx.delivered_tcp += 1;
        conn.tcb.input(&mut env!(self), &header, payload)
    }

    /// Forgets a connection in TIME_WAIT and treats the SYN as the first of a new one.
    #[cold]
    fn reopen(
        &mut self,
        number: u32,
        packet: &Packet,
        header: &Header<'_>,
        header_len: usize,
    ) -> Events {
        let Some(key) = self.conns.get(number).map(|conn| conn.key) else { return Events::empty() };
        self.conn_closed(number);
        let listener = self.listener_ports[usize::from(key.local_port())];
        match listener.checked_sub(1) {
            Some(listener) => self.open_passively(u32::from(listener), packet, header, &key),
            None => self.refuse(packet, header, header_len, &key),
        }
        Events::empty()
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

/// Whether a SYN may open anew a connection that is in TIME_WAIT: its sequence number is beyond all
/// that the old one used (RFC 9293 section 3.10.7.4, RFC 1122 section 4.2.2.13).
#[cold]
fn may_reopen(conn: &Conn, header: &Header<'_>) -> bool {
    conn.listener != NONE
        && !header.flags.intersects(Flags::ACK | Flags::RST)
        && (header.seq.0.wrapping_sub(conn.tcb.rcv_nxt().0) as i32) > 0
}
