//! Physical region pages: how a command names its memory (NVMe Base Specification 2.0, 4.1.1).

use super::access::{DmaMemory, PAGE_BYTES};

/// Addresses that fit one page, which is all that a command's list has.
const LIST_LEN: usize = PAGE_BYTES / 8;

/// Bytes that a command with one page of list can always name, wherever in a page they begin.
pub(crate) const PRP_BYTES_MAX: usize = LIST_LEN * PAGE_BYTES;

/// The two words for `len` bytes at `start`, whose pages are where `iova` says. A list goes to
/// `list`, the page at an offset of the lists' memory.
///
/// `None` if the device cannot reach all of it, if it is empty or does not begin at a multiple of
/// four bytes, or if it is longer than the list.
#[inline]
pub(crate) fn build(
    iova: impl Fn(usize) -> Option<u64>,
    start: usize,
    len: usize,
    list: (&DmaMemory, usize),
) -> Option<(u64, u64)> {
    if len == 0 || !start.is_multiple_of(4) {
        return None;
    }
    let first = iova(start)?;
    let in_first = PAGE_BYTES - start % PAGE_BYTES;
    if len <= in_first {
        // A range ends in the page in which it begins, so its last byte is reachable too if the
        // table works in pages; a table may end in the middle of one.
        iova(start + len - 1)?;
        return Some((first, 0));
    }
    let rest = len - in_first;
    let second = start + in_first;
    iova(start + len - 1)?;
    if rest <= PAGE_BYTES {
        return Some((first, iova(second)?));
    }
    build_list(iova, second, rest, list).map(|list| (first, list))
}

fn build_list(
    iova: impl Fn(usize) -> Option<u64>,
    start: usize,
    len: usize,
    (lists, offset): (&DmaMemory, usize),
) -> Option<u64> {
    let pages = len.div_ceil(PAGE_BYTES);
    if pages > LIST_LEN {
        return None;
    }
    for page in 0..pages {
        lists.write64(offset + 8 * page, iova(start + page * PAGE_BYTES)?);
    }
    lists.iova(offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::access::IovaTable;
    use proptest::prelude::*;

    const BASE: usize = 0x10_0000;

    /// The bytes that a device would transfer, as (address, length) in order.
    fn walk(prp: (u64, u64), len: usize, lists: &DmaMemory) -> Vec<(u64, usize)> {
        let in_first = PAGE_BYTES - prp.0 as usize % PAGE_BYTES;
        let mut out = vec![(prp.0, len.min(in_first))];
        let mut left = len.saturating_sub(in_first);
        if left > PAGE_BYTES {
            let list = (prp.1 - lists.iova(0).unwrap()) as usize;
            for at in (list..).step_by(8) {
                let mut address = [0; 8];
                lists.copy_out(at, &mut address);
                out.push((u64::from_le_bytes(address), left.min(PAGE_BYTES)));
                left = left.saturating_sub(PAGE_BYTES);
                if left == 0 {
                    break;
                }
            }
        } else if left > 0 {
            out.push((prp.1, left));
        }
        out
    }

    proptest! {
        #[test]
        fn a_device_finds_every_byte_in_order(
            start in (0usize..8192).prop_map(|start| start / 4 * 4),
            len in 1usize..600_000,
            seed in any::<u64>(),
        ) {
            let lists = DmaMemory::anonymous(2 * PAGE_BYTES, false).unwrap();
            let own = IovaTable::linear(lists.start().as_ptr() as usize, 2 * PAGE_BYTES, 0x5000_0000);
            let lists = lists.with_iovas(own);
            // Pages scattered over the device's addresses.
            let page_of = |index: usize| (seed ^ index as u64).wrapping_mul(0x9e37_79b9) << 12 & 0xffff_ffff_f000;
            let iovas = (0..160).map(page_of).collect();
            let table = IovaTable::paged(BASE, 160 * PAGE_BYTES, 12, iovas).unwrap();
            let prp = build(|at| table.iova(at), BASE + start, len, (&lists, PAGE_BYTES)).unwrap();
            let mut at = BASE + start;
            for (iova, bytes) in walk(prp, len, &lists) {
                prop_assert_eq!(Some(iova), table.iova(at));
                at += bytes;
            }
            prop_assert_eq!(at, BASE + start + len);
        }
    }

    #[test]
    fn what_a_device_cannot_reach_is_refused() {
        let lists = DmaMemory::anonymous(PAGE_BYTES, false).unwrap();
        let table = IovaTable::linear(BASE, 3 * PAGE_BYTES, 0x7000);
        let prp = |start, len| build(|at| table.iova(at), start, len, (&lists, 0));
        assert_eq!(prp(BASE, 4096), Some((0x7000, 0)));
        assert_eq!(prp(BASE + 4, 4096), Some((0x7004, 0x8000)));
        assert_eq!(prp(BASE, 3 * PAGE_BYTES), None, "no device knows the list");
        assert_eq!(prp(BASE + 2 * PAGE_BYTES, PAGE_BYTES + 1), None, "beyond the end");
        assert_eq!(prp(BASE + 2, 512), None, "not a multiple of four");
        assert_eq!((prp(BASE, 0), prp(BASE - 4, 8)), (None, None));
    }
}
