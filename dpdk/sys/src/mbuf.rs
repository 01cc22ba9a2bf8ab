//! `struct rte_mbuf` as Rust reads it.
//!
//! The fields sit at the same offsets in all releases from 22.11 on, but the way they are declared
//! changed (markers, anonymous unions), and with it what a binding generator makes of them. So they
//! are written down once here; `csrc/shim.c` asserts each offset and flag at build time.

use std::ffi::c_void;

/// A packet buffer, or one segment of a packet (`struct rte_mbuf`).
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Mbuf {
    /// First byte of the buffer.
    pub buf_addr: *mut u8,
    /// The same as the device sees it.
    pub buf_iova: u64,
    /// Where data starts, in bytes from `buf_addr`.
    pub data_off: u16,
    /// References; atomic if shared.
    pub refcnt: u16,
    /// Segments of the packet; valid in the first one.
    pub nb_segs: u16,
    /// Port that received it.
    pub port: u16,
    /// `RX_*`, `TX_*` and [`EXTERNAL`], [`INDIRECT`].
    pub ol_flags: u64,
    /// What the device parsed.
    pub packet_type: u32,
    /// Bytes of the packet; valid in the first segment.
    pub pkt_len: u32,
    /// Bytes in this segment.
    pub data_len: u16,
    /// VLAN tag, if stripped or to be inserted.
    pub vlan_tci: u16,
    /// RSS hash and other uses.
    pub hash: [u32; 2],
    /// Outer VLAN tag.
    pub vlan_tci_outer: u16,
    /// Bytes of the buffer.
    pub buf_len: u16,
    /// The pool it goes back to.
    pub pool: *mut crate::rte_mempool,
    /// The next segment.
    pub next: *mut Mbuf,
    /// Header lengths for offloads: see [`tx_offload`].
    pub tx_offload: u64,
    /// Whom to tell when an external buffer is free.
    pub shinfo: *mut SharedInfo,
    /// Bytes between this structure and the buffer.
    pub priv_size: u16,
    /// IEEE 1588.
    pub timesync: u16,
    /// Fields that libraries register at run time.
    pub dynfield1: [u32; 9],
}

const _: () = assert!(std::mem::size_of::<Mbuf>() == 128);

/// Beside an external buffer: who frees it (`struct rte_mbuf_ext_shared_info`).
#[repr(C)]
#[derive(Debug)]
pub struct SharedInfo {
    /// Called when `refcnt` reaches 0, with the buffer's address and `opaque`.
    pub free: Option<unsafe extern "C" fn(*mut c_void, *mut c_void)>,
    /// The second argument of `free`.
    pub opaque: *mut c_void,
    /// Mbufs attached.
    pub refcnt: u16,
}

const _: () = assert!(std::mem::size_of::<SharedInfo>() == 24);

/// `refcnt`, `nb_segs` and the like of an mbuf that lies in its pool.
pub const PORT_INVALID: u16 = u16::MAX;
/// Bytes in front of the data of a fresh mbuf (`RTE_PKTMBUF_HEADROOM`).
pub const HEADROOM: u16 = 128;
/// The mbuf's buffer is not its own.
pub const EXTERNAL: u64 = 1 << 61;
/// The mbuf's buffer is another mbuf's.
pub const INDIRECT: u64 = 1 << 62;
/// Sent packet is IPv6.
pub const TX_IPV6: u64 = 1 << 56;
/// Sent packet is IPv4.
pub const TX_IPV4: u64 = 1 << 55;
/// Fill in the IPv4 header checksum.
pub const TX_IP_CKSUM: u64 = 1 << 54;
/// Fill in the UDP checksum.
pub const TX_UDP_CKSUM: u64 = 3 << 52;
/// Fill in the TCP checksum.
pub const TX_TCP_CKSUM: u64 = 1 << 52;
/// Cut into segments.
pub const TX_TCP_SEG: u64 = 1 << 50;
/// The IPv4 header checksum is wrong.
pub const RX_IP_CKSUM_BAD: u64 = 1 << 4;
/// The IPv4 header checksum is right.
pub const RX_IP_CKSUM_GOOD: u64 = 1 << 7;
/// The TCP or UDP checksum is wrong.
pub const RX_L4_CKSUM_BAD: u64 = 1 << 3;
/// The TCP or UDP checksum is right.
pub const RX_L4_CKSUM_GOOD: u64 = 1 << 8;

/// Packs [`Mbuf::tx_offload`]: lengths in bytes (`l2` 7 bits, `l3` 9, `l4` 8) and the segment size.
#[inline]
pub const fn tx_offload(l2: u8, l3: u8, l4: u8, segment: u16) -> u64 {
    (l2 as u64 & 0x7f) | (l3 as u64) << 7 | (l4 as u64) << 16 | (segment as u64) << 24
}
