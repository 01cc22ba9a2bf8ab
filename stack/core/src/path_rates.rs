//! How fast earlier connections have sent to a destination, for those that come after: with
//! [`Clocking::Rate`] they start at half of it in place of slow start (see `start.rs` of
//! `millstream_tcp`, and draft-ietf-tsvwg-careful-resume).
//!
//! What is remembered is a claim with an age. A start that met loss halves it and is not forgotten
//! until starts succeed again; three failures in a row, or ten minutes, and it is believed no more.
//! While a connection that was started so is sending, no other one is: together they would ask
//! for more than the path was seen to carry.

use std::hash::Hasher;
use std::net::IpAddr;

use millstream_tcp::{Clocking, KnownStart};
use millstream_timer::Instant;
use siphasher::sip::SipHasher13;

use crate::conn::{Conn, ConnId, NONE};
use crate::state::{State, env};

/// Destinations of one set; the oldest gives way.
const WAYS: usize = 4;
const SETS: usize = 256;
/// How long a rate is believed.
const LIFETIME_NANOS: u64 = 600_000_000_000;
/// Failures in a row after which it is not believed.
const FAILURES_MAX: u8 = 3;
/// A connection that sent less than this has seen nothing of its path.
const BYTES_MIN: u64 = 32 * 1024;

/// What is known of a path.
#[derive(Clone, Copy, Debug)]
struct Path {
    destination: IpAddr,
    bytes_per_s: u64,
    rtt_us: u32,
    /// When it was last seen to be so.
    at: Instant,
    /// Starts in a row that were too fast.
    failures: u8,
    /// The connection that was last started with it.
    user: ConnId,
}

/// What a connection has seen of its path.
#[derive(Clone, Copy, Debug)]
struct Report {
    /// How fast the network delivered; 0: it is not known.
    bytes_per_s: u64,
    /// Least round-trip time.
    rtt_us: u32,
    /// Whether something was lost.
    lossy: bool,
    /// How a start at a known rate went.
    start: KnownStart,
}

/// A table of a fixed size, looked at when connections open and end.
pub(crate) struct PathRates {
    paths: Box<[Option<Path>]>,
    /// So that nobody can choose addresses that drive out others.
    key: [u8; 16],
}

impl PathRates {
    pub fn new(key: [u8; 16]) -> Self {
        Self { paths: vec![None; SETS * WAYS].into_boxed_slice(), key }
    }

    fn set_of(&mut self, destination: IpAddr) -> &mut [Option<Path>] {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        // The secret serves others too; their purposes are lower.
        hasher.write_u8(0x80);
        match destination {
            IpAddr::V4(ip) => hasher.write(&ip.octets()),
            IpAddr::V6(ip) => hasher.write(&ip.octets()),
        }
        let set = hasher.finish() as usize % SETS;
        self.paths.get_mut(set * WAYS..(set + 1) * WAYS).unwrap_or_default()
    }

    fn find(&mut self, destination: IpAddr, now: Instant) -> Option<&mut Path> {
        let mut paths = self.set_of(destination).iter_mut().flatten();
        let path = paths.find(|path| path.destination == destination)?;
        (now.nanos_since(path.at) < LIFETIME_NANOS).then_some(path)
    }

    /// Remembers what a connection to `destination` has seen.
    fn learn(&mut self, destination: IpAddr, report: &Report, now: Instant) {
        let Report { bytes_per_s, rtt_us, lossy, start } = *report;
        let Some(path) = self.find(destination, now) else {
            if bytes_per_s != 0 && rtt_us != 0 {
                let user = ConnId { number: NONE, generation: 0 };
                let path = Path { destination, bytes_per_s, rtt_us, at: now, failures: 0, user };
                self.insert(path);
            }
            return;
        };
        if start == KnownStart::Failed {
            path.failures = path.failures.saturating_add(1);
            // What was delivered in the end is the truth, if that is less than the half.
            let half = path.bytes_per_s / 2;
            path.bytes_per_s = if bytes_per_s == 0 { half } else { half.min(bytes_per_s) };
            return;
        }
        if bytes_per_s == 0 || rtt_us == 0 {
            return;
        }
        if start == KnownStart::Proven {
            path.failures = 0;
            path.at = now;
        }
        // Less, without a loss, is what the application gave.
        if lossy || bytes_per_s >= path.bytes_per_s {
            path.bytes_per_s = bytes_per_s;
            path.rtt_us = rtt_us;
            path.at = now;
        }
    }

    fn insert(&mut self, path: Path) {
        let set = self.set_of(path.destination);
        let is_free =
            |slot: &Option<Path>| slot.is_none_or(|other| other.destination == path.destination);
        let slot = match set.iter().position(is_free) {
            Some(slot) => set.get_mut(slot),
            None => set.iter_mut().min_by_key(|slot| slot.map(|path| path.at)),
        };
        if let Some(slot) = slot {
            *slot = Some(path);
        }
    }
}

impl State {
    /// A connection is established: it starts at the rate that is remembered for its path, if that
    /// is wanted, believed and not in use.
    pub fn start_at_remembered_rate(&mut self, id: ConnId) {
        if self.tcp_config.clocking != Clocking::Rate {
            return;
        }
        let Some(key) = self.conns.named(id).map(|conn| conn.key) else { return };
        let (_, remote) = self.endpoints(&key);
        let Some(path) = self.path_rates.find(remote.ip(), self.now) else { return };
        let in_use = self.conns.named(path.user).is_some_and(|user| {
            // One that has not sent yet will: a server's connections open before they are asked.
            user.tcb.known_start() != KnownStart::Proven || user.tcb.unacked_bytes() != 0
        });
        if in_use || path.failures >= FAILURES_MAX {
            return;
        }
        let Some(conn) = self.conns.named_mut(id) else { return };
        let (rate, rtt_us) = (path.bytes_per_s, path.rtt_us);
        if conn.tcb.start_at_remembered_rate(&mut env!(self), rate, rtt_us) {
            path.user = id;
        }
    }

    /// A connection ends: what it has seen of its path is kept.
    pub fn remember_rate(&mut self, conn: &Conn) {
        if self.tcp_config.clocking != Clocking::Rate {
            return;
        }
        let start = conn.tcb.known_start();
        if conn.tcb.acked_total() < BYTES_MIN && start != KnownStart::Failed {
            return;
        }
        // What the application has bounded says nothing of the path.
        if conn.tcb.fixed_pacing_rate().is_some() {
            return;
        }
        let (_, remote) = self.endpoints(&conn.key);
        let info = conn.tcb.info();
        let report = Report {
            bytes_per_s: info.delivery_rate,
            rtt_us: info.min_rtt_us,
            lossy: info.retransmits != 0,
            start,
        };
        self.path_rates.learn(remote.ip(), &report, self.now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn seen(bytes_per_s: u64) -> Report {
        Report { bytes_per_s, rtt_us: 20_000, lossy: false, start: KnownStart::None }
    }

    fn rate(rates: &mut PathRates, seconds: u64) -> Option<u64> {
        rates.find(PEER, at(seconds)).map(|path| path.bytes_per_s)
    }

    #[test]
    fn the_highest_rate_counts_until_losses_say_otherwise() {
        let mut rates = PathRates::new([1; 16]);
        assert_eq!(rate(&mut rates, 0), None);
        rates.learn(PEER, &seen(1_000_000), at(0));
        rates.learn(PEER, &seen(400_000), at(1));
        rates.learn(PEER, &seen(0), at(1));
        assert_eq!(rate(&mut rates, 1), Some(1_000_000));
        rates.learn(PEER, &seen(3_000_000), at(2));
        assert_eq!(rate(&mut rates, 2), Some(3_000_000));
        rates.learn(PEER, &Report { lossy: true, ..seen(2_000_000) }, at(3));
        assert_eq!(rate(&mut rates, 3), Some(2_000_000));
        assert_eq!(rate(&mut rates, 602), Some(2_000_000));
        assert_eq!(rate(&mut rates, 603), None, "ten minutes later");
        // What is old makes way for anything.
        rates.learn(PEER, &seen(5_000), at(700));
        assert_eq!(rate(&mut rates, 700), Some(5_000));
        assert_eq!(rates.paths.iter().flatten().count(), 1);
    }

    #[test]
    fn failures_halve_it_and_successes_forgive() {
        let mut rates = PathRates::new([1; 16]);
        rates.learn(PEER, &seen(8_000_000), at(0));
        let failed = Report { start: KnownStart::Failed, lossy: true, ..seen(7_000_000) };
        rates.learn(PEER, &failed, at(1));
        assert_eq!(rate(&mut rates, 1), Some(4_000_000));
        rates.learn(PEER, &Report { bytes_per_s: 100_000, ..failed }, at(2));
        assert_eq!(rate(&mut rates, 2), Some(100_000), "what the path really gave");
        rates.learn(PEER, &Report { bytes_per_s: 0, ..failed }, at(3));
        let path = rates.find(PEER, at(3)).unwrap();
        assert_eq!((path.bytes_per_s, path.failures), (50_000, FAILURES_MAX));
        assert!(rates.find(PEER, at(601)).is_none(), "failures do not keep it alive");
        let proven = Report { start: KnownStart::Proven, ..seen(40_000) };
        rates.learn(PEER, &proven, at(500));
        let path = rates.find(PEER, at(1099)).unwrap();
        assert_eq!((path.bytes_per_s, path.failures), (50_000, 0));
    }

    #[test]
    fn bounded_and_the_oldest_gives_way() {
        let mut rates = PathRates::new([1; 16]);
        for n in 0..10_000 {
            rates.learn(Ipv4Addr::from_bits(n).into(), &seen(1), at(1));
        }
        for n in 0..10_000 {
            rates.learn(Ipv6Addr::from_bits(n).into(), &seen(1), at(2));
        }
        let kept: Vec<_> = rates.paths.iter().flatten().collect();
        assert!(kept.len() == WAYS * SETS && kept.iter().all(|path| path.at == at(2)));
        rates.learn(PEER, &seen(7), at(3));
        assert_eq!(rate(&mut rates, 3), Some(7));
    }
}
