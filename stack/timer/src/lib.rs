//! Time, and what happens at a time.
//!
//! Protocol code takes an [`Instant`] and never reads a clock; only a shard's loop does, once a
//! turn. [`TimerWheel`] keeps deadlines; [`SoftTimers`] is the facility of Aron and Druschel's
//! paper over it, whose events fire at trigger points instead of interrupts.

#![forbid(unsafe_code)]

mod clock;
mod instant;
mod soft;
mod stage;
mod wheel;

pub use clock::{Clock, TscClock, VirtualClock};
pub use instant::Instant;
pub use soft::SoftTimers;
pub use stage::Stage;
pub use wheel::{TICK_NANOS, TimerId, TimerWheel};
