//! Instructions, counted by callgrind: the same on every machine and under every load.

use std::error::Error;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::figure::{Figure, Runs, round};
use crate::{cleanup, memory, smol};

/// Two run lengths; their difference leaves out whatever a run costs once.
const SHORT: u64 = 2_000;
const LONG: u64 = 12_000;
const RUNS: usize = 5;

/// Marks the part that is counted: callgrind collects while it is on the stack.
#[inline(never)]
fn counted_part<R>(part: impl FnOnce() -> R) -> R {
    std::hint::black_box(part())
}

/// What runs under callgrind: one of the worlds, so that each can be profiled by hand too.
pub fn role(what: &str, count: u64) -> Result<(), Box<dyn Error>> {
    const WARM: u64 = 200;
    if what == "smoltcp" {
        let setup = smol::Setup { timestamps: true, checksums: true, buffer_bytes: 64 * 1024 };
        let mut world = smol::SmolWorld::new(setup)?;
        world.ping(WARM);
        counted_part(|| world.ping(count));
        return Ok(());
    }
    let mut world = match what {
        "pingpong" => memory::pingpong_world()?,
        "many" => memory::many_world()?,
        "bulk" => memory::bulk_world()?,
        _ => return Err("no such world".into()),
    };
    world.run(WARM)?;
    counted_part(|| world.run(count))?;
    Ok(())
}

/// `pingpong.mem.instructions`.
pub fn pingpong() -> Result<Vec<Figure>, Box<dyn Error>> {
    const NAME: &str = "pingpong.mem.instructions";
    if Command::new("valgrind").arg("--version").output().is_err() {
        return Ok(vec![Figure::missing(NAME, "valgrind is missing: apt-get install valgrind")]);
    }
    let dir = cleanup::Dir::new()?;
    let (mut ours, mut theirs) = (Runs::default(), Runs::default());
    for _ in 0..RUNS {
        ours.0.push(an_end(dir.path(), "pingpong")?);
        theirs.0.push(an_end(dir.path(), "smoltcp")?);
    }
    let figure = Figure::new(NAME, &ours)
        .against(theirs.median())
        .with("round_trips", json!([SHORT, LONG]))
        .with("baseline_is", json!("smoltcp 0.14"))
        .with("theirs", json!(round(theirs.median())))
        .note("pingpong.mem.cycles under callgrind: difference of two run lengths, halved");
    Ok(vec![figure])
}

fn an_end(dir: &Path, whose: &str) -> Result<f64, Box<dyn Error>> {
    let (short, long) = (collect(dir, whose, SHORT)?, collect(dir, whose, LONG)?);
    Ok((long as f64 - short as f64) / (2 * (LONG - SHORT)) as f64)
}

/// Instructions of one run.
fn collect(dir: &Path, whose: &str, round_trips: u64) -> Result<u64, Box<dyn Error>> {
    let out = dir.join("callgrind.out");
    let mut file = std::ffi::OsString::from("--callgrind-out-file=");
    file.push(&out);
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*counted_part*"])
        .arg(file)
        .arg(std::env::current_exe()?)
        .args(["--role", "callgrind", whose, &round_trips.to_string()])
        .output()?;
    if !run.status.success() {
        let text = String::from_utf8_lossy(&run.stderr);
        return Err(format!("valgrind: {}", text.lines().last().unwrap_or("failed")).into());
    }
    let text = std::fs::read_to_string(&out)?;
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    let total = total.and_then(|total| total.trim().parse().ok()).unwrap_or(0);
    if total == 0 { Err("callgrind collected nothing".into()) } else { Ok(total) }
}
