//! The largest packet that passes on the path to a destination: told by routers (RFC 1191, RFC 8201),
//! or found out (RFC 4821). A path that was found to be narrow is searched for more: at once if nobody
//! said how much passes, and every ten minutes, since paths change.

use std::net::IpAddr;

use millstream_timer::Instant;

use crate::conn::ConnId;

/// Destinations remembered at most; the oldest gives way.
const PATHS_MAX: usize = 256;
/// How long a path's MTU is believed (RFC 1191 section 6.3, RFC 8201 section 4: ten minutes).
const LIFETIME_NANOS: u64 = 600_000_000_000;

/// From the end of one search for more to the next (RFC 4821 section 7.3 leaves at least five minutes,
/// Linux ten).
const SEARCH_NANOS: u64 = 600_000_000_000;
/// From a trial that told nothing to the next.
const RETRY_NANOS: u64 = 5_000_000_000;
/// How long a trial may take.
pub(crate) const TRIAL_NANOS: u64 = 60_000_000_000;
/// A search that has come as close as this is over (as in Linux).
const SEARCH_STEP: u16 = 8;

/// The least that we believe of an IPv4 path. RFC 791 allows 68, but a forged message could then
/// make packets nearly all headers; every host takes 576 bytes, and links of today carry that.
pub(crate) const IPV4_MIN: u16 = 552;
/// RFC 8201 section 4: a packet too big message that names less is not believed.
pub(crate) const IPV6_MIN: u16 = millstream_wire::ipv6::MTU_MIN;

/// MTUs in use (RFC 1191 section 7.1), for routers that do not say theirs.
const PLATEAUS: [u16; 10] = [32_000, 17_914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68];

#[derive(Clone, Copy, Debug)]
struct Path {
    destination: IpAddr,
    mtu: u16,
    until: Instant,
    /// What was sent before it was found to be narrow, and the most that may pass.
    most: u16,
    high: u16,
    /// Not before then is more tried.
    search_at: Instant,
}

impl Path {
    /// Nothing above `high` passes.
    fn narrow(&mut self, high: u16, now: Instant) {
        self.high = high;
        self.search_at = now;
        if self.high.saturating_sub(self.mtu) < SEARCH_STEP {
            // As good as found. Paths change: some time later all is tried again.
            self.high = self.most;
            self.search_at = now.plus_nanos(SEARCH_NANOS);
        }
    }
}

/// A larger packet that is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trial {
    pub destination: IpAddr,
    /// The connection that tries it.
    pub who: ConnId,
    pub mtu: u16,
    /// How many had been lost before.
    pub lost_before: u64,
    /// When it is given up, if the connection sends nothing more.
    pub until: Instant,
}

/// A small table; looked up when a connection opens, not for each packet.
pub(crate) struct PathMtus {
    /// Never grows.
    paths: Vec<Path>,
    /// One at a time.
    trial: Option<Trial>,
}

impl Default for PathMtus {
    fn default() -> Self {
        Self { paths: Vec::with_capacity(PATHS_MAX), trial: None }
    }
}

impl PathMtus {
    /// What is known of the path to `destination`.
    pub fn get(&self, destination: IpAddr, now: Instant) -> Option<u16> {
        let path = self.paths.iter().find(|path| path.destination == destination)?;
        (now < path.until).then_some(path.mtu)
    }

    /// Remembers that no more than `mtu` of `most` bytes that were sent pass; returns whether that is
    /// less than was known. Never raises what is known: only time does (RFC 8201 section 4), or a larger
    /// packet that arrives. `told`: a router said how much passes, so that more is not tried for a while.
    pub fn lower(
        &mut self,
        destination: IpAddr,
        mtu: u16,
        most: u16,
        told: bool,
        now: Instant,
    ) -> bool {
        let until = now.plus_nanos(LIFETIME_NANOS);
        let search_at = if told { now.plus_nanos(SEARCH_NANOS) } else { now };
        // What is believed no more may still be searched for.
        self.paths.retain(|path| now < path.until.plus_nanos(SEARCH_NANOS));
        match self.paths.iter_mut().find(|path| path.destination == destination) {
            Some(path) if path.mtu < mtu && now < path.until => return false,
            Some(path) => {
                let known = path.mtu;
                let most = path.most.max(most);
                *path = Path { destination, mtu, until, most, high: most, search_at };
                return mtu < known;
            }
            None => {
                if self.paths.len() == PATHS_MAX {
                    self.paths.remove(0);
                }
                let path = Path { destination, mtu, until, most, high: most, search_at };
                self.paths.push(path);
            }
        }
        true
    }

    /// Whether no path is known to be narrow.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    fn path_mut(&mut self, destination: IpAddr) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.destination == destination)
    }

    /// What is known to pass on a path that was searched, however old that is.
    pub fn known(&self, destination: IpAddr) -> Option<u16> {
        self.paths.iter().find(|path| path.destination == destination).map(|path| path.mtu)
    }

    /// What is tried.
    pub fn trial(&self) -> Option<Trial> {
        self.trial
    }

    /// What to try next, halfway between what passes and what may (RFC 4821 section 7.3).
    pub fn next_trial(&self, destination: IpAddr, now: Instant) -> Option<u16> {
        let path = self.paths.iter().find(|path| path.destination == destination)?;
        let open = self.trial.is_none() && now >= path.search_at;
        // The last step is the whole: most paths carry what the link does, or nothing near it.
        let first = path.high == path.most && path.high.saturating_sub(path.mtu) >= SEARCH_STEP;
        let half = path.mtu + path.high.saturating_sub(path.mtu).div_ceil(2);
        (open && path.high > path.mtu).then_some(if first { path.most } else { half })
    }

    /// Something is tried, of what [`Self::next_trial`] named.
    pub fn begin_trial(&mut self, trial: Trial) {
        self.trial = Some(trial);
    }

    /// What came of a trial: it passed, or was lost, or (`None`) it cannot be told.
    pub fn end_trial(&mut self, passed: Option<bool>, now: Instant) {
        let Some(Trial { destination, mtu, .. }) = self.trial.take() else { return };
        let Some(path) = self.path_mut(destination) else { return };
        match passed {
            Some(true) => {
                path.mtu = mtu.max(path.mtu);
                path.until = now.plus_nanos(LIFETIME_NANOS);
                path.narrow(path.high, now);
            }
            Some(false) => path.narrow(mtu - 1, now),
            None => path.search_at = now.plus_nanos(RETRY_NANOS),
        }
    }
}

/// The MTU that a router means which refused a packet of `packet_len` bytes and announced
/// `announced` (0: it did not). `None`: the message makes no sense.
pub(crate) fn announced_mtu(
    destination: IpAddr,
    announced: u32,
    packet_len: Option<u16>,
) -> Option<u16> {
    let least = if destination.is_ipv4() { IPV4_MIN } else { IPV6_MIN };
    let announced = u16::try_from(announced).unwrap_or(u16::MAX);
    let mtu = match (announced, packet_len) {
        (0, Some(len)) => PLATEAUS.into_iter().find(|plateau| *plateau < len)?,
        (0, None) => return None,
        (mtu, _) => mtu,
    };
    if destination.is_ipv6() && mtu < least { None } else { Some(mtu.max(least)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn only_time_raises_what_is_known() {
        let mut paths = PathMtus::default();
        assert_eq!(paths.get(V6, at(0)), None);
        paths.lower(V6, 1400, 1500, true, at(0));
        paths.lower(V6, 1450, 1500, true, at(1));
        assert_eq!(paths.get(V6, at(1)), Some(1400));
        paths.lower(V6, 1300, 1500, true, at(2));
        assert_eq!(paths.get(V6, at(601)), Some(1300));
        assert_eq!(paths.get(V6, at(602)), None);
        assert_eq!(paths.get(V4, at(2)), None);
        paths.lower(V4, 1400, 1500, true, at(3));
        assert_eq!(paths.get(V4, at(3)), Some(1400));
    }

    /// Of a path that carries 1,300 bytes: what is tried, and how it ends.
    #[test]
    fn a_search_ends_near_what_passes_and_begins_anew() {
        let mut paths = PathMtus::default();
        let who = ConnId { number: 1, generation: 1 };
        let trial = |mtu| Trial { destination: V4, who, mtu, lost_before: 0, until: at(9_999) };
        let mut now = at(1);
        paths.lower(V4, 1280, 1500, false, now);
        let mut tried = Vec::new();
        while let Some(mtu) = paths.next_trial(V4, now) {
            tried.push(mtu);
            paths.begin_trial(trial(mtu));
            assert_eq!((paths.trial(), paths.next_trial(V4, now)), (Some(trial(mtu)), None));
            paths.end_trial(Some(mtu <= 1300), now);
        }
        assert_eq!(tried, [1500, 1390, 1335, 1307, 1293, 1300]);
        assert_eq!(paths.get(V4, now), Some(1300));
        // Ten minutes later the path carries more; one trial tells nothing.
        now = at(602);
        assert_eq!(paths.next_trial(V4, now), Some(1500));
        paths.begin_trial(trial(1500));
        paths.end_trial(None, now);
        assert_eq!(paths.next_trial(V4, now), None);
        now = at(607);
        paths.begin_trial(trial(paths.next_trial(V4, now).unwrap()));
        paths.end_trial(Some(true), now);
        assert_eq!((paths.get(V4, now), paths.next_trial(V4, at(2000))), (Some(1500), None));
        // Of what a router says more is not tried at once.
        paths.lower(V6, 1400, 1500, true, now);
        assert_eq!(paths.next_trial(V6, now), None);
        assert_eq!(paths.next_trial(V6, at(1300)), Some(1500));
    }

    /// A router names more than a connection with a small MSS sends.
    #[test]
    fn a_path_wider_than_what_was_sent_is_not_searched() {
        let mut paths = PathMtus::default();
        paths.lower(V4, 1400, 576, true, at(0));
        assert_eq!(paths.next_trial(V4, at(0)), None);
        assert_eq!(paths.next_trial(V4, at(9999)), None);
    }

    #[test]
    fn bounded() {
        let mut paths = PathMtus::default();
        for n in 0..1000 {
            paths.lower(Ipv4Addr::from_bits(n).into(), 1400, 1500, true, at(0));
        }
        assert_eq!(paths.paths.len(), PATHS_MAX);
        paths.lower(V4, 1400, 1500, true, at(1200));
        assert_eq!(paths.paths.len(), 1);
    }

    #[test]
    fn announcements_are_taken_within_reason() {
        assert_eq!(announced_mtu(V4, 1400, Some(1500)), Some(1400));
        assert_eq!(announced_mtu(V4, 68, Some(1500)), Some(IPV4_MIN));
        assert_eq!(announced_mtu(V4, 0, Some(1500)), Some(1492));
        assert_eq!(announced_mtu(V4, 0, Some(1492)), Some(1006));
        assert_eq!(announced_mtu(V4, 0, Some(68)), None);
        assert_eq!(announced_mtu(V6, 1280, None), Some(1280));
        assert_eq!(announced_mtu(V6, 1279, None), None);
        assert_eq!(announced_mtu(V6, 0, None), None);
        assert_eq!(announced_mtu(V6, 1 << 20, None), Some(u16::MAX));
    }
}
