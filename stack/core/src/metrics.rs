//! Named counters of a shard.

macro_rules! counters {
    ($(#[$outer:meta])* pub struct $name:ident { $($(#[doc = $doc:literal])+ $field:ident,)+ }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[doc = $doc])+ pub $field: u64,)+ }

        impl $name {
            /// Each counter with its name, in the order of the path.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Where received frames went. `frames_in` is the sum of all others at any time between two
    /// turns, with the frames that still wait in channels (`frames_waiting`).
    pub struct RxMetrics {
        /// Frames that the link gave us, and packets put together from fragments.
        frames_in,
        /// Handed to TCP of a connection.
        delivered_tcp,
        /// SYNs that opened a connection.
        delivered_syn,
        /// SYNs that were answered with a cookie.
        answered_with_cookie,
        /// Segments of connections in TIME_WAIT that no application holds.
        delivered_time_wait,
        /// Answered with a reset: nobody listens there.
        refused_tcp,
        /// Taken by a UDP socket.
        delivered_udp,
        /// ARP packets that were used or answered.
        delivered_arp,
        /// ICMP messages that were used or answered.
        delivered_icmp,
        /// Frames that wait in channels.
        frames_waiting,
        /// Too short for its headers, or lengths that contradict each other.
        drop_malformed,
        /// Fragments kept until their packet is whole.
        fragments_kept,
        /// Neither IPv4 nor ARP, nor IPv6 if that is configured.
        drop_ethertype,
        /// In another VLAN than ours, or in one where we are in none.
        drop_vlan,
        /// Sent to another station.
        drop_not_for_us,
        /// From an address that no other host may have: a group's, a broadcast or loopback address,
        /// our own.
        drop_martian,
        /// Fragments that overlap, or whose packet had some that did (RFC 5722).
        drop_fragment_overlap,
        /// Fragments of packets longer than we put together.
        drop_fragment_too_long,
        /// Fragments for which no buffer was free, or in too many pieces.
        drop_fragment_no_room,
        /// IP options that are refused: source routes, or such that do not fit.
        drop_ip_options,
        /// IPv6 extension headers that are refused.
        drop_extension,
        /// IPv4 header checksum wrong.
        drop_ip_checksum,
        /// TCP, UDP or ICMP checksum wrong.
        drop_l4_checksum,
        /// Neither TCP, UDP nor ICMP of the packet's version of IP.
        drop_protocol,
        /// The connection's channel was full.
        drop_connection_channel_full,
        /// The listener's channel was full.
        drop_listener_channel_full,
        /// The UDP socket's channel was full.
        drop_udp_channel_full,
        /// The channel of ARP, ICMP or strays was full.
        drop_proxy_channel_full,
        /// All channels together were full.
        drop_channels_exhausted,
        /// SYNs beyond the listener's backlog.
        drop_backlog_full,
        /// SYNs to a listener whose container holds all the memory that it may.
        drop_container_memory,
        /// SYNs for which no connection was free.
        drop_connections_exhausted,
        /// Data and FINs to no connection while cookies are about: what a cookie comes with may have
        /// been lost or overtaken.
        drop_before_cookie,
        /// UDP packets to a port that nobody has bound.
        drop_udp_no_socket,
        /// Segments to no connection that ask for no answer (resets), or from a broadcast address.
        drop_stray,
        /// Echo requests whose reply would not fit a packet of the link.
        drop_echo_too_long,
        /// ICMP and ARP that nothing here has asked for.
        drop_unsolicited,
        /// Data for which the link had few buffers left, and the arena none.
        drop_no_buffer,
        /// Left in a channel when its socket closed.
        drop_socket_closed,
    }
}

impl RxMetrics {
    /// `frames_in` minus everything else: zero unless a frame was lost without a name.
    pub fn unaccounted(&self) -> i64 {
        let others: u64 = self.iter().skip(1).map(|(_, count)| count).sum();
        self.frames_in as i64 - others as i64
    }
}

counters! {
    /// What the shard sent and did.
    pub struct ShardMetrics {
        /// Turns of the poll loop.
        turns,
        /// Turns that found something to do.
        busy_turns,
        /// Nanoseconds that busy turns took while containers were scheduled or the loop ran by itself.
        busy_nanos,
        /// Times that a task ran longer than the watchdog's bound, while containers were scheduled.
        tasks_over_bound,
        /// The longest that a task ran, in nanoseconds, while containers were scheduled.
        task_longest_nanos,
        /// Datagrams verified before anybody asked for them.
        udp_verified_early,
        /// Timers fired at trigger points.
        timers_fired,
        /// Sleeps for want of anything to do.
        sleeps,
        /// Sleeps that a frame ended, by an interrupt of the device.
        rx_wakes,
        /// Connections opened by a peer.
        accepted,
        /// Half-open connections that made way for newer SYNs.
        half_open_evicted,
        /// SYNs answered with a cookie.
        syn_cookies_sent,
        /// Connections opened by a cookie that came back.
        syn_cookies_accepted,
        /// ACKs that brought no cookie of ours, while some might have come.
        syn_cookies_rejected,
        /// Connections in TIME_WAIT that made way for others.
        time_wait_recycled,
        /// Connections opened by us.
        connected,
        /// TCP segments handed to the link.
        tcp_segments_out,
        /// Resets sent for segments to no connection.
        resets_out,
        /// Packets put together from fragments.
        reassembled,
        /// Packets whose fragments did not all come in time.
        reassembly_timeouts,
        /// Packets whose fragments made way for newer ones.
        reassembly_evicted,
        /// Times that a router's word lowered the MTU of a path.
        path_mtu_lowered,
        /// IPv6 addresses that were not taken because another station has them.
        duplicate_addresses,
        /// ARP, ICMP and UDP packets handed to the link.
        other_packets_out,
        /// ARP, ICMP and UDP packets that found no room to wait in.
        drop_other_out,
        /// Turns in which the link took no more.
        link_full,
        /// Payload bytes copied between the application and the arena, in either direction.
        copied_api_bytes,
        /// Payload bytes copied out of received frames because the link's buffers ran low.
        copied_scarce_bytes,
        /// Payload bytes that came from disk reads into send queues, without a copy.
        spliced_bytes,
        /// Disk reads that failed.
        disk_errors,
        /// Payload bytes that were let go of when they were sent, lost, and read from the disk again.
        reread_bytes,
        /// Transfers that ended with a reset because their file was changed meanwhile.
        splice_changed,
        /// Times that a splice found no free buffer and waited.
        splice_parked,
    }
}
