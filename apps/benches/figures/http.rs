//! Files over HTTP, against nginx.
//!
//! nginx serves on one end of a veth whose TSO, GSO and GRO are off; millstream on a tap, on an
//! `af_packet` socket at a veth's end, and on memif. wrk asks from the other end, in its own network
//! namespace; over memif, where no kernel socket reaches, our own generator does. All serve the
//! same files in the same invocation, in turn; who is not asked is stopped meanwhile.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cleanup::{Dir, Namespace, Process, run};
use crate::cpus;
use crate::figure::{Figure, Runs, round};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MILLSTREAM: &str = env!("CARGO_BIN_EXE_millstream");
const RUNS: usize = 5;
const CONNECTIONS: &str = "64";
const SECONDS: &str = "2";
const FILES: [(&str, usize); 2] = [("1B", 1), ("6KB", 6 * 1024)];
const NGINX: &str = "198.18.1.2";
const TAP: &str = "198.18.2.2";
const AF_PACKET: &str = "198.18.3.2";
const MEMIF: &str = "198.18.4.2";

const HOW: &str = "64 connections for 2 s a run, keep-alive, one thread a side on a core each; nginx: \
    one worker, sendfile, open_file_cache, no access log, on a veth without TSO, GSO and GRO; same \
    files, runs of all sides in turn; the worse of the two sizes";

/// One run: requests a second, and the 99th percentile in microseconds.
#[derive(Clone, Copy, Debug)]
struct Run {
    rps: f64,
    p99_us: f64,
}

/// What the runs of one server gave, by file.
#[derive(Default)]
struct Served(BTreeMap<&'static str, Vec<Run>>);

impl Served {
    fn add(&mut self, file: &'static str, run: Run) {
        self.0.entry(file).or_default().push(run);
    }

    fn runs(&self, file: &str, what: fn(&Run) -> f64) -> Runs {
        Runs(self.0.get(file).map(|runs| runs.iter().map(what).collect()).unwrap_or_default())
    }
}

/// A server that runs, and how it is asked.
struct Side {
    process: Process,
    asked: Asked,
    address: &'static str,
    served: Served,
    namespaces: Vec<Namespace>,
}

enum Asked {
    /// By wrk in the first of its namespaces.
    Wrk,
    /// By our generator with this profile.
    Generator(PathBuf),
}

/// All `http.` figures.
pub fn all() -> Result<Vec<Figure>> {
    for (program, package) in [
        ("nginx", "nginx-light"),
        ("wrk", "wrk"),
        ("curl", "curl"),
        ("ethtool", "ethtool"),
        ("ip", "iproute2"),
        ("taskset", "util-linux"),
    ] {
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
    for (name, bytes) in FILES {
        std::fs::write(root.join(name), vec![b'x'; bytes])?;
    }
    // nginx may run as another user.
    run("chmod", &["-R", "a+rX", &dir.path().to_string_lossy()])?;

    let mut nginx = nginx(dir.path(), &root)?;
    let mut sides = [
        ("tap", tap(dir.path(), &root)),
        ("af_packet", af_packet(dir.path(), &root)),
        ("memif", memif(dir.path(), &root)),
    ];
    for (_, side) in &mut sides {
        if let Ok(running) = side
            && let Err(error) = running.wait_ready(dir.path())
        {
            *side = Err(error);
        }
    }
    for _ in 0..RUNS {
        for (file, bytes) in FILES {
            nginx.ask(dir.path(), file, bytes)?;
            for (_, side) in &mut sides {
                let asked = side.as_mut().map(|side| side.ask(dir.path(), file, bytes));
                if let Ok(Err(error)) = asked {
                    *side = Err(error);
                }
            }
        }
    }
    let mut figures = Vec::new();
    for (name, side) in &sides {
        let rps = format!("http.{name}.rps_vs_nginx");
        let p99 = format!("http.{name}.p99_vs_nginx");
        match side {
            Ok(side) => {
                figures.push(worst(&rps, &side.served, &nginx.served, |run| run.rps, f64::min));
                if *name != "memif" {
                    let figure =
                        worst(&p99, &side.served, &nginx.served, |run| run.p99_us, f64::max);
                    figures.push(figure);
                }
            }
            Err(error) => {
                figures.push(Figure::missing(&rps, &error.to_string()));
                if *name != "memif" {
                    figures.push(Figure::missing(&p99, &error.to_string()));
                }
            }
        }
    }
    Ok(figures)
}

/// The figure of the file with which we look worse; the others are in the conditions.
fn worst(
    name: &str,
    ours: &Served,
    nginx: &Served,
    what: fn(&Run) -> f64,
    worse: fn(f64, f64) -> f64,
) -> Figure {
    let mut by_file = serde_json::Map::new();
    let mut chosen: Option<Figure> = None;
    for (file, _) in FILES {
        let figure = Figure::ratio(name, &ours.runs(file, what), &nginx.runs(file, what));
        let value = figure.value.unwrap_or(f64::NAN);
        by_file.insert(
            file.to_owned(),
            json!({
                "ratio": value,
                "ours": figure.conditions.get("ours"),
                "nginx": figure.conditions.get("theirs"),
                "our_rps": round(ours.runs(file, |run| run.rps).median()),
                "our_p99_us": round(ours.runs(file, |run| run.p99_us).median()),
                "nginx_rps": round(nginx.runs(file, |run| run.rps).median()),
                "nginx_p99_us": round(nginx.runs(file, |run| run.p99_us).median()),
            }),
        );
        let before = chosen.as_ref().and_then(|figure| figure.value);
        if before.is_none_or(|before| worse(before, value) == value) {
            chosen = Some(figure.with("file", json!(file)));
        }
    }
    let figure = chosen.unwrap_or_else(|| Figure::missing(name, "no file was asked for"));
    figure.with("by_file", Value::Object(by_file)).note(HOW)
}

impl Side {
    /// Waits until the server answers.
    fn wait_ready(&mut self, dir: &Path) -> Result<()> {
        let start = Instant::now();
        loop {
            self.process.check()?;
            let ready = match &self.asked {
                Asked::Wrk => {
                    let url = format!("http://{}/1B", self.address);
                    let curl = ["curl", "-s", "-f", "-o", "/dev/null", "-m", "2", &url];
                    self.namespaces[0].run(&curl)
                }
                Asked::Generator(_) => self
                    .generate(dir, "1B", "0.1")
                    .map_err(|e| e.to_string())
                    .map(|_| String::new()),
            };
            match ready {
                Ok(_) => break,
                Err(error) if start.elapsed() > Duration::from_secs(20) => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        self.process.pause();
        Ok(())
    }

    /// One run with one file.
    fn ask(&mut self, dir: &Path, file: &'static str, bytes: usize) -> Result<()> {
        self.process.check()?;
        self.process.resume();
        let result = match &self.asked {
            Asked::Wrk => self.wrk(file),
            Asked::Generator(_) => self.generate(dir, file, SECONDS).and_then(|report| {
                let number = |value: &Value| value.as_f64().ok_or("the generator gave no numbers");
                let requests = number(&report["requests"])?;
                if number(&report["body_bytes"])? != requests * bytes as f64 {
                    return Err("bodies have the wrong length".into());
                }
                let rps = number(&report["requests_per_second"])?;
                Ok(Run { rps, p99_us: number(&report["latency_ns"]["p99"])? / 1e3 })
            }),
        };
        self.process.pause();
        self.served.add(file, result?);
        Ok(())
    }

    fn wrk(&self, file: &str) -> Result<Run> {
        let url = format!("http://{}/{file}", self.address);
        let cpu = cpus().1.to_string();
        let output = self.namespaces[0].run(&[
            "taskset",
            "-c",
            &cpu,
            "wrk",
            "-t",
            "1",
            "-c",
            CONNECTIONS,
            "-d",
            SECONDS,
            "--latency",
            &url,
        ])?;
        parse_wrk(&output)
    }

    fn generate(&self, dir: &Path, file: &str, seconds: &str) -> Result<Value> {
        let Asked::Generator(profile) = &self.asked else { return Err("not a generator".into()) };
        let json = dir.join("generator.json");
        let url = format!("http://{}/{file}", self.address);
        let cpu = cpus().1.to_string();
        run(
            "taskset",
            &[
                "-c",
                &cpu,
                MILLSTREAM,
                "bench",
                "http",
                "--via",
                "stack",
                "--config",
                &profile.to_string_lossy(),
                "--url",
                &url,
                "--connections",
                CONNECTIONS,
                "--duration",
                seconds,
                "--json",
                &json.to_string_lossy(),
            ],
        )?;
        Ok(serde_json::from_str(&std::fs::read_to_string(&json)?)?)
    }
}

/// Rate and 99th percentile from what `wrk --latency` prints.
fn parse_wrk(text: &str) -> Result<Run> {
    for bad in ["Socket errors", "Non-2xx"] {
        if let Some(line) = text.lines().find(|line| line.contains(bad)) {
            return Err(format!("wrk: {}", line.trim()).into());
        }
    }
    let after =
        |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    let rps = after("Requests/sec:").and_then(|value| value.parse().ok());
    let p99_us = after("99%").and_then(|value| {
        let unit = value.find(|c: char| c.is_ascii_alphabetic())?;
        let (value, unit) = value.split_at(unit);
        let scale = match unit {
            "us" => 1.0,
            "ms" => 1e3,
            "s" => 1e6,
            "m" => 6e7,
            _ => return None,
        };
        Some(value.parse::<f64>().ok()? * scale)
    });
    match (rps, p99_us) {
        (Some(rps), Some(p99_us)) => Ok(Run { rps, p99_us }),
        _ => Err("wrk printed no rate".into()),
    }
}

/// Two namespaces and a veth between them; `address` is set at the near end, with /24.
fn veth(tag: &str, near_address: &str, offloads: &[&str]) -> Result<(Namespace, Namespace)> {
    let (near, far) = (Namespace::new(&format!("{tag}n"))?, Namespace::new(&format!("{tag}f"))?);
    let name = far.name().to_owned();
    near.run(&[
        "ip", "link", "add", "near0", "type", "veth", "peer", "name", "far0", "netns", &name,
    ])?;
    near.run(&["ip", "address", "add", &format!("{near_address}/24"), "dev", "near0"])?;
    near.run(&["ip", "link", "set", "near0", "up"])?;
    far.run(&["ip", "link", "set", "far0", "up"])?;
    for (namespace, end) in [(&near, "near0"), (&far, "far0")] {
        namespace.run(&[&["ethtool", "-K", end], offloads].concat())?;
    }
    Ok((near, far))
}

fn nginx(dir: &Path, root: &Path) -> Result<Side> {
    let (near, far) = veth("x", "198.18.1.1", &["tso", "off", "gso", "off", "gro", "off"])?;
    far.run(&["ip", "address", "add", &format!("{NGINX}/24"), "dev", "far0"])?;
    let (config, pid) = (dir.join("nginx.conf"), dir.join("nginx.pid"));
    let text = format!(
        "worker_processes 1;\ndaemon off;\nmaster_process off;\npid {};\nerror_log stderr crit;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  sendfile on;\n  tcp_nopush on;\n  tcp_nodelay on;\n  \
         keepalive_timeout 600;\n  keepalive_requests 1000000000;\n  \
         open_file_cache max=1000 inactive=600s;\n  open_file_cache_valid 600s;\n  \
         server {{ listen {NGINX}:80; root {}; }}\n}}\n",
        pid.display(),
        root.display(),
    );
    std::fs::write(&config, text)?;
    let mut command = far.command(cpus().0, Path::new("nginx"));
    command.arg("-c").arg(&config).arg("-e").arg("stderr");
    let process = Process::start("nginx", dir, command)?;
    let served = Served::default();
    let mut side =
        Side { process, asked: Asked::Wrk, address: NGINX, served, namespaces: vec![near, far] };
    side.wait_ready(dir)?;
    Ok(side)
}

/// A profile of our own: the link, the address, everything else at its default.
fn profile(dir: &Path, name: &str, link: &str, address: &str, rest: &str) -> Result<PathBuf> {
    let path = dir.join(format!("{name}.toml"));
    let text = format!("[link]\n{link}\n[ipv4]\naddress = \"{address}/24\"\n{rest}\n");
    std::fs::write(&path, text)?;
    Ok(path)
}

fn serve(mut command: Command, profile: &Path, root: &Path) -> Command {
    command.args(["serve", "--config"]).arg(profile).arg("--root").arg(root);
    command
}

fn tap(dir: &Path, root: &Path) -> Result<Side> {
    let namespace = Namespace::new("t")?;
    let profile = profile(dir, "tap", "driver = \"tap\"\niface = \"near0\"", TAP, SPIN)?;
    let command = namespace.command(cpus().0, Path::new(MILLSTREAM));
    let mut process = Process::start("serve-tap", dir, serve(command, &profile, root))?;
    let start = Instant::now();
    // The tap is there once millstream has made it.
    while namespace.run(&["ip", "link", "show", "dev", "near0"]).is_err() {
        process.check()?;
        if start.elapsed() > Duration::from_secs(20) {
            return Err("the tap did not appear".into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    namespace.run(&["ip", "address", "add", "198.18.2.1/24", "dev", "near0"])?;
    namespace.run(&["ip", "link", "set", "near0", "up"])?;
    let served = Served::default();
    let namespaces = vec![namespace];
    Ok(Side { process, asked: Asked::Wrk, address: TAP, served, namespaces })
}

fn af_packet(dir: &Path, root: &Path) -> Result<Side> {
    let offloads = ["tx", "off", "tso", "off", "gso", "off", "gro", "off"];
    let (near, far) = veth("p", "198.18.3.1", &offloads)?;
    let link = "driver = \"af_packet\"\niface = \"far0\"";
    let profile = profile(dir, "af_packet", link, AF_PACKET, SPIN)?;
    let command = far.command(cpus().0, Path::new(MILLSTREAM));
    let process = Process::start("serve-af-packet", dir, serve(command, &profile, root))?;
    let served = Served::default();
    let namespaces = vec![near, far];
    Ok(Side { process, asked: Asked::Wrk, address: AF_PACKET, served, namespaces })
}

/// The server has its core to itself while it is asked.
const SPIN: &str = "[shard]\nidle = \"spin\"";

fn memif(dir: &Path, root: &Path) -> Result<Side> {
    let socket = dir.join("http.sock");
    let link = |role: &str| {
        format!("driver = \"memif\"\nsocket = \"{}\"\nrole = \"{role}\"", socket.display())
    };
    let server = profile(dir, "memif-server", &link("server"), MEMIF, SPIN)?;
    let client = profile(dir, "memif-client", &link("client"), "198.18.4.1", SPIN)?;
    let mut command = Command::new("taskset");
    command.args(["-c", &cpus().0.to_string()]).arg(MILLSTREAM);
    let process = Process::start("serve-memif", dir, serve(command, &server, root))?;
    let served = Served::default();
    let asked = Asked::Generator(client);
    Ok(Side { process, asked, address: MEMIF, served, namespaces: Vec::new() })
}
