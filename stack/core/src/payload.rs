//! Sums of payloads, from their bytes or from memory.

use millstream_buf::IoBuf;
use millstream_wire::checksum::Sum;

/// Length of a payload, and its sum if that is wanted. Not inlined: what it takes to sum runs of any
/// length would crowd the headers out of the registers.
#[inline(never)]
pub(crate) fn sum_payload(slices: &[IoBuf], wanted: bool) -> (usize, Sum) {
    let (mut len, mut sum) = (0, Sum::new());
    for slice in slices {
        len += slice.len();
        if wanted && slice.is_memoized() {
            sum.add_known(remembered(slice), slice.len());
        } else if wanted {
            sum.add_bytes(slice);
        }
    }
    (len, sum)
}

/// The sum of a slice of a buffer that remembers sums: of content that was sent before, nothing is
/// touched.
#[inline(never)]
fn remembered(slice: &IoBuf) -> u16 {
    slice.sum_with(|bytes| {
        let mut sum = Sum::new();
        sum.add_bytes(bytes);
        sum.fold()
    })
}
