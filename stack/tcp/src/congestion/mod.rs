//! How much may be in flight: congestion controllers behind one trait.
//!
//! A controller works on a [`Window`] and knows nothing of sequence numbers or timers; loss
//! recovery tells it what happened. Dispatch is by an enum in a box of its own, which is made when
//! the connection is opened and never moves: the record of a connection pays eight bytes.
//!
//! | file | controller | by |
//! |---|---|---|
//! | `cubic` | CUBIC, the default | RFC 9438 |
//! | `new_reno` | NewReno | RFC 5681, RFC 3465 |
//! | `dctcp` | DCTCP | RFC 8257 |
//! | `bbr` | BBR | draft-ietf-ccwg-bbr |
//! | `hystart` | slow start of the first three | RFC 9406 |
//! | `algorithm` | their names | |
//! | `sim` | a path in virtual time, for tests | |
//!
//! No controller uses floating point, reads a clock or trusts a number that it is told: whatever
//! comes, the window stays between a segment and [`CWND_MAX`].

mod algorithm;
mod bbr;
mod cubic;
mod dctcp;
mod hystart;
mod new_reno;
#[cfg(test)]
mod sim;

pub use algorithm::{Algorithm, UnknownAlgorithm};
pub use bbr::Bbr;
pub use cubic::Cubic;
pub use dctcp::Dctcp;
pub use new_reno::NewReno;

/// Larger windows than a 30-bit one cannot be announced by any peer (RFC 7323 section 2.3).
pub(crate) const CWND_MAX: u32 = 1 << 30;

/// No rate above this many bytes a second is asked for: it is beyond any link, and what is computed
/// from it does not overflow.
pub(crate) const RATE_MAX: u64 = 1 << 40;

/// What a controller controls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Congestion window in bytes.
    pub cwnd: u32,
    /// Slow-start threshold in bytes.
    pub ssthresh: u32,
}

/// What an ACK told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// The moment, in microseconds of the shard's clock.
    pub now_us: u64,
    /// Bytes newly delivered: acknowledged by this ACK, cumulatively or selectively.
    pub delivered: u32,
    /// Bytes newly found lost by this ACK.
    pub lost: u32,
    /// Bytes in flight after it.
    pub flight: u32,
    /// Bytes in flight before it.
    pub prior_flight: u32,
    /// Most payload of a segment sent.
    pub mss: u32,
    /// This ACK's sample of the round-trip time; 0: none.
    pub rtt_us: u32,
    /// Smoothed round-trip time; 0: none yet.
    pub srtt_us: u32,
    /// Least round-trip time; 0: none yet.
    pub min_rtt_us: u32,
    /// The congestion window was what held the sender back (RFC 7661). In slow start, where an
    /// application may not keep up for a moment, it is enough that half of it was used, as in Linux.
    pub cwnd_limited: bool,
    /// A loss is being repaired: recovery sets the window, unless the controller
    /// [owns](Controller::owns_window) it.
    pub in_recovery: bool,
    /// Delivered bytes of which the peer says that they met congestion (ECE).
    pub ece_bytes: u32,
    /// Bytes delivered since the connection was opened, this ACK's included.
    pub total_delivered: u64,
    /// How fast they were delivered, if that is measured.
    pub rate: Option<RateSample>,
}

/// A sample of the delivery rate (draft-cheng-iccrg-delivery-rate-estimation).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateSample {
    /// The rate.
    pub bytes_per_s: u64,
    /// The application, not the network, set this rate.
    pub app_limited: bool,
    /// Bytes delivered since open when the newest segment acknowledged was sent.
    pub prior_delivered: u64,
    /// Bytes delivered between then and now.
    pub delivered: u32,
    /// How long that took, in microseconds.
    pub interval_us: u32,
    /// Bytes found lost since then.
    pub lost: u32,
    /// Bytes in flight when that segment was sent, its own included.
    pub tx_flight: u32,
}

/// Why a congestion episode begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A segment was lost.
    Loss,
    /// The peer echoes a mark (RFC 3168).
    Ecn,
}

/// What a controller makes of explicit congestion notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EcnUse {
    /// Nothing.
    None,
    /// One episode for each round trip with a mark (RFC 3168).
    Classic,
    /// It counts the marks (RFC 8257): every segment is ECN-capable, and the receiver echoes each
    /// change.
    Dctcp,
}

/// A congestion controller.
pub trait Controller {
    /// The connection is established, and `window` is the initial one.
    fn on_open(&mut self, window: &mut Window, mss: u32, now_us: u64) {
        let _ = (window, mss, now_us);
    }

    /// An ACK that delivers or finds lost at least one byte.
    ///
    /// Without [`Self::wants_every_ack`] the caller may leave out those for which
    /// [`Ack::cwnd_limited`] does not hold.
    fn on_ack(&mut self, window: &mut Window, ack: &Ack);

    /// A congestion episode begins, with `flight` bytes out; returns the new threshold in bytes,
    /// which the caller puts into the window. Remembers what [`Self::on_undo`] needs.
    fn on_congestion(
        &mut self,
        window: &Window,
        why: Signal,
        flight: u32,
        mss: u32,
        now_us: u64,
    ) -> u32;

    /// The episode is over.
    fn on_recovered(&mut self, window: &mut Window, now_us: u64) {
        let _ = (window, now_us);
    }

    /// A retransmission time-out with `flight` bytes out. Sets the window; `first` tells that this
    /// segment had not timed out before.
    fn on_timeout(&mut self, window: &mut Window, flight: u32, mss: u32, first: bool, now_us: u64);

    /// The last reduction had no cause: the window and the threshold are what they were.
    fn on_undo(&mut self, window: &mut Window);

    /// Nothing was sent for `idle_us`, which is longer than a time-out.
    fn on_idle(&mut self, window: &mut Window, initial_window: u32, idle_us: u64, now_us: u64);

    /// `bytes` were sent, after which `flight` were out.
    fn on_sent(&mut self, bytes: u32, flight: u32, now_us: u64) {
        let _ = (bytes, flight, now_us);
    }

    /// Bytes a second at which to clock segments out; 0: as the window allows.
    fn pacing_rate(&self, window: &Window, srtt_us: u32, mss: u32) -> u64 {
        let _ = mss;
        window_pacing_rate(window, srtt_us)
    }

    /// The path is known, or guessed, to carry so many bytes a second: a controller with a model of
    /// its rate starts from there.
    fn set_rate(&mut self, bytes_per_s: u64) {
        let _ = bytes_per_s;
    }

    /// Whether recovery leaves the window alone.
    fn owns_window(&self) -> bool {
        false
    }

    /// What it makes of ECN.
    fn uses_ecn(&self) -> EcnUse {
        EcnUse::Classic
    }

    /// Whether [`Ack::rate`] is read.
    fn wants_rate_samples(&self) -> bool {
        false
    }

    /// Whether ACKs count that come while the window does not limit.
    fn wants_every_ack(&self) -> bool {
        false
    }
}

/// A window's worth of bytes each round trip, with what it takes to fill a window that grows:
/// twice as much in slow start, a fifth more after it, as in Linux.
pub(crate) fn window_pacing_rate(window: &Window, srtt_us: u32) -> u64 {
    if srtt_us == 0 {
        return 0;
    }
    // Linux takes the lower gain from half the threshold on, so that slow start ends calmly.
    let percent = if window.cwnd < window.ssthresh / 2 { 200 } else { 120 };
    (u64::from(window.cwnd) * percent * 10_000 / u64::from(srtt_us)).clamp(1, RATE_MAX)
}

/// The controller of a connection.
#[derive(Debug)]
pub(crate) struct Congestion(Box<Kind>);

#[derive(Debug)]
enum Kind {
    Cubic(Cubic),
    NewReno(NewReno),
    Bbr(Box<Bbr>),
    Dctcp(Box<Dctcp>),
}

// Every connection has one; those that need more have a box of their own beside it.
const _: () = assert!(size_of::<Kind>() <= 56);

impl Congestion {
    /// A controller for a new connection whose window one ACK grows by so many segments in slow start
    /// at most. Allocates.
    pub(crate) fn new(algorithm: Algorithm, growth_segments: u8) -> Self {
        Self(Box::new(match algorithm {
            Algorithm::Cubic => Kind::Cubic(Cubic::new(growth_segments)),
            Algorithm::NewReno => Kind::NewReno(NewReno::new(growth_segments)),
            Algorithm::Bbr => Kind::Bbr(Box::default()),
            Algorithm::Dctcp => Kind::Dctcp(Box::new(Dctcp::new(growth_segments))),
        }))
    }

    /// Which one it is.
    pub(crate) fn algorithm(&self) -> Algorithm {
        match &*self.0 {
            Kind::Cubic(_) => Algorithm::Cubic,
            Kind::NewReno(_) => Algorithm::NewReno,
            Kind::Bbr(_) => Algorithm::Bbr,
            Kind::Dctcp(_) => Algorithm::Dctcp,
        }
    }
}

/// Calls a method of whichever controller it is.
macro_rules! dispatch {
    ($kind:expr, $method:ident($($argument:expr),*)) => {
        match $kind {
            Kind::Cubic(controller) => controller.$method($($argument),*),
            Kind::NewReno(controller) => controller.$method($($argument),*),
            Kind::Bbr(controller) => controller.$method($($argument),*),
            Kind::Dctcp(controller) => controller.$method($($argument),*),
        }
    };
}

impl Controller for Congestion {
    fn on_open(&mut self, window: &mut Window, mss: u32, now_us: u64) {
        dispatch!(&mut *self.0, on_open(window, mss, now_us))
    }

    #[inline]
    fn on_ack(&mut self, window: &mut Window, ack: &Ack) {
        dispatch!(&mut *self.0, on_ack(window, ack))
    }

    fn on_congestion(
        &mut self,
        window: &Window,
        why: Signal,
        flight: u32,
        mss: u32,
        now_us: u64,
    ) -> u32 {
        dispatch!(&mut *self.0, on_congestion(window, why, flight, mss, now_us))
    }

    fn on_recovered(&mut self, window: &mut Window, now_us: u64) {
        dispatch!(&mut *self.0, on_recovered(window, now_us))
    }

    fn on_timeout(&mut self, window: &mut Window, flight: u32, mss: u32, first: bool, now_us: u64) {
        dispatch!(&mut *self.0, on_timeout(window, flight, mss, first, now_us))
    }

    fn on_undo(&mut self, window: &mut Window) {
        dispatch!(&mut *self.0, on_undo(window))
    }

    fn on_idle(&mut self, window: &mut Window, initial_window: u32, idle_us: u64, now_us: u64) {
        dispatch!(&mut *self.0, on_idle(window, initial_window, idle_us, now_us))
    }

    #[inline]
    fn on_sent(&mut self, bytes: u32, flight: u32, now_us: u64) {
        dispatch!(&mut *self.0, on_sent(bytes, flight, now_us))
    }

    #[inline]
    fn pacing_rate(&self, window: &Window, srtt_us: u32, mss: u32) -> u64 {
        dispatch!(&*self.0, pacing_rate(window, srtt_us, mss))
    }

    fn set_rate(&mut self, bytes_per_s: u64) {
        dispatch!(&mut *self.0, set_rate(bytes_per_s))
    }

    fn owns_window(&self) -> bool {
        dispatch!(&*self.0, owns_window())
    }

    fn uses_ecn(&self) -> EcnUse {
        dispatch!(&*self.0, uses_ecn())
    }

    fn wants_rate_samples(&self) -> bool {
        dispatch!(&*self.0, wants_rate_samples())
    }

    fn wants_every_ack(&self) -> bool {
        dispatch!(&*self.0, wants_every_ack())
    }
}

/// The initial window in bytes (RFC 6928 section 2): `segments` of them, but with segments above
/// the usual size no more than 14,600 bytes or two.
pub(crate) fn initial_window(segments: u8, mss: u32) -> u32 {
    let segments = u32::from(segments).max(1);
    (segments * mss).min((segments * 1460).max(2 * mss))
}

#[cfg(test)]
mod tests;
