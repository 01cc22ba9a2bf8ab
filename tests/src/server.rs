//! The program under test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::lab::Namespace;
use crate::process::{Finished, Process};

/// A file of the project, by its path from the root.
pub fn project_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The program, built beside the running test.
///
/// # Panics
/// If it is not there.
pub fn millstream_binary() -> PathBuf {
    // target/PROFILE/deps/TEST
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.ancestors().nth(2).expect("the profile's folder");
    let binary = profile.join("millstream");
    assert!(
        binary.exists(),
        "{} is missing: build it with `cargo build -p millstream-apps` in the profile of the tests",
        binary.display()
    );
    binary
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
        Self::on_tap_with(namespace, root, &project_file("config/tap.toml"))
    }

    /// The same with another configuration, whose tap must be `dtap0`.
    pub fn on_tap_with(namespace: &Namespace<'_>, root: &Path, config: &Path) -> Self {
        let server = Self::start(namespace, root, config);
        namespace.ip("addr add 198.18.0.1/24 dev dtap0");
        server
    }

    /// Starts it and waits until it says where it serves.
    pub fn start(namespace: &Namespace<'_>, root: &Path, config: &Path) -> Self {
        let mut command = namespace.command(millstream_binary());
        command.arg("serve").arg("--config").arg(config).arg("--root").arg(root);
        let process = Process::start(&mut command);
        let url = process.wait_line(|line| {
            let from = line.find("http://")?;
            let rest = &line[from + "http://".len()..];
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
            Some(rest[..end.unwrap_or(rest.len())].trim_end_matches([':', '.']).to_string())
        });
        let address = url.parse().or_else(|_| format!("{url}:80").parse());
        Self { process, address: address.expect("an address"), url: format!("http://{url}") }
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The URL of a file.
    pub fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }

    /// SIGINT; waits for the drain; asserts that it succeeds and sums up.
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
