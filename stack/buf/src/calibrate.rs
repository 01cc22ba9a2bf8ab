//! Where copying stops to pay: measured when the program starts, never a constant.
//!
//! Genie's thresholds (thesis, section 7) were those of its machines. Below some length it is cheaper to
//! copy bytes into a buffer that is at hand than to count one more reference on theirs; where, depends on
//! the processor, its caches and the arena's pages.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::arena::{Arena, SizeClass};
use crate::region::{Region, RegionCache};
use crate::semantics::DataSemantics;
use crate::staging::Staging;

/// Lengths at which copying and referring are compared, in bytes.
pub const SIZES_BYTES: [usize; 15] =
    [16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 16_384];

/// Time spent at most on one length, and runs of which the fastest counts.
const SPAN_PER_RUN: Duration = Duration::from_micros(20);
const RUNS: usize = 9;

/// What was measured on this machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Shorter data is copied with emulated copy and emulated share; longer data is referred to.
    pub copy_below_bytes: usize,
    /// Nanoseconds of a copy of each of [`SIZES_BYTES`] from cache into a staging buffer.
    pub copy_ns: [f64; SIZES_BYTES.len()],
    /// Nanoseconds of a reference on as many bytes, taken and given back.
    pub refer_ns: [f64; SIZES_BYTES.len()],
}

impl Thresholds {
    /// Measures, in a few milliseconds. `arena` needs two free blocks; without them everything longer than
    /// a small write is referred to.
    pub fn measure(arena: &Arena) -> Self {
        let mut measured = Self {
            copy_below_bytes: 0,
            copy_ns: [f64::NAN; SIZES_BYTES.len()],
            refer_ns: [f64::NAN; SIZES_BYTES.len()],
        };
        for (at, &len) in SIZES_BYTES.iter().enumerate() {
            let Some((copy_ns, refer_ns)) = compare(arena, len) else { continue };
            measured.copy_ns[at] = copy_ns;
            measured.refer_ns[at] = refer_ns;
        }
        measured.copy_below_bytes = crossover(&measured.copy_ns, &measured.refer_ns);
        measured
    }

    /// What an output of each of [`SIZES_BYTES`] costs beyond the cheaper way if data shorter than
    /// `copy_below_bytes` is copied: the mean, 0 if none could do better.
    pub fn regret(&self, copy_below_bytes: usize) -> f64 {
        let mut total = 0.0;
        let mut count = 0;
        for (at, &len) in SIZES_BYTES.iter().enumerate() {
            let (copy, refer) = (self.copy_ns[at], self.refer_ns[at]);
            let chosen = if len < copy_below_bytes { copy } else { refer };
            let excess = chosen / copy.min(refer) - 1.0;
            if excess.is_finite() {
                total += excess;
                count += 1;
            }
        }
        total / f64::from(count.max(1))
    }
}

/// The shortest length from which referring is cheaper for good.
fn crossover(copy_ns: &[f64], refer_ns: &[f64]) -> usize {
    let cheaper = |at: &usize| copy_ns[*at] < refer_ns[*at];
    match (0..SIZES_BYTES.len()).rev().find(cheaper) {
        // The next length was no longer copied cheaper; the truth lies between them.
        Some(at) => match SIZES_BYTES.get(at + 1) {
            Some(next) => SIZES_BYTES[at].midpoint(*next),
            None => usize::MAX,
        },
        None => 0,
    }
}

/// Nanoseconds of a copy and of a reference of `len` bytes, in turn so that what disturbs the machine
/// disturbs both.
fn compare(arena: &Arena, len: usize) -> Option<(f64, f64)> {
    let class = if len > crate::FRAME_BYTES { SizeClass::Block } else { SizeClass::Frame };
    let mut staging = Staging::new(arena.clone(), class);
    let cache = RegionCache::new(arena, 1);
    let source = vec![7_u8; len];
    let mut region = Some(Region::new(arena, len).ok()?);
    let (mut copy_ns, mut refer_ns) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..RUNS {
        copy_ns = copy_ns.min(per_call(|| {
            let bytes = black_box(&source[..]);
            let slice = match staging.put_short(bytes) {
                Some(slice) => Some(slice),
                None => staging.put_whole(bytes),
            };
            drop(black_box(slice));
        }));
        refer_ns = refer_ns.min(per_call(|| {
            if let Some(whole) = region.take() {
                let (out, after) = whole.refer(0..len, DataSemantics::EmulatedCopy, &cache);
                drop(black_box(out));
                region = after.into_region().ok();
            }
        }));
    }
    Some((copy_ns, refer_ns))
}

/// Nanoseconds of one call: the mean of as many as fit a short span.
fn per_call(mut call: impl FnMut()) -> f64 {
    const BATCH: u32 = 32;
    let start = Instant::now();
    let mut calls = 0;
    loop {
        for _ in 0..BATCH {
            call();
        }
        calls += BATCH;
        let spent = start.elapsed();
        if spent >= SPAN_PER_RUN {
            return spent.as_nanos() as f64 / f64::from(calls);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ArenaConfig, HugePages};

    #[test]
    fn the_crossover_is_where_referring_stays_cheaper() {
        let refer = [10.0; SIZES_BYTES.len()];
        let mut copy = [20.0; SIZES_BYTES.len()];
        assert_eq!(crossover(&copy, &refer), 0);
        copy[..3].fill(1.0);
        assert_eq!(crossover(&copy, &refer), 80, "between 64 and 96");
        copy[6] = 9.0;
        assert_eq!(crossover(&copy, &refer), 320, "an outlier below does not count");
        assert_eq!(crossover(&[1.0; SIZES_BYTES.len()], &refer), usize::MAX);
        let nothing = [f64::NAN; SIZES_BYTES.len()];
        assert_eq!(crossover(&nothing, &nothing), 0);
    }

    #[test]
    fn measuring_gives_back_what_it_took() {
        let arena = Arena::new(&ArenaConfig { frames: 4, blocks: 4, huge_pages: HugePages::Never })
            .unwrap();
        let measured = Thresholds::measure(&arena);
        assert!(arena.audit().is_clean());
        assert!(measured.copy_ns.iter().chain(&measured.refer_ns).all(|ns| *ns > 0.0));
        let best = SIZES_BYTES.iter().map(|&at| measured.regret(at)).fold(f64::INFINITY, f64::min);
        assert!(best >= 0.0 && measured.regret(0) >= 0.0);
        let empty = Arena::new(&ArenaConfig { frames: 0, blocks: 0, huge_pages: HugePages::Never })
            .unwrap();
        assert_eq!(Thresholds::measure(&empty).copy_below_bytes, 0);
    }
}
