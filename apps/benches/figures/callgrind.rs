//! Instructions, counted by callgrind: the same on every machine and under every load.

use std::error::Error;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::figure::{Figure, Runs, round};
use crate::segments::{Part, Stream};
use crate::{cleanup, memory, smol};

/// Two run lengths; their difference leaves out whatever a run costs once.
const SHORT: u64 = 2_000;
const LONG: u64 = 12_000;
const RUNS: usize = 5;
/// Hardly anything differs from one to the next.
const SEGMENT_RUNS: usize = 2;

/// Marks the part that is counted: callgrind collects while it is on the stack.
#[inline(never)]
pub fn counted_part<R>(part: impl FnOnce() -> R) -> R {
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
    if let Some(part) = Part::named(what) {
        let mut stream = Stream::new()?;
        stream.run(WARM, None)?;
        return stream.run(count, Some(part));
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

/// `tcp.segment_in.instructions`, `tcp.segment_out.instructions`.
pub fn segments() -> Result<Vec<Figure>, Box<dyn Error>> {
    const NAMES: [&str; 2] = ["tcp.segment_in.instructions", "tcp.segment_out.instructions"];
    if Command::new("valgrind").arg("--version").output().is_err() {
        let why = "valgrind is missing: apt-get install valgrind";
        return Ok(NAMES.map(|name| Figure::missing(name, why)).into());
    }
    // What share of it took the straight path is asked of a run of the same length.
    let mut stream = Stream::new()?;
    stream.run(LONG, None)?;
    let predicted = json!(round(stream.predicted()));
    let dir = cleanup::Dir::new()?;
    let each = |what: &str| -> Result<Runs, Box<dyn Error>> {
        let mut runs = Runs::default();
        for _ in 0..SEGMENT_RUNS {
            let (short, long) =
                (collect(dir.path(), what, SHORT)?, collect(dir.path(), what, LONG)?);
            runs.0.push((long as f64 - short as f64) / (LONG - SHORT) as f64);
        }
        Ok(runs)
    };
    let figure = |name: &str, data: &str, ack: &str, how: &str| -> Result<_, Box<dyn Error>> {
        let figure = Figure::new(name, &each(data)?)
            .with("segments", json!([SHORT, LONG]))
            .with("its_share_of_acks", json!(round(each(ack)?.median())))
            .with("by_header_prediction", predicted.clone())
            .note(how);
        Ok(figure)
    };
    Ok(vec![
        figure(
            NAMES[0],
            "data-in",
            "ack-out",
            "Tcb::input of a full segment in order, with timestamps and SACK negotiated, under \
             callgrind: difference of two run lengths, divided by segments; in its share of ACKs, \
             Tcb::transmit of the ACKs that it is answered with, one for every second segment",
        )?,
        figure(
            NAMES[1],
            "data-out",
            "ack-in",
            "Tcb::transmit of a full segment, as tcp.segment_in.instructions; in its share of \
             ACKs, Tcb::input of those that come back",
        )?,
    ])
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
