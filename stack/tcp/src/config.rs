//! What can be set.

use crate::congestion::Algorithm;

/// When to ask whether a silent peer is still there (RFC 9293 section 3.8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// Silence before the first question, in microseconds.
    pub idle_us: u64,
    /// From one question to the next, in microseconds.
    pub interval_us: u64,
    /// Unanswered questions after which the connection is given up.
    pub probes: u8,
}

impl Default for KeepAlive {
    /// Two hours (RFC 9293 section 3.8.4, MUST-28), then 9 questions 75 s apart.
    fn default() -> Self {
        Self { idle_us: 7_200_000_000, interval_us: 75_000_000, probes: 9 }
    }
}

/// When explicit congestion notification is used (RFC 3168).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ecn {
    /// Never.
    Off,
    /// If the peer asks for it.
    #[default]
    Accept,
    /// This side asks for it, too.
    Request,
}

/// What clocks segments out: acknowledgements, or a rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clocking {
    /// A rate for congestion controllers that need it, and for what has a
    /// [`PacingRate`](crate::PacingRate).
    #[default]
    Auto,
    /// Always a rate. A connection over a path whose rate is known begins with it, without slow
    /// start: see [`Tcb::set_pacing_rate`](crate::Tcb::set_pacing_rate) and
    /// [`Tcb::start_at_remembered_rate`](crate::Tcb::start_at_remembered_rate).
    Rate,
    /// Acknowledgements: segments leave as the windows allow, unless there is a
    /// [`PacingRate`](crate::PacingRate).
    Ack,
}

/// What holds for every connection of a stack.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes that a connection buffers for its application at first, at most 2^30.
    pub recv_buffer_bytes: u32,
    /// Bytes that this grows to as the application reads what a fast path brings, at most 2^30; not
    /// above [`Self::recv_buffer_bytes`]: it does not grow. Sets the window scale.
    pub recv_buffer_max_bytes: u32,
    /// Slices that a connection holds for its application, in order or not, and in proportion more
    /// when its buffer grows. Each pins a frame, so
    /// this bounds what a peer can pin with tiny segments. An eighth is kept for those in order.
    pub recv_slices_max: u16,
    /// Separate ranges that reassembly keeps.
    pub reassembly_ranges_max: u16,
    /// Bytes that an application can queue to be sent or acknowledged, at most 2^30. One slice may
    /// overshoot it.
    pub send_buffer_bytes: u32,
    /// Bytes that this grows to with the congestion window, at most 2^30; not above
    /// [`Self::send_buffer_bytes`]: it does not grow.
    pub send_buffer_max_bytes: u32,
    /// Least retransmission time-out in microseconds. RFC 6298 section 2.4 asks for 1 s; the field
    /// has used 200 ms for decades.
    pub min_rto_us: u32,
    /// Time-out before there is a measurement, in microseconds (RFC 6298 section 2.1).
    pub initial_rto_us: u32,
    /// Most that backing off makes of a time-out, in microseconds (RFC 6298 section 2.5).
    pub max_rto_us: u32,
    /// How long an ACK may wait for company, in microseconds; below 500 ms (RFC 9293 section
    /// 3.8.6.3).
    pub delayed_ack_us: u32,
    /// ACKs sent at once at the start of a connection, while the peer's window is small.
    pub quick_acks: u8,
    /// How often a SYN, or a SYN-ACK, is repeated.
    pub syn_retries: u8,
    /// How often data is repeated without progress before the connection is given up: R2 of RFC
    /// 9293 section 3.8.3. 15 are about 15 minutes.
    pub data_retries: u8,
    /// Time without progress after which the connection is given up, in microseconds; 0: by
    /// [`Self::data_retries`] alone.
    pub user_timeout_us: u64,
    /// Length of TIME-WAIT in microseconds.
    pub time_wait_us: u64,
    /// How long FIN-WAIT-2 may last once the application has let go of the connection, in
    /// microseconds; and, without [`Self::user_timeout_us`], how long a peer may then keep its
    /// window closed.
    pub fin_wait_2_us: u64,
    /// How long less than a segment waits for window or for the rest of what is corked, in
    /// microseconds (the override time-out of RFC 9293 section 3.8.6.2.1).
    pub override_us: u32,
    /// Whether timestamps are offered and accepted (RFC 7323).
    pub timestamps: bool,
    /// Whether selective acknowledgements are offered and accepted (RFC 2018).
    pub sack: bool,
    /// Whether window scaling is offered and accepted (RFC 7323).
    pub window_scaling: bool,
    /// Whether losses are found by time (RACK) and lost tails by probes (RFC 8985); otherwise by
    /// three duplicate ACKs or SACKs (RFC 6675) and by time-outs. Takes SACK.
    pub rack: bool,
    /// Time-outs in a row after which large segments are made smaller, in case that the path swallows
    /// them without a word (RFC 4821 section 7.7). 0: never.
    pub black_hole_retries: u8,
    /// How long a peer is taken to hold back the ACK of a lone segment, in microseconds: a tail is
    /// not probed earlier. RFC 8985 section 7.2 leaves the length open, Linux takes 200 ms; most
    /// peers hold ACKs back for 40 ms. A peer that turns out to take longer gets
    /// [`Self::min_rto_us`].
    pub probe_ack_delay_us: u32,
    /// Whether the congestion window is reduced after a pause (RFC 5681 section 4.1).
    pub slow_start_after_idle: bool,
    /// Segments that a burst has at least, however slow the path: see `push.rs`.
    pub burst_segments_min: u8,
    /// Segments by which one ACK grows the window in slow start at most, which spares the path bursts
    /// after an ACK for many: 8 by RFC 9406 section 4.2 (L), 2 by RFC 3465, 1 by RFC 5681.
    /// [`u8::MAX`]: all that it acknowledges, as in Linux, and as with [`Clocking::Rate`], where
    /// there are no bursts.
    pub slow_start_segments: u8,
    /// Initial congestion window in segments (RFC 6928: 10).
    pub initial_window_segments: u8,
    /// Explicit congestion notification. DCTCP asks for it whatever is set here.
    pub ecn: Ecn,
    /// What clocks segments out.
    pub clocking: Clocking,
    /// Congestion controller.
    pub congestion: Algorithm,
    /// Whether small segments wait for an outstanding acknowledgement (RFC 9293 section 3.7.4).
    pub nagle: bool,
    /// Keep-alive for every new connection; `None`: only for those that ask for it.
    pub keepalive: Option<KeepAlive>,
    /// ACKs a second that a connection sends in answer to segments that prove nothing (RFC 5961
    /// section 7).
    pub challenge_acks_per_second: u8,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            recv_buffer_bytes: 256 * 1024,
            recv_buffer_max_bytes: 4 * 1024 * 1024,
            recv_slices_max: 512,
            reassembly_ranges_max: 32,
            send_buffer_bytes: 256 * 1024,
            send_buffer_max_bytes: 4 * 1024 * 1024,
            min_rto_us: 200_000,
            initial_rto_us: 1_000_000,
            max_rto_us: 120_000_000,
            delayed_ack_us: 40_000,
            quick_acks: 8,
            syn_retries: 6,
            data_retries: 15,
            user_timeout_us: 0,
            time_wait_us: 60_000_000,
            fin_wait_2_us: 60_000_000,
            override_us: 200_000,
            timestamps: true,
            sack: true,
            window_scaling: true,
            rack: true,
            black_hole_retries: 0,
            probe_ack_delay_us: 42_000,
            slow_start_after_idle: true,
            burst_segments_min: 2,
            slow_start_segments: 8,
            initial_window_segments: 10,
            ecn: Ecn::default(),
            clocking: Clocking::default(),
            congestion: Algorithm::default(),
            nagle: true,
            keepalive: None,
            challenge_acks_per_second: 10,
        }
    }
}

/// Least units of the window field in a receive buffer, if that is larger.
const UNITS_MIN: u32 = 8;

impl Config {
    /// Segments by which one ACK grows the window in slow start.
    pub(crate) fn growth_segments(&self) -> u8 {
        if self.clocking == Clocking::Rate { u8::MAX } else { self.slow_start_segments.max(1) }
    }

    /// Least shift with which a window field can announce the whole receive buffer (RFC 7323
    /// section 2.3), and what it may become, unless then the buffer at first were only a few units.
    pub(crate) fn window_scale(&self) -> u8 {
        let most = self.recv_buffer_bytes.max(self.recv_buffer_max_bytes);
        let mut shift = 0;
        while shift < millstream_wire::tcp::MAX_WINDOW_SCALE
            && (self.recv_buffer_bytes >> shift > 0xffff
                || (most >> shift > 0xffff && self.recv_buffer_bytes >> shift > UNITS_MIN))
        {
            shift += 1;
        }
        shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_announces_the_whole_buffer() {
        for (bytes, shift) in [(0, 0), (65_535, 0), (65_536, 1), (256 * 1024, 3), (1 << 30, 14)] {
            let config =
                Config { recv_buffer_bytes: bytes, recv_buffer_max_bytes: 0, ..Config::default() };
            assert_eq!(config.window_scale(), shift, "{bytes}");
        }
        assert_eq!(Config::default().window_scale(), 7, "of what the buffer may become");
    }
}
