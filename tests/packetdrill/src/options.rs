//! Socket options.

use millstream_core::Stack;

use crate::info;
use crate::socket::{Kind, Outcome, Socket, Sockets};
use crate::symbols::*;
use crate::sysctl::Sysctls;

/// Least of `SO_SNDBUF` and `SO_RCVBUF`, doubled.
const SEND_BUFFER_MIN: i64 = 4608;
const RECEIVE_BUFFER_MIN: i64 = 2304;

/// What is set on a socket. A connection that is accepted has what its listener had.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub reuse_address: bool,
    /// Seconds, if closing waits; 0: closing resets.
    pub linger: Option<i64>,
    pub nodelay: bool,
    pub cork: bool,
    pub keepalive: bool,
    pub out_of_band_inline: bool,
    /// As Linux shows them, which is twice what was asked for.
    pub send_buffer: i64,
    pub receive_buffer: i64,
    /// Whether it was set: Linux does not grow it then.
    pub send_buffer_set: bool,
    pub receive_buffer_set: bool,
    pub user_timeout_ms: i64,
    pub queue_length: bool,
    pub max_segment: i64,
    pub keepalive_idle_s: i64,
    pub keepalive_interval_s: i64,
    pub keepalive_probes: i64,
    pub syn_retries: i64,
    pub quick_ack: bool,
    pub type_of_service: i64,
    pub mtu_discover: i64,
    pub congestion: String,
}

impl Options {
    pub fn new(sysctls: &Sysctls) -> Self {
        let keepalive = sysctls.keepalive();
        Self {
            send_buffer: sysctls.number("tcp_wmem", 1) as i64,
            receive_buffer: sysctls.number("tcp_rmem", 1) as i64,
            keepalive_idle_s: (keepalive.idle_us / 1_000_000) as i64,
            keepalive_interval_s: (keepalive.interval_us / 1_000_000) as i64,
            keepalive_probes: i64::from(keepalive.probes),
            syn_retries: sysctls.number("tcp_syn_retries", 0) as i64,
            quick_ack: true,
            mtu_discover: 1,
            congestion: sysctls.text("tcp_congestion_control").to_owned(),
            ..Self::default()
        }
    }

    /// Whether a writer that waits is woken with so many bytes unacknowledged: when a third of the
    /// buffer is free.
    pub fn is_writable(&self, queued: usize) -> bool {
        queued as i64 <= self.send_limit() / 3 * 2
    }

    /// Bytes that may be queued.
    pub fn send_limit(&self) -> i64 {
        if self.send_buffer_set { self.send_buffer } else { self.send_buffer.max(4 << 20) }
    }

    /// Tells the stack what concerns it.
    pub fn apply(&self, stack: &Stack) {
        let mut config = stack.tcp_config();
        if self.receive_buffer_set {
            config.recv_buffer_bytes = (self.receive_buffer / 2) as u32;
            config.recv_buffer_max_bytes = 0;
        }
        config.user_timeout_us = self.user_timeout_ms as u64 * 1000;
        config.syn_retries = self.syn_retries.clamp(1, 127) as u8;
        config.keepalive = self.keepalive.then(|| millstream_tcp::KeepAlive {
            idle_us: self.keepalive_idle_s as u64 * 1_000_000,
            interval_us: self.keepalive_interval_s as u64 * 1_000_000,
            probes: self.keepalive_probes.clamp(1, 127) as u8,
        });
        stack.set_tcp_config(config);
    }
}

/// The value of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionValue {
    /// A number of four bytes.
    Int(i64),
    /// Two: `SO_LINGER`.
    Pair(i64, i64),
    /// Bytes: `TCP_CONGESTION`, `TCP_INFO`.
    Bytes(Vec<u8>),
}

impl Sockets {
    /// Sets an option.
    ///
    /// # Errors
    /// There is no such option, or no such value.
    pub fn set_option(
        &mut self,
        fd: i32,
        level: i64,
        name: i64,
        value: &OptionValue,
    ) -> Outcome<()> {
        let stack = self.world().stack().clone();
        let socket = self.socket_at(fd)?;
        if let Kind::Epoll(_) = socket.kind {
            return Err(Errno::ENOTSOCK);
        }
        set(socket, level, name, value)?;
        if !matches!(socket.kind, Kind::Fresh) {
            socket.options.apply(&stack);
        }
        if let Kind::Connected(stream) = &socket.kind
            && matches!((level, name), (SOL_SOCKET, SO_KEEPALIVE) | (SOL_TCP, TCP_KEEPIDLE))
        {
            stream.set_keepalive(socket.options.keepalive);
        }
        self.world().settle();
        Ok(())
    }

    /// Reads an option.
    ///
    /// # Errors
    /// There is no such option.
    pub fn option(&mut self, fd: i32, level: i64, name: i64) -> Outcome<OptionValue> {
        let socket = self.socket_at(fd)?;
        let options = &socket.options;
        Ok(OptionValue::Int(match (level, name) {
            (SOL_SOCKET, SO_ERROR) => socket.take_error().map_or(0, |error| error as i64),
            (SOL_SOCKET, SO_REUSEADDR) => i64::from(options.reuse_address),
            (SOL_SOCKET, SO_KEEPALIVE) => i64::from(options.keepalive),
            (SOL_SOCKET, SO_OOBINLINE) => i64::from(options.out_of_band_inline),
            (SOL_SOCKET, SO_SNDBUF) => options.send_buffer,
            (SOL_SOCKET, SO_RCVBUF) => options.receive_buffer,
            (SOL_SOCKET, SO_LINGER) => {
                let linger = options.linger;
                let seconds = linger.unwrap_or(0);
                return Ok(OptionValue::Pair(i64::from(linger.is_some()), seconds));
            }
            (SOL_SOCKET, SO_MEMINFO) => {
                let words: Vec<u8> = memory_info(socket)
                    .into_iter()
                    .flat_map(|(_, value)| (value as u32).to_le_bytes())
                    .collect();
                return Ok(OptionValue::Bytes(words));
            }
            (SOL_TCP, TCP_NODELAY) => i64::from(options.nodelay),
            (SOL_TCP, TCP_CORK) => i64::from(options.cork),
            (SOL_TCP, TCP_USER_TIMEOUT) => options.user_timeout_ms,
            (SOL_TCP, TCP_INQ) => i64::from(options.queue_length),
            (SOL_TCP, TCP_KEEPIDLE) => options.keepalive_idle_s,
            (SOL_TCP, TCP_KEEPINTVL) => options.keepalive_interval_s,
            (SOL_TCP, TCP_KEEPCNT) => options.keepalive_probes,
            (SOL_TCP, TCP_SYNCNT) => options.syn_retries,
            (SOL_TCP, TCP_QUICKACK) => i64::from(options.quick_ack),
            (SOL_TCP, TCP_MAXSEG) => match &socket.kind {
                Kind::Connected(stream) => stream.info().map_or(536, |i| i64::from(i.mss_bytes)),
                _ if options.max_segment != 0 => options.max_segment,
                _ => 536,
            },
            (SOL_TCP, TCP_CONGESTION) => {
                let mut name = options.congestion.clone().into_bytes();
                name.resize(16, 0);
                return Ok(OptionValue::Bytes(name));
            }
            (SOL_TCP, TCP_INFO) => match &socket.kind {
                Kind::Connected(stream) => {
                    return Ok(OptionValue::Bytes(info::bytes(&info::fields(stream))));
                }
                _ => return Ok(OptionValue::Bytes(vec![0; info::INFO_LEN])),
            },
            (SOL_TCP, TCP_CC_INFO) => return Ok(OptionValue::Bytes(Vec::new())),
            (SOL_IP, IP_TOS) => options.type_of_service,
            (SOL_IP, IP_MTU_DISCOVER) => options.mtu_discover,
            _ => return Err(Errno::ENOPROTOOPT),
        }))
    }

    /// What `TCP_INFO` and `SO_MEMINFO` say, by name.
    ///
    /// # Errors
    /// The descriptor is not open.
    pub fn info(&mut self, fd: i32) -> Outcome<Vec<(&'static str, u64)>> {
        let socket = self.socket_at(fd)?;
        let mut values = memory_info(socket);
        if let Kind::Connected(stream) = &socket.kind {
            values.extend(info::fields(stream).into_iter().map(|(name, _, value)| (name, value)));
        }
        Ok(values)
    }
}

/// `SO_MEMINFO`.
fn memory_info(socket: &Socket) -> Vec<(&'static str, u64)> {
    let (readable, unacked) = match &socket.kind {
        Kind::Connected(stream) => (stream.readable_bytes(), stream.unacked_bytes()),
        _ => (0, 0),
    };
    vec![
        ("SK_MEMINFO_RMEM_ALLOC", readable as u64),
        ("SK_MEMINFO_RCVBUF", socket.options.receive_buffer as u64),
        ("SK_MEMINFO_WMEM_ALLOC", 0),
        ("SK_MEMINFO_SNDBUF", socket.options.send_buffer as u64),
        ("SK_MEMINFO_FWD_ALLOC", 0),
        ("SK_MEMINFO_WMEM_QUEUED", unacked as u64),
        ("SK_MEMINFO_OPTMEM", 0),
        ("SK_MEMINFO_BACKLOG", 0),
        ("SK_MEMINFO_DROPS", 0),
    ]
}

fn set(socket: &mut Socket, level: i64, name: i64, value: &OptionValue) -> Outcome<()> {
    let options = &mut socket.options;
    let stream = match &socket.kind {
        Kind::Connected(stream) => Some(stream),
        _ => None,
    };
    match (level, name, value) {
        (SOL_SOCKET, SO_LINGER, OptionValue::Pair(on, seconds)) => {
            options.linger = (*on != 0).then_some(*seconds);
        }
        (SOL_TCP, TCP_CONGESTION, OptionValue::Bytes(name)) => {
            let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
            if !["cubic", "reno", "bbr", "dctcp"].contains(&name.as_str()) {
                return Err(Errno::ENOENT);
            }
            options.congestion = name;
        }
        (_, _, OptionValue::Int(value)) => match (level, name) {
            (SOL_SOCKET, SO_REUSEADDR | SO_REUSEPORT) => options.reuse_address = *value != 0,
            (SOL_SOCKET, SO_OOBINLINE) => options.out_of_band_inline = *value != 0,
            (SOL_SOCKET, SO_SNDBUF) => {
                options.send_buffer = (value * 2).max(SEND_BUFFER_MIN);
                options.send_buffer_set = true;
            }
            (SOL_SOCKET, SO_RCVBUF) => {
                options.receive_buffer = (value * 2).max(RECEIVE_BUFFER_MIN);
                options.receive_buffer_set = true;
            }
            (SOL_SOCKET, SO_KEEPALIVE) => options.keepalive = *value != 0,
            (SOL_TCP, TCP_NODELAY) => {
                options.nodelay = *value != 0;
                if let Some(stream) = stream {
                    stream.set_nodelay(options.nodelay);
                }
            }
            (SOL_TCP, TCP_CORK) => {
                options.cork = *value != 0;
                if let Some(stream) = stream {
                    stream.set_cork(options.cork);
                }
            }
            (SOL_TCP, TCP_USER_TIMEOUT) if *value < 0 => return Err(Errno::EINVAL),
            (SOL_TCP, TCP_USER_TIMEOUT) => options.user_timeout_ms = *value,
            (SOL_TCP, TCP_INQ) if !(0..=1).contains(value) => return Err(Errno::EINVAL),
            (SOL_TCP, TCP_INQ) => options.queue_length = *value != 0,
            (SOL_TCP, TCP_MAXSEG) => options.max_segment = *value,
            (SOL_TCP, TCP_KEEPIDLE) => options.keepalive_idle_s = (*value).max(1),
            (SOL_TCP, TCP_KEEPINTVL) => options.keepalive_interval_s = (*value).max(1),
            (SOL_TCP, TCP_KEEPCNT) => options.keepalive_probes = (*value).max(1),
            (SOL_TCP, TCP_SYNCNT) => options.syn_retries = (*value).max(1),
            (SOL_TCP, TCP_QUICKACK) => options.quick_ack = *value != 0,
            (SOL_IP, IP_TOS) => options.type_of_service = *value,
            (SOL_IP, IP_MTU_DISCOVER) => options.mtu_discover = *value,
            _ => return Err(Errno::ENOPROTOOPT),
        },
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}
