//! What ACKs tell of the path (section 5.5).

use super::{
    Ack, BETA_PERCENT, Bbr, EXTRA_ACKED_ROUNDS, INFINITE, INFINITE_RATE, LOSS_THRESH_PERCENT,
    MIN_RTT_FILTER_US, PACING_MARGIN_PERCENT, PROBE_RTT_INTERVAL_US, RATE_MAX, Sample, Window,
    part,
};
use crate::congestion::CWND_MAX;

impl Bbr {
    /// The ACK's rate sample, if it has a believable one.
    pub(super) fn sample(&self, ack: &Ack) -> Sample {
        let Some(rate) = ack.rate else { return Sample::default() };
        let in_probe_rtt = self
            .probe_rtt_delivered
            .is_some_and(|(from, to)| (from..=to).contains(&rate.prior_delivered));
        // What was sent, if the path lost no more of it than is tolerated.
        let lost = if self.is_loss_tolerated(rate.lost, rate.tx_flight) { rate.lost } else { 0 };
        let sent = rate.delivered.saturating_add(lost);
        let delivery_rate = rate.bytes_per_s.min(RATE_MAX);
        // A tolerated loss is a small part, so that this does not exceed the double.
        let lost_rate = delivery_rate / 1024 * u64::from(lost.min(rate.delivered))
            / u64::from(rate.delivered.max(1))
            * 1024;
        let sent_rate = (delivery_rate + lost_rate) * 100 / (100 - PACING_MARGIN_PERCENT);
        Sample {
            rate: delivery_rate,
            sent,
            sent_rate,
            app_limited: rate.app_limited || in_probe_rtt,
            prior_delivered: Some(rate.prior_delivered),
            lost: rate.lost,
            tx_flight: rate.tx_flight,
        }
    }

    /// Section 5.5.10.2, NoteLoss; and the same for marks.
    pub(super) fn note_congestion(&mut self, ack: &Ack, marked: bool) {
        if ack.lost == 0 && !marked {
            return;
        }
        if !self.loss_in_round && !self.ecn_in_round {
            self.loss_round_delivered = ack.total_delivered;
        }
        self.ecn_in_round |= marked;
        if ack.lost > 0 {
            self.loss_in_round = true;
            self.loss_events_in_round = self.loss_events_in_round.saturating_add(1);
        }
    }

    /// Section 5.5.10.3.
    pub(super) fn update_latest_delivery_signals(&mut self, ack: &Ack, sample: &Sample) {
        self.bw_latest = self.bw_latest.max(sample.sent_rate);
        self.inflight_latest = self.inflight_latest.max(sample.sent);
        self.loss_round_start =
            sample.prior_delivered.is_some_and(|prior| prior >= self.loss_round_delivered);
        if self.loss_round_start {
            self.loss_round_delivered = ack.total_delivered;
        }
    }

    pub(super) fn advance_latest_delivery_signals(&mut self, sample: &Sample) {
        if self.loss_round_start {
            self.bw_latest = sample.sent_rate;
            self.inflight_latest = sample.sent;
        }
    }

    pub(super) fn reset_congestion_signals(&mut self) {
        self.loss_in_round = false;
        self.ecn_in_round = false;
        self.loss_events_in_round = 0;
        self.bw_latest = 0;
        self.inflight_latest = 0;
    }

    pub(super) fn reset_short_term_model(&mut self) {
        self.bw_shortterm = INFINITE_RATE;
        self.inflight_shortterm = INFINITE;
    }

    /// UpdateCongestionSignals: the largest rate on each ACK, the short-term model once a round.
    pub(super) fn update_congestion_signals(
        &mut self,
        window: &Window,
        ack: &Ack,
        sample: &Sample,
    ) {
        self.update_round(ack, sample);
        // Section 5.5.5: what the application limits is a lower bound.
        if sample.rate > 0 && (sample.rate >= self.max_bw.get() || !sample.app_limited) {
            self.max_bw.update(sample.rate);
        }
        if !self.loss_round_start {
            return;
        }
        self.ecn_rounds = if self.ecn_in_round { self.ecn_rounds.saturating_add(1) } else { 0 };
        if (self.loss_in_round || self.ecn_in_round) && !self.is_probing_bw() {
            self.lower_short_term_model(window);
        }
    }

    /// The signals of a round that ended are forgotten, but only after Startup has judged them.
    pub(super) fn forget_round(&mut self) {
        if self.loss_round_start {
            self.loss_in_round = false;
            self.ecn_in_round = false;
            self.loss_events_in_round = 0;
        }
    }

    /// InitLowerBounds and LossLowerBounds.
    fn lower_short_term_model(&mut self, window: &Window) {
        if self.bw_shortterm == INFINITE_RATE {
            self.bw_shortterm = self.max_bw.get();
        }
        if self.inflight_shortterm == INFINITE {
            self.inflight_shortterm = window.cwnd;
        }
        self.bw_shortterm =
            self.bw_latest.max(self.bw_shortterm.min(RATE_MAX) * BETA_PERCENT / 100);
        self.inflight_shortterm =
            self.inflight_latest.max(part(self.inflight_shortterm, BETA_PERCENT));
    }

    /// Section 5.5.1: rounds end with the ACK of a segment that was sent in them.
    fn update_round(&mut self, ack: &Ack, sample: &Sample) {
        self.round_start =
            sample.prior_delivered.is_some_and(|prior| prior >= self.next_round_delivered);
        if self.round_start {
            self.next_round_delivered = ack.total_delivered;
            self.round_count = self.round_count.wrapping_add(1);
            self.rounds_since_probe = self.rounds_since_probe.saturating_add(1);
        }
    }

    /// Section 5.5.9: what comes beyond the rate, because ACKs come in lumps.
    pub(super) fn update_ack_aggregation(&mut self, window: &Window, ack: &Ack) {
        let interval_us = ack.now_us.saturating_sub(self.extra_acked_from_us);
        let mut expected = self.bw.saturating_mul(interval_us) / 1_000_000;
        if self.extra_acked_delivered <= expected {
            self.extra_acked_delivered = 0;
            self.extra_acked_from_us = ack.now_us;
            expected = 0;
        }
        self.extra_acked_delivered =
            self.extra_acked_delivered.saturating_add(u64::from(ack.delivered));
        let extra = (self.extra_acked_delivered - expected).min(u64::from(window.cwnd)) as u32;
        let rounds = if self.full_bw_reached { EXTRA_ACKED_ROUNDS } else { 1 };
        self.extra_acked.update(extra, self.round_count, rounds);
    }

    /// Section 5.3.4.3, UpdateMinRTT.
    pub(super) fn update_min_rtt(&mut self, ack: &Ack) {
        let now_us = ack.now_us;
        self.probe_rtt_expired =
            now_us > self.probe_rtt_min_at_us.saturating_add(PROBE_RTT_INTERVAL_US);
        if ack.rtt_us != 0 && (ack.rtt_us < self.probe_rtt_min_us || self.probe_rtt_expired) {
            self.probe_rtt_min_us = ack.rtt_us;
            self.probe_rtt_min_at_us = now_us;
        }
        let expired = now_us > self.min_rtt_at_us.saturating_add(MIN_RTT_FILTER_US);
        if self.probe_rtt_min_us < self.min_rtt_us || expired {
            self.min_rtt_us = self.probe_rtt_min_us;
            self.min_rtt_at_us = self.probe_rtt_min_at_us;
        }
    }

    /// Section 5.3.1.2: three rounds without a quarter more mean that the pipe is full.
    pub(super) fn check_full_bw_reached(&mut self, sample: &Sample) {
        if self.full_bw_now || !self.round_start || sample.app_limited {
            return;
        }
        if sample.rate >= self.full_bw.saturating_add(self.full_bw / 4) {
            self.reset_full_bw();
            self.full_bw = sample.rate;
            return;
        }
        self.full_bw_count += 1;
        self.full_bw_now = self.full_bw_count >= 3;
        self.full_bw_reached |= self.full_bw_now;
    }

    pub(super) fn reset_full_bw(&mut self) {
        self.full_bw = 0;
        self.full_bw_count = 0;
        self.full_bw_now = false;
    }

    /// IsInflightTooHigh (section 5.5.10.2).
    pub(super) fn is_inflight_too_high(&self, sample: &Sample) -> bool {
        !self.is_loss_tolerated(sample.lost, sample.tx_flight)
    }

    fn is_loss_tolerated(&self, lost: u32, tx_flight: u32) -> bool {
        u64::from(lost) <= u64::from(tx_flight) * LOSS_THRESH_PERCENT / 100
    }

    /// The volume that a gain makes of the path's (BDPMultiple).
    pub(super) fn bdp_multiple(&self, bw: u64, gain: u64) -> u32 {
        if self.min_rtt_us == INFINITE {
            return self.initial_cwnd;
        }
        let bdp = bw.saturating_mul(u64::from(self.min_rtt_us)) / 1_000_000;
        (bdp.min(u64::from(CWND_MAX)) * gain / 100).min(u64::from(CWND_MAX)) as u32
    }

    /// TargetInflight.
    pub(super) fn target_inflight(&self, window: &Window) -> u32 {
        self.bdp_multiple(self.bw, 100).min(window.cwnd)
    }
}
