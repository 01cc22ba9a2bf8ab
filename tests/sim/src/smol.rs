//! smoltcp as one of the hosts: a stack that others wrote.

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::Ipv4Addr;

use millstream_buf::IoBuf;
use millstream_link::{Link, RxBurst, TxFrame};
use millstream_sim::{Node, SimLink};
use millstream_timer::{Clock, Instant, VirtualClock};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use crate::flows::Pattern;

thread_local!(static TSVAL: Cell<u32> = const { Cell::new(0) });

/// A simulated link as smoltcp sees one.
struct SmolDevice {
    link: SimLink,
    burst: RxBurst,
    arrived: VecDeque<IoBuf>,
}

struct RxToken(IoBuf);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct TxToken<'a>(&'a mut SimLink);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let result = f(&mut bytes);
        let frame = TxFrame { header: &bytes, payload: &[], offload: Default::default() };
        // There was room when the token was given out.
        let _ = self.0.tx(&frame);
        result
    }
}

impl Device for SmolDevice {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.max_transmission_unit = usize::from(self.link.capabilities().mtu) + 14;
        capabilities.medium = Medium::Ethernet;
        capabilities
    }

    fn receive(&mut self, _: SmolInstant) -> Option<(RxToken, TxToken<'_>)> {
        if self.arrived.is_empty() {
            self.link.rx_burst(&mut self.burst);
            self.arrived.extend(self.burst.drain(..).map(|frame| frame.buf));
        }
        if self.link.tx_room() == 0 {
            return None;
        }
        let frame = self.arrived.pop_front()?;
        Some((RxToken(frame), TxToken(&mut self.link)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<TxToken<'_>> {
        (self.link.tx_room() > 0).then_some(TxToken(&mut self.link))
    }
}

/// How smoltcp's end is set up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SmolConfig {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its link address' last byte.
    pub station: u8,
    /// Each of the socket's buffers.
    pub buffer_bytes: usize,
    /// Nagle's algorithm.
    pub nagle: bool,
    /// Timestamps.
    pub timestamps: bool,
    /// From which its numbers are drawn.
    pub seed: u64,
}

/// One smoltcp host with one connection: it sends one stream and checks another.
pub struct SmolHost {
    clock: VirtualClock,
    device: SmolDevice,
    iface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    prologue: Vec<u8>,
    sends: (Pattern, u64),
    receives: Pattern,
    /// Bytes that the socket has taken.
    pub written: u64,
    /// Bytes that came.
    pub read: u64,
    /// Bytes before the stream that it does not look at.
    pub skip: u64,
    /// The first byte that was not as it should be.
    pub differs_at: Option<u64>,
    /// The peer has closed its direction, and all that came before was read.
    pub finished: bool,
    closed: bool,
    deadline: Instant,
}

impl SmolHost {
    /// A host on an end of a link, which sends `sends` and expects `receives`. What it sends begins
    /// with `prologue`.
    pub fn new(
        clock: &VirtualClock,
        link: SimLink,
        config: SmolConfig,
        prologue: &[u8],
        sends: (Pattern, u64),
        receives: Pattern,
    ) -> Self {
        let mut device = SmolDevice { link, burst: RxBurst::new(), arrived: VecDeque::new() };
        let mac = EthernetAddress([2, 0, 0, 0, 0, config.station]);
        let mut iface_config = Config::new(HardwareAddress::Ethernet(mac));
        iface_config.random_seed = config.seed;
        let mut iface = Interface::new(iface_config, &mut device, smol_now(clock));
        iface.update_ip_addrs(|addresses| {
            let address = IpCidr::new(IpAddress::Ipv4(config.address), 24);
            addresses.push(address).expect("room for an address");
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; config.buffer_bytes]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(config.nagle);
        if config.timestamps {
            socket.set_tsval_generator(Some(|| TSVAL.get()));
        }
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(socket);
        Self {
            clock: clock.clone(),
            device,
            iface,
            sockets,
            socket,
            prologue: prologue.to_vec(),
            sends,
            receives,
            written: 0,
            read: 0,
            skip: 0,
            differs_at: None,
            finished: false,
            closed: false,
            deadline: clock.now(),
        }
    }

    /// Opens the connection.
    pub fn connect(&mut self, server: Ipv4Addr, port: u16, local_port: u16) {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        socket
            .connect(self.iface.context(), (server, port), local_port)
            .expect("a fresh socket connects");
    }

    /// Waits for the connection.
    pub fn listen(&mut self, port: u16) {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        socket.listen(port).expect("a fresh socket listens");
    }

    /// Where its connection stands.
    pub fn state(&self) -> tcp::State {
        self.sockets.get::<tcp::Socket<'_>>(self.socket).state()
    }

    /// The application: reads what has come, writes what there is room for, closes at the end.
    fn application(&mut self) -> bool {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        let before = (self.read, self.written, self.closed, self.finished);
        while socket.can_recv() {
            let (pattern, read, skip) = (self.receives, self.read, self.skip);
            let taken = socket.recv(|bytes| {
                let skipped = skip.saturating_sub(read).min(bytes.len() as u64);
                let offset = (read + skipped).saturating_sub(skip);
                let stream = bytes.get(skipped as usize..).unwrap_or_default();
                (bytes.len(), (pattern.matches(offset, stream), bytes.len()))
            });
            let Ok((matches, count)) = taken else { break };
            if !matches && self.differs_at.is_none() {
                self.differs_at = Some(read);
            }
            self.read += count as u64;
            if count == 0 {
                break;
            }
        }
        while socket.can_send() && self.written < self.prologue.len() as u64 + self.sends.1 {
            let head = self.prologue.get(self.written as usize..).unwrap_or_default();
            let bytes = if head.is_empty() {
                let offset = self.written - self.prologue.len() as u64;
                let left = (self.sends.1 - offset).min(1 << 14) as usize;
                self.sends.0.at(offset, left)
            } else {
                head
            };
            match socket.send_slice(bytes) {
                Ok(count @ 1..) => self.written += count as u64,
                _ => break,
            }
        }
        let all = self.written == self.prologue.len() as u64 + self.sends.1;
        if all && !self.closed && socket.may_send() {
            socket.close();
            self.closed = true;
        }
        let ended = matches!(
            socket.state(),
            tcp::State::CloseWait
                | tcp::State::LastAck
                | tcp::State::TimeWait
                | tcp::State::Closing
        );
        // `Closed` follows `LastAck` within one poll.
        let ended = ended || (self.closed && socket.state() == tcp::State::Closed);
        self.finished |= ended && !socket.can_recv();
        before != (self.read, self.written, self.closed, self.finished)
    }
}

fn smol_now(clock: &VirtualClock) -> SmolInstant {
    SmolInstant::from_micros(clock.now().as_micros() as i64)
}

impl Node for SmolHost {
    fn turn(&mut self) -> bool {
        let now = smol_now(&self.clock);
        TSVAL.set(now.total_millis() as u32);
        let mut worked = false;
        while self.iface.poll(now, &mut self.device, &mut self.sockets) != PollResult::None {
            worked |= self.application();
        }
        while self.application() {
            worked = true;
            self.iface.poll(now, &mut self.device, &mut self.sockets);
        }
        // In whole microseconds. One that is due although smoltcp has just been polled waits for
        // something else, such as room on the link: it is asked again in a while.
        self.deadline = match self.iface.poll_at(now, &self.sockets) {
            None => Instant::FAR_FUTURE,
            Some(at) if at <= now => Instant::from_micros(now.total_micros() as u64 + 1000),
            Some(at) => Instant::from_micros(at.total_micros() as u64),
        };
        worked
    }

    fn next_deadline(&self) -> Instant {
        self.deadline
    }
}
