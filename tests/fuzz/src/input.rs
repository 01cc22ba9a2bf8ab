//! Pieces of inputs.

use arbitrary::{Arbitrary, Result, Unstructured};

/// An offset that is mostly nothing or small, since what is close to right goes deepest.
#[derive(Clone, Copy, Debug)]
pub struct Near(pub i32);

impl<'a> Arbitrary<'a> for Near {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(match u.arbitrary::<u8>()? % 16 {
            0..=8 => 0,
            9 => 1,
            10 => -1,
            11 | 12 => i32::from(u.arbitrary::<i8>()?),
            13 => i32::from(u.arbitrary::<i8>()?) * 1448,
            14 => i32::from(u.arbitrary::<i16>()?) * 4,
            _ => u.arbitrary()?,
        }))
    }
}

/// A span of time in microseconds, from nothing to hours.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub u64);

impl<'a> Arbitrary<'a> for Span {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let value = u64::from(u.arbitrary::<u16>()?);
        Ok(Self(match u.arbitrary::<u8>()? % 8 {
            0..=2 => value / 64,
            3 | 4 => value,
            5 => value * 16,
            6 => value * 1_000,
            _ => value * 50_000,
        }))
    }
}

/// A byte that tells by its place what it must be: so a stream, or a segment of it, can be checked
/// anywhere.
pub fn byte_at(place: u32) -> u8 {
    (place.wrapping_mul(0x9e37_79b1) >> 24) as u8
}

/// The bytes from `place` on.
pub fn bytes_at(place: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|offset| byte_at(place.wrapping_add(offset))).collect()
}
