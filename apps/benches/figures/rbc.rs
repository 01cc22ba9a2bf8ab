//! Rate-based clocking: response times in virtual time, the same on every machine, and how exact a
//! paced segment leaves in real time.

use std::error::Error;
use std::process::Command;

use serde_json::{Value, json};

use crate::Measured;
use crate::figure::{Figure, Runs, round};

const MILLSTREAM: &str = env!("CARGO_BIN_EXE_millstream");
/// Runs of the measurement in real time.
const RUNS: usize = 5;

/// What a benchmark of the program says as JSON.
fn bench(arguments: &[&str]) -> Result<Value, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("out.json");
    let mut run = Command::new(MILLSTREAM);
    let output = run.arg("bench").args(arguments).arg("--json").arg(&json).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into());
    }
    Ok(serde_json::from_str(&std::fs::read_to_string(json)?)?)
}

/// The rows of a table of the paper, each a function from a column's name to its value.
fn rows(table: &str) -> Result<Vec<impl Fn(&str) -> f64>, Box<dyn Error>> {
    let table = bench(&["paper", "--table", table])?;
    let columns = table["columns"].as_array().cloned().unwrap_or_default();
    let rows = table["rows"].as_array().cloned().unwrap_or_default();
    let rows = rows.into_iter().filter(|row| row["published"] == json!(false));
    Ok(rows
        .map(|row| {
            let columns = columns.clone();
            move |name: &str| {
                let at = columns.iter().position(|column| column["name"] == json!(name));
                at.and_then(|at| row["cells"][at].as_f64()).unwrap_or(f64::NAN)
            }
        })
        .collect())
}

/// `rbc.response.*`: tables 6 and 7 of the soft-timers paper and what lies beyond them.
pub fn response() -> Measured {
    let mut cells = rows("6")?;
    cells.extend(rows("7")?);
    let worst = cells.iter().map(|cell| cell("error").abs()).fold(0.0, f64::max);
    let overflow: f64 = cells.iter().map(|cell| cell("overflow")).sum();
    let error = Figure::exact("rbc.response.max_error_percent", worst)
        .with("cells", json!(cells.len()))
        .with("overflow_packets", json!(overflow))
        .note(
            "50 Mbit/s to 10 Gbit/s, 100 ms, 5 to 100,000 packets, queue of 5 packets; rate known",
        );
    let hundred: Vec<_> = cells
        .iter()
        .filter(|cell| cell("packets") == 100.0 && [50.0, 100.0].contains(&cell("link")))
        .collect();
    let cut = |name: &str, column: &str, baseline: &str| {
        let cuts: Vec<_> = hundred.iter().map(|cell| cell(column)).collect();
        let mean = cuts.iter().sum::<f64>() / cuts.len() as f64;
        Figure::exact(name, mean)
            .with("at_50_mbps", json!(cuts.first()))
            .with("at_100_mbps", json!(cuts.get(1)))
            .with(
                "baseline_ms",
                json!(hundred.iter().map(|cell| cell(baseline)).collect::<Vec<_>>()),
            )
            .with("rate_ms", json!(hundred.iter().map(|cell| cell("rate")).collect::<Vec<_>>()))
            .note("mean of 50 and 100 Mbit/s, 100 packets, 100 ms")
    };
    Ok(vec![
        error,
        cut("rbc.response.100pkt.iw1.cut_percent", "cut IW1", "acks IW1"),
        cut("rbc.response.100pkt.iw10.cut_percent", "cut IW10", "acks IW10"),
    ])
}

/// `pacing.error_us.*`: the distance of a segment from its moment on a busy shard of this machine.
pub fn accuracy() -> Measured {
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        runs.push(bench(&["pacing", "--duration", "3"])?);
    }
    let all = |of: &str, quantile: &str| {
        Runs(runs.iter().map(|run| run[of][quantile].as_f64().unwrap_or(f64::NAN)).collect())
    };
    let each = |key: &str| runs.iter().map(|run| run[key].clone()).collect::<Vec<_>>();
    let figure = |name: &str, quantile: &str| {
        Figure::new(name, &all("error_us", quantile))
            .with("disturbed_us", json!(round(all("disturbed_error_us", quantile).median())))
            .with("segments", json!(each("segments")))
            .with("disturbed_segments", json!(each("disturbed_segments")))
            .with("machine_gaps_us", json!(each("machine_gaps_us")))
            .with("turns_per_second", json!(each("turns_per_second")))
            .with("rate_kept", json!(each("rate_kept")))
            .with("what", runs[0]["what"].clone())
            .note(
                "a segment's moment and when the link took it; segments of milliseconds in which the \
                 machine took the CPU away, and of those behind them, are the disturbed ones",
            )
    };
    Ok(vec![figure("pacing.error_us.p50", "p50"), figure("pacing.error_us.p99", "p99")])
}
