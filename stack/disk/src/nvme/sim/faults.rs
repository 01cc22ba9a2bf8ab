//! What a simulated controller is like.

use std::ops::Range;
use std::sync::Arc;

/// What is on the namespace.
#[derive(Clone, Debug, Default)]
pub enum Content {
    /// Nothing is moved: a read leaves its buffer as it is. For measuring the driver.
    Nothing,
    /// The first eight bytes of each page that a command names are the [`pattern`]; the rest is not
    /// moved.
    Stamps,
    /// Every eight bytes are the [`pattern`] of their place.
    #[default]
    Pattern,
    /// These bytes, and zeroes behind them.
    Bytes(Arc<[u8]>),
}

/// The eight bytes at a multiple of eight bytes: different everywhere.
#[inline]
pub fn pattern(offset: u64) -> u64 {
    let mixed = (offset >> 3 ^ 0x6d69_6c6c).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

/// How a controller misbehaves. Probabilities are from 0 to 1 a read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Probability that a read is never completed. Its data may still be written, at any time until
    /// the controller stops.
    pub drop: f64,
    /// Probability that a completion comes twice.
    pub duplicate: f64,
    /// Probability that a completion has a random number, queue or head in it.
    pub corrupt: f64,
    /// Probability that a read fails with a media error that may be tried again.
    pub media: f64,
    /// Probability that a read takes [`Self::stall_nanos`] more.
    pub stall: f64,
    /// How long a stall is.
    pub stall_nanos: u64,
    /// Probability that the controller reports a fatal error (`CSTS.CFS`).
    pub fatal: f64,
    /// Abort commands are not answered.
    pub ignores_aborts: bool,
    /// `CSTS.RDY` never becomes 1.
    pub never_ready: bool,
    /// `CSTS.RDY` never becomes 0, and what was in flight goes on.
    pub never_stops: bool,
}

/// What a simulated controller is like.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Logical blocks of the namespace.
    pub blocks: u64,
    /// Bytes of a logical block.
    pub block_bytes: usize,
    /// Entries of a queue (`CAP.MQES`).
    pub queue_entries: u16,
    /// Transfer limit in pages of 4 KiB as a power of two (`MDTS`); 0: none.
    pub mdts: u8,
    /// Doorbell stride (`CAP.DSTRD`).
    pub doorbell_stride: u8,
    /// `CAP.TO` in units of 500 ms.
    pub timeout_halves: u8,
    /// How long `CSTS.RDY` takes to follow `CC.EN`.
    pub ready_nanos: u64,
    /// From the doorbell to the completion.
    pub latency_nanos: u64,
    /// Added to it: anything below this, so that reads overtake each other.
    pub jitter_nanos: u64,
    /// What is on it.
    pub content: Content,
    /// Blocks that cannot be read.
    pub bad: Vec<Range<u64>>,
    /// How it misbehaves.
    pub faults: Faults,
    /// From which all randomness comes.
    pub seed: u64,
}

impl Default for SimConfig {
    /// 1 GiB in blocks of 512 bytes, 256 entries, 128 KiB a command, at once, without a fault.
    fn default() -> Self {
        Self {
            blocks: 2 << 20,
            block_bytes: 512,
            queue_entries: 256,
            mdts: 5,
            doorbell_stride: 0,
            timeout_halves: 2,
            ready_nanos: 1_000_000,
            latency_nanos: 0,
            jitter_nanos: 0,
            content: Content::default(),
            bad: Vec::new(),
            faults: Faults::default(),
            seed: 1,
        }
    }
}

/// SplitMix64: small, and good enough for dice.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Below `limit`, which is not zero.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Whether what has this probability happens.
    pub(super) fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && (self.next() >> 11) as f64 / (1u64 << 53) as f64 <= probability
    }
}
