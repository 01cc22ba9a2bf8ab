//! Listeners: opening connections that peers ask for, and handing them to the application.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::task::Waker;

use millstream_tcp::{Algorithm, Events, Tcb, reset_reply};
use millstream_wire::tcp::{Flags, Header, SeqNumber};

use crate::channel::{Channel, Packet};
use crate::client_rate::ListenerRates;
use crate::conn::{Conn, ConnId, Facts, NONE};
use crate::container::{ContainerError, Prefix, Shadowed};
use crate::flow::FlowKey;
use crate::state::{FILTERED, State, env};

/// A port that takes connections.
pub(crate) struct Listener {
    /// With an unspecified address of IPv6 both versions are meant.
    pub address: SocketAddr,
    pub backlog: usize,
    /// Controller of its connections, if not the stack's.
    pub congestion: Option<Algorithm>,
    /// What clients are sent to at.
    pub rates: ListenerRates,
    /// Connections whose handshake is under way.
    pub half_open: usize,
    /// Their names in the order in which they came, among names of some that are further on.
    pub half_open_order: VecDeque<ConnId>,
    /// Connections that the application has not taken yet.
    pub accept: VecDeque<ConnId>,
    pub waker: Option<Waker>,
    pub channel: Channel,
    /// Whose it is, and the connections that it opens.
    pub container: u16,
}

/// Why a port cannot be listened on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there already.
    #[error("port {0} is already in use on this shard; choose another")]
    InUse(u16),
    /// The address is not this station's.
    #[error("{0} is not this station's address; listen on 0.0.0.0, on [::] or on {1}")]
    NotOurs(IpAddr, IpAddr),
    /// Port 0.
    #[error("a listener needs a port other than 0")]
    NoPort,
    /// One filter would hide another.
    #[error("on port {0}, the filter {1} leaves no client to {2}; take one of them away")]
    Shadowed(u16, Prefix, Prefix),
    /// The container cannot have it.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// 65,534 listeners.
    #[error("too many listeners")]
    TooMany,
}

impl Listener {
    /// Whether a segment to its port is for it.
    pub fn takes(&self, packet: &Packet) -> bool {
        match self.address.ip() {
            IpAddr::V4(_) => !packet.is_ipv6(),
            IpAddr::V6(ip) => ip.is_unspecified() || packet.addresses().1 == IpAddr::V6(ip),
        }
    }
}

impl State {
    /// Makes a listener, for clients whose address begins with `filter` if that is given.
    pub fn listen(
        &mut self,
        address: SocketAddr,
        backlog: usize,
        filter: Option<Prefix>,
        container: u16,
    ) -> Result<u16, ListenError> {
        let ours = self.station.ipv4.address;
        let is_ours = match address.ip() {
            IpAddr::V4(ip) => ip.is_unspecified() || ip == ours,
            IpAddr::V6(ip) => {
                let host = self.station.ipv6.as_deref();
                host.is_some_and(|host| ip.is_unspecified() || host.is_or_will_be_ours(ip))
            }
        };
        if !is_ours {
            return Err(ListenError::NotOurs(address.ip(), ours.into()));
        }
        let port = address.port();
        if port == 0 {
            return Err(ListenError::NoPort);
        }
        match (self.listener_ports[usize::from(port)], filter) {
            (0, _) | (FILTERED, Some(_)) => {}
            _ => return Err(ListenError::InUse(port)),
        }
        let number = match self.listeners.iter().position(Option::is_none) {
            Some(number) => number,
            None if self.listeners.len() < usize::from(u16::MAX) - 2 => {
                self.listeners.push(None);
                self.listeners.len() - 1
            }
            None => return Err(ListenError::TooMany),
        };
        if let Some(prefix) = filter {
            let filters = self.filtered_ports.entry(port).or_default();
            if let Err(Shadowed(hidden)) = filters.insert(prefix, number as u16) {
                return Err(ListenError::Shadowed(port, prefix, hidden));
            }
        }
        self.containers.bind(container, 1);
        let backlog = backlog.max(1);
        self.listeners[number] = Some(Listener {
            address: match address {
                SocketAddr::V4(_) => SocketAddr::new(ours.into(), port),
                SocketAddr::V6(_) => address,
            },
            backlog,
            congestion: None,
            rates: ListenerRates::default(),
            half_open: 0,
            half_open_order: VecDeque::with_capacity(2 * backlog),
            accept: VecDeque::with_capacity(2 * backlog),
            waker: None,
            channel: Channel::default(),
            container,
        });
        self.listener_ports[usize::from(port)] =
            if filter.is_some() { FILTERED } else { number as u16 + 1 };
        Ok(number as u16)
    }

    pub fn listener_mut(&mut self, number: u32) -> Option<&mut Listener> {
        self.listeners.get_mut(number as usize)?.as_mut()
    }

    /// Closes a listener: connections that nobody has taken are reset.
    pub fn unlisten(&mut self, number: u16) {
        let Some(mut listener) = self.listeners.get_mut(usize::from(number)).and_then(Option::take)
        else {
            return;
        };
        self.containers.bind(listener.container, -1);
        let port = listener.address.port();
        let others =
            self.filtered_ports.get_mut(&port).is_some_and(|filters| filters.remove(number));
        if !others {
            self.filtered_ports.remove(&port);
            self.listener_ports[usize::from(port)] = 0;
        }
        let dropped = self.channels.clear(&mut listener.channel);
        self.rx.drop_socket_closed += dropped;
        let theirs: Vec<u32> = self
            .conns
            .numbers()
            .filter(|&n| {
                self.conns.get(n).is_some_and(|conn| {
                    conn.listener == u32::from(number) && conn.facts.contains(Facts::HALF_OPEN)
                })
            })
            .collect();
        let accepted = listener.accept.iter().map(|id| id.number);
        for conn_number in theirs.into_iter().chain(accepted) {
            let Some(conn) = self.conns.get_mut(conn_number) else { continue };
            conn.facts.remove(Facts::HELD | Facts::HALF_OPEN);
            conn.listener = NONE;
            conn.tcb.abort(&mut env!(self));
            self.settle(conn_number);
        }
    }

    /// Serves a listener's channel: SYNs open connections, anything else is refused.
    pub fn serve_listener(&mut self, number: u16) {
        let mut channel = match self.listener_mut(u32::from(number)) {
            Some(listener) => std::mem::take(&mut listener.channel),
            None => return,
        };
        while let Some(packet) = self.channels.pop(&mut channel) {
            self.listener_input(u32::from(number), packet);
        }
        if let Some(listener) = self.listener_mut(u32::from(number)) {
            listener.channel = Channel::default();
        }
    }

    fn listener_input(&mut self, number: u32, packet: Packet) {
        if !self.check_segment(&packet) {
            return;
        }
        let Some(key) = self.hold_key(&packet) else {
            self.rx.drop_connections_exhausted += 1;
            return;
        };
        self.listener_input_of(number, packet, &key);
        self.release_key(&key);
    }

    fn listener_input_of(&mut self, number: u32, packet: Packet, key: &FlowKey) {
        let Ok((header, header_len)) = Header::parse(packet.l4()) else {
            self.rx.drop_malformed += 1;
            return;
        };
        // An earlier packet of the same burst may have opened the connection.
        if let Some(conn) = self.find_conn(key) {
            self.receive_tcp(key, packet);
            return self.serve_conn(conn);
        }
        let opens = header.flags.contains(Flags::SYN)
            && !header.flags.intersects(Flags::ACK | Flags::RST | Flags::FIN);
        if !opens {
            if self.accept_cookie(number, &packet, &header, header_len, key) {
                return;
            }
            return self.refuse(&packet, &header, header_len, key);
        }
        self.open_passively(number, &packet, &header, key, None);
    }

    /// A SYN opens a connection, if there is room: with the initial sequence number `isn` if it is in
    /// the place of another one.
    pub fn open_passively(
        &mut self,
        number: u32,
        packet: &Packet,
        header: &Header<'_>,
        key: &FlowKey,
        isn: Option<SeqNumber>,
    ) {
        if !self.remote_is_unicast(key) {
            self.rx.drop_stray += 1;
            return;
        }
        let Some(listener) = self.listener_mut(number) else { return };
        if listener.accept.len() >= listener.backlog {
            self.rx.drop_backlog_full += 1;
            return;
        }
        let is_full = listener.half_open >= listener.backlog;
        // A cookie is the number, and so cannot be beyond what the other one has used.
        if isn.is_none() && self.wants_cookie(is_full) {
            return self.answer_with_cookie(packet, header, key);
        }
        if is_full {
            self.evict_half_open(number);
        }
        if self.conns.is_full() {
            self.rx.drop_connections_exhausted += 1;
            return;
        }
        if self.agenda.is_some() && self.is_over_memory(number) {
            self.rx.drop_container_memory += 1;
            return;
        }
        let (usual, ts_offset) = self.isn_for(key);
        let isn = isn.unwrap_or(usual);
        let mss = self.mss(key);
        let tcb = Tcb::passive_open(&mut env!(self), isn, ts_offset, mss, header);
        let mac = packet.source_mac();
        let Some(id) = self.conns.insert(*key, tcb) else {
            self.rx.drop_connections_exhausted += 1;
            return;
        };
        self.retain_key(key);
        if let Some(conn) = self.conns.named_mut(id) {
            conn.listener = number;
            // The answer goes to the station that asked, so serving needs no ARP.
            conn.peer_mac = mac;
            conn.facts.insert(Facts::HAS_MAC | Facts::HALF_OPEN);
        }
        if let Some(listener) = self.listener_mut(number) {
            listener.half_open += 1;
        }
        self.note_half_open(number, id);
        self.flows.insert(key, id.number);
        self.rx.delivered_syn += 1;
        self.after_events(id.number, Events::TRANSMIT);
    }

    /// Answers a segment to nobody with a reset (RFC 9293 section 3.10.7.1).
    pub fn refuse(
        &mut self,
        packet: &Packet,
        header: &Header<'_>,
        header_len: usize,
        key: &FlowKey,
    ) {
        let payload_len = packet.l4().len().saturating_sub(header_len);
        match reset_reply(header, payload_len) {
            Some(reply) => {
                self.rx.refused_tcp += 1;
                self.send_reset(key, packet.source_mac(), &reply);
            }
            None => self.rx.drop_stray += 1,
        }
    }

    /// A handshake is complete.
    pub fn offer_to_listener(&mut self, id: ConnId) {
        let Some(conn) = self.conns.named_mut(id) else { return };
        let number = conn.listener;
        if conn.facts.contains(Facts::HALF_OPEN) {
            conn.facts.remove(Facts::HALF_OPEN);
            self.half_open_ended(number);
        }
        self.metrics.accepted += 1;
        let Some(key) = self.conns.named(id).map(|conn| conn.key) else { return };
        let (_, client) = self.endpoints(&key);
        let Some(conn) = self.conns.named_mut(id) else { return };
        let listener = self.listeners.get_mut(number as usize).and_then(Option::as_mut);
        let Some(listener) = listener else {
            conn.tcb.abort(&mut env!(self));
            return self.settle(id.number);
        };
        if let Some(algorithm) = listener.congestion {
            conn.tcb.set_congestion(&mut env!(self), algorithm);
        }
        if !listener.rates.is_empty() {
            conn.tcb.set_pacing_rate(&mut env!(self), listener.rates.of(client.ip()));
        }
        conn.facts.insert(Facts::HELD);
        listener.accept.push_back(id);
        if let Some(waker) = listener.waker.take() {
            waker.wake();
        }
    }

    /// Whether the container of a listener holds all the memory that it may.
    fn is_over_memory(&mut self, number: u32) -> bool {
        let container = self.listener_mut(number).map(|listener| listener.container);
        container.is_some_and(|container| self.containers.over_memory(container))
    }

    /// Keeps the order of half-open connections; its length is bounded by dropping stale names.
    fn note_half_open(&mut self, number: u32, id: ConnId) {
        let conns = &self.conns;
        let listener = self.listeners.get_mut(number as usize).and_then(Option::as_mut);
        let Some(listener) = listener else { return };
        if listener.half_open_order.len() >= 2 * listener.backlog {
            listener.half_open_order.retain(|&id| is_half_open(conns.named(id)));
        }
        listener.half_open_order.push_back(id);
    }

    /// Forgets the oldest half-open connection, without a word to whoever it claimed to be: under a
    /// flood of SYNs those that mean it answer within a round trip, while the oldest is the one that
    /// most likely never will.
    fn evict_half_open(&mut self, number: u32) {
        loop {
            let Some(listener) = self.listener_mut(number) else { return };
            let Some(id) = listener.half_open_order.pop_front() else { return };
            if is_half_open(self.conns.named(id)) {
                self.metrics.half_open_evicted += 1;
                return self.remove_conn(id.number);
            }
        }
    }

    pub fn half_open_ended(&mut self, listener: u32) {
        if let Some(listener) = self.listener_mut(listener) {
            listener.half_open = listener.half_open.saturating_sub(1);
        }
    }
}

fn is_half_open(conn: Option<&Conn>) -> bool {
    conn.is_some_and(|conn| conn.facts.contains(Facts::HALF_OPEN))
}
