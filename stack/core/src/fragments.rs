//! Fragments of IP packets: from the proxy's channel into [`crate::reassembly`], and what comes out
//! of it back on the way in, as if the packet had come in one piece.

use std::net::IpAddr;

use millstream_link::{RxChecksum, RxFrame, TxOffload};
use millstream_wire::ipv6_extension::Fragment;
use millstream_wire::{ethernet, icmpv4, ipv4, ipv6};

use crate::channel::Packet;
use crate::demux;
use crate::output::{RawFrame, Via};
use crate::reassembly::{PacketName, Part, PartDrop, Taken};
use crate::state::State;

/// The hop limit of a packet that came in fragments is not taken to be more: neighbour discovery,
/// which is never in fragments (RFC 6980), asks for 255.
const HOP_LIMIT_MAX: u8 = 254;

impl State {
    /// Takes a fragment of an IPv4 packet.
    pub fn fragment_v4(&mut self, packet: &Packet) {
        let Ok(header) = ipv4::Header::parse(packet.ip()) else {
            self.rx.drop_malformed += 1;
            return;
        };
        self.take_part(&Part {
            name: PacketName {
                src: header.src.into(),
                dst: header.dst.into(),
                ident: u32::from(header.ident),
                protocol: Some(header.protocol),
            },
            offset: header.fragment_offset(),
            more: header.more_fragments(),
            protocol: header.protocol,
            tos: header.tos,
            ttl: header.ttl,
            stations: stations(packet),
            bytes: header.payload(packet.ip()),
            packet: packet.ip(),
        });
    }

    /// Takes a fragment of an IPv6 packet whose part starts at `offset` of the packet.
    pub fn fragment_v6(
        &mut self,
        packet: &Packet,
        header: &ipv6::Header,
        fragment: &Fragment,
        offset: usize,
    ) {
        self.take_part(&Part {
            name: PacketName {
                src: header.src.into(),
                dst: header.dst.into(),
                ident: fragment.ident,
                protocol: None,
            },
            offset: usize::from(fragment.offset),
            more: fragment.more,
            protocol: fragment.next_header,
            tos: header.traffic_class,
            ttl: header.hop_limit.min(HOP_LIMIT_MAX),
            stations: stations(packet),
            bytes: packet.ip().get(offset..).unwrap_or_default(),
            packet: packet.ip(),
        });
    }

    fn take_part(&mut self, part: &Part<'_>) {
        match self.reassembly.take(part, &self.arena, self.now) {
            Taken::Kept => self.rx.fragments_kept += 1,
            Taken::Whole(buf) => {
                self.rx.fragments_kept += 1;
                // The whole counts as a frame of its own, which is dropped or delivered by name.
                self.rx.frames_in += 1;
                self.metrics.reassembled += 1;
                let ethertype = match part.name.src {
                    IpAddr::V4(_) => ethernet::EtherType::IPV4,
                    IpAddr::V6(_) => ethernet::EtherType::IPV6,
                };
                let frame = RxFrame { buf, checksum: RxChecksum::Unknown };
                let offset = ethernet::HEADER_LEN;
                self.enqueue(demux::classify_ip(&self.station, frame, ethertype, offset));
            }
            Taken::Dropped(drop) => {
                *match drop {
                    PartDrop::Malformed => &mut self.rx.drop_malformed,
                    PartDrop::Overlap => &mut self.rx.drop_fragment_overlap,
                    PartDrop::TooLong => &mut self.rx.drop_fragment_too_long,
                    PartDrop::NoRoom => &mut self.rx.drop_fragment_no_room,
                } += 1;
            }
        }
        self.metrics.reassembly_evicted = self.reassembly.evicted;
        self.rearm_link_timer();
    }

    /// Gives up packets whose fragments did not all come in time.
    pub fn expire_fragments(&mut self) {
        while let Some(expired) = self.reassembly.expire(self.now) {
            self.metrics.reassembly_timeouts += 1;
            let Some(quote) = expired.quote else { continue };
            match (expired.name.dst, expired.name.src) {
                (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                    self.send_reassembly_timeout_v6(ours, theirs, expired.station, &quote);
                }
                (IpAddr::V4(ours), IpAddr::V4(theirs)) if ours == self.station.ipv4.address => {
                    // RFC 792: the IP header and the first 8 bytes behind it.
                    let original = quote.get(..28).unwrap_or(&quote);
                    let message = icmpv4::Message::TimeExceeded { code: 1, original };
                    if !self.take_icmp_credit() {
                        continue;
                    }
                    let len = message.emitted_len();
                    let mut header = self.ipv4_header(theirs, ipv4::Protocol::ICMP, len, 0);
                    message.emit(&mut header[ethernet::HEADER_LEN + ipv4::HEADER_LEN..]);
                    let (offload, until) = (TxOffload::default(), self.now);
                    let via = Via::Station(expired.station);
                    self.send_raw(RawFrame { via, header, payload: None, offload, until });
                }
                _ => {}
            }
        }
    }
}

fn stations(packet: &Packet) -> [u8; 12] {
    packet.frame.first_chunk().copied().unwrap_or_default()
}
