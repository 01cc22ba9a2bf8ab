//! TCP scripts: what an application calls, what a peer sends, and what the stack must answer.
//!
//! The language is that of packetdrill, the tool in which the Linux kernel's own TCP tests are
//! written. A script plays in virtual time against one shard of the stack behind Linux's socket
//! calls, many of them a second.
//!
//! | module | concern |
//! |---|---|
//! | `script`, `cursor`, `parse`, `parse_packet` | the language |
//! | `world`, `link` | a shard, its wire, its clock |
//! | `socket`, `calls`, `options`, `epoll`, `info`, `symbols`, `sysctl` | Linux's sockets over a world |
//! | `player`, `player_calls`, `flow`, `packet` | playing a script |
//! | `kernel` | the Linux kernel's own scripts |
//! | `shell`, `assertion` | the commands and assertions that scripts hold, understood and never run |

#![forbid(unsafe_code)]

pub mod assertion;
pub mod calls;
pub mod cursor;
mod epoll;
mod flow;
pub mod info;
pub mod kernel;
mod link;
pub mod options;
pub mod packet;
pub mod parse;
mod parse_packet;
pub mod player;
mod player_calls;
pub mod script;
pub mod shell;
pub mod socket;
#[allow(missing_docs)] // the names are Linux's
pub mod symbols;
pub mod sysctl;
pub mod world;
