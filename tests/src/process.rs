//! Child processes whose output is watched and whose end is bounded.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
pub use rustix::process::Signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

/// How long a test waits for an event that must come. Long, since machines may be slow; reached only
/// by a failing test.
pub const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Debug, Default)]
struct Text {
    stdout: String,
    stderr: String,
    open: u8,
}

type Shared = Arc<(Mutex<Text>, Condvar)>;

/// A running child; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
    text: Shared,
    readers: Vec<JoinHandle<()>>,
}

/// How a child ended and what it said.
#[derive(Debug)]
pub struct Finished {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Finished {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Asserts what every refusal must look like: the exit code, nothing on standard output, one
    /// line on standard error that names `words`, and no panic.
    pub fn assert_refusal(&self, code: i32, words: &[&str]) {
        assert_eq!(self.status.code(), Some(code), "{self}");
        let lines: Vec<_> = self.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
        assert_eq!(lines.len(), 1, "one sentence is wanted: {self}");
        assert!(!lines[0].contains("panicked"), "{self}");
        for word in words {
            assert!(lines[0].contains(word), "`{word}` is not named: {self}");
        }
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, stdout, stderr } = self;
        write!(f, "{status}\n-- stdout --\n{stdout}\n-- stderr --\n{stderr}\n--")
    }
}

impl Process {
    /// Starts a child with no input; its output is read from now on.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).expect("a pidfd");
        let text: Shared = Arc::default();
        lock(&text).open = 2;
        let stdout = child.stdout.take().expect("it is piped");
        let stderr = child.stderr.take().expect("it is piped");
        let readers = vec![
            follow(stdout, Arc::clone(&text), |text| &mut text.stdout),
            follow(stderr, Arc::clone(&text), |text| &mut text.stderr),
        ];
        Self { child, pidfd, text, readers }
    }

    /// Waits for a line, on standard output or error, for which `find` gives something.
    ///
    /// # Panics
    /// If the child ends or [`PATIENCE`] does.
    pub fn wait_line<T>(&self, find: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut text = lock(&self.text);
        loop {
            let lines =
                || text.stdout.split_inclusive('\n').chain(text.stderr.split_inclusive('\n'));
            if let Some(found) = lines().filter(|line| line.ends_with('\n')).find_map(&find) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(text.open > 0 && !left.is_zero(), "the line never came: {:?}", *text);
            text = self.text.1.wait_timeout(text, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        pidfd_send_signal(&self.pidfd, signal).expect("the child is there");
    }

    /// Whether the child ends within `patience`.
    pub fn ends_within(&self, patience: Duration) -> bool {
        let timeout = Timespec::try_from(patience).expect("a short time");
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).expect("poll") > 0
    }

    /// Waits for the child's end.
    ///
    /// # Panics
    /// If it does not come within [`PATIENCE`].
    pub fn finish(mut self) -> Finished {
        let ended = self.ends_within(PATIENCE);
        if !ended {
            let _ = self.child.kill();
        }
        let status = self.child.wait().unwrap_or_else(|_| ExitStatus::from_raw(-1));
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        let mut text = lock(&self.text);
        let finished = Finished {
            status,
            stdout: std::mem::take(&mut text.stdout),
            stderr: std::mem::take(&mut text.stderr),
        };
        assert!(ended, "the child had to be killed after {PATIENCE:?}: {finished}");
        finished
    }

    /// SIGINT, then the end.
    pub fn interrupt(self) -> Finished {
        self.signal(Signal::INT);
        self.finish()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // After `finish` both do nothing: the child was reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock(text: &Shared) -> std::sync::MutexGuard<'_, Text> {
    text.0.lock().unwrap_or_else(PoisonError::into_inner)
}

fn follow(
    from: impl Read + Send + 'static,
    text: Shared,
    part: fn(&mut Text) -> &mut String,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            part(&mut lock(&text)).push_str(&String::from_utf8_lossy(&line));
            text.1.notify_all();
            line.clear();
        }
        lock(&text).open -= 1;
        text.1.notify_all();
    })
}
