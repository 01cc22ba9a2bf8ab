//! UDP sockets. A packet stays in its channel, unlooked at, until the application receives it:
//! lazy receiver processing as LRP does it for UDP.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, Waker};

use millstream_buf::IoBuf;
use millstream_link::TxOffload;
use millstream_wire::checksum::Sum;
use millstream_wire::ipv4::Protocol;
use millstream_wire::{ipv4, ipv6, udp};

use crate::channel::{Channel, Packet, Refused};
use crate::ipv6::L4_OFFSET;
use crate::output::RawFrame;
use crate::policy::RxPolicy;
use crate::stack::Stack;
use crate::state::State;

const UDP: Protocol = Protocol::UDP;

/// The shard's side of a socket.
pub(crate) struct UdpPort {
    pub port: u16,
    pub channel: Channel,
    pub waker: Option<Waker>,
}

/// Why a UDP port cannot be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// Somebody has it.
    #[error("UDP port {0} is already in use on this shard; choose another")]
    InUse(u16),
    /// No port is free.
    #[error("no UDP port is free")]
    NoPort,
}

/// Why a datagram cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendToError {
    /// It does not fit one packet of the link, or of the path as far as TCP has found out.
    #[error("a datagram of {0} bytes does not fit the path's packets; at most {1} do")]
    TooLong(usize, usize),
    /// No route to the destination.
    #[error("there is no route to {0}; set a gateway")]
    NoRoute(IpAddr),
    /// No buffer is free.
    #[error("no buffer is free; try again")]
    NoBuffer,
}

impl State {
    /// Puts a packet into the channel of its port's socket.
    pub fn receive_udp(&mut self, port: u16, packet: Packet) {
        let number = self.udp_ports[usize::from(port)];
        let socket = number
            .checked_sub(1)
            .and_then(|number| self.udp.get_mut(usize::from(number)))
            .and_then(Option::as_mut);
        let Some(socket) = socket else {
            self.rx.drop_udp_no_socket += 1;
            return self.send_port_unreachable(&packet);
        };
        let packet = match self.policy {
            RxPolicy::Lrp | RxPolicy::Srp => packet,
            // The work comes first, whether or not there is room.
            RxPolicy::Eager => match self.verified_early(packet) {
                Some(packet) => packet,
                None => return,
            },
            RxPolicy::EarlyDemux if socket.channel.len() >= self.limits.socket_packets => {
                self.rx.drop_udp_channel_full += 1;
                return;
            }
            RxPolicy::EarlyDemux => match self.verified_early(packet) {
                Some(packet) => packet,
                None => return,
            },
        };
        let Some(Some(socket)) = self.udp.get_mut(usize::from(number - 1)) else { return };
        match self.channels.push(&mut socket.channel, packet, self.limits.socket_packets) {
            Ok(()) => {
                if let Some(waker) = socket.waker.take() {
                    waker.wake();
                }
            }
            Err(Refused::ChannelFull) => self.rx.drop_udp_channel_full += 1,
            Err(Refused::SlabFull) => self.rx.drop_channels_exhausted += 1,
        }
    }

    /// The packet, if its checksum is right.
    fn verified_early(&mut self, mut packet: Packet) -> Option<Packet> {
        self.metrics.udp_verified_early += 1;
        let Ok(header) = udp::Header::parse(packet.l4()) else {
            self.rx.drop_malformed += 1;
            return None;
        };
        if !sums_up(&packet, &header) {
            self.rx.drop_l4_checksum += 1;
            return None;
        }
        packet.checksum_good = true;
        Some(packet)
    }

    pub fn udp_bind(&mut self, port: u16) -> Result<(u16, u16), BindError> {
        let port = match port {
            0 => (0x8000..=u16::MAX)
                .find(|&port| self.udp_ports[usize::from(port)] == 0)
                .ok_or(BindError::NoPort)?,
            port if self.udp_ports[usize::from(port)] != 0 => return Err(BindError::InUse(port)),
            port => port,
        };
        let number = match self.udp.iter().position(Option::is_none) {
            Some(number) => number,
            None => {
                self.udp.push(None);
                self.udp.len() - 1
            }
        };
        self.udp[number] = Some(UdpPort { port, channel: Channel::default(), waker: None });
        self.udp_ports[usize::from(port)] = number as u16 + 1;
        Ok((number as u16, port))
    }

    fn udp_close(&mut self, number: u16) {
        if let Some(mut socket) = self.udp.get_mut(usize::from(number)).and_then(Option::take) {
            self.udp_ports[usize::from(socket.port)] = 0;
            self.rx.drop_socket_closed += self.channels.clear(&mut socket.channel);
        }
    }

    /// Takes the oldest good datagram of a socket.
    fn udp_recv(&mut self, number: u16) -> Option<(IoBuf, SocketAddr)> {
        loop {
            let socket = self.udp.get_mut(usize::from(number))?.as_mut()?;
            let packet = self.channels.pop(&mut socket.channel)?;
            let Ok(header) = udp::Header::parse(packet.l4()) else {
                self.rx.drop_malformed += 1;
                continue;
            };
            if !sums_up(&packet, &header) {
                self.rx.drop_l4_checksum += 1;
                continue;
            }
            self.rx.delivered_udp += 1;
            let start = usize::from(packet.l4_offset) + udp::HEADER_LEN;
            let end = usize::from(packet.l4_offset) + usize::from(header.len);
            let data = packet.frame.slice(start..end);
            return Some((data, SocketAddr::new(packet.addresses().0, header.src_port)));
        }
    }

    fn udp_send(&mut self, number: u16, data: &[u8], to: SocketAddr) -> Result<(), SendToError> {
        let headers =
            udp::HEADER_LEN + if to.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
        let max = usize::from(self.packet_max(to.ip())).saturating_sub(headers);
        if data.len() > max {
            return Err(SendToError::TooLong(data.len(), max));
        }
        let Some(socket) = self.udp.get(usize::from(number)).and_then(Option::as_ref) else {
            return Ok(());
        };
        let repr = udp::Repr {
            src_port: socket.port,
            dst_port: to.port(),
            payload_len: data.len() as u16,
        };
        let no_route = SendToError::NoRoute(to.ip());
        let mut sum = Sum::new();
        sum.add_bytes(data);
        let (via, header) = match to.ip() {
            IpAddr::V4(dst) => {
                let via = self.via(dst).ok_or(no_route)?;
                let mut header = self.ipv4_header(dst, UDP, udp::HEADER_LEN, data.len());
                repr.emit(&mut header[34..], self.station.ipv4.address, dst, sum);
                (via, header)
            }
            IpAddr::V6(dst) => {
                let via = self.via_v6(dst).ok_or(no_route)?;
                let src = self.source_v6(dst).ok_or(no_route)?;
                let mut header = self.ipv6_header(src, dst, UDP, udp::HEADER_LEN, data.len());
                repr.emit_v6(&mut header[L4_OFFSET..], src, dst, sum);
                (via, header)
            }
        };
        let payload = self.stage_whole(data).ok_or(SendToError::NoBuffer)?;
        let until = self.raw_deadline();
        let offload = TxOffload::default();
        self.send_raw(RawFrame { via, header, payload, offload, until });
        Ok(())
    }

    /// Copies a datagram into one slice; an empty one needs none.
    fn stage_whole(&mut self, data: &[u8]) -> Option<Option<IoBuf>> {
        if data.is_empty() {
            return Some(None);
        }
        let slice = self.staging.put_whole(data)?;
        self.metrics.copied_api_bytes += data.len() as u64;
        Some(Some(slice))
    }
}

/// Whether the checksum of a datagram is right.
fn sums_up(packet: &Packet, header: &udp::Header) -> bool {
    match packet.addresses() {
        _ if packet.checksum_good => true,
        (IpAddr::V4(src), IpAddr::V4(dst)) => header.verify_checksum(src, dst, packet.l4()),
        (IpAddr::V6(src), IpAddr::V6(dst)) => header.verify_checksum_v6(src, dst, packet.l4()),
        _ => false,
    }
}

/// A UDP socket.
pub struct UdpSocket {
    stack: Stack,
    number: u16,
    port: u16,
}

impl UdpSocket {
    pub(crate) fn new(stack: Stack, number: u16, port: u16) -> Self {
        Self { stack, number, port }
    }

    /// The port that it is bound to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits for a datagram and returns its payload, as it lies in the received frame, and its
    /// sender.
    pub async fn recv_from(&self) -> (IoBuf, SocketAddr) {
        poll_fn(|cx| self.poll_recv_from(cx)).await
    }

    /// The polled form of [`Self::recv_from`].
    pub fn poll_recv_from(&self, cx: &mut Context<'_>) -> Poll<(IoBuf, SocketAddr)> {
        if !self.stack.0.executor.take_receive() {
            // Others get their turn, and the link is looked at.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut state = self.stack.state();
        if let Some(datagram) = state.udp_recv(self.number) {
            return Poll::Ready(datagram);
        }
        if let Some(Some(socket)) = state.udp.get_mut(usize::from(self.number)) {
            socket.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Sends a datagram. It is copied and the call returns at once; it is dropped and counted if it
    /// has to wait too long for the neighbour's address.
    ///
    /// # Errors
    /// [`SendToError`]
    pub fn send_to(&self, data: &[u8], to: impl Into<SocketAddr>) -> Result<(), SendToError> {
        self.stack.state().udp_send(self.number, data, to.into())
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.stack.state().udp_close(self.number);
    }
}
