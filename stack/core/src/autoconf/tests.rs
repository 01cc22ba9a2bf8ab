use super::*;
use millstream_wire::ndp::{MTU_OPTION_LEN, Options, PREFIX_OPTION_LEN, emit_mtu_option};
use proptest::prelude::*;

const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 7];

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn at(seconds: u64) -> Instant {
    Instant::from_micros(seconds * 1_000_000)
}

fn slaac(stable_secret: Option<[u8; 16]>) -> Host {
    let config = Ipv6Config { slaac: true, stable_secret, ..Ipv6Config::default() };
    Host::new(&config, MAC, 1500, at(0))
}

fn manual() -> Host {
    let config = Ipv6Config {
        addresses: vec![(ip("2001:db8::2"), 64)],
        gateway: Some(ip("2001:db8::1")),
        ..Ipv6Config::default()
    };
    Host::new(&config, MAC, 1500, at(0))
}

/// What is due within the time from one second to another, with its second.
fn run(host: &mut Host, seconds: std::ops::RangeInclusive<u64>) -> Vec<(u64, Action)> {
    let mut actions = Vec::new();
    for second in seconds {
        while let Some(action) = host.poll(at(second)) {
            actions.push((second, action));
        }
        assert!(host.next_deadline() > at(second));
    }
    actions
}

fn prefix(prefix: &str, valid_s: u32, preferred_s: u32) -> Prefix {
    Prefix {
        prefix: ip(prefix),
        prefix_len: 64,
        on_link: true,
        autonomous: true,
        valid_s,
        preferred_s,
    }
}

fn advertise(
    host: &mut Host,
    lifetime_s: u16,
    prefixes: &[Prefix],
    mtu: Option<u32>,
    now: Instant,
) {
    let mut bytes = vec![0; prefixes.len() * PREFIX_OPTION_LEN];
    for (prefix, room) in prefixes.iter().zip(bytes.chunks_mut(PREFIX_OPTION_LEN)) {
        prefix.emit(room);
    }
    if let Some(mtu) = mtu {
        let at = bytes.len();
        bytes.resize(at + MTU_OPTION_LEN, 0);
        emit_mtu_option(mtu, &mut bytes[at..]);
    }
    let options = Options::parse(&bytes).unwrap();
    let ra = RouterAdvertisement { lifetime_s, options, ..RouterAdvertisement::default() };
    host.on_advertisement(ip("fe80::1"), &ra, now);
}

const OWN_LINK_LOCAL: &str = "fe80::ff:fe00:7";
const OWN_GLOBAL: &str = "2001:db8::ff:fe00:7";

#[test]
fn configured_addresses_are_probed_and_then_ours() {
    let mut host = manual();
    let own = ip("2001:db8::2");
    assert!(!host.is_ours(own) && host.is_tentative(own) && host.primary().is_none());
    let actions = run(&mut host, 0..=3);
    let probes = [ip(OWN_LINK_LOCAL), own].map(|ip| (0, Action::ProbeAddress(ip)));
    assert_eq!(actions, probes, "and no router is asked");
    assert!(host.is_ours(own) && !host.is_tentative(own));
    assert_eq!(host.primary(), Some(own));
    assert!(host.listens_to(ipv6::ALL_NODES) && host.listens_to(ipv6::solicited_node(own)));
    assert!(!host.listens_to(ipv6::ALL_ROUTERS));
    assert_eq!(host.next_hop(ip("2001:db8::77")), Some(ip("2001:db8::77")));
    assert_eq!(host.next_hop(ip("2001:db8:1::77")), Some(ip("2001:db8::1")));
    assert_eq!(host.next_hop(ip("fe80::77")), Some(ip("fe80::77")));
    assert_eq!(host.source_for(ip("2001:db8:1::77"), at(3)), Some(own));
    assert_eq!(host.source_for(ip("fe80::77"), at(3)), Some(ip(OWN_LINK_LOCAL)));
    advertise(&mut host, 1800, &[prefix("2001:db8:5::", 7200, 7200)], Some(1300), at(3));
    assert_eq!((host.mtu, host.addresses.len()), (1500, 2), "not asked, not believed");
}

#[test]
fn an_advertisement_gives_address_router_and_mtu() {
    let mut host = slaac(None);
    let actions = run(&mut host, 0..=2);
    let own = ip(OWN_LINK_LOCAL);
    let expected = [(0, Action::ProbeAddress(own)), (1, Action::SolicitRouters(Some(own)))];
    assert_eq!(actions, expected);
    advertise(&mut host, 1800, &[prefix("2001:db8::", 9000, 8000)], Some(1400), at(2));
    assert_eq!(run(&mut host, 2..=9), [(2, Action::ProbeAddress(ip(OWN_GLOBAL)))]);
    assert_eq!(host.primary(), Some(ip(OWN_GLOBAL)));
    assert_eq!(host.next_hop(ip("2001:db8:1::77")), Some(ip("fe80::1")));
    assert_eq!(host.next_hop(ip("2001:db8::77")), Some(ip("2001:db8::77")));
    assert_eq!(host.mtu, 1400);
    // The router's time is over: another is looked for. Then the address's.
    let again = run(&mut host, 1802..=1900);
    assert_eq!(again.len(), 3);
    assert!(again.iter().all(|(_, action)| matches!(action, Action::SolicitRouters(Some(_)))));
    assert_eq!(host.next_hop(ip("2001:db8:1::77")), None);
    run(&mut host, 9001..=9002);
    assert!(!host.is_ours(ip(OWN_GLOBAL)));
    assert_eq!(host.next_hop(ip("2001:db8::77")), None);
}

#[test]
fn what_routers_announced_they_can_change() {
    let mut host = slaac(None);
    let far = ip("2001:db8::99");
    for (mtu, valid_s, on_link) in [(1500, u32::MAX, true), (1280, 600, true), (1500, 0, false)] {
        advertise(&mut host, 1800, &[prefix("2001:db8::", valid_s, 0)], Some(mtu), at(10));
        assert_eq!(u32::from(host.mtu), mtu);
        let direct = host.next_hop(far) == Some(far);
        assert_eq!(direct, on_link, "valid for {valid_s}");
    }
    // But what is configured they cannot.
    let config = Ipv6Config { slaac: true, addresses: vec![(far, 64)], ..Ipv6Config::default() };
    let mut host = Host::new(&config, MAC, 1500, at(0));
    advertise(&mut host, 1800, &[prefix("2001:db8::", 0, 0)], None, at(10));
    assert_eq!(host.next_hop(ip("2001:db8::98")), Some(ip("2001:db8::98")));
}

#[test]
fn no_router_makes_packets_die_on_their_way() {
    let mut host = slaac(None);
    for (hop_limit, ours) in [(1, 64), (0, 64), (255, 255), (0, 255), (32, 64)] {
        let ra = RouterAdvertisement { hop_limit, ..RouterAdvertisement::default() };
        host.on_advertisement(ip("fe80::1"), &ra, at(1));
        assert_eq!(host.hop_limit, ours);
    }
}

#[test]
fn nobody_answers_three_solicitations() {
    let mut host = slaac(None);
    let actions = run(&mut host, 0..=60);
    let solicited: Vec<u64> = actions[1..].iter().map(|action| action.0).collect();
    assert_eq!(solicited, [1, 5, 9]);
}

#[test]
fn a_duplicate_is_not_taken() {
    let mut host = slaac(None);
    host.poll(at(0));
    host.on_duplicate(ip(OWN_LINK_LOCAL), at(0));
    let actions = run(&mut host, 0..=2);
    assert_eq!(actions, [(1, Action::SolicitRouters(None))], "there is no address to ask from");
    assert!(!host.is_ours(ip(OWN_LINK_LOCAL)));
    // One that is ours already is defended, not given up.
    let mut host = manual();
    run(&mut host, 0..=2);
    host.on_duplicate(ip("2001:db8::2"), at(3));
    assert!(host.is_ours(ip("2001:db8::2")));
}

#[test]
fn opaque_identifiers_are_stable_and_a_duplicate_makes_another() {
    let mut host = slaac(Some([9; 16]));
    let Some(Action::ProbeAddress(first)) = host.poll(at(0)) else { panic!() };
    assert!(first.is_unicast_link_local() && first != ip(OWN_LINK_LOCAL));
    let mut tried = vec![first];
    while let Some(Action::ProbeAddress(next)) = {
        host.on_duplicate(tried[tried.len() - 1], at(0));
        host.poll(at(0))
    } {
        assert!(!tried.contains(&next));
        tried.push(next);
    }
    assert_eq!(tried.len(), usize::from(IDENTIFIERS_MAX));
    assert_eq!(host.duplicates, 3);
    let mut again = slaac(Some([9; 16]));
    assert_eq!(again.poll(at(0)), Some(Action::ProbeAddress(first)));
    let mut other = slaac(Some([8; 16]));
    assert_ne!(other.poll(at(0)), Some(Action::ProbeAddress(first)));
    // Different prefixes give different identifiers.
    let (a, b) = (host.make_address(ip("2001:db8::"), 0), host.make_address(ip("2001:db8:1::"), 0));
    assert_ne!(a.to_bits() as u64, b.to_bits() as u64);
}

#[test]
fn lifetimes_follow_rfc_4862() {
    let mut host = slaac(None);
    advertise(&mut host, 0, &[prefix("2001:db8::", 10_000, 5000)], None, at(0));
    assert_eq!(host.next_hop(ip("2001:db8:1::77")), None, "lifetime 0: no default router");
    run(&mut host, 0..=2);
    let valid_until = |host: &Host| host.addresses[1].valid_until;
    advertise(&mut host, 0, &[prefix("2001:db8::", 60, 60)], None, at(10));
    assert_eq!(valid_until(&host), at(10 + 7200), "two hours at the least");
    advertise(&mut host, 0, &[prefix("2001:db8::", 60, 60)], None, at(20));
    assert_eq!(valid_until(&host), at(10 + 7200), "not shortened below two hours");
    advertise(&mut host, 0, &[prefix("2001:db8::", 7201, 0)], None, at(30));
    assert_eq!(valid_until(&host), at(30 + 7201));
    // Deprecated: still ours, but another is preferred.
    advertise(&mut host, 0, &[prefix("2001:db8:0:1::", 7201, 7201)], None, at(30));
    run(&mut host, 30..=32);
    let other = ip("2001:db8:0:1:0:ff:fe00:7");
    assert_eq!(host.source_for(ip("2001:db8::77"), at(32)), Some(other));
    assert!(host.is_ours(ip(OWN_GLOBAL)));
}

#[test]
fn senseless_prefixes_make_no_address() {
    let mut host = slaac(None);
    let good = prefix("2001:db8::", 100, 100);
    for bad in [
        Prefix { preferred_s: 101, ..good },
        Prefix { prefix_len: 63, ..good },
        Prefix { valid_s: 0, preferred_s: 0, ..good },
        Prefix { autonomous: false, ..good },
        Prefix { prefix: ip("fe80::"), ..good },
        Prefix { prefix: ip("ff02::"), ..good },
        Prefix { prefix_len: 200, ..good },
    ] {
        advertise(&mut host, 0, &[bad], Some(100), at(0));
        assert_eq!(host.addresses.len(), 1, "{bad:?}");
    }
    assert_eq!(host.mtu, 1500);
    assert!(host.next_hop(ip("2001:db8::77")).is_some(), "but one was on link");
}

proptest! {
    /// A router may say what it likes: memory is bounded, polling ends.
    #[test]
    fn bounded(
        prefixes in prop::collection::vec((any::<u16>(), 0u8..130, any::<u8>(), 0u32..10_000, 0u32..10_000), 0..60),
    ) {
        let mut host = slaac(Some([1; 16]));
        for (i, (n, len, flags, valid_s, preferred_s)) in prefixes.into_iter().enumerate() {
            let now = at(i as u64);
            let announced = Prefix {
                prefix: Ipv6Addr::new(0x2001, 0xdb8, n, 0, 0, 0, 0, 0),
                prefix_len: if flags & 4 == 0 { 64 } else { len },
                on_link: flags & 1 == 0,
                autonomous: flags & 2 == 0,
                valid_s,
                preferred_s,
            };
            advertise(&mut host, n, &[announced], Some(u32::from(n)), now);
            for _ in 0..100 {
                if host.poll(now).is_none() { break; }
            }
            prop_assert_eq!(host.poll(now), None);
            prop_assert!(host.next_deadline() > now);
            prop_assert!((1280..=1500).contains(&host.mtu));
        }
    }
}
