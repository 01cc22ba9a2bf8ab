//! How a shard is set up.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::policy::{RxPolicy, Scheduling};

/// The station's place in its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Config {
    /// Our address.
    pub address: Ipv4Addr,
    /// Bits of the network prefix.
    pub prefix_len: u8,
    /// Where packets to other networks go.
    pub gateway: Option<Ipv4Addr>,
}

impl Ipv4Config {
    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix_len.min(32))).unwrap_or(0)
    }

    /// Whether `other` is reached without a gateway.
    pub fn on_link(&self, other: Ipv4Addr) -> bool {
        (self.address.to_bits() ^ other.to_bits()) & self.mask() == 0
    }

    /// The neighbour to which a packet for `destination` goes, if there is a way.
    pub fn next_hop(&self, destination: Ipv4Addr) -> Option<Ipv4Addr> {
        if self.on_link(destination) { Some(destination) } else { self.gateway }
    }

    /// The broadcast address of the prefix; `None` where the prefix has none (/31 and /32).
    pub fn broadcast(&self) -> Option<Ipv4Addr> {
        (self.prefix_len < 31).then(|| Ipv4Addr::from_bits(self.address.to_bits() | !self.mask()))
    }
}

/// The station's place in its IPv6 network. A link-local address is always taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ipv6Config {
    /// Our addresses with the bits of their network prefixes.
    pub addresses: Vec<(Ipv6Addr, u8)>,
    /// Where packets to other networks go, whatever routers announce.
    pub gateway: Option<Ipv6Addr>,
    /// Take addresses, routers and the MTU from router advertisements (RFC 4862).
    pub slaac: bool,
    /// The key of opaque interface identifiers (RFC 7217): with the same key the same addresses are
    /// made after a restart. `None`: they are made of the MAC address.
    pub stable_secret: Option<[u8; 16]>,
}

/// Bounds on what a shard holds. All memory is taken at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections in any state.
    pub connections: usize,
    /// Connections in TIME_WAIT that no application holds, besides; the oldest makes way for more.
    pub time_wait: usize,
    /// Frames that wait in all channels together.
    pub channel_packets: usize,
    /// Frames that wait in the channel of one connection.
    pub connection_packets: u16,
    /// Frames that wait in the channel of one listener or UDP socket, and of ARP and ICMP.
    pub socket_packets: u16,
    /// Slices in all TCP queues together.
    pub slices: usize,
    /// Tasks alive.
    pub tasks: usize,
    /// Sleeping tasks.
    pub sleepers: usize,
    /// 16 KiB disk buffers that one connection may hold at a time while less than half of all are free
    /// (16 = 256 KiB in flight).
    pub splice_buffers: usize,
    /// Disk reads that one connection may begin in a turn of the loop, before others have theirs.
    pub splice_turn_reads: usize,
    /// Disk reads in flight of all connections together.
    pub disk_depth: usize,
    /// 16 KiB blocks of files that are kept for the next transfer that wants them; 0: none.
    pub cache_blocks: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16 * 1024,
            time_wait: 16 * 1024,
            channel_packets: 4096,
            connection_packets: 256,
            socket_packets: 512,
            slices: 32 * 1024,
            tasks: 16 * 1024,
            sleepers: 32 * 1024,
            splice_buffers: 16,
            splice_turn_reads: 8,
            disk_depth: 128,
            cache_blocks: 0,
        }
    }
}

/// When SYNs are answered with cookies, without keeping anything of them (RFC 4987).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SynCookiePolicy {
    /// While as many handshakes are under way as the listener's backlog allows.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never: the oldest handshake makes way for a newer one.
    Off,
}

/// Frames that a poll of the link is to find on the average.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// So many, 1 to 32.
    Frames(u8),
    /// As many as make a frame cheapest: found by trying.
    Auto,
}

/// When the link is asked for frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Polling {
    /// In each turn.
    #[default]
    Spin,
    /// At intervals in which a quota of them comes (Aron and Druschel, SOSP '99, section 4.2), and
    /// between those the core is free for others. No frame waits longer than 100 us for it.
    Quota(Quota),
    /// For each frame, after waiting for the device to signal it: the baseline, for measuring what
    /// the others are worth. Where the device cannot signal, the loop sleeps for short times.
    Interrupt,
}

/// What makes the loop look for due timers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimerSource {
    /// Its own trigger points: soft timers.
    #[default]
    Soft,
    /// A signal of a POSIX timer that is set for each: the baseline.
    Signal,
}

/// How [`send_file`](crate::TcpStream::send_file) brings a file to the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskNet {
    /// The window asks the disk and the disk's completion sends, without the task and without a copy.
    #[default]
    Spliced,
    /// The task reads into a buffer and writes from there: for measuring what splicing is worth.
    ReadSend,
}

/// How long the buffers of a file that is sent are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    /// Until the peer has acknowledged them.
    #[default]
    UntilAck,
    /// Until they are sent. What is lost is read from the disk again. For files that cannot change,
    /// those of images and in memory; others are kept until they are acknowledged.
    UntilTx,
}

/// Everything a shard needs to know at start.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Address and route.
    pub ipv4: Ipv4Config,
    /// Addresses and route of IPv6; `None`: none is spoken.
    pub ipv6: Option<Ipv6Config>,
    /// The number of the VLAN (802.1Q) whose tag all frames have; `None`: they have no tag.
    pub vlan: Option<u16>,
    /// Bounds.
    pub limits: Limits,
    /// TCP's parameters.
    pub tcp: millstream_tcp::Config,
    /// Keys of hashes and initial sequence numbers. Must be secret and random, see
    /// [`random_secret`]; fixed in simulations.
    pub secret: [u8; 48],
    /// What listeners do under a flood of SYNs.
    pub syn_cookies: SynCookiePolicy,
    /// When protocol work is done for what was received.
    pub rx: RxPolicy,
    /// How long things may take while containers share the core.
    pub scheduling: Scheduling,
    /// When the link is asked for frames.
    pub polling: Polling,
    /// What makes the loop look for due timers.
    pub timers: TimerSource,
    /// Record the intervals between trigger points, see
    /// [`Stack::trigger_stats`](crate::Stack::trigger_stats): a reading of the clock at each.
    pub trace_triggers: bool,
    /// How files are sent.
    pub disk_net: DiskNet,
    /// How long the buffers of files are kept.
    pub retention: Retention,
    /// Verify and compute no checksums at all: for measuring what they cost. Never on a network.
    pub skip_checksums: bool,
}

impl ShardConfig {
    /// A configuration with a random secret and default bounds.
    pub fn new(ipv4: Ipv4Config) -> Self {
        Self {
            ipv4,
            ipv6: None,
            vlan: None,
            limits: Limits::default(),
            tcp: millstream_tcp::Config::default(),
            secret: random_secret(),
            syn_cookies: SynCookiePolicy::default(),
            rx: RxPolicy::default(),
            scheduling: Scheduling::default(),
            polling: Polling::default(),
            timers: TimerSource::default(),
            trace_triggers: false,
            disk_net: DiskNet::default(),
            retention: Retention::default(),
            skip_checksums: false,
        }
    }
}

/// Secret bytes that the operating system chose.
pub fn random_secret() -> [u8; 48] {
    use std::hash::{BuildHasher, Hasher};
    // The standard library keys its hasher with the system's random numbers; hashing a counter
    // under such a key (SipHash) gives as many unpredictable bits as are wanted.
    let mut secret = [0; 48];
    for (i, chunk) in secret.chunks_exact_mut(8).enumerate() {
        let mut hasher = std::hash::RandomState::new().build_hasher();
        hasher.write_usize(i);
        chunk.copy_from_slice(&hasher.finish().to_ne_bytes());
    }
    secret
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_hop_follows_the_prefix() {
        let config = Ipv4Config {
            address: Ipv4Addr::new(198, 18, 0, 2),
            prefix_len: 24,
            gateway: Some(Ipv4Addr::new(198, 18, 0, 1)),
        };
        assert_eq!(
            config.next_hop(Ipv4Addr::new(198, 18, 0, 9)),
            Some(Ipv4Addr::new(198, 18, 0, 9))
        );
        assert_eq!(config.next_hop(Ipv4Addr::new(198, 18, 1, 9)), config.gateway);
        assert_eq!(config.broadcast(), Some(Ipv4Addr::new(198, 18, 0, 255)));
        let alone = Ipv4Config { prefix_len: 32, gateway: None, ..config };
        assert_eq!(alone.next_hop(Ipv4Addr::new(198, 18, 0, 1)), None);
        let all = Ipv4Config { prefix_len: 0, gateway: None, ..config };
        assert!(all.on_link(Ipv4Addr::new(192, 0, 2, 1)));
    }

    #[test]
    fn secrets_differ() {
        assert_ne!(random_secret(), random_secret());
    }
}
