//! From packets and addresses to flows and back, for both versions of IP.

use std::net::{IpAddr, SocketAddr};

use crate::channel::Packet;
use crate::flow::FlowKey;
use crate::pairs::pair_bytes;
use crate::state::State;

impl State {
    /// The key of a segment's flow, to be given back by [`Self::release_key`]. `None`: as many pairs
    /// of addresses are in use as there may be connections.
    pub fn hold_key(&mut self, packet: &Packet) -> Option<FlowKey> {
        let ports = packet.ports()?;
        if packet.is_ipv6() {
            let pair = self.pairs.acquire(packet.ipv6_pair()?)?;
            return Some(FlowKey::of_pair(pair, ports));
        }
        let (src, dst) = packet.ipv4_addresses();
        let ([a, b, c, d], [e, f, g, h]) = (src.octets(), dst.octets());
        Some(FlowKey::from_headers(&[a, b, c, d, e, f, g, h], ports))
    }

    /// The key of a flow between two addresses of one version, to be given back as well.
    pub fn hold_key_of(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<FlowKey> {
        match (local.ip(), remote.ip()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                Some(FlowKey::new(ours, local.port(), theirs, remote.port()))
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let pair = self.pairs.acquire(&pair_bytes(ours, theirs))?;
                Some(FlowKey::of_pair(pair, &[0; 4]).with_ports(local.port(), remote.port()))
            }
            _ => None,
        }
    }

    /// One more holds a key: a connection.
    #[inline]
    pub fn retain_key(&mut self, key: &FlowKey) {
        if let Some(pair) = key.pair() {
            self.pairs.retain(pair);
        }
    }

    /// One fewer holds a key.
    #[inline]
    pub fn release_key(&mut self, key: &FlowKey) {
        if let Some(pair) = key.pair() {
            self.pairs.release(pair);
        }
    }

    /// Our end of a flow, and the peer's.
    pub fn endpoints(&self, key: &FlowKey) -> (SocketAddr, SocketAddr) {
        let (local, remote) = match self.pairs.addresses(key) {
            Some((local, remote)) => (local.into(), remote.into()),
            None => (IpAddr::V4(key.local()), IpAddr::V4(key.remote())),
        };
        (SocketAddr::new(local, key.local_port()), SocketAddr::new(remote, key.remote_port()))
    }

    /// Whether the peer's address of a flow is one that a single host may have.
    pub fn remote_is_unicast(&self, key: &FlowKey) -> bool {
        match self.endpoints(key).1.ip() {
            IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
            IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
        }
    }
}
