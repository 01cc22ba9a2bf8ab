//! TCP sockets as the application sees them.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use millstream_buf::{Agg, FRAME_BYTES, IoBuf, Staging};
use millstream_disk::File;
use millstream_tcp::{Algorithm, ConnectionError, Env, State as TcpState, TcpInfo};

use crate::config::DiskNet;
use crate::conn::{Conn, ConnId, Facts, NONE};
use crate::splice::SendFileError;
use crate::stack::{ConnectError, Stack};
use crate::state::env;

/// Takes the connections that peers open on a port.
pub struct TcpListener {
    pub(crate) stack: Stack,
    pub(crate) number: u16,
}

impl TcpListener {
    pub(crate) fn new(stack: Stack, number: u16) -> Self {
        Self { stack, number }
    }

    /// The address that it listens on.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.stack.state().listener_mut(u32::from(self.number)).map(|listener| listener.address)
    }

    /// Chooses the congestion controller of the connections that are opened from now on, in place
    /// of that of the stack's configuration.
    pub fn set_congestion(&self, algorithm: Algorithm) {
        if let Some(listener) = self.stack.state().listener_mut(u32::from(self.number)) {
            listener.congestion = Some(algorithm);
        }
    }

    /// Waits for a connection.
    pub async fn accept(&self) -> (TcpStream, SocketAddr) {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// The polled form of [`Self::accept`].
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<(TcpStream, SocketAddr)> {
        let mut state = self.stack.state();
        let state = &mut *state;
        let listener = state.listeners.get_mut(usize::from(self.number)).and_then(Option::as_mut);
        let Some(listener) = listener else { return Poll::Pending };
        while let Some(id) = listener.accept.pop_front() {
            if let Some(conn) = state.conns.named(id) {
                let (_, peer) = state.endpoints(&conn.key);
                return Poll::Ready((TcpStream::new(self.stack.clone(), id), peer));
            }
        }
        listener.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        self.stack.state().unlisten(self.number);
    }
}

/// A TCP connection.
///
/// All calls take `&self`: one task may read while another writes. Dropping it closes the
/// connection in good order, or resets it if received data was left unread.
pub struct TcpStream {
    pub(crate) stack: Stack,
    pub(crate) id: ConnId,
}

impl TcpStream {
    pub(crate) fn new(stack: Stack, id: ConnId) -> Self {
        Self { stack, id }
    }

    /// Reads what has arrived into `out`; waits if nothing has. 0 is the end of the stream. The
    /// bytes are copied: see [`Self::read_buf`].
    ///
    /// # Errors
    /// How the connection ended, if not in good order.
    pub fn read(&self, out: &mut [u8]) -> impl Future<Output = io::Result<usize>> {
        poll_fn(|cx| self.poll_read(cx, out))
    }

    /// The polled form of [`Self::read`].
    #[inline]
    pub fn poll_read(&self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        if out.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut state = self.stack.state();
        let state = &mut *state;
        loop {
            let Some(conn) = state.conns.named_mut(self.id) else { return gone() };
            let count = conn.tcb.recv_into(&mut env!(state), out);
            if count > 0 {
                state.metrics.copied_api_bytes += count as u64;
                after_recv(conn, &mut state.output, self.id.number);
                return Poll::Ready(Ok(count));
            }
            if !conn.waits_for_reader() {
                return wait_to_read(conn, cx, 0);
            }
            state.extract(self.id.number, usize::MAX);
        }
    }

    /// Takes the next slice that has arrived, as it lies in the received frame; waits if there is
    /// none. `None` is the end of the stream.
    ///
    /// # Errors
    /// How the connection ended, if not in good order.
    pub fn read_buf(&self) -> impl Future<Output = io::Result<Option<IoBuf>>> {
        poll_fn(|cx| self.poll_read_buf(cx))
    }

    /// The polled form of [`Self::read_buf`].
    #[inline]
    pub fn poll_read_buf(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<IoBuf>>> {
        let mut state = self.stack.state();
        let state = &mut *state;
        loop {
            let Some(conn) = state.conns.named_mut(self.id) else { return gone() };
            if let Some(buf) = conn.tcb.recv(&mut env!(state)) {
                after_recv(conn, &mut state.output, self.id.number);
                return Poll::Ready(Ok(Some(buf)));
            }
            if !conn.waits_for_reader() {
                return wait_to_read(conn, cx, None);
            }
            state.extract(self.id.number, usize::MAX);
        }
    }

    /// Takes all that has arrived, without a copy: appends slices to `out`, at least one, and as many
    /// as its capacity holds. Waits for something. Returns how many bytes they have; 0 at the end of
    /// the stream.
    ///
    /// # Errors
    /// As [`Self::read_buf`].
    pub fn read_bufs(&self, out: &mut Vec<IoBuf>) -> impl Future<Output = io::Result<usize>> {
        poll_fn(|cx| self.poll_read_bufs(cx, out))
    }

    /// The polled form of [`Self::read_bufs`].
    pub fn poll_read_bufs(
        &self,
        cx: &mut Context<'_>,
        out: &mut Vec<IoBuf>,
    ) -> Poll<io::Result<usize>> {
        let mut state = self.stack.state();
        let state = &mut *state;
        let Some(conn) = state.conns.named_mut(self.id) else { return gone() };
        let room = (out.capacity() - out.len()).max(1);
        let count = conn.tcb.recv_all(&mut env!(state), out, room);
        if count == 0 {
            return wait_to_read(conn, cx, 0);
        }
        after_recv(conn, &mut state.output, self.id.number);
        Poll::Ready(Ok(count))
    }

    /// Copies bytes from `data` into the send queue, at least one; waits for room. Returns how many.
    /// Afterwards `data` is the caller's own again: what is sent cannot change.
    ///
    /// # Errors
    /// How the connection ended, or `BrokenPipe` after [`Self::shutdown`].
    pub fn write(&self, data: &[u8]) -> impl Future<Output = io::Result<usize>> {
        poll_fn(|cx| self.poll_write(cx, data))
    }

    /// Copies all of `data` into the send queue.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_all(&self, data: &[u8]) -> impl Future<Output = io::Result<()>> {
        let mut rest = data;
        poll_fn(move |cx| {
            while !rest.is_empty() {
                match self.poll_write(cx, rest) {
                    Poll::Ready(Ok(count)) => rest = rest.get(count..).unwrap_or_default(),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(Ok(()))
        })
    }

    /// The polled form of [`Self::write`].
    #[inline]
    pub fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.stack.state();
        let state = &mut *state;
        let Some(conn) = state.conns.named_mut(self.id) else { return gone() };
        let room = match writable(conn, &state.tcp_config) {
            Ok(0) => return wait_to_write(conn, cx),
            Ok(room) => room,
            Err(error) => return Poll::Ready(Err(error)),
        };
        let data = data.get(..room).unwrap_or(data);
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // What fits the rest of the current buffer is what most writes are.
        let count = if let Some(slice) = state.staging.put_short(data) {
            if conn.tcb.push(&mut env!(state), slice).is_ok() { data.len() } else { 0 }
        } else {
            write_pieces(
                conn,
                &mut env!(state),
                &mut state.staging,
                &mut state.staging_blocks,
                data,
            )
        };
        if count > 0 {
            state.metrics.copied_api_bytes += count as u64;
            conn.schedule_output(&mut state.output, self.id.number);
            return Poll::Ready(Ok(count));
        }
        // No buffer or no slice is free in the whole shard.
        conn.park(&mut state.splices.writers, self.id.number);
        wait_to_write(conn, cx)
    }

    /// Queues slices for sending without copying them; waits for room. The buffers are held until
    /// the peer has acknowledged them.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn send_buf(&self, data: impl Into<Agg>) -> io::Result<()> {
        let mut data = data.into();
        while let Some(mut slice) = data.pop_front() {
            while !slice.is_empty() {
                poll_fn(|cx| self.poll_send_buf(cx, &mut slice)).await?;
            }
        }
        Ok(())
    }

    /// Queues as much of a slice as there is room for and takes that off its front.
    pub fn poll_send_buf(&self, cx: &mut Context<'_>, slice: &mut IoBuf) -> Poll<io::Result<()>> {
        let mut state = self.stack.state();
        let state = &mut *state;
        let Some(conn) = state.conns.named_mut(self.id) else { return gone() };
        let room = match writable(conn, &state.tcp_config) {
            Ok(room) => room,
            Err(error) => return Poll::Ready(Err(error)),
        };
        if room == 0 {
            return wait_to_write(conn, cx);
        }
        let count = slice.len().min(room);
        if conn.tcb.send(&mut env!(state), slice.slice(0..count)).is_err() {
            conn.park(&mut state.splices.writers, self.id.number);
            return wait_to_write(conn, cx);
        }
        slice.advance(count);
        conn.schedule_output(&mut state.output, self.id.number);
        Poll::Ready(Ok(()))
    }

    /// Sends bytes `range` of `file`, read from the disk as the peer's window takes them, without
    /// copying. Ends when the peer has acknowledged the last byte. What was written before goes
    /// first; nothing may be written meanwhile. Dropping the future does not stop the transfer.
    ///
    /// # Errors
    /// [`SendFileError`]
    pub async fn send_file(&self, file: &File, range: Range<u64>) -> Result<(), SendFileError> {
        if self.stack.state().disk_net == DiskNet::ReadSend {
            return Box::pin(self.read_and_send(file, range)).await;
        }
        let number = self.stack.state().splice_start(self.id, file.clone(), range)?;
        let waiting = Waiting { stack: self.stack.clone(), number };
        poll_fn(|cx| {
            let mut state = self.stack.state();
            if let Some(outcome) = state.splice_outcome(waiting.number) {
                return Poll::Ready(match outcome {
                    // The connection knows better why it ended.
                    Err(SendFileError::Connection(other)) => {
                        let error = state.conns.named(self.id).and_then(|c| c.tcb.error());
                        Err(SendFileError::Connection(error.map_or(other, to_io)))
                    }
                    other => other,
                });
            }
            state.splice_wake(waiting.number, cx.waker());
            Poll::Pending
        })
        .await
    }

    /// Ends our direction: the peer sees the end of the stream after all that was written, a file
    /// that is being sent included.
    pub fn shutdown(&self) {
        let mut state = self.stack.state();
        let state = &mut *state;
        if let Some(conn) = state.conns.named_mut(self.id) {
            if conn.splice != NONE {
                conn.facts.insert(Facts::SHUTDOWN_AFTER_FILE);
                return;
            }
            conn.tcb.close(&mut env!(state));
            state.settle(self.id.number);
        }
    }

    /// Stream bytes that the peer has acknowledged since the connection was opened: what a watchdog
    /// over a slow peer looks at.
    pub fn acked_total(&self) -> u64 {
        self.stack.state().conns.named(self.id).map_or(0, |conn| conn.tcb.acked_total())
    }

    /// Ends the connection at once with a reset; what was not sent is lost.
    pub fn abort(&self) {
        let mut state = self.stack.state();
        let state = &mut *state;
        if let Some(conn) = state.conns.named_mut(self.id) {
            conn.tcb.abort(&mut env!(state));
            state.splice_abandon(self.id.number);
            state.settle(self.id.number);
        }
    }

    /// Waits until the peer has acknowledged all that was written.
    ///
    /// # Errors
    /// How the connection ended before that.
    pub async fn flushed(&self) -> io::Result<()> {
        poll_fn(|cx| {
            let mut state = self.stack.state();
            let Some(conn) = state.conns.named_mut(self.id) else { return gone() };
            if conn.splice == NONE && conn.tcb.acked_total() >= conn.tcb.queued_total() {
                return Poll::Ready(Ok(()));
            }
            match conn.tcb.error() {
                Some(error) => Poll::Ready(Err(to_io(error))),
                None if conn.facts.contains(Facts::CLOSED) => gone(),
                None => {
                    register_writer(conn, cx);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Send small segments at once (no Nagle algorithm, RFC 9293 section 3.7.4).
    pub fn set_nodelay(&self, nodelay: bool) {
        let mut state = self.stack.state();
        let state = &mut *state;
        if let Some(conn) = state.conns.named_mut(self.id) {
            conn.tcb.set_nodelay(nodelay);
            // What was held back may go now.
            conn.schedule_output(&mut state.output, self.id.number);
        }
    }

    /// Takes another congestion controller than that of the stack's configuration. To be called
    /// before data is acknowledged: after that it has no effect.
    pub fn set_congestion(&self, algorithm: Algorithm) {
        let mut state = self.stack.state();
        let state = &mut *state;
        if let Some(conn) = state.conns.named_mut(self.id) {
            conn.tcb.set_congestion(&mut env!(state), algorithm);
        }
    }

    /// Our end.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        let state = self.stack.state();
        state.conns.named(self.id).map(|conn| state.endpoints(&conn.key).0)
    }

    /// The peer's end.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        let state = self.stack.state();
        state.conns.named(self.id).map(|conn| state.endpoints(&conn.key).1)
    }

    /// What TCP knows of the path.
    pub fn info(&self) -> Option<TcpInfo> {
        let state = self.stack.state();
        state.conns.named(self.id).map(|conn| conn.tcb.info_in(&state.slices))
    }

    /// The shard that it lives on.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    pub(crate) fn poll_connected(
        &self,
        cx: &mut Context<'_>,
        remote: SocketAddr,
    ) -> Poll<Result<(), ConnectError>> {
        let mut state = self.stack.state();
        let Some(conn) = state.conns.named_mut(self.id) else {
            return Poll::Ready(Err(ConnectError::Unreachable(remote)));
        };
        if conn.facts.contains(Facts::ESTABLISHED) {
            return Poll::Ready(Ok(()));
        }
        match conn.tcb.error() {
            Some(ConnectionError::Refused | ConnectionError::Reset) => {
                Poll::Ready(Err(ConnectError::Refused(remote)))
            }
            Some(ConnectionError::TimedOut) => Poll::Ready(Err(ConnectError::TimedOut(remote))),
            Some(_) => Poll::Ready(Err(ConnectError::Unreachable(remote))),
            None if conn.facts.contains(Facts::CLOSED) => {
                Poll::Ready(Err(ConnectError::Unreachable(remote)))
            }
            None => {
                register_writer(conn, cx);
                Poll::Pending
            }
        }
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.stack.state().let_go(self.id);
    }
}

/// Lets a transfer go on alone when its future is dropped.
struct Waiting {
    stack: Stack,
    number: u32,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.stack.state().splice_detach(self.number);
    }
}

impl futures_io::AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        TcpStream::poll_read(&self, cx, out)
    }
}

impl futures_io::AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        TcpStream::poll_write(&self, cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is written is sent in the same turn of the loop.
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shutdown();
        Poll::Ready(Ok(()))
    }
}

/// The answer for a connection that is no more.
pub(crate) fn gone<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

#[cold]
pub(crate) fn to_io(error: ConnectionError) -> io::Error {
    let kind = match error {
        ConnectionError::Reset => io::ErrorKind::ConnectionReset,
        ConnectionError::Refused => io::ErrorKind::ConnectionRefused,
        ConnectionError::TimedOut => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::HostUnreachable,
    };
    io::Error::new(kind, error)
}

/// Copies `data`, for which TCP has room, into as many buffers as it takes. Returns how many bytes found
/// one.
#[inline(never)]
fn write_pieces(
    conn: &mut Conn,
    env: &mut Env<'_>,
    frames: &mut Staging,
    blocks: &mut Staging,
    data: &[u8],
) -> usize {
    let mut rest = data;
    while !rest.is_empty() {
        let large = rest.len() > FRAME_BYTES;
        let (fitting, other) =
            if large { (&mut *blocks, &mut *frames) } else { (&mut *frames, &mut *blocks) };
        // A buffer of the other size does too: who waits is woken when there is either.
        let Some(slice) = fitting.put(rest).or_else(|| other.put(rest)) else { break };
        let len = slice.len();
        if conn.tcb.push(env, slice).is_err() {
            break;
        }
        rest = rest.get(len..).unwrap_or_default();
    }
    data.len() - rest.len()
}

/// Reading may have opened the window enough to tell the peer.
#[inline]
fn after_recv(conn: &mut Conn, output: &mut VecDeque<u32>, number: u32) {
    if conn.tcb.owes_ack() {
        conn.schedule_output(output, number);
    }
}

/// Nothing to read: the end, an error, or wait.
#[inline]
fn wait_to_read<T>(conn: &mut Conn, cx: &Context<'_>, end: T) -> Poll<io::Result<T>> {
    if conn.tcb.recv_finished() {
        return Poll::Ready(Ok(end));
    }
    if let Some(error) = conn.tcb.error() {
        return Poll::Ready(Err(to_io(error)));
    }
    if conn.facts.contains(Facts::CLOSED) {
        return Poll::Ready(Ok(end));
    }
    register(&mut conn.read_waker, cx);
    conn.facts.insert(Facts::READ_WAITING);
    Poll::Pending
}

/// Bytes that may be queued now: 0 means wait.
#[inline]
fn writable(conn: &Conn, config: &millstream_tcp::Config) -> io::Result<usize> {
    if let Some(error) = conn.tcb.error() {
        return Err(to_io(error));
    }
    match conn.tcb.state() {
        TcpState::Established | TcpState::CloseWait if conn.splice == NONE => {
            Ok(conn.tcb.send_room(config))
        }
        TcpState::Established | TcpState::CloseWait | TcpState::SynSent | TcpState::SynReceived => {
            Ok(0)
        }
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

fn wait_to_write<T>(conn: &mut Conn, cx: &Context<'_>) -> Poll<io::Result<T>> {
    register_writer(conn, cx);
    Poll::Pending
}

pub(crate) fn register_writer(conn: &mut Conn, cx: &Context<'_>) {
    register(&mut conn.write_waker, cx);
    conn.facts.insert(Facts::WRITE_WAITING);
}

/// Keeps the waker that is there if it wakes the same task: no reference is counted then.
#[inline]
fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}
