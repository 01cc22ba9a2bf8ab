//! smoltcp as the baseline: the same link (256 buffers of 2 KiB a direction, one copy), the same
//! thread, one reading of the clock a poll.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::rc::Rc;

use millstream::timer::{Clock, TscClock};
use smoltcp::iface::{
    Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet,
};
use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use crate::world::{CLIENT, PORT, SERVER};

const SLOTS: usize = 256;
const SLOT_BYTES: usize = 2048;

/// One direction.
struct Ring {
    slots: Box<[[u8; SLOT_BYTES]]>,
    lengths: [usize; SLOTS],
    head: usize,
    tail: usize,
    frames: u64,
}

impl Ring {
    fn new() -> Rc<RefCell<Self>> {
        let slots = vec![[0; SLOT_BYTES]; SLOTS].into_boxed_slice();
        Rc::new(RefCell::new(Self { slots, lengths: [0; SLOTS], head: 0, tail: 0, frames: 0 }))
    }

    fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    fn is_full(&self) -> bool {
        self.tail - self.head == SLOTS
    }
}

struct RingDevice {
    inbound: Rc<RefCell<Ring>>,
    outbound: Rc<RefCell<Ring>>,
    checksums: bool,
}

struct RxToken<'a>(&'a RefCell<Ring>);

impl phy::RxToken for RxToken<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let mut ring = self.0.borrow_mut();
        let slot = ring.head % SLOTS;
        let result = f(&ring.slots[slot][..ring.lengths[slot]]);
        ring.head += 1;
        result
    }
}

struct TxToken<'a>(&'a RefCell<Ring>);

impl phy::TxToken for TxToken<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut ring = self.0.borrow_mut();
        let slot = ring.tail % SLOTS;
        ring.lengths[slot] = len;
        let result = f(&mut ring.slots[slot][..len]);
        ring.tail += 1;
        ring.frames += 1;
        result
    }
}

impl Device for RingDevice {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.max_transmission_unit = 1514;
        capabilities.medium = Medium::Ethernet;
        if !self.checksums {
            capabilities.checksum = ChecksumCapabilities::ignored();
        }
        capabilities
    }

    #[inline]
    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        // A reply must have somewhere to go.
        if self.inbound.borrow().is_empty() || self.outbound.borrow().is_full() {
            return None;
        }
        Some((RxToken(&self.inbound), TxToken(&self.outbound)))
    }

    #[inline]
    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        (!self.outbound.borrow().is_full()).then(|| TxToken(&self.outbound))
    }
}

thread_local!(static TSVAL: Cell<u32> = const { Cell::new(0) });

/// The time of the current poll in milliseconds: no reading of its own.
fn tsval() -> u32 {
    TSVAL.get()
}

struct End {
    device: RingDevice,
    iface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    clock: TscClock,
}

impl End {
    fn new(last: u8, device: RingDevice, setup: Setup) -> Result<Self, Box<dyn Error>> {
        let mut device = device;
        let clock = TscClock::new();
        let mac = HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, last]));
        let mut config = Config::new(mac);
        config.random_seed = u64::from(last);
        let mut iface = Interface::new(config, &mut device, Instant::ZERO);
        let address = if last == 1 { CLIENT } else { SERVER };
        let mut result = Ok(());
        iface.update_ip_addrs(|list| {
            result = list.push(IpCidr::new(IpAddress::Ipv4(address), 24));
        });
        result.map_err(|_| "smoltcp takes no address")?;
        let buffer = || tcp::SocketBuffer::new(vec![0; setup.buffer_bytes]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        if setup.timestamps {
            socket.set_tsval_generator(Some(tsval));
        }
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(socket);
        Ok(Self { device, iface, sockets, socket, clock })
    }

    /// Frames in, application, frames out: the least that smoltcp's API allows a turn. One pass of
    /// egress sends at most one frame; `all` makes as many as there is something to send.
    #[inline]
    fn turn(&mut self, all: bool, application: impl FnOnce(&mut tcp::Socket<'static>)) {
        let now = self.clock.now();
        let now = Instant::from_micros(now.as_micros() as i64);
        TSVAL.set(now.total_millis() as u32);
        loop {
            let result = self.iface.poll_ingress_single(now, &mut self.device, &mut self.sockets);
            if result == PollIngressSingleResult::None {
                break;
            }
        }
        application(self.sockets.get_mut(self.socket));
        while self.iface.poll_egress(now, &mut self.device, &mut self.sockets) != PollResult::None
            && all
        {}
    }
}

/// How both ends are set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Timestamps on.
    pub timestamps: bool,
    /// Checksums computed and verified.
    pub checksums: bool,
    /// Each of the socket's buffers.
    pub buffer_bytes: usize,
}

/// Two smoltcp interfaces that face each other.
pub struct SmolWorld {
    client: End,
    server: End,
    clock: TscClock,
}

impl SmolWorld {
    /// With a connection that is established.
    pub fn new(setup: Setup) -> Result<Self, Box<dyn Error>> {
        let (a_to_b, b_to_a) = (Ring::new(), Ring::new());
        let device = |inbound: &Rc<RefCell<Ring>>, outbound: &Rc<RefCell<Ring>>| RingDevice {
            inbound: Rc::clone(inbound),
            outbound: Rc::clone(outbound),
            checksums: setup.checksums,
        };
        let mut client = End::new(1, device(&b_to_a, &a_to_b), setup)?;
        let mut server = End::new(2, device(&a_to_b, &b_to_a), setup)?;
        server.sockets.get_mut::<tcp::Socket<'_>>(server.socket).listen(PORT)?;
        let socket = client.sockets.get_mut::<tcp::Socket<'_>>(client.socket);
        socket.connect(client.iface.context(), (SERVER, PORT), 10_000)?;
        for _ in 0..1_000_000 {
            client.turn(true, |_| ());
            server.turn(true, |_| ());
            let up = |end: &End| end.sockets.get::<tcp::Socket<'_>>(end.socket).may_send();
            if up(&client) && up(&server) {
                return Ok(Self { client, server, clock: TscClock::new() });
            }
        }
        Err("smoltcp does not connect to itself".into())
    }

    /// One-byte round trips; returns cycles.
    pub fn ping(&mut self, round_trips: u64) -> u64 {
        let start = self.clock.raw();
        let mut done = 0;
        let mut waiting = false;
        while done < round_trips {
            self.client.turn(false, |socket| {
                let mut byte = [0; 16];
                if waiting && socket.can_recv() && socket.recv_slice(&mut byte) == Ok(1) {
                    done += 1;
                    waiting = false;
                }
                if !waiting && done < round_trips {
                    waiting = socket.send_slice(b"x") == Ok(1);
                }
            });
            self.server.turn(false, |socket| {
                let mut buffer = [0; 2048];
                if socket.can_recv()
                    && let Ok(count) = socket.recv_slice(&mut buffer)
                {
                    let _ = socket.send_slice(&buffer[..count]);
                }
            });
        }
        self.clock.raw() - start
    }

    /// Bytes from client to server; neither application touches them. Returns cycles, and the bytes,
    /// which may be more.
    pub fn bulk(&mut self, bytes: u64) -> (u64, u64) {
        let start = self.clock.raw();
        let mut received = 0;
        while received < bytes {
            self.client.turn(true, |socket| {
                while socket.can_send() && socket.send(|room| (room.len(), room.len())) != Ok(0) {}
            });
            self.server.turn(true, |socket| {
                while socket.can_recv()
                    && let Ok(count) = socket.recv(|data| (data.len(), data.len()))
                {
                    received += count as u64;
                }
            });
        }
        (self.clock.raw() - start, received)
    }

    /// Frames that both ends have sent.
    pub fn frames(&self) -> (u64, u64) {
        let frames = |end: &End| end.device.outbound.borrow().frames;
        (frames(&self.client), frames(&self.server))
    }

    /// Whether the connection uses timestamps.
    pub fn timestamps(&self) -> bool {
        self.client.sockets.get::<tcp::Socket<'_>>(self.client.socket).timestamp_enabled()
    }
}
