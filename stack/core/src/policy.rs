//! What happens to received packets, and when: the baselines and the mechanisms that replace them,
//! switched at run time.

use std::rc::Rc;

/// When protocol work is done for what was received, and at whose cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RxPolicy {
    /// At once, whatever comes, before any application runs, as BSD does: what nobody can take is
    /// found out after the work. The baseline.
    Eager,
    /// Into bounded channels, discarded there if a receiver is behind; then at once, before any
    /// application runs.
    EarlyDemux,
    /// Into bounded channels; then when its owner's turn comes, at its owner's cost (lazy receiver
    /// processing, Druschel & Banga, OSDI '96).
    #[default]
    Lrp,
    /// As that, and each socket says how it wants it (signaled receiver processing, Brustoloni et
    /// al., USENIX 2000); see [`Disposition`].
    Srp,
}

impl RxPolicy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Eager, Self::EarlyDemux, Self::Lrp, Self::Srp];

    /// As it is written in a profile.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::EarlyDemux => "early-demux",
            Self::Lrp => "lrp",
            Self::Srp => "srp",
        }
    }
}

/// What happens when packets have come for a connection, under [`RxPolicy::Srp`].
#[derive(Clone, Default)]
pub enum Disposition {
    /// They are processed when it is the turn of the connection's container.
    #[default]
    Async,
    /// This is called then, and decides: it may call
    /// [`TcpStream::extract`](crate::TcpStream::extract).
    Catch(Rc<dyn Fn()>),
    /// They wait, as many as the channel holds, until it is something else.
    Block,
    /// They wait until the application reads.
    Ignore,
}

impl std::fmt::Debug for Disposition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Async => "Async",
            Self::Catch(_) => "Catch",
            Self::Block => "Block",
            Self::Ignore => "Ignore",
        })
    }
}

/// How long things may take while containers share a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// Of one turn of the loop, in microseconds: how long a frame may lie in the link unseen.
    pub turn_us: u32,
    /// After which a container's packets are looked at even while others outrank it, a few at a time,
    /// in microseconds: so that acknowledgements keep their connections' clocks going.
    pub overdue_us: u32,
    /// A task that runs longer without giving way is counted, in microseconds.
    pub watchdog_us: u32,
}

impl Default for Scheduling {
    fn default() -> Self {
        Self { turn_us: 20, overdue_us: 5_000, watchdog_us: 1_000 }
    }
}
