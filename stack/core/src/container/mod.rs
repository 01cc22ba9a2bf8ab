//! Containers: who is charged and scheduled (resource containers, Banga, Druschel & Mogul, OSDI '99).
//!
//! A container stands for one activity: all packets, protocol work, tasks, timers and disk reads that
//! serve it are charged to it and take place when its turn comes. Containers form a tree; work is
//! bound to leaves, and a child has at most what its parent has.
//!
//! | file | concern |
//! |---|---|
//! | `tree` | making, moving and removing containers; what is refused |
//! | `order` | whose turn it is: strict bands, then shares by stride, then limits |
//! | `inherit` | who waits for whom, and at whose priority that one runs meanwhile |
//! | `prefix` | listeners of one port told apart by their clients' addresses |

mod inherit;
mod order;
mod prefix;
mod tree;

pub(crate) use inherit::{Inheritance, Standing};
pub use prefix::{FilterError, Prefix};
pub(crate) use prefix::{PortFilters, Shadowed};
pub(crate) use tree::{Containers, DEFAULT, SYSTEM};

/// Priorities are below this. A larger one goes first.
pub const PRIORITIES: u8 = 64;

/// The priority of what says nothing about it.
pub const PRIORITY_DEFAULT: u8 = 32;

/// Containers that a shard has at most.
pub const CONTAINERS_MAX: usize = 1024;

/// How deep the tree is at most.
pub const DEPTH_MAX: usize = 8;

/// Names a container of a shard. A name outlives its container and then finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContainerId {
    pub(crate) index: u16,
    pub(crate) generation: u16,
}

impl ContainerId {
    /// Where work goes that is bound to no other: the container of a shard that has only one.
    pub const DEFAULT: Self = Self { index: DEFAULT, generation: 0 };
    /// What is charged to nobody else: receiving, demultiplexing, discarding; ARP and ICMP.
    pub const SYSTEM: Self = Self { index: SYSTEM, generation: 0 };
}

/// What a container is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerSpec {
    /// Its name, which no other has.
    pub name: String,
    /// The name of the container that it is a part of; `None`: of the whole shard.
    pub parent: Option<String>,
    /// 0 to 63. While a container of a higher priority has work, those of lower ones wait.
    pub priority: u8,
    /// Percent of its parent's processor time when all its siblings of the same priority have work;
    /// what nobody uses goes to the others. `None`: an equal part of what its siblings leave.
    pub share_percent: Option<f64>,
    /// Percent of the core that it never exceeds, even if nobody else has work.
    pub cpu_limit_percent: Option<f64>,
    /// Bytes of buffers that its sockets may hold: frames that wait, data that is queued or unread.
    pub memory_limit_bytes: Option<u64>,
}

impl ContainerSpec {
    /// A container of the whole shard with the usual priority and no bounds.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            parent: None,
            priority: PRIORITY_DEFAULT,
            share_percent: None,
            cpu_limit_percent: None,
            memory_limit_bytes: None,
        }
    }
}

/// What a container has used. That of a parent has its children's in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Processor time in nanoseconds, all in all.
    pub cpu_nanos: u64,
    /// Of that, protocol work: packets and timers.
    pub protocol_nanos: u64,
    /// Of that, tasks.
    pub task_nanos: u64,
    /// Times that it was its turn.
    pub turns: u64,
    /// Channels, timers and tasks that were served.
    pub served: u64,
    /// Times that it had to pause because of its limit.
    pub throttled: u64,
    /// Bytes that its disk reads brought.
    pub disk_bytes: u64,
    /// Bytes of buffers that its connections hold.
    pub held_bytes: u64,
}

/// What a charge is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Receiving, demultiplexing, and what no socket asked for.
    System,
    Protocol,
    Task,
}

/// Why a container cannot be as it is asked for.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ContainerError {
    /// A name that is taken or empty.
    #[error("the container name `{0}` is taken or empty; give each container a name of its own")]
    Name(String),
    /// No such parent.
    #[error("the container `{0}` is to be part of `{1}`, which does not exist; name one that does")]
    NoParent(String, String),
    /// It would be part of itself.
    #[error("the container `{0}` would be part of itself; let one of its parents have no parent")]
    Cycle(String),
    /// Too deep.
    #[error("the container `{0}` would lie deeper than {DEPTH_MAX} levels; make the tree flatter")]
    TooDeep(String),
    /// No such priority.
    #[error("the priority of `{0}` is {1}; it must be between 0 and 63")]
    Priority(String, u8),
    /// A share or limit that is none.
    #[error("{1} of `{0}` is {2} %; it must be between 0.01 and 100")]
    Percent(String, &'static str, f64),
    /// The children of one parent have more than all of it.
    #[error("the shares of the parts of `{0}` come to {1:.2} %; lower them to 100 or less")]
    SharesOver(String, f64),
    /// Work is bound to what is to be a parent.
    #[error(
        "`{0}` has sockets or tasks of its own and so cannot have parts; bind those to a part of it"
    )]
    HasWork(String),
    /// Work is to be bound to a parent.
    #[error("`{0}` has parts; bind sockets and tasks to one of them")]
    HasParts(String),
    /// Gone, or never there.
    #[error("there is no such container; it may have been removed")]
    Unknown,
    /// One that is always there.
    #[error("the container `{0}` belongs to the shard and cannot be changed so")]
    Fixed(&'static str),
    /// As many as there can be.
    #[error("all {CONTAINERS_MAX} containers are in use; remove some")]
    TooMany,
}
