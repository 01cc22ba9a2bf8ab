//! What became of the frames.

/// What becomes of a frame, as far as it is decided when the frame is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is under way. It is still lost if the link goes down or the receiver's ring is full.
    Sent,
    /// The queue was full.
    QueueFull,
    /// Random loss.
    Lost,
    /// Lost in a burst.
    LostInBurst,
    /// The link was down.
    LinkDown,
    /// The filter did not let it pass.
    Filtered,
}

/// Counters of one direction since start.
///
/// Always `offered + duplicated == delivered + dropped() + in_flight`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectionStats {
    /// Frames that the sender handed over.
    pub offered: u64,
    /// Their bytes.
    pub offered_bytes: u64,
    /// Frames that the receiver took.
    pub delivered: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Second copies that were put on the wire.
    pub duplicated: u64,
    /// Frames whose bits were flipped.
    pub corrupted: u64,
    /// Frames that were held back while others passed.
    pub held_back: u64,
    /// Frames that were refused, and so not counted as offered.
    pub refused: u64,
    /// Dropped: the queue was full.
    pub dropped_queue: u64,
    /// Dropped: random loss.
    pub dropped_loss: u64,
    /// Dropped: loss in a burst.
    pub dropped_burst: u64,
    /// Dropped: the link was down, or went down while they were under way.
    pub dropped_down: u64,
    /// Dropped: the filter did not let them pass.
    pub dropped_filter: u64,
    /// Dropped: the receiver's ring was full.
    pub dropped_ring: u64,
    /// Frames in the queue, on the wire, or in the receiver's ring.
    pub in_flight: u64,
    /// The most frames that ever waited in the queue.
    pub queue_frames_max: u64,
    /// The most bytes that ever waited in the queue.
    pub queue_bytes_max: u64,
    /// Frames that the queue took, whether they had to wait or not.
    pub queued: u64,
    /// How long they waited all together, in nanoseconds.
    pub waited_nanos: u64,
    /// The longest that one waited, in nanoseconds.
    pub waited_nanos_max: u64,
    /// Frames that were marked as having met congestion.
    pub marked: u64,
}

impl DirectionStats {
    /// How long a frame waited in the queue on average, in nanoseconds: the standing queue.
    pub fn waited_nanos_mean(&self) -> u64 {
        self.waited_nanos / self.queued.max(1)
    }

    /// Drops of all causes.
    pub fn dropped(&self) -> u64 {
        self.dropped_queue
            + self.dropped_loss
            + self.dropped_burst
            + self.dropped_down
            + self.dropped_filter
            + self.dropped_ring
    }

    /// Counts a frame that ends at the sender's side.
    pub(crate) fn count_drop(&mut self, fate: Fate) {
        match fate {
            Fate::Sent => {}
            Fate::QueueFull => self.dropped_queue += 1,
            Fate::Lost => self.dropped_loss += 1,
            Fate::LostInBurst => self.dropped_burst += 1,
            Fate::LinkDown => self.dropped_down += 1,
            Fate::Filtered => self.dropped_filter += 1,
        }
    }
}
