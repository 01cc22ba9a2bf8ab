//! The application's bytes, in and out.

use millstream_buf::IoBuf;
use millstream_wire::tcp::{Header, SeqNumber};

use crate::slab::SliceSlab;
use crate::tcb::{Env, Facts, Marks, Tcb};

/// Why a slice was not queued. It comes back.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The send buffer, or the slab, is full.
    #[error("the send buffer is full; wait until the peer has acknowledged more")]
    Full(IoBuf),
    /// This side has closed, or the connection has ended.
    #[error("the connection is closed for sending; open another one")]
    Closed(IoBuf),
}

/// See [`Tcb::first_window`].
pub(crate) fn first_window(config: &crate::config::Config, mss_limit: u16) -> u32 {
    let (bytes, mss) = (config.recv_buffer_bytes, u32::from(mss_limit));
    if bytes >= 0xffff { 0xffff } else { (bytes / mss * mss).max(bytes.min(mss)) }
}

impl Tcb {
    /// Queues a slice, which is held until it is acknowledged as a whole. Before the handshake is
    /// finished it waits.
    ///
    /// # Errors
    /// [`SendError`], with the slice.
    #[inline]
    pub fn send(&mut self, env: &mut Env<'_>, buf: IoBuf) -> Result<(), SendError> {
        self.facts.remove(Facts::MORE);
        self.marks.remove(Marks::CONTINUED);
        self.queue(env, buf)
    }

    /// As [`Tcb::send`], and says that more follows at once (`MSG_MORE`): less than a full segment
    /// waits for it.
    ///
    /// # Errors
    /// [`SendError`], with the slice.
    #[inline]
    pub fn send_more(&mut self, env: &mut Env<'_>, buf: IoBuf) -> Result<(), SendError> {
        self.queue(env, buf)?;
        self.set_more(env, true);
        Ok(())
    }

    #[inline]
    fn queue(&mut self, env: &mut Env<'_>, buf: IoBuf) -> Result<(), SendError> {
        if !self.state.accepts_data() || self.facts.contains(Facts::FIN_QUEUED) {
            return Err(SendError::Closed(buf));
        }
        if buf.is_empty() {
            return Ok(());
        }
        // The second bound keeps all numbers in play within half of the sequence space.
        if self.send_room(env.config) == 0 || buf.len() > 1 << 29 {
            return Err(SendError::Full(buf));
        }
        self.append(env, buf).map_err(SendError::Full)
    }

    /// As [`Tcb::send`] for a slice of at most the length that [`Tcb::send_room`] has just said; comes
    /// back if the slab is full.
    ///
    /// # Errors
    /// The slice.
    #[inline]
    pub fn push(&mut self, env: &mut Env<'_>, buf: IoBuf) -> Result<(), IoBuf> {
        self.facts.remove(Facts::MORE);
        self.append(env, buf)
    }

    #[inline]
    fn append(&mut self, env: &mut Env<'_>, buf: IoBuf) -> Result<(), IoBuf> {
        let len = buf.len() as u32;
        self.send_queue.push(env.slices, buf, self.snd_end)?;
        if self.first_data() == self.snd_end {
            self.busy_since_ticks = env.now_ticks();
        }
        self.snd_end += len;
        // With nothing in flight, and room for a segment, it can be sent: no timer is needed.
        if self.snd_una == self.snd_max
            && (self.snd_wnd < u32::from(self.mss)
                || self.facts.intersects(Facts::CORK | Facts::MORE))
        {
            self.arm_persist_if_stalled(env);
        }
        Ok(())
    }

    /// Takes the next slice of what has arrived in order, without a copy. May make an ACK due that
    /// opens the window: see [`Tcb::wants_transmit`].
    #[inline]
    pub fn recv(&mut self, env: &mut Env<'_>) -> Option<IoBuf> {
        let buf = self.receive_queue.pop(env.slices)?;
        self.window_may_open(env);
        Some(buf)
    }

    /// Takes what has arrived in order without a copy, `most` slices of it; returns the number of
    /// bytes.
    pub fn recv_all(&mut self, env: &mut Env<'_>, out: &mut Vec<IoBuf>, most: usize) -> usize {
        let before = self.receive_queue.bytes;
        let queue = &mut self.receive_queue;
        out.extend(std::iter::from_fn(|| queue.pop(env.slices)).take(most));
        let count = before - self.receive_queue.bytes;
        if count > 0 {
            self.window_may_open(env);
        }
        count as usize
    }

    /// Copies out what has arrived in order; returns the number of bytes.
    #[inline]
    pub fn recv_into(&mut self, env: &mut Env<'_>, out: &mut [u8]) -> usize {
        let count = self.receive_queue.read(env.slices, out);
        if count > 0 {
            self.window_may_open(env);
        }
        count
    }

    /// Says whether more follows at once on what was queued last (`MSG_MORE`), which [`Tcb::send`] has
    /// taken to be complete. [`Tcb::push`] leaves what was said before.
    pub fn set_more(&mut self, env: &mut Env<'_>, more: bool) {
        self.facts.set(Facts::MORE, more);
        self.marks.set(Marks::CONTINUED, more);
        self.arm_persist_if_stalled(env);
    }

    /// Ends a record with what was queued last (`MSG_EOR`): nothing queued later shares a segment with
    /// it.
    pub fn end_record(&mut self, slices: &mut SliceSlab) {
        self.send_queue.seal(slices);
    }

    /// Copies out what has arrived in order and leaves it there; returns the number of bytes.
    pub fn peek_into(&self, slices: &SliceSlab, out: &mut [u8]) -> usize {
        self.receive_queue.peek(slices, out)
    }

    /// Whether the peer's FIN was taken in order.
    #[inline]
    pub fn peer_closed(&self) -> bool {
        self.facts.contains(Facts::RCV_FIN)
    }

    /// Announces a window that reading has opened, if the peer may be waiting for it: little of the
    /// old one is left, and the new one is twice that and past the receiver's part of silly-window
    /// avoidance (RFC 9293 section 3.8.6.2.2). Otherwise the next ACK tells.
    #[inline]
    fn window_may_open(&mut self, env: &Env<'_>) {
        self.tune_receive_buffer(env);
        let held = self.rcv_adv.bytes_since(self.rcv_nxt);
        if held <= (self.recv_buf_bytes / 8).max(2 * u32::from(self.mss_limit)) {
            self.open_window(env, held);
        }
    }

    fn open_window(&mut self, env: &Env<'_>, held: u32) {
        let room = self.receive_room(env.config);
        let little = (room / 8).max(2 * u32::from(self.mss_limit));
        if self.state.receives()
            && held <= little
            && room / 2 >= held
            && room - held >= self.window_step()
        {
            self.facts.insert(Facts::TX_ACK);
        }
    }

    /// The window of a SYN: a small one holds whole segments, so that the last of them is none that
    /// silly-window avoidance holds back.
    pub(crate) fn first_window(&self, config: &crate::config::Config) -> u32 {
        first_window(config, self.mss_limit)
    }

    /// Least growth of a window that is announced.
    #[inline]
    pub(crate) fn window_step(&self) -> u32 {
        u32::from(self.mss_limit).min(self.recv_buf_bytes / 2)
    }

    /// Whether a segment is the one that data which came ahead of order waits for, and the application
    /// has read all before.
    #[cold]
    pub fn fills_gap(&self, header: &Header<'_>) -> bool {
        header.seq == self.rcv_nxt && !self.reassembly.is_empty() && self.receive_queue.bytes == 0
    }

    /// The next number that is expected of the peer.
    #[inline]
    pub fn rcv_nxt(&self) -> SeqNumber {
        self.rcv_nxt
    }

    /// Bytes that may still come: what the buffer holds, or what the slices left can hold if each
    /// gets a full segment, or what a window field can say.
    #[inline]
    pub(crate) fn receive_room(&self, config: &crate::config::Config) -> u32 {
        let bytes = self.recv_buf_bytes.saturating_sub(self.receive_queue.bytes);
        let held = self.receive_queue.slices + self.reassembly.slices;
        let slices = self.recv_slices_max(config).saturating_sub(held);
        bytes.min(slices.saturating_mul(u32::from(self.mss_limit))).min(0xffff << self.rcv_scale)
    }
}
