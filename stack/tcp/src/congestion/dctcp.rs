//! DCTCP (RFC 8257): the window shrinks by as much as the queue was too long.
//!
//! `alpha` is an average of the share of bytes whose ACK carried a mark. A mark shrinks the window
//! by half of that share, once a round trip; a loss halves it, as with NewReno, which also says how
//! it grows.

use super::new_reno::NewReno;
use super::{Ack, CWND_MAX, Controller, EcnUse, Signal, Window};

/// 1 in the fixed point of alpha.
const ONE: u32 = 1 << 20;

/// g = 1/16 (RFC 8257 section 4.2).
const G_SHIFT: u32 = 4;

/// DCTCP's state.
#[derive(Debug)]
pub struct Dctcp {
    reno: NewReno,
    /// In 1/2^20. 1 at first, so that the first mark halves (RFC 8257 section 3.3).
    alpha: u32,
    /// Bytes delivered in this window, and those of them that were marked.
    delivered: u32,
    marked: u32,
    /// Low bits of how much will be delivered at the end of this window.
    window_end: u32,
}

impl Dctcp {
    /// As [`NewReno::new`].
    pub fn new(growth_segments: u8) -> Self {
        Self {
            reno: NewReno::new(growth_segments),
            alpha: ONE,
            delivered: 0,
            marked: 0,
            window_end: 0,
        }
    }

    /// RFC 8257 section 3.3, steps 1 to 8.
    fn measure(&mut self, ack: &Ack) {
        self.delivered = self.delivered.saturating_add(ack.delivered);
        self.marked = self.marked.saturating_add(ack.ece_bytes).min(self.delivered);
        let now = ack.total_delivered as u32;
        if (now.wrapping_sub(self.window_end) as i32) < 0 {
            return;
        }
        if self.delivered > 0 {
            let share = u64::from(self.marked) * u64::from(ONE) / u64::from(self.delivered);
            // Rounded up, or else the last bits would never go.
            self.alpha -= self.alpha.div_ceil(1 << G_SHIFT);
            self.alpha = (self.alpha + ((share as u32) >> G_SHIFT)).min(ONE);
        }
        self.delivered = 0;
        self.marked = 0;
        self.window_end = now.wrapping_add(ack.flight);
    }
}

impl Controller for Dctcp {
    fn on_ack(&mut self, window: &mut Window, ack: &Ack) {
        self.measure(ack);
        self.reno.on_ack(window, ack);
    }

    fn on_congestion(
        &mut self,
        window: &Window,
        why: Signal,
        flight: u32,
        mss: u32,
        now_us: u64,
    ) -> u32 {
        match why {
            // Section 3.5: as anybody.
            Signal::Loss => self.reno.on_congestion(window, why, flight, mss, now_us),
            // Section 3.3, step 9.
            Signal::Ecn => {
                self.reno.remember(window);
                let cut = u64::from(window.cwnd) * u64::from(self.alpha) / u64::from(2 * ONE);
                (window.cwnd - cut as u32).max(mss.saturating_mul(2)).min(CWND_MAX)
            }
        }
    }

    fn on_timeout(&mut self, window: &mut Window, flight: u32, mss: u32, first: bool, now_us: u64) {
        self.reno.on_timeout(window, flight, mss, first, now_us);
    }

    fn on_undo(&mut self, window: &mut Window) {
        self.reno.on_undo(window);
    }

    fn on_idle(&mut self, window: &mut Window, initial_window: u32, idle_us: u64, now_us: u64) {
        self.reno.on_idle(window, initial_window, idle_us, now_us);
    }

    fn uses_ecn(&self) -> EcnUse {
        EcnUse::Dctcp
    }

    fn wants_every_ack(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim::{Link, Sim};
    use super::super::{Algorithm, Congestion};
    use super::*;

    const MSS: u32 = 1000;

    /// A window of ten segments, `marked` of them marked.
    fn round(dctcp: &mut Dctcp, window: &mut Window, total: &mut u64, marked: u32) {
        for segment in 0..10 {
            *total += u64::from(MSS);
            let ack = Ack {
                delivered: MSS,
                mss: MSS,
                ece_bytes: if segment < marked { MSS } else { 0 },
                flight: 10 * MSS,
                total_delivered: *total,
                ..Ack::default()
            };
            dctcp.on_ack(window, &ack);
        }
    }

    #[test]
    fn alpha_is_the_share_of_marks() {
        let mut dctcp = Dctcp::new(8);
        let mut window = Window { cwnd: 100 * MSS, ssthresh: 100 * MSS };
        let mut total = 0;
        assert_eq!(dctcp.on_congestion(&window, Signal::Ecn, 0, MSS, 0), 50 * MSS);
        for _ in 0..200 {
            round(&mut dctcp, &mut window, &mut total, 2);
        }
        assert!(dctcp.alpha.abs_diff(ONE / 5) < ONE / 100, "{}", dctcp.alpha);
        let ssthresh = dctcp.on_congestion(&window, Signal::Ecn, 0, MSS, 0);
        assert!(ssthresh.abs_diff(90 * MSS) < MSS, "{ssthresh}");
        // A loss is a loss.
        assert_eq!(dctcp.on_congestion(&window, Signal::Loss, 100 * MSS, MSS, 0), 50 * MSS);
        for _ in 0..500 {
            round(&mut dctcp, &mut window, &mut total, 0);
        }
        assert_eq!(dctcp.alpha, 0);
        assert_eq!(dctcp.on_congestion(&window, Signal::Ecn, 0, MSS, 0), 100 * MSS);
    }

    #[test]
    fn one_window_moves_alpha_by_a_sixteenth() {
        let mut dctcp = Dctcp::new(8);
        let mut window = Window { cwnd: 10 * MSS, ssthresh: 10 * MSS };
        let mut total = 0;
        // The first ACK ends the window that nothing was sent in.
        round(&mut dctcp, &mut window, &mut total, 0);
        let before = dctcp.alpha;
        assert_eq!(before, ONE - ONE / 16);
        round(&mut dctcp, &mut window, &mut total, 10);
        // Nine ACKs of the first round and one of the second.
        let share = u64::from(ONE) / 10;
        assert_eq!(dctcp.alpha, before - before.div_ceil(16) + (share as u32 >> 4));
    }

    #[test]
    fn the_queue_stays_at_the_marking_threshold() {
        // 1 Gbit/s, 200 us: 25 kB are 17 segments; marks from 20 segments on.
        let link = Link {
            bytes_per_s: 125_000_000,
            rtt_us: 200,
            queue_packets: 400,
            mark_packets: Some(20),
            ..Link::default()
        };
        let mut sim = Sim::new(link, 5);
        let flows = [0, 1].map(|_| sim.add(Congestion::new(Algorithm::Dctcp, 8)));
        sim.run_until(500_000);
        sim.reset_queue_record();
        let before = flows.map(|flow| sim.flow(flow).delivered);
        sim.run_until(1_500_000);
        assert!(sim.queue_mean_packets() > 8.0, "{}", sim.queue_mean_packets());
        assert!(sim.queue_max_packets() < 40, "{}", sim.queue_max_packets());
        let delivered: u64 =
            flows.iter().map(|&flow| sim.flow(flow).delivered - before[flow]).sum();
        assert!(delivered as f64 > 0.97 * f64::from(link.bytes_per_s), "{delivered}");
        assert!(flows.iter().all(|&flow| sim.flow(flow).lost == 0));
    }

    #[test]
    fn without_marks_it_is_new_reno() {
        let link = Link { bytes_per_s: 1_250_000, rtt_us: 40_000, ..Link::default() }.queue_bdps(1);
        let windows = [Algorithm::Dctcp, Algorithm::NewReno].map(|algorithm| {
            let mut sim = Sim::new(link, 1);
            let flow = sim.add(Congestion::new(algorithm, 8));
            sim.run_until(30_000_000);
            (sim.flow(flow).window, sim.flow(flow).delivered, sim.flow(flow).lost)
        });
        assert_eq!(windows[0], windows[1]);
        assert!(windows[0].2 > 0);
    }
}
