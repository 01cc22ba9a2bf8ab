//! Opening a device and closing it.

use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dpdk_sys::{shim_port_config, shim_port_info};
use millstream_link::{Capabilities, HEADER_MAX};

use crate::device::{Device, pci_address};
use crate::eal::{Eal, ignore_real_time_signals};
use crate::error::PortError;
use crate::log;
use crate::pool::{Pool, Shape};
use crate::queue::{BATCH, STASH, UnboundQueue};
use crate::quirks::{self, Chains, PayloadMemory, Quirks};
use crate::ring::Ring;

/// What a port shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// The device.
    pub device: Device,
    /// Queue pairs, one a shard.
    pub queues: u16,
    /// Frames that wait in the device to be received; what the device allows is taken.
    pub rx_descriptors: u16,
    /// Frames that wait in the device to be sent; what the device allows is taken.
    pub tx_descriptors: u16,
    /// Receive buffers a queue, in the device and in the stack's hands together. Raised if they are
    /// fewer than the device wants.
    pub mbufs: u32,
    /// Largest IP packet in bytes; the device's own if not given.
    pub mtu: Option<u16>,
    /// The station's address; the device's, or one made for it, if not given.
    pub mac: Option<[u8; 6]>,
    /// Frames with at most this much payload are copied into one buffer, which is cheaper than
    /// to attach it. Such bytes are counted as copied. 0: never.
    pub copy_below_bytes: u16,
    /// Have the device signal received frames to a queue that sleeps, if it can
    /// ([`PortQueue`](crate::PortQueue) as `Link::rx_event`).
    pub rx_interrupts: bool,
}

impl PortConfig {
    /// One queue of 512 descriptors each way, 4096 receive buffers (10 MiB), copies up to 256 bytes,
    /// interrupts where the device has them.
    pub fn new(device: Device) -> Self {
        Self {
            device,
            queues: 1,
            rx_descriptors: 512,
            tx_descriptors: 512,
            mbufs: 4096,
            mtu: None,
            mac: None,
            copy_below_bytes: 256,
            rx_interrupts: true,
        }
    }
}

/// Slices of payload that a frame may have at most, whatever the device takes.
const SLICES_MAX: usize = 16;

/// Ethernet header and a VLAN tag.
const L2_BYTES: u32 = 18;

/// What all queues of a port share; the last one that goes closes it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub port: u16,
    pub quirks: Quirks,
    pub iova_va: bool,
    name: CString,
    bus: &'static CStr,
    started: bool,
    /// Held until the device is closed.
    _rings: Vec<Arc<Ring>>,
}

/// An open device. Take its queues, bind each on its thread; when the port and all queues are gone
/// the device is stopped, closed and removed.
#[derive(Debug)]
pub struct Port {
    shared: Arc<Shared>,
    capabilities: Capabilities,
    queues: Vec<Option<UnboundQueue>>,
}

impl Port {
    /// Opens a device and starts it.
    ///
    /// # Errors
    /// [`PortError`]; nothing is left behind then.
    pub fn open(eal: &'static Eal, config: &PortConfig) -> Result<Self, PortError> {
        let _control = Eal::control();
        if config.device == Device::Ring {
            let rings = rings(config.queues, config.tx_descriptors)?;
            return Self::on_rings(eal, config, &rings, &rings);
        }
        config.device.check()?;
        log::clear();
        let shared = if let Device::Pci { address } = &config.device {
            let known = pci_address(address);
            Shared::find(eal, known.as_deref().unwrap_or(address))?
        } else {
            Shared::plug(eal, config)?
        };
        Self::set_up(eal, config, shared)
    }

    /// Opens two ports in this process that face each other; `config.device` is not looked at.
    /// Nothing is copied: each receives the mbufs that the other sent.
    ///
    /// # Errors
    /// [`PortError`]; nothing is left behind then.
    pub fn ring_pair(eal: &'static Eal, config: &PortConfig) -> Result<(Self, Self), PortError> {
        let (forth, back) = {
            let _control = Eal::control();
            (
                rings(config.queues, config.tx_descriptors)?,
                rings(config.queues, config.tx_descriptors)?,
            )
        };
        // The lock is taken anew for each: were `b` to fail, `a` takes it to close.
        let open = |rx: &[_], tx: &[_]| {
            let _control = Eal::control();
            Self::on_rings(eal, config, rx, tx)
        };
        let mut a = open(&back, &forth)?;
        let mut b = open(&forth, &back)?;
        for (left, right) in a.queues.iter_mut().zip(&mut b.queues) {
            if let (Some(left), Some(right)) = (left, right) {
                UnboundQueue::face(left, right);
            }
        }
        Ok((a, b))
    }

    fn on_rings(
        eal: &'static Eal,
        config: &PortConfig,
        rx: &[Arc<Ring>],
        tx: &[Arc<Ring>],
    ) -> Result<Self, PortError> {
        log::clear();
        let shared = Shared::from_rings(eal, rx, tx)?;
        let config = PortConfig { device: Device::Ring, ..config.clone() };
        Self::set_up(eal, &config, shared)
    }

    fn set_up(
        eal: &'static Eal,
        config: &PortConfig,
        mut shared: Shared,
    ) -> Result<Self, PortError> {
        let info = shared.info()?;
        let driver = driver_name(&info);
        shared.quirks = quirks::of(driver);
        let quirks = shared.quirks;
        let max_queues = info.max_rx_queues.min(info.max_tx_queues).max(1);
        if config.queues == 0 || config.queues > max_queues {
            return Err(PortError::TooManyQueues {
                driver: driver.into(),
                asked: config.queues,
                max: max_queues,
            });
        }
        let mtu = shared.mtu(config, &info, driver)?;
        let offloads = Offloads::of(&info, quirks);
        let mut asked = shim_port_config {
            rx_offloads: offloads.rx,
            tx_offloads: offloads.tx,
            rss_types: offloads.rss,
            rx_queues: config.queues,
            tx_queues: config.queues,
            mtu: if quirks.any_length { 0 } else { config.mtu.unwrap_or(0) },
            rx_interrupts: config.rx_interrupts.into(),
        };
        let (mut rx_descriptors, mut tx_descriptors) =
            (config.rx_descriptors.max(1), config.tx_descriptors.max(1));
        let port = shared.port;
        // SAFETY: the port is open and only this thread makes control calls (the lock).
        unsafe {
            let rc = dpdk_sys::shim_port_configure(port, &asked);
            shared.ok(driver, "configured", rc)?;
            let rc = dpdk_sys::rte_eth_dev_adjust_nb_rx_tx_desc(
                port,
                &mut rx_descriptors,
                &mut tx_descriptors,
            );
            shared.ok(driver, "given that many descriptors", rc)?;
        }

        let frame_max = u32::from(mtu) + L2_BYTES;
        // 8 bytes more: some devices count the frame check sequence or a second tag.
        let full_room = u16::try_from((frame_max + 8).next_multiple_of(64).clamp(2048, 65_344))
            .unwrap_or(65_344);
        // With chains only headers and small payloads are copied; without, whole frames.
        let small = offloads.chains
            && quirks.memory == PayloadMemory::Any
            && mtu <= 2048
            && offloads.tso_bytes_max == 0;
        let tx_room = if small { HEADER_MAX as u16 + 256 } else { full_room };
        let slices_max = if offloads.chains { offloads.segments_max.min(SLICES_MAX) } else { 1 };
        let socket = i32::from(info.socket.max(0));
        let rx_shape = Shape {
            // The upper bound is beyond what fits any memory, and far from the number's end.
            mbufs: config
                .mbufs
                .clamp(u32::from(rx_descriptors) * 2 + 512, 1 << 30)
                .next_multiple_of(64)
                - 1,
            room: full_room,
            socket,
        };
        let each = if offloads.chains { 2 } else { 1 };
        let tx_shape = Shape {
            mbufs: u32::from(tx_descriptors) * each + (STASH + BATCH) as u32 + 1023,
            room: tx_room,
            socket,
        };
        let obtain = |shape: Shape| {
            Pool::obtain(shape).map_err(|_| PortError::NoMemory {
                mbufs: shape.mbufs,
                needed_mb: shape.bytes().div_ceil(1 << 20),
                memory_mb: eal.config().memory_mb,
            })
        };
        let mut pools = Vec::new();
        for _ in 0..config.queues {
            pools.push((obtain(rx_shape)?, obtain(tx_shape)?));
        }
        let set_up_queues = |shared: &Shared, pools: &[(Pool, Pool)]| -> Result<(), PortError> {
            for (queue, (rx, _)) in (0_u16..).zip(pools) {
                // SAFETY: as above; the pool is never freed.
                unsafe {
                    let rc = dpdk_sys::shim_rx_queue_setup(
                        port,
                        queue,
                        rx_descriptors,
                        offloads.rx,
                        rx.raw(),
                    );
                    shared.ok(driver, "given a receive queue", rc)?;
                    let rc =
                        dpdk_sys::shim_tx_queue_setup(port, queue, tx_descriptors, offloads.tx);
                    shared.ok(driver, "given a transmit queue", rc)?;
                }
            }
            Ok(())
        };
        set_up_queues(&shared, &pools)?;
        if let (Some(mtu), false) = (config.mtu, quirks.any_length) {
            // SAFETY: as above. Some drivers know no other way than the configuration above.
            let rc = unsafe { dpdk_sys::rte_eth_dev_set_mtu(port, mtu) };
            if rc != 0 && rc != -libc::ENOTSUP {
                shared.ok(driver, "given that mtu", rc)?;
            }
        }
        let mac = shared.address(config)?;
        // SAFETY: as above; all queues are set up.
        let mut rc = unsafe { dpdk_sys::rte_eth_dev_start(port) };
        if rc != 0 && asked.rx_interrupts != 0 {
            // A card whose interrupts cannot be had (one vector for all, no VFIO) can still be polled.
            asked.rx_interrupts = 0;
            // SAFETY: as above; the port is stopped, as it failed to start.
            unsafe {
                let configured = dpdk_sys::shim_port_configure(port, &asked);
                shared.ok(driver, "configured without interrupts", configured)?;
            }
            set_up_queues(&shared, &pools)?;
            // SAFETY: as above.
            rc = unsafe { dpdk_sys::rte_eth_dev_start(port) };
        }
        shared.ok(driver, "started", rc)?;
        shared.started = true;

        let capabilities = Capabilities {
            driver: intern(driver),
            mac,
            mtu,
            tx_slices_max: slices_max,
            tx_ipv4_checksum: offloads.tx_sums[0],
            tx_tcp_checksum: offloads.tx_sums[1],
            tx_udp_checksum: offloads.tx_sums[2],
            rx_checksum: offloads.rx_checksum,
            tso_bytes_max: offloads.tso_bytes_max,
            copies_payload: quirks.copies_payload || !offloads.chains,
        };
        let shared = Arc::new(shared);
        let queues = pools
            .into_iter()
            .enumerate()
            .map(|(index, (rx, tx))| {
                let rx_event = || {
                    // SAFETY: the port is open; a driver without interrupts says so.
                    unsafe { dpdk_sys::rte_eth_dev_rx_intr_ctl_q_get_fd(port, index as u16) }
                };
                Some(UnboundQueue {
                    rx_event: (asked.rx_interrupts != 0).then(rx_event).filter(|fd| *fd >= 0),
                    shared: Arc::clone(&shared),
                    capabilities: capabilities.clone(),
                    queue: index as u16,
                    rx_pool: rx,
                    peer_pool: if config.device == Device::Ring {
                        tx.raw()
                    } else {
                        std::ptr::null_mut()
                    },
                    tx_pool: tx,
                    tx_room,
                    frame_max,
                    chains: offloads.chains,
                    copy_below: usize::from(config.copy_below_bytes),
                })
            })
            .collect();
        Ok(Self { shared, capabilities, queues })
    }

    /// What it can do; the same for each of its queues.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// DPDK's number of the port.
    pub fn number(&self) -> u16 {
        self.shared.port
    }

    /// Takes a queue, to be bound on the thread that will own it; `None` if it was taken before or
    /// does not exist.
    pub fn take_queue(&mut self, index: usize) -> Option<UnboundQueue> {
        self.queues.get_mut(index)?.take()
    }
}

/// What of the device's offloads is used.
struct Offloads {
    rx: u64,
    tx: u64,
    rss: u64,
    rx_checksum: bool,
    /// IPv4 header, TCP, UDP.
    tx_sums: [bool; 3],
    chains: bool,
    segments_max: usize,
    tso_bytes_max: u32,
}

impl Offloads {
    fn of(info: &shim_port_info, quirks: Quirks) -> Self {
        // SAFETY: constants of the shim.
        let (rx_sums, tx_sums, tso, multi, rss) = unsafe {
            (
                dpdk_sys::SHIM_RX_OFFLOAD_IPV4_CKSUM
                    | dpdk_sys::SHIM_RX_OFFLOAD_TCP_CKSUM
                    | dpdk_sys::SHIM_RX_OFFLOAD_UDP_CKSUM,
                [
                    dpdk_sys::SHIM_TX_OFFLOAD_IPV4_CKSUM,
                    dpdk_sys::SHIM_TX_OFFLOAD_TCP_CKSUM,
                    dpdk_sys::SHIM_TX_OFFLOAD_UDP_CKSUM,
                ],
                dpdk_sys::SHIM_TX_OFFLOAD_TCP_TSO,
                dpdk_sys::SHIM_TX_OFFLOAD_MULTI_SEGS,
                dpdk_sys::SHIM_RSS_IP_TCP_UDP,
            )
        };
        let advertised = info.tx_offloads & multi;
        let chains = match quirks.chains {
            Chains::AsAdvertised => advertised != 0,
            Chains::Yes => true,
            Chains::No => false,
        };
        let mut tx = if chains { advertised } else { 0 };
        let mut rx = 0;
        if !quirks.emulates_offloads {
            rx |= info.rx_offloads & rx_sums;
            tx |= info.tx_offloads & (tx_sums[0] | tx_sums[1] | tx_sums[2]);
            if chains {
                tx |= info.tx_offloads & tso;
            }
        }
        // One segment is the header's.
        let segments = [info.max_tx_segments, info.max_tx_segments_mtu]
            .into_iter()
            .filter(|&max| max > 1)
            .min()
            .unwrap_or(u16::MAX);
        Self {
            rx,
            tx,
            rss: if quirks.emulates_offloads { 0 } else { info.rss_types & rss },
            rx_checksum: rx & rx_sums == rx_sums,
            tx_sums: tx_sums.map(|flag| tx & flag != 0),
            chains,
            segments_max: usize::from(segments) - 1,
            // An IP packet is at most 65535 bytes long.
            tso_bytes_max: if tx & tso == 0 { 0 } else { 65_535 - HEADER_MAX as u32 },
        }
    }
}

impl Shared {
    fn new(eal: &Eal, port: u16, name: CString, bus: &'static CStr) -> Self {
        Self {
            port,
            quirks: quirks::of(""),
            iova_va: eal.iova_va(),
            name,
            bus,
            started: false,
            _rings: Vec::new(),
        }
    }

    /// A virtual device, made now.
    fn plug(eal: &Eal, config: &PortConfig) -> Result<Self, PortError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let driver = config.device.driver();
        if driver == "net_tap" {
            ignore_real_time_signals();
        }
        let bad = |name: &str| PortError::BadName { name: name.into() };
        let name = format!("{driver}{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let name = CString::new(name).map_err(|_| bad(driver))?;
        let args = config.device.args(config.queues);
        let args = CString::new(args.clone()).map_err(|_| bad(&args))?;
        // SAFETY: EAL is up; the strings outlive the call.
        let rc = unsafe {
            dpdk_sys::rte_eal_hotplug_add(c"vdev".as_ptr(), name.as_ptr(), args.as_ptr())
        };
        if rc != 0 {
            return Err(PortError::Refused {
                driver: driver.into(),
                action: "made",
                reason: log::reason(rc),
            });
        }
        let mut port = 0;
        // SAFETY: as above.
        let rc = unsafe { dpdk_sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &mut port) };
        if rc != 0 {
            // SAFETY: the device that was just made.
            unsafe { dpdk_sys::rte_eal_hotplug_remove(c"vdev".as_ptr(), name.as_ptr()) };
            return Err(PortError::Refused {
                driver: driver.into(),
                action: "found after it was made",
                reason: log::reason(rc),
            });
        }
        Ok(Self::new(eal, port, name, c"vdev"))
    }

    /// A card that EAL found at start.
    fn find(eal: &Eal, address: &str) -> Result<Self, PortError> {
        let name =
            CString::new(address).map_err(|_| PortError::BadName { name: address.into() })?;
        let mut port = 0;
        // SAFETY: EAL is up; the string outlives the call.
        let rc = unsafe { dpdk_sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &mut port) };
        if rc != 0 {
            return Err(PortError::NoSuchCard { address: address.into(), reason: log::reason(rc) });
        }
        Ok(Self::new(eal, port, name, c"pci"))
    }

    fn from_rings(eal: &Eal, rx: &[Arc<Ring>], tx: &[Arc<Ring>]) -> Result<Self, PortError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let refused =
            |reason| PortError::Refused { driver: "net_ring".into(), action: "made", reason };
        let short = format!("ms{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let name = CString::new(format!("net_ring_{short}"));
        let (Ok(name), Ok(short)) = (name, CString::new(short)) else {
            return Err(refused("bad name".into()));
        };
        let raw = |rings: &[Arc<Ring>]| rings.iter().map(|ring| ring.raw()).collect::<Vec<_>>();
        let (rx_raw, tx_raw) = (raw(rx), raw(tx));
        // SAFETY: EAL is up; the arrays have as many rings as is said; the rings are kept until
        // after the port is closed.
        let port = unsafe {
            dpdk_sys::rte_eth_from_rings(
                short.as_ptr(),
                rx_raw.as_ptr(),
                rx_raw.len() as u32,
                tx_raw.as_ptr(),
                tx_raw.len() as u32,
                0,
            )
        };
        let Ok(port) = u16::try_from(port) else {
            // SAFETY: reads DPDK's errno.
            return Err(refused(log::reason(unsafe { dpdk_sys::shim_errno() })));
        };
        let mut shared = Self::new(eal, port, name, c"vdev");
        shared._rings = rx.iter().chain(tx).cloned().collect();
        Ok(shared)
    }

    fn info(&self) -> Result<shim_port_info, PortError> {
        // SAFETY: plain numbers and bytes; zero is valid.
        let mut info: shim_port_info = unsafe { std::mem::zeroed() };
        // SAFETY: the port is open.
        let rc = unsafe { dpdk_sys::shim_port_info(self.port, &mut info) };
        self.ok("network", "asked what it can do", rc)?;
        Ok(info)
    }

    fn ok(&self, driver: &str, action: &'static str, rc: i32) -> Result<(), PortError> {
        if rc == 0 {
            return Ok(());
        }
        Err(PortError::Refused { driver: driver.into(), action, reason: log::reason(rc) })
    }

    fn mtu(
        &self,
        config: &PortConfig,
        info: &shim_port_info,
        driver: &str,
    ) -> Result<u16, PortError> {
        let Some(asked) = config.mtu else {
            let mut mtu = 1500;
            // SAFETY: the port is open. Drivers without an answer leave the usual value.
            unsafe { dpdk_sys::rte_eth_dev_get_mtu(self.port, &mut mtu) };
            return Ok(mtu.clamp(68, 16_384));
        };
        // 68: RFC 791, section 3.2.
        let min = info.min_mtu.max(68);
        let max = if self.quirks.any_length || info.max_mtu == 0 { 16_384 } else { info.max_mtu };
        if asked < min || asked > max.min(16_384) {
            return Err(PortError::BadMtu {
                driver: driver.into(),
                asked,
                min,
                max: max.min(16_384),
            });
        }
        Ok(asked)
    }

    /// The station's address, made known to the device where it must know it.
    fn address(&self, config: &PortConfig) -> Result<[u8; 6], PortError> {
        let mut own = [0; 6];
        // SAFETY: the port is open; six bytes are written.
        let rc = unsafe { dpdk_sys::shim_port_mac(self.port, own.as_mut_ptr()) };
        self.ok(self.quirks.driver, "asked for its address", rc)?;
        let mac = match config.mac {
            Some(mac) => mac,
            None if self.quirks.own_mac || own == [0; 6] => {
                let seed = match &config.device {
                    Device::Tap { iface, .. } => iface.as_bytes(),
                    _ => self.name.to_bytes(),
                };
                made_address(seed, own)
            }
            None => own,
        };
        if !self.quirks.emulates_offloads {
            // IPv6 asks for addresses by multicast. A device that cannot filter groups refuses, and
            // passes them anyway; a software device gets all and leaves the kernel's as it is.
            // SAFETY: the port is open.
            unsafe { dpdk_sys::rte_eth_allmulticast_enable(self.port) };
        }
        if mac != own && self.quirks.promiscuous {
            // SAFETY: the port is open; six bytes are read.
            unsafe {
                // A software device must leave the kernel's interface as it is.
                let told = !self.quirks.emulates_offloads
                    && dpdk_sys::shim_port_set_mac(self.port, mac.as_ptr()) == 0;
                if !told {
                    let rc = dpdk_sys::rte_eth_promiscuous_enable(self.port);
                    self.ok(self.quirks.driver, "made promiscuous", rc)?;
                }
            }
        }
        Ok(mac)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // `set_up` holds the lock while it fails; elsewhere the port is started.
        let _control = self.started.then(Eal::control);
        // SAFETY: no queue is left (they share this), so nobody uses the port; each call is made
        // once. A failure leaves nothing more to be done.
        unsafe {
            if self.started {
                dpdk_sys::rte_eth_dev_stop(self.port);
            }
            dpdk_sys::rte_eth_dev_close(self.port);
            dpdk_sys::rte_eal_hotplug_remove(self.bus.as_ptr(), self.name.as_ptr());
        }
    }
}

fn rings(queues: u16, frames: u16) -> Result<Vec<Arc<Ring>>, PortError> {
    (0..queues)
        .map(|_| {
            Ring::new(frames).map(Arc::new).map_err(|errno| PortError::Refused {
                driver: "net_ring".into(),
                action: "made",
                reason: log::reason(errno),
            })
        })
        .collect()
}

fn driver_name(info: &shim_port_info) -> &str {
    let bytes = info.driver.as_slice();
    // SAFETY: `c_char` and `u8` have the same size, and any byte is valid.
    let bytes = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<u8>(), bytes.len()) };
    CStr::from_bytes_until_nul(bytes).ok().and_then(|name| name.to_str().ok()).unwrap_or("unknown")
}

/// The driver's name for as long as the process lives; each is kept once.
fn intern(name: &str) -> &'static str {
    static NAMES: std::sync::Mutex<Vec<&'static str>> = std::sync::Mutex::new(Vec::new());
    let mut names = NAMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = names.iter().find(|known| **known == name) {
        return known;
    }
    let kept: &'static str = String::leak(name.to_string());
    names.push(kept);
    kept
}

/// A locally administered address, the same each time for the same name and never the device's own.
fn made_address(seed: &[u8], own: [u8; 6]) -> [u8; 6] {
    // FNV-1a.
    let hash = seed
        .iter()
        .fold(0x811c_9dc5_u32, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [_, a, b, c] = hash.to_be_bytes();
    let mac = [0x02, b'm', b's', a, b, c];
    if mac == own { [0x06, b'm', b's', a, b, c] } else { mac }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_address_is_local_stable_and_not_the_devices() {
        let first = made_address(b"tap0", [0; 6]);
        assert_eq!(first, made_address(b"tap0", [0; 6]));
        assert_eq!(first[0] & 3, 2, "locally administered, not multicast");
        assert_ne!(first, made_address(b"tap1", [0; 6]));
        assert_ne!(first, made_address(b"tap0", first));
    }
}
