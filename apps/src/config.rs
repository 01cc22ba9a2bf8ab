//! The profile: a TOML file with one section for each part of the node.

mod check;
mod containers;
mod sections;
mod tcp;
mod values;

use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;

use millstream::buf::ArenaConfig;
use millstream::core::{Idle, Polling, ShardConfig};
use millstream::dpdk_port::{Device, EalConfig, MemifRole, PcapSink, PortConfig};
use millstream::timer::BACKUP_HZ_MAX;
use serde::{Deserialize, Serialize};

use crate::error::AppError;
pub use containers::ContainerSection;
pub use sections::Huge;
use sections::{
    DiskSection, DpdkSection, Driver, HttpSection, Ipv4Section, Ipv6Section, LimitsSection,
    LinkSection, MemorySection, Role, ShardSection,
};
use tcp::TcpSection;
pub use values::bit_rate;

/// A whole profile. Everything has a default.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What carries the frames.
    pub link: LinkSection,
    /// Our place in the network.
    pub ipv4: Ipv4Section,
    /// Our place in the IPv6 network.
    pub ipv6: Ipv6Section,
    /// The arena.
    pub memory: MemorySection,
    /// DPDK's start.
    pub dpdk: DpdkSection,
    /// Bounds.
    pub limits: LimitsSection,
    /// TCP.
    pub tcp: TcpSection,
    /// Reading files.
    pub disk: DiskSection,
    /// The HTTP server.
    pub http: HttpSection,
    /// The core that does the work.
    pub shard: ShardSection,
    /// Who is charged and scheduled on it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub container: Vec<ContainerSection>,
}

impl Config {
    /// Reads a profile, and then the overrides, each `section.key=value`.
    ///
    /// # Errors
    /// [`AppError::Usage`] names the line, and for an unknown key the nearest known one.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, AppError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            AppError::usage(format!(
                "cannot read the profile `{}` ({error}); config/ has one for each kind of link",
                path.display()
            ))
        })?;
        let config = check::parse(&text, &path.display().to_string())?;
        check::with_overrides(config, &text, overrides)?.validated(path)
    }

    /// Refuses values that no part below would refuse with a better sentence.
    fn validated(self, path: &Path) -> Result<Self, AppError> {
        let bad = |what: &str| Err(AppError::usage(format!("{}: {what}", path.display())));
        let positive = [
            ("limits.connections", self.limits.connections),
            ("limits.channel_packets", self.limits.channel_packets),
            ("limits.connection_packets", usize::from(self.limits.connection_packets)),
            ("limits.socket_packets", usize::from(self.limits.socket_packets)),
            ("limits.slices", self.limits.slices),
            ("limits.tasks", self.limits.tasks),
            ("limits.sleepers", self.limits.sleepers),
            ("limits.splice_buffers", self.limits.splice_buffers),
            ("limits.splice_turn_reads", self.limits.splice_turn_reads),
            ("memory.frames", self.memory.frames),
            ("memory.blocks", self.memory.blocks),
            ("disk.depth", self.disk.depth),
            ("link.mbufs", self.link.mbufs as usize),
            ("dpdk.memory_mb", self.dpdk.memory_mb as usize),
            ("http.backlog", self.http.backlog),
            ("http.cache_entries", self.http.cache_entries),
        ];
        for (name, value) in positive {
            if value == 0 || value > 1 << 24 {
                return bad(&format!("{name} is {value}; set it between 1 and {}", 1 << 24));
            }
        }
        if self.disk.cache_blocks > self.memory.blocks {
            return bad(&format!(
                "disk.cache_blocks is {}, but memory.blocks is {}; keep the first at or below the second",
                self.disk.cache_blocks, self.memory.blocks
            ));
        }
        if self.link.vlan.is_some_and(|vlan| !(1..=4094).contains(&vlan)) {
            return bad("link.vlan must be between 1 and 4094");
        }
        if self.link.mtu.is_some_and(|mtu| mtu < 1280) && self.ipv6.config().is_some() {
            return bad("link.mtu must be at least 1280 for IPv6");
        }
        let buffers =
            [self.tcp.recv_buffer_bytes, self.tcp.send_buffer_bytes].map(|bytes| bytes as usize);
        if buffers.iter().any(|bytes| !(4096..=1 << 30).contains(bytes)) {
            return bad(
                "tcp.recv_buffer_bytes and tcp.send_buffer_bytes must be between 4096 and 1073741824",
            );
        }
        let bounds = [self.tcp.recv_buffer_max_bytes, self.tcp.send_buffer_max_bytes];
        if bounds.iter().any(|bytes| *bytes > 1 << 30) {
            return bad(
                "tcp.recv_buffer_max_bytes and tcp.send_buffer_max_bytes must be at most 1073741824; 0 \
                 keeps buffers as they are at first",
            );
        }
        if self.ipv6.stable_secret.is_some() && !self.ipv6.slaac {
            return bad("ipv6.stable_secret makes addresses only with ipv6.slaac = true; set both");
        }
        if self.shard.backup_hz > BACKUP_HZ_MAX {
            return bad(&format!(
                "shard.backup_hz is {}; set it between 0 (none) and {BACKUP_HZ_MAX}",
                self.shard.backup_hz
            ));
        }
        if self.http.connections >= self.limits.tasks {
            return bad(&format!(
                "http.connections is {} and each takes a task; raise limits.tasks, now {}, above it",
                self.http.connections, self.limits.tasks
            ));
        }
        Ok(self)
    }

    /// The device to open.
    ///
    /// # Errors
    /// [`AppError::Usage`] names the key that the driver needs and the profile has not.
    pub fn device(&self) -> Result<Device, AppError> {
        let link = &self.link;
        let driver = link.driver.name();
        let missing = |key: &str| {
            AppError::usage(format!(
                "the driver \"{driver}\" needs link.{key}; add it to the profile"
            ))
        };
        let iface = || link.iface.clone().ok_or_else(|| missing("iface"));
        Ok(match link.driver {
            Driver::Tap => Device::Tap { iface: iface()?, mac: None },
            Driver::AfPacket => Device::AfPacket { iface: iface()? },
            Driver::AfXdp => Device::AfXdp { iface: iface()? },
            Driver::Memif => Device::Memif {
                role: match link.role {
                    Role::Server => MemifRole::Server,
                    Role::Client => MemifRole::Client,
                },
                socket: link.socket.clone().ok_or_else(|| missing("socket"))?,
                id: link.id,
            },
            Driver::Ring => Device::Ring,
            Driver::Null => Device::Null { frame_bytes: 64, rx: false },
            Driver::Pcap => Device::Pcap {
                rx_file: link.rx_file.clone().ok_or_else(|| missing("rx_file"))?,
                tx: link.tx_file.clone().map_or(PcapSink::Discard, PcapSink::File),
            },
            Driver::Pci => Device::Pci {
                address: link.pci.as_ref().ok_or_else(|| missing("pci"))?.to_string(),
            },
        })
    }

    /// The device's name for people; empty if it has none.
    pub fn device_name(&self) -> String {
        let link = &self.link;
        let path = |path: &Option<std::path::PathBuf>| {
            path.as_ref().map(|path| path.display().to_string())
        };
        match link.driver {
            Driver::Tap | Driver::AfPacket | Driver::AfXdp => link.iface.clone(),
            Driver::Memif => path(&link.socket),
            Driver::Pcap => path(&link.rx_file),
            Driver::Pci => link.pci.as_ref().map(ToString::to_string),
            Driver::Ring | Driver::Null => None,
        }
        .unwrap_or_default()
    }

    /// DPDK's start.
    pub fn eal(&self) -> EalConfig {
        EalConfig {
            memory_mb: self.dpdk.memory_mb,
            huge_pages: self.dpdk.huge_pages.into(),
            allow: match (self.link.driver, &self.link.pci) {
                (Driver::Pci, Some(address)) => vec![address.to_string()],
                _ => Vec::new(),
            },
            cpus: self.shard.cpu.into_iter().collect(),
            pin: self.shard.cpu.is_some(),
            extra: self.dpdk.extra.clone(),
        }
    }

    /// The port over a device.
    pub fn port(&self, device: Device) -> PortConfig {
        let link = &self.link;
        PortConfig {
            rx_descriptors: link.rx_descriptors,
            tx_descriptors: link.tx_descriptors,
            mbufs: link.mbufs,
            mtu: link.mtu,
            mac: link.mac.map(|mac| mac.0),
            copy_below_bytes: link.copy_below_bytes,
            // A loop that never sleeps needs none, and some devices are slower with them.
            rx_interrupts: self.shard.polling() == Polling::Interrupt
                || Idle::from(self.shard.idle) == Idle::Adaptive,
            ..PortConfig::new(device)
        }
    }

    /// The arena.
    pub fn arena(&self) -> ArenaConfig {
        ArenaConfig {
            frames: self.memory.frames,
            blocks: self.memory.blocks,
            huge_pages: self.memory.huge_pages.into(),
        }
    }

    /// The addresses on which a service listens: ours of IPv4, or any of both versions.
    pub fn listen_on(&self, port: u16) -> SocketAddr {
        match self.ipv6.config() {
            Some(_) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
            None => SocketAddr::new(self.ipv4.address.ip.into(), port),
        }
    }

    /// The addresses of a service for people, behind a prefix such as `http://`.
    pub fn listens_on(&self, prefix: &str, port: u16) -> String {
        let v4 = SocketAddr::new(self.ipv4.address.ip.into(), port);
        match (self.ipv6.address, self.ipv6.slaac) {
            (Some(cidr), _) => {
                format!("{prefix}{v4} and {prefix}{}", SocketAddr::new(cidr.ip.into(), port))
            }
            (None, true) => format!("{prefix}{v4} and over IPv6"),
            (None, false) => format!("{prefix}{v4}"),
        }
    }

    /// The shard.
    pub fn shard_config(&self) -> ShardConfig {
        let mut config = ShardConfig::new(self.ipv4.config());
        config.ipv6 = self.ipv6.config();
        config.vlan = self.link.vlan;
        config.limits = self.limits.limits(&self.disk);
        config.tcp = self.tcp.config();
        config.syn_cookies = self.tcp.syn_cookies.into();
        config.polling = self.shard.polling();
        config.timers = self.shard.timers();
        config.rx = self.shard.rx.into();
        config.trace_triggers = self.shard.trigger_histogram;
        config.disk_net = self.disk.net.into();
        config.retention = self.disk.retention.into();
        config
    }
}

#[cfg(test)]
mod tests;
