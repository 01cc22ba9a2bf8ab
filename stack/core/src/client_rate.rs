//! The rates at which a listener's connections are sent to: one for all, or by the client's network.

use std::net::IpAddr;

use millstream_tcp::{KnownStart, PacingRate};
use millstream_timer::Instant;

use crate::state::env;
use crate::stream::{TcpListener, TcpStream};

/// Clients of a network are sent to at this rate, each connection by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRate {
    network: IpAddr,
    prefix_len: u8,
    rate: PacingRate,
}

/// A prefix longer than an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a prefix of {prefix_len} bits is longer than the address {network}; give at most {most}")]
pub struct PrefixError {
    network: IpAddr,
    prefix_len: u8,
    most: u8,
}

/// The bits of an address, from the most significant on.
fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

impl ClientRate {
    /// For the clients whose address begins with the first `prefix_len` bits of `network`.
    ///
    /// # Errors
    /// [`PrefixError`] if an address has fewer bits.
    pub const fn new(
        network: IpAddr,
        prefix_len: u8,
        rate: PacingRate,
    ) -> Result<Self, PrefixError> {
        let most = if network.is_ipv4() { 32 } else { 128 };
        if prefix_len > most {
            return Err(PrefixError { network, prefix_len, most });
        }
        Ok(Self { network, prefix_len, rate })
    }

    fn matches(&self, client: IpAddr) -> bool {
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix_len)).unwrap_or(0);
        client.is_ipv4() == self.network.is_ipv4()
            && (bits(client) ^ bits(self.network)) & mask == 0
    }
}

/// What a listener's connections are sent to at.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListenerRates {
    /// Clients of no network in the list.
    others: Option<PacingRate>,
    /// Longest prefix first.
    clients: Vec<ClientRate>,
}

impl ListenerRates {
    /// The rate for a client: that of the longest prefix of its address.
    pub fn of(&self, client: IpAddr) -> Option<PacingRate> {
        let client = client.to_canonical();
        let found = self.clients.iter().find(|one| one.matches(client));
        found.map(|one| one.rate).or(self.others)
    }

    /// Whether there is none at all.
    pub fn is_empty(&self) -> bool {
        self.others.is_none() && self.clients.is_empty()
    }
}

impl TcpListener {
    /// Sends to the clients of the connections that are opened from now on at these rates: that of the longest
    /// prefix of a client's address, or else `others` (`None`: as fast as the path takes). See
    /// [`TcpStream::set_pacing_rate`].
    pub fn set_pacing_rates(&self, others: Option<PacingRate>, clients: &[ClientRate]) {
        let mut clients = clients.to_vec();
        clients.sort_by_key(|one| u8::MAX - one.prefix_len);
        let mut state = self.stack.state();
        if let Some(listener) = state.listener_mut(u32::from(self.number)) {
            listener.rates = ListenerRates { others, clients };
        }
    }
}

impl TcpStream {
    /// Sends no faster than this (`SO_MAX_PACING_RATE`): segments leave evenly, and what a late
    /// timer held up follows at the burst rate. `None`: as the congestion controller wants.
    ///
    /// With [`Clocking::Rate`](millstream_tcp::Clocking) a connection that has not sent anything
    /// takes this for the rate of its path and starts with it, without slow start.
    pub fn set_pacing_rate(&self, rate: Option<PacingRate>) {
        let mut state = self.stack.state();
        let state = &mut *state;
        if let Some(conn) = state.conns.named_mut(self.id) {
            conn.tcb.set_pacing_rate(&mut env!(state), rate);
            // What was held back may go now.
            conn.schedule_output(&mut state.output, self.id.number);
        }
    }

    /// When the next segment may leave, if a rate holds it back; else [`Instant::ZERO`].
    pub fn pacing_at(&self) -> Instant {
        let state = self.stack.state();
        state.conns.named(self.id).map_or(Instant::ZERO, |conn| conn.tcb.pacing_at())
    }

    /// How a start at a known rate went.
    pub fn known_start(&self) -> KnownStart {
        let state = self.stack.state();
        state.conns.named(self.id).map_or(KnownStart::None, |conn| conn.tcb.known_start())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(bytes_per_s: u64) -> PacingRate {
        PacingRate::new(bytes_per_s).unwrap()
    }

    fn rule(network: &str, prefix_len: u8, bytes_per_s: u64) -> ClientRate {
        ClientRate::new(network.parse().unwrap(), prefix_len, rate(bytes_per_s)).unwrap()
    }

    #[test]
    fn the_longest_prefix_counts() {
        let rates = ListenerRates {
            others: Some(rate(1000)),
            clients: vec![
                rule("198.18.7.9", 32, 5000),
                rule("2001:db8::", 32, 4000),
                rule("198.18.7.200", 24, 3000),
                rule("198.18.0.0", 16, 2000),
            ],
        };
        for (client, bytes_per_s) in [
            ("198.18.7.9", 5000),
            ("198.18.7.10", 3000),
            ("::ffff:198.18.7.10", 3000),
            ("198.18.8.1", 2000),
            ("198.19.0.1", 1000),
            ("2001:db8::1", 4000),
            ("2001:db9::1", 1000),
        ] {
            let found = rates.of(client.parse().unwrap()).map(|rate| rate.bytes_per_s());
            assert_eq!(found, Some(bytes_per_s), "{client}");
        }
        let all = ListenerRates { others: None, clients: vec![rule("0.0.0.0", 0, 9000)] };
        assert_eq!(all.of("192.0.2.1".parse().unwrap()), Some(rate(9000)));
        assert_eq!(all.of("2001:db8::1".parse().unwrap()), None);
        assert!(ListenerRates::default().is_empty() && !all.is_empty());
        let error = ClientRate::new("192.0.2.1".parse().unwrap(), 33, rate(1000)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a prefix of 33 bits is longer than the address 192.0.2.1; give at most 32"
        );
    }
}
