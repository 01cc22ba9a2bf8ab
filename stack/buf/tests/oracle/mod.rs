//! Random operations on buffers, aggregates, regions, quotas and remembered sums, against a naive model:
//! every buffer is a vector, and sharing is copying.

use millstream_buf::{
    After, Agg, Arena, ArenaConfig, BLOCK_BYTES, DataSemantics, FRAME_BYTES, HugePages, IoBuf,
    Lent, Quota, Region, RegionCache, SizeClass,
};

const FRAMES: usize = 48;
const BLOCKS: usize = 6;
/// Things that are alive at a time.
const THINGS_MAX: usize = 24;
/// Content is short, so that comparing it does not take longer than the operations.
const LEN_MAX: usize = 120;
const QUOTA_BYTES: usize = 10 * FRAME_BYTES;
/// Operations between two looks at every byte and every count.
const AUDIT_EVERY: u64 = 4096;

enum Thing {
    Agg(Agg),
    Region(Region),
    Lent(Lent),
    /// A buffer that is charged.
    Charged(IoBuf),
}

/// A thing, and what its bytes must be.
struct Pair {
    thing: Thing,
    model: Vec<u8>,
}

/// The state of a run.
pub struct Oracle {
    arena: Arena,
    cache: RegionCache,
    quota: Quota,
    things: Vec<Pair>,
    random: u64,
    ops: u64,
}

/// The sum of RFC 1071, by its definition.
fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

impl Oracle {
    pub fn new(seed: u64) -> Self {
        let config = ArenaConfig { frames: FRAMES, blocks: BLOCKS, huge_pages: HugePages::Never };
        let arena = Arena::new(&config).expect("a small arena");
        Self {
            cache: RegionCache::new(&arena, 3),
            arena,
            quota: Quota::new(QUOTA_BYTES),
            things: Vec::with_capacity(THINGS_MAX),
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            ops: 0,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((self.random >> 11) % bound.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let start = self.below(256);
        (0..len).map(|at| (start + at * 13) as u8).collect()
    }

    /// Makes one operation, compares what it touched, and now and then everything.
    pub fn step(&mut self) {
        self.ops += 1;
        if self.things.is_empty() || (self.things.len() < THINGS_MAX && self.below(6) == 0) {
            self.create();
        } else {
            let at = self.below(self.things.len());
            let pair = self.things.swap_remove(at);
            self.change(pair);
        }
        if let Some(last) = self.things.last() {
            compare(last);
        }
        if self.ops.is_multiple_of(AUDIT_EVERY) {
            self.audit();
        }
    }

    fn keep(&mut self, thing: Thing, model: Vec<u8>) {
        if self.things.len() < THINGS_MAX {
            self.things.push(Pair { thing, model });
        }
    }

    fn create(&mut self) {
        let len = self.below(LEN_MAX);
        let model = self.bytes(len);
        match self.below(4) {
            0 => {
                let class = if self.below(8) == 0 { SizeClass::Block } else { SizeClass::Frame };
                let used = self.quota.used_bytes();
                let bytes = if class == SizeClass::Block { BLOCK_BYTES } else { FRAME_BYTES };
                let free = self.arena.free(class) > 0;
                let taken = self.arena.alloc_charged(class, &self.quota);
                assert_eq!(taken.is_some(), free && used + bytes <= QUOTA_BYTES);
                if let Some(mut buf) = taken {
                    assert_eq!(self.quota.used_bytes(), used + bytes);
                    let at = self.below(64);
                    buf[at..at + len].copy_from_slice(&model);
                    self.keep(Thing::Charged(buf.freeze(at..at + len)), model);
                }
            }
            _ => {
                let semantics = DataSemantics::ALL[self.below(8)];
                if let Ok(mut region) = self.cache.allocate(len, semantics)
                    && region.write(0, &model).is_ok()
                {
                    self.keep(Thing::Region(region), model);
                }
            }
        }
    }

    fn change(&mut self, pair: Pair) {
        let Pair { thing, model } = pair;
        match thing {
            Thing::Agg(agg) => self.change_agg(agg, model),
            Thing::Region(region) => self.change_region(region, model),
            Thing::Lent(lent) => match lent.reclaim() {
                Ok(region) => self.keep(Thing::Region(region), model),
                Err(lent) => self.keep(Thing::Lent(lent), model),
            },
            Thing::Charged(buf) => match self.below(3) {
                0 => {}
                1 => {
                    let copy = buf.clone();
                    self.keep(Thing::Agg(copy.into()), model.clone());
                    self.keep(Thing::Charged(buf), model);
                }
                _ => self.keep(Thing::Charged(buf), model),
            },
        }
    }

    fn change_agg(&mut self, mut agg: Agg, mut model: Vec<u8>) {
        let at = self.below(model.len() + 1);
        let count = self.below(model.len() - at + 1);
        match self.below(9) {
            0 => return,
            1 => {
                agg.truncate(at);
                model.truncate(at);
            }
            2 => {
                agg.advance(count);
                model.drain(..count);
            }
            3 => {
                let part = agg.slice(at..at + count);
                self.keep(Thing::Agg(part), model[at..at + count].to_vec());
            }
            4 => {
                let front = agg.split_to(at);
                let rest = model.split_off(at);
                self.keep(Thing::Agg(front), std::mem::replace(&mut model, rest));
            }
            5 => {
                let bytes = self.bytes(count);
                if agg.mutate(&self.arena, at, &bytes).is_ok() {
                    model[at..at + count].copy_from_slice(&bytes);
                }
            }
            6 => {
                if let Some(other) = self.things.pop() {
                    match other {
                        Pair { thing: Thing::Agg(more), model: bytes }
                            if agg.len() + more.len() <= 2 * LEN_MAX =>
                        {
                            agg.concatenate(more);
                            model.extend(bytes);
                        }
                        other => self.things.push(other),
                    }
                }
            }
            7 => {
                agg.slices().for_each(IoBuf::memoize);
            }
            _ => {
                let mut start = 0;
                for slice in agg.slices() {
                    let from = at.min(slice.len());
                    let to = (from + count).min(slice.len());
                    let sum = slice.slice(from..to).sum_with(naive_sum);
                    let want = naive_sum(&model[start + from..start + to]);
                    assert_eq!(sum % 0xffff, want % 0xffff, "a stale or wrong sum");
                    start += slice.len();
                }
            }
        }
        self.keep(Thing::Agg(agg), model);
    }

    fn change_region(&mut self, mut region: Region, mut model: Vec<u8>) {
        let at = self.below(model.len() + 1);
        let count = self.below(model.len() - at + 1);
        match self.below(5) {
            0 => return,
            1 | 2 => {
                let bytes = self.bytes(count);
                let shared = region.slices().any(|slice| !slice.is_unique());
                if self.below(4) == 0 {
                    region.slices().for_each(IoBuf::memoize);
                }
                check_sums(&region);
                match region.write(at, &bytes) {
                    Ok(copied) => {
                        assert!(copied == 0 || shared, "a copy without a reason");
                        model[at..at + count].copy_from_slice(&bytes);
                        check_sums(&region);
                    }
                    // It may be written in part: content is unknown from here on.
                    Err(_) => return,
                }
            }
            3 => {
                let semantics = DataSemantics::ALL[self.below(8)];
                let sent = model[at..at + count].to_vec();
                let (out, after) = if semantics == DataSemantics::Copy {
                    let Ok(out) = region.copy_out(at..at + count) else { return };
                    (out, region.after_copy(semantics, &self.cache))
                } else {
                    region.refer(at..at + count, semantics, &self.cache)
                };
                self.keep(Thing::Agg(out), sent);
                match after {
                    After::Mine(region) => self.keep(Thing::Region(region), model),
                    After::Lent(lent) => self.keep(Thing::Lent(lent), model),
                    After::Gone => {}
                    After::Readable(view) => {
                        let mut seen = vec![0; model.len()];
                        assert_eq!(view.peek(0, &mut seen), model.len());
                        assert_eq!(seen, model);
                        view.release(semantics, &self.cache);
                    }
                }
                return;
            }
            _ => {
                if let Some(Pair { thing: Thing::Agg(input), model: bytes }) = self.things.pop() {
                    if input.len() <= region.len() - at {
                        region.swap_in(at, input);
                        model[at..at + bytes.len()].copy_from_slice(&bytes);
                    } else {
                        self.things.push(Pair { thing: Thing::Agg(input), model: bytes });
                    }
                }
            }
        }
        self.keep(Thing::Region(region), model);
    }

    /// Looks at everything.
    fn audit(&mut self) {
        self.things.iter().for_each(compare);
        let audit = self.arena.audit();
        assert!(audit.freed_twice.is_empty() && audit.lost.is_empty(), "{audit:?}");
        if self.below(4) == 0 {
            self.things.clear();
            self.cache.clear();
            let audit = self.arena.audit();
            assert!(audit.is_clean(), "buffers leaked: {audit:?}");
            assert_eq!(self.quota.used_bytes(), 0, "charges leaked");
        }
    }
}

/// Sums that are remembered are those of the bytes as they are.
fn check_sums(region: &Region) {
    for slice in region.slices() {
        let (sum, want) = (slice.sum_with(naive_sum), naive_sum(slice));
        assert_eq!(sum % 0xffff, want % 0xffff, "a stale or wrong sum");
    }
}

fn compare(pair: &Pair) {
    let mut rest: &[u8] = &pair.model;
    let mut eat = |slice: &IoBuf| {
        assert!(rest.starts_with(slice), "content differs");
        rest = &rest[slice.len()..];
    };
    match &pair.thing {
        Thing::Agg(agg) => agg.slices().for_each(eat),
        Thing::Region(region) => region.slices().for_each(eat),
        Thing::Charged(buf) => eat(buf),
        // Nobody writes to what is lent here, and nobody may look at it either.
        Thing::Lent(_) => rest = &[],
    }
    assert!(rest.is_empty(), "content is missing");
}
