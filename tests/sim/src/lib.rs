//! Seeded scenarios in the virtual world, and what must hold in each.
//!
//! A seed draws a [`Scenario`]: a path with its faults, hosts with their settings, flows with what
//! they send and how they read. [`run`] plays it with whole shards in virtual time and returns what
//! was [`Measured`], or the oracle that failed. The same seed gives the same run.
//!
//! | file | concern |
//! |---|---|
//! | `scenario` | drawing scenarios, and saying them in one line |
//! | `world` | two hosts, the link between them, and the loop over time |
//! | `flows` | the applications: what is sent, how it is read, how it ends |
//! | `monitor` | what every frame on the wire must obey |
//! | `oracle` | what must hold during a run and after it |
//! | `smol`, `peer` | an independent stack (smoltcp) as one of the hosts |
//! | `grid` | many seeds on all cores |
//! | `measure` | throughput, fairness and completion times for tables and figures |

#![forbid(unsafe_code)]

mod flows;
mod grid;
pub mod measure;
mod monitor;
mod oracle;
mod peer;
mod rand;
pub mod report;
mod scenario;
mod smol;
mod world;

pub use grid::{Grid, Summary, regressions};
pub use oracle::{Failure, Measured, run, run_traced};
pub use peer::run_against_smoltcp;
pub use scenario::{Ending, Fault, Flow, Host, Reading, Scenario, Source};
