//! Time, and what happens at a time.
//!
//! Protocol code takes an [`Instant`] and never reads a clock; only a shard's loop does, once a
//! turn. [`TimerWheel`] keeps deadlines; [`SoftTimers`] is the facility of Aron and Druschel's
//! paper over it, whose events fire at trigger points instead of interrupts, and [`RateClock`] its
//! rate-based clocking. [`Backup`] ticks beside a loop that may be held up, [`TriggerStats`] tells
//! how far apart its trigger points lie, and [`SignalTimer`] is what all of it is measured against.

#![forbid(unsafe_code)]

mod backup;
mod clock;
mod instant;
mod rate_clock;
mod signal;
mod soft;
mod stage;
mod trigger;
mod wheel;

pub use backup::{BACKUP_HZ_MAX, Backup};
pub use clock::{Clock, ClockSource, TscClock, VirtualClock};
pub use instant::Instant;
pub use rate_clock::{RateClock, RateClockError};
pub use signal::SignalTimer;
pub use soft::SoftTimers;
pub use stage::Stage;
pub use trigger::{TriggerSource, TriggerStats};
pub use wheel::{TICK_NANOS, TimerId, TimerWheel};
