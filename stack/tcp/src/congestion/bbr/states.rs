//! The state machine (section 5.3).

use super::{
    Ack, AckPhase, BETA_PERCENT, Bbr, INFINITE, PROBE_RTT_DURATION_US, STARTUP_FULL_ECN_COUNT,
    STARTUP_FULL_LOSS_COUNT, Sample, State, Window, part,
};
use crate::congestion::CWND_MAX;

/// Most rounds between probes, for NewReno's sake (section 5.3.3.8.1).
const RENO_ROUNDS_MAX: u32 = 63;

impl Bbr {
    /// Section 5.3.1, CheckStartupDone.
    pub(super) fn check_startup_done(&mut self, ack: &Ack, sample: &Sample) {
        self.check_startup_congestion(ack, sample);
        self.forget_round();
        if self.state == State::Startup && self.full_bw_reached {
            self.state = State::Drain;
            self.drain_start_round = self.round_count;
        }
    }

    /// Section 5.3.1.3: a round with many losses means that the pipe is full.
    fn check_startup_congestion(&mut self, ack: &Ack, sample: &Sample) {
        if self.state != State::Startup || self.full_bw_reached || !self.loss_round_start {
            return;
        }
        let losses = ack.in_recovery
            && self.loss_events_in_round >= STARTUP_FULL_LOSS_COUNT
            && self.is_inflight_too_high(sample);
        if losses || self.ecn_rounds >= STARTUP_FULL_ECN_COUNT {
            self.undo.state = Some(State::Startup);
            self.full_bw_reached = true;
            let bdp = self.bdp_multiple(self.max_bw.get(), 100);
            self.inflight_longterm = bdp.max(self.inflight_latest).min(CWND_MAX);
        }
    }

    /// Section 5.3.2, CheckDrainDone.
    pub(super) fn check_drain_done(&mut self, ack: &Ack) {
        if self.state != State::Drain {
            return;
        }
        let rounds = self.round_count.wrapping_sub(self.drain_start_round);
        if ack.flight <= self.inflight(self.bw, 100, ack.mss) || rounds > 3 {
            self.start_down(ack);
        }
    }

    fn start_down(&mut self, ack: &Ack) {
        self.reset_congestion_signals();
        self.probe_up_acked_per_inc = INFINITE;
        // PickProbeWait: two to three seconds, and one round more or less.
        self.rounds_since_probe = self.random_below(2, ack.now_us);
        self.probe_wait_us = 2_000_000 + u64::from(self.random_below(1_000_000, ack.now_us));
        self.cycle_at_us = ack.now_us;
        self.ack_phase = AckPhase::ProbeStopping;
        self.next_round_delivered = ack.total_delivered;
        self.state = State::Down;
    }

    /// Another round begins when so much is delivered.
    pub(super) fn start_refill(&mut self, delivered: u64) {
        self.reset_short_term_model();
        self.probe_up_rounds = 0;
        self.probe_up_acked = 0;
        self.prev_probe_precautionary = false;
        self.ack_phase = AckPhase::Refilling;
        self.next_round_delivered = delivered;
        self.state = State::Refill;
    }

    fn start_up(&mut self, window: &Window, ack: &Ack, sample: &Sample) {
        self.ack_phase = AckPhase::ProbeStarting;
        self.next_round_delivered = ack.total_delivered;
        self.reset_full_bw();
        self.full_bw = sample.rate;
        self.state = State::Up;
        self.raise_slope(window, ack.mss);
    }

    /// Section 5.3.3.9, UpdateProbeBWCyclePhase.
    pub(super) fn update_probe_bw_cycle(
        &mut self,
        window: &Window,
        ack: &Ack,
        sample: &Sample,
        marked: bool,
    ) {
        if !self.full_bw_reached || self.adapt_long_term_model(window, ack, sample, marked) {
            return;
        }
        match self.state {
            State::Down => {
                if self.is_time_to_probe(window, ack) {
                    self.start_refill(ack.total_delivered);
                } else if ack.flight <= self.inflight_with_headroom(ack.mss)
                    && ack.flight <= self.inflight(self.max_bw.get(), 100, ack.mss)
                {
                    self.state = State::Cruise;
                }
            }
            State::Cruise => {
                if self.is_time_to_probe(window, ack) {
                    self.start_refill(ack.total_delivered);
                }
            }
            State::Refill => {
                if self.round_start {
                    self.bw_probe_sample = true;
                    self.start_up(window, ack, sample);
                }
            }
            State::Up => {
                if self.is_time_to_go_down(window, ack, sample) {
                    self.prev_probe_too_high = false;
                    self.start_down(ack);
                }
            }
            State::Startup | State::Drain | State::ProbeRtt => {}
        }
    }

    /// Section 5.3.3.8.3: after two to three seconds, or as many rounds as NewReno would need.
    fn is_time_to_probe(&self, window: &Window, ack: &Ack) -> bool {
        let reno_rounds = (self.target_inflight(window) / ack.mss.max(1)).min(RENO_ROUNDS_MAX);
        ack.now_us > self.cycle_at_us.saturating_add(self.probe_wait_us)
            || self.rounds_since_probe >= reno_rounds
    }

    /// Section 5.3.3.7, IsTimeToGoDown.
    fn is_time_to_go_down(&mut self, window: &Window, ack: &Ack, sample: &Sample) -> bool {
        if self.prev_probe_too_high && ack.flight >= self.inflight_longterm {
            self.prev_probe_precautionary = true;
            return true;
        }
        if ack.cwnd_limited && window.cwnd >= self.inflight_longterm {
            self.reset_full_bw();
            self.full_bw = sample.rate;
            return false;
        }
        self.full_bw_now
    }

    /// RaiseInflightLongtermSlope: twice as steep each round.
    fn raise_slope(&mut self, window: &Window, mss: u32) {
        let growth = 1u32 << self.probe_up_rounds;
        self.probe_up_rounds = (self.probe_up_rounds + 1).min(30);
        self.probe_up_acked_per_inc = (window.cwnd / growth).max(mss).max(1);
    }

    /// ProbeInflightLongtermUpward.
    fn probe_upward(&mut self, window: &Window, ack: &Ack) {
        if !ack.cwnd_limited || window.cwnd < self.inflight_longterm {
            return;
        }
        self.probe_up_acked = self.probe_up_acked.saturating_add(ack.delivered);
        let steps = self.probe_up_acked / self.probe_up_acked_per_inc;
        self.probe_up_acked -= steps * self.probe_up_acked_per_inc;
        self.inflight_longterm =
            self.inflight_longterm.saturating_add(steps.saturating_mul(ack.mss)).min(CWND_MAX);
        if self.round_start {
            self.raise_slope(window, ack.mss);
        }
    }

    /// AdaptLongTermModel. `true`: the next state is decided.
    fn adapt_long_term_model(
        &mut self,
        window: &Window,
        ack: &Ack,
        sample: &Sample,
        marked: bool,
    ) -> bool {
        if self.ack_phase == AckPhase::ProbeStarting && self.round_start {
            self.ack_phase = AckPhase::ProbeFeedback;
        }
        if self.ack_phase == AckPhase::ProbeStopping && self.round_start {
            self.bw_probe_sample = false;
            self.ack_phase = AckPhase::Init;
            if self.is_in_probe_bw() && !sample.app_limited {
                self.max_bw.advance();
            }
            // Section 5.3.3.6: the cautious probe did no harm, so that a whole one follows.
            if self.is_in_probe_bw() && self.prev_probe_precautionary && !self.prev_probe_too_high {
                self.start_refill(ack.total_delivered);
                return true;
            }
        }
        if self.is_inflight_too_high(sample) || marked {
            return self.bw_probe_sample && self.handle_inflight_too_high(window, ack, sample);
        }
        if self.inflight_longterm != INFINITE {
            self.inflight_longterm = self.inflight_longterm.max(sample.tx_flight.min(CWND_MAX));
            if self.state == State::Up {
                self.probe_upward(window, ack);
            }
        }
        false
    }

    /// HandleInflightTooHigh. `true`: the next state is decided.
    fn handle_inflight_too_high(&mut self, window: &Window, ack: &Ack, sample: &Sample) -> bool {
        self.prev_probe_too_high = true;
        self.bw_probe_sample = false;
        if !sample.app_limited {
            let least = part(self.target_inflight(window), BETA_PERCENT);
            self.inflight_longterm = sample.tx_flight.max(least).min(CWND_MAX);
        }
        if self.state == State::Up {
            self.undo.state = Some(State::Up);
            self.start_down(ack);
            return true;
        }
        false
    }

    /// Section 5.3.4.3, CheckProbeRTT.
    pub(super) fn check_probe_rtt(&mut self, window: &mut Window, ack: &Ack) {
        if self.state != State::ProbeRtt && self.probe_rtt_expired && !self.idle_restart {
            self.save_cwnd(window);
            self.state = State::ProbeRtt;
            self.probe_rtt_done_us = None;
            self.ack_phase = AckPhase::ProbeStopping;
            self.next_round_delivered = ack.total_delivered;
            self.probe_rtt_delivered = Some((ack.total_delivered, ack.total_delivered));
        }
        if self.state == State::ProbeRtt {
            self.handle_probe_rtt(window, ack);
        }
        if ack.delivered > 0 {
            self.idle_restart = false;
        }
    }

    /// HandleProbeRTT.
    fn handle_probe_rtt(&mut self, window: &mut Window, ack: &Ack) {
        if let Some((_, to)) = &mut self.probe_rtt_delivered {
            *to = ack.total_delivered.saturating_add(u64::from(ack.flight));
        }
        match self.probe_rtt_done_us {
            None => {
                if ack.flight <= self.probe_rtt_cwnd(ack.mss) {
                    self.probe_rtt_done_us = Some(ack.now_us.saturating_add(PROBE_RTT_DURATION_US));
                    self.probe_rtt_round_done = false;
                    self.next_round_delivered = ack.total_delivered;
                }
            }
            Some(done_us) => {
                self.probe_rtt_round_done |= self.round_start;
                if self.probe_rtt_round_done && ack.now_us > done_us {
                    self.exit_probe_rtt(window, ack);
                }
            }
        }
    }

    /// CheckProbeRTTDone's end, and ExitProbeRTT.
    fn exit_probe_rtt(&mut self, window: &mut Window, ack: &Ack) {
        self.probe_rtt_min_at_us = ack.now_us;
        self.restore_cwnd(window);
        self.reset_short_term_model();
        if self.full_bw_reached {
            // What is in flight is below the bandwidth-delay product already.
            self.start_down(ack);
            self.state = State::Cruise;
        } else {
            self.state = State::Startup;
        }
    }
}
