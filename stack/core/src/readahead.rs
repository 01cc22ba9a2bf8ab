//! How far ahead of the window a file is read: what the connection sends while the disk works.

use millstream_buf::BLOCK_BYTES;
use millstream_tcp::Tcb;
use millstream_timer::Instant;

/// Blocks read ahead at the least, so that the next ACK finds data waiting.
const BLOCKS_MIN: usize = 2;

/// How long reads take, from submission to completion: mean and mean deviation, as TCP keeps them of
/// round trips (RFC 6298).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DiskPace {
    mean_ns: u64,
    deviation_ns: u64,
}

impl DiskPace {
    /// Takes a read that ended at `now`.
    pub fn note(&mut self, submitted: Instant, now: Instant) {
        // A disk that hangs for seconds says nothing of those to come.
        let took_ns = now.nanos_since(submitted).min(1_000_000_000);
        if self.mean_ns == 0 {
            (self.mean_ns, self.deviation_ns) = (took_ns, took_ns / 2);
            return;
        }
        let off_ns = took_ns.abs_diff(self.mean_ns);
        self.deviation_ns = (3 * self.deviation_ns + off_ns) / 4;
        self.mean_ns = (7 * self.mean_ns + took_ns) / 8;
    }

    /// How long nearly all reads take at most: four deviations above the mean.
    pub fn most_ns(&self) -> u64 {
        self.mean_ns + 4 * self.deviation_ns
    }

    /// Blocks to be read beyond the window of a connection, at most `max`: what it sends in the time
    /// that a read takes, and one more, since a read ends at a block's end.
    pub fn blocks_ahead(&self, tcb: &Tcb, max: usize) -> usize {
        let info = tcb.info();
        if info.srtt_us == 0 {
            return BLOCKS_MIN.min(max);
        }
        let rate = u128::from(info.cwnd_bytes.min(info.snd_wnd_bytes)) * u128::from(self.most_ns());
        let bytes = rate / (u128::from(info.srtt_us) * 1000);
        let blocks = usize::try_from(bytes / BLOCK_BYTES as u128).unwrap_or(max);
        blocks.saturating_add(1).max(BLOCKS_MIN).min(max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_follows_the_disk() {
        let mut pace = DiskPace::default();
        let at = |ns| Instant::ZERO.plus_nanos(ns);
        pace.note(at(0), at(80_000));
        assert_eq!(pace.most_ns(), 80_000 * 3);
        (0..100).for_each(|_| pace.note(at(0), at(80_000)));
        assert!((80_000..81_000).contains(&pace.most_ns()), "steady: {}", pace.most_ns());
        (0..100).for_each(|i| pace.note(at(0), at(if i % 2 == 0 { 40_000 } else { 120_000 })));
        assert!((200_000..280_000).contains(&pace.most_ns()), "uneven: {}", pace.most_ns());
        pace.note(at(0), at(u64::MAX));
        assert!(pace.most_ns() < 1_500_000_000, "a read that hung is bounded");
    }
}
