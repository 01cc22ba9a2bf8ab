//! Byte ranges (RFC 9110 section 14).

use std::ops::Range;

/// What a `Range` field asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of it: the field is malformed, of another unit, or names several ranges, which a server
    /// may ignore.
    Whole,
    /// These bytes, never none.
    Part(Range<u64>),
    /// Nothing that exists.
    Unsatisfiable,
}

/// Reads a `Range` field for a file of `len` bytes.
pub(crate) fn parse(field: &[u8], len: u64) -> Wanted {
    let Some((unit, spec)) = field.split_at_checked(6) else { return Wanted::Whole };
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return Wanted::Whole;
    }
    let spec = spec.trim_ascii();
    let Some(dash) = spec.iter().position(|&byte| byte == b'-') else { return Wanted::Whole };
    let (first, last) = (&spec[..dash], &spec[dash + 1..]);
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => part(first, last.saturating_add(1), len),
        (Some(first), None) if last.is_empty() => part(first, len, len),
        (None, Some(count)) if first.is_empty() => part(len.saturating_sub(count), len, len),
        _ => Wanted::Whole,
    }
}

fn part(start: u64, end: u64, len: u64) -> Wanted {
    let end = end.min(len);
    if start < end { Wanted::Part(start..end) } else { Wanted::Unsatisfiable }
}

/// A decimal number, as large as can be if it is larger; `None` if it is none.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        Some(sum.saturating_mul(10).saturating_add(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn single_ranges() {
        for (field, want) in [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=0-", Wanted::Part(0..100)),
            ("Bytes=10-19", Wanted::Part(10..20)),
            ("bytes=99-", Wanted::Part(99..100)),
            ("bytes=90-1000", Wanted::Part(90..100)),
            ("bytes=-1", Wanted::Part(99..100)),
            ("bytes=-1000", Wanted::Part(0..100)),
            ("bytes= 5-6 ", Wanted::Part(5..7)),
            ("bytes=0-99999999999999999999999999", Wanted::Part(0..100)),
            ("bytes=100-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=99999999999999999999999999-", Wanted::Unsatisfiable),
            ("bytes=6-5", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=1", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("lines=0-1", Wanted::Whole),
            ("", Wanted::Whole),
        ] {
            assert_eq!(parse(field.as_bytes(), 100), want, "{field}");
        }
        assert_eq!(parse(b"bytes=0-", 0), Wanted::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_is_inside_the_file(field in "bytes=[0-9]{0,21}-[0-9]{0,21}", len in any::<u64>()) {
            if let Wanted::Part(range) = parse(field.as_bytes(), len) {
                prop_assert!(range.start < range.end && range.end <= len);
            }
        }

        #[test]
        fn anything_is_survived(field in prop::collection::vec(any::<u8>(), 0..40), len in any::<u64>()) {
            let _ = parse(&field, len);
        }
    }
}
