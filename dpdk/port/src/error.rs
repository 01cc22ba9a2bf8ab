//! Why a port could not be opened.

use crate::lcore::TooManyThreads;

/// Each says what is wrong and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// No right to make a tap.
    #[error(
        "no permission to make a tap interface: run as root, or give the program CAP_NET_ADMIN and access to /dev/net/tun"
    )]
    TapPermission,
    /// The kernel has no taps.
    #[error(
        "/dev/net/tun cannot be used ({reason}): load it with `modprobe tun`, or let the container have that device"
    )]
    NoTun {
        /// What the kernel said.
        reason: String,
    },
    /// The name of the tap is taken.
    #[error(
        "a network interface named {iface} exists already: remove it with `ip link delete {iface}`, or choose another name with `link.iface`"
    )]
    InterfaceBusy {
        /// The name.
        iface: String,
    },
    /// The interface to be used does not exist.
    #[error(
        "there is no network interface named {iface} in this network namespace: see `ip link` for those there are"
    )]
    NoInterface {
        /// The name.
        iface: String,
    },
    /// No right to use packet sockets.
    #[error(
        "no permission to take frames from {iface}: run as root, or give the program CAP_NET_RAW"
    )]
    PacketPermission {
        /// The interface.
        iface: String,
    },
    /// A name that DPDK or the kernel could not take.
    #[error(
        "{name:?} is no usable name here: an interface has 1 to 15 letters, digits, `-`, `_` or `.`, and a path no comma and at most 107 bytes"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// DPDK does not know the card.
    #[error(
        "DPDK has no device {address}: bind it with `dpdk-devbind.py --bind=vfio-pci {address}` and name it in `link.pci` ({reason})"
    )]
    NoSuchCard {
        /// The PCI address.
        address: String,
        /// What DPDK logged last.
        reason: String,
    },
    /// The driver would not start or be set up.
    #[error(
        "the {driver} device cannot be {action} ({reason}): check its settings; the whole log is at level debug"
    )]
    Refused {
        /// The driver.
        driver: String,
        /// What was tried.
        action: &'static str,
        /// What DPDK logged last.
        reason: String,
    },
    /// Pools do not fit.
    #[error(
        "DPDK has no memory left for {mbufs} packet buffers ({needed_mb} MiB): raise `dpdk.memory_mb`, now {memory_mb}, or lower `link.mbufs`"
    )]
    NoMemory {
        /// Buffers asked for.
        mbufs: u32,
        /// Their size in MiB.
        needed_mb: u64,
        /// DPDK's memory in MiB.
        memory_mb: u32,
    },
    /// More queues than there are.
    #[error("{driver} has at most {max} queues of each kind: open fewer, now {asked}")]
    TooManyQueues {
        /// The driver.
        driver: String,
        /// Queues asked for.
        asked: u16,
        /// Queues that it has.
        max: u16,
    },
    /// A longer packet than the device carries.
    #[error(
        "{driver} carries IP packets of {min} to {max} bytes: set `link.mtu` to one of these, now {asked}"
    )]
    BadMtu {
        /// The driver.
        driver: String,
        /// The MTU asked for.
        asked: u16,
        /// The least.
        min: u16,
        /// The most.
        max: u16,
    },
    /// Memory could not be shown to the device.
    #[error(
        "the device cannot be given access to {bytes} bytes of buffers ({reason}): raise the limit of locked memory with `ulimit -l unlimited`"
    )]
    Register {
        /// Bytes of the region.
        bytes: usize,
        /// What DPDK logged last.
        reason: String,
    },
    /// See [`TooManyThreads`].
    #[error(transparent)]
    Threads(#[from] TooManyThreads),
}
