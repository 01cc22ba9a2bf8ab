//! Remembered checksums are never stale, whatever happens to buffers, and right for any segmentation.

use std::cell::Cell;

use millstream_buf::{Arena, ArenaConfig, HugePages, IoBuf, SizeClass};
use proptest::prelude::*;

/// RFC 1071 by its definition.
fn naive(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Zero has two forms in one's complement.
fn same(a: u16, b: u16) -> bool {
    a % 0xffff == b % 0xffff
}

fn arena() -> Arena {
    Arena::new(&ArenaConfig { frames: 3, blocks: 3, huge_pages: HugePages::Never }).unwrap()
}

fn filled(arena: &Arena, class: SizeClass, seed: u8) -> Option<IoBuf> {
    let mut buf = arena.alloc(class)?;
    let mut state = u32::from(seed) + 1;
    for byte in buf.iter_mut() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    let len = buf.len();
    Some(buf.freeze(0..len))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Random slices of buffers that are written, shared, given up and taken anew: every sum is that of
    /// the bytes as they are.
    #[test]
    fn never_stale(
        ops in prop::collection::vec((0_u8..8, any::<u16>(), any::<u16>(), any::<u8>()), 1..120),
    ) {
        let arena = arena();
        let mut bufs: Vec<IoBuf> = Vec::new();
        for (op, a, b, value) in ops {
            let pick = usize::from(a) % bufs.len().max(1);
            match op {
                0 => {
                    let class = if b % 2 == 0 { SizeClass::Frame } else { SizeClass::Block };
                    if let Some(buf) = filled(&arena, class, value) {
                        if value % 4 > 0 { buf.memoize(); }
                        bufs.push(buf);
                    }
                }
                1 if !bufs.is_empty() => { bufs.swap_remove(pick); }
                2 if !bufs.is_empty() => {
                    let at = usize::from(b) % bufs[pick].len().max(1);
                    if let Some((bytes, _)) = bufs[pick].make_mut(&arena)
                        && let Some(byte) = bytes.get_mut(at) { *byte = value; }
                }
                3 if bufs.len() < 12 && !bufs.is_empty() => {
                    let copy = bufs[pick].clone();
                    bufs.push(copy);
                }
                4 if !bufs.is_empty() => bufs[pick].memoize(),
                5..=7 if !bufs.is_empty() => {
                    let buf = &bufs[pick];
                    // Mostly segments as TCP cuts them, of two sizes.
                    let size = if value % 3 == 0 { 1448 } else if value % 3 == 1 { 537 } else { usize::from(b) };
                    let from = (usize::from(b) / 7 * size) % buf.len().max(1);
                    let to = (from + size).min(buf.len());
                    let slice = buf.slice(from..to);
                    prop_assert!(same(slice.sum_with(naive), naive(&slice)), "{}..{}", from, to);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn what_was_summed_once_is_not_touched_again() {
    let arena = arena();
    let block = filled(&arena, SizeClass::Block, 1).unwrap();
    block.memoize();
    let document = block.slice(231..16_000);
    let touched = Cell::new(0);
    let sum_of = |bytes: &[u8]| {
        touched.set(touched.get() + bytes.len());
        naive(bytes)
    };
    let pass = |size: usize| {
        touched.set(0);
        for from in (0..document.len()).step_by(size) {
            let slice = document.slice(from..(from + size).min(document.len()));
            assert!(same(slice.sum_with(sum_of), naive(&slice)));
        }
        touched.get()
    };
    assert_eq!(pass(1448), document.len(), "the first time every byte is read once");
    assert_eq!(pass(1448), 0);
    // Another size of segments: its ends are found from the cuts that there are, at most the distance to
    // the nearest one a segment.
    assert!(pass(1220) < document.len());
    assert_eq!(pass(1220), 0);
    assert_eq!(pass(1448), 0);
    // The whole, and any join of segments, at odd offsets too.
    touched.set(0);
    for (from, to) in [(0, 1448 * 3), (1448, 1448 * 5), (0, document.len())] {
        let slice = document.slice(from..to);
        assert!(same(slice.sum_with(sum_of), naive(&slice)));
    }
    assert_eq!(touched.get(), 0);
    let stats = arena.memo_stats();
    assert!(stats.hits > 30 && stats.summed_bytes < 2 * document.len() as u64, "{stats:?}");
}

#[test]
fn more_cuts_than_there_is_room_for_are_no_error() {
    let arena = arena();
    let block = filled(&arena, SizeClass::Block, 9).unwrap();
    block.memoize();
    for size in [333, 7, 1000, 5] {
        for from in (0..block.len()).step_by(size) {
            let slice = block.slice(from..(from + size).min(block.len()));
            assert!(same(slice.sum_with(naive), naive(&slice)));
        }
    }
}

#[test]
fn a_buffer_written_in_place_has_no_memo() {
    let arena = arena();
    let mut buf = filled(&arena, SizeClass::Frame, 1).unwrap();
    buf.memoize();
    let generation = buf.generation();
    buf.sum_with(naive);
    buf.make_mut(&arena).unwrap().0[0] ^= 1;
    assert!(!buf.is_memoized());
    assert_ne!(buf.generation(), generation);
    let heap = IoBuf::from(vec![1, 2, 3]);
    heap.memoize();
    assert!(!heap.is_memoized(), "the heap has no place for it");
    assert_eq!(heap.sum_with(naive), naive(&[1, 2, 3]));
}
