//! The way home of references that other threads give back.
//!
//! Handles never leave their thread, but a driver may free a frame wherever its peer runs (a ring, a
//! memif, an lcore that cleans up). What comes back there is a reference on a buffer, and the count of
//! references is a plain integer, so only the owner may lower it. Each buffer therefore has a place
//! here with a count of its own; the first reference that comes back puts the place on a list, and the
//! owner takes the whole list at once. Nothing is allocated, nothing is lost however many references
//! on one buffer are out, and both sides are free of locks: giving is one addition and, for the first,
//! one exchange.
//!
//! The list is taken as a whole, never popped from, so that a place that goes and comes back between
//! two looks (the ABA problem) cannot be mistaken for one that stayed.

use super::sync::{AtomicU32, Ordering};

/// The end of the list.
const END: u32 = u32::MAX;

struct Place {
    /// References that came back and the owner has not taken.
    count: AtomicU32,
    /// The next place on the list, while this one is on it.
    next: AtomicU32,
}

/// Where references on the buffers of one owner come back to.
pub(crate) struct Returns {
    /// The first place on the list.
    first: AtomicU32,
    places: Box<[Place]>,
}

impl Returns {
    /// For `buffers` buffers, numbered from 0.
    pub(crate) fn new(buffers: usize) -> Self {
        let place = || Place { count: AtomicU32::new(0), next: AtomicU32::new(END) };
        Self {
            first: AtomicU32::new(END),
            places: std::iter::repeat_with(place).take(buffers).collect(),
        }
    }

    /// Gives back one reference on a buffer, from any thread.
    pub(crate) fn give(&self, buffer: u32) {
        let Some(place) = self.places.get(buffer as usize) else { return };
        // Release: what this thread read of the buffer is over before the owner reuses it. Acquire: if
        // the owner took the place before, it has read `next` before that is written anew here.
        if place.count.fetch_add(1, Ordering::AcqRel) > 0 {
            // Another thread has put the place on the list, or is about to.
            return;
        }
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            place.next.store(first, Ordering::Relaxed);
            // Release: whoever takes the list sees `next`.
            let swapped = self.first.compare_exchange_weak(
                first,
                buffer,
                Ordering::Release,
                Ordering::Relaxed,
            );
            match swapped {
                Ok(_) => return,
                Err(now) => first = now,
            }
        }
    }

    /// Takes all that came back: each buffer with how many references on it. Only the owner calls this.
    pub(crate) fn take(&self, mut each: impl FnMut(u32, u32)) {
        if self.first.load(Ordering::Relaxed) == END {
            return;
        }
        let mut buffer = self.first.swap(END, Ordering::Acquire);
        while let Some(place) = self.places.get(buffer as usize) {
            // Before the count is taken: from then on another thread may put the place on a new list.
            let next = place.next.load(Ordering::Relaxed);
            each(buffer, place.count.swap(0, Ordering::AcqRel));
            buffer = next;
        }
    }
}
