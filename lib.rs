//! **millstream** is a userspace TCP/IP stack on DPDK that carries bytes from disk to wire without
//! copying them.
//!
//! This crate is its face: each part under a short name. A service is a [`core::Shard`] over a
//! [`link::Link`], and tasks that use the [`core::Stack`] in it:
//!
//! ```
//! use std::net::{Ipv4Addr, SocketAddrV4};
//!
//! use millstream::buf::{Arena, ArenaConfig};
//! use millstream::core::{Ipv4Config, Shard, ShardConfig, Stack, TcpStream};
//! use millstream::disk::MemDisk;
//! use millstream::link::mem;
//! use millstream::timer::TscClock;
//!
//! /// Sends back what comes, without copying it.
//! async fn echo(stream: TcpStream) -> std::io::Result<()> {
//!     while let Some(bytes) = stream.read_buf().await? {
//!         stream.send_buf(bytes).await?;
//!     }
//!     Ok(())
//! }
//!
//! async fn serve(stack: Stack) -> Result<(), Box<dyn std::error::Error>> {
//!     let listener = stack.listen(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 7), 128)?;
//!     loop {
//!         let (stream, _peer) = listener.accept().await;
//!         stack.spawn(echo(stream))?;
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A link in memory; `dpdk_port` has those to the world.
//! let (ours, _theirs) = mem::pair(mem::MemConfig::default())?;
//! let ipv4 = Ipv4Config { address: Ipv4Addr::new(198, 18, 0, 2), prefix_len: 24, gateway: None };
//! let arena = Arena::new(&ArenaConfig::default())?;
//! let disk = Box::new(MemDisk::copying(32)?);
//! let mut shard = Shard::new(ShardConfig::new(ipv4), ours, TscClock::new(), arena, disk);
//! let stack = shard.stack().clone();
//! stack.clone().spawn(async move { serve(stack).await.expect("the port is free") })?;
//! // A program would stay here: `shard.block_on(Idle::Adaptive, ...)`.
//! shard.turn();
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

#[doc(inline)]
pub use dpdk_port;
#[doc(inline)]
pub use millstream_buf as buf;
#[doc(inline)]
pub use millstream_core as core;
#[doc(inline)]
pub use millstream_disk as disk;
#[doc(inline)]
pub use millstream_http as http;
#[doc(inline)]
pub use millstream_link as link;
#[doc(inline)]
pub use millstream_tcp as tcp;
#[doc(inline)]
pub use millstream_timer as timer;
#[doc(inline)]
pub use millstream_wire as wire;
