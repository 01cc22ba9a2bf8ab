//! The machine: what runs on one core.
//!
//! A [`Shard`] joins a [`Link`](millstream_link::Link), a
//! [`DiskQueue`](millstream_disk::DiskQueue) and a [`Clock`](millstream_timer::Clock), and turns a
//! loop over them. The application runs in that loop, as tasks on a single-threaded executor; it
//! holds a [`Stack`] and gets sockets from it: [`TcpListener`], [`TcpStream`], [`UdpSocket`].
//!
//! A packet's way in: `state` (burst) -> `demux` (headers only) -> `channel` (bounded) ->
//! `segment` (checksum, then `millstream_tcp`) -> the task is woken -> `stream`.
//! A packet's way out: `stream` -> TCP's send queue -> `output` -> the link, in the same turn.
//! A disk byte's way: `splice`. A timer's: `state`, `fire_timers`.

#![forbid(unsafe_code)]

mod agenda;
mod autoconf;
mod block_cache;
mod channel;
mod client_rate;
mod config;
mod conn;
mod container;
mod control;
mod demux;
mod demux6;
mod executor;
mod flow;
mod fragments;
mod idle;
mod ipv6;
mod keys;
mod listener;
mod merge;
mod metrics;
mod neighbor;
mod next_hop;
mod output;
mod output6;
mod pairs;
mod path;
mod path_rates;
mod payload;
mod pmtu;
mod policy;
mod poll;
mod principals;
mod proxy;
mod read;
mod readahead;
mod reassembly;
mod requests;
mod schedule;
mod segment;
mod semantics;
mod shard;
mod splice;
mod stack;
mod state;
mod stream;
mod syn_cookie;
mod time_wait;
mod udp;
mod waiting;

pub use block_cache::CacheStats;
pub use client_rate::{ClientRate, PrefixError};
pub use config::{
    DiskNet, Ipv4Config, Ipv6Config, Limits, Polling, Quota, Retention, ShardConfig,
    SynCookiePolicy, TimerSource, random_secret,
};
pub use container::{
    CONTAINERS_MAX, ContainerError, ContainerId, ContainerSpec, ContainerUsage, FilterError,
    PRIORITIES, PRIORITY_DEFAULT, Prefix,
};
pub use control::SendFlags;
pub use executor::{JoinHandle, TooManyTasks};
pub use listener::ListenError;
pub use metrics::{RxMetrics, ShardMetrics};
pub use policy::{Disposition, RxPolicy, Scheduling};
pub use principals::{ContainerReport, SpawnError};
pub use requests::{Request, RequestError, RequestQueue, Requests};
pub use semantics::Sent;
pub use shard::{Idle, Shard, Turn};
pub use splice::SendFileError;
pub use stack::{ConnectError, Sleep, Stack};
pub use stream::{TcpListener, TcpStream};
pub use udp::{BindError, SendToError, UdpSocket};
