//! Link addresses of neighbours (RFC 826, RFC 1122 section 2.3.2).

use std::net::Ipv4Addr;

use millstream_timer::Instant;

/// Neighbours remembered at most; the oldest gives way.
const NEIGHBORS_MAX: usize = 256;
/// How long an address is believed.
const REACHABLE_NANOS: u64 = 60_000_000_000;
/// Time between requests for an address (RFC 1122 2.3.2.1: at most one a second).
const RETRY_NANOS: u64 = 1_000_000_000;
/// Requests before a neighbour is given up.
const REQUESTS_MAX: u8 = 4;

#[derive(Clone, Copy, Debug)]
enum Status {
    Asked { at: Instant, requests: u8 },
    Known { mac: [u8; 6], until: Instant },
    Failed { until: Instant },
}

/// What the cache says of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Its address.
    Known([u8; 6]),
    /// Ask now (and again no sooner than in a second).
    Ask,
    /// Asked; wait.
    Wait,
    /// It did not answer.
    Unreachable,
}

/// A small table; looked up when a connection opens, not for each packet.
#[derive(Default)]
pub(crate) struct Neighbors {
    entries: Vec<(Ipv4Addr, Status)>,
}

impl Neighbors {
    /// The address of `ip`, or what to do to get it.
    pub fn lookup(&mut self, ip: Ipv4Addr, now: Instant) -> Lookup {
        let asked = Status::Asked { at: now, requests: 1 };
        let Some((_, status)) = self.entries.iter_mut().find(|entry| entry.0 == ip) else {
            self.add(ip, asked);
            return Lookup::Ask;
        };
        match *status {
            Status::Known { mac, until } if now < until => Lookup::Known(mac),
            Status::Known { .. } => {
                *status = asked;
                Lookup::Ask
            }
            Status::Asked { at, .. } if now < at.plus_nanos(RETRY_NANOS) => Lookup::Wait,
            Status::Asked { requests, .. } if requests >= REQUESTS_MAX => {
                *status = Status::Failed { until: now.plus_nanos(RETRY_NANOS) };
                Lookup::Unreachable
            }
            // Told to all that waited, and to whoever comes at once after them.
            Status::Failed { until } if now < until => Lookup::Unreachable,
            Status::Failed { .. } => {
                *status = asked;
                Lookup::Ask
            }
            Status::Asked { requests, .. } => {
                *status = Status::Asked { at: now, requests: requests + 1 };
                Lookup::Ask
            }
        }
    }

    /// A neighbour told its address. Only those that we asked for, or that `asked_us`, are kept:
    /// others would let anybody fill the table.
    pub fn learn(&mut self, ip: Ipv4Addr, mac: [u8; 6], asked_us: bool, now: Instant) -> bool {
        let known = Status::Known { mac, until: now.plus_nanos(REACHABLE_NANOS) };
        match self.entries.iter_mut().find(|entry| entry.0 == ip) {
            Some((_, status)) => *status = known,
            None if asked_us => self.add(ip, known),
            None => return false,
        }
        true
    }

    fn add(&mut self, ip: Ipv4Addr, status: Status) {
        if self.entries.len() == NEIGHBORS_MAX {
            self.entries.remove(0);
        }
        self.entries.push((ip, status));
    }

    /// When to ask again whoever has not answered.
    pub fn retry_at(now: Instant) -> Instant {
        now.plus_nanos(RETRY_NANOS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 9);

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn asks_once_a_second_and_gives_up() {
        let mut cache = Neighbors::default();
        for second in 0..4 {
            assert_eq!(cache.lookup(IP, at(second)), Lookup::Ask);
            assert_eq!(cache.lookup(IP, at(second)), Lookup::Wait);
        }
        assert_eq!(cache.lookup(IP, at(4)), Lookup::Unreachable);
        assert_eq!(cache.lookup(IP, at(4)), Lookup::Unreachable, "everybody is told");
        assert_eq!(cache.lookup(IP, at(5)), Lookup::Ask, "starts anew");
    }

    #[test]
    fn an_answer_lasts_a_minute() {
        let mut cache = Neighbors::default();
        assert!(!cache.learn(IP, [1; 6], false, at(0)), "nobody asked");
        cache.lookup(IP, at(0));
        assert!(cache.learn(IP, [2; 6], false, at(0)));
        assert_eq!(cache.lookup(IP, at(59)), Lookup::Known([2; 6]));
        assert_eq!(cache.lookup(IP, at(60)), Lookup::Ask);
    }

    #[test]
    fn bounded() {
        let mut cache = Neighbors::default();
        for n in 0..1000u32 {
            cache.lookup(Ipv4Addr::from_bits(n), at(0));
        }
        assert_eq!(cache.entries.len(), NEIGHBORS_MAX);
    }
}
