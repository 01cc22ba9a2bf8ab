//! Packets out: TCP's segments, and the few that are not TCP's.

use std::net::{IpAddr, Ipv4Addr};

use arrayvec::ArrayVec;
use millstream_buf::IoBuf;
use millstream_link::{HEADER_MAX, Link, TxError, TxFrame, TxOffload};
use millstream_tcp::Segment;
use millstream_timer::Instant;
use millstream_wire::checksum::{Sum, fold_words};
use millstream_wire::ethernet::{self, Address, EtherType, VLAN_TAG_LEN};
use millstream_wire::ipv4;
use millstream_wire::tcp::{self, Flags};

use crate::conn::Facts;
use crate::demux::Station;
use crate::flow::FlowKey;
use crate::neighbor::Lookup;
use crate::output6;
use crate::pairs::{PairBytes, Pairs};
use crate::payload::sum_payload;
use crate::state::{State, env};

/// Packets other than TCP's that wait for room on the link at most.
pub(crate) const RAW_MAX: usize = 512;

/// Segments that one connection sends before others get a turn.
const SEGMENTS_A_TURN: u64 = 64;

/// Smallest segments that are left to a NIC to cut: some refuse smaller ones (i40e: below 256 bytes).
const TSO_MSS_MIN: u16 = 512;

/// Hops that a packet may make (RFC 1700's default).
const TTL: u8 = 64;

const IP_OFFSET: usize = ethernet::HEADER_LEN;
const L4_OFFSET: usize = IP_OFFSET + ipv4::HEADER_LEN;
const OPTIONS_OFFSET: usize = L4_OFFSET + tcp::HEADER_LEN;

/// Where a TCP header has the sequence number and the checksum.
const NUMBER: usize = 4;
const CHECKSUM: usize = 16;

/// Where a packet goes on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// To this station.
    Station([u8; 6]),
    /// To the neighbour with this address, which is yet to be asked for its own.
    Neighbor(IpAddr),
}

/// How it goes on after [`State::transmit_segment`].
enum Next {
    /// There may be more to send.
    More,
    /// It has left the list of those that want to send.
    Done,
    /// The link takes nothing. Nothing was sent.
    LinkFull,
}

/// A packet that is not TCP's, complete but for the receiver's link address.
pub(crate) struct RawFrame {
    pub via: Via,
    pub header: ArrayVec<u8, HEADER_MAX>,
    pub payload: Option<IoBuf>,
    pub offload: TxOffload,
    /// Dropped if it waits longer.
    pub until: Instant,
}

impl State {
    /// Sends what connections have to say, as far as the link takes it. Returns how many frames it took.
    #[inline]
    pub fn transmit<L: Link>(&mut self, link: &mut L) -> usize {
        let before = self.metrics.tcp_segments_out + self.metrics.other_packets_out;
        if !self.raw.is_empty() {
            self.transmit_raw(link);
        }
        'connections: for _ in 0..self.output.len() {
            let Some(number) = self.output.pop_front() else { break };
            let share = self.metrics.tcp_segments_out + SEGMENTS_A_TURN;
            for _ in 0..SEGMENTS_A_TURN {
                if self.metrics.tcp_segments_out >= share {
                    break;
                }
                match self.transmit_segments(link, number) {
                    Next::More => {}
                    Next::Done => {
                        self.splice_sent(number);
                        continue 'connections;
                    }
                    Next::LinkFull => {
                        self.splice_sent(number);
                        self.wait_for_link(number);
                        break 'connections;
                    }
                }
            }
            self.splice_sent(number);
            self.output.push_back(number);
        }
        (self.metrics.tcp_segments_out + self.metrics.other_packets_out - before) as usize
    }

    /// A connection keeps its place on the list while the link takes nothing. One that begins to wait
    /// makes way for the next, so that in the end all know, whose user time-outs run meanwhile.
    #[cold]
    fn wait_for_link(&mut self, number: u32) {
        self.metrics.link_full += 1;
        let begins = self.conns.get_mut(number).is_some_and(|conn| {
            let begins = conn.tcb.note_link_full(&env!(self));
            conn.rearm(&mut self.wheel, number);
            begins
        });
        if begins { self.output.push_back(number) } else { self.output.push_front(number) }
    }

    /// Sends the next segment of a connection that is on the list, if it has one, or a run of them:
    /// as many as the link takes.
    ///
    /// Not inlined, so that the shard's address stays in a register.
    #[inline(never)]
    fn transmit_segments<L: Link>(&mut self, link: &mut L, number: u32) -> Next {
        let Some(conn) = self.conns.get_mut(number) else {
            self.conns.leave_output(number);
            return Next::Done;
        };
        if !conn.facts.contains(Facts::HAS_MAC) {
            conn.facts.remove(Facts::IN_OUTPUT);
            self.resolve_conn(number);
            self.rearm(number);
            return Next::Done;
        }
        let mut room = link.tx_room();
        if room == 0 {
            link.flush();
            room = link.tx_room();
            if room == 0 {
                return Next::LinkFull;
            }
        }
        let nic_cuts = self.tso_segments_max != 0 && conn.tcb.mss() >= TSO_MSS_MIN;
        let in_software = room.min(SEGMENTS_A_TURN as usize) as u16;
        self.segment.segments_max = if nic_cuts { self.tso_segments_max } else { in_software };
        let mut more = conn.tcb.transmit(&mut env!(self), &mut self.segment);
        if more {
            let path = || TxPath {
                station: &self.station,
                pairs: &self.pairs,
                checksums: self.checksums,
                mac: conn.peer_mac,
                key: &conn.key,
            };
            let sent = if self.segment.gso_bytes == 0 {
                u64::from(path().send(link, &self.segment))
            } else if nic_cuts {
                path().send_whole(link, &self.segment)
            } else {
                path().send_cut(link, &mut self.segment)
            };
            self.metrics.tcp_segments_out += sent;
            self.segment.payload.clear();
            more = !conn.tcb.all_sent();
        }
        if more {
            return Next::More;
        }
        conn.facts.remove(Facts::IN_OUTPUT);
        if conn.tcb.state() == millstream_tcp::State::Closed {
            self.wake_both(number);
            self.conn_closed(number);
        } else {
            conn.rearm(&mut self.wheel, number);
        }
        Next::Done
    }

    // ---- Packets that are not a connection's -----------------------------------------------

    /// Sends a packet, at once or when its neighbour's address is known; counts it if there is no
    /// room.
    pub fn send_raw(&mut self, frame: RawFrame) {
        let Via::Neighbor(ip) = frame.via else { return self.queue_raw(frame) };
        match self.resolve(ip) {
            Lookup::Known(mac) => self.queue_raw(RawFrame { via: Via::Station(mac), ..frame }),
            Lookup::Ask | Lookup::Wait => {
                let until = frame.until;
                let gone = self.waiting.push(ip, frame, until);
                self.metrics.drop_other_out += u64::from(gone.is_some());
                self.rearm_link_timer();
            }
            Lookup::Unreachable | Lookup::Full => self.metrics.drop_other_out += 1,
        }
    }

    /// Queues a packet whose station is known.
    pub fn queue_raw(&mut self, mut frame: RawFrame) {
        if self.raw.len() < RAW_MAX {
            if let Some(vlan) = self.station.vlan {
                let len = frame.header.len();
                // All headers leave room for a tag.
                if frame.header.try_extend_from_slice(&[0; VLAN_TAG_LEN]).is_ok() {
                    add_tag(&mut frame.header, len, vlan, &mut frame.offload);
                }
            }
            self.raw.push_back(frame);
        } else {
            self.metrics.drop_other_out += 1;
        }
    }

    /// Starts a packet: the Ethernet header without its destination, room for IPv4 and `l4_len`.
    pub fn raw_header(&self, ethertype: EtherType, rest: usize) -> ArrayVec<u8, HEADER_MAX> {
        let mut header = ArrayVec::from([0; HEADER_MAX]);
        header.truncate(IP_OFFSET + rest);
        ethernet::Header::new(Address::UNSPECIFIED, Address(self.station.mac), ethertype)
            .emit(&mut header);
        header
    }

    /// How a packet to `destination` leaves; `None` if there is no route.
    pub fn via(&self, destination: Ipv4Addr) -> Option<Via> {
        if destination.is_broadcast() || self.station.ipv4.broadcast() == Some(destination) {
            return Some(Via::Station([0xff; 6]));
        }
        self.station.ipv4.next_hop(destination).map(|ip| Via::Neighbor(ip.into()))
    }

    fn transmit_raw<L: Link>(&mut self, link: &mut L) {
        for _ in 0..self.raw.len() {
            let Some(mut frame) = self.raw.pop_front() else { break };
            let Via::Station(mac) = frame.via else { continue };
            frame.header[..6].copy_from_slice(&mac);
            let payload = frame.payload.as_slice();
            let out = TxFrame { header: &frame.header, payload, offload: frame.offload };
            match link.tx(&out) {
                Ok(()) => self.metrics.other_packets_out += 1,
                Err(TxError::Full) => {
                    link.flush();
                    self.raw.push_front(frame);
                    return;
                }
                Err(TxError::TooLong) => self.metrics.drop_other_out += 1,
            }
        }
    }

    /// Resets a segment that belongs to no connection.
    pub fn send_reset(&mut self, key: &FlowKey, mac: [u8; 6], reply: &Segment) {
        self.metrics.resets_out += 1;
        self.send_reply(key, mac, reply);
    }

    /// Sends a segment without payload that is not a connection's.
    pub fn send_reply(&mut self, key: &FlowKey, mac: [u8; 6], reply: &Segment) {
        let mut bytes = [0; HEADER_MAX];
        let checksums = Checksums { skip: self.checksums.skip, ..Checksums::default() };
        let stations = (self.station.mac, mac);
        let (len, offload) = match self.pairs.of(key) {
            Some(pair) => {
                let hops = self.hop_limit_v6();
                output6::build_segment(&mut bytes, stations, pair, key, hops, reply, checksums)
            }
            None => build_segment(&mut bytes, (self.station.mac, mac), key, reply, checksums),
        };
        let mut header = ArrayVec::from(bytes);
        header.truncate(len);
        let until = self.now;
        self.send_raw(RawFrame { via: Via::Station(mac), header, payload: None, offload, until });
    }
}

/// The way of a connection's segments to the link.
struct TxPath<'a> {
    station: &'a Station,
    pairs: &'a Pairs,
    checksums: Checksums,
    mac: [u8; 6],
    key: &'a FlowKey,
}

impl TxPath<'_> {
    /// Sends a segment. Room was asked for and segments fit the MTU, so that no link refuses it; if one
    /// errs, it counts as lost on the wire and is retransmitted. Then this is `false`.
    #[inline(always)]
    fn send<L: Link>(&self, link: &mut L, segment: &Segment) -> bool {
        let payload = segment.payload.as_slice();
        if let Some(header) = link.lend() {
            let (len, offload) = self.compose(header, segment);
            return link.tx_lent(len, payload, offload).is_ok();
        }
        let mut header = [0; HEADER_MAX];
        let (len, offload) = self.compose(&mut header, segment);
        let header = header.get(..len).unwrap_or_default();
        link.tx(&TxFrame { header, payload, offload }).is_ok()
    }

    /// Writes the headers of a segment; returns their length and what is left to the NIC.
    #[inline(always)]
    fn compose(&self, header: &mut [u8; HEADER_MAX], segment: &Segment) -> (usize, TxOffload) {
        let (stations, checksums) = ((self.station.mac, self.mac), self.checksums);
        let (mut len, mut offload) = if self.key.is_ipv6() {
            let pair = self.pairs.of(self.key).unwrap_or(&NOBODY);
            let host = self.station.ipv6.as_deref();
            let hops = host.map_or(TTL, |host| host.hop_limit);
            output6::build_segment(header, stations, pair, self.key, hops, segment, checksums)
        } else {
            build_segment(header, stations, self.key, segment, checksums)
        };
        if let Some(vlan) = self.station.vlan {
            len += add_tag(header, len, vlan, &mut offload);
        }
        (len, offload)
    }

    /// Sends a run for the NIC to cut. Returns of how many segments the link took it.
    #[inline(never)]
    fn send_whole<L: Link>(&self, link: &mut L, run: &Segment) -> u64 {
        let segments = run.payload_len().div_ceil(usize::from(run.gso_bytes).max(1));
        if self.send(link, run) { segments as u64 } else { 0 }
    }

    /// Cuts a run into its segments and sends them. Returns how many the link took.
    ///
    /// The headers of full segments differ in their numbers and checksums alone, so they are composed
    /// once.
    #[inline(never)]
    fn send_cut<L: Link>(&self, link: &mut L, run: &mut Segment) -> u64 {
        let size = usize::from(std::mem::take(&mut run.gso_bytes));
        let sums = !self.checksums.skip && !self.checksums.tcp_offload;
        let last_flags = run.flags;
        let mut slices = std::mem::take(&mut run.payload).into_iter();
        let mut rest = slices.next();
        let mut template = [0; HEADER_MAX];
        let (mut len, mut at, mut offload) = (0, 0, TxOffload::default());
        // The sum of all but the number and the payload.
        let mut constant = Sum::new();
        let mut sent = 0;
        while rest.is_some() {
            run.payload.clear();
            let mut left = size;
            while let Some(mut slice) = rest.take() {
                // A piece never has more slices than the run.
                if slice.len() > left {
                    if left != 0 {
                        let _ = run.payload.try_push(slice.split_to(left));
                    }
                    rest = Some(slice);
                    break;
                }
                left -= slice.len();
                let _ = run.payload.try_push(slice);
                rest = slices.next();
            }
            if rest.is_none() {
                run.flags = last_flags;
                sent += u64::from(self.send(link, run));
                break;
            }
            let payload = if sums { sum_payload(&run.payload, true) } else { (size, Sum::new()) };
            if len == 0 {
                run.flags.remove(Flags::PSH);
                (len, offload) = self.compose(&mut template, run);
                at = len - tcp::HEADER_LEN - run.options.len();
                let checksum = [template[at + CHECKSUM], template[at + CHECKSUM + 1]];
                constant.add_u16(!u16::from_be_bytes(checksum));
                constant.add_u32(!run.seq.0);
                constant.add_u16(!payload.1.fold());
            }
            let (header, lends) = match link.lend() {
                Some(header) => {
                    *header = template;
                    (header, true)
                }
                None => (&mut template, false),
            };
            header[at + NUMBER..at + NUMBER + 4].copy_from_slice(&run.seq.0.to_be_bytes());
            if sums {
                let mut sum = constant;
                sum.add_u32(run.seq.0);
                sum.add_known(payload.1.fold(), size);
                let checksum = sum.finish().to_be_bytes();
                header[at + CHECKSUM..at + CHECKSUM + 2].copy_from_slice(&checksum);
            }
            let taken = if lends {
                link.tx_lent(len, &run.payload, offload)
            } else {
                let header = template.get(..len).unwrap_or_default();
                link.tx(&TxFrame { header, payload: &run.payload, offload })
            };
            sent += u64::from(taken.is_ok());
            run.seq += size as u32;
        }
        sent
    }
}

/// Puts an 802.1Q tag into the headers of a frame, which are `len` bytes of a longer run. Returns its
/// length.
#[cold]
fn add_tag(header: &mut [u8], len: usize, vlan: u16, offload: &mut TxOffload) -> usize {
    let at = ethernet::HEADER_LEN - 2;
    header.copy_within(at..len, at + VLAN_TAG_LEN);
    header[at..at + 2].copy_from_slice(&EtherType::VLAN.0.to_be_bytes());
    header[at + 2..at + VLAN_TAG_LEN].copy_from_slice(&vlan.to_be_bytes());
    if offload.l2_len != 0 {
        offload.l2_len += VLAN_TAG_LEN as u8;
    }
    VLAN_TAG_LEN
}

/// Who computes a segment's checksums.
#[derive(Clone, Copy, Default)]
pub(crate) struct Checksums {
    /// Nobody.
    pub skip: bool,
    pub tcp_offload: bool,
    pub ip_offload: bool,
}

/// Writes the headers of a segment; returns their length and what is left to the NIC.
///
/// Headers are composed as words in registers, as they lie in memory, and summed there: the sum is the
/// same in either order of bytes (RFC 1071 section 2(B)), and none waits for bytes that were only just
/// stored.
#[inline(always)]
fn build_segment(
    header: &mut [u8; HEADER_MAX],
    (our_mac, peer_mac): ([u8; 6], [u8; 6]),
    key: &FlowKey,
    segment: &Segment,
    checksums: Checksums,
) -> (usize, TxOffload) {
    let l4_len = tcp::HEADER_LEN + segment.options.len();
    let sums_tcp = !checksums.skip && !checksums.tcp_offload;
    let (payload_len, mut sum) = if segment.payload.is_empty() {
        (0, Sum::new())
    } else {
        sum_payload(&segment.payload, sums_tcp)
    };
    let segment_len = (l4_len + payload_len) as u32;

    header[0..6].copy_from_slice(&peer_mac);
    header[6..12].copy_from_slice(&our_mac);
    header[12..14].copy_from_slice(&EtherType::IPV4.0.to_be_bytes());

    let [src, dst] = key.addresses_out();
    let addresses = u64::from(src) + u64::from(dst);
    let first_word = 0x4500_0000 | u32::from(segment.ecn) << 16;
    let version_and_len = (first_word | (segment_len + ipv4::HEADER_LEN as u32)).to_be();
    // RFC 6864: a packet that may not be fragmented (0x4000) needs no identification.
    let (id_and_flags, ttl_and_protocol) = (0x4000_u32.to_be(), (TTL_AND_TCP << 16).to_be());
    let mut ip_checksum = 0;
    if !checksums.ip_offload && !checksums.skip {
        let constant = u64::from(id_and_flags) + u64::from(ttl_and_protocol);
        ip_checksum = u32::from(!fold_words(addresses + constant + u64::from(version_and_len)));
    }
    let third = ttl_and_protocol | ip_checksum.to_be();
    put_words(header, IP_OFFSET, [version_and_len, id_and_flags, third, src, dst]);

    let ports = key.ports_out();
    let offset_and_flags = (l4_len as u32 / 4) << 12 | u32::from(segment.flags.bits());
    let flags_and_window = (offset_and_flags << 16 | u32::from(segment.window)).to_be();
    let (seq, ack) = (segment.seq.0.to_be(), segment.ack.0.to_be());
    let options = segment.options.as_padded();
    if let Some(room) = header[OPTIONS_OFFSET..].first_chunk_mut() {
        // All that options can be, since a copy of known length is a few stores.
        *room = *options;
    }
    let mut tcp_checksum = 0;
    if !checksums.skip {
        // A NIC that cuts the segment adds the length of each piece itself.
        let summed_len = if segment.gso_bytes == 0 { segment_len } else { 0 };
        let pseudo = (u32::from(ipv4::Protocol::TCP.0) << 16 | summed_len).to_be();
        let mut total = addresses + u64::from(pseudo);
        if sums_tcp {
            total += u64::from(ports) + u64::from(seq) + u64::from(ack);
            total += u64::from(flags_and_window);
            // Options are whole words; those of nearly every segment are three.
            for word in options.as_chunks::<4>().0.iter().take(segment.options.len() / 4) {
                total += u64::from(u32::from_ne_bytes(*word));
            }
            sum.add_words(total);
            tcp_checksum = sum.finish();
        } else {
            tcp_checksum = fold_words(total);
        }
    }
    let checksum = (u32::from(tcp_checksum) << 16).to_be();
    put_words(header, L4_OFFSET, [ports, seq, ack, flags_and_window, checksum]);

    let mut offload = TxOffload::default();
    if checksums.ip_offload || checksums.tcp_offload {
        offload.l2_len = IP_OFFSET as u8;
        offload.l3_len = ipv4::HEADER_LEN as u8;
        offload.l4_len = l4_len as u8;
        offload.ipv4_checksum = checksums.ip_offload;
        offload.tcp_checksum = checksums.tcp_offload;
        offload.tso_mss = segment.gso_bytes;
    }
    (L4_OFFSET + l4_len, offload)
}

/// Stands in for the addresses of a connection that has none, which cannot be.
const NOBODY: PairBytes = [0; 32];

/// Time to live and protocol, as they stand beside each other.
const TTL_AND_TCP: u32 = (TTL as u32) << 8 | ipv4::Protocol::TCP.0 as u32;

/// Writes words that are in network order already.
#[inline(always)]
fn put_words(header: &mut [u8; HEADER_MAX], at: usize, words: [u32; 5]) {
    let room = header[at..at + 20].as_chunks_mut::<4>().0;
    if let [a, b, c, d, e] = room {
        [*a, *b, *c, *d, *e] = words.map(u32::to_ne_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_wire::tcp::{Header, Options, SeqNumber, Timestamp};

    /// What is composed by words is what the parsers read, and both checksums are right for odd
    /// and even payloads in any number of slices.
    #[test]
    fn built_segments_parse_and_sum_up() {
        let ours = Ipv4Addr::new(198, 18, 0, 1);
        let key = FlowKey::new(ours, 80, Ipv4Addr::new(198, 18, 7, 255), 54_321);
        for slices in [vec![], vec![vec![1u8, 2, 3], vec![250; 700]], vec![vec![7u8; 1448]]] {
            let mut segment = Segment {
                seq: SeqNumber(0xfedc_ba98),
                ack: SeqNumber(0x0102_0304),
                flags: Flags::ACK | Flags::PSH,
                window: 0xfffe,
                ecn: 2,
                ..Segment::default()
            };
            segment.options.set_timestamp(Timestamp { value: 77, echo: u32::MAX });
            segment.payload.extend(slices.iter().map(|bytes| IoBuf::from(bytes.as_slice())));
            let mut header = [0xaa; HEADER_MAX];
            let (len, _) =
                build_segment(&mut header, ([2; 6], [4; 6]), &key, &segment, Checksums::default());
            let mut frame = header[..len].to_vec();
            slices.iter().for_each(|bytes| frame.extend_from_slice(bytes));

            let ethernet = ethernet::Header::parse(&frame).unwrap();
            assert_eq!((ethernet.dst.0, ethernet.src.0), ([4; 6], [2; 6]));
            let ip = ipv4::Header::parse(&frame[IP_OFFSET..]).unwrap();
            assert_eq!((ip.src, ip.ttl, ip.dont_fragment()), (ours, TTL, true));
            assert_eq!(frame[IP_OFFSET + 1], 2, "the ECN codepoint");
            assert_eq!(usize::from(ip.total_len), frame.len() - IP_OFFSET);
            assert!(ipv4::verify_checksum(&ip, &frame[IP_OFFSET..]));
            let l4 = &frame[L4_OFFSET..];
            let mut sum = Sum::ipv4_pseudo(ip.src, ip.dst, ipv4::Protocol::TCP.0, l4.len() as u16);
            sum.add_bytes(l4);
            assert_eq!(sum.finish(), 0);
            let (tcp, tcp_len) = Header::parse(l4).unwrap();
            assert_eq!((tcp.src_port, tcp.dst_port, tcp_len), (80, 54_321, 32));
            assert_eq!((tcp.seq, tcp.ack), (segment.seq, segment.ack));
            assert_eq!((tcp.flags, tcp.window), (segment.flags, segment.window));
            assert_eq!(tcp.timestamp(), Some(Timestamp { value: 77, echo: u32::MAX }));
        }
        let syn = Segment {
            flags: Flags::SYN,
            options: Options::syn(1460, Some(3), true, None),
            ..Segment::default()
        };
        let mut header = [0; HEADER_MAX];
        let (len, _) =
            build_segment(&mut header, ([2; 6], [4; 6]), &key, &syn, Checksums::default());
        let (tcp, _) = Header::parse(&header[L4_OFFSET..len]).unwrap();
        assert_eq!(tcp.syn_options().mss, Some(1460));
    }

    /// A run that is cut is, byte for byte, what its segments would be alone, with sums over odd and
    /// even payloads in slices that end anywhere.
    #[test]
    fn a_run_is_cut_into_the_segments_that_it_stands_for() {
        use crate::flow::FlowHasher;
        use millstream_link::RxBurst;
        use millstream_link::mem::{MemConfig, pair};

        let ours = Ipv4Addr::new(198, 18, 0, 1);
        let ipv4 = crate::Ipv4Config { address: ours, prefix_len: 24, gateway: None };
        let key = FlowKey::new(ours, 80, Ipv4Addr::new(198, 18, 0, 2), 54_321);
        let pairs = Pairs::none(FlowHasher::new([1, 2, 3]));
        let bytes: Vec<u8> = (0..5_000u32).map(|i| (i * 7 + i / 256) as u8).collect();
        let offloads = Checksums { tcp_offload: true, ip_offload: true, skip: false };
        for (size, vlan, checksums) in [
            (701_u16, None, Checksums::default()),
            (700, Some(5), Checksums::default()),
            (1_000, None, offloads),
            (4_999, None, Checksums { skip: true, ..Checksums::default() }),
        ] {
            let station = Station::new([2; 6], ipv4, None, vlan, false);
            let path =
                TxPath { station: &station, pairs: &pairs, checksums, mac: [4; 6], key: &key };
            let slices = |bytes: &[u8], lens: &[usize]| {
                let mut rest = bytes;
                let mut slices = arrayvec::ArrayVec::new();
                for len in lens {
                    let (slice, after) = rest.split_at((*len).min(rest.len()));
                    rest = after;
                    slices.push(IoBuf::from(slice));
                }
                slices
            };
            let segment = |seq: u32, flags: Flags, gso_bytes: u16, bytes: &[u8], lens: &[usize]| {
                let mut segment = Segment {
                    seq: SeqNumber(seq),
                    ack: SeqNumber(9),
                    flags,
                    window: 77,
                    gso_bytes,
                    payload: slices(bytes, lens),
                    ..Segment::default()
                };
                segment.options.set_timestamp(Timestamp { value: 1, echo: 2 });
                segment
            };
            let config = MemConfig { mtu: 1_900, ..MemConfig::default() };
            let (mut cut, mut cut_end) = pair(config).unwrap();
            let (mut alone, mut alone_end) = pair(config).unwrap();
            let push = Flags::ACK | Flags::PSH;
            let whole = &bytes[..if size > 1_900 { 1_500 } else { bytes.len() }];
            let first = u32::MAX - 1_234;
            let lens = [1, 699, 2, 1_400, 333, 5_000];
            let sent = path.send_cut(&mut cut, &mut segment(first, push, size, whole, &lens));
            assert_eq!(sent, whole.len().div_ceil(usize::from(size)) as u64);
            let pieces = whole.chunks(usize::from(size)).enumerate();
            for (index, piece) in pieces {
                let seq = first.wrapping_add(index as u32 * u32::from(size));
                let flags = if index as u64 + 1 == sent { push } else { Flags::ACK };
                assert!(path.send(&mut alone, &segment(seq, flags, 0, piece, &[5_000])));
            }
            let (mut got, mut want) = (RxBurst::new(), RxBurst::new());
            cut_end.rx_burst(&mut got);
            alone_end.rx_burst(&mut want);
            assert_eq!(got.len(), want.len());
            for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_eq!(*got.buf, *want.buf, "segment {index} of {size} bytes");
            }
        }
    }
}
