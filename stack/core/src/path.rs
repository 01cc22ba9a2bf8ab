//! What routers and hosts on the path report of a flow: errors and limits, once it is proved that
//! they saw a packet of it.

use std::net::IpAddr;

use millstream_tcp::Unreachable;
use millstream_wire::ipv4::Protocol;
use millstream_wire::tcp::{self, SeqNumber};
use millstream_wire::{icmpv4, icmpv6, ipv4, ipv6};

use crate::conn::ConnId;
use crate::flow::FlowKey;
use crate::pairs::pair_bytes;
use crate::pmtu::{TRIAL_NANOS, Trial, announced_mtu};
use crate::state::{State, env};

impl State {
    /// The flow and the sequence number of the TCP segment of ours that an ICMP error quotes.
    pub fn quoted_flow_v4(
        &self,
        message: &icmpv4::Message<'_>,
    ) -> Option<(FlowKey, SeqNumber, u16)> {
        let quote = message.quote()?;
        let ours = quote.src() == self.station.ipv4.address;
        if !ours || quote.header.protocol != Protocol::TCP {
            return None;
        }
        let key = FlowKey::new(quote.src(), quote.src_port(), quote.dst(), quote.dst_port());
        Some((key, SeqNumber(quote.tcp_seq()), quote.header.total_len))
    }

    /// As [`Self::quoted_flow_v4`], of an ICMPv6 error.
    pub fn quoted_flow_v6(&self, message: &icmpv6::Message<'_>) -> Option<(FlowKey, SeqNumber)> {
        let quote = message.quote()?;
        if quote.protocol != Protocol::TCP {
            return None;
        }
        let pair = self.pairs.find(&pair_bytes(quote.src, quote.dst))?;
        // What we sent has our port first, a key the peer's.
        let [a, b, c, d, seq @ ..] = quote.transport;
        Some((FlowKey::of_pair(pair, &[c, d, a, b]), SeqNumber(u32::from_be_bytes(seq))))
    }

    /// Tells a connection that a packet of its was not delivered.
    pub fn flow_unreachable(&mut self, key: &FlowKey, seq: SeqNumber, hard: bool) -> bool {
        let Some(number) = self.find_conn(key) else { return false };
        let Some(conn) = self.conns.get_mut(number) else { return false };
        let kind = if hard { Unreachable::Hard } else { Unreachable::Soft };
        let events = conn.tcb.icmp_unreachable(&mut env!(self), seq, kind);
        self.after_events(number, events);
        true
    }

    /// A router says that a packet of a connection was too big, and what would have passed
    /// (`announced`, 0: it does not say). Believed only if the segment is under way (RFC 5927
    /// section 7, RFC 8201 section 4).
    pub fn packet_too_big(
        &mut self,
        key: &FlowKey,
        seq: SeqNumber,
        announced: u32,
        packet_len: Option<u16>,
    ) -> bool {
        let Some(number) = self.find_conn(key) else { return false };
        let (_, remote) = self.endpoints(key);
        let Some(mtu) = announced_mtu(remote.ip(), announced, packet_len) else { return false };
        let Some(conn) = self.conns.get_mut(number) else { return false };
        if !conn.tcb.is_in_flight(seq) || mtu >= self.capabilities.mtu {
            return false;
        }
        let most = conn.tcb.segment_most().saturating_add(headers_len(key));
        let lowered = self.path_mtus.lower(remote.ip(), mtu, most, true, self.now);
        self.metrics.path_mtu_lowered += u64::from(lowered);
        let limit = mtu.saturating_sub(headers_len(key));
        let events = conn.tcb.limit_segments(&mut env!(self), limit);
        self.after_events(number, events);
        true
    }

    /// A connection found out that its path swallows large packets, which it had sent with up to `most`
    /// bytes of payload and options: the next ones to the same host need not.
    #[cold]
    pub fn note_black_hole(&mut self, number: u32, most: u16) {
        let Some(conn) = self.conns.get(number) else { return };
        let headers = headers_len(&conn.key);
        let mtu = conn.tcb.segment_limit().saturating_add(headers);
        let (_, remote) = self.endpoints(&conn.key);
        let most = most.saturating_add(headers);
        self.path_mtus.lower(remote.ip(), mtu, most, false, self.now);
    }

    /// Now and then for each connection that sends: whether its path carries more than was thought (RFC
    /// 4821 section 7). One connection tries, and all to the same host know.
    #[cold]
    pub fn search_path(&mut self, number: u32) {
        let Some(conn) = self.conns.get(number) else { return };
        let (key, headers) = (conn.key, headers_len(&conn.key));
        let who = ConnId { number, generation: conn.generation };
        let (_, remote) = self.endpoints(&key);
        let (remote, now) = (remote.ip(), self.now);
        if let Some(trial) = self.path_mtus.trial() {
            let passed = match self.conns.named(trial.who) {
                None => None,
                Some(conn) => {
                    let limit = conn.tcb.segment_limit() + headers_len(&conn.key);
                    if limit >= trial.mtu {
                        Some(true)
                    } else if self.tcp_stats.larger_lost != trial.lost_before {
                        Some(false)
                    } else if conn.tcb.is_trying(&self.slices) && now < trial.until {
                        return;
                    } else {
                        None
                    }
                }
            };
            self.path_mtus.end_trial(passed, now);
        }
        let known = self.path_mtus.known(remote);
        let next = self.path_mtus.next_trial(remote, now);
        let link = if key.is_ipv6() { self.mtu_v6() as u16 } else { self.capabilities.mtu };
        let Some(conn) = self.conns.get_mut(number) else { return };
        if let Some(known) = known {
            conn.tcb.raise_segments(known.min(link).saturating_sub(headers));
        }
        if let Some(mtu) = next.filter(|mtu| *mtu <= link)
            && conn.tcb.segment_most() == conn.tcb.segment_limit()
            && conn.tcb.try_segments(&mut env!(self), mtu.saturating_sub(headers))
        {
            let lost_before = self.tcp_stats.larger_lost;
            let until = now.plus_nanos(TRIAL_NANOS);
            let trial = Trial { destination: remote, who, mtu, lost_before, until };
            self.path_mtus.begin_trial(trial);
        }
    }

    /// The largest packet that is known to reach a host.
    pub fn packet_max(&self, to: IpAddr) -> u16 {
        let link = if to.is_ipv6() { self.mtu_v6() as u16 } else { self.capabilities.mtu };
        self.path_mtus.get(to, self.now).map_or(link, |path| link.min(path))
    }

    /// Payload and options that fit the packets of a connection: the link's limit, or the path's
    /// where that is known (RFC 9293 section 3.7.1: options are not counted).
    pub fn mss(&self, key: &FlowKey) -> u16 {
        let (_, remote) = self.endpoints(key);
        self.packet_max(remote.ip()).saturating_sub(headers_len(key)).max(64)
    }
}

/// Bytes of the headers of a connection's segments, without options.
fn headers_len(key: &FlowKey) -> u16 {
    (if key.is_ipv6() { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN } + tcp::HEADER_LEN) as u16
}
