//! Network namespaces that belong to one test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{Finished, Process};

/// Tests that may run at a time: each of them has a server that polls.
const LABS_AT_A_TIME: usize = 2;

static LABS: Mutex<usize> = Mutex::new(0);
static LAB_FREE: Condvar = Condvar::new();

/// What one test works with: namespaces, a folder, and a turn among the tests.
#[derive(Debug)]
pub struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    /// Waits for its turn, then takes a place.
    ///
    /// # Panics
    /// Without root: namespaces cannot be made.
    #[expect(clippy::new_without_default, reason = "it waits and makes a folder")]
    pub fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make network namespaces, which needs root: run `sudo make test`"
        );
        let mut labs = LABS.lock().unwrap_or_else(PoisonError::into_inner);
        while *labs >= LABS_AT_A_TIME {
            labs = LAB_FREE.wait(labs).unwrap_or_else(PoisonError::into_inner);
        }
        *labs += 1;
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// The test's own folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A new namespace with its loopback up.
    pub fn namespace(&self) -> Namespace<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ms-test-{}-{number}", std::process::id());
        let namespace = Namespace { name, lab: self };
        must(Command::new("ip").args(["netns", "add", &namespace.name]));
        namespace.ip("link set lo up");
        namespace
    }

    /// A pair of interfaces, up and without offloads, one in each namespace: frames are as on a
    /// wire, of at most 1500 bytes and with finished checksums.
    pub fn veth(&self, a: (&Namespace<'_>, &str), b: (&Namespace<'_>, &str)) {
        let ((left, left_if), (right, right_if)) = (a, b);
        left.ip(&format!("link add {left_if} type veth peer name {right_if} netns {}", right.name));
        for (namespace, interface) in [a, b] {
            namespace.must(
                "ethtool",
                &[
                    "-K", interface, "tx", "off", "rx", "off", "tso", "off", "gso", "off", "gro",
                    "off",
                ],
            );
            namespace.ip(&format!("link set {interface} up"));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        *LABS.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        LAB_FREE.notify_one();
    }
}

/// A network namespace; removed when dropped.
#[derive(Debug)]
pub struct Namespace<'lab> {
    name: String,
    lab: &'lab Lab,
}

impl Namespace<'_> {
    /// Its lab.
    pub fn lab(&self) -> &Lab {
        self.lab
    }

    /// A command that will run in it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a program in it to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> Finished {
        Process::start(self.command(program).args(args)).finish()
    }

    /// Runs a program in it, which has to succeed.
    pub fn must(&self, program: &str, args: &[&str]) -> Finished {
        let finished = self.run(program, args);
        assert!(finished.success(), "{program} {}: {finished}", args.join(" "));
        finished
    }

    /// Runs `ip` in it with arguments that hold no blanks.
    pub fn ip(&self, args: &str) {
        self.must("ip", &args.split(' ').collect::<Vec<_>>());
    }

    /// Fetches `url` into a file with curl, with more arguments; the answer is what `--write-out
    /// %{http_code}` says, and the body.
    pub fn curl(&self, url: &str, args: &[&str]) -> (u16, Vec<u8>) {
        let body = tempfile::NamedTempFile::new_in(self.lab.folder()).expect("a file");
        let path = body.path().display().to_string();
        let mut all = vec!["--silent", "--show-error", "--max-time", "60", "--path-as-is"];
        all.extend(["--write-out", "%{http_code}", "--output", &path]);
        all.extend(args);
        all.push(url);
        let finished = self.must("curl", &all);
        let status = finished.stdout.trim().parse().unwrap_or_else(|_| panic!("{finished}"));
        (status, std::fs::read(body.path()).expect("the body"))
    }

    /// Runs `work` in a thread whose sockets and children are in this namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = PathBuf::from("/run/netns").join(&self.name);
        let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("to enter the namespace");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

fn must(command: &mut Command) {
    let finished = Process::start(command).finish();
    assert!(finished.success(), "{command:?}: {finished}");
}
