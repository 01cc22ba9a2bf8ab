//! An NVMe controller in this process, well-behaved or hostile, under the caller's clock.
//!
//! It implements the registers, the queues and the commands that the driver uses, and is strict: what
//! the driver does against the specification is counted as a [violation](SimStats::violations),
//! and so is an address that it was never given. All its randomness comes from a seed.
//!
//! Its faults are those that the driver must survive: completions late, in another order, twice,
//! with garbage in them or not at all; data written long after the driver gave up on it; media
//! errors; a controller that reports a fatal error, does not start, does not stop, or is pulled out.

mod admin;
mod device;
mod faults;
mod memory;

pub use device::{SimDevice, SimStats};
pub use faults::{Content, Faults, SimConfig, pattern};
