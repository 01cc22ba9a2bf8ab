//! A path with one bottleneck, packet by packet in virtual time, to close the loop around
//! controllers in tests.
//!
//! Packets never overtake each other, each has its ACK, and ACKs are not lost: who is three packets
//! behind the newest acknowledged is lost. Senders have data without end, unless they are stopped.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::{Ack, Congestion, Controller, EcnUse, RateSample, Signal, Window};

/// The bottleneck.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub bytes_per_s: u32,
    /// Without any queue.
    pub rtt_us: u32,
    pub queue_packets: usize,
    /// Packets in the queue from which on one is marked.
    pub mark_packets: Option<usize>,
    /// Of a million packets, lost for no reason.
    pub loss_ppm: u64,
    /// ACKs leave the receiver together, this far apart; 0: each at once.
    pub ack_every_us: u32,
    pub mss: u32,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            bytes_per_s: 1_250_000,
            rtt_us: 40_000,
            queue_packets: 100,
            mark_packets: None,
            loss_ppm: 0,
            ack_every_us: 0,
            mss: 1448,
        }
    }
}

impl Link {
    /// Bandwidth-delay product in bytes.
    pub fn bdp(&self) -> u32 {
        (u64::from(self.bytes_per_s) * u64::from(self.rtt_us) / 1_000_000) as u32
    }

    /// With a queue of so many bandwidth-delay products.
    pub fn queue_bdps(self, bdps: u32) -> Self {
        Self { queue_packets: (self.bdp() * bdps).div_ceil(self.mss) as usize, ..self }
    }
}

#[derive(Clone, Copy, Debug)]
struct Packet {
    number: u64,
    sent_ns: u64,
    /// Delivered, when, and the sending time of the packet that was, when this one was sent.
    delivered: u64,
    delivered_ns: u64,
    first_sent_ns: u64,
    lost: u64,
    flight: u32,
    app_limited: bool,
}

/// A sender.
#[derive(Debug)]
pub(super) struct Flow {
    controller: Congestion,
    pub window: Window,
    pub delivered: u64,
    pub lost: u64,
    pub timeouts: u64,
    /// Nothing new is sent.
    pub stopped: bool,
    /// A sender with no more than this to send at a time.
    pub flight_max: u32,
    /// Of the last ACK.
    pub rtt_us: u32,
    out: VecDeque<Packet>,
    next: u64,
    /// An episode lasts until this packet is acknowledged.
    recover: Option<u64>,
    send_at_ns: u64,
    waiting: bool,
    cwnd_limited: bool,
    app_limited_until: u64,
    delivered_ns: u64,
    first_sent_ns: u64,
    last_sent_ns: u64,
    srtt_us: u32,
    min_rtt_us: u32,
    progress: u64,
}

impl Flow {
    pub fn flight(&self, mss: u32) -> u32 {
        self.out.len() as u32 * mss
    }

    pub fn controller(&self) -> &Congestion {
        &self.controller
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ack { flow: usize, number: u64, marked: bool },
    Send { flow: usize },
    Timeout { flow: usize, progress: u64 },
}

/// The path and its senders.
#[derive(Debug)]
pub(super) struct Sim {
    pub link: Link,
    now_ns: u64,
    order: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    flows: Vec<Flow>,
    busy_until_ns: u64,
    random: u64,
    queue_max: usize,
    queue_sum: u64,
    queue_seen: u64,
}

impl Sim {
    pub fn new(link: Link, seed: u64) -> Self {
        Self {
            link,
            now_ns: 1_000_000_000,
            order: 0,
            events: BinaryHeap::new(),
            flows: Vec::new(),
            busy_until_ns: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            queue_max: 0,
            queue_sum: 0,
            queue_seen: 0,
        }
    }

    /// A new connection; its number.
    pub fn add(&mut self, mut controller: Congestion) -> usize {
        let mut window = Window { cwnd: 10 * self.link.mss, ssthresh: u32::MAX };
        controller.on_open(&mut window, self.link.mss, self.now_us());
        self.flows.push(Flow {
            controller,
            window,
            delivered: 0,
            lost: 0,
            timeouts: 0,
            stopped: false,
            flight_max: u32::MAX,
            rtt_us: 0,
            out: VecDeque::new(),
            next: 0,
            recover: None,
            send_at_ns: 0,
            waiting: false,
            cwnd_limited: false,
            app_limited_until: 0,
            delivered_ns: self.now_ns,
            first_sent_ns: self.now_ns,
            last_sent_ns: self.now_ns,
            srtt_us: 0,
            min_rtt_us: 0,
            progress: 0,
        });
        let flow = self.flows.len() - 1;
        self.push(self.now_ns, Event::Send { flow });
        flow
    }

    pub fn flow(&self, flow: usize) -> &Flow {
        &self.flows[flow]
    }

    /// Stops a sender, or lets it go on after a pause.
    pub fn stop(&mut self, flow: usize, stopped: bool) {
        self.flows[flow].stopped = stopped;
        self.send(flow);
    }

    /// Bounds what a sender has to send.
    pub fn bound(&mut self, flow: usize, flight_max: u32) {
        self.flows[flow].flight_max = flight_max;
        self.send(flow);
    }

    /// Virtual time from the beginning of the simulation.
    fn now_us(&self) -> u64 {
        self.now_ns / 1000
    }

    /// Share of the link that a flow has had from the beginning.
    pub fn utilisation(&self, flow: usize) -> f64 {
        let seconds = (self.now_ns - 1_000_000_000) as f64 / 1e9;
        self.flows[flow].delivered as f64 / seconds / f64::from(self.link.bytes_per_s)
    }

    pub fn reset_queue_record(&mut self) {
        (self.queue_max, self.queue_sum, self.queue_seen) = (0, 0, 0);
    }

    pub fn queue_max_packets(&self) -> usize {
        self.queue_max
    }

    pub fn queue_mean_packets(&self) -> f64 {
        self.queue_sum as f64 / self.queue_seen.max(1) as f64
    }

    /// Lets time go on until so long after the beginning.
    pub fn run_until(&mut self, until_us: u64) {
        let until_ns = 1_000_000_000 + until_us * 1000;
        while let Some(&Reverse((at_ns, _, event))) = self.events.peek() {
            if at_ns > until_ns {
                break;
            }
            self.events.pop();
            self.now_ns = at_ns;
            match event {
                Event::Ack { flow, number, marked } => self.ack(flow, number, marked),
                Event::Send { flow } => {
                    self.flows[flow].waiting = false;
                    self.send(flow);
                }
                Event::Timeout { flow, progress } => self.timeout(flow, progress),
            }
        }
        self.now_ns = until_ns;
    }

    fn push(&mut self, at_ns: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((at_ns, self.order, event)));
    }

    fn chance(&mut self, ppm: u64) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1_000_000 < ppm
    }

    /// Puts a packet into the queue.
    fn transmit(&mut self, flow: usize, number: u64) {
        let packet_ns = u64::from(self.link.mss) * 1_000_000_000 / u64::from(self.link.bytes_per_s);
        let queued = (self.busy_until_ns.saturating_sub(self.now_ns)).div_ceil(packet_ns) as usize;
        self.queue_max = self.queue_max.max(queued);
        self.queue_sum += queued as u64;
        self.queue_seen += 1;
        if queued >= self.link.queue_packets || self.chance(self.link.loss_ppm) {
            return;
        }
        let marked = self.link.mark_packets.is_some_and(|mark| queued >= mark)
            && self.flows[flow].controller.uses_ecn() != EcnUse::None;
        self.busy_until_ns = self.busy_until_ns.max(self.now_ns) + packet_ns;
        let mut at_ns = self.busy_until_ns + u64::from(self.link.rtt_us) * 1000;
        if self.link.ack_every_us > 0 {
            at_ns = at_ns.next_multiple_of(u64::from(self.link.ack_every_us) * 1000);
        }
        self.push(at_ns, Event::Ack { flow, number, marked });
    }

    /// Sends what the window and the clock allow.
    fn send(&mut self, index: usize) {
        let mss = self.link.mss;
        let now_us = self.now_us();
        loop {
            let flow = &mut self.flows[index];
            let flight = flow.flight(mss);
            flow.cwnd_limited = flight + mss > flow.window.cwnd;
            if flow.cwnd_limited {
                return;
            }
            if flow.stopped || flight.saturating_add(mss) > flow.flight_max {
                // As in section 4.1.1.4 of the draft on delivery rates.
                flow.app_limited_until = (flow.delivered + u64::from(flight)).max(1);
                return;
            }
            if flow.send_at_ns > self.now_ns {
                if !flow.waiting {
                    flow.waiting = true;
                    let at_ns = flow.send_at_ns;
                    self.push(at_ns, Event::Send { flow: index });
                }
                return;
            }
            if flow.out.is_empty() {
                let idle_us = (self.now_ns - flow.last_sent_ns) / 1000;
                if flow.next > 0 && idle_us > 200_000 {
                    flow.controller.on_idle(&mut flow.window, 10 * mss, idle_us, now_us);
                }
                flow.first_sent_ns = self.now_ns;
                flow.delivered_ns = self.now_ns;
            }
            let number = flow.next;
            flow.next += 1;
            flow.out.push_back(Packet {
                number,
                sent_ns: self.now_ns,
                delivered: flow.delivered,
                delivered_ns: flow.delivered_ns,
                first_sent_ns: flow.first_sent_ns,
                lost: flow.lost,
                flight: flight + mss,
                app_limited: flow.app_limited_until != 0,
            });
            flow.last_sent_ns = self.now_ns;
            flow.controller.on_sent(mss, flight + mss, now_us);
            let rate = flow.controller.pacing_rate(&flow.window, flow.srtt_us, mss);
            if let Some(gap_ns) = (u64::from(mss) * 1_000_000_000).checked_div(rate) {
                flow.send_at_ns = flow.send_at_ns.max(self.now_ns) + gap_ns;
            }
            if flow.out.len() == 1 {
                let progress = flow.progress;
                self.push(self.now_ns + 1_000_000_000, Event::Timeout { flow: index, progress });
            }
            self.transmit(index, number);
        }
    }

    fn ack(&mut self, index: usize, number: u64, marked: bool) {
        let (now_ns, now_us, mss) = (self.now_ns, self.now_us(), self.link.mss);
        let flow = &mut self.flows[index];
        let prior_flight = flow.flight(mss);
        let Some(at) = flow.out.iter().position(|packet| packet.number == number) else {
            return;
        };
        let packet = flow.out.remove(at).unwrap();
        flow.progress += 1;
        flow.delivered += u64::from(mss);
        flow.delivered_ns = now_ns;
        if flow.app_limited_until != 0 && flow.delivered > flow.app_limited_until {
            flow.app_limited_until = 0;
        }
        let rtt_us = ((now_ns - packet.sent_ns) / 1000) as u32;
        flow.rtt_us = rtt_us;
        flow.srtt_us = if flow.srtt_us == 0 { rtt_us } else { (flow.srtt_us * 7 + rtt_us) / 8 };
        flow.min_rtt_us = if flow.min_rtt_us == 0 { rtt_us } else { flow.min_rtt_us.min(rtt_us) };
        let mut lost = 0;
        while flow.out.front().is_some_and(|packet| packet.number + 3 <= number) {
            flow.out.pop_front();
            lost += mss;
        }
        flow.lost += u64::from(lost);
        let send_ns = packet.sent_ns - packet.first_sent_ns;
        let ack_ns = now_ns - packet.delivered_ns;
        let interval_us = (send_ns.max(ack_ns) / 1000) as u32;
        flow.first_sent_ns = packet.sent_ns;
        let delivered = (flow.delivered - packet.delivered) as u32;
        let rate = (interval_us >= flow.min_rtt_us && interval_us > 0).then(|| RateSample {
            bytes_per_s: u64::from(delivered) * 1_000_000 / u64::from(interval_us),
            app_limited: packet.app_limited,
            prior_delivered: packet.delivered,
            delivered,
            interval_us,
            lost: (flow.lost - packet.lost) as u32,
            tx_flight: packet.flight,
        });
        if flow.recover.is_some_and(|recover| number >= recover) {
            flow.recover = None;
            flow.controller.on_recovered(&mut flow.window, now_us);
        }
        let classic = marked && flow.controller.uses_ecn() != EcnUse::None;
        if flow.recover.is_none() && (lost > 0 || classic) {
            let why = if lost > 0 { Signal::Loss } else { Signal::Ecn };
            let ssthresh =
                flow.controller.on_congestion(&flow.window, why, prior_flight, mss, now_us);
            flow.window.ssthresh = ssthresh;
            if !flow.controller.owns_window() {
                flow.window.cwnd = ssthresh;
            }
            // Losses of before show themselves up to three packets later.
            flow.recover = Some(flow.next + 2);
        }
        let ack = Ack {
            now_us,
            delivered: mss,
            lost,
            flight: flow.flight(mss),
            prior_flight,
            mss,
            rtt_us,
            srtt_us: flow.srtt_us,
            min_rtt_us: flow.min_rtt_us,
            cwnd_limited: flow.cwnd_limited,
            in_recovery: flow.recover.is_some(),
            ece_bytes: if marked { mss } else { 0 },
            total_delivered: flow.delivered,
            rate,
        };
        flow.controller.on_ack(&mut flow.window, &ack);
        self.send(index);
    }

    /// A second without an ACK: all that is out is lost.
    fn timeout(&mut self, index: usize, progress: u64) {
        let (now_us, mss) = (self.now_us(), self.link.mss);
        let flow = &mut self.flows[index];
        if flow.out.is_empty() {
            return;
        }
        if flow.progress != progress {
            let progress = flow.progress;
            self.push(self.now_ns + 1_000_000_000, Event::Timeout { flow: index, progress });
            return;
        }
        let flight = flow.flight(mss);
        flow.lost += u64::from(flight);
        flow.timeouts += 1;
        flow.out.clear();
        flow.recover = None;
        flow.controller.on_timeout(&mut flow.window, flight, mss, true, now_us);
        self.send(index);
    }
}
