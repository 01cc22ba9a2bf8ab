//! States, events, and how connections fail.

/// The states of RFC 9293 section 3.3.2, less LISTEN, which is the listener's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// No connection.
    Closed,
    /// A SYN was sent.
    SynSent,
    /// SYNs crossed or a SYN was answered; its acknowledgement is awaited.
    SynReceived,
    /// Data flows.
    Established,
    /// This side has closed; its FIN is not acknowledged.
    FinWait1,
    /// This side has closed, the other may still send.
    FinWait2,
    /// The other side has closed, this one may still send.
    CloseWait,
    /// Both sides have closed, this one's FIN is not acknowledged, and it closed first.
    Closing,
    /// Both sides have closed, this one's FIN is not acknowledged, and it closed last.
    LastAck,
    /// Waiting until no segment of the connection can be alive.
    TimeWait,
}

impl State {
    const fn is_in(self, set: u16) -> bool {
        (1u16 << self as u8) & set != 0
    }

    /// Whether data and FIN may be on the way out: it takes a finished handshake, and a FIN that is
    /// not acknowledged.
    #[inline]
    pub(crate) const fn transmits(self) -> bool {
        self.is_in(
            1 << Self::Established as u16
                | 1 << Self::CloseWait as u16
                | 1 << Self::FinWait1 as u16
                | 1 << Self::Closing as u16
                | 1 << Self::LastAck as u16,
        )
    }

    /// Whether the application may still queue data.
    #[inline]
    pub const fn accepts_data(self) -> bool {
        self.is_in(
            1 << Self::Established as u16
                | 1 << Self::CloseWait as u16
                | 1 << Self::SynSent as u16
                | 1 << Self::SynReceived as u16,
        )
    }

    /// Whether the peer may still send data.
    #[inline]
    pub const fn receives(self) -> bool {
        self.is_in(
            1 << Self::Established as u16 | 1 << Self::FinWait1 as u16 | 1 << Self::FinWait2 as u16,
        )
    }
}

/// Why a connection ended other than by both sides' FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// The peer sent a reset.
    #[error("the peer reset the connection")]
    Reset,
    /// The peer refused the connection.
    #[error("the peer refused the connection; is anything listening on that port?")]
    Refused,
    /// The peer did not answer within the configured retries or time.
    #[error("the peer stopped answering; check that it is up and that the path to it works")]
    TimedOut,
    /// This side gave the connection up.
    #[error("the connection was aborted by this side")]
    Aborted,
}

bitflags::bitflags! {
    /// What happened while a segment or a timer was dealt with.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Events: u16 {
        /// The handshake is finished.
        const ESTABLISHED = 1 << 0;
        /// There is more to read than before.
        const READABLE = 1 << 1;
        /// There is more room to send than before.
        const WRITABLE = 1 << 2;
        /// The peer acknowledged data.
        const ACKED = 1 << 3;
        /// The peer's FIN arrived in order: after what is readable nothing will follow.
        const PEER_CLOSED = 1 << 4;
        /// The peer reset the connection.
        const RESET = 1 << 5;
        /// The peer, or the network, refused the connection.
        const REFUSED = 1 << 6;
        /// The peer stopped answering.
        const TIMED_OUT = 1 << 7;
        /// Nothing more will happen. What is still readable may be read; then release the record,
        /// but if `TRANSMIT` comes along not before [`Tcb::transmit`](crate::Tcb::transmit) has
        /// given the reset that the peer is owed.
        const CLOSED = 1 << 8;
        /// [`Tcb::transmit`](crate::Tcb::transmit) has something to send now.
        const TRANSMIT = 1 << 9;
        /// Both sides have closed and TIME-WAIT has begun.
        const TIME_WAIT = 1 << 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_states() {
        assert!(State::LastAck.transmits() && !State::FinWait2.transmits());
        assert!(State::CloseWait.accepts_data() && !State::FinWait1.accepts_data());
        assert!(State::FinWait2.receives() && !State::CloseWait.receives());
        assert!(!State::Closed.transmits() && !State::TimeWait.transmits());
    }
}
