//! What a server is told at start.

use std::time::{Duration, SystemTime};

use millstream_buf::DataSemantics;

/// How long a peer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first byte of a request's head to its last, and from a new connection to its first
    /// request. Ends with 408.
    pub header: Duration,
    /// From a response to the next request. Ends with a close.
    pub idle: Duration,
    /// A peer that we wait for while sending, or in order to close, must acknowledge
    /// [`Self::send_bytes_min`] (or all that there is) in this time, over and over. Ends with a reset.
    pub send: Duration,
    /// See [`Self::send`].
    pub send_bytes_min: u64,
    /// When we close, the peer has this long to close too, from when it has acknowledged the last
    /// response. What it still sends meanwhile is thrown away: a reset would destroy the response
    /// before it is read (RFC 9112 section 9.6).
    pub linger: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            send: Duration::from_secs(30),
            send_bytes_min: 15_000,
            linger: Duration::from_secs(2),
        }
    }
}

/// What is kept of files that are asked for again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Files known by name: their length, validators and response head, and an open descriptor of
    /// the larger ones.
    pub entries: usize,
    /// Content kept in arena buffers, counted in whole buffers.
    pub bytes: usize,
    /// Longest file whose content is kept.
    pub file_bytes_max: usize,
    /// How long a name is trusted before it is looked at again.
    pub valid: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            entries: 1024,
            bytes: 8 << 20,
            file_bytes_max: 64 << 10,
            valid: Duration::from_secs(1),
        }
    }
}

/// Bounds, time-outs and names of a [`FileServer`](crate::FileServer).
#[derive(Clone, Copy, Debug)]
pub struct ServerConfig {
    /// Connections served at a time; more are answered with 503.
    pub connections: usize,
    /// Longest head of a request; longer ones are answered with 414 or 431.
    pub head_bytes_max: usize,
    /// Requests that have arrived in part, in bytes of all connections together; beyond it they are
    /// answered with 503.
    pub partial_bytes_max: usize,
    /// Threads that look up names which are not in the kernel's caches; 0: the loop waits for them.
    pub lookup_threads: usize,
    /// Time-outs.
    pub timeouts: Timeouts,
    /// The cache.
    pub cache: CacheConfig,
    /// How cached content is sent: by reference ([`DataSemantics::EmulatedCopy`] and all others), or with
    /// [`DataSemantics::Copy`] copied for each response, which is for comparison.
    pub semantics: DataSemantics,
    /// Where `Date` comes from, asked once a second.
    pub wall_clock: fn() -> SystemTime,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            connections: 16_000,
            head_bytes_max: 8 << 10,
            partial_bytes_max: 16 << 20,
            lookup_threads: 0,
            timeouts: Timeouts::default(),
            cache: CacheConfig::default(),
            semantics: DataSemantics::default(),
            wall_clock: SystemTime::now,
        }
    }
}
