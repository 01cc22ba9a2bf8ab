//! Neighbour discovery (RFC 4861): the messages and their options. They are ICMPv6 messages; parsing
//! one checks all that RFC 4861 sections 6.1, 7.1 and 8.1 ask for within the message. What they ask
//! of the IP header (a hop limit of 255, the scope of the source) is the caller's to check.

use core::net::Ipv6Addr;

use crate::ethernet::Address;

/// The hop limit of every message: no router has passed it on (RFC 4861 section 3.1).
pub const HOP_LIMIT: u8 = 255;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// The first ICMPv6 type of neighbour discovery.
pub const KIND_MIN: u8 = ROUTER_SOLICITATION;
/// The last ICMPv6 type of neighbour discovery.
pub const KIND_MAX: u8 = REDIRECT;

const OPTION_SOURCE_MAC: u8 = 1;
const OPTION_TARGET_MAC: u8 = 2;
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;

/// Bytes of an option that holds a station's address, or an MTU.
const OPTION_LEN: usize = 8;
/// Bytes of an option that holds a prefix.
pub const PREFIX_OPTION_LEN: usize = 32;
/// Bytes of an option that holds an MTU.
pub const MTU_OPTION_LEN: usize = OPTION_LEN;

/// Why bytes are not a message of neighbour discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Shorter than its type.
    #[error("the neighbour discovery message is cut short")]
    Truncated,
    /// A code that is not zero.
    #[error("the neighbour discovery message has code {0}, not 0")]
    BadCode(u8),
    /// An option without length, or beyond the message.
    #[error("an option of the neighbour discovery message does not fit it")]
    BadOption,
    /// A multicast address where there must be none.
    #[error("the neighbour discovery message is about a multicast address")]
    Multicast,
}

/// The options of a message. Their lengths were checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options<'a>(&'a [u8]);

/// An option that we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NdpOption {
    /// The sender's station.
    SourceMac(Address),
    /// The target's station.
    TargetMac(Address),
    /// A prefix of the link.
    Prefix(Prefix),
    /// The link's MTU.
    Mtu(u32),
}

/// A prefix that a router announces (RFC 4861 section 4.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The prefix; bits behind `prefix_len` have no meaning.
    pub prefix: Ipv6Addr,
    /// How many of its bits count.
    pub prefix_len: u8,
    /// Addresses with this prefix are neighbours.
    pub on_link: bool,
    /// Addresses may be made from it (RFC 4862).
    pub autonomous: bool,
    /// For how long that is true; all ones: for ever.
    pub valid_s: u32,
    /// For how long addresses made from it are preferred; all ones: for ever.
    pub preferred_s: u32,
}

impl Prefix {
    fn parse(bytes: &[u8; PREFIX_OPTION_LEN]) -> Self {
        let (head, prefix) = bytes.split_at(16);
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let mut octets = [0; 16];
        octets.copy_from_slice(prefix);
        Self {
            prefix: octets.into(),
            prefix_len: head[2],
            on_link: head[3] & 0x80 != 0,
            autonomous: head[3] & 0x40 != 0,
            valid_s: word(4),
            preferred_s: word(8),
        }
    }

    /// Writes the option at the start of `buf`.
    ///
    /// # Panics
    /// If `buf` is shorter than [`PREFIX_OPTION_LEN`].
    pub fn emit(&self, buf: &mut [u8]) {
        let flags = u8::from(self.on_link) << 7 | u8::from(self.autonomous) << 6;
        buf[..4].copy_from_slice(&[OPTION_PREFIX, 4, self.prefix_len, flags]);
        buf[4..8].copy_from_slice(&self.valid_s.to_be_bytes());
        buf[8..12].copy_from_slice(&self.preferred_s.to_be_bytes());
        buf[12..16].fill(0);
        buf[16..PREFIX_OPTION_LEN].copy_from_slice(&self.prefix.octets());
    }
}

/// Writes an option that announces the link's MTU at the start of `buf`.
///
/// # Panics
/// If `buf` is shorter than [`MTU_OPTION_LEN`].
pub fn emit_mtu_option(mtu: u32, buf: &mut [u8]) {
    buf[..4].copy_from_slice(&[OPTION_MTU, 1, 0, 0]);
    buf[4..MTU_OPTION_LEN].copy_from_slice(&mtu.to_be_bytes());
}

impl<'a> Options<'a> {
    /// Checks that options fill `bytes`.
    ///
    /// # Errors
    /// [`ParseError::BadOption`]: RFC 4861 section 4.6 has the whole message dropped.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let mut rest = bytes;
        while let [_, units, ..] = rest {
            let len = usize::from(*units) * 8;
            if len == 0 {
                return Err(ParseError::BadOption);
            }
            rest = rest.get(len..).ok_or(ParseError::BadOption)?;
        }
        if rest.is_empty() { Ok(Self(bytes)) } else { Err(ParseError::BadOption) }
    }

    /// The options that we know, in their order.
    pub fn iter(&self) -> impl Iterator<Item = NdpOption> + 'a {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            while let [kind, units, ..] = *rest {
                let (option, behind) = rest.split_at_checked((usize::from(units) * 8).max(1))?;
                rest = behind;
                let mac = || option.get(2..).and_then(<[u8]>::first_chunk).map(|mac| Address(*mac));
                let known = match kind {
                    OPTION_SOURCE_MAC => mac().map(NdpOption::SourceMac),
                    OPTION_TARGET_MAC => mac().map(NdpOption::TargetMac),
                    OPTION_PREFIX => {
                        option.first_chunk().map(|bytes| NdpOption::Prefix(Prefix::parse(bytes)))
                    }
                    OPTION_MTU => option
                        .get(4..)
                        .and_then(<[u8]>::first_chunk)
                        .map(|mtu| NdpOption::Mtu(u32::from_be_bytes(*mtu))),
                    _ => None,
                };
                if known.is_some() {
                    return known;
                }
            }
            None
        })
    }

    fn source_mac(&self) -> Option<Address> {
        self.iter().find_map(|option| match option {
            NdpOption::SourceMac(mac) => Some(mac),
            _ => None,
        })
    }

    fn target_mac(&self) -> Option<Address> {
        self.iter().find_map(|option| match option {
            NdpOption::TargetMac(mac) => Some(mac),
            _ => None,
        })
    }
}

/// What a router says of its link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouterAdvertisement<'a> {
    /// The hop limit that it recommends; 0: none.
    pub hop_limit: u8,
    /// Addresses are to be had by DHCPv6.
    pub managed: bool,
    /// Other things are to be had by DHCPv6.
    pub other: bool,
    /// For how long it is a default router; 0: it is none.
    pub lifetime_s: u16,
    /// For how long a neighbour is believed to be reachable; 0: not said.
    pub reachable_ms: u32,
    /// Time between solicitations; 0: not said.
    pub retransmit_ms: u32,
    /// Prefixes, the MTU, the router's station.
    pub options: Options<'a>,
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// "Routers, tell me of the link."
    RouterSolicitation {
        /// The sender's station; none if it has no address yet.
        source_mac: Option<Address>,
    },
    /// What a router says of the link.
    RouterAdvertisement(RouterAdvertisement<'a>),
    /// "Who has the target's address?"
    NeighborSolicitation {
        /// The address asked for.
        target: Ipv6Addr,
        /// The sender's station; none if it probes for duplicates.
        source_mac: Option<Address>,
    },
    /// "The target's station is this."
    NeighborAdvertisement {
        /// The sender is a router.
        router: bool,
        /// It was asked.
        solicited: bool,
        /// It replaces what was known.
        override_known: bool,
        /// The address told of.
        target: Ipv6Addr,
        /// Its station.
        target_mac: Option<Address>,
    },
    /// "There is a better next hop."
    Redirect {
        /// The next hop.
        target: Ipv6Addr,
        /// For packets to this address.
        destination: Ipv6Addr,
        /// The next hop's station.
        target_mac: Option<Address>,
    },
}

const FLAG_ROUTER: u8 = 0x80;
const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;

/// Bytes before the options: of a solicitation for routers, of an advertisement of one, of what is
/// about one target, of a redirect.
const HEAD_LENS: [usize; 4] = [8, 16, 24, 40];

impl<'a> Message<'a> {
    /// Reads an ICMPv6 message of type `kind`, header included.
    pub(crate) fn parse(kind: u8, code: u8, message: &'a [u8]) -> Result<Self, ParseError> {
        if code != 0 {
            return Err(ParseError::BadCode(code));
        }
        let [solicitation_len, advertisement_len, target_len, redirect_len] = HEAD_LENS;
        let head_len = match kind {
            ROUTER_SOLICITATION => solicitation_len,
            ROUTER_ADVERTISEMENT => advertisement_len,
            REDIRECT => redirect_len,
            _ => target_len,
        };
        let (head, options) = message.split_at_checked(head_len).ok_or(ParseError::Truncated)?;
        let options = Options::parse(options)?;
        let address = |at: usize| {
            let octets = head.get(at..).and_then(<[u8]>::first_chunk::<16>);
            octets.map_or(Ipv6Addr::UNSPECIFIED, |octets| Ipv6Addr::from(*octets))
        };
        // RFC 4861 sections 7.1 and 8.1: no message is about a multicast address.
        let unicast = |at: usize| match address(at) {
            group if group.is_multicast() => Err(ParseError::Multicast),
            address => Ok(address),
        };
        let word = |at: usize| {
            let bytes = head.get(at..).and_then(<[u8]>::first_chunk::<4>);
            bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
        };
        Ok(match kind {
            ROUTER_SOLICITATION => Self::RouterSolicitation { source_mac: options.source_mac() },
            ROUTER_ADVERTISEMENT => {
                let [hop_limit, flags, l0, l1] = word(4).to_be_bytes();
                Self::RouterAdvertisement(RouterAdvertisement {
                    hop_limit,
                    managed: flags & 0x80 != 0,
                    other: flags & 0x40 != 0,
                    lifetime_s: u16::from_be_bytes([l0, l1]),
                    reachable_ms: word(8),
                    retransmit_ms: word(12),
                    options,
                })
            }
            NEIGHBOR_SOLICITATION => {
                Self::NeighborSolicitation { target: unicast(8)?, source_mac: options.source_mac() }
            }
            NEIGHBOR_ADVERTISEMENT => {
                let [flags, ..] = word(4).to_be_bytes();
                Self::NeighborAdvertisement {
                    router: flags & FLAG_ROUTER != 0,
                    solicited: flags & FLAG_SOLICITED != 0,
                    override_known: flags & FLAG_OVERRIDE != 0,
                    target: unicast(8)?,
                    target_mac: options.target_mac(),
                }
            }
            _ => Self::Redirect {
                target: unicast(8)?,
                destination: unicast(24)?,
                target_mac: options.target_mac(),
            },
        })
    }

    pub(crate) const fn kind(&self) -> u8 {
        match self {
            Self::RouterSolicitation { .. } => ROUTER_SOLICITATION,
            Self::RouterAdvertisement(_) => ROUTER_ADVERTISEMENT,
            Self::NeighborSolicitation { .. } => NEIGHBOR_SOLICITATION,
            Self::NeighborAdvertisement { .. } => NEIGHBOR_ADVERTISEMENT,
            Self::Redirect { .. } => REDIRECT,
        }
    }

    fn mac_option(&self) -> Option<(u8, Address)> {
        match self {
            Self::RouterSolicitation { source_mac }
            | Self::NeighborSolicitation { source_mac, .. } => {
                source_mac.map(|mac| (OPTION_SOURCE_MAC, mac))
            }
            Self::NeighborAdvertisement { target_mac, .. } | Self::Redirect { target_mac, .. } => {
                target_mac.map(|mac| (OPTION_TARGET_MAC, mac))
            }
            Self::RouterAdvertisement(_) => None,
        }
    }

    pub(crate) fn emitted_len(&self) -> usize {
        let [solicitation_len, advertisement_len, target_len, redirect_len] = HEAD_LENS;
        let head_len = match self {
            Self::RouterSolicitation { .. } => solicitation_len,
            Self::RouterAdvertisement(ra) => advertisement_len + ra.options.0.len(),
            Self::NeighborSolicitation { .. } | Self::NeighborAdvertisement { .. } => target_len,
            Self::Redirect { .. } => redirect_len,
        };
        head_len + if self.mac_option().is_some() { OPTION_LEN } else { 0 }
    }

    /// Writes what follows type, code and checksum: exactly `buf`.
    pub(crate) fn emit_body(&self, buf: &mut [u8]) {
        buf[..4].fill(0);
        match self {
            Self::RouterSolicitation { .. } => {}
            Self::RouterAdvertisement(ra) => {
                buf[0] = ra.hop_limit;
                buf[1] = u8::from(ra.managed) << 7 | u8::from(ra.other) << 6;
                buf[2..4].copy_from_slice(&ra.lifetime_s.to_be_bytes());
                buf[4..8].copy_from_slice(&ra.reachable_ms.to_be_bytes());
                buf[8..12].copy_from_slice(&ra.retransmit_ms.to_be_bytes());
                buf[12..].copy_from_slice(ra.options.0);
            }
            Self::NeighborSolicitation { target, .. } => {
                buf[4..20].copy_from_slice(&target.octets());
            }
            Self::NeighborAdvertisement { router, solicited, override_known, target, .. } => {
                let flag = |set: bool, bit: u8| if set { bit } else { 0 };
                buf[0] = flag(*router, FLAG_ROUTER)
                    | flag(*solicited, FLAG_SOLICITED)
                    | flag(*override_known, FLAG_OVERRIDE);
                buf[4..20].copy_from_slice(&target.octets());
            }
            Self::Redirect { target, destination, .. } => {
                buf[4..20].copy_from_slice(&target.octets());
                buf[20..36].copy_from_slice(&destination.octets());
            }
        }
        if let Some((kind, mac)) = self.mac_option() {
            let at = buf.len() - OPTION_LEN;
            buf[at..at + 2].copy_from_slice(&[kind, 1]);
            buf[at + 2..].copy_from_slice(&mac.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::icmpv6;
    use proptest::prelude::*;

    const SRC: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const DST: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const MAC: Address = Address([2, 0, 0, 0, 0, 7]);

    fn emitted(message: Message<'_>) -> Vec<u8> {
        let message = icmpv6::Message::Ndp(message);
        let mut buf = vec![0xaa; message.emitted_len()];
        assert_eq!(message.emit(SRC, DST, &mut buf), buf.len());
        buf
    }

    fn any_address() -> impl Strategy<Value = Ipv6Addr> {
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits & !(0x80 << 120)))
    }

    #[test]
    fn an_advertisement_tells_its_options() {
        let prefix = Prefix {
            prefix: "2001:db8::".parse().unwrap(),
            prefix_len: 64,
            on_link: true,
            autonomous: true,
            valid_s: 7200,
            preferred_s: 3600,
        };
        let mut bytes = vec![OPTION_SOURCE_MAC, 1, 2, 0, 0, 0, 0, 7];
        let mut option = [0; PREFIX_OPTION_LEN];
        prefix.emit(&mut option);
        bytes.extend(option);
        // Unknown ones are passed over.
        bytes.extend([25, 1, 0, 0, 0, 0, 0, 0]);
        let mut option = [0; MTU_OPTION_LEN];
        emit_mtu_option(1400, &mut option);
        bytes.extend(option);
        let options = Options::parse(&bytes).unwrap();
        let all: Vec<_> = options.iter().collect();
        let expected = [NdpOption::SourceMac(MAC), NdpOption::Prefix(prefix), NdpOption::Mtu(1400)];
        assert_eq!(all, expected);
        let ra = Message::RouterAdvertisement(RouterAdvertisement {
            hop_limit: 64,
            managed: false,
            other: true,
            lifetime_s: 1800,
            reachable_ms: 30_000,
            retransmit_ms: 1000,
            options,
        });
        let buf = emitted(ra);
        assert_eq!(icmpv6::Message::parse(SRC, DST, &buf), Ok(icmpv6::Message::Ndp(ra)));
    }

    #[test]
    fn bad_options_refuse_the_message() {
        for bytes in [&[1, 0][..], &[0; 8], &[1, 2, 0, 0, 0, 0, 0, 0], &[1]] {
            assert_eq!(Options::parse(bytes), Err(ParseError::BadOption), "{bytes:?}");
        }
        // Too short for what it is: as if it were not there.
        assert_eq!(Options::parse(&[3, 1, 0, 0, 0, 0, 0, 0]).unwrap().iter().count(), 0);
    }

    #[test]
    fn multicast_targets_and_codes_are_refused() {
        let ask = Message::NeighborSolicitation { target: DST, source_mac: None };
        let buf = emitted(ask);
        let error = Err(icmpv6::ParseError::Ndp(ParseError::Multicast));
        assert_eq!(icmpv6::Message::parse(SRC, DST, &buf), error);
        assert_eq!(Message::parse(135, 1, &buf), Err(ParseError::BadCode(1)));
        assert_eq!(Message::parse(135, 0, &buf[..23]), Err(ParseError::Truncated));
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(
            kind in 0u8..4, flags: [bool; 3], target in any_address(), destination in any_address(),
            mac: Option<[u8; 6]>,
        ) {
            let mac = mac.map(Address);
            let [router, solicited, override_known] = flags;
            let message = match kind {
                0 => Message::RouterSolicitation { source_mac: mac },
                1 => Message::NeighborSolicitation { target, source_mac: mac },
                2 => Message::NeighborAdvertisement { router, solicited, override_known, target, target_mac: mac },
                _ => Message::Redirect { target, destination, target_mac: mac },
            };
            let buf = emitted(message);
            prop_assert_eq!(icmpv6::Message::parse(SRC, DST, &buf), Ok(icmpv6::Message::Ndp(message)));
        }
    }
}
