//! Copying a few bytes without a call.

/// As [`slice::copy_from_slice`], for runs that are nearly always short: headers, small writes.
///
/// Up to 128 bytes are moved in two pieces of a fixed size, one from each end, which overlap as the
/// length wants: a handful of loads and stores, where a call of `memcpy` costs more than the bytes.
///
/// # Panics
/// If the lengths differ.
#[inline]
pub fn copy_short(to: &mut [u8], from: &[u8]) {
    assert!(to.len() == from.len());
    let len = from.len();
    if len > 16 {
        match len {
            129.. => to.copy_from_slice(from),
            65.. => both_ends::<64>(to, from),
            33.. => both_ends::<32>(to, from),
            _ => both_ends::<16>(to, from),
        }
    } else if len >= 4 {
        if len >= 8 { both_ends::<8>(to, from) } else { both_ends::<4>(to, from) }
    } else if len >= 2 {
        both_ends::<2>(to, from);
    } else if let (Some(to), Some(from)) = (to.first_mut(), from.first()) {
        *to = *from;
    }
}

/// Copies the first and the last `N` bytes.
#[inline]
fn both_ends<const N: usize>(to: &mut [u8], from: &[u8]) {
    if let (Some(first), Some(last)) = (from.first_chunk::<N>(), from.last_chunk::<N>()) {
        if let Some(to) = to.first_chunk_mut::<N>() {
            *to = *first;
        }
        if let Some(to) = to.last_chunk_mut::<N>() {
            *to = *last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_every_length() {
        let from: Vec<u8> = (0..200).map(|i| i as u8 ^ 0x5a).collect();
        for len in 0..from.len() {
            let mut to = vec![0; len];
            copy_short(&mut to, &from[..len]);
            assert_eq!(to, from[..len]);
        }
    }

    #[test]
    #[should_panic]
    fn lengths_must_agree() {
        copy_short(&mut [0; 3], &[0; 4]);
    }
}
