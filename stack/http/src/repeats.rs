//! Requests that came before, byte for byte.
//!
//! A client says the same in each request but for the path, and asks for popular files again and
//! again. What was once parsed and answered from the cache need not be parsed anew: equal bytes mean
//! the same request.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use crate::cache::EntryId;

/// Requests that are remembered. One takes the place of another with the same hash.
const PLACES: usize = 64;
/// Longest head that is.
const HEAD_BYTES_MAX: usize = 240;

/// A head, and the file that it asks for.
#[derive(Clone, Copy)]
struct Known {
    entry: Option<EntryId>,
    len: u8,
    head: [u8; HEAD_BYTES_MAX],
}

/// Heads of requests for files in the cache, each with the file. All memory is taken at the start.
pub(crate) struct Repeats {
    hasher: RandomState,
    places: Box<[Known]>,
}

impl Repeats {
    pub fn new() -> Self {
        let none = Known { entry: None, len: 0, head: [0; HEAD_BYTES_MAX] };
        Self { hasher: RandomState::default(), places: vec![none; PLACES].into() }
    }

    #[inline]
    fn place(&self, head: &[u8]) -> usize {
        self.hasher.hash_one(head) as usize % PLACES
    }

    /// The file that `bytes` ask for, if they are one whole request that was kept.
    #[inline]
    pub fn find(&self, bytes: &[u8]) -> Option<EntryId> {
        if bytes.len() > HEAD_BYTES_MAX {
            return None;
        }
        let known = self.places.get(self.place(bytes))?;
        let head = known.head.get(..usize::from(known.len))?;
        if head == bytes { known.entry } else { None }
    }

    /// Remembers that `head`, one whole request, asks for `entry`.
    #[inline]
    pub fn keep(&mut self, head: &[u8], entry: EntryId) {
        let place = self.place(head);
        if let Some(known) = self.places.get_mut(place)
            && let Some(room) = known.head.get_mut(..head.len())
        {
            room.copy_from_slice(head);
            known.len = head.len() as u8;
            known.entry = Some(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";

    #[test]
    fn only_equal_bytes_are_a_repeat() {
        let mut repeats = Repeats::new();
        assert_eq!(repeats.find(HEAD), None);
        assert_eq!(repeats.find(b""), None);
        repeats.keep(HEAD, EntryId::new(3, 7));
        assert_eq!(repeats.find(HEAD), Some(EntryId::new(3, 7)));
        for end in 0..HEAD.len() {
            assert_eq!(repeats.find(&HEAD[..end]), None, "a beginning of {end} bytes");
            let mut other = HEAD.to_vec();
            other[end] ^= 1;
            assert_eq!(repeats.find(&other), None, "another byte {end}");
        }
        assert_eq!(repeats.find(&[HEAD, HEAD].concat()), None, "two of them");
    }

    #[test]
    fn a_later_request_takes_the_place_and_long_ones_are_left_out() {
        let mut repeats = Repeats::new();
        for number in 0..10 * PLACES as u32 {
            let head = format!("GET /{number} HTTP/1.1\r\nHost: h\r\n\r\n");
            repeats.keep(head.as_bytes(), EntryId::new(number, 1));
            assert_eq!(repeats.find(head.as_bytes()), Some(EntryId::new(number, 1)));
        }
        for len in [HEAD_BYTES_MAX, HEAD_BYTES_MAX + 1, 5000] {
            let head = vec![b'x'; len];
            repeats.keep(&head, EntryId::new(9, 9));
            assert_eq!(repeats.find(&head).is_some(), len <= HEAD_BYTES_MAX);
        }
    }
}
