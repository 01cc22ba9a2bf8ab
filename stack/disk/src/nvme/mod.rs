//! A driver for NVMe controllers, without the kernel: read only, polled, one queue of reads.
//!
//! [`NvmeQueue`] is a [`DiskQueue`](crate::DiskQueue) over a [`Device`], which lends registers and
//! memory: [`Vfio`] behind an IOMMU, [`Sysfs`] without one (for those who accept what that means),
//! or [`sim::SimDevice`], a controller in this process that can misbehave in every way we know.
//!
//! ```no_run
//! use millstream_buf::{Arena, ArenaConfig, SizeClass};
//! use millstream_disk::nvme::{NvmeConfig, open_vfio};
//! use millstream_disk::{Completions, DiskQueue, Read};
//!
//! let arena = Arena::new(&ArenaConfig::default())?;
//! let mut queue = open_vfio("0000:01:00.0", &arena, &NvmeConfig::default())?;
//! let superblock = queue.read_at(1024, 128)?;
//! let buf = arena.alloc(SizeClass::Block).expect("a fresh arena has buffers");
//! let file = queue.file();
//! queue.submit(Read { file, offset: 0, len: buf.len(), buf, token: 1 }).expect("an empty queue");
//! queue.kick();
//! let mut done = Completions::new();
//! while done.is_empty() {
//!     queue.poll(&mut done);
//! }
//! # let _ = superblock;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
