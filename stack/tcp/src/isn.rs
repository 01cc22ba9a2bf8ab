//! Initial sequence numbers and timestamp offsets that nobody outside can guess (RFC 6528).

use std::hash::Hasher;
use std::net::SocketAddr;

use millstream_timer::Instant;
use millstream_wire::tcp::SeqNumber;
use siphasher::sip::SipHasher24;

/// Makes initial sequence numbers from a clock and a keyed hash of the connection's addresses.
#[derive(Clone)]
pub struct IsnGenerator {
    key: [u8; 16],
}

impl IsnGenerator {
    /// A generator with a secret key, which must be random and should live as long as the process.
    pub const fn new(key: [u8; 16]) -> Self {
        Self { key }
    }

    /// RFC 6528 section 3: ISN = M + F(localip, localport, remoteip, remoteport, secretkey), where
    /// M is a clock of 4 us ticks. So the numbers of one connection name rise over time, and those
    /// of another tell nothing about them.
    pub fn isn(&self, now: Instant, local: SocketAddr, remote: SocketAddr) -> SeqNumber {
        let clock = (now.as_micros() / 4) as u32;
        SeqNumber(clock.wrapping_add(self.hash(0, local, remote) as u32))
    }

    /// The offset of the timestamp clock of a connection (RFC 7323 section 5.4, RFC 7323 appendix
    /// A): hides the uptime, and rises over successive connections of one name.
    pub fn ts_offset(&self, local: SocketAddr, remote: SocketAddr) -> u32 {
        self.hash(1, local, remote) as u32
    }

    fn hash(&self, purpose: u8, local: SocketAddr, remote: SocketAddr) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write_u8(purpose);
        for address in [local, remote] {
            match address {
                SocketAddr::V4(v4) => hasher.write(&v4.ip().octets()),
                SocketAddr::V6(v6) => hasher.write(&v6.ip().octets()),
            }
            hasher.write(&address.port().to_be_bytes());
        }
        hasher.finish()
    }
}

impl std::fmt::Debug for IsnGenerator {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IsnGenerator").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_ticks_every_4_us_and_names_differ() {
        let generator = IsnGenerator::new([7; 16]);
        let local = "192.0.2.1:80".parse().unwrap();
        let remote = "192.0.2.2:5000".parse().unwrap();
        let other = "192.0.2.2:5001".parse().unwrap();
        let at = |micros| generator.isn(Instant::from_micros(micros), local, remote);
        assert_eq!(at(4_000).distance(at(0)), 1000);
        assert_ne!(at(0), generator.isn(Instant::ZERO, local, other));
        assert_ne!(at(0), generator.isn(Instant::ZERO, remote, local));
        assert_ne!(at(0), IsnGenerator::new([8; 16]).isn(Instant::ZERO, local, remote));
        assert_eq!(generator.ts_offset(local, remote), generator.ts_offset(local, remote));
        assert_ne!(generator.ts_offset(local, remote), at(0).0);
        assert!(!format!("{generator:?}").contains('7'));
    }
}
