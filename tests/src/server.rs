//! The program under test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::Namespace;
use crate::process::{Finished, Process};

/// A file of the project, by its path from the root.
pub fn project_file(path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.expect("the tests lie below it").join(path)
}

/// The program, built beside the running test.
///
/// # Panics
/// If it is not there.
pub fn millstream_binary() -> PathBuf {
    built_binary("millstream")
}

/// A program of the workspace, built beside the running test.
///
/// # Panics
/// If it is not there.
pub fn built_binary(name: &str) -> PathBuf {
    // target/PROFILE/deps/TEST
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.ancestors().nth(2).expect("the profile's folder");
    let binary = profile.join(name);
    assert!(
        binary.exists(),
        "{} is missing: build it with `cargo build --workspace --bins` in the profile of the tests",
        binary.display()
    );
    binary
}

/// The command `millstream serve` with a profile from `config/` and keys set.
pub fn serve(namespace: &Namespace<'_>, root: &Path, profile: &str, keys: &[&str]) -> Command {
    let mut command = namespace.command(millstream_binary());
    command.arg("serve").arg("--config").arg(project_file("config").join(profile));
    command.arg("--root").arg(root);
    for key in keys {
        command.args(["--set", key]);
    }
    command
}

/// `millstream serve`, ready.
#[derive(Debug)]
pub struct Server {
    process: Process,
    /// `http://ADDRESS:PORT`.
    pub url: String,
    /// The same.
    pub address: SocketAddr,
}

impl Server {
    /// Starts it with `config/tap.toml` and gives the kernel's end of the tap its address.
    pub fn on_tap(namespace: &Namespace<'_>, root: &Path) -> Self {
        Self::on_tap_with(namespace, root, &[])
    }

    /// The same with keys set, each as `section.key=value`.
    pub fn on_tap_with(namespace: &Namespace<'_>, root: &Path, keys: &[&str]) -> Self {
        let server = Self::start(namespace, root, "tap.toml", keys);
        namespace.ip("addr add 198.18.0.1/24 dev dtap0");
        server
    }

    /// As [`Self::on_tap`] with the files of `--source`.
    pub fn on_tap_source(namespace: &Namespace<'_>, source: &str) -> Self {
        let mut command = namespace.command(millstream_binary());
        command.arg("serve").arg("--config").arg(project_file("config").join("tap.toml"));
        let server = Self::ready(command.args(["--source", source]));
        namespace.ip("addr add 198.18.0.1/24 dev dtap0");
        server
    }

    /// Starts it with a profile from `config/` and waits until it says where it serves.
    pub fn start(namespace: &Namespace<'_>, root: &Path, profile: &str, keys: &[&str]) -> Self {
        Self::ready(&mut serve(namespace, root, profile, keys))
    }

    fn ready(command: &mut Command) -> Self {
        let process = Process::start(command);
        let url = process.wait_line(|line| {
            let rest = line.split_once("http://")?.1;
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
            Some(rest[..end.unwrap_or(rest.len())].to_string())
        });
        let address = url.parse().expect("ADDRESS:PORT");
        Self { process, address, url: format!("http://{url}") }
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The URL of a file.
    pub fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }

    /// SIGINT; waits for the drain; asserts that it succeeds.
    pub fn stop(self) -> Finished {
        let finished = self.process.interrupt();
        assert_eq!(finished.status.code(), Some(0), "{finished}");
        finished
    }

    /// The process alone, for tests that end it in their own way.
    pub fn into_process(self) -> Process {
        self.process
    }
}
