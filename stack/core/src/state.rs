//! All that a shard knows, apart from its link and its clock: where frames, timers and disk
//! completions meet sockets.

use std::collections::{BTreeMap, VecDeque};
use std::task::Waker;

use millstream_buf::{Arena, SizeClass, Staging};
use millstream_disk::DiskQueue;
use millstream_link::{Capabilities, RxBurst};
use millstream_tcp::{Env, Events, IsnGenerator, Segment, SliceSlab, SynCookies, TcpStats};
use millstream_timer::{Instant, TimerId, TimerWheel, TriggerStats};

use crate::agenda::Agenda;
use crate::autoconf::Host;
use crate::block_cache::BlockCache;
use crate::channel::{Channel, ChannelSlab, Packet, Refused};
use crate::config::{DiskNet, Limits, ShardConfig, SynCookiePolicy};
use crate::conn::{Conn, ConnId, Conns, Facts, NONE};
use crate::container::{Containers, DEFAULT, PortFilters, Work};
use crate::demux::{self, Class, Discard, Station};
use crate::flow::{FlowHasher, FlowKey, FlowTable};
use crate::listener::Listener;
use crate::metrics::{RxMetrics, ShardMetrics};
use crate::neighbor::Neighbors;
use crate::output::{Checksums, RawFrame};
use crate::pairs::Pairs;
use crate::path_rates::PathRates;
use crate::pmtu::PathMtus;
use crate::policy::{RxPolicy, Scheduling};
use crate::reassembly::Reassembly;
use crate::shard::SCARCE_PART;
use crate::splice::Splices;
use crate::time_wait::TimeWaits;
use crate::udp::UdpPort;
use crate::waiting::Waiting;

/// What a wheel entry is for: two bits of the token, the rest is a number.
pub(crate) const TOKEN_KIND: u32 = 3 << 30;
pub(crate) const TOKEN_CONN: u32 = 0;
pub(crate) const TOKEN_SLEEP: u32 = 1 << 30;
pub(crate) const TOKEN_LINK: u32 = 2 << 30;
pub(crate) const TOKEN_TIME_WAIT: u32 = 3 << 30;

/// Timers fired in one turn at most, so that packets still flow when many fall due at once.
pub(crate) const TIMERS_A_TURN: usize = 256;

/// In place of a listener's number plus one: the client's address says which.
pub(crate) const FILTERED: u16 = u16::MAX;

/// Who is served from a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receiver {
    Conn(u32),
    Listener(u16),
    Proxy,
}

/// A task that sleeps.
pub(crate) struct Sleeper {
    pub waker: Option<Waker>,
    pub timer: Option<TimerId>,
    pub fired: bool,
}

/// The shard's state.
pub(crate) struct State {
    pub now: Instant,
    pub station: Station,
    pub capabilities: Capabilities,
    pub checksums: Checksums,
    /// Segments that the NIC cuts one into at most; 0: it cuts none.
    pub tso_segments_max: u16,
    pub limits: Limits,
    pub tcp_config: millstream_tcp::Config,
    pub tcp_stats: TcpStats,
    pub slices: SliceSlab,
    pub isn: IsnGenerator,
    pub hasher: FlowHasher,
    /// The link has few buffers left: what is kept is copied.
    pub rx_scarce: bool,
    /// Not even half of what makes them scarce is free.
    pub rx_dire: bool,
    /// Where small and large writes are copied to.
    pub staging: Staging,
    pub staging_blocks: Staging,
    pub disk: Box<dyn DiskQueue>,

    pub conns: Conns,
    pub flows: FlowTable,
    /// The addresses of IPv6 flows.
    pub pairs: Pairs,
    pub listeners: Vec<Option<Listener>>,
    /// Number plus one of the listener on each port.
    pub listener_ports: Box<[u16]>,
    pub udp: Vec<Option<UdpPort>>,
    /// Number plus one of the UDP socket on each port.
    pub udp_ports: Box<[u16]>,
    pub next_port: u16,

    pub channels: ChannelSlab,
    /// ARP, ICMP, and segments to nobody.
    pub proxy: Channel,
    /// Receivers with something in their channels, in order of arrival.
    pub ready: VecDeque<Receiver>,
    /// Connections that want to send.
    pub output: VecDeque<u32>,
    /// Connections that wait for their next hop's address.
    pub awaiting_neighbor: Vec<ConnId>,
    /// Connections in TIME_WAIT that nobody holds.
    pub time_waits: TimeWaits,
    pub cookies: SynCookies,
    pub syn_cookies: SynCookiePolicy,
    /// Packets other than TCP's that want to be sent.
    pub raw: VecDeque<RawFrame>,
    /// Those of them that wait for a neighbour's address.
    pub waiting: Waiting,

    pub wheel: TimerWheel,
    /// The turn that fired timers last, and how many.
    pub fired: (u64, usize),
    /// What trigger points see, if that is recorded.
    pub triggers: Option<Box<TriggerStats>>,
    pub sleepers: Vec<Option<Sleeper>>,
    pub free_sleepers: Vec<u32>,
    pub neighbors: Neighbors,
    pub path_mtus: PathMtus,
    pub path_rates: PathRates,
    pub reassembly: Reassembly,
    /// For neighbours, addresses and fragments.
    pub link_timer: Option<TimerId>,
    pub link_timer_at: Instant,
    pub splices: Splices,
    /// What was read from files and may be wanted again.
    pub cache: Box<BlockCache>,
    pub disk_net: DiskNet,
    /// The segment that is being sent.
    pub segment: Segment,
    pub rx: RxMetrics,
    pub metrics: ShardMetrics,
    /// ICMP messages that may still be sent in the current second.
    pub icmp_credit: u32,
    pub icmp_second: u64,
    /// When protocol work is done.
    pub policy: RxPolicy,
    pub scheduling: Scheduling,
    pub containers: Containers,
    /// What is to be done, container by container. `None`: there was only one as yet.
    pub agenda: Option<Box<Agenda>>,
    /// Ports whose listeners are told apart by their clients' addresses.
    pub filtered_ports: BTreeMap<u16, PortFilters>,
    /// Last: what is dropped before it brings its buffers home.
    pub arena: Arena,
}

/// TCP's view of the shard, borrowed field by field so that a connection can be borrowed beside it.
macro_rules! env {
    ($state:expr) => {
        millstream_tcp::Env {
            now: $state.now,
            config: &$state.tcp_config,
            slices: &mut $state.slices,
            stats: &mut $state.tcp_stats,
        }
    };
}
pub(crate) use env;

impl State {
    pub fn new(
        config: ShardConfig,
        capabilities: Capabilities,
        arena: Arena,
        disk: Box<dyn DiskQueue>,
        now: Instant,
    ) -> Self {
        let ShardConfig { ipv4, ipv6, vlan, limits, tcp, secret, syn_cookies, disk_net, .. } =
            config;
        let (retention, skip_checksums) = (config.retention, config.skip_checksums);
        let (rx, scheduling) = (config.rx, config.scheduling);
        let word = |i: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&secret[i * 8..i * 8 + 8]);
            u64::from_ne_bytes(bytes)
        };
        let hasher = FlowHasher::new([word(0), word(1), word(2)]);
        let mut isn_key = [0; 16];
        isn_key.copy_from_slice(&secret[32..]);
        let host =
            ipv6.map(|ipv6| Box::new(Host::new(&ipv6, capabilities.mac, capabilities.mtu, now)));
        let pairs = match host {
            Some(_) => Pairs::new(hasher, limits.connections + limits.time_wait),
            None => Pairs::none(hasher),
        };
        // A NIC that cuts segments fills in the checksums of the pieces.
        let cuts = capabilities.tx_tcp_checksum && capabilities.tx_ipv4_checksum;
        let tso_segments_max = if cuts && !skip_checksums {
            let segments = capabilities.tso_bytes_max / u32::from(capabilities.mtu.max(1));
            segments.min(u32::from(u16::MAX)) as u16
        } else {
            0
        };
        // Connections, sleepers, and those for the link and for TIME_WAIT.
        let timers = limits.connections + limits.sleepers + 2;
        let mut state = Self {
            now,
            station: Station::new(capabilities.mac, ipv4, host, vlan, skip_checksums),
            checksums: Checksums {
                skip: skip_checksums,
                tcp_offload: capabilities.tx_tcp_checksum && !skip_checksums,
                ip_offload: capabilities.tx_ipv4_checksum && !skip_checksums,
            },
            tso_segments_max,
            limits,
            tcp_config: tcp,
            tcp_stats: TcpStats::default(),
            slices: SliceSlab::with_capacity(limits.slices),
            isn: IsnGenerator::new(isn_key),
            hasher,
            rx_scarce: false,
            rx_dire: false,
            staging: Staging::new(arena.clone(), SizeClass::Frame),
            staging_blocks: Staging::new(arena.clone(), SizeClass::Block),
            arena,
            disk,
            conns: Conns::new(limits.connections),
            flows: FlowTable::new(hasher, limits.connections),
            pairs,
            listeners: Vec::new(),
            listener_ports: vec![0; 1 << 16].into_boxed_slice(),
            udp: Vec::new(),
            udp_ports: vec![0; 1 << 16].into_boxed_slice(),
            next_port: word(3) as u16,
            channels: ChannelSlab::with_capacity(limits.channel_packets),
            proxy: Channel::default(),
            ready: VecDeque::with_capacity(limits.channel_packets.min(limits.connections) + 64),
            output: VecDeque::with_capacity(limits.connections),
            awaiting_neighbor: Vec::with_capacity(limits.connections),
            time_waits: TimeWaits::new(hasher, limits.time_wait),
            cookies: SynCookies::new(isn_key),
            syn_cookies,
            raw: VecDeque::with_capacity(crate::output::RAW_MAX),
            waiting: Waiting::new(),
            wheel: TimerWheel::with_capacity(timers, now),
            fired: (0, 0),
            triggers: config.trace_triggers.then(Box::default),
            sleepers: Vec::new(),
            free_sleepers: Vec::new(),
            neighbors: Neighbors::default(),
            path_mtus: PathMtus::default(),
            path_rates: PathRates::new(isn_key),
            reassembly: Reassembly::new(),
            link_timer: None,
            link_timer_at: Instant::FAR_FUTURE,
            splices: Splices::new(limits.disk_depth, retention),
            cache: Box::new(BlockCache::new(limits.cache_blocks)),
            disk_net,
            segment: Segment::default(),
            rx: RxMetrics::default(),
            metrics: ShardMetrics::default(),
            icmp_credit: 0,
            icmp_second: u64::MAX,
            policy: rx,
            scheduling,
            containers: Containers::new(),
            agenda: None,
            filtered_ports: BTreeMap::new(),
            capabilities,
        };
        // Where the card sums, remembering sums is of no use.
        state.arena.set_memo(!skip_checksums && !state.capabilities.tx_tcp_checksum);
        state.rearm_link_timer();
        state
    }

    // ---- Frames in -------------------------------------------------------------------------

    /// Puts the frames of a burst into their receivers' channels.
    #[inline]
    pub fn receive(&mut self, burst: &mut RxBurst) {
        self.rx.frames_in += burst.len() as u64;
        for frame in burst.drain(..) {
            self.enqueue(demux::classify(&self.station, frame));
        }
    }

    /// Puts a frame into its receiver's channel.
    #[inline]
    pub fn enqueue(&mut self, classified: Result<(Class, Packet), Discard>) {
        match classified {
            Ok((Class::Tcp(key), packet)) => self.receive_tcp(&key, packet),
            Ok((Class::TcpV6, packet)) => self.receive_tcp_v6(packet),
            Ok((Class::Udp(port), packet)) => self.receive_udp(port, packet),
            Ok((Class::Proxy, packet)) => self.receive_proxy(packet),
            Err(discard) => self.count_discard(discard),
        }
    }

    /// The number of a flow's connection.
    #[inline]
    pub fn find_conn(&self, key: &FlowKey) -> Option<u32> {
        let conns = &self.conns;
        self.flows.find(key, |number| {
            conns.prefetch(number);
            conns.get(number).is_some_and(|conn| conn.key == *key)
        })
    }

    fn receive_tcp_v6(&mut self, packet: Packet) {
        let (Some(pair), Some(ports)) = (packet.ipv6_pair(), packet.ports()) else {
            self.rx.drop_malformed += 1;
            return;
        };
        match self.pairs.find(pair) {
            Some(pair) => self.receive_tcp(&FlowKey::of_pair(pair, ports), packet),
            // No connection has these addresses. The key is asked for its ports only.
            None => self.receive_tcp_unconnected(&FlowKey::of_pair(u32::MAX, ports), packet),
        }
    }

    #[inline]
    pub fn receive_tcp(&mut self, key: &FlowKey, packet: Packet) {
        if let Some(number) = self.find_conn(key)
            && let Some(conn) = self.conns.get_mut(number)
        {
            match self.channels.push(&mut conn.channel, packet, self.limits.connection_packets) {
                Ok(()) => {
                    if !conn.channel.scheduled {
                        conn.channel.scheduled = true;
                        self.ready.push_back(Receiver::Conn(number));
                    }
                }
                Err(Refused::ChannelFull) => self.rx.drop_connection_channel_full += 1,
                Err(Refused::SlabFull) => self.rx.drop_channels_exhausted += 1,
            }
            return;
        }
        self.receive_tcp_unconnected(key, packet);
    }

    pub fn receive_tcp_unconnected(&mut self, key: &FlowKey, packet: Packet) {
        // Of the usual segments only these are looked at: no connection is with such an address.
        if !packet.is_ipv6() && demux::is_martian(&self.station, packet.ipv4_addresses().0) {
            return self.count_discard(Discard::Martian);
        }
        if self.time_wait_input(key, &packet) {
            return;
        }
        let number = self.listener_of(&packet, key.local_port());
        let listener = number
            .checked_sub(1)
            .and_then(|number| self.listeners.get_mut(usize::from(number)))
            .and_then(Option::as_mut);
        let Some(listener) = listener.filter(|listener| listener.takes(&packet)) else {
            return self.receive_proxy(packet);
        };
        // A listener whose application does not keep up takes nothing: what it sent for would be thrown
        // away after the work.
        if listener.accept.len() >= listener.backlog && self.policy != RxPolicy::Eager {
            self.rx.drop_backlog_full += 1;
            return;
        }
        match self.channels.push(&mut listener.channel, packet, self.limits.socket_packets) {
            Ok(()) => {
                if !listener.channel.scheduled {
                    listener.channel.scheduled = true;
                    self.ready.push_back(Receiver::Listener(number - 1));
                }
            }
            Err(Refused::ChannelFull) => self.rx.drop_listener_channel_full += 1,
            Err(Refused::SlabFull) => self.rx.drop_channels_exhausted += 1,
        }
    }

    /// Number plus one of the listener for a packet to a port of ours.
    #[inline]
    pub fn listener_of(&self, packet: &Packet, port: u16) -> u16 {
        match self.listener_ports[usize::from(port)] {
            FILTERED => self.filtered_listener(packet.addresses().0, port),
            number => number,
        }
    }

    /// As that, of a port whose listeners are told apart by their clients' addresses.
    #[cold]
    fn filtered_listener(&self, client: std::net::IpAddr, port: u16) -> u16 {
        let filters = self.filtered_ports.get(&port);
        filters.and_then(|filters| filters.find(client)).map_or(0, |number| number + 1)
    }

    fn receive_proxy(&mut self, packet: Packet) {
        match self.channels.push(&mut self.proxy, packet, self.limits.socket_packets) {
            Ok(()) => {
                if !self.proxy.scheduled {
                    self.proxy.scheduled = true;
                    self.ready.push_back(Receiver::Proxy);
                }
            }
            Err(Refused::ChannelFull) => self.rx.drop_proxy_channel_full += 1,
            Err(Refused::SlabFull) => self.rx.drop_channels_exhausted += 1,
        }
    }

    #[cold]
    fn count_discard(&mut self, discard: Discard) {
        let rx = &mut self.rx;
        *match discard {
            Discard::Malformed => &mut rx.drop_malformed,
            Discard::EtherType => &mut rx.drop_ethertype,
            Discard::Vlan => &mut rx.drop_vlan,
            Discard::NotForUs => &mut rx.drop_not_for_us,
            Discard::Martian => &mut rx.drop_martian,
            Discard::Options => &mut rx.drop_ip_options,
            Discard::Extension => &mut rx.drop_extension,
            Discard::IpChecksum => &mut rx.drop_ip_checksum,
            Discard::L4Checksum => &mut rx.drop_l4_checksum,
            Discard::Protocol => &mut rx.drop_protocol,
        } += 1;
    }

    /// Serves the channels that have something, first come first served, each to its end.
    #[inline]
    pub fn serve(&mut self) {
        // Packets that fragments make join the list meanwhile.
        while let Some(receiver) = self.ready.pop_front() {
            match receiver {
                Receiver::Conn(number) => self.serve_conn(number),
                Receiver::Listener(number) => self.serve_listener(number),
                Receiver::Proxy => self.serve_proxy(),
            }
        }
    }

    // ---- Time ------------------------------------------------------------------------------

    /// Fires what is due, within the bound of a turn. Returns how many timers that were.
    #[inline(never)]
    pub fn fire_timers(&mut self) -> usize {
        if self.fired.0 != self.metrics.turns {
            self.fired = (self.metrics.turns, 0);
        }
        let most = TIMERS_A_TURN - self.fired.1;
        let count = self.fire(most);
        self.fired.1 += count;
        count
    }

    fn fire(&mut self, most: usize) -> usize {
        for count in 0..most {
            let Some(token) = self.wheel.pop_expired(self.now) else { return count };
            self.metrics.timers_fired += 1;
            if let Some(stats) = &mut self.triggers {
                stats.fired(self.now.nanos_since(self.wheel.popped_deadline()));
            }
            self.fire_timer(token);
        }
        most
    }

    /// Fires the timer that a token of the wheel stands for.
    #[inline]
    pub fn fire_timer(&mut self, token: u32) {
        let number = token & !TOKEN_KIND;
        match token & TOKEN_KIND {
            TOKEN_CONN => self.fire_conn_timer(number),
            TOKEN_SLEEP => self.fire_sleeper(number),
            TOKEN_LINK => self.fire_link_timer(),
            _ => self.fire_time_wait_timer(),
        }
    }

    pub fn fire_conn_timer(&mut self, number: u32) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        conn.timer = None;
        conn.timer_at = Instant::FAR_FUTURE;
        if conn.tcb.deadline() > self.now {
            if !self.path_mtus.is_empty() {
                self.search_path(number);
            }
            return self.after_events(number, Events::empty());
        }
        let (limit, most) = (conn.tcb.segment_limit(), conn.tcb.segment_most());
        let time_outs = self.tcp_stats.rto_fired;
        let events = conn.tcb.on_timer(&mut env!(self));
        let timed_out = self.tcp_stats.rto_fired != time_outs;
        if conn.tcb.segment_limit() < limit {
            self.note_black_hole(number, most);
        }
        if timed_out {
            self.renew_station(number);
        }
        self.after_events(number, events);
    }

    /// Sets the timer of a connection; see [`Conn::rearm`].
    #[inline]
    pub fn rearm(&mut self, number: u32) {
        if let Some(conn) = self.conns.get_mut(number) {
            conn.rearm(&mut self.wheel, number);
        }
    }

    fn fire_sleeper(&mut self, number: u32) {
        if let Some(Some(sleeper)) = self.sleepers.get_mut(number as usize) {
            sleeper.timer = None;
            sleeper.fired = true;
            if let Some(waker) = sleeper.waker.take() {
                waker.wake();
            }
        }
    }

    // ---- Connections -----------------------------------------------------------------------

    /// Puts a connection on the list of those that want to send; see [`Conn::schedule_output`].
    #[inline]
    pub fn schedule_output(&mut self, number: u32) {
        if let Some(conn) = self.conns.get_mut(number) {
            conn.schedule_output(&mut self.output, number);
        }
    }

    /// Acts on what TCP reported of a connection.
    #[inline(always)]
    pub fn after_events(&mut self, number: u32, events: Events) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        if conn.after_usual_events(&mut self.output, &mut self.wheel, number, events) {
            self.after_more_events(number, events);
        }
    }

    /// What [`Conn::after_usual_events`] leaves.
    #[inline(never)]
    pub fn after_more_events(&mut self, number: u32, events: Events) {
        let Some(conn) = self.conns.get(number) else { return };
        if conn.splice != NONE && events.intersects(Events::WRITABLE | Events::ACKED) {
            self.splice_progress(number);
        }
        if events.intersects(Conn::RARE_EVENTS) {
            self.after_rare_events(number, events);
        }
    }

    #[cold]
    fn after_rare_events(&mut self, number: u32, events: Events) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        let id = ConnId { number, generation: conn.generation };
        if events.contains(Events::ESTABLISHED) {
            conn.facts.insert(Facts::ESTABLISHED);
            if conn.listener == NONE {
                self.metrics.connected += 1;
            } else {
                self.offer_to_listener(id);
            }
            self.start_at_remembered_rate(id);
            self.wake_both(number);
        }
        if events.contains(Events::TIME_WAIT) && self.compact_time_wait(number) {
            return;
        }
        if events.intersects(Events::RESET | Events::REFUSED | Events::TIMED_OUT | Events::CLOSED) {
            self.wake_both(number);
        }
        if events.contains(Events::CLOSED) {
            match self.conns.get_mut(number) {
                // A reset is still to be sent; the end comes after it.
                Some(conn) if conn.tcb.wants_transmit() => {
                    conn.schedule_output(&mut self.output, number);
                }
                _ => self.conn_closed(number),
            }
        }
    }

    /// Wakes whoever waits on a connection, for reading or writing.
    pub fn wake_both(&mut self, number: u32) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        conn.facts.remove(Facts::READ_WAITING | Facts::WRITE_WAITING);
        for waker in [&conn.read_waker, &conn.write_waker].into_iter().flatten() {
            waker.wake_by_ref();
        }
    }

    /// TCP has nothing left to do for a connection: others may have its addresses. Its number is
    /// freed when the application lets go of it.
    pub fn conn_closed(&mut self, number: u32) {
        let Some(conn) = self.conns.get_mut(number) else { return };
        if !conn.facts.contains(Facts::CLOSED) {
            conn.facts.insert(Facts::CLOSED);
            let (key, listener) = (conn.key, conn.listener);
            let half_open = conn.facts.contains(Facts::HALF_OPEN);
            conn.facts.remove(Facts::HALF_OPEN);
            self.flows.remove(&key, number);
            if half_open {
                self.half_open_ended(listener);
            }
            self.splice_abandon(number);
        }
        if self.conns.get(number).is_some_and(|conn| !conn.facts.contains(Facts::HELD)) {
            self.remove_conn(number);
        }
    }

    /// Takes a connection out of everything, whatever its state.
    pub fn remove_conn(&mut self, number: u32) {
        self.splice_abandon(number);
        let Some(mut conn) = self.conns.remove(number) else { return };
        if let Some(agenda) = self.agenda.as_deref_mut() {
            agenda.forget_conn(number, &mut self.containers);
        }
        self.remember_rate(&conn);
        self.release_key(&conn.key);
        if !conn.facts.contains(Facts::CLOSED) {
            self.flows.remove(&conn.key, number);
        }
        if conn.facts.contains(Facts::HALF_OPEN) {
            self.half_open_ended(conn.listener);
        }
        if let Some(timer) = conn.timer {
            self.wheel.cancel(timer);
        }
        let dropped = self.channels.clear(&mut conn.channel);
        self.rx.drop_socket_closed += dropped;
        conn.tcb.release(&mut self.slices);
        // `ready` may still name the number, and `output` too (see `Conns::in_output`); a new owner is
        // served once for nothing.
    }

    /// The application lets go of a connection: an orderly close, or a reset if it leaves data
    /// unread (RFC 2525 section 2.17) or a file half sent.
    pub fn let_go(&mut self, id: ConnId) {
        let Some(conn) = self.conns.named_mut(id) else { return };
        conn.facts.remove(Facts::HELD | Facts::READ_WAITING | Facts::WRITE_WAITING);
        conn.read_waker = None;
        conn.write_waker = None;
        if conn.facts.contains(Facts::CLOSED) {
            return self.remove_conn(id.number);
        }
        let mut env = env!(self);
        if conn.splice != NONE {
            conn.tcb.abort(&mut env);
        }
        conn.tcb.close(&mut env);
        conn.tcb.detach(&mut env);
        self.splice_abandon(id.number);
        if !self.compact_time_wait(id.number) {
            self.settle(id.number);
        }
    }

    /// After an action of the application: sends what it caused, sets timers, notices the end.
    pub fn settle(&mut self, number: u32) {
        let Some(conn) = self.conns.get(number) else { return };
        if conn.tcb.wants_transmit() {
            self.schedule_output(number);
        } else if conn.tcb.state() == millstream_tcp::State::Closed {
            return self.conn_closed(number);
        }
        self.rearm(number);
    }

    /// Takes note of how many of the link's buffers are free.
    #[inline]
    pub fn look_at_buffers(&mut self, buffers: Option<(usize, usize)>) {
        let below = |part| buffers.is_some_and(|(free, total)| free < total / part);
        self.rx_scarce = below(SCARCE_PART);
        self.rx_dire = self.rx_scarce && below(2 * SCARCE_PART);
    }

    /// Charges what a turn took while there is only one container.
    #[inline]
    pub fn charge_alone(&mut self, nanos: u64, now: Instant) {
        self.metrics.busy_nanos += nanos;
        self.containers.charge(DEFAULT, nanos, Work::System, now);
    }

    /// Frames waiting in channels, for the account of [`RxMetrics`].
    pub fn rx_metrics(&self) -> RxMetrics {
        RxMetrics { frames_waiting: self.channels.used() as u64, ..self.rx }
    }
}

/// Keeps the compiler from growing `Env` unnoticed on the hot path.
const _: () = assert!(size_of::<Env<'_>>() <= 32);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::config::Ipv4Config;
    use millstream_buf::{ArenaConfig, HugePages};
    use millstream_disk::MemDisk;
    use millstream_link::Link;
    use millstream_link::mem::{MemConfig, pair};
    use millstream_tcp::Tcb;

    const OURS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
    const THEIRS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

    fn state(connections: usize) -> State {
        let (link, _) = pair(MemConfig::default()).unwrap();
        let ipv4 = Ipv4Config { address: OURS, prefix_len: 24, gateway: None };
        let limits = Limits { connections, ..Limits::default() };
        let config = ShardConfig { limits, ..ShardConfig::new(ipv4) };
        let arena = ArenaConfig { frames: 8, blocks: 2, huge_pages: HugePages::Never };
        let disk = Box::new(MemDisk::copying(1).unwrap());
        let arena = Arena::new(&arena).unwrap();
        State::new(config, link.capabilities().clone(), arena, disk, Instant::ZERO)
    }

    /// While the link takes nothing, nobody comes off the list of those that want to send.
    #[test]
    fn a_number_stands_once_among_those_that_want_to_send() {
        let mut state = state(4);
        let room = state.output.capacity();
        for port in 0..1000 {
            let key = FlowKey::new(OURS, port, THEIRS, 80);
            let (isn, ts_offset) = state.isn_for(&key);
            let tcb = Tcb::active_open(&mut env!(state), isn, ts_offset, 1460);
            let id = state.conns.insert(key, tcb).unwrap();
            state.flows.insert(&key, id.number);
            state.schedule_output(id.number);
            assert!(state.output.len() <= 4, "{}", state.output.len());
            state.remove_conn(id.number);
        }
        assert_eq!(state.output.capacity(), room);
        // Whoever gets a number that left the list is put on it anew.
        let (number, key) = (state.output.pop_front().unwrap(), FlowKey::new(OURS, 1, THEIRS, 80));
        assert!(state.conns.leave_output(number) && !state.conns.leave_output(number));
        let (isn, ts_offset) = state.isn_for(&key);
        let tcb = Tcb::active_open(&mut env!(state), isn, ts_offset, 1460);
        let id = state.conns.insert(key, tcb).unwrap();
        assert_eq!(id.number, number);
        state.schedule_output(number);
        assert_eq!(state.output, [number]);
    }
}
