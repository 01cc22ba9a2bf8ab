//! The section on TCP.

use millstream::core::SynCookiePolicy;
use millstream::tcp::{Algorithm, Ecn, KeepAlive};
use serde::{Deserialize, Serialize};

/// Congestion controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// CUBIC.
    Cubic,
    /// NewReno.
    NewReno,
    /// BBR.
    Bbr,
    /// DCTCP.
    Dctcp,
}

impl From<Congestion> for Algorithm {
    fn from(congestion: Congestion) -> Self {
        match congestion {
            Congestion::Cubic => Self::Cubic,
            Congestion::NewReno => Self::NewReno,
            Congestion::Bbr => Self::Bbr,
            Congestion::Dctcp => Self::Dctcp,
        }
    }
}

impl From<Algorithm> for Congestion {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Cubic => Self::Cubic,
            Algorithm::NewReno => Self::NewReno,
            Algorithm::Bbr => Self::Bbr,
            Algorithm::Dctcp => Self::Dctcp,
        }
    }
}

/// When explicit congestion notification is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EcnMode {
    /// Never.
    Off,
    /// If the peer asks for it.
    #[default]
    Accept,
    /// This side asks for it, too.
    Request,
}

impl From<EcnMode> for Ecn {
    fn from(mode: EcnMode) -> Self {
        match mode {
            EcnMode::Off => Self::Off,
            EcnMode::Accept => Self::Accept,
            EcnMode::Request => Self::Request,
        }
    }
}

/// What clocks segments out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Clocking {
    /// A rate where the controller needs one or one is set.
    #[default]
    Auto,
    /// Always a rate.
    Rate,
    /// Acknowledgements.
    Ack,
}

impl From<Clocking> for millstream::tcp::Clocking {
    fn from(clocking: Clocking) -> Self {
        match clocking {
            Clocking::Auto => Self::Auto,
            Clocking::Rate => Self::Rate,
            Clocking::Ack => Self::Ack,
        }
    }
}

/// `[tcp]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TcpSection {
    pub recv_buffer_bytes: u32,
    /// 0: it does not grow.
    pub recv_buffer_max_bytes: u32,
    pub send_buffer_bytes: u32,
    /// 0: it does not grow.
    pub send_buffer_max_bytes: u32,
    pub min_rto_us: u32,
    pub initial_rto_us: u32,
    pub max_rto_us: u32,
    pub delayed_ack_us: u32,
    pub syn_retries: u8,
    pub data_retries: u8,
    /// 0: never.
    pub black_hole_retries: u8,
    pub user_timeout_us: u64,
    pub time_wait_us: u64,
    pub fin_wait_2_us: u64,
    pub initial_window_segments: u8,
    pub congestion: Congestion,
    pub ecn: EcnMode,
    pub rack: bool,
    pub clocking: Clocking,
    pub nagle: bool,
    pub timestamps: bool,
    pub sack: bool,
    pub window_scaling: bool,
    pub syn_cookies: SynCookies,
    /// 0: never.
    pub keepalive_idle_us: u64,
}

impl Default for TcpSection {
    fn default() -> Self {
        let tcp = millstream::tcp::Config::default();
        Self {
            recv_buffer_bytes: tcp.recv_buffer_bytes,
            recv_buffer_max_bytes: tcp.recv_buffer_max_bytes,
            send_buffer_bytes: tcp.send_buffer_bytes,
            send_buffer_max_bytes: tcp.send_buffer_max_bytes,
            min_rto_us: tcp.min_rto_us,
            initial_rto_us: tcp.initial_rto_us,
            max_rto_us: tcp.max_rto_us,
            delayed_ack_us: tcp.delayed_ack_us,
            syn_retries: tcp.syn_retries,
            data_retries: tcp.data_retries,
            black_hole_retries: 2,
            user_timeout_us: tcp.user_timeout_us,
            time_wait_us: tcp.time_wait_us,
            fin_wait_2_us: tcp.fin_wait_2_us,
            initial_window_segments: tcp.initial_window_segments,
            congestion: tcp.congestion.into(),
            ecn: EcnMode::default(),
            rack: tcp.rack,
            clocking: Clocking::default(),
            nagle: tcp.nagle,
            timestamps: tcp.timestamps,
            sack: tcp.sack,
            window_scaling: tcp.window_scaling,
            syn_cookies: SynCookies::default(),
            keepalive_idle_us: tcp.keepalive.map_or(0, |keepalive| keepalive.idle_us),
        }
    }
}

impl TcpSection {
    /// As the shard takes it.
    pub fn config(&self) -> millstream::tcp::Config {
        millstream::tcp::Config {
            recv_buffer_bytes: self.recv_buffer_bytes,
            recv_buffer_max_bytes: self.recv_buffer_max_bytes,
            send_buffer_bytes: self.send_buffer_bytes,
            send_buffer_max_bytes: self.send_buffer_max_bytes,
            min_rto_us: self.min_rto_us,
            initial_rto_us: self.initial_rto_us,
            max_rto_us: self.max_rto_us,
            delayed_ack_us: self.delayed_ack_us,
            syn_retries: self.syn_retries,
            data_retries: self.data_retries,
            black_hole_retries: self.black_hole_retries,
            user_timeout_us: self.user_timeout_us,
            time_wait_us: self.time_wait_us,
            fin_wait_2_us: self.fin_wait_2_us,
            initial_window_segments: self.initial_window_segments,
            congestion: self.congestion.into(),
            ecn: self.ecn.into(),
            rack: self.rack,
            clocking: self.clocking.into(),
            nagle: self.nagle,
            timestamps: self.timestamps,
            sack: self.sack,
            window_scaling: self.window_scaling,
            keepalive: (self.keepalive_idle_us > 0)
                .then(|| KeepAlive { idle_us: self.keepalive_idle_us, ..KeepAlive::default() }),
            ..millstream::tcp::Config::default()
        }
    }
}

/// When SYNs are answered with cookies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SynCookies {
    /// While a listener has as many handshakes under way as it takes.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Off,
}

impl From<SynCookies> for SynCookiePolicy {
    fn from(cookies: SynCookies) -> Self {
        match cookies {
            SynCookies::Auto => Self::Auto,
            SynCookies::Always => Self::Always,
            SynCookies::Off => Self::Off,
        }
    }
}
