//! Where PSH stands (RFC 9293 section 3.9.1.2), as Linux puts it.
//!
//! It ends what the application has written, and it ends each burst: receivers that merge segments
//! hand on what they have when they see it. A lone segment in the midst of more gets none, since such
//! are sent when the network is congested, where fewer ACKs are better.

use millstream_wire::tcp::SeqNumber;

use crate::config::Config;
use crate::tcb::{Marks, Tcb};

/// Most bytes of a burst.
const BURST_BYTES_MAX: u32 = 1 << 16;

impl Tcb {
    /// Whether the segment of new data up to `end`, of `sent` bytes, gets PSH. `room`: bytes that
    /// the windows leave behind it.
    #[inline]
    pub(crate) fn push_due(
        &mut self,
        config: &Config,
        end: SeqNumber,
        sent: u32,
        room: u32,
    ) -> bool {
        if end == self.snd_end {
            self.burst_bytes = 0;
            return !self.marks.contains(Marks::CONTINUED);
        }
        self.burst_ends(config, sent, room)
    }

    /// Whether a segment is the last of a burst of several.
    fn burst_ends(&mut self, config: &Config, sent: u32, room: u32) -> bool {
        let mss = u32::from(self.mss);
        self.burst_bytes += sent;
        if room >= mss && self.burst_bytes + mss <= self.burst_max(config) {
            return false;
        }
        let several = self.burst_bytes > mss;
        self.burst_bytes = 0;
        several
    }

    /// Bytes of a burst: what fits half of the window and goes out in a millisecond at the rate of
    /// the path, and some more where round trips are short.
    fn burst_max(&self, config: &Config) -> u32 {
        let half = self.window.cwnd / 2;
        let srtt_us = self.rtt.srtt_us();
        let more = BURST_BYTES_MAX.checked_shr(srtt_us >> 9).unwrap_or(0);
        if half <= more {
            return half;
        }
        // Twice the window in a round trip is what slow start sends: in the 1,024th part of a second
        // that is cwnd * 2e6 / 1024 / srtt.
        let rate = u64::from(self.window.cwnd) * 1953;
        let rate = rate.checked_div(u64::from(srtt_us)).unwrap_or(u64::MAX);
        let least = u32::from(config.burst_segments_min) * u32::from(self.mss);
        half.min(least.max(more.saturating_add(rate.min(u64::from(u32::MAX)) as u32)))
    }

    /// Bytes that are left of the burst.
    pub(crate) fn burst_left(&self, config: &Config) -> u32 {
        self.burst_max(config).saturating_sub(self.burst_bytes)
    }
}
