//! What happens at a time.

use millstream_timer::Instant;

use crate::slab::NIL;
use crate::state::{ConnectionError, Events, State};
use crate::tcb::{Env, Facts, Marks, TICK_NANOS, Tcb};

/// From one attempt on a link that takes nothing to the next, in microseconds (as in Linux).
const LINK_RETRY_US: u64 = 500_000;

/// Shifts beyond this exceed every limit.
const BACKOFF_MAX: u8 = 16;

impl Tcb {
    /// Does what is due at `env.now`; nothing if nothing is.
    pub fn on_timer(&mut self, env: &mut Env<'_>) -> Events {
        let mut events = Events::empty();
        let paced = self.marks.contains(Marks::PACE_WAIT);
        self.end_pace_wait(env);
        if self.ack_at <= env.now {
            self.ack_at = Instant::FAR_FUTURE;
            self.facts.insert(Facts::TX_ACK);
            env.stats.delayed_acks += 1;
        }
        if self.retransmit_at <= env.now {
            self.retransmit_at = Instant::FAR_FUTURE;
            events |= match self.state {
                State::SynSent | State::SynReceived => self.on_syn_timeout(env),
                _ if self.facts.contains(Facts::PERSIST) => self.on_persist_timeout(env),
                _ => self.on_data_timeout(env),
            };
        }
        if self.idle_at <= env.now {
            self.idle_at = Instant::FAR_FUTURE;
            events |= self.on_idle_timeout(env);
        }
        if self.state == State::Closed && events.contains(Events::CLOSED) {
            self.facts.insert(Facts::TOLD_CLOSED);
        }
        if paced && !self.marks.contains(Marks::PACE_WAIT) {
            // The window may have closed while the rate held data back.
            self.arm_persist_if_stalled(env);
        }
        events.set(Events::TRANSMIT, self.wants_transmit());
        events
    }

    /// Starts the timer of data in flight anew: that of a probe for a lost tail, or the
    /// retransmission time-out.
    #[inline]
    pub(crate) fn arm_retransmit(&mut self, env: &Env<'_>) {
        if self.flight != NIL || self.backoff != 0 {
            self.arm_for_flight(env);
            return;
        }
        self.retransmit_at = env.now.plus_nanos(u64::from(self.lone_timeout_us) * 1000);
    }

    #[inline(never)]
    fn arm_for_flight(&mut self, env: &Env<'_>) {
        self.marks.remove(Marks::REO_TIMER);
        if self.backoff == 0 && self.probes(env) {
            let timeout_us = self.rtt.rto_us.min(self.probe_timeout_us(env));
            self.retransmit_at = env.now.plus_nanos(u64::from(timeout_us) * 1000);
        } else {
            self.arm_time_out(env);
        }
    }

    /// Starts the retransmission time-out anew, or that of a window probe.
    pub(crate) fn arm_time_out(&mut self, env: &Env<'_>) {
        self.marks.remove(Marks::REO_TIMER);
        let mut timeout_us = self.backed_off_us(env);
        let limit_us = self.user_timeout_us(env.config);
        if limit_us != 0 && self.retries != 0 {
            // Not later than the time at which this side gives up.
            timeout_us = timeout_us.min(limit_us.saturating_sub(self.stalled_us(env)).max(1_000));
        }
        self.retransmit_at = env.now.plus_nanos(timeout_us * 1000);
    }

    /// Microseconds since progress stopped.
    fn stalled_us(&self, env: &Env<'_>) -> u64 {
        u64::from(env.now_ticks().wrapping_sub(self.stalled_ticks)) * TICK_NANOS / 1000
    }

    /// Sets the timer to when more will be known about losses.
    pub(crate) fn arm_reorder(&mut self, env: &Env<'_>, timeout_us: u32) {
        self.marks.insert(Marks::REO_TIMER);
        self.retransmit_at = env.now.plus_micros(u64::from(timeout_us));
    }

    /// RFC 6298 section 5.5.
    fn backed_off_us(&self, env: &Env<'_>) -> u64 {
        let rto_us = u64::from(self.rtt.rto_us) << self.backoff.min(BACKOFF_MAX);
        rto_us.min(u64::from(env.config.max_rto_us)).max(1)
    }

    /// If something waits to be sent, nothing is in flight whose ACK would let it go, and the
    /// window or silly-window avoidance holds it back, starts the persist timer (RFC 9293 section
    /// 3.8.6.1).
    pub(crate) fn arm_persist_if_stalled(&mut self, env: &Env<'_>) {
        if self.snd_nxt == self.snd_limit() {
            self.facts.remove(Facts::PERSIST);
        } else if self.retransmit_at == Instant::FAR_FUTURE
            && self.state.transmits()
            && !self.marks.contains(Marks::PACE_WAIT)
            && self.sendable() == 0
        {
            self.arm_persist(env);
        }
    }

    #[cold]
    fn arm_persist(&mut self, env: &Env<'_>) {
        self.facts.insert(Facts::PERSIST);
        if self.is_window_limited() && !self.facts.contains(Facts::WINDOW_LIMITED) {
            self.note_window_limit(env, true);
        }
        self.bound_orphan(env);
        if self.snd_wnd == 0 {
            self.arm_time_out(env);
        } else {
            self.retransmit_at = env.now.plus_micros(u64::from(env.config.override_us));
        }
    }

    /// A peer may keep its window closed, or the link refuse to send, as long as there is an application
    /// that may lose patience.
    /// Once there is none, it gets so much time from one bit of progress to the next.
    pub(crate) fn bound_orphan(&mut self, env: &Env<'_>) {
        if self.is_orphan()
            && (self.facts.contains(Facts::PERSIST) || self.marks.contains(Marks::LINK_WAIT))
            && self.idle_at == Instant::FAR_FUTURE
        {
            let config = env.config;
            let bound_us = match self.user_timeout_us(config) {
                0 => config.fin_wait_2_us,
                user_timeout_us => user_timeout_us,
            };
            self.idle_at = env.now.plus_micros(bound_us);
        }
    }

    fn on_syn_timeout(&mut self, env: &mut Env<'_>) -> Events {
        env.stats.rto_fired += 1;
        if self.retries >= env.config.syn_retries {
            return self.time_out(env);
        }
        self.retries += 1;
        self.backoff = self.backoff.saturating_add(1);
        self.facts.remove(Facts::TIMING);
        self.facts.insert(Facts::TX_SYN);
        self.arm_time_out(env);
        Events::empty()
    }

    /// The link takes nothing of what this connection has to send. If nothing is in flight there is no
    /// other timer, so this starts one that counts the attempts and holds the user time-out against
    /// what waits. Whether it did.
    #[cold]
    pub fn note_link_full(&mut self, env: &Env<'_>) -> bool {
        let waits = self.snd_una == self.snd_max
            && self.snd_nxt != self.snd_limit()
            && self.state.transmits()
            && self.retransmit_at == Instant::FAR_FUTURE
            && !self.marks.contains(Marks::PACE_WAIT);
        if waits {
            self.marks.insert(Marks::LINK_WAIT);
            self.retries = 0;
            self.retransmit_at = env.now.plus_micros(LINK_RETRY_US);
            self.bound_orphan(env);
        }
        waits
    }

    /// The link has taken nothing for as long.
    fn on_link_timeout(&mut self, env: &mut Env<'_>) -> Events {
        let limit_us = self.user_timeout_us(env.config);
        let mut wait_us = LINK_RETRY_US;
        if self.retries == 0 {
            self.stalled_ticks = env.now_ticks();
        } else if limit_us != 0 {
            let left_us = limit_us.saturating_sub(self.stalled_us(env));
            // A tick of grace: both ends of the time were rounded.
            if left_us <= TICK_NANOS / 1000 {
                return self.time_out(env);
            }
            wait_us = wait_us.min(left_us);
        }
        self.retries = self.retries.saturating_add(1);
        self.retransmit_at = env.now.plus_micros(wait_us);
        Events::empty()
    }

    fn on_data_timeout(&mut self, env: &mut Env<'_>) -> Events {
        if self.marks.contains(Marks::LINK_WAIT) {
            if self.snd_una == self.snd_max && self.sendable() != 0 {
                return self.on_link_timeout(env);
            }
            // It took something meanwhile. What comes back of that counts from now on.
            self.marks.remove(Marks::LINK_WAIT);
            self.retries = 0;
        }
        if self.snd_una == self.snd_max {
            self.arm_persist_if_stalled(env);
            return Events::empty();
        }
        if self.marks.contains(Marks::REO_TIMER) {
            self.marks.remove(Marks::REO_TIMER);
            self.on_reorder_timeout(env);
            return Events::empty();
        }
        if self.snd_wnd != 0 && self.probes(env) {
            self.on_probe_timeout(env);
            return Events::empty();
        }
        env.stats.rto_fired += 1;
        if self.gives_up(env) {
            return self.time_out(env);
        }
        self.on_retransmit_timeout(env);
        if self.retries == env.config.black_hole_retries {
            self.suspect_black_hole(env);
        }
        if self.snd_wnd == 0 {
            // The peer took its window back while data was out: what follows are probes.
            self.facts.insert(Facts::PERSIST | Facts::TX_PROBE);
            self.bound_orphan(env);
            env.stats.window_probes += 1;
        }
        self.arm_time_out(env);
        Events::empty()
    }

    fn on_persist_timeout(&mut self, env: &mut Env<'_>) -> Events {
        if self.facts.contains(Facts::WINDOW_LIMITED) {
            self.note_window_limit(env, true);
        }
        if self.sendable() != 0 || self.snd_una == self.snd_limit() {
            self.facts.remove(Facts::PERSIST);
            if self.snd_una != self.snd_nxt {
                self.arm_retransmit(env);
            }
            return Events::empty();
        }
        self.bound_orphan(env);
        if self.snd_wnd == 0 {
            if self.gives_up(env) {
                return self.time_out(env);
            }
            if self.retries == 0 {
                self.stalled_ticks = env.now_ticks();
            }
            self.retries = self.retries.saturating_add(1);
            self.backoff = self.backoff.saturating_add(1);
        }
        env.stats.window_probes += 1;
        self.facts.insert(Facts::TX_PROBE);
        self.arm_time_out(env);
        Events::empty()
    }

    /// R2 of RFC 9293 section 3.8.3: by count, and by time if that is set.
    fn gives_up(&self, env: &Env<'_>) -> bool {
        if self.retries >= env.config.data_retries {
            return true;
        }
        let limit_us = self.user_timeout_us(env.config);
        limit_us != 0 && self.retries != 0 && self.stalled_us(env) >= limit_us
    }

    #[cold]
    fn time_out(&mut self, env: &mut Env<'_>) -> Events {
        env.stats.timed_out += 1;
        self.finish(env, Some(ConnectionError::TimedOut));
        Events::TIMED_OUT | Events::CLOSED
    }

    fn time_out_with_reset(&mut self, env: &mut Env<'_>) -> Events {
        let events = self.time_out(env);
        self.facts.insert(Facts::TX_RESET);
        events
    }

    /// Starts keep-alive, if it is wanted and the state is one for it.
    pub(crate) fn arm_keepalive(&mut self, env: &Env<'_>) {
        if matches!(
            self.state,
            State::Closed | State::SynSent | State::SynReceived | State::TimeWait
        ) || (self.state == State::FinWait2 && self.facts.contains(Facts::DETACHED))
            || self.is_orphan()
        {
            return;
        }
        self.keepalive_probes = 0;
        self.idle_at = if self.facts.contains(Facts::KEEPALIVE) {
            env.now.plus_micros(env.config.keepalive.unwrap_or_default().idle_us)
        } else {
            Instant::FAR_FUTURE
        };
    }

    fn on_idle_timeout(&mut self, env: &mut Env<'_>) -> Events {
        if self.state == State::TimeWait
            || (self.state == State::FinWait2 && self.facts.contains(Facts::DETACHED))
        {
            self.finish(env, None);
            return Events::CLOSED;
        }
        if self.is_orphan() {
            return self.time_out_with_reset(env);
        }
        if self.state == State::Closed || !self.facts.contains(Facts::KEEPALIVE) {
            return Events::empty();
        }
        let keepalive = env.config.keepalive.unwrap_or_default();
        let ticks = env.now_ticks().wrapping_sub(self.last_recv_ticks);
        let silent_us = u64::from(ticks) * TICK_NANOS / 1000;
        // The timer is not moved when something comes; it looks when it fires. A tick of grace,
        // since the two clocks round differently.
        if silent_us + TICK_NANOS / 1000 < keepalive.idle_us {
            self.keepalive_probes = 0;
            self.idle_at = env.now.plus_micros(keepalive.idle_us - silent_us);
            return Events::empty();
        }
        // RFC 9293 section 3.8.4: only when nothing is under way; else retransmission decides.
        if self.snd_una != self.snd_max || self.facts.contains(Facts::PERSIST) {
            self.idle_at = env.now.plus_micros(keepalive.interval_us);
            return Events::empty();
        }
        if self.keepalive_probes >= keepalive.probes {
            // It may be alive behind a broken path: let it know.
            return self.time_out_with_reset(env);
        }
        self.keepalive_probes += 1;
        env.stats.keepalive_probes += 1;
        self.facts.insert(Facts::TX_KEEPALIVE);
        self.idle_at = env.now.plus_micros(keepalive.interval_us);
        Events::empty()
    }
}
