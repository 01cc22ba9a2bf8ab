//! How much may be in flight: congestion controllers behind one trait.
//!
//! A controller works on a [`Window`] and knows nothing of sequence numbers or timers; loss
//! recovery (`recovery.rs`) tells it what happened. Dispatch is by [`Congestion`], an enum, so that
//! a connection carries its controller in place.

mod new_reno;

pub use new_reno::NewReno;

/// Larger windows than a 30-bit one cannot be announced by any peer (RFC 7323 section 2.3).
pub(crate) const CWND_MAX: u32 = 1 << 30;

/// What a controller controls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Congestion window in bytes.
    pub cwnd: u32,
    /// Slow-start threshold in bytes.
    pub ssthresh: u32,
}

/// A congestion controller.
pub trait Controller {
    /// `acked` bytes were acknowledged outside of recovery, and the window had been what held the
    /// sender back.
    fn on_ack(&mut self, window: &mut Window, acked: u32, mss: u32);

    /// Duplicate ACKs show a loss with `flight` bytes out; returns the new threshold in bytes.
    fn on_loss(&mut self, window: &Window, flight: u32, mss: u32) -> u32;

    /// A retransmission time-out. Sets the window; `first` tells that this segment had not timed
    /// out before.
    fn on_timeout(&mut self, window: &mut Window, flight: u32, mss: u32, first: bool);

    /// Nothing was sent for longer than a time-out.
    fn on_idle(&mut self, window: &mut Window, initial_window: u32);
}

/// The controller of a connection.
#[derive(Debug)]
pub(crate) enum Congestion {
    NewReno(NewReno),
}

impl Controller for Congestion {
    #[inline]
    fn on_ack(&mut self, window: &mut Window, acked: u32, mss: u32) {
        match self {
            Self::NewReno(controller) => controller.on_ack(window, acked, mss),
        }
    }

    fn on_loss(&mut self, window: &Window, flight: u32, mss: u32) -> u32 {
        match self {
            Self::NewReno(controller) => controller.on_loss(window, flight, mss),
        }
    }

    fn on_timeout(&mut self, window: &mut Window, flight: u32, mss: u32, first: bool) {
        match self {
            Self::NewReno(controller) => controller.on_timeout(window, flight, mss, first),
        }
    }

    fn on_idle(&mut self, window: &mut Window, initial_window: u32) {
        match self {
            Self::NewReno(controller) => controller.on_idle(window, initial_window),
        }
    }
}

/// The initial window in bytes (RFC 6928 section 2): `segments` of them, but with segments above
/// the usual size no more than 14,600 bytes or two.
pub(crate) fn initial_window(segments: u8, mss: u32) -> u32 {
    let segments = u32::from(segments).max(1);
    (segments * mss).min((segments * 1460).max(2 * mss))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_window_is_that_of_rfc_6928() {
        assert_eq!(initial_window(10, 1460), 14_600);
        assert_eq!(initial_window(10, 536), 5_360);
        assert_eq!(initial_window(10, 8_960), 17_920);
        assert_eq!(initial_window(0, 1_000), 1_000);
    }
}
