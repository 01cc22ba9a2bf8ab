//! The baseline that soft timers are measured against: events by timer signals.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use signal_hook::SigId;
use signal_hook::consts::SIGALRM;

/// A POSIX timer that signals the thread that made it (`SIGALRM`). It is set anew for each event:
/// one system call, and one signal whose handler raises a flag. That is what an event costs at the
/// least where a timer interrupt has to be taken for it.
///
/// The handler is that of `signal_hook`, so nothing here is unsafe. All handlers of a process see
/// each signal: another thread's may raise the flag too, which costs one look for nothing.
#[derive(Debug)]
pub struct SignalTimer {
    timer: Timer,
    raised: Arc<AtomicBool>,
    handler: SigId,
}

impl SignalTimer {
    /// Makes the timer for the calling thread.
    ///
    /// # Errors
    /// What the system says: too many timers (`RLIMIT_SIGPENDING`), or no handler can be set.
    pub fn new() -> io::Result<Self> {
        let raised = Arc::new(AtomicBool::new(false));
        let thread_id = rustix::thread::gettid().as_raw_nonzero().get();
        let notify = SigevNotify::SigevThreadId { signal: Signal::SIGALRM, thread_id, si_value: 0 };
        let timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify))?;
        let handler = signal_hook::flag::register(SIGALRM, Arc::clone(&raised))?;
        Ok(Self { timer, raised, handler })
    }

    /// Asks for one signal after `span`, at least a nanosecond, instead of whatever was asked for
    /// before.
    ///
    /// # Errors
    /// What the system says; the timer is as it was.
    pub fn set(&mut self, span: Duration) -> io::Result<()> {
        let span = span.clamp(Duration::from_nanos(1), Duration::from_secs(1 << 30));
        let expiration = Expiration::OneShot(TimeSpec::from(span));
        Ok(self.timer.set(expiration, TimerSetTimeFlags::empty())?)
    }

    /// Whether a signal has come since the last time this said so.
    #[inline]
    pub fn take(&self) -> bool {
        self.raised.load(Ordering::Relaxed) && self.raised.swap(false, Ordering::Relaxed)
    }
}

impl Drop for SignalTimer {
    fn drop(&mut self) {
        // The timer goes after this; a signal between the two finds `signal_hook`'s handler, which
        // stays and does nothing.
        signal_hook::low_level::unregister(self.handler);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_brings_one_signal() {
        let mut timer = SignalTimer::new().unwrap();
        assert!(!timer.take());
        for micros in [0, 50, 2000] {
            timer.set(Duration::from_micros(micros)).unwrap();
            while !timer.take() {
                std::hint::spin_loop();
            }
        }
        // A setting takes the one before it back.
        timer.set(Duration::from_secs(3600)).unwrap();
        timer.set(Duration::MAX).unwrap();
        drop(timer);
    }
}
