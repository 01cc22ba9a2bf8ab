//! Counters.

/// What the connections of a shard did and met. Every segment that is dropped is counted in one of
/// the fields that end in `_drops`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it; those that do not are documented
pub struct TcpStats {
    pub segments_in: u64,
    pub segments_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Segments that header prediction dealt with.
    pub fast_path: u64,
    pub active_opens: u64,
    pub passive_opens: u64,
    pub established: u64,
    /// Segments sent again, for whatever reason.
    pub retransmits: u64,
    /// Retransmission time-outs, those of SYNs included.
    pub rto_fired: u64,
    pub fast_retransmits: u64,
    /// Probes for a lost tail (RFC 8985 section 7), and those of which a duplicate was reported.
    pub loss_probes: u64,
    pub loss_probes_needless: u64,
    /// Window reductions taken back, since nothing had been lost.
    pub undone: u64,
    /// Duplicates that peers reported (RFC 2883).
    pub dsacks_in: u64,
    /// Peers that took back what they had selectively acknowledged.
    pub sack_reneged: u64,
    /// Flights for which there was no memory: they are recovered by time-outs alone.
    pub flight_full: u64,
    pub dup_acks_in: u64,
    /// Zero-window probes and override time-outs.
    pub window_probes: u64,
    pub keepalive_probes: u64,
    pub delayed_acks: u64,
    pub challenge_acks: u64,
    /// ACKs that the rate limit of RFC 5961 section 7 held back.
    pub challenge_acks_limited: u64,
    pub resets_in: u64,
    pub resets_out: u64,
    pub timed_out: u64,
    /// Segments that reassembly took.
    pub out_of_order: u64,
    pub dsacks_out: u64,
    /// Segments with a timestamp from the past (RFC 7323 section 5.2).
    pub paws_drops: u64,
    /// Segments outside the window, or all of whose data had come before.
    pub bad_seq_drops: u64,
    /// Segments that acknowledge what was never sent, or what is long forgotten.
    pub bad_ack_drops: u64,
    /// Segments without ACK in a state that needs one.
    pub no_ack_drops: u64,
    /// SYNs inside a connection (RFC 5961 section 4).
    pub bad_syn_drops: u64,
    /// Resets that do not match (RFC 5961 section 3, RFC 1337).
    pub bad_reset_drops: u64,
    /// Segments to a record that is closed already, or data that nobody will read.
    pub closed_drops: u64,
    /// Data for which the connection has no slice left.
    pub receive_bound_drops: u64,
    /// Data for which the shard's slab has no slice left, or none for data ahead of order.
    pub slab_full_drops: u64,
    /// Slices ahead of order that made way for data in order (RFC 2018 section 8).
    pub reneged_drops: u64,
    /// Times that the path was found to carry less than was sent.
    pub path_limits: u64,
    /// Those of them that no router told.
    pub black_holes: u64,
    /// Starts without slow start at a rate that was known, and those of them that were too fast.
    pub known_starts: u64,
    pub known_starts_failed: u64,
    /// How late paced segments could leave, since the loop was elsewhere at their moment: below a
    /// microsecond, below 2, below 4, and so on; the last counts all that is later.
    pub pacing_late: [u64; 16],
    /// Larger segments that were tried, that passed, and that were lost.
    pub larger_tried: u64,
    pub larger_passed: u64,
    pub larger_lost: u64,
    /// ICMP errors that were believed, and those that were only noted.
    pub icmp_hard: u64,
    pub icmp_soft: u64,
}
