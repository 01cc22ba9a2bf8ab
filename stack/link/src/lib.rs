//! The wall between the stack and whatever carries its frames.
//!
//! A [`Link`] moves bursts of Ethernet frames: a DPDK port in production, an in-memory ring
//! ([`mem`]) in benchmarks, a simulated wire in tests. The stack asks it what it can do
//! ([`Capabilities`]) and does the rest itself.

#![forbid(unsafe_code)]

pub mod handover;
pub mod mem;

use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use millstream_buf::IoBuf;

/// Frames that one [`Link::rx_burst`] brings at most.
pub const BURST: usize = 32;

/// Bytes that the headers of one frame may take: Ethernet with a VLAN tag, IPv6, TCP with all its options.
pub const HEADER_MAX: usize = 128;

/// What the NIC says of a received frame's checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RxChecksum {
    /// Nothing: the stack verifies them.
    #[default]
    Unknown,
    /// IPv4 header and TCP or UDP checksums are right.
    Good,
    /// One of them is wrong.
    Bad,
}

/// A received frame, Ethernet header first, without the frame check sequence.
#[derive(Debug)]
pub struct RxFrame {
    /// The bytes.
    pub buf: IoBuf,
    /// What the NIC says of its checksums.
    pub checksum: RxChecksum,
}

/// Frames of one burst, oldest first.
pub type RxBurst = ArrayVec<RxFrame, BURST>;

/// What the NIC shall fill in. All `false` or zero: the frame is complete.
///
/// Where a checksum is left to the NIC, its field holds the sum over the pseudo-header (not
/// complemented), and the IPv4 header checksum field holds zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxOffload {
    /// Bytes of the link header.
    pub l2_len: u8,
    /// Bytes of the IP header.
    pub l3_len: u8,
    /// Bytes of the TCP or UDP header.
    pub l4_len: u8,
    /// Fill in the IPv4 header checksum.
    pub ipv4_checksum: bool,
    /// Fill in the TCP checksum.
    pub tcp_checksum: bool,
    /// Fill in the UDP checksum.
    pub udp_checksum: bool,
    /// Cut the payload into segments of this many bytes (0: do not).
    pub tso_mss: u16,
}

/// A frame to be sent: headers, then slices of payload.
#[derive(Clone, Copy, Debug)]
pub struct TxFrame<'a> {
    /// All headers, at most [`HEADER_MAX`] bytes. The link copies them.
    pub header: &'a [u8],
    /// The payload in order. The link takes a handle on each slice until it has been sent, or
    /// copies it if it must (and counts that).
    pub payload: &'a [IoBuf],
    /// What is left to the NIC; asked for only where [`Capabilities`] offer it.
    pub offload: TxOffload,
}

impl TxFrame<'_> {
    /// Bytes of headers and payload.
    pub fn len(&self) -> usize {
        self.header.len() + self.payload.iter().map(|slice| slice.len()).sum::<usize>()
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a frame was not taken. The frame is still the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TxError {
    /// The transmit queue or the pool of headers is full: flush and try again later.
    #[error("the transmit queue is full")]
    Full,
    /// The frame is longer, or has more slices, than the link can send.
    #[error("the frame is too long for the link")]
    TooLong,
}

/// What a link can do. Asked of the device, never assumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The driver, for people ("net_tap", "mem").
    pub driver: &'static str,
    /// The station's address.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Slices a frame may have, the header not counted. More than these are copied into one.
    pub tx_slices_max: usize,
    /// The NIC fills in the IPv4 header checksum.
    pub tx_ipv4_checksum: bool,
    /// The NIC fills in the TCP checksum.
    pub tx_tcp_checksum: bool,
    /// The NIC fills in the UDP checksum.
    pub tx_udp_checksum: bool,
    /// The NIC verifies checksums of what it receives.
    pub rx_checksum: bool,
    /// Largest payload in bytes that the NIC cuts into segments itself; 0 if it does not.
    pub tso_bytes_max: u32,
    /// The link copies the payload when it sends, so no zero-copy claim holds on it.
    pub copies_payload: bool,
}

/// What passed a link since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames that the device dropped because no buffer or no room was left for them.
    pub rx_missed: u64,
    /// Frames with errors that the device dropped.
    pub rx_errors: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames that were taken but could not be sent.
    pub tx_errors: u64,
    /// Payload bytes that the link itself copied in order to send (not the headers).
    pub tx_copied_bytes: u64,
    /// Bytes that the link copied to make a received chain one slice.
    pub rx_copied_bytes: u64,
}

/// A queue pair that carries Ethernet frames.
///
/// One thread (the shard) owns it. Neither method blocks.
pub trait Link {
    /// What it can do.
    fn capabilities(&self) -> &Capabilities;

    /// Adds frames that have arrived to `frames`, as many as there is room for.
    fn rx_burst(&mut self, frames: &mut RxBurst);

    /// Frames that [`Self::tx`] takes for sure now, whatever their payload; 0 while the queue is full.
    fn tx_room(&mut self) -> usize;

    /// Takes a frame for sending. It may stay in a batch until [`Self::flush`].
    ///
    /// # Errors
    /// [`TxError`]; nothing was sent then.
    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError>;

    /// Memory for the headers of the next frame, where it will be sent from: composing them there
    /// saves [`Self::tx`]'s copy. Followed by [`Self::tx_lent`], or forgotten. `None`: the link has
    /// nothing to lend, now or ever; [`Self::tx`] takes the frame.
    #[inline]
    fn lend(&mut self) -> Option<&mut [u8; HEADER_MAX]> {
        None
    }

    /// As [`Self::tx`] for a frame whose headers are the first `header_len` bytes of what
    /// [`Self::lend`] has just lent.
    ///
    /// # Errors
    /// [`TxError`]; nothing was sent then.
    #[inline]
    fn tx_lent(
        &mut self,
        _header_len: usize,
        _payload: &[IoBuf],
        _offload: TxOffload,
    ) -> Result<(), TxError> {
        Err(TxError::Full)
    }

    /// Hands the batch to the device.
    fn flush(&mut self);

    /// Whether the link has a carrier.
    fn is_up(&self) -> bool {
        true
    }

    /// Buffers for receiving that are free, and how many there are in all; `None` if the link has no
    /// bound of its own. When they run low the stack copies what it must keep, so that what nobody
    /// reads cannot stop the link. May be slow: ask now and then.
    fn rx_buffers(&self) -> Option<(usize, usize)> {
        None
    }

    /// A descriptor that becomes readable when frames come, as long as the device is asked for that
    /// ([`Self::arm_rx`]). `None`: the device cannot signal.
    fn rx_event(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Asks the device to signal at [`Self::rx_event`] the next frame that comes. It need not signal
    /// those that are there already: poll once more before sleeping.
    fn arm_rx(&mut self) {}

    /// Takes that back, and the signal if there was one.
    fn disarm_rx(&mut self) {}

    /// Counters since start.
    fn stats(&self) -> LinkStats;
}

impl<L: Link + ?Sized> Link for Box<L> {
    fn capabilities(&self) -> &Capabilities {
        (**self).capabilities()
    }
    fn rx_burst(&mut self, frames: &mut RxBurst) {
        (**self).rx_burst(frames)
    }
    fn tx_room(&mut self) -> usize {
        (**self).tx_room()
    }
    fn tx(&mut self, frame: &TxFrame<'_>) -> Result<(), TxError> {
        (**self).tx(frame)
    }
    fn lend(&mut self) -> Option<&mut [u8; HEADER_MAX]> {
        (**self).lend()
    }
    fn tx_lent(
        &mut self,
        header_len: usize,
        payload: &[IoBuf],
        offload: TxOffload,
    ) -> Result<(), TxError> {
        (**self).tx_lent(header_len, payload, offload)
    }
    fn flush(&mut self) {
        (**self).flush()
    }
    fn is_up(&self) -> bool {
        (**self).is_up()
    }
    fn rx_buffers(&self) -> Option<(usize, usize)> {
        (**self).rx_buffers()
    }
    fn rx_event(&self) -> Option<BorrowedFd<'_>> {
        (**self).rx_event()
    }
    fn arm_rx(&mut self) {
        (**self).arm_rx()
    }
    fn disarm_rx(&mut self) {
        (**self).disarm_rx()
    }
    fn stats(&self) -> LinkStats {
        (**self).stats()
    }
}
