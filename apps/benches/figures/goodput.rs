//! Goodput over impaired paths, ours and Linux's, by the same relay to the same receiver.
//!
//! ```text
//! receiver: near0 ---- near1: relay :far1 ---- far0: sender
//! ```
//!
//! The receiver is the kernel's TCP in both cases; the sender is `millstream serve` on a packet socket
//! or the kernel's TCP. Interfaces have no offloads, so that both send segments as they are on a wire.
//! The relay delays, limits, loses by chance, from the same seeds for both.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_tcp_congestion;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cleanup::{Dir, Namespace, Process};
use crate::cpus;
use crate::figure::{Figure, Runs, round};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MILLSTREAM: &str = env!("CARGO_BIN_EXE_millstream");
const RECEIVER: &str = "198.18.5.1";
const SENDER: &str = "198.18.5.2";
/// What the relay lets pass; its queue holds a quarter of a second.
const RATE_MBIT: u32 = 100;
const QUEUE_BYTES: u32 = RATE_MBIT * 1_000_000 / 8 / 4;
/// Connections at a time in one run, so that one unlucky loss does not decide.
const FLOWS: usize = 4;
const SECONDS: u64 = 8;
const ROUNDS: u64 = 3;
/// Of the table: fewer, since there are many cells.
const CELL_SECONDS: u64 = 4;
/// More than any run takes.
const FILE_BYTES: u64 = 8 << 30;

const HOW: &str = "4 connections for 8 s a run over a relay of 100 Mbit/s with a queue of 250 ms; loss \
    0.1 % and 1 % in both directions, RTT 20 and 100 ms; receiver: Linux; runs of both senders in turn \
    over the same seeds; geometric mean over the four paths of ours over Linux's";

/// The paths of the figures: loss, round-trip time in milliseconds.
const PATHS: [(f64, u32); 4] = [(0.001, 20), (0.001, 100), (0.01, 20), (0.01, 100)];
/// Those of the table.
const LOSSES: [f64; 5] = [0.0, 0.0001, 0.001, 0.01, 0.05];
const RTTS_MS: [u32; 3] = [1, 20, 100];

/// A cell of the table.
#[derive(Clone, Debug, Serialize)]
struct Cell {
    loss: f64,
    rtt_ms: u32,
    controller: &'static str,
    who: &'static str,
    mbit_s: f64,
    rate_mbit: u32,
    flows: usize,
}

/// A controller by its names: ours, Linux's.
#[derive(Clone, Copy)]
struct Controller {
    ours: &'static str,
    linux: &'static str,
}

const CUBIC: Controller = Controller { ours: "cubic", linux: "cubic" };
const BBR: Controller = Controller { ours: "bbr", linux: "bbr" };
const NEW_RENO: Controller = Controller { ours: "newreno", linux: "reno" };

#[derive(Clone, Copy, PartialEq)]
enum Sender {
    Ours,
    Linux,
}

/// A path, with a sender at its end.
struct Path4 {
    receiver: Namespace,
    _middle: Namespace,
    _sender: Namespace,
    _relay: Process,
    _process: Process,
}

/// What all runs share.
struct Bench {
    dir: Dir,
    root: PathBuf,
}

impl Bench {
    fn new() -> Result<Self> {
        for (program, package) in
            [("ethtool", "ethtool"), ("ip", "iproute2"), ("python3", "python3")]
        {
            if Command::new(program).arg("-V").output().is_err() {
                return Err(format!("{program} is missing: apt-get install {package}").into());
            }
        }
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".into());
        }
        let dir = Dir::new()?;
        let root = dir.path().join("files");
        std::fs::create_dir(&root)?;
        std::fs::File::create(root.join("endless"))?.set_len(FILE_BYTES)?;
        Ok(Self { dir, root })
    }

    fn path(
        &self,
        who: Sender,
        what: Controller,
        loss: f64,
        rtt_ms: u32,
        seed: u64,
    ) -> Result<Path4> {
        let (receiver, middle, sender) =
            (Namespace::new("r")?, Namespace::new("m")?, Namespace::new("s")?);
        for (end, name, here) in [(&receiver, "near", "near0"), (&sender, "far", "far0")] {
            let there = format!("{name}1");
            let link = ["ip", "link", "add", here, "type", "veth", "peer", "name", &there];
            end.run(&[&link[..], &["netns", middle.name()]].concat())?;
            for (namespace, interface) in [(end, here), (&middle, there.as_str())] {
                let off = ["tx", "off", "rx", "off", "tso", "off", "gso", "off", "gro", "off"];
                namespace.run(&[&["ethtool", "-K", interface], &off[..]].concat())?;
                namespace.run(&["ip", "link", "set", interface, "up"])?;
            }
        }
        receiver.run(&["ip", "address", "add", &format!("{RECEIVER}/24"), "dev", "near0"])?;
        let process = match who {
            Sender::Ours => self.serve(&sender, what)?,
            Sender::Linux => self.kernel(&sender, what)?,
        };
        let delay_ms = f64::from(rtt_ms) / 2.0;
        let mut command = middle.command(cpus().1, Path::new("python3"));
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/relay.py"));
        command.args(["near1", "far1"]).arg(std::env::current_exe()?).args(["--role", "relay"]);
        command.arg(format!(
            "seed {seed} loss {loss} delay-ms {delay_ms} rate-mbit {RATE_MBIT} queue-bytes {QUEUE_BYTES}"
        ));
        let relay = Process::start("relay", self.dir.path(), command)?;
        Ok(Path4 { receiver, _middle: middle, _sender: sender, _relay: relay, _process: process })
    }

    fn serve(&self, namespace: &Namespace, what: Controller) -> Result<Process> {
        let profile = self.dir.path().join("goodput.toml");
        // As much in flight as the receiver and the path let it.
        let text = format!(
            "[link]\ndriver = \"af_packet\"\niface = \"far0\"\n[ipv4]\naddress = \"{SENDER}/24\"\n\
             [tcp]\ncongestion = \"{}\"\nsend_buffer_bytes = 8388608\n[limits]\nsplice_buffers = 256\n\
             [memory]\nblocks = 2048\n",
            what.ours
        );
        std::fs::write(&profile, text)?;
        let mut command = namespace.command(cpus().0, Path::new(MILLSTREAM));
        command.arg("serve").arg("--config").arg(&profile).arg("--root").arg(&self.root);
        Ok(Process::start("goodput-serve", self.dir.path(), command)?)
    }

    fn kernel(&self, namespace: &Namespace, what: Controller) -> Result<Process> {
        namespace.run(&["ip", "address", "add", &format!("{SENDER}/24"), "dev", "far0"])?;
        let mut command = namespace.command(cpus().0, &std::env::current_exe()?);
        command.args(["--role", "goodput-send", &format!("{SENDER}:80"), what.linux]);
        Ok(Process::start("goodput-send", self.dir.path(), command)?)
    }

    /// One run: Mbit/s that arrive.
    fn run(
        &self,
        who: Sender,
        what: Controller,
        path: (f64, u32),
        seed: u64,
        seconds: u64,
    ) -> Result<f64> {
        let (loss, rtt_ms) = path;
        let mut path = self.path(who, what, loss, rtt_ms, seed)?;
        let exe = std::env::current_exe()?;
        let exe = exe.to_str().ok_or("the path of this program is not UTF-8")?;
        let (address, seconds) = (format!("{SENDER}:80"), seconds.to_string());
        let outcome = path.receiver.run(&[exe, "--role", "goodput-receive", &address, &seconds]);
        path._relay.check()?;
        path._process.check()?;
        Ok(outcome?.trim().parse()?)
    }
}

/// `tcp.goodput.cubic.vs_linux`.
pub fn cubic() -> Result<Vec<Figure>> {
    versus("tcp.goodput.cubic.vs_linux", CUBIC)
}

/// `tcp.goodput.bbr.vs_linux`.
pub fn bbr() -> Result<Vec<Figure>> {
    versus("tcp.goodput.bbr.vs_linux", BBR)
}

fn versus(name: &str, what: Controller) -> Result<Vec<Figure>> {
    let bench = Bench::new()?;
    let mut product = 1.0;
    let mut details = Vec::new();
    for path in PATHS {
        let (mut ours, mut linux) = (Runs::default(), Runs::default());
        for seed in 1..=ROUNDS {
            ours.0.push(bench.run(Sender::Ours, what, path, seed, SECONDS)?);
            linux.0.push(bench.run(Sender::Linux, what, path, seed, SECONDS)?);
        }
        let ratio = ours.median() / linux.median();
        product *= ratio;
        details.push(json!({
            "loss": path.0,
            "rtt_ms": path.1,
            "ours_mbit_s": ours.0.iter().map(|it| round(*it)).collect::<Vec<_>>(),
            "linux_mbit_s": linux.0.iter().map(|it| round(*it)).collect::<Vec<_>>(),
            "ratio": round(ratio),
        }));
    }
    let mean = f64::powf(product, 1.0 / PATHS.len() as f64);
    Ok(vec![Figure::exact(name, mean).with("paths", Value::from(details)).note(HOW)])
}

/// `tcp.goodput.cells`: measures the table and writes `tcp-linux.json` beside the results.
pub fn table() -> Result<Vec<Figure>> {
    let bench = Bench::new()?;
    let mut cells = Vec::new();
    for loss in LOSSES {
        for rtt_ms in RTTS_MS {
            for what in [CUBIC, BBR, NEW_RENO] {
                for (who, name) in [(Sender::Ours, "millstream"), (Sender::Linux, "linux")] {
                    let mbit_s = bench.run(who, what, (loss, rtt_ms), 1, CELL_SECONDS)?;
                    cells.push(Cell {
                        loss,
                        rtt_ms,
                        controller: what.ours,
                        who: name,
                        mbit_s: round(mbit_s),
                        rate_mbit: RATE_MBIT,
                        flows: FLOWS,
                    });
                }
            }
        }
    }
    let file = crate::default_output().with_file_name("tcp-linux.json");
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&file, serde_json::to_string_pretty(&cells)? + "\n")?;
    let figure = Figure::exact("tcp.goodput.cells", cells.len() as f64);
    Ok(vec![figure.with("file", json!(file.display().to_string())).note(HOW)])
}

/// The relay's process: `tests/relay.py` has opened its sockets.
pub fn relay_role(words: &str) -> Result<()> {
    let args: Vec<String> = words
        .split(' ')
        .enumerate()
        .map(|(at, word)| if at % 2 == 0 { format!("--{word}") } else { word.to_owned() })
        .collect();
    match millstream_tests::relay::main(args.iter().map(String::as_str)) {
        0 => Ok(()),
        code => Err(format!("the relay failed with {code}").into()),
    }
}

/// The kernel's sender: zeros without end for whoever asks for anything.
pub fn send_role(address: &str, controller: &str) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    // The default of a namespace cannot be set to every controller; that of a socket can, and those
    // that it accepts have it too.
    set_tcp_congestion(&listener, controller)?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        std::thread::spawn(move || {
            let _ = stream.read(&mut [0; 1024]);
            let zeros = vec![0; 64 << 10];
            while stream.write_all(&zeros).is_ok() {}
        });
    }
    Ok(())
}

/// The receiver: prints the Mbit/s of all connections together.
pub fn receive_role(address: &str, seconds: u64) -> Result<()> {
    let address: SocketAddr = address.parse()?;
    // The relay and the sender begin at the same time as we do.
    let mut flows = Vec::new();
    let patience = Instant::now() + Duration::from_secs(20);
    while flows.len() < FLOWS {
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(stream) => flows.push(stream),
            Err(error) if Instant::now() > patience => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    let start = Instant::now();
    let until = start + Duration::from_secs(seconds);
    let threads: Vec<_> = flows
        .into_iter()
        .map(|mut stream| {
            std::thread::spawn(move || -> std::io::Result<u64> {
                stream.write_all(b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n")?;
                let mut buffer = vec![0; 256 << 10];
                let mut bytes = 0;
                loop {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(bytes);
                    }
                    stream.set_read_timeout(Some(left))?;
                    match stream.read(&mut buffer) {
                        Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                        Ok(count) => bytes += count as u64,
                        // The time is over.
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
            })
        })
        .collect();
    let mut bytes = 0;
    for thread in threads {
        bytes += thread.join().map_err(|_| "a receiver panicked")??;
    }
    println!("{}", bytes as f64 * 8e-6 / start.elapsed().as_secs_f64());
    Ok(())
}
