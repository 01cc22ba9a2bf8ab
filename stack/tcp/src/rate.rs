//! How fast the network delivers (draft-cheng-iccrg-delivery-rate-estimation).
//!
//! Each record of a segment remembers what had been delivered when it was sent. When it is
//! delivered itself, what came in between, over the time that took, is a sample of the rate.

use crate::congestion::RateSample;
use crate::flight::{Fate, Record};

/// Counters of a flight.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RateState {
    /// Bytes delivered since the connection was opened.
    pub(crate) delivered: u64,
    /// When that last grew.
    pub(crate) delivered_us: u32,
    /// When the segment was sent that was delivered last: the beginning of the span in which what
    /// is delivered next was sent.
    pub(crate) first_sent_us: u32,
    /// Bytes ever found lost, modulo 2^32.
    pub(crate) lost: u32,
    /// Until so much is delivered, samples are of the application's rate; 0: they are not.
    pub(crate) app_limited_until: u64,
}

/// The segment that an ACK's sample is taken from: of those it delivers the one sent last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateStart {
    record: Record,
}

impl RateStart {
    /// The later sent of what there is and `record`.
    #[inline]
    pub(crate) fn later(before: Option<Self>, record: &Record) -> Option<Self> {
        match before {
            Some(before) if !sent_after(record.place(), before.record.place()) => Some(before),
            _ => Some(Self { record: *record }),
        }
    }
}

/// Whether the first of two segments, each as [`Record::place`], was sent after the second one.
#[inline]
pub(crate) fn sent_after(first: (u32, u32), second: (u32, u32)) -> bool {
    let later = first.0.wrapping_sub(second.0) as i32;
    later > 0 || (later == 0 && first.1.wrapping_sub(second.1) as i32 > 0)
}

impl RateState {
    /// Nothing was in flight before `now_us`: what is sent now begins a span, and the application
    /// decides how much that is until there is more.
    pub(crate) fn begin(&mut self, delivered: u64, now_us: u32) {
        self.delivered = delivered;
        self.delivered_us = now_us;
        self.first_sent_us = now_us;
        self.app_limited_until = delivered.max(1);
    }

    /// The application has nothing more to send, and the network would take it.
    #[inline]
    pub(crate) fn limited_by_application(&mut self, flight: u32) {
        self.app_limited_until = (self.delivered + u64::from(flight)).max(1);
    }

    /// `count` bytes were delivered.
    #[inline]
    pub(crate) fn deliver(&mut self, count: u32, now_us: u32) {
        self.delivered += u64::from(count);
        self.delivered_us = now_us;
        if self.app_limited_until != 0 && self.delivered > self.app_limited_until {
            self.app_limited_until = 0;
        }
    }

    /// The sample that an ACK gives, after [`Self::deliver`]. None if it would be of a span shorter
    /// than any round trip, as when what was sent again is acknowledged with what was sent first.
    pub(crate) fn sample(
        &mut self,
        start: Option<RateStart>,
        now_us: u32,
        min_rtt_us: u32,
    ) -> Option<RateSample> {
        let record = start?.record;
        let send_us = record.sent_us.wrapping_sub(record.first_sent_us);
        let ack_us = now_us.wrapping_sub(record.delivered_us);
        self.first_sent_us = record.sent_us;
        let interval_us = send_us.max(ack_us);
        if interval_us == 0 || interval_us < min_rtt_us || interval_us > 1 << 31 {
            return None;
        }
        let delivered = (self.delivered as u32).wrapping_sub(record.delivered);
        Some(RateSample {
            bytes_per_s: u64::from(delivered) * 1_000_000 / u64::from(interval_us),
            app_limited: record.is(Fate::APP_LIMITED),
            prior_delivered: self.delivered - u64::from(delivered).min(self.delivered),
            delivered,
            interval_us,
            lost: self.lost.wrapping_sub(record.lost),
            tx_flight: record.tx_flight,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flight::Flights;
    use millstream_wire::tcp::SeqNumber;

    #[test]
    fn ten_segments_a_millisecond_apart_are_a_megabyte_a_second() {
        let mut flights = Flights::with_capacity(1, 16);
        let index = flights.open(SeqNumber(0));
        let (flight, records) = flights.get_mut(index).unwrap();
        flight.rate.begin(5_000, 100_000);
        for at in 0..10 {
            flight.push(
                records,
                (SeqNumber(at * 1000), SeqNumber(at * 1000 + 1000)),
                1,
                100_000 + at * 1_000,
                (at + 1) * 1000,
            );
        }
        // The last one is delivered alone, all others with it.
        let last = *flight.last(records).unwrap();
        let start = RateStart::later(None, &last);
        flight.rate.deliver(10_000, 129_000);
        let sample = flight.rate.sample(start, 129_000, 1_000).unwrap();
        assert_eq!((sample.delivered, sample.interval_us), (10_000, 29_000));
        assert_eq!((sample.prior_delivered, sample.tx_flight), (5_000, 10_000));
        assert!(sample.app_limited, "the first flight is what the application gave");
        assert_eq!(flight.rate.app_limited_until, 0, "more was delivered than was given then");
        let earlier = Record { order: last.order - 1, ..last };
        assert_eq!(RateStart::later(start, &earlier).unwrap().record.sent_us, 109_000);
        assert!(
            flight.rate.sample(start, 129_000, 30_000).is_none(),
            "shorter than any round trip"
        );
    }
}
