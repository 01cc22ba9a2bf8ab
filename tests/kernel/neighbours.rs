//! What any station answers: ARP, ICMP echo, and that nobody is at a port.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};

use millstream_tests::{Lab, PATIENCE, Server, Site};

#[test]
fn echoes_of_all_lengths_are_answered() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let server = Server::on_tap(&ns, site.root());
    let address = server.address.ip().to_string();
    for len in ["0", "56", "1472"] {
        ns.must("ping", &["-n", "-c", "5", "-i", "0.01", "-w", "30", "-s", len, &address]);
    }
    // The kernel learned the address by ARP, and asks again after it forgot it.
    ns.ip("neigh flush dev dtap0");
    ns.must("ping", &["-n", "-c", "1", "-w", "30", &address]);
    server.stop();
}

#[test]
fn a_closed_tcp_port_refuses() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let server = Server::on_tap(&ns, site.root());
    let nobody = SocketAddr::new(server.address.ip(), 9);
    ns.enter(|| {
        let error = TcpStream::connect_timeout(&nobody, PATIENCE).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
    server.stop();
}

#[test]
fn a_closed_udp_port_is_reported_unreachable() {
    let lab = Lab::new();
    let ns = lab.namespace();
    let site = Site::new(&lab);
    let server = Server::on_tap(&ns, site.root());
    let nobody = SocketAddr::new(server.address.ip(), 9);
    ns.enter(|| {
        let socket = UdpSocket::bind("198.18.0.1:0").expect("a socket");
        socket.connect(nobody).expect("it only notes the address");
        socket.set_read_timeout(Some(PATIENCE)).expect("a bound");
        socket.send(b"anyone?").expect("to send");
        // ICMP's port unreachable comes back as the error of the next call (RFC 1122, 4.1.3.3).
        let error = socket.recv(&mut [0; 16]).expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
    server.stop();
}
