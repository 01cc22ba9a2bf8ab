//! Why a controller cannot be used, or cannot be used any more.

use super::status::Status;

/// What was asked of the controller when it refused.
pub type What = &'static str;

/// Why a controller cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// The system does not give access.
    #[error("{device}: {what} failed ({source}); {mend}")]
    Access {
        /// PCI address.
        device: String,
        /// What was tried.
        what: What,
        /// What to do about it.
        mend: What,
        /// What the system said.
        source: std::io::Error,
    },
    /// It cannot be driven without risk: see the reason.
    #[error("{device} is not taken: {why}")]
    Refused {
        /// PCI address.
        device: String,
        /// Why, and what to do about it.
        why: String,
    },
    /// It reads as all ones.
    #[error("the NVMe device is gone; check its slot and the kernel's log")]
    Gone,
    /// `CSTS.CFS` is set.
    #[error("the NVMe controller reports a fatal error; power-cycle it and check its health")]
    Fatal,
    /// `CSTS.RDY` did not follow `CC.EN`.
    #[error(
        "the NVMe controller did not become {} within {waited_ms} ms; power-cycle it",
        if *ready { "ready" } else { "idle" }
    )]
    Stuck {
        /// Whether it was to become ready, or to stop.
        ready: bool,
        /// How long was waited: its own `CAP.TO`.
        waited_ms: u64,
    },
    /// An administrative command was not answered.
    #[error("the NVMe controller did not answer \"{what}\"; update its firmware")]
    NoAnswer {
        /// The command.
        what: What,
    },
    /// An administrative command failed.
    #[error("the NVMe controller refused \"{what}\" (status {status}); update its firmware")]
    Command {
        /// The command.
        what: What,
        /// What it said.
        status: Status,
    },
    /// A read took too long and could not be aborted.
    #[error("a read was not completed in time, nor its abort")]
    Late,
    /// A completion that belongs to no command.
    #[error("the NVMe controller completed a command that was not in flight")]
    Nonsense,
    /// The controller is of a kind that we cannot drive.
    #[error("the NVMe controller cannot be used: {why}")]
    Unsupported {
        /// Why.
        why: What,
    },
    /// The namespace cannot be read.
    #[error("namespace {nsid} cannot be used: {why}")]
    Namespace {
        /// Its number.
        nsid: u32,
        /// Why.
        why: What,
    },
    /// The namespace was resized or formatted while it was in use.
    #[error("namespace {nsid} was changed while it was read; open it anew")]
    Changed {
        /// Its number.
        nsid: u32,
    },
    /// The settings of the queue.
    #[error(transparent)]
    Setup(#[from] crate::queue::DiskSetupError),
}

impl NvmeError {
    /// Whether a reset of the controller cannot help.
    pub(crate) fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Gone | Self::Unsupported { .. } | Self::Namespace { .. } | Self::Changed { .. }
        )
    }
}
