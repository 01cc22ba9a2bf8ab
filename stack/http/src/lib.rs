//! HTTP/1.1: files below a directory, over the sockets of [`millstream_core`].
//!
//! ```text
//! slice of a received frame -> request (parsed where it lies) -> answer (cache, file, range,
//! conditions) -> connection (sends in order, bounds every wait)
//! ```
//!
//! * A small file that was asked for twice is kept in arena buffers, together with the head of its
//!   response ([`CacheConfig`]). Serving it again takes a parse, a hash and two counted references;
//!   without the parse if the request has come before byte for byte.
//! * A larger file goes from the disk to the wire by
//!   [`TcpStream::send_file`](millstream_core::TcpStream::send_file), pulled by the peer's window.
//! * Every wait for a peer has an end ([`Timeouts`]), and every memory a bound
//!   ([`ServerConfig`]).
//!
//! Looking at a name (`open`, `stat`) takes the loop a system call; a cached name is looked at once a
//! second at most. Where the kernel would have to wait for a disk, helper threads look it up
//! ([`ServerConfig::lookup_threads`]) and the request waits for them.

#![forbid(unsafe_code)]

mod answer;
mod cache;
mod conditional;
mod config;
mod connection;
mod date;
mod fill;
mod names;
mod path;
mod range;
mod repeats;
mod request;
mod response;
mod server;
mod stats;

pub use config::{CacheConfig, ServerConfig, Timeouts};
pub use server::FileServer;
pub use stats::HttpStats;
