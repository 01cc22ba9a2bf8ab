//! BBR after draft-ietf-ccwg-bbr-06, whose sections are cited (version 3 of the model).
//!
//! It does not take loss for its only signal. From what is delivered it makes a model of the path:
//! the largest rate, the least round-trip time, how much in flight was too much. It then sends at
//! that rate (so it needs a sender that paces), with about two bandwidth-delay products as a bound,
//! and probes now and then whether there is more rate, or less delay.
//!
//! | file | concern |
//! |---|---|
//! | `model` | what ACKs tell of the path: section 5.5 |
//! | `states` | Startup, Drain, ProbeBW, ProbeRTT: section 5.3 |
//! | `control` | rate and window: section 5.6 |
//! | `filters` | windowed maxima |
//!
//! Where this differs from the draft:
//!
//! * A loss is judged by the sample of the ACK that shows it, not by the lost segment's own: the
//!   amount in flight when the newest segment acknowledged was sent. Both were sent within a round
//!   trip, of which the loss rate is.
//! * The draft has no answer to ECN but asks for one. Here marks are as losses, once a round trip:
//!   while probing, too much was in flight; otherwise they lower the short-term model; two rounds
//!   with marks end Startup.
//! * The short-term model follows what was sent, not what was delivered, as long as no more is lost
//!   than section 2.8 tolerates, and leaves out the margin below which this side paces. Both shrink
//!   each round a little although the path asks for nothing; with 1 % of random loss on a path of
//!   100 Mbit/s and 40 ms that is the difference between 80 % and 92 % of its rate.
//! * Without SACK the draft takes any loss for too much in flight. Here it is the same 2 %.
//! * State is saved for an undo when an episode begins, not in each of its rounds.
//! * Samples of ProbeRTT are left out here, for the sender cannot be told to call them limited.
//! * All numbers are integers; gains are percentages.

mod control;
mod filters;
mod model;
mod states;
#[cfg(test)]
mod tests;

use super::{Ack, CWND_MAX, Controller, RATE_MAX, Signal, Window};
use filters::{MaxRate, WindowedMax};

/// Nothing limits.
const INFINITE: u32 = u32::MAX;
const INFINITE_RATE: u64 = u64::MAX;

/// Section 2.8, BBR.LossThresh: tolerated while probing.
const LOSS_THRESH_PERCENT: u64 = 2;

/// BBR.Beta.
const BETA_PERCENT: u64 = 70;

/// BBR.Headroom.
const HEADROOM_PERCENT: u64 = 15;

/// BBR.MinPipeCwnd, in segments.
const MIN_PIPE_SEGMENTS: u32 = 4;

/// BBR.PacingMarginPercent.
const PACING_MARGIN_PERCENT: u64 = 1;

/// BBR.StartupPacingGain: 4 ln 2.
const STARTUP_PACING_GAIN: u64 = 277;

/// BBR.ProbeRTTCwndGain.
const PROBE_RTT_CWND_GAIN: u64 = 50;

const MIN_RTT_FILTER_US: u64 = 10_000_000;
const PROBE_RTT_INTERVAL_US: u64 = 5_000_000;
const PROBE_RTT_DURATION_US: u64 = 200_000;

/// BBR.ExtraAckedFilterLen.
const EXTRA_ACKED_ROUNDS: u32 = 10;

/// BBRStartupFullLossCnt: ranges lost in a round that end Startup. An ACK that shows losses counts
/// for one.
const STARTUP_FULL_LOSS_COUNT: u8 = 6;

/// Rounds with marks that end Startup.
const STARTUP_FULL_ECN_COUNT: u8 = 2;

/// A state of the machine (section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Startup,
    Drain,
    Down,
    Cruise,
    Refill,
    Up,
    ProbeRtt,
}

/// What ACKs mean with respect to bandwidth probing (section 2.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AckPhase {
    Init,
    Refilling,
    ProbeStarting,
    ProbeFeedback,
    ProbeStopping,
}

/// What an ACK's rate sample says; nothing if it has none.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    rate: u64,
    sent: u32,
    sent_rate: u64,
    app_limited: bool,
    prior_delivered: Option<u64>,
    lost: u32,
    tx_flight: u32,
}

/// What an undo brings back (section 2.15).
#[derive(Clone, Copy, Debug)]
struct Undo {
    /// The state that losses ended.
    state: Option<State>,
    bw_shortterm: u64,
    inflight_shortterm: u32,
    inflight_longterm: u32,
    possible: bool,
}

/// BBR's state.
#[derive(Debug)]
pub struct Bbr {
    state: State,
    ack_phase: AckPhase,

    // Outputs.
    pacing_rate: u64,
    send_quantum: u32,
    initial_cwnd: u32,
    prior_cwnd: u32,
    has_rtt: bool,

    // The path: rates in bytes a second, volumes in bytes.
    max_bw: MaxRate,
    bw_shortterm: u64,
    bw: u64,
    min_rtt_us: u32,
    min_rtt_at_us: u64,
    inflight_longterm: u32,
    inflight_shortterm: u32,
    extra_acked: WindowedMax,
    extra_acked_delivered: u64,
    extra_acked_from_us: u64,

    // Rounds.
    next_round_delivered: u64,
    round_count: u32,
    round_start: bool,

    // Congestion in this round.
    bw_latest: u64,
    inflight_latest: u32,
    loss_round_delivered: u64,
    loss_round_start: bool,
    loss_in_round: bool,
    loss_events_in_round: u8,
    ecn_in_round: bool,
    ecn_rounds: u8,
    in_recovery: bool,
    after_timeout: bool,
    /// The marks of a round trip were reported, and no ACK was seen since.
    ecn_pending: bool,

    // Is the pipe full?
    full_bw: u64,
    full_bw_count: u8,
    full_bw_now: bool,
    full_bw_reached: bool,
    drain_start_round: u32,

    // Probing for bandwidth.
    cycle_at_us: u64,
    probe_wait_us: u64,
    rounds_since_probe: u32,
    probe_up_rounds: u32,
    probe_up_acked: u32,
    probe_up_acked_per_inc: u32,
    bw_probe_sample: bool,
    prev_probe_too_high: bool,
    prev_probe_precautionary: bool,
    random: u32,

    // Probing for the round-trip time.
    probe_rtt_min_us: u32,
    probe_rtt_min_at_us: u64,
    probe_rtt_done_us: Option<u64>,
    probe_rtt_expired: bool,
    probe_rtt_round_done: bool,
    /// Segments sent while so much had been delivered were sent in ProbeRTT.
    probe_rtt_delivered: Option<(u64, u64)>,
    idle_restart: bool,

    undo: Undo,
}

impl Bbr {
    /// For a new connection.
    pub fn new() -> Self {
        Self {
            state: State::Startup,
            ack_phase: AckPhase::Init,
            pacing_rate: 0,
            send_quantum: 0,
            initial_cwnd: 0,
            prior_cwnd: 0,
            has_rtt: false,
            max_bw: MaxRate::default(),
            bw_shortterm: INFINITE_RATE,
            bw: 0,
            min_rtt_us: INFINITE,
            min_rtt_at_us: 0,
            inflight_longterm: INFINITE,
            inflight_shortterm: INFINITE,
            extra_acked: WindowedMax::default(),
            extra_acked_delivered: 0,
            extra_acked_from_us: 0,
            next_round_delivered: 0,
            round_count: 0,
            round_start: false,
            bw_latest: 0,
            inflight_latest: 0,
            loss_round_delivered: 0,
            loss_round_start: false,
            loss_in_round: false,
            loss_events_in_round: 0,
            ecn_in_round: false,
            ecn_rounds: 0,
            in_recovery: false,
            after_timeout: false,
            ecn_pending: false,
            full_bw: 0,
            full_bw_count: 0,
            full_bw_now: false,
            full_bw_reached: false,
            drain_start_round: 0,
            cycle_at_us: 0,
            probe_wait_us: 0,
            rounds_since_probe: 0,
            probe_up_rounds: 0,
            probe_up_acked: 0,
            probe_up_acked_per_inc: INFINITE,
            bw_probe_sample: false,
            prev_probe_too_high: false,
            prev_probe_precautionary: false,
            random: 0,
            probe_rtt_min_us: INFINITE,
            probe_rtt_min_at_us: 0,
            probe_rtt_done_us: None,
            probe_rtt_expired: false,
            probe_rtt_round_done: false,
            probe_rtt_delivered: None,
            idle_restart: false,
            undo: Undo {
                state: None,
                bw_shortterm: INFINITE_RATE,
                inflight_shortterm: INFINITE,
                inflight_longterm: INFINITE,
                possible: false,
            },
        }
    }

    /// Whether ACKs of this state's segments show what happens when more is sent (IsProbingBW).
    fn is_probing_bw(&self) -> bool {
        matches!(self.state, State::Startup | State::Refill | State::Up)
    }

    /// IsInAProbeBWState.
    fn is_in_probe_bw(&self) -> bool {
        matches!(self.state, State::Down | State::Cruise | State::Refill | State::Up)
    }

    /// Section 5.6.4.4, SaveCwnd.
    fn save_cwnd(&mut self, window: &Window) {
        self.prior_cwnd = if self.in_recovery || self.state == State::ProbeRtt {
            self.prior_cwnd.max(window.cwnd)
        } else {
            window.cwnd
        };
    }

    /// RestoreCwnd.
    fn restore_cwnd(&self, window: &mut Window) {
        window.cwnd = window.cwnd.max(self.prior_cwnd).min(CWND_MAX);
    }

    /// Section 5.5.11.1: an episode begins.
    fn save_state_upon_loss(&mut self, window: &Window) {
        self.save_cwnd(window);
        self.undo = Undo {
            state: None,
            bw_shortterm: self.bw_shortterm,
            inflight_shortterm: self.inflight_shortterm,
            inflight_longterm: self.inflight_longterm,
            possible: true,
        };
        self.in_recovery = true;
    }

    /// A number below `below`, for flows not to probe in step (PickProbeWait).
    fn random_below(&mut self, below: u32, now_us: u64) -> u32 {
        // Marsaglia's generator; what it starts from is never zero.
        self.random = (self.random ^ now_us as u32) | 1;
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.random % below
    }
}

impl Default for Bbr {
    fn default() -> Self {
        Self::new()
    }
}

impl Controller for Bbr {
    /// Section 5.2.1, OnInit.
    fn on_open(&mut self, window: &mut Window, mss: u32, now_us: u64) {
        self.initial_cwnd = window.cwnd;
        self.min_rtt_at_us = now_us;
        self.probe_rtt_min_at_us = now_us;
        self.extra_acked_from_us = now_us;
        self.send_quantum = mss.saturating_mul(2);
        self.pacing_rate = initial_rate(window.cwnd, 1_000);
    }

    /// Section 5.2.3, UpdateOnACK.
    fn on_ack(&mut self, window: &mut Window, ack: &Ack) {
        let sample = self.sample(ack);
        // What follows a time-out ends with the first ACK: the window grows back by what is
        // delivered, as section 5.6.4.4 has it.
        self.in_recovery &= ack.in_recovery;
        self.after_timeout &= ack.delivered == 0;
        let marked = std::mem::take(&mut self.ecn_pending);
        self.note_congestion(ack, marked);
        self.update_latest_delivery_signals(ack, &sample);
        self.update_congestion_signals(window, ack, &sample);
        self.update_ack_aggregation(window, ack);
        self.check_full_bw_reached(&sample);
        self.check_startup_done(ack, &sample);
        self.check_drain_done(ack);
        self.update_probe_bw_cycle(window, ack, &sample, marked);
        self.update_min_rtt(ack);
        self.check_probe_rtt(window, ack);
        self.advance_latest_delivery_signals(&sample);
        self.bw = self.max_bw.get().min(self.bw_shortterm);
        self.set_pacing_rate(ack);
        self.set_send_quantum(ack.mss);
        self.set_cwnd(window, ack);
    }

    /// The threshold is the window: nothing here reads it.
    fn on_congestion(
        &mut self,
        window: &Window,
        why: Signal,
        _flight: u32,
        mss: u32,
        _now_us: u64,
    ) -> u32 {
        self.save_state_upon_loss(window);
        if why == Signal::Ecn {
            self.ecn_pending = true;
        }
        window.cwnd.max(mss.saturating_mul(2)).min(CWND_MAX)
    }

    /// Section 5.6.4.4: the best window before it is that after it, as far as the model allows.
    fn on_recovered(&mut self, window: &mut Window, _now_us: u64) {
        if self.in_recovery && self.state != State::ProbeRtt {
            self.restore_cwnd(window);
        }
        self.in_recovery = false;
    }

    /// OnEnterRTO. What is in flight all the same, sent too recently to be lost, the caller adds.
    fn on_timeout(
        &mut self,
        window: &mut Window,
        _flight: u32,
        mss: u32,
        first: bool,
        _now_us: u64,
    ) {
        if first {
            self.save_state_upon_loss(window);
        }
        self.after_timeout = true;
        window.cwnd = mss.min(CWND_MAX);
    }

    /// Section 5.5.11.2, HandleSpuriousLossDetection.
    fn on_undo(&mut self, window: &mut Window) {
        if !self.undo.possible {
            return;
        }
        self.undo.possible = false;
        if self.state != State::ProbeRtt {
            self.restore_cwnd(window);
        }
        self.loss_in_round = false;
        self.ecn_in_round = false;
        self.reset_full_bw();
        self.bw_shortterm = self.bw_shortterm.max(self.undo.bw_shortterm);
        self.inflight_shortterm = self.inflight_shortterm.max(self.undo.inflight_shortterm);
        self.inflight_longterm = self.inflight_longterm.max(self.undo.inflight_longterm);
        match self.undo.state.take() {
            Some(State::Startup) if self.state != State::Startup => {
                self.full_bw_reached = false;
                if self.state != State::ProbeRtt {
                    self.state = State::Startup;
                }
            }
            Some(State::Up) if self.state != State::Up && self.state != State::ProbeRtt => {
                // The round ends with what is delivered next.
                self.start_refill(self.next_round_delivered);
            }
            _ => {}
        }
    }

    /// The window stays: the rate is known, and pacing sends no burst (section 5.4).
    fn on_idle(&mut self, _window: &mut Window, _initial: u32, _idle_us: u64, _now_us: u64) {}

    /// Section 5.4.1, HandleRestartFromIdle.
    fn on_sent(&mut self, bytes: u32, flight: u32, now_us: u64) {
        // Nothing was in flight, and not since a time-out.
        if flight > bytes || self.after_timeout || self.round_count == 0 {
            return;
        }
        self.idle_restart = true;
        self.extra_acked_from_us = now_us;
        self.extra_acked_delivered = 0;
        if self.is_in_probe_bw() {
            self.set_pacing_rate_with_gain(100);
        }
    }

    fn pacing_rate(&self, _window: &Window, srtt_us: u32, mss: u32) -> u64 {
        let rate = if !self.has_rtt && srtt_us > 0 {
            // The handshake told how long a round trip is.
            initial_rate(self.initial_cwnd, srtt_us)
        } else {
            self.pacing_rate
        };
        rate.clamp(u64::from(mss.max(1)), RATE_MAX)
    }

    /// In the place of what the initial window and the first round trip would give (section 5.6.2).
    fn set_rate(&mut self, bytes_per_s: u64) {
        self.has_rtt = true;
        self.pacing_rate = bytes_per_s.min(RATE_MAX);
    }

    fn owns_window(&self) -> bool {
        true
    }

    fn wants_rate_samples(&self) -> bool {
        true
    }

    fn wants_every_ack(&self) -> bool {
        true
    }
}

/// InitPacingRate (section 5.6.2).
fn initial_rate(initial_cwnd: u32, rtt_us: u32) -> u64 {
    // Millionths from microseconds, hundredths from per cent.
    u64::from(initial_cwnd) * STARTUP_PACING_GAIN * 10_000 / u64::from(rtt_us.max(1))
}

/// `percent` of a volume.
fn part(of: u32, percent: u64) -> u32 {
    (u64::from(of) * percent / 100).min(u64::from(u32::MAX)) as u32
}
