//! The headers of TCP segments over IPv6.

use millstream_link::{HEADER_MAX, TxOffload};
use millstream_tcp::Segment;
use millstream_wire::checksum::Sum;
use millstream_wire::ethernet::{self, EtherType};
use millstream_wire::ipv4::Protocol;
use millstream_wire::ipv6::{self, Header, split_addresses};
use millstream_wire::tcp;

use crate::flow::FlowKey;
use crate::ipv6::L4_OFFSET;
use crate::output::Checksums;
use crate::pairs::PairBytes;
use crate::payload::sum_payload;

/// Writes the headers of a segment; returns their length and what is left to the NIC.
pub(crate) fn build_segment(
    header: &mut [u8; HEADER_MAX],
    stations: ([u8; 6], [u8; 6]),
    pair: &PairBytes,
    key: &FlowKey,
    hop_limit: u8,
    segment: &Segment,
    checksums: Checksums,
) -> (usize, TxOffload) {
    let (our_mac, peer_mac) = stations;
    let sums_tcp = !checksums.skip && !checksums.tcp_offload;
    let (payload_len, payload_sum) = sum_payload(&segment.payload, sums_tcp);
    let [dst, src] = split_addresses(pair);

    header[0..6].copy_from_slice(&peer_mac);
    header[6..12].copy_from_slice(&our_mac);
    header[12..ethernet::HEADER_LEN].copy_from_slice(&EtherType::IPV6.0.to_be_bytes());
    let l4 = &mut header[L4_OFFSET..];
    let l4_len = tcp::emit(
        l4,
        key.local_port(),
        key.remote_port(),
        segment.seq,
        segment.ack,
        segment.flags,
        segment.window,
        0,
        segment.options.as_slice(),
    );
    let segment_len = l4_len + payload_len;
    if !checksums.skip {
        // A NIC that cuts the segment adds the length of each piece itself.
        let summed_len = if segment.gso_bytes == 0 { segment_len as u32 } else { 0 };
        let mut sum = Sum::ipv6_pseudo(src, dst, Protocol::TCP.0, summed_len);
        let checksum = if checksums.tcp_offload {
            sum.fold()
        } else {
            sum.add_bytes(&l4[..l4_len]);
            sum.add_known(payload_sum.fold(), payload_len);
            sum.finish()
        };
        l4[16..18].copy_from_slice(&checksum.to_be_bytes());
    }
    Header {
        traffic_class: segment.ecn,
        flow_label: 0,
        payload_len: segment_len as u16,
        next_header: Protocol::TCP,
        hop_limit,
        src,
        dst,
    }
    .emit(&mut header[ethernet::HEADER_LEN..]);

    let mut offload = TxOffload::default();
    if checksums.tcp_offload {
        offload.l2_len = ethernet::HEADER_LEN as u8;
        offload.l3_len = ipv6::HEADER_LEN as u8;
        offload.l4_len = l4_len as u8;
        offload.tcp_checksum = true;
        offload.tso_mss = segment.gso_bytes;
    }
    (L4_OFFSET + l4_len, offload)
}
