//! What a simulated link is like.

/// Losses in bursts: the model of Gilbert and Elliott. The direction is in a good or a bad state
/// and may change state with each frame; in the bad one it loses frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BurstLoss {
    /// Probability a frame that the good state ends.
    pub good_to_bad: f64,
    /// Probability a frame that the bad state ends; its mean length in frames is the reciprocal.
    pub bad_to_good: f64,
    /// Probability that a frame is lost in the bad state.
    pub loss_in_bad: f64,
}

/// What happens to a frame that finds the queue full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// It is dropped, as by a router's drop-tail queue.
    #[default]
    Drop,
    /// It is refused with `TxError::Full`, as by the sender's own NIC.
    Refuse,
}

/// One direction of a link. The default is a perfect wire: no delay, unlimited bandwidth, no fault.
///
/// Probabilities are from 0 to 1 a frame. Each fault draws from its own stream of random numbers:
/// whether a frame is lost does not depend on whether others are duplicated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DirectionConfig {
    /// Bits a second at which frames leave the queue; 0 is without limit.
    pub bandwidth_bps: u64,
    /// Bytes that a frame occupies the wire for beyond its own: 24 on real Ethernet (preamble, frame
    /// check sequence, gap).
    pub overhead_bytes: u32,
    /// From the end of sending to arrival.
    pub delay_nanos: u64,
    /// Added to the delay: anything below this. It never reorders frames.
    pub jitter_nanos: u64,
    /// Frames that may wait behind the one being sent.
    pub queue_frames: usize,
    /// Bytes that may wait behind the frame being sent.
    pub queue_bytes: usize,
    /// What happens when they are too many.
    pub when_full: WhenFull,
    /// Frames that may wait before those that come behind them are marked as having met congestion
    /// (RFC 3168), if their senders understand the mark. What does not is not touched.
    pub mark_frames: usize,
    /// Frames that may lie at the receiver unread. Those that arrive beyond them are dropped.
    pub ring_frames: usize,
    /// Probability that a frame is lost.
    pub loss: f64,
    /// Losses in bursts, besides.
    pub burst_loss: Option<BurstLoss>,
    /// Probability that a frame is held back by up to [`Self::reorder_nanos`], while later ones pass.
    pub reorder: f64,
    /// How long a reordered frame is held back at most.
    pub reorder_nanos: u64,
    /// Probability that a frame arrives twice.
    pub duplicate: f64,
    /// Probability that one to three bits of a frame are flipped.
    pub corrupt: f64,
}

impl Default for DirectionConfig {
    fn default() -> Self {
        Self {
            bandwidth_bps: 0,
            overhead_bytes: 0,
            delay_nanos: 0,
            jitter_nanos: 0,
            queue_frames: 1000,
            queue_bytes: usize::MAX,
            when_full: WhenFull::Drop,
            mark_frames: usize::MAX,
            ring_frames: 1024,
            loss: 0.0,
            burst_loss: None,
            reorder: 0.0,
            reorder_nanos: 1_000_000,
            duplicate: 0.0,
            corrupt: 0.0,
        }
    }
}

impl DirectionConfig {
    /// A wire of a bandwidth in bits a second and a one-way delay, without faults.
    pub fn wire(bandwidth_bps: u64, delay_nanos: u64) -> Self {
        Self { bandwidth_bps, delay_nanos, ..Self::default() }
    }
}

/// Both directions of a link, and what its ends claim to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkConfig {
    /// From the first end to the second.
    pub a_to_b: DirectionConfig,
    /// From the second end to the first.
    pub b_to_a: DirectionConfig,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Buffers a direction: frames in queue, on the wire and in the receiver's hands. When all are
    /// in use the sender is refused. One takes 2 KiB, or 16 KiB where the MTU is above 2026.
    pub buffers: usize,
    /// Pretend that the "NIC" computes and verifies checksums: frames carry none, and corrupted ones
    /// are reported as bad.
    pub checksum_offload: bool,
    /// From which all randomness comes.
    pub seed: u64,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self::symmetric(DirectionConfig::default())
    }
}

impl LinkConfig {
    /// The same in both directions; MTU 1500, 2048 buffers a direction, seed 1.
    pub fn symmetric(direction: DirectionConfig) -> Self {
        Self {
            a_to_b: direction,
            b_to_a: direction,
            mtu: 1500,
            buffers: 2048,
            checksum_offload: false,
            seed: 1,
        }
    }
}
