//! Link addresses of neighbours, for ARP (RFC 826, RFC 1122 section 2.3.2) and neighbour discovery
//! (RFC 4861 section 7.3) alike: one cache, one state machine, two ways to ask.

use std::net::IpAddr;

use millstream_timer::Instant;

/// Neighbours remembered at most; see [`Neighbors::add`] for who gives way.
const NEIGHBORS_MAX: usize = 256;
/// Neighbours at most that are being asked for an address that is not known. They never make way:
/// whoever is forgotten would be asked again at once (RFC 1122 2.3.2.1, RFC 4861 7.2.2: at most once a
/// second). The others keep their half of the table whatever is being scanned (RFC 6583).
const INCOMPLETE_MAX: usize = NEIGHBORS_MAX / 2;
/// How long an answer proves that a neighbour is there (RFC 4861 section 10; Linux's for ARP).
const REACHABLE_NANOS: u64 = 30_000_000_000;
/// Time from the first use of a stale address to the first question about it.
const DELAY_NANOS: u64 = 5_000_000_000;
/// Time between questions (RFC 1122 2.3.2.1: at most one a second).
const RETRANSMIT_NANOS: u64 = 1_000_000_000;
/// Questions before a neighbour is given up, or a known address forgotten.
const SOLICITS_MAX: u8 = 3;
/// Times that a router may ask of us to believe are kept within these.
const REACHABLE_RANGE_MS: std::ops::RangeInclusive<u32> = 1000..=3_600_000;
const RETRANSMIT_RANGE_MS: std::ops::RangeInclusive<u32> = 100..=10_000;

/// The states of RFC 4861 section 7.3.2, and one for those that did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Asked; no address is known.
    Incomplete { solicits: u8 },
    /// An answer came lately.
    Reachable([u8; 6]),
    /// Believed until it is used.
    Stale([u8; 6]),
    /// Used; something that runs over it may yet prove that it is right.
    Delay([u8; 6]),
    /// Used, and asked whether it is right.
    Probe { mac: [u8; 6], solicits: u8 },
    /// Did not answer: told to all that waited, and to whoever comes at once after them.
    Failed,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    ip: IpAddr,
    status: Status,
    /// When the state ends by itself.
    due: Instant,
}

/// What the cache says of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Its address.
    Known([u8; 6]),
    /// Ask now; see to it that [`Neighbors::poll`] is called when it is due.
    Ask,
    /// Asked; wait.
    Wait,
    /// It did not answer.
    Unreachable,
    /// Not asked: too many others are being asked for theirs.
    Full,
}

/// What is known of an address by whom it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// Its owner answered our question.
    Answer,
    /// Its owner answered, but will not have a known address replaced (a proxy, RFC 4861 7.2.5).
    WeakAnswer,
    /// Its owner asked us something, so we shall have to answer.
    AskedUs,
    /// Its owner told everybody that it has changed.
    Announced,
}

/// A question that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Solicit {
    pub ip: IpAddr,
    /// Ask this station alone; none: everybody.
    pub station: Option<[u8; 6]>,
}

/// A small table; looked up when a connection opens, not for each packet.
pub(crate) struct Neighbors {
    entries: Vec<Entry>,
    reachable_nanos: u64,
    retransmit_nanos: u64,
}

impl Default for Neighbors {
    fn default() -> Self {
        Self {
            entries: Vec::with_capacity(NEIGHBORS_MAX),
            reachable_nanos: REACHABLE_NANOS,
            retransmit_nanos: RETRANSMIT_NANOS,
        }
    }
}

impl Neighbors {
    /// Takes a router's word for the times; zeroes say nothing (RFC 4861 section 6.3.4).
    pub fn set_times(&mut self, reachable_ms: u32, retransmit_ms: u32) {
        if REACHABLE_RANGE_MS.contains(&reachable_ms) {
            self.reachable_nanos = u64::from(reachable_ms) * 1_000_000;
        }
        if RETRANSMIT_RANGE_MS.contains(&retransmit_ms) {
            self.retransmit_nanos = u64::from(retransmit_ms) * 1_000_000;
        }
    }

    /// The address of `ip`, which is about to be used, or what to do to get it.
    pub fn lookup(&mut self, ip: IpAddr, now: Instant) -> Lookup {
        let retransmit = now.plus_nanos(self.retransmit_nanos);
        let incomplete = Status::Incomplete { solicits: 1 };
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.ip == ip) else {
            let added =
                self.may_ask() && self.add(Entry { ip, status: incomplete, due: retransmit });
            return if added { Lookup::Ask } else { Lookup::Full };
        };
        let is_due = entry.due <= now;
        match entry.status {
            Status::Reachable(mac) if is_due => {
                (entry.status, entry.due) = (Status::Delay(mac), now.plus_nanos(DELAY_NANOS));
                Lookup::Known(mac)
            }
            Status::Stale(mac) => {
                (entry.status, entry.due) = (Status::Delay(mac), now.plus_nanos(DELAY_NANOS));
                Lookup::Known(mac)
            }
            Status::Reachable(mac) | Status::Delay(mac) | Status::Probe { mac, .. } => {
                Lookup::Known(mac)
            }
            Status::Incomplete { .. } => Lookup::Wait,
            Status::Failed if !is_due => Lookup::Unreachable,
            Status::Failed => {
                // Starts anew, if it may be asked.
                self.entries.retain(|entry| entry.ip != ip);
                self.lookup(ip, now)
            }
        }
    }

    /// Whether one more neighbour may be asked for its address.
    fn may_ask(&self) -> bool {
        self.entries.iter().filter(|entry| is_incomplete(entry.status)).count() < INCOMPLETE_MAX
    }

    /// The address of `ip`, if it is known. Changes nothing: nothing is sent to it.
    pub fn known(&self, ip: IpAddr) -> Option<[u8; 6]> {
        self.entries.iter().find(|entry| entry.ip == ip).and_then(|entry| mac_of(entry.status))
    }

    /// Whether `ip` is being asked for its address.
    pub fn is_asked(&self, ip: IpAddr) -> bool {
        self.entries.iter().any(|entry| entry.ip == ip && is_incomplete(entry.status))
    }

    /// The next question that is due. Call it until it returns nothing, when the time of
    /// [`Self::next_deadline`] has come; then those that wait should look up again.
    pub fn poll(&mut self, now: Instant) -> Option<Solicit> {
        let retransmit = now.plus_nanos(self.retransmit_nanos);
        let mut at = 0;
        while let Some(entry) = self.entries.get_mut(at) {
            if entry.due > now {
                at += 1;
                continue;
            }
            let ip = entry.ip;
            match entry.status {
                Status::Incomplete { solicits } if solicits < SOLICITS_MAX => {
                    entry.status = Status::Incomplete { solicits: solicits + 1 };
                    entry.due = retransmit;
                    return Some(Solicit { ip, station: None });
                }
                Status::Incomplete { .. } => {
                    (entry.status, entry.due) = (Status::Failed, retransmit);
                }
                Status::Delay(mac) => {
                    (entry.status, entry.due) = (Status::Probe { mac, solicits: 1 }, retransmit);
                    return Some(Solicit { ip, station: Some(mac) });
                }
                Status::Probe { mac, solicits } if solicits < SOLICITS_MAX => {
                    entry.status = Status::Probe { mac, solicits: solicits + 1 };
                    entry.due = retransmit;
                    return Some(Solicit { ip, station: Some(mac) });
                }
                Status::Reachable(mac) => {
                    (entry.status, entry.due) = (Status::Stale(mac), Instant::FAR_FUTURE);
                }
                // Whoever uses it next asks everybody.
                Status::Probe { .. } | Status::Failed => {
                    self.entries.remove(at);
                    continue;
                }
                Status::Stale(_) => {}
            }
            at += 1;
        }
        None
    }

    /// When [`Self::poll`] has something to do.
    pub fn next_deadline(&self) -> Instant {
        self.entries.iter().map(|entry| entry.due).min().unwrap_or(Instant::FAR_FUTURE)
    }

    /// A neighbour told its address. Only those that we ask about, or that ask us, are kept: others
    /// would let anybody fill the table. Returns whether it was of use.
    pub fn learn(&mut self, ip: IpAddr, mac: [u8; 6], evidence: Evidence, now: Instant) -> bool {
        let reachable = (Status::Reachable(mac), now.plus_nanos(self.reachable_nanos));
        let stale = (Status::Stale(mac), Instant::FAR_FUTURE);
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.ip == ip) else {
            return evidence == Evidence::AskedUs
                && self.add(Entry { ip, status: stale.0, due: stale.1 });
        };
        let known = mac_of(entry.status);
        let (status, due) = match (evidence, known) {
            (Evidence::Answer, _) => reachable,
            // RFC 4861 section 7.2.5 (I): it makes a doubt, no more.
            (Evidence::WeakAnswer, Some(known)) if known != mac => match entry.status {
                Status::Reachable(_) => (Status::Stale(known), Instant::FAR_FUTURE),
                _ => return false,
            },
            (Evidence::WeakAnswer, _) => reachable,
            // Its word alone does not prove that what we send arrives.
            (_, Some(known)) if known == mac => return true,
            (_, _) => stale,
        };
        (entry.status, entry.due) = (status, due);
        true
    }

    /// What was sent to a neighbour has arrived: its address is right (RFC 4861 section 7.3.1).
    pub fn confirm(&mut self, ip: IpAddr, now: Instant) {
        let due = now.plus_nanos(self.reachable_nanos);
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.ip == ip)
            && let Some(mac) = mac_of(entry.status)
        {
            (entry.status, entry.due) = (Status::Reachable(mac), due);
        }
    }

    /// Whoever nobody uses gives way first, so that a scan of a large network (RFC 6583) does not
    /// push out the neighbours that are in use before all others. `false`: none could.
    fn add(&mut self, entry: Entry) -> bool {
        if self.entries.len() == NEIGHBORS_MAX {
            let rank = |status: Status| match status {
                Status::Failed => 0,
                Status::Stale(_) => 1,
                Status::Delay(_) | Status::Probe { .. } | Status::Reachable(_) => 2,
                Status::Incomplete { .. } => 3,
            };
            // The first of the lowest: entries stand in order of age.
            let goes = self.entries.iter().enumerate().min_by_key(|(_, e)| rank(e.status));
            match goes {
                Some((at, goes)) if !is_incomplete(goes.status) => drop(self.entries.remove(at)),
                _ => return false,
            }
        }
        self.entries.push(entry);
        true
    }
}

fn is_incomplete(status: Status) -> bool {
    matches!(status, Status::Incomplete { .. })
}

/// The address that a state knows.
fn mac_of(status: Status) -> Option<[u8; 6]> {
    match status {
        Status::Reachable(mac)
        | Status::Stale(mac)
        | Status::Delay(mac)
        | Status::Probe { mac, .. } => Some(mac),
        Status::Incomplete { .. } | Status::Failed => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const IP: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9));
    const MAC: [u8; 6] = [2; 6];
    const OTHER: [u8; 6] = [4; 6];

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn known() -> Neighbors {
        let mut cache = Neighbors::default();
        cache.lookup(IP, at(0));
        assert!(cache.learn(IP, MAC, Evidence::Answer, at(0)));
        cache
    }

    #[test]
    fn asks_once_a_second_and_gives_up() {
        let mut cache = Neighbors::default();
        assert_eq!(cache.lookup(IP, at(0)), Lookup::Ask);
        for second in 1..3 {
            assert_eq!(cache.lookup(IP, at(second)), Lookup::Wait);
            assert_eq!(cache.next_deadline(), at(second));
            assert_eq!(cache.poll(at(second)), Some(Solicit { ip: IP, station: None }));
            assert_eq!(cache.poll(at(second)), None);
        }
        assert_eq!(cache.poll(at(3)), None);
        assert_eq!(cache.lookup(IP, at(3)), Lookup::Unreachable);
        assert_eq!(cache.lookup(IP, at(3)), Lookup::Unreachable, "everybody is told");
        assert_eq!(cache.lookup(IP, at(4)), Lookup::Ask, "starts anew");
    }

    #[test]
    fn what_is_used_is_proved_or_forgotten() {
        let mut cache = known();
        assert_eq!(cache.lookup(IP, at(29)), Lookup::Known(MAC));
        assert_eq!(cache.next_deadline(), at(30));
        assert_eq!(cache.poll(at(30)), None);
        assert_eq!(cache.next_deadline(), Instant::FAR_FUTURE, "nobody uses it, nobody asks");
        assert_eq!(cache.lookup(IP, at(100)), Lookup::Known(MAC));
        for second in 105..108 {
            assert_eq!(cache.next_deadline(), at(second));
            assert_eq!(cache.poll(at(second)), Some(Solicit { ip: IP, station: Some(MAC) }));
            assert_eq!(cache.lookup(IP, at(second)), Lookup::Known(MAC), "meanwhile");
        }
        assert_eq!(cache.poll(at(108)), None);
        assert_eq!(cache.lookup(IP, at(108)), Lookup::Ask, "forgotten");
    }

    #[test]
    fn an_answer_or_what_arrives_ends_the_doubt() {
        for confirm in [false, true] {
            let mut cache = known();
            cache.poll(at(30));
            cache.lookup(IP, at(100));
            cache.poll(at(105));
            if confirm {
                cache.confirm(IP, at(105));
            } else {
                cache.learn(IP, MAC, Evidence::Answer, at(105));
            }
            assert_eq!(cache.next_deadline(), at(135));
            assert_eq!(cache.poll(at(106)), None);
        }
    }

    #[test]
    fn strangers_fill_nothing() {
        let mut cache = Neighbors::default();
        for evidence in [Evidence::Answer, Evidence::WeakAnswer, Evidence::Announced] {
            assert!(!cache.learn(IP, MAC, evidence, at(0)), "nobody asked");
        }
        cache.confirm(IP, at(0));
        assert!(cache.learn(IP, MAC, Evidence::AskedUs, at(0)));
        assert_eq!(cache.lookup(IP, at(0)), Lookup::Known(MAC));
    }

    #[test]
    fn a_changed_address_is_taken_as_rfc_4861_says() {
        let mut cache = known();
        assert!(cache.learn(IP, OTHER, Evidence::WeakAnswer, at(1)));
        assert_eq!(cache.lookup(IP, at(1)), Lookup::Known(MAC), "not replaced, only doubted");
        assert_eq!(cache.next_deadline(), at(6));
        let mut cache = known();
        assert!(cache.learn(IP, OTHER, Evidence::Announced, at(1)));
        assert_eq!(cache.lookup(IP, at(1)), Lookup::Known(OTHER));
        assert_eq!(cache.next_deadline(), at(6), "to be proved");
        let mut cache = known();
        assert!(cache.learn(IP, MAC, Evidence::AskedUs, at(1)));
        assert_eq!(cache.next_deadline(), at(30), "no news");
    }

    #[test]
    fn bounded_and_those_in_use_stay() {
        let mut cache = known();
        for n in 0..1000 {
            cache.lookup(Ipv4Addr::from_bits(n).into(), at(0));
            cache.learn(Ipv6Addr::from_bits(n.into()).into(), MAC, Evidence::AskedUs, at(0));
        }
        assert_eq!(cache.entries.len(), NEIGHBORS_MAX);
        assert_eq!(cache.lookup(IP, at(0)), Lookup::Known(MAC));
    }

    #[test]
    fn a_scan_asks_nobody_twice_and_leaves_room_for_others() {
        let mut cache = Neighbors::default();
        let ip = |n: u32| IpAddr::from(Ipv4Addr::from_bits(n));
        let mut asked = 0;
        for _ in 0..3 {
            for n in 0..400 {
                asked += usize::from(cache.lookup(ip(n), at(0)) == Lookup::Ask);
            }
        }
        assert_eq!(asked, INCOMPLETE_MAX, "no one is forgotten to be asked again");
        assert_eq!(cache.lookup(ip(399), at(0)), Lookup::Full);
        for n in 1000..2000 {
            assert!(cache.learn(ip(n), MAC, Evidence::AskedUs, at(0)), "who asks us has room");
        }
        assert_eq!(cache.lookup(ip(0), at(0)), Lookup::Wait, "still being asked");
        assert_eq!(cache.known(ip(1999)), Some(MAC));
    }

    #[test]
    fn a_routers_times_are_taken_within_reason() {
        let mut cache = Neighbors::default();
        cache.set_times(0, 0);
        cache.set_times(1, 1);
        cache.set_times(u32::MAX, u32::MAX);
        assert_eq!(cache.reachable_nanos, REACHABLE_NANOS);
        assert_eq!(cache.retransmit_nanos, RETRANSMIT_NANOS);
        cache.set_times(20_000, 2000);
        assert_eq!(
            (cache.reachable_nanos, cache.retransmit_nanos),
            (20_000_000_000, 2_000_000_000)
        );
    }

    proptest! {
        /// Whatever comes in whatever order: polling ends, and nothing stays due.
        #[test]
        fn polling_comes_to_an_end(ops in prop::collection::vec((0u8..7, 0u32..4, 0u64..40), 0..200)) {
            let mut cache = Neighbors::default();
            let mut now = 0;
            for (op, n, wait) in ops {
                let ip = Ipv4Addr::from_bits(n).into();
                match op {
                    0 => { cache.lookup(ip, at(now)); }
                    1 => { cache.learn(ip, MAC, Evidence::Answer, at(now)); }
                    2 => { cache.learn(ip, OTHER, Evidence::WeakAnswer, at(now)); }
                    3 => { cache.learn(ip, OTHER, Evidence::Announced, at(now)); }
                    4 => { cache.learn(ip, MAC, Evidence::AskedUs, at(now)); }
                    5 => cache.confirm(ip, at(now)),
                    _ => {
                        now += wait;
                        for _ in 0..=4 * usize::from(SOLICITS_MAX) {
                            if cache.poll(at(now)).is_none() { break; }
                        }
                        prop_assert_eq!(cache.poll(at(now)), None);
                        prop_assert!(cache.next_deadline() > at(now));
                    }
                }
            }
        }
    }
}
