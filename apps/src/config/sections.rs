//! The sections of a profile. Their defaults come from the parts that they set up.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use millstream::buf::{ArenaConfig, DataSemantics, HugePages};
use millstream::core::{
    ClientRate, DiskNet, Idle, Ipv4Config, Ipv6Config, Limits, Polling, Quota, Retention,
    TimerSource,
};
use millstream::disk::QueueKind;
use millstream::dpdk_port::{Device, EalConfig, PortConfig};
use millstream::http::{CacheConfig, ServerConfig, Timeouts};
use millstream::tcp::PacingRate;
use serde::{Deserialize, Serialize};

use super::values::{BitRate, Cidr, CidrV6, Mac, NetworkRate, PciAddress, Secret};

use super::containers::RxMode;

/// Kinds of links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// A tap interface.
    #[default]
    Tap,
    /// Packet sockets.
    AfPacket,
    /// XDP sockets.
    AfXdp,
    /// Shared memory.
    Memif,
    /// A ring in this process.
    Ring,
    /// Nothing.
    Null,
    /// Capture files.
    Pcap,
    /// A network card.
    Pci,
}

impl Driver {
    /// Its name in a profile.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tap => "tap",
            Self::AfPacket => "af_packet",
            Self::AfXdp => "af_xdp",
            Self::Memif => "memif",
            Self::Ring => "ring",
            Self::Null => "null",
            Self::Pcap => "pcap",
            Self::Pci => "pci",
        }
    }
}

/// An end of a memif.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Makes the socket.
    #[default]
    Server,
    /// Connects to it.
    Client,
}

/// `[link]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LinkSection {
    pub driver: Driver,
    pub iface: Option<String>,
    pub mac: Option<Mac>,
    pub socket: Option<PathBuf>,
    pub role: Role,
    pub id: u32,
    pub rx_file: Option<PathBuf>,
    pub tx_file: Option<PathBuf>,
    pub pci: Option<PciAddress>,
    pub mtu: Option<u16>,
    pub vlan: Option<u16>,
    pub rx_descriptors: u16,
    pub tx_descriptors: u16,
    pub mbufs: u32,
    pub copy_below_bytes: u16,
}

impl Default for LinkSection {
    fn default() -> Self {
        let port = PortConfig::new(Device::Ring);
        Self {
            driver: Driver::default(),
            iface: None,
            mac: None,
            socket: None,
            role: Role::default(),
            id: 0,
            rx_file: None,
            tx_file: None,
            pci: None,
            mtu: None,
            vlan: None,
            rx_descriptors: port.rx_descriptors,
            tx_descriptors: port.tx_descriptors,
            mbufs: port.mbufs,
            copy_below_bytes: port.copy_below_bytes,
        }
    }
}

/// `[ipv4]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Ipv4Section {
    pub address: Cidr,
    pub gateway: Option<Ipv4Addr>,
}

impl Default for Ipv4Section {
    fn default() -> Self {
        let address = Cidr { ip: Ipv4Addr::new(198, 18, 0, 2), prefix_len: 24 };
        Self { address, gateway: None }
    }
}

impl Ipv4Section {
    /// As the shard takes it.
    pub fn config(&self) -> Ipv4Config {
        Ipv4Config {
            address: self.address.ip,
            prefix_len: self.address.prefix_len,
            gateway: self.gateway,
        }
    }
}

/// `[ipv6]`: spoken if there is an address, or a router is to give one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Ipv6Section {
    pub address: Option<CidrV6>,
    pub gateway: Option<Ipv6Addr>,
    pub slaac: bool,
    pub stable_secret: Option<Secret>,
}

impl Ipv6Section {
    /// As the shard takes it.
    pub fn config(&self) -> Option<Ipv6Config> {
        (self.address.is_some() || self.slaac).then(|| Ipv6Config {
            addresses: self.address.iter().map(|cidr| (cidr.ip, cidr.prefix_len)).collect(),
            gateway: self.gateway,
            slaac: self.slaac,
            stable_secret: self.stable_secret.map(|secret| secret.0),
        })
    }
}

/// Whether huge pages are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Huge {
    /// If there are enough.
    #[default]
    Try,
    /// Or else it is an error.
    Require,
    /// Not at all.
    Never,
}

impl From<Huge> for HugePages {
    fn from(huge: Huge) -> Self {
        match huge {
            Huge::Try => Self::Try,
            Huge::Require => Self::Require,
            Huge::Never => Self::Never,
        }
    }
}

/// `[memory]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct MemorySection {
    pub frames: usize,
    pub blocks: usize,
    pub huge_pages: Huge,
}

impl Default for MemorySection {
    fn default() -> Self {
        let arena = ArenaConfig::default();
        // Twice the arena's own: the heads of cached files take frames too.
        Self { frames: arena.frames * 2, blocks: arena.blocks, huge_pages: Huge::default() }
    }
}

/// `[dpdk]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct DpdkSection {
    pub memory_mb: u32,
    pub huge_pages: Huge,
    pub extra: Vec<String>,
}

impl Default for DpdkSection {
    fn default() -> Self {
        let eal = EalConfig::default();
        Self { memory_mb: eal.memory_mb, huge_pages: Huge::default(), extra: eal.extra }
    }
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LimitsSection {
    pub connections: usize,
    pub time_wait: usize,
    pub channel_packets: usize,
    pub connection_packets: u16,
    pub socket_packets: u16,
    pub slices: usize,
    pub tasks: usize,
    pub sleepers: usize,
    pub splice_buffers: usize,
    pub splice_turn_reads: usize,
}

impl Default for LimitsSection {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            connections: limits.connections,
            time_wait: limits.time_wait,
            channel_packets: limits.channel_packets,
            connection_packets: limits.connection_packets,
            socket_packets: limits.socket_packets,
            slices: limits.slices,
            tasks: limits.tasks,
            sleepers: limits.sleepers,
            splice_buffers: limits.splice_buffers,
            splice_turn_reads: limits.splice_turn_reads,
        }
    }
}

impl LimitsSection {
    /// As the shard takes them.
    pub fn limits(&self, disk: &DiskSection) -> Limits {
        Limits {
            connections: self.connections,
            time_wait: self.time_wait,
            channel_packets: self.channel_packets,
            connection_packets: self.connection_packets,
            socket_packets: self.socket_packets,
            slices: self.slices,
            tasks: self.tasks,
            sleepers: self.sleepers,
            splice_buffers: self.splice_buffers,
            splice_turn_reads: self.splice_turn_reads,
            disk_depth: disk.depth,
            cache_blocks: disk.cache_blocks,
        }
    }
}

/// Drivers of the disk queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskDriver {
    /// io_uring if the kernel lets us, else threads.
    #[default]
    Auto,
    /// io_uring.
    Uring,
    /// Threads.
    Pread,
}

impl From<DiskDriver> for QueueKind {
    fn from(driver: DiskDriver) -> Self {
        match driver {
            DiskDriver::Auto => Self::Auto,
            DiskDriver::Uring => Self::Uring,
            DiskDriver::Pread => Self::Pread,
        }
    }
}

/// How files are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Net {
    /// From the disk into the connection, as its window opens.
    #[default]
    Spliced,
    /// By the task, through a buffer.
    ReadSend,
}

impl From<Net> for DiskNet {
    fn from(net: Net) -> Self {
        match net {
            Net::Spliced => Self::Spliced,
            Net::ReadSend => Self::ReadSend,
        }
    }
}

/// How long buffers of files are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Until they are acknowledged.
    #[default]
    UntilAck,
    /// Until they are sent, for files in images.
    UntilTx,
}

impl From<Keep> for Retention {
    fn from(keep: Keep) -> Self {
        match keep {
            Keep::UntilAck => Self::UntilAck,
            Keep::UntilTx => Self::UntilTx,
        }
    }
}

/// `[disk]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct DiskSection {
    pub queue: DiskDriver,
    pub depth: usize,
    /// 0: none.
    pub cache_blocks: usize,
    pub net: Net,
    pub retention: Keep,
}

impl Default for DiskSection {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            queue: DiskDriver::default(),
            depth: limits.disk_depth,
            cache_blocks: limits.cache_blocks,
            net: Net::default(),
            retention: Keep::default(),
        }
    }
}

/// How cached content is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Semantics {
    /// By reference.
    #[default]
    EmulatedCopy,
    /// As a copy for each response.
    Copy,
}

impl From<Semantics> for DataSemantics {
    fn from(semantics: Semantics) -> Self {
        match semantics {
            Semantics::EmulatedCopy => Self::EmulatedCopy,
            Semantics::Copy => Self::Copy,
        }
    }
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct HttpSection {
    pub port: u16,
    pub rate: Option<BitRate>,
    pub client_rates: Vec<NetworkRate>,
    pub backlog: usize,
    pub connections: usize,
    pub head_bytes_max: usize,
    pub partial_bytes_max: usize,
    pub header_timeout_s: u64,
    pub idle_timeout_s: u64,
    pub send_timeout_s: u64,
    pub send_bytes_min: u64,
    pub linger_s: u64,
    pub drain_s: u64,
    pub cache_entries: usize,
    pub cache_bytes: usize,
    pub cache_file_bytes_max: usize,
    pub cache_valid_ms: u64,
    pub semantics: Semantics,
    pub lookup_threads: usize,
}

impl Default for HttpSection {
    fn default() -> Self {
        let server = ServerConfig::default();
        let Timeouts { header, idle, send, send_bytes_min, linger } = server.timeouts;
        Self {
            port: 80,
            rate: None,
            client_rates: Vec::new(),
            backlog: 1024,
            connections: server.connections,
            head_bytes_max: server.head_bytes_max,
            partial_bytes_max: server.partial_bytes_max,
            header_timeout_s: header.as_secs(),
            idle_timeout_s: idle.as_secs(),
            send_timeout_s: send.as_secs(),
            send_bytes_min,
            linger_s: linger.as_secs(),
            drain_s: 10,
            cache_entries: server.cache.entries,
            cache_bytes: server.cache.bytes,
            cache_file_bytes_max: server.cache.file_bytes_max,
            cache_valid_ms: server.cache.valid.as_millis() as u64,
            semantics: Semantics::default(),
            lookup_threads: 2,
        }
    }
}

impl HttpSection {
    /// Rates of its connections, for the listener.
    pub fn pacing_rates(&self) -> (Option<PacingRate>, Vec<ClientRate>) {
        let clients = self.client_rates.iter().map(|one| one.rate).collect();
        (self.rate.as_ref().map(|rate| rate.rate), clients)
    }

    /// As the server takes it.
    pub fn server(&self) -> ServerConfig {
        ServerConfig {
            connections: self.connections,
            head_bytes_max: self.head_bytes_max,
            partial_bytes_max: self.partial_bytes_max,
            timeouts: Timeouts {
                header: Duration::from_secs(self.header_timeout_s),
                idle: Duration::from_secs(self.idle_timeout_s),
                send: Duration::from_secs(self.send_timeout_s),
                send_bytes_min: self.send_bytes_min,
                linger: Duration::from_secs(self.linger_s),
            },
            cache: CacheConfig {
                entries: self.cache_entries,
                bytes: self.cache_bytes,
                file_bytes_max: self.cache_file_bytes_max,
                valid: Duration::from_millis(self.cache_valid_ms),
            },
            semantics: self.semantics.into(),
            lookup_threads: self.lookup_threads,
            ..ServerConfig::default()
        }
    }
}

/// What an idle shard does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IdleMode {
    /// Sleeps for short times.
    #[default]
    Adaptive,
    /// Polls on.
    Spin,
}

impl From<IdleMode> for Idle {
    fn from(mode: IdleMode) -> Self {
        match mode {
            IdleMode::Adaptive => Self::Adaptive,
            IdleMode::Spin => Self::Spin,
        }
    }
}

/// When the link is asked for frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PollingMode {
    /// In each turn.
    #[default]
    Spin,
    /// When a quota of them has come.
    Quota,
    /// For each, after waiting for it.
    Interrupt,
}

/// Frames that a poll is to find: a number, or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "toml::Value", into = "toml::Value")]
pub struct QuotaValue(pub Quota);

impl TryFrom<toml::Value> for QuotaValue {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match &value {
            toml::Value::Integer(frames @ 1..=32) => Ok(Self(Quota::Frames(*frames as u8))),
            toml::Value::String(word) if word == "auto" => Ok(Self(Quota::Auto)),
            other => {
                Err(format!("the quota is {other}; set it between 1 and 32 frames, or to \"auto\""))
            }
        }
    }
}

impl From<QuotaValue> for toml::Value {
    fn from(value: QuotaValue) -> Self {
        match value.0 {
            Quota::Frames(frames) => Self::Integer(frames.into()),
            Quota::Auto => Self::String("auto".to_owned()),
        }
    }
}

/// What makes the loop look for due timers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TimerMode {
    /// Its own trigger points.
    #[default]
    Soft,
    /// Signals.
    Signal,
}

/// `[shard]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ShardSection {
    pub idle: IdleMode,
    pub polling: PollingMode,
    pub quota: QuotaValue,
    pub timers: TimerMode,
    /// 0: none.
    pub backup_hz: u32,
    pub trigger_histogram: bool,
    pub rx: RxMode,
    pub cpu: Option<usize>,
}

impl Default for ShardSection {
    fn default() -> Self {
        Self {
            idle: IdleMode::default(),
            polling: PollingMode::default(),
            quota: QuotaValue(Quota::Auto),
            timers: TimerMode::default(),
            backup_hz: 1000,
            trigger_histogram: false,
            rx: RxMode::default(),
            cpu: None,
        }
    }
}

impl ShardSection {
    /// When the shard asks its link for frames.
    pub fn polling(&self) -> Polling {
        match self.polling {
            PollingMode::Spin => Polling::Spin,
            PollingMode::Quota => Polling::Quota(self.quota.0),
            PollingMode::Interrupt => Polling::Interrupt,
        }
    }

    /// What makes the shard look for due timers.
    pub fn timers(&self) -> TimerSource {
        match self.timers {
            TimerMode::Soft => TimerSource::Soft,
            TimerMode::Signal => TimerSource::Signal,
        }
    }
}
