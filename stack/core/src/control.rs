//! What a socket can be asked and told beside its data: what a layer of system calls needs.

use std::net::SocketAddr;
use std::task::{Context, Poll};

use millstream_tcp::{ConnectionError, State as TcpState};

use crate::conn::Facts;
use crate::stack::Stack;
use crate::state::env;
use crate::stream::{TcpListener, TcpStream, to_io};

/// How bytes are to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendFlags {
    /// More follows at once (`MSG_MORE`): less than a full segment waits for it.
    pub more: bool,
    /// What is written ends a record (`MSG_EOR`): nothing written later shares a segment with it.
    pub end_of_record: bool,
}

impl Stack {
    /// TCP's parameters.
    pub fn tcp_config(&self) -> millstream_tcp::Config {
        self.state().tcp_config.clone()
    }

    /// Changes TCP's parameters for all connections from now on. Bounds on memory that was taken at
    /// the start stay what they are.
    pub fn set_tcp_config(&self, config: millstream_tcp::Config) {
        self.state().tcp_config = config;
    }
}

impl TcpListener {
    /// Connections that wait to be accepted.
    pub fn pending(&self) -> usize {
        let mut state = self.stack.state();
        state.listener_mut(u32::from(self.number)).map_or(0, |listener| listener.accept.len())
    }
}

impl TcpStream {
    /// Where the connection stands; [`TcpState::Closed`] if it is gone.
    pub fn state(&self) -> TcpState {
        let state = self.stack.state();
        state.conns.named(self.id).map_or(TcpState::Closed, |conn| conn.tcb.state())
    }

    /// Why the connection ended, if not in good order.
    pub fn error(&self) -> Option<ConnectionError> {
        self.stack.state().conns.named(self.id).and_then(|conn| conn.tcb.error())
    }

    /// Bytes that can be read without waiting.
    pub fn readable_bytes(&self) -> usize {
        self.stack.state().conns.named(self.id).map_or(0, |conn| conn.tcb.readable_bytes())
    }

    /// Whether the peer has ended its direction and all it sent was read.
    pub fn read_finished(&self) -> bool {
        self.stack.state().conns.named(self.id).is_none_or(|conn| conn.tcb.recv_finished())
    }

    /// Whether the peer has ended its direction, whatever is still to be read.
    pub fn peer_closed(&self) -> bool {
        self.stack.state().conns.named(self.id).is_none_or(|conn| conn.tcb.peer_closed())
    }

    /// Bytes that were written and are not acknowledged, sent or not.
    pub fn unacked_bytes(&self) -> usize {
        self.stack.state().conns.named(self.id).map_or(0, |conn| conn.tcb.unacked_bytes())
    }

    /// Bytes that were written and never sent.
    pub fn unsent_bytes(&self) -> usize {
        self.stack.state().conns.named(self.id).map_or(0, |conn| conn.tcb.unsent_bytes())
    }

    /// Microseconds since the peer last sent anything.
    pub fn silent_us(&self) -> u64 {
        let state = self.stack.state();
        state.conns.named(self.id).map_or(0, |conn| conn.tcb.silent_us(state.now))
    }

    /// How long there was something to send, and what of that the peer's window held back.
    pub fn send_times(&self) -> millstream_tcp::SendTimes {
        let state = self.stack.state();
        let conn = state.conns.named(self.id);
        conn.map_or_else(Default::default, |conn| conn.tcb.send_times(state.now))
    }

    /// As [`Self::poll_write`], and says how. What is written later without a word counts as said here
    /// last.
    pub fn poll_send(
        &self,
        cx: &mut Context<'_>,
        data: &[u8],
        flags: SendFlags,
    ) -> Poll<std::io::Result<usize>> {
        let written = self.poll_write(cx, data);
        if let Poll::Ready(Ok(count)) = written {
            let mut state = self.stack.state();
            let state = &mut *state;
            if let Some(conn) = state.conns.named_mut(self.id) {
                conn.tcb.set_more(&mut env!(state), flags.more && count > 0);
                if flags.end_of_record {
                    conn.tcb.end_record(&mut state.slices);
                }
            }
        }
        written
    }

    /// Copies bytes that have arrived without taking them; returns how many.
    pub fn peek(&self, out: &mut [u8]) -> usize {
        let state = self.stack.state();
        state.conns.named(self.id).map_or(0, |conn| conn.tcb.peek_into(&state.slices, out))
    }

    /// Holds back less than a full segment (`TCP_CORK`) until this is taken back.
    pub fn set_cork(&self, cork: bool) {
        let mut state = self.stack.state();
        let state = &mut *state;
        if let Some(conn) = state.conns.named_mut(self.id) {
            conn.tcb.set_cork(&mut env!(state), cork);
            // What was held back may go now.
            conn.schedule_output(&mut state.output, self.id.number);
        }
    }

    /// Asks a silent peer whether it is still there (RFC 9293 section 3.8.4), or not.
    pub fn set_keepalive(&self, keepalive: bool) {
        let mut state = self.stack.state();
        let state = &mut *state;
        if let Some(conn) = state.conns.named_mut(self.id) {
            conn.tcb.set_keepalive(&mut env!(state), keepalive);
            conn.rearm(&mut state.wheel, self.id.number);
        }
    }

    /// Whether the handshake is finished; an error if it failed.
    ///
    /// # Errors
    /// How the connection ended.
    pub fn poll_established(&self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let remote = self.peer_addr().unwrap_or(SocketAddr::from(([0; 4], 0)));
        match self.poll_connected(cx, remote) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => Poll::Ready(Err(match self.error() {
                Some(error) => to_io(error),
                None => std::io::ErrorKind::HostUnreachable.into(),
            })),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Whether nothing will be sent or received any more.
    pub fn is_closed(&self) -> bool {
        let state = self.stack.state();
        state.conns.named(self.id).is_none_or(|conn| conn.facts.contains(Facts::CLOSED))
    }
}
