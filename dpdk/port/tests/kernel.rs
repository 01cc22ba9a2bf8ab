//! Ports whose other end is the kernel, in a network namespace that the test makes for its own
//! thread. Without the right to make one, the same calls must say what is missing.

use std::ffi::CStr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use dpdk_port::{Device, Eal, EalConfig, Port, PortConfig, PortError, PortQueue};
use millstream_buf::{HugePages, IoBuf};
use millstream_link::{Link, RxBurst, TxFrame};

fn eal() -> &'static Eal {
    let config = EalConfig { huge_pages: HugePages::Never, memory_mb: 128, ..EalConfig::default() };
    Eal::init(&config).unwrap()
}

/// Numbers of capabilities (linux/capability.h).
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;

/// Whether this thread has a capability.
fn has(capability: u32) -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() >> capability & 1 == 1
}

/// Runs `test` on a thread with a network namespace of its own, which goes with the thread. If none
/// can be made here: `without`, which must be refused, unless the thread has the `needed` capability;
/// then it would reach the machine's own interfaces, and nothing is run.
fn in_a_namespace(needed: u32, test: fn(), without: fn()) {
    let ran = std::thread::spawn(move || {
        // SAFETY: moves this thread alone into a new namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 {
            test();
        } else if has(needed) {
            eprintln!("not run: a network namespace needs CAP_SYS_ADMIN");
        } else {
            without();
        }
    });
    ran.join().unwrap();
}

fn tap(iface: &str) -> PortConfig {
    PortConfig { mbufs: 2048, ..PortConfig::new(Device::Tap { iface: iface.into(), mac: None }) }
}

fn bind(mut port: Port) -> PortQueue {
    port.take_queue(0).unwrap().bind().unwrap()
}

/// As `ip link set NAME up` or `down`.
fn set_up(name: &str, up: bool) {
    // SAFETY: an ifreq is plain bytes; the two requests read and write it; the socket is ours.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        assert_eq!(libc::ioctl(socket, libc::SIOCGIFFLAGS, &mut request), 0);
        if up {
            request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        } else {
            request.ifr_ifru.ifru_flags &= !(libc::IFF_UP as libc::c_short);
        }
        assert_eq!(libc::ioctl(socket, libc::SIOCSIFFLAGS, &request), 0);
        libc::close(socket);
    }
}

/// Frames that the kernel got on an interface of this thread's namespace.
fn kernel_rx_frames(name: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
    line.split(':').nth(1).unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn wait_for(mut what: impl FnMut() -> bool) -> bool {
    (0..5000).any(|_| {
        let done = what();
        if !done {
            std::thread::sleep(Duration::from_millis(1));
        }
        done
    })
}

#[test]
fn a_tap_carries_frames_both_ways() {
    fn test() {
        let port = Port::open(eal(), &tap("mstap0")).unwrap();
        let capabilities = port.capabilities().clone();
        assert_eq!(capabilities.driver, "net_tap");
        assert_eq!(capabilities.mac[0] & 3, 2, "an address of our own");
        assert!(capabilities.copies_payload && !capabilities.tx_tcp_checksum);
        let mut queue = bind(port);

        let busy = Port::open(eal(), &tap("mstap0")).unwrap_err();
        assert_eq!(busy, PortError::InterfaceBusy { iface: "mstap0".into() });

        // A frame of an unassigned type (IEEE 802, local experimental) in three pieces.
        let mut header = [0xff_u8; 14];
        header[6..12].copy_from_slice(&capabilities.mac);
        header[12..].copy_from_slice(&[0x88, 0xb5]);
        let payload = [IoBuf::from(vec![1; 301]), IoBuf::from(vec![2; 501])];
        let before = kernel_rx_frames("mstap0");
        queue
            .tx(&TxFrame { header: &header, payload: &payload, offload: Default::default() })
            .unwrap();
        // What was taken while the interface is down waits; it is neither lost nor an error.
        set_up("mstap0", false);
        queue.flush();
        queue.flush();
        assert_eq!((queue.stats().tx_frames, queue.stats().tx_errors), (0, 0));
        set_up("mstap0", true);
        assert!(wait_for(|| {
            queue.flush();
            kernel_rx_frames("mstap0") > before
        }));

        // The kernel's own multicast reports may come first.
        let mut frames = RxBurst::new();
        assert!(wait_for(|| {
            send_from_the_kernel(c"mstap0");
            queue.rx_burst(&mut frames);
            !frames.is_empty()
        }));
        assert!(frames[0].buf.len() >= 42);
        assert!(queue.is_up());
        drop((frames, queue));
        assert!(!std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains("mstap0"));
    }
    fn without() {
        let error = Port::open(eal(), &tap("mstap0")).unwrap_err();
        assert!(matches!(error, PortError::TapPermission | PortError::NoTun { .. }), "{error}");
    }
    in_a_namespace(NET_ADMIN, test, without);
}

/// Whether the queue's event is signalled within so many milliseconds.
fn signalled(queue: &PortQueue, ms: i32) -> bool {
    let event = queue.rx_event().unwrap();
    let mut ready = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, which is open.
    unsafe { libc::poll(&mut ready, 1, ms) > 0 }
}

#[test]
fn a_tap_signals_frames_to_a_queue_that_sleeps() {
    fn test() {
        let mut queue = bind(Port::open(eal(), &tap("mstap1")).unwrap());
        set_up("mstap1", true);
        let mut frames = RxBurst::new();
        for _ in 0..3 {
            // What the kernel says of itself may come at any time.
            queue.arm_rx();
            assert!(wait_for(|| {
                queue.rx_burst(&mut frames);
                frames.clear();
                !signalled(&queue, 0)
            }));
            send_from_the_kernel(c"mstap1");
            assert!(signalled(&queue, 10_000), "no frame was signalled");
            queue.disarm_rx();
            queue.rx_burst(&mut frames);
            assert!(!frames.is_empty(), "a signal without a frame");
            frames.clear();
        }
        let mute = PortConfig { rx_interrupts: false, ..tap("mstap2") };
        assert!(bind(Port::open(eal(), &mute).unwrap()).rx_event().is_none());
        // These have none, and say so rather than being waited for.
        for device in [Device::AfPacket { iface: "lo".into() }, Device::Ring] {
            let config = PortConfig { mbufs: 2048, ..PortConfig::new(device.clone()) };
            assert!(bind(Port::open(eal(), &config).unwrap()).rx_event().is_none(), "{device:?}");
        }
    }
    in_a_namespace(NET_ADMIN, test, || {});
}

/// A broadcast of 60 bytes out of an interface.
fn send_from_the_kernel(iface: &CStr) {
    // SAFETY: plain socket calls with valid arguments; the socket is closed.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = libc::if_nametoindex(iface.as_ptr()) as i32;
        let mut frame = [0xff_u8; 60];
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        libc::sendto(
            socket,
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        );
        libc::close(socket);
    }
}

#[test]
fn packet_sockets_carry_frames_on_a_namespaces_loopback() {
    fn config() -> PortConfig {
        PortConfig { mbufs: 2048, ..PortConfig::new(Device::AfPacket { iface: "lo".into() }) }
    }
    fn test() {
        set_up("lo", true);
        let mut queue = bind(Port::open(eal(), &config()).unwrap());
        let mut header = [0_u8; 14];
        header[12..].copy_from_slice(&[0x88, 0xb5]);
        let payload = [IoBuf::from(vec![7; 700]), IoBuf::from(vec![8; 333])];
        let mut frames = RxBurst::new();
        queue
            .tx(&TxFrame { header: &header, payload: &payload, offload: Default::default() })
            .unwrap();
        assert!(wait_for(|| {
            queue.flush();
            queue.rx_burst(&mut frames);
            !frames.is_empty()
        }));
        let want = [&header[..], &payload[0], &payload[1]].concat();
        assert_eq!(&*frames[0].buf, &want[..]);
    }
    fn without() {
        let error = Port::open(eal(), &config()).unwrap_err();
        assert_eq!(error, PortError::PacketPermission { iface: "lo".into() });
    }
    in_a_namespace(NET_RAW, test, without);
}
