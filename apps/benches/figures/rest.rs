//! What polling by quota is worth, and what an idle server costs and how fast it wakes.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cleanup::{Dir, Namespace, Process, run};
use crate::cpus;
use crate::figure::{Figure, round};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MILLSTREAM: &str = env!("CARGO_BIN_EXE_millstream");
const ADDRESS: &str = "198.18.2.2";
/// How long the idle server is watched.
const IDLE: Duration = Duration::from_secs(5);
/// Requests a second, each after a pause that is long for a computer.
const REQUESTS_A_SECOND: &str = "20";
const REQUEST_SECONDS: &str = "5";

/// `polling.quota.best_vs_wake`: Table 8 of the paper by this stack.
pub fn quota() -> Result<Vec<Figure>> {
    let dir = Dir::new()?;
    let json = dir.path().join("polling.json");
    run(MILLSTREAM, &["bench", "polling", "--json", &json.to_string_lossy()])?;
    let rows: Value = serde_json::from_str(&std::fs::read_to_string(&json)?)?;
    let cells: Vec<(String, f64, f64)> = rows
        .as_array()
        .ok_or("the table has no rows")?
        .iter()
        .filter_map(|row| {
            let policy = row["policy"].as_str()?.to_owned();
            Some((policy, row["rate"].as_f64()?, row["over_wake"].as_f64()?))
        })
        .collect();
    let quotas = cells.iter().filter(|(policy, ..)| policy.starts_with("quota"));
    let best = quotas.max_by(|a, b| a.2.total_cmp(&b.2)).ok_or("no quota was measured")?;
    let wake = cells.iter().find(|(policy, ..)| policy == "wake").ok_or("no wake was measured")?;
    let by_policy: serde_json::Map<_, _> = cells
        .iter()
        .map(|(policy, rps, over)| (policy.clone(), json!({"rps": round(*rps), "over_wake": over})))
        .collect();
    let figure = Figure::exact("polling.quota.best_vs_wake", best.2)
        .against(wake.1)
        .with("best", json!(best.0))
        .with("by_policy", Value::Object(by_policy))
        .note(
            "requests a second for a cached file of 6 KB over 64 connections, two shards on a core each \
             joined by rings; wake: the server waits in poll() for an eventfd before each frame; \
             medians of runs in turn",
        );
    Ok(vec![figure])
}

/// Processor time that a process has taken, in seconds.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which stands in parentheses: state is field 3, utime 14, stime 15.
    let fields = stat.rsplit_once(')').ok_or("no such process")?.1;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    let (user, system) = (ticks(11).ok_or("no times")?, ticks(12).ok_or("no times")?);
    Ok((user + system) / rustix::param::clock_ticks_per_second() as f64)
}

/// A server on a tap in a network namespace of its own, as `config/tap.toml` has it.
fn serve(dir: &Path, namespace: &Namespace) -> Result<Process> {
    let root = dir.join("files");
    std::fs::create_dir_all(&root)?;
    std::fs::write(root.join("1B"), "x")?;
    let profile = dir.join("tap.toml");
    std::fs::write(
        &profile,
        format!(
            "[link]\ndriver = \"tap\"\niface = \"near0\"\n[ipv4]\naddress = \"{ADDRESS}/24\"\n"
        ),
    )?;
    let mut command: Command = namespace.command(cpus().0, Path::new(MILLSTREAM));
    command.arg("serve").arg("--config").arg(&profile).arg("--root").arg(&root);
    command.args(["--set", "shard.trigger_histogram=true"]);
    let mut process = Process::start("serve-idle", dir, command)?;
    let start = Instant::now();
    while namespace.run(&["ip", "link", "show", "dev", "near0"]).is_err() {
        process.check()?;
        if start.elapsed() > Duration::from_secs(20) {
            return Err("the tap did not appear".into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    namespace.run(&["ip", "address", "add", "198.18.2.1/24", "dev", "near0"])?;
    namespace.run(&["ip", "link", "set", "near0", "up"])?;
    Ok(process)
}

/// `idle.core_percent` and `idle.wakeup_us.p50`.
pub fn idle() -> Result<Vec<Figure>> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root".into());
    }
    let dir = Dir::new()?;
    let namespace = Namespace::new("i")?;
    let mut process = serve(dir.path(), &namespace)?;
    let url = format!("http://{ADDRESS}/1B");
    let json = dir.path().join("generator.json");
    let json_text = json.to_string_lossy().into_owned();
    let ask = |seconds: &str| -> Result<Value> {
        let cpu = cpus().1.to_string();
        let words = [
            "taskset",
            "-c",
            &cpu,
            MILLSTREAM,
            "bench",
            "http",
            "--url",
            &url,
            "--connections",
            "1",
            "--rate",
            REQUESTS_A_SECOND,
            "--duration",
            seconds,
            "--json",
            &json_text,
        ];
        namespace.run(&words)?;
        Ok(serde_json::from_str(&std::fs::read_to_string(&json)?)?)
    };
    let start = Instant::now();
    while let Err(error) = ask("0.2") {
        process.check()?;
        if start.elapsed() > Duration::from_secs(20) {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    // What the interface says of itself at the beginning is no idling.
    std::thread::sleep(Duration::from_secs(1));
    let (wall, before) = (Instant::now(), cpu_seconds(process.id())?);
    std::thread::sleep(IDLE);
    let percent = (cpu_seconds(process.id())? - before) * 100.0 / wall.elapsed().as_secs_f64();
    let report = ask(REQUEST_SECONDS)?;
    let printed = process.end()?;
    let answered = printed
        .lines()
        .find_map(|line| line.strip_prefix("first segment after a waking"))
        .ok_or("the server does not say how fast it answered")?;
    let (p50_us, count) = parse_answered(answered).ok_or("the server's line is not understood")?;
    let client_us =
        report["latency_ns"]["p50"].as_f64().ok_or("the generator gave no numbers")? / 1e3;
    let core = Figure::exact("idle.core_percent", percent).with("seconds", json!(IDLE.as_secs())).note(
        "processor time of all threads of `serve` with config/tap.toml, that nobody asks anything, as \
         /proc counts it",
    );
    let wakeup = Figure::exact("idle.wakeup_us.p50", p50_us)
        .with("wakings", json!(count))
        .with("client_p50_us", json!(round(client_us)))
        .note(
            "20 requests a second over one connection: from the end of the server's sleep to the first \
             segments that it sends; client_p50_us is from when a request was due to its answer over the \
             kernel's sockets, the scheduler's wake-ups of both sides included",
        );
    Ok(vec![core, wakeup])
}

/// From `p50 12.3 us of 100`.
fn parse_answered(text: &str) -> Option<(f64, u64)> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let ["p50", value, unit, "of", count] = words[..] else { return None };
    let scale = match unit {
        "ns" => 1e-3,
        "us" => 1.0,
        "ms" => 1e3,
        _ => return None,
    };
    Some((value.parse::<f64>().ok()? * scale, count.parse().ok()?))
}
