//! TCP as a pure state machine: no I/O, no clock, no allocation once it runs.
//!
//! A [`Tcb`] is one connection. Whoever owns it feeds it segments ([`Tcb::input`]), asks it for
//! segments ([`Tcb::transmit`]) and tells it when its earliest timer is due ([`Tcb::deadline`],
//! [`Tcb::on_timer`]). What they share, the moment, the configuration, the slab of slices and the
//! counters, comes along as an [`Env`]. The answer to a segment or a timer is a set of [`Events`].
//!
//! How to read the crate:
//!
//! | file | concern |
//! |---|---|
//! | `tcb` | the record of a connection, and how it looks from outside |
//! | `input` | segments of synchronised states, in the order of checks of RFC 9293 section 3.10.7.4 |
//! | `input_syn` | SYN-SENT, the passive open, negotiation of options |
//! | `transmit` | what to send now: RFC 9293 section 3.8.6, Nagle, windows announced |
//! | `push` | where PSH stands |
//! | `close` | closing, aborting, ICMP errors |
//! | `stream` | the application's bytes in and out |
//! | `timers` | retransmission, persist, delayed ACK, keep-alive, TIME-WAIT |
//! | `recovery` | losses and their repair: SACK, RACK-TLP, PRR, undo |
//! | `flight` | what is known about each segment in flight |
//! | `rate` | how fast the network delivers |
//! | `pacing` | segments clocked out at a rate |
//! | `start` | a start without slow start, where the rate is known |
//! | `ecn` | RFC 3168, RFC 8257 |
//! | `buffers` | buffers that grow |
//! | `mtu` | segments no larger than the path carries: RFC 1191, RFC 8201, RFC 4821 |
//! | `times` | how long a sender was busy, and what held it back |
//! | `congestion` | how large the congestion window is, behind one trait: CUBIC, NewReno, BBR, DCTCP |
//! | `rtt` | RFC 6298 |
//! | `send_queue`, `receive_queue`, `slab` | where slices wait |
//! | `isn` | RFC 6528 |
//! | `cookie` | SYN cookies: RFC 4987 |
//! | `time_wait` | what is left of a connection in TIME-WAIT |
//!
//! Header prediction lies in `input`; what it does not take goes to functions marked cold.
//!
//! Urgent data is delivered in line, as RFC 6093 asks of new software; the pointer is ignored.

#![forbid(unsafe_code)]

mod buffers;
mod close;
mod config;
mod congestion;
mod cookie;
mod ecn;
mod flight;
mod input;
mod input_syn;
mod isn;
mod let_go;
mod mtu;
mod pacing;
mod push;
mod rate;
mod receive_queue;
mod recovery;
mod rtt;
mod segment;
mod send_queue;
mod slab;
mod start;
mod state;
mod stats;
mod stream;
mod tcb;
mod time_wait;
mod timers;
mod times;
mod transmit;

pub use close::Unreachable;
pub use config::{Clocking, Config, Ecn, KeepAlive};
pub use congestion::{
    Ack, Algorithm, Bbr, Controller, Cubic, Dctcp, EcnUse, NewReno, RateSample, Signal,
    UnknownAlgorithm, Window,
};
pub use cookie::SynCookies;
pub use ecn::{CE, ECT_0};
pub use isn::IsnGenerator;
pub use pacing::{PacingRate, PacingRateError};
pub use recovery::CongestionState;
pub use segment::{MAX_SLICES, Segment, reset_reply};
pub use slab::SliceSlab;
pub use start::KnownStart;
pub use state::{ConnectionError, Events, State};
pub use stats::TcpStats;
pub use stream::SendError;
pub use tcb::{Env, Tcb, TcpInfo};
pub use time_wait::{TimeWait, Verdict};
pub use times::SendTimes;
