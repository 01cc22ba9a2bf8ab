//! A figure: what it is called, what is hoped for, what was measured.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Map, Value, json};

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// It is only reported.
    Report,
}

/// A figure of the contract.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name; never changed, later work reads it.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What is hoped for.
    pub target: Target,
}

const fn entry(name: &'static str, unit: &'static str, target: Target) -> Entry {
    Entry { name, unit, target }
}

/// All figures, in the order in which they are measured and printed.
pub const TABLE: &[Entry] = &[
    entry("pingpong.mem.cycles", "TSC cycles an end", Target::AtMost(250.0)),
    entry("pingpong.mem.instructions", "instructions an end", Target::AtMost(1000.0)),
    entry("tcp.segment_in.instructions", "instructions", Target::Report),
    entry("tcp.segment_out.instructions", "instructions", Target::Report),
    entry("pingpong.mem.vs_smoltcp", "of smoltcp's cycles", Target::AtMost(0.65)),
    entry("pingpong.mem.cycles.10k", "TSC cycles an end", Target::AtMost(450.0)),
    entry("bulk.mem.cycles_per_segment", "TSC cycles, both ends", Target::Report),
    entry("bulk.mem.vs_smoltcp", "of smoltcp's cycles", Target::AtMost(0.5)),
    entry("pingpong.ring.cycles", "TSC cycles an end", Target::Report),
    entry("pingpong.memif.rps", "requests/s", Target::AtLeast(2_900_000.0)),
    entry("segment.extbuf_ns", "ns", Target::AtMost(40.0)),
    entry("bulk.mem.gbps", "Gbit/s", Target::Report),
    entry("bulk.copied_per_byte", "bytes copied a byte sent", Target::AtMost(0.0)),
    entry("http.tap.rps_vs_nginx", "times nginx", Target::AtLeast(1.5)),
    entry("http.tap.p99_vs_nginx", "of nginx's p99", Target::AtMost(0.5)),
    entry("http.af_packet.rps_vs_nginx", "times nginx", Target::AtLeast(1.5)),
    entry("http.af_packet.p99_vs_nginx", "of nginx's p99", Target::AtMost(0.5)),
    entry("http.memif.rps_vs_nginx", "times nginx", Target::AtLeast(15.0)),
    entry("tcp.goodput.cubic.vs_linux", "of Linux's goodput", Target::AtLeast(0.9)),
    entry("tcp.goodput.bbr.vs_linux", "of Linux's goodput", Target::AtLeast(1.0)),
    entry("tcp.goodput.cells", "cells of tcp-linux.json", Target::Report),
    entry("timer.check_ns", "ns", Target::AtMost(5.0)),
    entry("timer.insert_cancel_cycles", "TSC cycles", Target::AtMost(60.0)),
    entry("timer.100khz.core_percent", "percent of a core", Target::AtMost(1.0)),
    entry("timer.100khz.signal_core_percent", "percent of a core", Target::Report),
    entry("timer.bound_violations", "of 10,000,000 events", Target::AtMost(0.0)),
    entry("polling.quota.best_vs_wake", "times a wake for each frame", Target::AtLeast(2.0)),
    entry("idle.core_percent", "percent of a core", Target::AtMost(2.0)),
    entry("idle.wakeup_us.p50", "us", Target::AtMost(100.0)),
    entry("mem.idle_connection_bytes", "bytes", Target::AtMost(512.0)),
    entry("rbc.response.max_error_percent", "% above ideal", Target::AtMost(2.0)),
    entry("rbc.response.100pkt.iw1.cut_percent", "% of the time by ACKs", Target::AtLeast(90.0)),
    entry("rbc.response.100pkt.iw10.cut_percent", "% of the time by ACKs", Target::AtLeast(70.0)),
    entry("pacing.error_us.p50", "us", Target::AtMost(1.0)),
    entry("pacing.error_us.p99", "us", Target::AtMost(20.0)),
    entry("tcp.tail_loss.fct_ratio", "of the time without RACK-TLP", Target::AtMost(0.5)),
    entry("tcp.fairness.jain", "Jain's index", Target::AtLeast(0.95)),
    entry("packetdrill.kernel.pass", "of the kernel's 59 scripts", Target::AtLeast(50.0)),
    entry("sim.seeds_ok", "seeds", Target::AtLeast(10_000.0)),
    entry("buf.clone_drop_ns", "ns", Target::AtMost(5.0)),
    entry("semantics.emulated_copy_vs_share.64k", "of emulated share's time", Target::AtMost(1.05)),
    entry("semantics.emulated_copy_vs_cold_copy.64k", "times copy's speed", Target::AtLeast(3.0)),
    entry("semantics.threshold_regret_percent", "%", Target::AtMost(10.0)),
    entry("cache.trace.vs_copying", "times the requests", Target::AtLeast(1.8)),
    entry("cache.trace.vs_no_memo", "times the requests", Target::Report),
    entry("cache.touched_bytes_per_response", "bytes", Target::AtMost(0.0)),
    entry("oracle.ops", "operations", Target::Report),
    entry("splice.wakeups_per_request", "polls of the task", Target::AtMost(2.0)),
    entry("splice.vs_read_send", "times reading and sending", Target::AtLeast(1.3)),
    entry("splice.vs_sendfile", "times the kernel's sendfile", Target::Report),
    entry("disk_to_wire.null.gbps", "Gbit/s", Target::AtLeast(100.0)),
    entry("disk_to_wire.copied_bytes", "bytes", Target::AtMost(0.0)),
    entry("until_tx.working_set_ratio", "of rate x latency", Target::AtMost(2.0)),
    entry("control.pingpong.mem.allocations", "allocations a round trip", Target::AtMost(0.0)),
    entry("control.tsc_ghz", "GHz", Target::Report),
    entry("control.memcpy_1460_ns", "ns", Target::Report),
];

/// The entry of a name.
pub fn entry_of(name: &str) -> Option<&'static Entry> {
    TABLE.iter().find(|entry| entry.name == name)
}

/// Several runs of one thing.
#[derive(Clone, Debug, Default)]
pub struct Runs(pub Vec<f64>);

impl Runs {
    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        }
    }

    /// Runs, least, greatest, and the distance of the quartiles as a share of the median.
    fn conditions(&self) -> Map<String, Value> {
        let sorted = self.sorted();
        let quartile = |q: usize| sorted.get(sorted.len() * q / 4).copied().unwrap_or(f64::NAN);
        let mut map = Map::new();
        map.insert("runs".into(), json!(sorted.len()));
        map.insert("min".into(), json!(sorted.first().map(|value| round(*value))));
        map.insert("max".into(), json!(sorted.last().map(|value| round(*value))));
        let spread = (quartile(3) - quartile(1)) / self.median();
        map.insert("spread".into(), json!(if spread.is_finite() { round(spread) } else { 0.0 }));
        map
    }
}

/// Four significant digits: more would claim a precision that is not there.
pub fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

/// A figure as it is written to `results.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Its name.
    pub name: String,
    /// What was measured; nothing if it could not be.
    pub value: Option<f64>,
    /// Its unit.
    pub unit: String,
    /// What it is compared with, measured in the same run.
    pub baseline: Option<f64>,
    /// Value over baseline.
    pub ratio: Option<f64>,
    /// How it was measured: runs, least, greatest, spread, and all that matters besides.
    pub conditions: Map<String, Value>,
}

impl Figure {
    /// The median of some runs.
    pub fn new(name: &str, runs: &Runs) -> Self {
        Self {
            name: name.to_owned(),
            value: Some(round(runs.median())),
            unit: entry_of(name).map_or("", |entry| entry.unit).to_owned(),
            baseline: None,
            ratio: None,
            conditions: runs.conditions(),
        }
    }

    /// Something that is counted and not timed.
    pub fn exact(name: &str, value: f64) -> Self {
        Self::new(name, &Runs(vec![value]))
    }

    /// The ratio of two things of which runs were taken in turn: the median of the ratios of
    /// neighbours, so that what slows both down cancels. `baseline` is theirs.
    pub fn ratio(name: &str, ours: &Runs, theirs: &Runs) -> Self {
        let ratios = Runs(ours.0.iter().zip(&theirs.0).map(|(a, b)| a / b).collect());
        let mut figure = Self::new(name, &ratios);
        figure.ratio = figure.value;
        figure.baseline = Some(round(theirs.median()));
        figure
            .with("ours", json!(round(ours.median())))
            .with("theirs", json!(round(theirs.median())))
    }

    /// It could not be measured.
    pub fn missing(name: &str, why: &str) -> Self {
        let mut figure = Self::exact(name, 0.0);
        figure.value = None;
        figure.conditions = Map::new();
        figure.with("not_measured", json!(why))
    }

    /// With something to compare it with.
    pub fn against(mut self, baseline: f64) -> Self {
        self.baseline = Some(round(baseline));
        self.ratio = self.value.map(|value| round(value / baseline));
        self
    }

    /// With a condition.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.conditions.insert(key.to_owned(), value);
        self
    }

    /// With a sentence on how it was measured.
    pub fn note(self, text: &str) -> Self {
        self.with("how", json!(text))
    }

    /// Whether it reaches its target; nothing if there is none or it was not measured.
    pub fn reaches(&self) -> Option<bool> {
        let value = self.value?;
        match entry_of(&self.name)?.target {
            Target::AtMost(limit) => Some(value <= limit),
            Target::AtLeast(limit) => Some(value >= limit),
            Target::Report => None,
        }
    }
}

/// The table for people.
pub fn table(figures: &[Figure]) -> String {
    let mut out = String::new();
    let rule = "-".repeat(112);
    let _ = writeln!(out, "{rule}");
    let _ = writeln!(
        out,
        "{:<33} {:>11} {:>11} {:<7} {:>11} {:>7} {:>7}  unit",
        "figure", "value", "target", "", "baseline", "ratio", "spread"
    );
    let _ = writeln!(out, "{rule}");
    for figure in figures {
        let target = entry_of(&figure.name).map_or(Target::Report, |entry| entry.target);
        let target = match target {
            Target::AtMost(limit) => format!("<= {}", number(limit)),
            Target::AtLeast(limit) => format!(">= {}", number(limit)),
            Target::Report => "report".to_owned(),
        };
        let verdict = match figure.reaches() {
            Some(true) => "ok",
            Some(false) => "SHORT",
            None => "",
        };
        let Some(value) = figure.value else {
            let why = figure.conditions.get("not_measured").and_then(Value::as_str).unwrap_or("");
            let _ = writeln!(out, "{:<33} {:>11} {target:>11} {why}", figure.name, "not measured");
            continue;
        };
        let optional = |value: Option<f64>| value.map_or(String::new(), number);
        let spread = figure.conditions.get("spread").and_then(Value::as_f64).unwrap_or(0.0);
        let _ = writeln!(
            out,
            "{:<33} {:>11} {target:>11} {verdict:<7} {:>11} {:>7} {:>6.1}%  {}",
            figure.name,
            number(value),
            optional(figure.baseline),
            optional(figure.ratio),
            spread * 100.0,
            figure.unit
        );
    }
    let _ = writeln!(out, "{rule}");
    out
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{:.3} M", value / 1e6),
        v if v >= 1000.0 || v == v.trunc() => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
