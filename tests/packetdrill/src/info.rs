//! `TCP_INFO` as Linux lays it out.

use millstream_core::TcpStream;
use millstream_tcp::{CongestionState, State};

/// Values of `tcpi_state`.
pub fn linux_state(state: State) -> u64 {
    match state {
        State::Established => 1,
        State::SynSent => 2,
        State::SynReceived => 3,
        State::FinWait1 => 4,
        State::FinWait2 => 5,
        State::TimeWait => 6,
        State::Closed => 7,
        State::CloseWait => 8,
        State::LastAck => 9,
        State::Closing => 11,
    }
}

/// Values of `tcpi_ca_state`.
fn ca_state(state: CongestionState) -> u64 {
    match state {
        CongestionState::Open => 0,
        CongestionState::Disorder => 1,
        CongestionState::Cwr => 2,
        CongestionState::Recovery => 3,
        CongestionState::Loss => 4,
    }
}

/// Names for values, for assertions.
pub const NAMES: &[(&str, u64)] = &[
    ("TCP_ESTABLISHED", 1),
    ("TCP_SYN_SENT", 2),
    ("TCP_SYN_RECV", 3),
    ("TCP_FIN_WAIT1", 4),
    ("TCP_FIN_WAIT2", 5),
    ("TCP_TIME_WAIT", 6),
    ("TCP_CLOSE", 7),
    ("TCP_CLOSE_WAIT", 8),
    ("TCP_LAST_ACK", 9),
    ("TCP_LISTEN", 10),
    ("TCP_CLOSING", 11),
    ("TCP_CA_Open", 0),
    ("TCP_CA_Disorder", 1),
    ("TCP_CA_CWR", 2),
    ("TCP_CA_Recovery", 3),
    ("TCP_CA_Loss", 4),
    ("TCPI_OPT_TIMESTAMPS", 1),
    ("TCPI_OPT_SACK", 2),
    ("TCPI_OPT_WSCALE", 4),
    ("TCPI_OPT_ECN", 8),
    ("TCPI_OPT_ECN_SEEN", 16),
    ("TCPI_OPT_SYN_DATA", 32),
];

/// Where a field lies in the structure: offset and bytes. Bit fields have their own places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A whole number of bytes.
    Bytes(usize, usize),
    /// Bits of a byte: which byte, shift and width.
    Bits(usize, u32, u32),
}

/// Bytes of the structure as far as it is filled in here.
pub const INFO_LEN: usize = 248;

/// What is asked of a connection: each field's name, place and value.
pub fn fields(stream: &TcpStream) -> Vec<(&'static str, Place, u64)> {
    use Place::{Bits, Bytes};
    let Some(info) = stream.info() else {
        return vec![("tcpi_state", Bytes(0, 1), linux_state(State::Closed))];
    };
    let mss = u64::from(info.mss_bytes).max(1);
    let times = stream.send_times();
    let ssthresh = match info.ssthresh_bytes {
        u32::MAX => 0x7fff_ffff,
        bytes => u64::from(bytes) / mss,
    };
    let options =
        u64::from(info.timestamps) | u64::from(info.sack) << 1 | u64::from(info.window_scale) << 2;
    vec![
        ("tcpi_state", Bytes(0, 1), linux_state(info.state)),
        ("tcpi_ca_state", Bytes(1, 1), ca_state(info.ca_state)),
        ("tcpi_probes", Bytes(3, 1), u64::from(info.probes)),
        ("tcpi_backoff", Bytes(4, 1), u64::from(info.backoff)),
        ("tcpi_options", Bytes(5, 1), options),
        ("tcpi_snd_wscale", Bits(6, 0, 4), u64::from(info.snd_scale)),
        ("tcpi_rcv_wscale", Bits(6, 4, 4), u64::from(info.rcv_scale)),
        ("tcpi_rto", Bytes(8, 4), u64::from(info.rto_us)),
        ("tcpi_snd_mss", Bytes(16, 4), mss),
        ("tcpi_rcv_mss", Bytes(20, 4), u64::from(info.rcv_mss_bytes)),
        ("tcpi_unacked", Bytes(24, 4), u64::from(info.unacked)),
        ("tcpi_sacked", Bytes(28, 4), u64::from(info.sacked)),
        ("tcpi_lost", Bytes(32, 4), u64::from(info.lost)),
        ("tcpi_retrans", Bytes(36, 4), u64::from(info.retrans)),
        ("tcpi_last_data_recv", Bytes(52, 4), stream.silent_us() / 1000),
        ("tcpi_rtt", Bytes(68, 4), u64::from(info.srtt_us)),
        ("tcpi_rttvar", Bytes(72, 4), u64::from(info.rttvar_us)),
        ("tcpi_snd_ssthresh", Bytes(76, 4), ssthresh),
        ("tcpi_snd_cwnd", Bytes(80, 4), u64::from(info.cwnd_bytes) / mss),
        ("tcpi_advmss", Bytes(84, 4), u64::from(info.mss_limit_bytes)),
        ("tcpi_reordering", Bytes(88, 4), u64::from(info.reordering)),
        ("tcpi_total_retrans", Bytes(100, 4), u64::from(info.retransmits)),
        ("tcpi_pacing_rate", Bytes(104, 8), info.pacing_rate),
        ("tcpi_bytes_acked", Bytes(120, 8), stream.acked_total()),
        ("tcpi_bytes_received", Bytes(128, 8), u64::from(info.bytes_received)),
        ("tcpi_notsent_bytes", Bytes(144, 4), stream.unsent_bytes() as u64),
        ("tcpi_min_rtt", Bytes(148, 4), u64::from(info.min_rtt_us)),
        ("tcpi_delivery_rate", Bytes(160, 8), info.delivery_rate),
        ("tcpi_busy_time", Bytes(168, 8), times.busy_us),
        ("tcpi_rwnd_limited", Bytes(176, 8), times.window_limited_us),
        ("tcpi_snd_wnd", Bytes(228, 4), u64::from(info.snd_wnd_bytes)),
        ("tcpi_rcv_wnd", Bytes(232, 4), u64::from(info.rcv_wnd_bytes)),
    ]
}

/// The structure's bytes.
pub fn bytes(fields: &[(&'static str, Place, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; INFO_LEN];
    for (_, place, value) in fields {
        match *place {
            Place::Bytes(at, len) => {
                bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
            }
            Place::Bits(at, shift, width) => {
                bytes[at] |= ((value & ((1 << width) - 1)) << shift) as u8;
            }
        }
    }
    bytes
}
