//! What a host knows of its IPv6 link: its addresses with their proof against duplicates (RFC 4862),
//! prefixes, routers and parameters (RFC 4861 section 5 and 6.3). No I/O: it says what is to be sent.

use std::net::Ipv6Addr;

use arrayvec::ArrayVec;
use millstream_timer::Instant;
use millstream_wire::ethernet::Address as Mac;
use millstream_wire::ipv6::{self, same_prefix};
use millstream_wire::ndp::{NdpOption, Prefix, RouterAdvertisement};
use siphasher::sip::SipHasher24;

use crate::config::Ipv6Config;

/// Addresses at most, the link-local one included.
const ADDRESSES_MAX: usize = 16;
/// Prefixes and routers that are remembered at most.
const PREFIXES_MAX: usize = 16;
const ROUTERS_MAX: usize = 4;

/// Time between probes for a duplicate (RFC 4861 section 10), and from the last one to the use.
const PROBE_NANOS: u64 = 1_000_000_000;
/// Probes for a duplicate (RFC 4862 section 5.1).
const PROBES: u8 = 1;
/// Solicitations for a router, and the time between them (RFC 4861 section 10).
const SOLICITATIONS: u8 = 3;
const SOLICITATION_NANOS: u64 = 4_000_000_000;
/// Times that another address is tried when one turns out to be a duplicate (RFC 7217 section 7).
const IDENTIFIERS_MAX: u8 = 3;
/// Below this an unauthenticated advertisement may not shorten a lifetime (RFC 4862 5.5.3 e).
const TWO_HOURS_S: u32 = 7200;
/// Length of an interface identifier on Ethernet (RFC 2464 section 4): prefixes have the rest.
const PREFIX_LEN: u8 = 64;
const FOR_EVER_S: u32 = u32::MAX;
/// Hops that we allow a packet whatever a router announces: one forged advertisement of a few would
/// cut us off from all that is farther away.
const HOP_LIMIT_MIN: u8 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Not ours before nobody has answered a probe (RFC 4862 section 5.4).
    Tentative { probes_left: u8, due: Instant },
    /// Ours.
    Valid,
    /// Somebody else's. Remembered, so that it is not made again.
    Duplicate,
}

#[derive(Clone, Copy, Debug)]
struct Address {
    ip: Ipv6Addr,
    prefix_len: u8,
    status: Status,
    /// Made from a prefix that a router announced; else configured.
    autonomous: bool,
    /// Which of the addresses that could be made from the prefix.
    attempt: u8,
    preferred_until: Instant,
    valid_until: Instant,
}

#[derive(Clone, Copy, Debug)]
struct OnLink {
    prefix: Ipv6Addr,
    prefix_len: u8,
    /// No router can take it away.
    configured: bool,
    until: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Router {
    ip: Ipv6Addr,
    until: Instant,
}

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A neighbour solicitation for this address of our own, from nobody.
    ProbeAddress(Ipv6Addr),
    /// A router solicitation, from an address of ours if there is one.
    SolicitRouters(Option<Ipv6Addr>),
}

/// What is known of the link.
pub(crate) struct Host {
    mac: Mac,
    slaac: bool,
    /// The key of opaque interface identifiers (RFC 7217); none: they are made of the MAC address.
    stable_secret: Option<[u8; 16]>,
    gateway: Option<Ipv6Addr>,
    addresses: ArrayVec<Address, ADDRESSES_MAX>,
    on_link: ArrayVec<OnLink, PREFIXES_MAX>,
    routers: ArrayVec<Router, ROUTERS_MAX>,
    solicitations_left: u8,
    solicit_at: Instant,
    /// Of what we send.
    pub hop_limit: u8,
    /// The link's, at most what the device carries.
    pub mtu: u16,
    device_mtu: u16,
    /// Addresses that turned out to be somebody else's.
    pub duplicates: u64,
}

impl Host {
    pub fn new(config: &Ipv6Config, mac: [u8; 6], device_mtu: u16, now: Instant) -> Self {
        let mut host = Self {
            mac: Mac(mac),
            slaac: config.slaac,
            stable_secret: config.stable_secret,
            gateway: config.gateway,
            addresses: ArrayVec::new(),
            on_link: ArrayVec::new(),
            routers: ArrayVec::new(),
            solicitations_left: if config.slaac { SOLICITATIONS } else { 0 },
            // Together with the proof of the link-local address, the source of the solicitation.
            solicit_at: now.plus_nanos(PROBE_NANOS),
            hop_limit: HOP_LIMIT_MIN,
            mtu: device_mtu,
            device_mtu,
            duplicates: 0,
        };
        let link_local = host.make_address(ipv6::link_local(0), 0);
        host.add(link_local, PREFIX_LEN, false, 0, (Instant::FAR_FUTURE, Instant::FAR_FUTURE), now);
        for &(ip, prefix_len) in &config.addresses {
            let for_ever = (Instant::FAR_FUTURE, Instant::FAR_FUTURE);
            host.add(ip, prefix_len, false, 0, for_ever, now);
            let until = Instant::FAR_FUTURE;
            let on_link = OnLink { prefix: ip, prefix_len, configured: true, until };
            // More prefixes than fit are reached over the gateway.
            let _ = host.on_link.try_push(on_link);
        }
        host
    }

    // ---- What is ours ----------------------------------------------------------------------

    /// Whether a packet to `ip` is for us: a valid address of ours.
    pub fn is_ours(&self, ip: Ipv6Addr) -> bool {
        self.addresses.iter().any(|own| own.ip == ip && own.status == Status::Valid)
    }

    /// Whether we are about to take `ip`, if nobody has it.
    pub fn is_tentative(&self, ip: Ipv6Addr) -> bool {
        self.addresses
            .iter()
            .any(|own| own.ip == ip && matches!(own.status, Status::Tentative { .. }))
    }

    /// Whether `ip` is ours, or will be if nobody else has it.
    pub fn is_or_will_be_ours(&self, ip: Ipv6Addr) -> bool {
        self.is_ours(ip) || self.is_tentative(ip)
    }

    /// When the last address whose proof is under way may be ours; `None` if there is none.
    pub fn tentative_until(&self) -> Option<Instant> {
        let due = |own: &Address| match own.status {
            Status::Tentative { due, probes_left } => {
                Some(due.plus_nanos(u64::from(probes_left) * PROBE_NANOS))
            }
            Status::Valid | Status::Duplicate => None,
        };
        self.addresses.iter().filter_map(due).max()
    }

    /// Whether what routers announce is taken.
    pub fn takes_advertisements(&self) -> bool {
        self.slaac
    }

    /// Whether packets to the group are for us (RFC 4291 section 2.8).
    pub fn listens_to(&self, group: Ipv6Addr) -> bool {
        group == ipv6::ALL_NODES
            || self.addresses.iter().any(|own| ipv6::solicited_node(own.ip) == group)
    }

    /// Our address for packets to `destination` (RFC 6724 section 5, as far as it concerns a host
    /// with one interface): of its scope, preferred, and with the longest common prefix.
    pub fn source_for(&self, destination: Ipv6Addr, now: Instant) -> Option<Ipv6Addr> {
        let local = is_link_scope(destination);
        self.addresses
            .iter()
            .filter(|own| own.status == Status::Valid)
            .filter(|own| own.ip.is_unicast_link_local() == local)
            .max_by_key(|own| {
                let common = (own.ip.to_bits() ^ destination.to_bits()).leading_zeros();
                (now < own.preferred_until, common)
            })
            .map(|own| own.ip)
    }

    /// Our first valid address that others on the internet can reach, or the link-local one.
    pub fn primary(&self) -> Option<Ipv6Addr> {
        let valid = || self.addresses.iter().filter(|own| own.status == Status::Valid);
        valid().find(|own| !own.ip.is_unicast_link_local()).or(valid().next()).map(|own| own.ip)
    }

    /// The neighbour to which a packet for `destination` goes, if there is a way.
    pub fn next_hop(&self, destination: Ipv6Addr) -> Option<Ipv6Addr> {
        let on_link = is_link_scope(destination)
            || self.on_link.iter().any(|p| same_prefix(p.prefix, destination, p.prefix_len));
        if on_link {
            return Some(destination);
        }
        self.gateway.or(self.routers.first().map(|router| router.ip))
    }

    // ---- What the link says ----------------------------------------------------------------

    /// Somebody else uses or probes for an address that we are probing for (RFC 4862 5.4.4).
    pub fn on_duplicate(&mut self, ip: Ipv6Addr, now: Instant) {
        let found = self
            .addresses
            .iter_mut()
            .find(|own| own.ip == ip && matches!(own.status, Status::Tentative { .. }));
        let Some(own) = found else { return };
        own.status = Status::Duplicate;
        self.duplicates += 1;
        let own = *own;
        // Of an opaque identifier there is another; that of a MAC address is what it is.
        let made = own.autonomous || own.ip.is_unicast_link_local();
        if made && self.stable_secret.is_some() && own.attempt + 1 < IDENTIFIERS_MAX {
            let next = self.make_address(own.ip, own.attempt + 1);
            let until = (own.preferred_until, own.valid_until);
            self.add(next, own.prefix_len, own.autonomous, own.attempt + 1, until, now);
        }
    }

    /// A router told of the link (RFC 4861 section 6.3.4, RFC 4862 section 5.5.3). It was checked to
    /// be a neighbour with a link-local address.
    pub fn on_advertisement(&mut self, from: Ipv6Addr, ra: &RouterAdvertisement<'_>, now: Instant) {
        if !self.slaac {
            return;
        }
        self.solicitations_left = 0;
        if ra.hop_limit != 0 {
            self.hop_limit = ra.hop_limit.max(HOP_LIMIT_MIN);
        }
        let until = lifetime(u32::from(ra.lifetime_s), now);
        match self.routers.iter_mut().find(|router| router.ip == from) {
            Some(router) => router.until = until,
            // What does not fit would be used only after the others.
            None => drop(self.routers.try_push(Router { ip: from, until })),
        }
        self.routers.retain(|router| now < router.until);
        for option in ra.options.iter() {
            match option {
                NdpOption::Mtu(mtu) => {
                    let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
                    if (ipv6::MTU_MIN..=self.device_mtu).contains(&mtu) {
                        self.mtu = mtu;
                    }
                }
                NdpOption::Prefix(prefix) => self.on_prefix(&prefix, now),
                NdpOption::SourceMac(_) | NdpOption::TargetMac(_) => {}
            }
        }
    }

    fn on_prefix(&mut self, announced: &Prefix, now: Instant) {
        let Prefix { prefix, prefix_len, valid_s, preferred_s, .. } = *announced;
        if prefix_len > 128 || is_link_scope(prefix) || prefix.is_multicast() {
            return;
        }
        let until = lifetime(valid_s, now);
        if announced.on_link {
            let known = self
                .on_link
                .iter_mut()
                .find(|p| p.prefix_len == prefix_len && same_prefix(p.prefix, prefix, prefix_len));
            match known {
                Some(known) if known.configured => {}
                Some(known) => known.until = until,
                None => {
                    let announced = OnLink { prefix, prefix_len, configured: false, until };
                    let _ = self.on_link.try_push(announced);
                }
            }
            self.on_link.retain(|p| now < p.until);
        }
        if !announced.autonomous || prefix_len != PREFIX_LEN || preferred_s > valid_s {
            return;
        }
        let preferred_until = lifetime(preferred_s, now);
        let mut known = false;
        for own in &mut self.addresses {
            if own.autonomous && same_prefix(own.ip, prefix, PREFIX_LEN) {
                known = true;
                own.preferred_until = preferred_until;
                // A forged advertisement shall not take our addresses away at once.
                let left_s = own.valid_until.nanos_since(now) / 1_000_000_000;
                if valid_s > TWO_HOURS_S || u64::from(valid_s) > left_s {
                    own.valid_until = until;
                } else if left_s > u64::from(TWO_HOURS_S) {
                    own.valid_until = lifetime(TWO_HOURS_S, now);
                }
            }
        }
        if !known && valid_s > 0 {
            let ip = self.make_address(prefix, 0);
            self.add(ip, PREFIX_LEN, true, 0, (preferred_until, until), now);
        }
    }

    // ---- Time ------------------------------------------------------------------------------

    /// The next thing that is due. Call it until it returns nothing, when the time of
    /// [`Self::next_deadline`] has come.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        for own in &mut self.addresses {
            if let Status::Tentative { probes_left, due } = own.status
                && due <= now
            {
                if let Some(probes_left) = probes_left.checked_sub(1) {
                    let due = now.plus_nanos(PROBE_NANOS);
                    own.status = Status::Tentative { probes_left, due };
                    return Some(Action::ProbeAddress(own.ip));
                }
                own.status = Status::Valid;
            }
        }
        self.addresses.retain(|own| now < own.valid_until);
        self.on_link.retain(|prefix| now < prefix.until);
        let routers = self.routers.len();
        self.routers.retain(|router| now < router.until);
        if routers > 0 && self.routers.is_empty() && self.slaac {
            // RFC 4861 section 6.3.7: find another.
            (self.solicitations_left, self.solicit_at) = (SOLICITATIONS, now);
        }
        if self.solicitations_left > 0 && self.solicit_at <= now {
            self.solicitations_left -= 1;
            self.solicit_at = now.plus_nanos(SOLICITATION_NANOS);
            return Some(Action::SolicitRouters(self.source_for(ipv6::ALL_ROUTERS, now)));
        }
        None
    }

    /// When [`Self::poll`] has something to do.
    pub fn next_deadline(&self) -> Instant {
        let addresses = self.addresses.iter().map(|own| match own.status {
            Status::Tentative { due, .. } => due.min(own.valid_until),
            Status::Valid | Status::Duplicate => own.valid_until,
        });
        let solicit = (self.solicitations_left > 0).then_some(self.solicit_at);
        addresses
            .chain(self.on_link.iter().map(|prefix| prefix.until))
            .chain(self.routers.iter().map(|router| router.until))
            .chain(solicit)
            .min()
            .unwrap_or(Instant::FAR_FUTURE)
    }

    // ---- Addresses -------------------------------------------------------------------------

    fn add(
        &mut self,
        ip: Ipv6Addr,
        prefix_len: u8,
        autonomous: bool,
        attempt: u8,
        (preferred_until, valid_until): (Instant, Instant),
        now: Instant,
    ) {
        let status = Status::Tentative { probes_left: PROBES, due: now };
        let usable = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
        if usable && !self.addresses.iter().any(|own| own.ip == ip) {
            // What does not fit is left out: a router may announce prefixes without end.
            let _ = self.addresses.try_push(Address {
                ip,
                prefix_len,
                status,
                autonomous,
                attempt,
                preferred_until,
                valid_until,
            });
        }
    }

    /// The address that we take with a prefix of 64 bits.
    fn make_address(&self, prefix: Ipv6Addr, attempt: u8) -> Ipv6Addr {
        let high = prefix.to_bits() >> 64 << 64;
        let id = match &self.stable_secret {
            None => ipv6::interface_id(self.mac),
            Some(secret) => {
                // RFC 7217 section 5: a keyed function of prefix, interface and attempt.
                let mut bytes = [0; 15];
                bytes[..8].copy_from_slice(&((high >> 64) as u64).to_be_bytes());
                bytes[8..14].copy_from_slice(&self.mac.0);
                bytes[14] = attempt;
                SipHasher24::new_with_key(secret).hash(&bytes)
            }
        };
        Ipv6Addr::from_bits(high | u128::from(id))
    }
}

/// Until when something that lasts `seconds` from now does.
fn lifetime(seconds: u32, now: Instant) -> Instant {
    match seconds {
        FOR_EVER_S => Instant::FAR_FUTURE,
        seconds => now.plus_nanos(u64::from(seconds) * 1_000_000_000),
    }
}

/// Whether packets to `ip` never leave the link.
fn is_link_scope(ip: Ipv6Addr) -> bool {
    ip.is_unicast_link_local() || ip.segments()[0] & 0xff0f == 0xff02
}

#[cfg(test)]
mod tests;
