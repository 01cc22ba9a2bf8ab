//! Header views and representations, and checksums: no state, no I/O.
//!
//! One protocol a module. Parsing checks every length before it reads, never panics, and never
//! trusts a length that came from the network. Emitting a representation that this crate's types
//! can express never panics when the buffer is as long as asked for.

#![forbid(unsafe_code)]

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod icmpv4;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod ipv6_extension;
pub mod ndp;
pub mod tcp;
pub mod udp;
