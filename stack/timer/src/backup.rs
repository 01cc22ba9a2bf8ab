//! The backup of the soft timers: a periodic tick from another thread.
//!
//! In the paper the clock interrupt makes sure that events fire even if no trigger point is passed.
//! A poll loop cannot be interrupted at no cost; what it can have is a flag that a thread beside it
//! raises. The loop looks at the flag where it would otherwise not read its clock, an application's
//! long computation looks at it to know when to give way, and the flag that nobody took down by the
//! next tick tells that something holds the loop up.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Ticks a second at most.
pub const BACKUP_HZ_MAX: u32 = 10_000;

/// What the loop and its backup share.
#[derive(Debug)]
struct Shared {
    timer: OwnedFd,
    raised: AtomicBool,
    stop: AtomicBool,
    ticks: AtomicU64,
    missed: AtomicU64,
}

/// A thread that raises a flag so many times a second.
#[derive(Debug)]
pub struct Backup {
    shared: Arc<Shared>,
    hz: u32,
    thread: Option<JoinHandle<()>>,
}

impl Backup {
    /// Starts the thread; its ticks begin at once. `hz` is taken into 1 to [`BACKUP_HZ_MAX`].
    ///
    /// # Errors
    /// What the system says if it has no descriptor or thread left.
    pub fn start(hz: u32) -> io::Result<Self> {
        let hz = hz.clamp(1, BACKUP_HZ_MAX);
        let shared = Arc::new(Shared {
            timer: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?,
            raised: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            ticks: AtomicU64::new(0),
            missed: AtomicU64::new(0),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("soft-timer-tick".to_owned())
            .spawn(move || theirs.run())?;
        let backup = Self { shared, hz, thread: Some(thread) };
        backup.resume();
        Ok(backup)
    }

    /// Ticks a second.
    pub fn hz(&self) -> u32 {
        self.hz
    }

    /// Whether a tick has come since the flag was last taken down.
    #[inline]
    pub fn is_raised(&self) -> bool {
        self.shared.raised.load(Ordering::Relaxed)
    }

    /// Takes the flag down; whether it was up.
    #[inline]
    pub fn take(&self) -> bool {
        self.is_raised() && self.shared.raised.swap(false, Ordering::Relaxed)
    }

    /// Ticks since start.
    pub fn ticks(&self) -> u64 {
        self.shared.ticks.load(Ordering::Relaxed)
    }

    /// Ticks that found the flag still up from the tick before: the loop had passed no trigger point
    /// for a whole period.
    pub fn missed(&self) -> u64 {
        self.shared.missed.load(Ordering::Relaxed)
    }

    /// No ticks until [`Self::resume`]: the loop goes to sleep, and so does its backup. A system
    /// call.
    pub fn pause(&self) {
        self.set(0);
    }

    /// Ticks again. A system call.
    pub fn resume(&self) {
        self.set(1_000_000_000 / i64::from(self.hz));
    }

    /// The kernel refuses none of these values; were the timer to stay as it is, ticks would come too
    /// often or not, and nothing else depends on them.
    fn set(&self, nanos: i64) {
        let (tv_sec, tv_nsec) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
        let span = Timespec { tv_sec, tv_nsec };
        let value = Itimerspec { it_interval: span, it_value: span };
        let _ = timerfd_settime(&self.shared.timer, TimerfdTimerFlags::empty(), &value);
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.set(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut expirations = [0; 8];
        loop {
            match rustix::io::read(&self.timer, &mut expirations) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return,
            }
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.ticks.fetch_add(1, Ordering::Relaxed);
            if self.raised.swap(true, Ordering::Relaxed) {
                self.missed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_for(what: impl Fn() -> bool) {
        // No bound on time: what never comes hangs, and the test runner says where.
        while !what() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn ticks_raise_the_flag_until_it_is_taken_down() {
        let backup = Backup::start(1000).unwrap();
        wait_for(|| backup.is_raised());
        assert!(backup.take());
        wait_for(|| backup.take());
        assert!(backup.ticks() >= 2);
    }

    #[test]
    fn a_loop_that_passes_no_trigger_point_is_noticed() {
        let backup = Backup::start(BACKUP_HZ_MAX * 7).unwrap();
        assert_eq!(backup.hz(), BACKUP_HZ_MAX);
        wait_for(|| backup.missed() >= 3);
        assert!(backup.take() || backup.take());
    }

    #[test]
    fn a_paused_backup_is_silent_and_comes_back() {
        assert_eq!(Backup::start(0).unwrap().hz(), 1);
        let backup = Backup::start(1000).unwrap();
        wait_for(|| backup.take());
        backup.pause();
        let before = backup.ticks();
        std::thread::sleep(std::time::Duration::from_millis(50));
        // One may have been under way.
        assert!(backup.ticks() <= before + 1);
        backup.take();
        backup.resume();
        wait_for(|| backup.is_raised());
    }
}
