//! Whole-program tests: `millstream` as a user runs it, with the kernel's own TCP as the peer.
//!
//! Each test has a [`Lab`]: network namespaces with names of their own, a folder for its files, and
//! the processes that it started, which end with it. Nothing outside of the namespaces sees a frame.
//! Waits end with an event ([`Process::wait_line`], [`Process::finish`]) and have a bound only so that
//! a failure does not hang; no test asserts how fast something was.
//!
//! The tests need root and the packages of `packages.txt`; `make test` sees to both.

#![forbid(unsafe_code)]

mod config;
mod lab;
mod process;
pub mod relay;
mod server;
mod site;
mod wire;

pub use config::profile;
pub use lab::{Lab, Namespace};
pub use process::{Finished, PATIENCE, Process, Signal};
pub use server::{Server, built_binary, millstream_binary, project_file, serve};
pub use site::{Site, content};
pub use wire::{RawConnection, Response};

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
