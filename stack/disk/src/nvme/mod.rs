//! A driver for NVMe controllers, without the kernel: read only, polled, one queue of reads.
//!
//! [`NvmeQueue`] is a [`DiskQueue`](crate::DiskQueue) over a [`Device`], which lends registers and
//! memory. The one there is so far is [`sim::SimDevice`], a controller in this process that can misbehave
//! in every way we know; access to hardware is not written yet.
//!
//! What goes wrong stays small. A read that fails is tried again where the device says that may
//! help, and else fails alone. One that takes too long is aborted; if that does not help the
//! controller is reset and all its reads are tried again, while the caller's loop goes on. Nothing
//! the device writes is trusted for an index, a length or a time. A buffer belongs to the driver
//! until its completion, or until the controller has stopped; if it does not stop, the buffer is
//! leaked, not reused.
//!
//! Sources: NVM Express Base Specification 2.0, NVM Command Set Specification 1.0.

mod access;
mod admin;
mod command;
mod controller;
mod error;
mod identify;
mod prp;
mod queue;
mod registers;
mod ring;
pub mod sim;
mod status;

pub use access::{Bar, Device, Dma, DmaMemory, IovaTable, PAGE_BYTES, Pause};
pub use controller::NVME_DEPTH_MAX;
pub use error::NvmeError;
pub use identify::{ControllerInfo, NamespaceInfo};
pub use queue::{NvmeConfig, NvmeQueue, NvmeStats};
pub use status::Status;
