//! Buffers that grow with what a path and its application make of them.

use millstream_wire::tcp::SeqNumber;

use crate::config::Config;
use crate::tcb::{Env, TICK_NANOS, Tcb};

/// The round trip of a path that was never measured.
const UNKNOWN_RTT_US: u64 = 100_000;

impl Tcb {
    /// What the application read last: behind that number.
    #[inline]
    fn copied_seq(&self) -> SeqNumber {
        self.rcv_nxt - self.receive_queue.bytes
    }

    /// The receive buffer that a new connection begins with.
    pub(crate) fn begin_buffers(&mut self, env: &Env<'_>) {
        self.tune_seq = self.rcv_nxt;
        self.tune_ticks = env.now_ticks() as u16;
        self.tune_bytes = (10 * u32::from(self.rcv_mss.max(self.mss))).min(self.recv_buf_bytes);
    }

    /// Called when the application has read. More than twice of what it reads in a round trip must
    /// fit, so that a sender in slow start never waits for the window.
    #[inline]
    pub(crate) fn tune_receive_buffer(&mut self, env: &Env<'_>) {
        if self.copied_seq().bytes_since(self.tune_seq) > self.tune_bytes {
            self.grow_receive_buffer(env);
        }
    }

    #[cold]
    fn grow_receive_buffer(&mut self, env: &Env<'_>) {
        let copied_seq = self.copied_seq();
        let copied = u64::from(copied_seq.bytes_since(self.tune_seq));
        let ticks = env.now_ticks() as u16;
        let took = ticks.wrapping_sub(self.tune_ticks).max(1);
        let took_us = u64::from(took) * TICK_NANOS / 1000;
        let rtt_us = match self.rtt.srtt_us() {
            0 => UNKNOWN_RTT_US,
            srtt_us => u64::from(srtt_us),
        };
        if took_us < rtt_us {
            return;
        }
        self.tune_seq = copied_seq;
        self.tune_ticks = ticks;
        // A slow reader's share of a round trip.
        let copied = copied * rtt_us / took_us;
        let copied = copied.min(1 << 30) as u32;
        if copied <= self.tune_bytes {
            return;
        }
        // In slow start what comes doubles with each round trip: as much again as the growth.
        let growth = u64::from(copied - self.tune_bytes) * 2 * u64::from(copied);
        let growth = (growth / u64::from(self.tune_bytes.max(1))).min(1 << 30) as u32;
        let wanted = 2 * copied + 16 * u32::from(self.mss_limit) + growth;
        self.tune_bytes = copied;
        let most = env.config.recv_buffer_max_bytes.min(1 << 30);
        if wanted > self.recv_buf_bytes && self.recv_buf_bytes < most {
            self.recv_buf_bytes = wanted.min(most);
        }
    }

    /// Slices that may be held: in proportion with the buffer.
    #[inline]
    pub(crate) fn recv_slices_max(&self, config: &Config) -> u32 {
        let slices = u32::from(config.recv_slices_max);
        if self.recv_buf_bytes <= config.recv_buffer_bytes {
            return slices;
        }
        self.grown_slices_max(config, slices)
    }

    #[cold]
    fn grown_slices_max(&self, config: &Config, slices: u32) -> u32 {
        let grown = u64::from(slices) * u64::from(self.recv_buf_bytes);
        (grown / u64::from(config.recv_buffer_bytes.max(1))).min(1 << 20) as u32
    }

    /// Bytes that the application may queue: twice the congestion window, within bounds, so that
    /// there is always a window's worth to send when a window's worth is acknowledged.
    #[inline]
    pub(crate) fn send_buf_bytes(&self, config: &Config) -> u32 {
        let most = config.send_buffer_max_bytes.max(config.send_buffer_bytes).min(1 << 30);
        self.window.cwnd.saturating_mul(2).clamp(config.send_buffer_bytes.min(1 << 30), most)
    }
}
