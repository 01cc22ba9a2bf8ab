//! BBR on paths (appendix A of the draft has the cases), and by itself.

use super::*;
use crate::congestion::sim::{Link, Sim};
use crate::congestion::{Algorithm, Congestion, Kind, RateSample};

const MSS: u32 = 1448;

/// 100 Mbit/s, 40 ms: 345 segments.
fn path() -> Link {
    Link { bytes_per_s: 12_500_000, rtt_us: 40_000, ..Link::default() }
}

fn bbr(sim: &Sim, flow: usize) -> &Bbr {
    match &*sim.flow(flow).controller().0 {
        Kind::Bbr(bbr) => bbr,
        _ => panic!("not BBR"),
    }
}

fn start(link: Link, flows: usize) -> Sim {
    let mut sim = Sim::new(link, 11);
    for _ in 0..flows {
        sim.add(Congestion::new(Algorithm::Bbr, u8::MAX));
    }
    sim
}

/// Share of the link that all flows had from one moment to another.
fn used(sim: &mut Sim, flows: usize, from_us: u64, to_us: u64) -> f64 {
    sim.run_until(from_us);
    let total = |sim: &Sim| (0..flows).map(|flow| sim.flow(flow).delivered).sum::<u64>();
    let before = total(sim);
    sim.run_until(to_us);
    (total(sim) - before) as f64 * 1e6
        / ((to_us - from_us) as f64 * f64::from(sim.link.bytes_per_s))
}

#[test]
fn it_finds_the_bandwidth_and_keeps_the_queue_short() {
    for (bytes_per_s, rtt_us) in [(12_500_000, 40_000), (1_250_000, 20_000), (125_000_000, 10_000)]
    {
        let link = Link { bytes_per_s, rtt_us, ..Link::default() }.queue_bdps(5);
        let bdp = (link.bdp() / MSS) as usize;
        let mut sim = start(link, 1);
        sim.run_until(3_000_000);
        assert!(sim.queue_max_packets() <= 2 * bdp + 10, "Startup bounds the queue");
        sim.reset_queue_record();
        let share = used(&mut sim, 1, 3_000_000, 13_000_000);
        let found = bbr(&sim, 0).max_bw.get() as f64 / f64::from(bytes_per_s);
        assert!((0.9..1.1).contains(&found), "{found}");
        assert!(share > 0.93, "{share}");
        assert!(sim.queue_max_packets() <= bdp, "{} of {bdp}", sim.queue_max_packets());
        assert!(sim.queue_mean_packets() < 0.25 * bdp as f64, "{}", sim.queue_mean_packets());
        assert_eq!(sim.flow(0).lost, 0);
    }
}

#[test]
fn it_survives_random_loss() {
    for (mbps, rtt_us) in [(100, 40_000), (200, 100_000), (500, 20_000)] {
        let link = Link { bytes_per_s: mbps * 125_000, rtt_us, loss_ppm: 10_000, ..path() };
        let mut sim = start(link.queue_bdps(1), 1);
        let share = used(&mut sim, 1, 2_000_000, 32_000_000);
        assert!(share > 0.85, "{share}");
        assert!(sim.flow(0).lost > 0);
    }
}

#[test]
fn a_shallow_queue_costs_little() {
    for queue_packets in [20, 70] {
        let mut sim = start(Link { queue_packets, ..path() }, 1);
        let share = used(&mut sim, 1, 3_000_000, 33_000_000);
        assert!(share > 0.85, "{share}");
        let flow = sim.flow(0);
        assert!(flow.lost * 200 < flow.delivered, "{} of {}", flow.lost, flow.delivered);
    }
}

#[test]
fn two_flows_share() {
    let mut sim = start(path().queue_bdps(4), 1);
    sim.run_until(10_000_000);
    sim.add(Congestion::new(Algorithm::Bbr, u8::MAX));
    sim.run_until(50_000_000);
    let before = [0, 1].map(|flow| sim.flow(flow).delivered);
    sim.reset_queue_record();
    sim.run_until(80_000_000);
    let [a, b] = [0, 1].map(|flow| (sim.flow(flow).delivered - before[flow]) as f64);
    let jain = (a + b).powi(2) / (2.0 * (a.powi(2) + b.powi(2)));
    assert!(jain > 0.98, "{a} {b}");
    assert!(a + b > 0.95 * 30.0 * f64::from(sim.link.bytes_per_s));
    let bdp = f64::from(sim.link.bdp() / MSS);
    assert!(sim.queue_mean_packets() < bdp, "{}", sim.queue_mean_packets());
}

#[test]
fn neither_it_nor_cubic_starves() {
    let mut sim = start(path().queue_bdps(4), 1);
    sim.add(Congestion::new(Algorithm::Cubic, u8::MAX));
    sim.run_until(20_000_000);
    let before = [0, 1].map(|flow| sim.flow(flow).delivered);
    sim.run_until(60_000_000);
    let shares = [0, 1].map(|flow| sim.flow(flow).delivered - before[flow]);
    let least = u64::from(sim.link.bytes_per_s) * 40 / 4;
    assert!(shares.iter().all(|&share| share > least), "{shares:?}");
}

#[test]
fn it_follows_the_bandwidth_up_and_down() {
    let link = Link { queue_packets: 350, ..path() };
    let mut sim = start(Link { bytes_per_s: 1_250_000, ..link }, 1);
    sim.run_until(10_000_000);
    sim.link.bytes_per_s = 12_500_000;
    assert!(used(&mut sim, 1, 12_000_000, 15_000_000) > 0.95);
    sim.link.bytes_per_s = 1_250_000;
    assert!(used(&mut sim, 1, 15_500_000, 30_000_000) > 0.95);
    // Two cycles and a queue later it has forgotten what was.
    let bw = bbr(&sim, 0).max_bw.get();
    assert!((1_200_000..1_300_000).contains(&bw), "{bw}");
    sim.reset_queue_record();
    sim.run_until(35_000_000);
    assert!(sim.queue_mean_packets() < 34.0, "{}", sim.queue_mean_packets());
}

#[test]
fn acks_in_lumps_leave_no_gaps() {
    for (ack_every_us, rtt_us) in [(10_000, 20_000), (20_000, 10_000), (40_000, 40_000)] {
        let link = Link { ack_every_us, rtt_us, queue_packets: 350, ..path() };
        let mut sim = start(link, 1);
        let share = used(&mut sim, 1, 3_000_000, 13_000_000);
        assert!(share > 0.9, "{ack_every_us}: {share}");
        assert!(bbr(&sim, 0).extra_acked.get() > 50 * MSS);
    }
}

#[test]
fn marks_keep_the_queue_short() {
    let mut queues = [0.0; 2];
    for (at, mark_packets) in [None, Some(20)].into_iter().enumerate() {
        let mut sim = start(Link { mark_packets, ..path() }.queue_bdps(4), 1);
        sim.run_until(3_000_000);
        sim.reset_queue_record();
        assert!(used(&mut sim, 1, 3_000_000, 33_000_000) > 0.8);
        queues[at] = sim.queue_mean_packets();
    }
    assert!(queues[1] < queues[0] / 4.0, "{queues:?}");
}

#[test]
fn paths_of_a_few_segments_are_filled() {
    // A segment each 116 ms; less than one in flight; less than half a one.
    for (bytes_per_s, rtt_us) in [(12_500, 40_000), (125_000, 5_000), (12_500, 50_000)] {
        let mut sim = start(Link { bytes_per_s, rtt_us, ..path() }, 1);
        assert!(used(&mut sim, 1, 10_000_000, 30_000_000) > 0.95);
        assert!(sim.flow(0).window.cwnd >= 4 * MSS);
        assert!(sim.queue_mean_packets() < 12.0, "{}", sim.queue_mean_packets());
    }
}

/// Two flows, so that there is a queue to drain; a moment of each second.
#[test]
fn probe_rtt_drains_the_queue() {
    let mut sim = start(path().queue_bdps(4), 2);
    let mut probes = 0;
    let mut before = State::Startup;
    let mut least_us = u32::MAX;
    let bdp = sim.link.bdp();
    for step in 1..3000 {
        sim.run_until(step * 10_000);
        let state = bbr(&sim, 0).state;
        if state == State::ProbeRtt {
            probes += u32::from(before != State::ProbeRtt);
            let in_all = sim.flow(0).flight(MSS) + sim.flow(1).flight(MSS);
            if bbr(&sim, 0).probe_rtt_done_us.is_some() {
                assert!(sim.flow(0).window.cwnd <= bdp);
                assert!(sim.flow(0).window.cwnd >= 4 * MSS);
            }
            least_us = least_us.min(if in_all < bdp { sim.flow(0).rtt_us } else { u32::MAX });
        }
        before = state;
    }
    // Each five seconds or so, unless a lower round-trip time came by.
    assert!((3..=6).contains(&probes), "{probes}");
    assert!((40_000..42_000).contains(&least_us), "{least_us}");
    for flow in [0, 1] {
        assert!((40_000..42_000).contains(&bbr(&sim, flow).min_rtt_us));
    }
}

#[test]
fn an_application_that_limits_lowers_no_estimate() {
    let mut sim = start(path().queue_bdps(4), 1);
    sim.run_until(4_000_000);
    let bw = bbr(&sim, 0).max_bw.get();
    sim.bound(0, 3 * MSS);
    sim.run_until(30_000_000);
    assert_eq!(bbr(&sim, 0).max_bw.get(), bw);
    sim.bound(0, u32::MAX);
    assert!(used(&mut sim, 1, 31_000_000, 33_000_000) > 0.9);
}

#[test]
fn a_pause_costs_neither_rate_nor_window() {
    let mut sim = start(path().queue_bdps(4), 1);
    sim.run_until(4_000_000);
    sim.stop(0, true);
    sim.run_until(15_000_000);
    let window = sim.flow(0).window;
    sim.reset_queue_record();
    sim.stop(0, false);
    assert!(bbr(&sim, 0).idle_restart);
    assert_eq!(sim.flow(0).window, window);
    sim.run_until(15_045_000);
    assert!(sim.queue_max_packets() < 20, "paced: {}", sim.queue_max_packets());
    sim.run_until(15_200_000);
    assert!(bbr(&sim, 0).state != State::ProbeRtt, "the pause has drained the queue");
    assert!(used(&mut sim, 1, 15_200_000, 17_000_000) > 0.95);
}

/// A path that is dead for seconds.
#[test]
fn it_comes_back_from_a_time_out() {
    let mut sim = start(path().queue_bdps(4), 1);
    sim.run_until(4_000_000);
    sim.link.loss_ppm = 1_000_000;
    sim.run_until(8_000_000);
    assert!(sim.flow(0).timeouts > 0);
    assert_eq!(sim.flow(0).window.cwnd, MSS);
    sim.link.loss_ppm = 0;
    assert!(used(&mut sim, 1, 12_000_000, 15_000_000) > 0.9);
}

/// By itself: ACKs of a segment each, as they come from a path of 10 MB/s and 10 ms.
struct Fed {
    bbr: Bbr,
    window: Window,
    ack: Ack,
}

impl Fed {
    fn new() -> Self {
        let mut bbr = Bbr::new();
        let mut window = Window { cwnd: 10 * MSS, ssthresh: u32::MAX };
        bbr.on_open(&mut window, MSS, 0);
        let ack = Ack {
            delivered: MSS,
            mss: MSS,
            flight: 60 * MSS,
            rtt_us: 10_000,
            srtt_us: 10_000,
            min_rtt_us: 10_000,
            ..Ack::default()
        };
        Self { bbr, window, ack }
    }

    /// A round of 70 ACKs, one in so many with a loss.
    fn round(&mut self, rate: u64, lossy: u32) {
        for at in 1..=70 {
            self.ack.now_us += 145;
            self.ack.total_delivered += u64::from(MSS);
            let lost = if lossy > 0 && at % lossy == 0 { MSS } else { 0 };
            self.ack.lost = lost;
            self.ack.in_recovery |= lost > 0;
            self.ack.rate = Some(RateSample {
                bytes_per_s: rate,
                app_limited: false,
                prior_delivered: self.ack.total_delivered.saturating_sub(70 * u64::from(MSS)),
                delivered: 70 * MSS,
                interval_us: 10_000,
                lost: at.checked_div(lossy).unwrap_or(0) * MSS,
                tx_flight: 70 * MSS,
            });
            if lost > 0 && !self.bbr.in_recovery {
                self.bbr.on_congestion(&self.window, Signal::Loss, 70 * MSS, MSS, self.ack.now_us);
            }
            self.bbr.on_ack(&mut self.window, &self.ack);
        }
    }
}

#[test]
fn startup_ends_after_three_rounds_on_a_plateau() {
    let mut fed = Fed::new();
    for rate in [1_000_000, 2_000_000, 4_000_000, 10_000_000] {
        fed.round(rate, 0);
        assert_eq!(fed.bbr.state, State::Startup);
    }
    fed.round(12_400_000, 0);
    fed.round(12_400_000, 0);
    assert_eq!(fed.bbr.state, State::Startup);
    // The one in flight when the last began.
    fed.round(12_400_000, 0);
    fed.round(12_400_000, 0);
    assert!(fed.bbr.full_bw_reached);
    assert_ne!(fed.bbr.state, State::Startup);
}

#[test]
fn startup_ends_upon_many_losses_and_an_undo_resumes_it() {
    let mut fed = Fed::new();
    let mut rate = 1_000_000;
    for _ in 0..4 {
        fed.round(rate, 0);
        rate *= 2;
    }
    // One in 70 is below 2 %.
    fed.round(rate, 70);
    fed.round(rate * 2, 70);
    assert_eq!(fed.bbr.state, State::Startup);
    for _ in 0..3 {
        rate *= 2;
        fed.round(rate, 7);
    }
    assert_ne!(fed.bbr.state, State::Startup);
    assert!(fed.bbr.inflight_longterm != INFINITE);
    fed.bbr.on_undo(&mut fed.window);
    assert_eq!(fed.bbr.state, State::Startup);
    assert_eq!(fed.bbr.inflight_longterm, INFINITE);
    assert!(!fed.bbr.full_bw_reached);
}

#[test]
fn a_probe_that_goes_too_high_bounds_the_next() {
    let mut fed = Fed::new();
    for _ in 0..8 {
        fed.round(10_000_000, 0);
    }
    // In flight is less than the bandwidth-delay product, so that there is nothing to drain.
    let mut rounds = 0;
    while fed.bbr.state != State::Up {
        fed.round(10_000_000, 0);
        rounds += 1;
        assert!(rounds < 300, "{:?}", fed.bbr.state);
    }
    fed.round(10_000_000, 5);
    assert!(matches!(fed.bbr.state, State::Down | State::Cruise), "{:?}", fed.bbr.state);
    assert!(fed.bbr.prev_probe_too_high);
    assert_eq!(fed.bbr.inflight_longterm, 70 * MSS);
    let cwnd = fed.window.cwnd;
    assert!(cwnd <= 70 * MSS);
    fed.bbr.on_undo(&mut fed.window);
    assert_eq!(fed.bbr.state, State::Refill);
    assert_eq!(fed.bbr.inflight_longterm, INFINITE);
    assert!(fed.window.cwnd > cwnd);
}

#[test]
fn loss_while_cruising_lowers_the_short_term_model_until_the_next_probe() {
    let mut fed = Fed::new();
    for _ in 0..12 {
        fed.round(10_000_000, 0);
    }
    let mut rounds = 0;
    while fed.bbr.state != State::Cruise {
        fed.round(10_000_000, 0);
        rounds += 1;
        assert!(rounds < 350, "{:?}", fed.bbr.state);
    }
    for _ in 0..3 {
        fed.round(5_000_000, 5);
    }
    assert_eq!(fed.bbr.max_bw.get(), 10_000_000);
    assert!(fed.bbr.bw < 7_100_000, "{}", fed.bbr.bw);
    assert!(fed.bbr.bw >= 5_000_000, "{}", fed.bbr.bw);
    let mut rounds = 0;
    while fed.bbr.state != State::Refill {
        fed.round(5_000_000, 0);
        rounds += 1;
        assert!(rounds < 350);
    }
    assert_eq!(fed.bbr.bw, 10_000_000);
}

#[test]
fn the_first_rate_is_that_of_the_initial_window() {
    let mut fed = Fed::new();
    // Before there is a round-trip time: one of a millisecond.
    assert_eq!(fed.bbr.pacing_rate(&fed.window, 0, MSS), 40_109_600);
    assert_eq!(fed.bbr.pacing_rate(&fed.window, 10_000, MSS), 4_010_960);
    fed.round(100_000, 0);
    assert_eq!(fed.bbr.pacing_rate(&fed.window, 10_000, MSS), 4_010_960, "not down in Startup");
    fed.round(10_000_000, 0);
    assert_eq!(fed.bbr.pacing_rate(&fed.window, 10_000, MSS), 27_423_000, "2.77 * 0.99");
}
