//! Rate and window (section 5.6).

use super::{
    Ack, Bbr, HEADROOM_PERCENT, INFINITE, MIN_PIPE_SEGMENTS, PACING_MARGIN_PERCENT,
    PROBE_RTT_CWND_GAIN, RATE_MAX, STARTUP_PACING_GAIN, State, Window, initial_rate, part,
};
use crate::congestion::CWND_MAX;

impl Bbr {
    /// Pacing gain in per cent (the table of section 5.6.1).
    fn pacing_gain(&self) -> u64 {
        match self.state {
            State::Startup => STARTUP_PACING_GAIN,
            State::Drain => 50,
            State::Down => 90,
            State::Cruise | State::Refill | State::ProbeRtt => 100,
            State::Up => 125,
        }
    }

    /// Window gain in per cent.
    fn cwnd_gain(&self) -> u64 {
        match self.state {
            State::Up => 225,
            State::ProbeRtt => PROBE_RTT_CWND_GAIN,
            _ => 200,
        }
    }

    /// Section 5.6.2.
    pub(super) fn set_pacing_rate(&mut self, ack: &Ack) {
        if !self.has_rtt && ack.srtt_us > 0 {
            self.has_rtt = true;
            self.pacing_rate = initial_rate(self.initial_cwnd, ack.srtt_us);
        }
        self.set_pacing_rate_with_gain(self.pacing_gain());
    }

    /// Until the pipe is full, only upwards: samples that the application limits tell nothing.
    pub(super) fn set_pacing_rate_with_gain(&mut self, gain: u64) {
        let rate = self.bw.min(RATE_MAX) * gain / 100 * (100 - PACING_MARGIN_PERCENT) / 100;
        if self.bw > 0 && (self.full_bw_reached || rate > self.pacing_rate) {
            self.pacing_rate = rate;
        }
    }

    /// Section 5.6.3: a millisecond's worth, from two segments to 64 KiB.
    pub(super) fn set_send_quantum(&mut self, mss: u32) {
        let quantum = (self.pacing_rate / 1000).min(64 * 1024) as u32;
        self.send_quantum = quantum.max(mss.saturating_mul(2));
    }

    fn min_pipe(&self, mss: u32) -> u32 {
        mss.saturating_mul(MIN_PIPE_SEGMENTS)
    }

    /// QuantizationBudget (section 5.6.4.2): room for what waits in ends that work in lumps.
    fn quantized(&self, inflight: u32, mss: u32) -> u32 {
        let floor = self.send_quantum.saturating_mul(3).max(self.min_pipe(mss));
        let probing = if self.state == State::Up { mss.saturating_mul(2) } else { 0 };
        inflight.max(floor).saturating_add(probing)
    }

    /// Inflight: what keeps the pipe full, by a gain in per cent.
    pub(super) fn inflight(&self, bw: u64, gain: u64, mss: u32) -> u32 {
        self.quantized(self.bdp_multiple(bw, gain), mss)
    }

    /// InflightWithHeadroom.
    pub(super) fn inflight_with_headroom(&self, mss: u32) -> u32 {
        if self.inflight_longterm == INFINITE {
            return INFINITE;
        }
        let headroom = part(self.inflight_longterm, HEADROOM_PERCENT).max(mss);
        self.inflight_longterm.saturating_sub(headroom).max(self.min_pipe(mss))
    }

    /// ProbeRTTCwnd (section 5.6.4.5).
    pub(super) fn probe_rtt_cwnd(&self, mss: u32) -> u32 {
        self.bdp_multiple(self.bw, PROBE_RTT_CWND_GAIN).max(self.min_pipe(mss))
    }

    /// Section 5.6.4.6, SetCwnd: down at once, up by what is delivered.
    pub(super) fn set_cwnd(&mut self, window: &mut Window, ack: &Ack) {
        let wanted =
            self.bdp_multiple(self.bw, self.cwnd_gain()).saturating_add(self.extra_acked.get());
        let max_inflight = self.quantized(wanted, ack.mss);
        let grown = window.cwnd.saturating_add(ack.delivered);
        if self.full_bw_reached {
            window.cwnd = grown.min(max_inflight);
        } else if window.cwnd < max_inflight || ack.total_delivered < u64::from(self.initial_cwnd) {
            window.cwnd = grown;
        }
        window.cwnd = window.cwnd.max(self.min_pipe(ack.mss));
        if self.state == State::ProbeRtt {
            window.cwnd = window.cwnd.min(self.probe_rtt_cwnd(ack.mss));
        }
        // Section 5.6.4.7, BoundCwndForModel.
        let cap = match self.state {
            State::Down | State::Refill | State::Up => self.inflight_longterm,
            State::ProbeRtt | State::Cruise => self.inflight_with_headroom(ack.mss),
            State::Startup | State::Drain => INFINITE,
        };
        let cap = cap.min(self.inflight_shortterm).max(self.min_pipe(ack.mss));
        window.cwnd = window.cwnd.min(cap).min(CWND_MAX);
    }
}
