//! Linux's knobs, as far as scripts turn them, and what they are called here.

use std::collections::BTreeMap;

use millstream_tcp::{Algorithm, Config, Ecn, KeepAlive};

/// Knobs that change the stack's configuration, with Linux's defaults.
const KNOBS: &[(&str, &str)] = &[
    ("tcp_rmem", "4096 131072 6291456"),
    ("tcp_wmem", "4096 16384 4194304"),
    ("tcp_timestamps", "1"),
    ("tcp_sack", "1"),
    ("tcp_window_scaling", "1"),
    ("tcp_syn_retries", "6"),
    ("tcp_synack_retries", "5"),
    ("tcp_retries2", "15"),
    ("tcp_fin_timeout", "60"),
    ("tcp_keepalive_time", "7200"),
    ("tcp_keepalive_intvl", "75"),
    ("tcp_keepalive_probes", "9"),
    ("tcp_slow_start_after_idle", "1"),
    ("tcp_congestion_control", "cubic"),
    ("tcp_ecn", "2"),
    ("tcp_syncookies", "1"),
    ("tcp_invalid_ratelimit", "500"),
    ("tcp_rto_max_ms", "120000"),
    ("tcp_min_tso_segs", "2"),
];

/// Knobs that scripts turn and that have nothing to turn here: what they switch on is always on,
/// or concerns how Linux cuts large buffers for a device.
const ACCEPTED: &[&str] = &[
    "tcp_frto",
    "tcp_dsack",
    "tcp_fack",
    "tcp_reordering",
    "tcp_early_retrans",
    "tcp_recovery",
    "tcp_tso_win_divisor",
    "tcp_pacing_ss_ratio",
    "tcp_pacing_ca_ratio",
    "tcp_notsent_lowat",
    "tcp_fastopen",
    "tcp_fastopen_key",
    "tcp_no_metrics_save",
];

/// The knobs of one world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctls(BTreeMap<&'static str, String>);

impl Default for Sysctls {
    fn default() -> Self {
        Self(KNOBS.iter().map(|(name, value)| (*name, (*value).to_owned())).collect())
    }
}

impl Sysctls {
    /// Turns a knob; `net.ipv4.` before its name, or `/proc/sys/net/ipv4/`, may be left out.
    ///
    /// # Errors
    /// There is no such knob.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let name = name.trim_start_matches("/proc/sys/net/ipv4/").trim_start_matches("net.ipv4.");
        let value = value.trim().trim_matches('"');
        if let Some(old) = self.0.get_mut(name) {
            value.clone_into(old);
            return Ok(());
        }
        if ACCEPTED.contains(&name) { Ok(()) } else { Err(format!("there is no sysctl {name}")) }
    }

    /// A number of a knob: the first, or another where there are several.
    pub fn number(&self, name: &str, index: usize) -> u64 {
        let word = self.0.get(name).and_then(|value| value.split_whitespace().nth(index));
        word.and_then(|word| word.parse().ok()).unwrap_or(0)
    }

    /// The text of a knob.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", |value| value.as_str())
    }

    /// What TCP is set to.
    pub fn tcp_config(&self) -> Config {
        let seconds = |name| self.number(name, 0) * 1_000_000;
        // Half of a receive buffer is for the data, the rest for what Linux keeps beside it.
        let recv_buffer_bytes = (self.number("tcp_rmem", 1) / 2).min(1 << 30) as u32;
        Config {
            recv_buffer_bytes,
            // Linux makes room for all of the largest.
            recv_buffer_max_bytes: self.number("tcp_rmem", 2).min(1 << 30) as u32,
            recv_slices_max: 4096,
            reassembly_ranges_max: 64,
            send_buffer_bytes: 1 << 29,
            timestamps: self.number("tcp_timestamps", 0) != 0,
            sack: self.number("tcp_sack", 0) != 0,
            window_scaling: self.number("tcp_window_scaling", 0) != 0,
            syn_retries: self.number("tcp_syn_retries", 0).min(255) as u8,
            data_retries: self.number("tcp_retries2", 0).min(255) as u8,
            fin_wait_2_us: seconds("tcp_fin_timeout"),
            max_rto_us: (self.number("tcp_rto_max_ms", 0) * 1000).min(u64::from(u32::MAX)) as u32,
            slow_start_after_idle: self.number("tcp_slow_start_after_idle", 0) != 0,
            burst_segments_min: self.number("tcp_min_tso_segs", 0).clamp(1, 255) as u8,
            slow_start_segments: u8::MAX,
            // The delayed ACK that Linux allows for.
            probe_ack_delay_us: 200_000,
            ecn: match self.number("tcp_ecn", 0) {
                0 => Ecn::Off,
                1 => Ecn::Request,
                _ => Ecn::Accept,
            },
            congestion: match self.text("tcp_congestion_control") {
                "reno" => Algorithm::NewReno,
                "dctcp" => Algorithm::Dctcp,
                _ => Algorithm::Cubic,
            },
            challenge_acks_per_second: if self.number("tcp_invalid_ratelimit", 0) == 0 {
                u8::MAX
            } else {
                Config::default().challenge_acks_per_second
            },
            ..Config::default()
        }
    }

    /// When keep-alive asks.
    pub fn keepalive(&self) -> KeepAlive {
        KeepAlive {
            idle_us: self.number("tcp_keepalive_time", 0) * 1_000_000,
            interval_us: self.number("tcp_keepalive_intvl", 0) * 1_000_000,
            probes: self.number("tcp_keepalive_probes", 0).min(255) as u8,
        }
    }
}
