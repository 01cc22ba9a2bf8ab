//! Time, and what happens at a time.

#![forbid(unsafe_code)]

mod instant;

pub use instant::Instant;
