//! The devices that a port can stand on, and what must be true before DPDK is asked for them.

use std::ffi::CString;
use std::path::PathBuf;

use crate::error::PortError;

/// Which end of a shared-memory interface listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemifRole {
    /// Makes the socket and waits.
    Server,
    /// Connects to it.
    Client,
}

/// Where a capture port sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PcapSink {
    /// Nowhere.
    Discard,
    /// Into a capture file, which is made anew.
    File(PathBuf),
    /// Out of a kernel interface.
    Interface(String),
}

/// A device and what it needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// A tap interface of the kernel, made in the network namespace of the calling thread. Needs
    /// root (`CAP_NET_ADMIN`).
    Tap {
        /// Its name in the kernel.
        iface: String,
        /// The address of the kernel's end; random if not given.
        mac: Option<[u8; 6]>,
    },
    /// A kernel interface through packet sockets. Needs root (`CAP_NET_RAW`).
    AfPacket {
        /// Its name.
        iface: String,
    },
    /// A kernel interface through XDP sockets. Needs root.
    AfXdp {
        /// Its name.
        iface: String,
    },
    /// Shared memory with another process. Needs no privilege.
    Memif {
        /// Which end this is.
        role: MemifRole,
        /// The socket's path.
        socket: PathBuf,
        /// Both ends name the same interface on the socket.
        id: u32,
    },
    /// A ring in this process: what is sent on a queue is received on the same queue. Two ports
    /// that face each other: [`Port::ring_pair`](crate::Port::ring_pair).
    Ring,
    /// Swallows what is sent.
    Null {
        /// Length in bytes of the frames that it brings.
        frame_bytes: u16,
        /// Whether it brings any; if so, endlessly.
        rx: bool,
    },
    /// Capture files.
    Pcap {
        /// Frames that are received, once each.
        rx_file: PathBuf,
        /// Where frames go.
        tx: PcapSink,
    },
    /// A network card bound to VFIO or UIO, named in
    /// [`EalConfig::allow`](crate::EalConfig::allow).
    Pci {
        /// Its address (`0000:01:00.0`).
        address: String,
    },
    /// Any other virtual device of DPDK.
    Vdev {
        /// The driver (`net_virtio_user`).
        driver: String,
        /// Its arguments (`path=/run/vhost.sock`).
        args: String,
    },
}

impl Device {
    /// The driver's name in DPDK; empty for a card, which says so itself.
    pub fn driver(&self) -> &str {
        match self {
            Device::Tap { .. } => "net_tap",
            Device::AfPacket { .. } => "net_af_packet",
            Device::AfXdp { .. } => "net_af_xdp",
            Device::Memif { .. } => "net_memif",
            Device::Ring => "net_ring",
            Device::Null { .. } => "net_null",
            Device::Pcap { .. } => "net_pcap",
            Device::Pci { .. } => "",
            Device::Vdev { driver, .. } => driver,
        }
    }

    /// The device's arguments, as behind the name in `--vdev`.
    pub fn args(&self, queues: u16) -> String {
        match self {
            Device::Tap { iface, mac: None } => format!("iface={iface}"),
            Device::Tap { iface, mac: Some(mac) } => {
                let mac: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("iface={iface},mac={}", mac.join(":"))
            }
            Device::AfPacket { iface } => format!(
                "iface={iface},qpairs={queues},qdisc_bypass=1,framecnt=2048,framesz=2048,blocksz=65536"
            ),
            Device::AfXdp { iface } => format!("iface={iface},start_queue=0,queue_count={queues}"),
            Device::Memif { role, socket, id } => {
                let role = if *role == MemifRole::Server { "server" } else { "client" };
                format!(
                    "role={role},id={id},socket={},socket-abstract=no,rsize=11,bsize=2048",
                    socket.display()
                )
            }
            Device::Null { frame_bytes, rx } => {
                format!("size={frame_bytes},copy=0{}", if *rx { "" } else { ",no-rx=1" })
            }
            Device::Pcap { rx_file, tx } => {
                let tx = match tx {
                    PcapSink::Discard => String::new(),
                    PcapSink::File(path) => format!(",tx_pcap={}", path.display()),
                    PcapSink::Interface(name) => format!(",tx_iface={name}"),
                };
                format!("rx_pcap={}{tx}", rx_file.display())
            }
            Device::Ring | Device::Pci { .. } => String::new(),
            Device::Vdev { args, .. } => args.clone(),
        }
    }

    /// Finds out, before DPDK fails with less to say, whether the device can be had.
    pub(crate) fn check(&self) -> Result<(), PortError> {
        match self {
            Device::Tap { iface, .. } => {
                check_name(iface)?;
                if interface_exists(iface) {
                    return Err(PortError::InterfaceBusy { iface: iface.clone() });
                }
                try_tap(iface)
            }
            Device::AfPacket { iface } | Device::AfXdp { iface } => {
                check_name(iface)?;
                if !interface_exists(iface) {
                    return Err(PortError::NoInterface { iface: iface.clone() });
                }
                try_packet_socket(iface)
            }
            Device::Memif { socket, .. } => check_path(socket),
            Device::Pcap { rx_file, tx } => {
                check_path(rx_file)?;
                match tx {
                    PcapSink::File(path) => check_path(path),
                    PcapSink::Interface(name) => check_name(name),
                    PcapSink::Discard => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

/// A PCI address in the long form `0000:01:00.0`, under which DPDK knows the card, from that or the
/// short form `01:00.0`; nothing if `text` is none. DPDK would take other words for other buses.
pub fn pci_address(text: &str) -> Option<String> {
    let hex = |part: &str, digits: usize, max: u16| {
        let plain = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        u16::from_str_radix(part, 16).ok().filter(|&value| plain && value <= max)
    };
    let (domain, rest) = match text.len() {
        7 => (0, text),
        _ => {
            let (domain, rest) = text.split_once(':')?;
            (hex(domain, 4, u16::MAX)?, rest)
        }
    };
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let (bus, device, function) = (hex(bus, 2, 255)?, hex(device, 2, 31)?, hex(function, 1, 7)?);
    Some(format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"))
}

fn check_name(name: &str) -> Result<(), PortError> {
    let good = (1..=15).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:,=".contains(&byte));
    if good { Ok(()) } else { Err(PortError::BadName { name: name.into() }) }
}

/// A comma would end the argument.
fn check_path(path: &std::path::Path) -> Result<(), PortError> {
    let text = path.to_string_lossy();
    if text.is_empty() || text.contains([',', '\0']) || text.len() > 107 {
        return Err(PortError::BadName { name: text.into_owned() });
    }
    Ok(())
}

fn interface_exists(name: &str) -> bool {
    // SAFETY: a C string that outlives the call; the answer is for this thread's namespace.
    CString::new(name).is_ok_and(|name| unsafe { libc::if_nametoindex(name.as_ptr()) } != 0)
}

/// Makes the tap and lets it go again: every reason why that may fail shows here.
fn try_tap(iface: &str) -> Result<(), PortError> {
    // SAFETY: opens a file by a constant name.
    let fd = unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(tap_error(iface, std::io::Error::last_os_error()));
    }
    // SAFETY: an ifreq is plain bytes; zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(iface.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq; the descriptor is ours, closed once.
    let result = unsafe {
        let rc = libc::ioctl(fd, libc::TUNSETIFF, &mut request);
        let error = std::io::Error::last_os_error();
        libc::close(fd);
        if rc < 0 { Err(error) } else { Ok(()) }
    };
    result.map_err(|error| tap_error(iface, error))
}

fn tap_error(iface: &str, source: std::io::Error) -> PortError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => PortError::TapPermission,
        Some(libc::EBUSY | libc::EINVAL) => PortError::InterfaceBusy { iface: iface.into() },
        _ => PortError::NoTun { reason: source.to_string() },
    }
}

fn try_packet_socket(iface: &str) -> Result<(), PortError> {
    // SAFETY: makes a socket and closes it.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(PortError::PacketPermission { iface: iface.into() });
    }
    // SAFETY: our own descriptor.
    unsafe { libc::close(fd) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_what_dpdk_reads() {
        let tap = Device::Tap { iface: "t0".into(), mac: Some([2, 0, 0, 0, 0, 0xab]) };
        assert_eq!(tap.args(1), "iface=t0,mac=02:00:00:00:00:ab");
        let memif = Device::Memif { role: MemifRole::Client, socket: "/tmp/s".into(), id: 3 };
        assert!(memif.args(1).starts_with("role=client,id=3,socket=/tmp/s,socket-abstract=no"));
        assert_eq!(Device::Null { frame_bytes: 64, rx: false }.args(1), "size=64,copy=0,no-rx=1");
    }

    #[test]
    fn cards_have_addresses() {
        for good in ["0000:0a:1f.7", "0a:1f.7", "0000:0A:1F.7"] {
            assert_eq!(pci_address(good).as_deref(), Some("0000:0a:1f.7"), "{good}");
        }
        assert_eq!(pci_address("ffff:00:00.0").as_deref(), Some("ffff:00:00.0"));
        for bad in [
            "",
            "net_null0",
            "0a:1f",
            "0a:20.0",
            "0a:1f.8",
            "+a:1f.7",
            "0000:0a:1f.7,x=1",
            "000:0a:1f.7",
            "10000:0a:1f.7",
            "0000:0a:1f.7 ",
        ] {
            assert_eq!(pci_address(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_that_would_change_the_arguments_are_refused() {
        for name in ["", "a,remote=eth0", "has space", "sixteen-letters-", "a/b"] {
            let error = Device::Tap { iface: name.into(), mac: None }.check().unwrap_err();
            assert!(matches!(error, PortError::BadName { .. }), "{error}");
        }
    }

    #[test]
    fn a_missing_interface_is_a_sentence() {
        let error = Device::AfPacket { iface: "nosuchif0".into() }.check().unwrap_err();
        assert!(error.to_string().contains("no network interface named nosuchif0"), "{error}");
    }

    #[test]
    fn a_taken_name_is_a_sentence() {
        // `lo` exists in every namespace; it is only looked up, not touched.
        let error = Device::Tap { iface: "lo".into(), mac: None }.check().unwrap_err();
        assert!(error.to_string().contains("ip link delete lo"), "{error}");
    }
}
