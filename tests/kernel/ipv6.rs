//! IPv6 with the kernel, and what lies beneath TCP in both families: fragments, VLANs, paths that
//! carry less than the link.

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use millstream_tests::{
    Lab, Namespace, PATIENCE, Process, Server, Site, millstream_binary, profile,
};
use rustix::net::{AddressFamily, SendFlags, SocketAddrV6, SocketType};

const IPV6: &str = "ipv6.address=2001:db8::2/64";
const URL: &str = "http://[2001:db8::2]";

/// A server on a tap with an address of each family, and the kernel's end with its own.
fn on_tap(ns: &Namespace<'_>, site: &Site, keys: &[&str]) -> Server {
    let server = Server::on_tap_with(ns, site.root(), keys);
    ns.ip("addr add 2001:db8::1/64 dev dtap0 nodad");
    server
}

#[test]
fn files_and_echoes_over_ipv6() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let files = [0, 1, 1440, 100_000, 16_777_216].map(|len| {
        let name = format!("{len}.bin");
        let bytes = site.fill(&name, len);
        (name, bytes)
    });
    let server = on_tap(&ns, &site, &[IPV6]);
    for len in ["0", "56", "1452"] {
        let echo = ["-6", "-n", "-c", "3", "-i", "0.01", "-w", "60", "-s", len, "2001:db8::2"];
        ns.must("ping", &echo);
    }
    for (name, bytes) in &files {
        let (status, body) = ns.curl(&format!("{URL}/{name}"), &["--globoff"]);
        assert_eq!(status, 200, "{name}");
        assert!(body == *bytes, "{name}: {} bytes came, not equal", body.len());
    }
    // The same server over IPv4.
    assert_eq!(ns.curl(&server.at("1.bin"), &[]).0, 200);
    // The kernel forgets the address and asks for it again.
    ns.ip("neigh flush dev dtap0");
    let mut bench = ns.command(millstream_binary());
    bench.args(["bench", "http", "--requests", "200", "--connections", "4"]);
    bench.args(["--url", &format!("{URL}/1440.bin")]);
    let finished = Process::start(&mut bench).finish();
    assert!(finished.success() && finished.stdout.contains("status 200"), "{finished}");
    let nobody = "[2001:db8::2]:9".parse().expect("an address");
    ns.enter(|| {
        let error = TcpStream::connect_timeout(&nobody, PATIENCE).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
    server.stop();
}

#[test]
fn fragments_of_both_families_are_put_together() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let server = on_tap(&ns, &site, &[IPV6]);
    ns.must("ping", &["-6", "-n", "-c", "1", "-w", "60", "2001:db8::2"]);
    for (ours, theirs) in [("198.18.0.1:0", "198.18.0.2:9"), ("[2001:db8::1]:0", "[2001:db8::2]:9")]
    {
        ns.enter(|| {
            let socket = UdpSocket::bind(ours).expect("a socket");
            socket.connect(theirs).expect("it only notes the address");
            socket.set_read_timeout(Some(PATIENCE)).expect("a bound");
            socket.send(&[7; 9000]).expect("to send");
            // Only of a whole datagram is it known that nobody is at its port.
            let error = socket.recv(&mut [0; 16]).expect_err("nobody answers");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{theirs}");
        });
    }
    server.stop();
}

/// The kernel here may know no VLANs, so both ends are ours.
#[test]
fn both_families_in_a_vlan() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    site.fill("file", 300_000);
    let socket = lab.folder().join("memif.sock");
    let key = format!("link.socket={}", socket.display());
    let server = Server::start(&ns, site.root(), "memif.toml", &[&key, IPV6, "link.vlan=7"]);
    let socket = format!("{socket:?}");
    let [ours, theirs] = ["2001:db8::1/64", "198.18.0.1/24"].map(|text| format!("{text:?}"));
    for (vlan, succeeds) in [("7", true), ("8", false)] {
        let values = [
            ("socket", socket.as_str()),
            ("role", "\"client\""),
            ("address", &theirs),
            ("vlan", vlan),
            ("slaac", "true"),
        ];
        let config = profile(&lab, "memif.toml", &values);
        let text = std::fs::read_to_string(&config).expect("the profile");
        let text = text.replace("slaac = true", &format!("address = {ours}"));
        std::fs::write(&config, text).expect("to write it");
        for url in [server.at("file"), format!("{URL}/file")] {
            let mut bench = ns.command(millstream_binary());
            bench.args(["bench", "http", "--via", "stack", "--connections", "2"]);
            bench.args(["--requests", "20", "--url", &url]);
            let finished = Process::start(bench.arg("--config").arg(&config)).finish();
            assert_eq!(finished.success(), succeeds, "{url} in VLAN {vlan}: {finished}");
        }
    }
    server.stop();
}

/// Tells all nodes at `interface` of a prefix, as a router does.
fn advertise(interface: &str, prefix: Ipv6Addr) {
    use millstream::wire::{icmpv6, ndp};
    let mut options = vec![0; ndp::PREFIX_OPTION_LEN];
    let prefix_len = 64;
    let (valid_s, preferred_s) = (7200, 7200);
    ndp::Prefix { prefix, prefix_len, on_link: true, autonomous: true, valid_s, preferred_s }
        .emit(&mut options);
    let message =
        icmpv6::Message::Ndp(ndp::Message::RouterAdvertisement(ndp::RouterAdvertisement {
            hop_limit: 64,
            lifetime_s: 1800,
            options: ndp::Options::parse(&options).expect("they were just made"),
            ..ndp::RouterAdvertisement::default()
        }));
    let mut bytes = vec![0; message.emitted_len()];
    message.emit(Ipv6Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED, &mut bytes);
    // The kernel computes the checksum of what such a socket sends (RFC 3542 section 3.1).
    let protocol = Some(rustix::net::ipproto::ICMPV6);
    let socket = rustix::net::socket(AddressFamily::INET6, SocketType::RAW, protocol);
    let socket = socket.expect("a raw socket");
    rustix::net::sockopt::set_ipv6_multicast_hops(&socket, 255).expect("hops");
    let index = rustix::net::netdevice::name_to_index(&socket, interface).expect("the interface");
    let all_nodes = SocketAddrV6::new(millstream::wire::ipv6::ALL_NODES, 0, 0, index);
    rustix::net::sendto(&socket, &bytes, SendFlags::empty(), &all_nodes).expect("to send");
}

#[test]
fn an_address_comes_from_a_router() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let bytes = site.fill("file", 200_000);
    let keys = ["ipv6.slaac=true", "link.mac=02:00:c6:12:00:02"];
    let server = Server::on_tap_with(&ns, site.root(), &keys);
    ns.ip("addr add 2001:db8:5::1/64 dev dtap0 nodad");
    let address: Ipv6Addr = "2001:db8:5:0:0:c6ff:fe12:2".parse().expect("an address");
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The sender's own link-local address has to pass its proof first: until then it is refused.
        ns.enter(|| advertise("dtap0", "2001:db8:5::".parse().expect("a prefix")));
        let remote = SocketAddr::new(address.into(), 80);
        let once = Duration::from_secs(2);
        if ns.enter(|| TcpStream::connect_timeout(&remote, once).is_ok()) {
            break;
        }
        assert!(Instant::now() < deadline, "the address is not there");
    }
    let url = format!("http://[{address}]/file");
    assert!(ns.curl(&url, &["--globoff"]) == (200, bytes));
    server.stop();
}

#[test]
fn a_narrow_path_is_found_out_in_both_families() {
    let lab = Lab::new();
    let (router, client) = (lab.namespace(), lab.namespace());
    let site = Site::new(&lab);
    let bytes = site.fill("file", 2_000_000);
    let keys = [IPV6, "ipv4.gateway=198.18.0.1", "ipv6.gateway=2001:db8::1"];
    let server = on_tap(&router, &site, &keys);
    lab.veth((&router, "near"), (&client, "far"));
    router.ip("addr add 192.0.2.1/24 dev near");
    router.ip("addr add 2001:db8:1::1/64 dev near nodad");
    client.ip("addr add 192.0.2.2/24 dev far");
    client.ip("addr add 2001:db8:1::2/64 dev far nodad");
    client.ip("route add default via 192.0.2.1");
    client.ip("-6 route add default via 2001:db8:1::1");
    router.must("sysctl", &["-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);
    // Frames to the client are of at most 1300 bytes; nobody told the client, so its segment size
    // does not tell the server either.
    router.ip("link set near mtu 1300");
    client.must("ping", &["-6", "-n", "-c", "1", "-w", "60", "2001:db8::2"]);
    for url in [server.at("file"), format!("{URL}/file")] {
        assert!(client.curl(&url, &["--globoff"]) == (200, bytes.clone()), "{url}");
    }
    server.stop();
}
