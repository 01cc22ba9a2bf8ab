//! What routers told about the path to a destination: the largest packet that passes (RFC 1191,
//! RFC 8201).

use std::net::IpAddr;

use millstream_timer::Instant;

/// Destinations remembered at most; the oldest gives way.
const PATHS_MAX: usize = 256;
/// How long a path's MTU is believed (RFC 1191 section 6.3, RFC 8201 section 4: ten minutes).
const LIFETIME_NANOS: u64 = 600_000_000_000;

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
}

/// A small table; looked up when a connection opens, not for each packet.
pub(crate) struct PathMtus {
    /// Never grows.
    paths: Vec<Path>,
}

impl Default for PathMtus {
    fn default() -> Self {
        Self { paths: Vec::with_capacity(PATHS_MAX) }
    }
}

impl PathMtus {
    /// What is known of the path to `destination`.
    pub fn get(&self, destination: IpAddr, now: Instant) -> Option<u16> {
        let path = self.paths.iter().find(|path| path.destination == destination)?;
        (now < path.until).then_some(path.mtu)
    }

    /// Remembers that no more than `mtu` bytes pass; returns whether that is less than was known.
    /// Never raises what is known: only time does (RFC 8201 section 4).
    pub fn lower(&mut self, destination: IpAddr, mtu: u16, now: Instant) -> bool {
        let until = now.plus_nanos(LIFETIME_NANOS);
        self.paths.retain(|path| now < path.until);
        match self.paths.iter_mut().find(|path| path.destination == destination) {
            Some(path) if path.mtu < mtu => return false,
            Some(path) => {
                let known = path.mtu;
                (path.mtu, path.until) = (mtu, until);
                return mtu < known;
            }
            None => {
                if self.paths.len() == PATHS_MAX {
                    self.paths.remove(0);
                }
                self.paths.push(Path { destination, mtu, until });
            }
        }
        true
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
        paths.lower(V6, 1400, at(0));
        paths.lower(V6, 1450, at(1));
        assert_eq!(paths.get(V6, at(1)), Some(1400));
        paths.lower(V6, 1300, at(2));
        assert_eq!(paths.get(V6, at(601)), Some(1300));
        assert_eq!(paths.get(V6, at(602)), None);
        assert_eq!(paths.get(V4, at(2)), None);
        paths.lower(V4, 1400, at(3));
        assert_eq!(paths.get(V4, at(3)), Some(1400));
    }

    #[test]
    fn bounded() {
        let mut paths = PathMtus::default();
        for n in 0..1000 {
            paths.lower(Ipv4Addr::from_bits(n).into(), 1400, at(0));
        }
        assert_eq!(paths.paths.len(), PATHS_MAX);
        paths.lower(V4, 1400, at(600));
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
