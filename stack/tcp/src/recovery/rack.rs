//! RACK: losses by time (RFC 8985 section 6).
//!
//! A segment is lost if another one, sent after it, was delivered, and more than a round trip and
//! the reordering window have passed since it was sent.

use crate::flight::{Fate, Flight, Record, Records};
use crate::rate::sent_after;
use crate::recovery::CongestionState;
use crate::recovery::scoreboard::Progress;
use crate::slab::NIL;
use crate::tcb::{Env, Marks, Tcb};

/// Recoveries without a needless repetition after which the reordering window is small again (RFC
/// 8985 section 6.2, step 4).
pub(crate) const REO_WINDOW_PERSIST: u8 = 16;

/// What is known of the segment delivered that was sent last (RFC 8985 section 5.2).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rack {
    place: (u32, u32),
    pub(crate) rtt_us: u32,
    /// Something was delivered since losses were last looked for.
    pub(crate) advanced: bool,
    /// There was such a segment.
    known: bool,
    /// A needless repetition was reported in this round trip.
    pub(crate) dsack_seen: bool,
    /// What had been delivered when the window last grew.
    pub(crate) round_delivered: u32,
}

impl Rack {
    /// A segment was delivered (RFC 8985 section 6.2, step 2).
    #[inline]
    pub(crate) fn advance(&mut self, record: &Record, now_us: u32) {
        self.advanced = true;
        if !record.is(Fate::VAGUE) || !self.known {
            self.rtt_us = now_us.wrapping_sub(record.sent_us);
        }
        if !self.known || sent_after(record.place(), self.place) {
            self.known = true;
            self.place = record.place();
        }
    }

    /// Microseconds until a segment sent at `sent_us` is lost; 0 or less: it is.
    pub(crate) fn remaining_us(&self, sent_us: u32, now_us: u32, reo_window_us: u32) -> i32 {
        // A segment may have been repeated in vain for longer than 31 bits of microseconds are.
        let since_us = i64::from(now_us.wrapping_sub(sent_us));
        let left_us = i64::from(self.rtt_us) + i64::from(reo_window_us) - since_us;
        left_us.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
    }
}

impl Flight {
    /// Finds losses (RFC 8985 section 6.2, step 5). Returns in how many microseconds more will be
    /// known, if that is so.
    pub(crate) fn detect_losses(
        &mut self,
        records: &mut Records,
        now_us: u32,
        reo_window_us: u32,
        progress: &mut Progress,
    ) -> Option<u32> {
        let mut timeout = None;
        let mut index = self.oldest;
        while let Some(&record) = records.get(index) {
            if !self.rack.known || !sent_after(self.rack.place, record.place()) {
                break;
            }
            let later = self.later(records, index);
            let remaining = self.rack.remaining_us(record.sent_us, now_us, reo_window_us);
            if remaining <= 0 {
                self.mark_lost(records, index, progress);
            } else {
                timeout = Some(timeout.map_or(remaining, |other: i32| other.max(remaining)));
            }
            index = later;
        }
        debug_assert!(index == NIL || records.get(index).is_some());
        timeout.map(|timeout| timeout as u32)
    }
}

impl Tcb {
    /// The time has come at which more is known (RFC 8985 section 6.3).
    pub(crate) fn on_reorder_timeout(&mut self, env: &mut Env<'_>) {
        let mut progress = Progress::default();
        if let Some((flight, _)) = env.slices.flights.get_mut(self.flight) {
            flight.rack.advanced = true;
        }
        self.find_losses(env, false, &mut progress);
        if progress.lost != 0 {
            if self.ca_state != CongestionState::Recovery {
                self.enter_recovery(env);
            }
            self.reduce_for_timer(env);
        }
        self.sync_flight(env);
        if !self.marks.contains(Marks::REO_TIMER) {
            self.arm_retransmit(env);
        }
    }
}
