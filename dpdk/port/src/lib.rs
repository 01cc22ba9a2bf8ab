//! DPDK as a [`Link`](millstream_link::Link).
//!
//! ```no_run
//! use dpdk_port::{Device, Eal, EalConfig, Port, PortConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let eal = Eal::init(&EalConfig::default())?;
//! let device = Device::Tap { iface: "tap0".into(), mac: None };
//! let mut port = Port::open(eal, &PortConfig::new(device))?;
//! // On the thread that will own it:
//! let mut link = port.take_queue(0).expect("the first queue").bind()?;
//! # let _ = &mut link;
//! # Ok(())
//! # }
//! ```
//!
//! * [`Eal`] starts DPDK, once a process, without privilege, huge pages or a network card if need be.
//! * [`Device`] names what a port stands on; [`quirks`] is what drivers do beside what they say.
//! * [`Port`] opens it; its [`UnboundQueue`]s go to their threads and become [`PortQueue`]s there.
//!
//! **Receiving** copies nothing: an mbuf's private area holds a
//! [`BufHeader`](millstream_buf::BufHeader), so that a frame is an
//! [`IoBuf`](millstream_buf::IoBuf) on the mbuf itself, which returns to its pool with the last
//! handle. Chains are joined by a copy, which is counted.
//!
//! **Sending** copies headers and, below [`PortConfig::copy_below_bytes`], small payloads; larger
//! slices are attached as external buffers. Each attachment holds a reference until DPDK has freed
//! it, wherever that happens. A slice of any buffer may be sent: of an arena, of the heap, or a
//! received frame.

mod device;
mod eal;
mod error;
mod home;
mod lcore;
mod log;
mod pool;
mod port;
mod queue;
pub mod quirks;
mod ring;
mod tx;

pub use device::{Device, MemifRole, PcapSink, pci_address};
pub use eal::{Eal, EalConfig, EalError};
pub use error::PortError;
pub use lcore::{LcoreGuard, TooManyThreads};
pub use port::{Port, PortConfig};
pub use queue::{PortQueue, UnboundQueue};
