//! The table at the end of a run, and the same for machines.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::session::Run;

/// The percentiles that are reported.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// A run in numbers.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What was run, for people.
    pub what: String,
    /// Requests answered.
    pub requests: u64,
    /// Seconds from the first request to the last answer.
    pub seconds: f64,
    /// Requests answered a second.
    pub requests_per_second: f64,
    /// Bytes of bodies a second.
    pub body_bytes_per_second: f64,
    /// Bytes of bodies in all.
    pub body_bytes: u64,
    /// Latencies by name (`p50` ... `max`, `mean`), in nanoseconds.
    pub latency_ns: BTreeMap<&'static str, u64>,
    /// Answers by status code.
    pub statuses: BTreeMap<u16, u64>,
    /// Failures by kind.
    pub failures: BTreeMap<&'static str, u64>,
    /// Open loop: requests that were due and that no connection was free to send.
    pub unsent: u64,
    /// Connections opened again because the server closed them.
    pub reconnects: u64,
}

impl Report {
    /// Of a finished run.
    pub fn new(what: String, run: &Run) -> Self {
        let tally = &run.tally;
        let seconds = tally.last_ns.saturating_sub(run.schedule.start_ns()) as f64 / 1e9;
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let mut latency_ns = BTreeMap::new();
        if !tally.latency.is_empty() {
            for (name, quantile) in QUANTILES {
                latency_ns.insert(name, tally.latency.value_at_quantile(quantile));
            }
            latency_ns.insert("max", tally.latency.max());
            latency_ns.insert("mean", tally.latency.mean() as u64);
        }
        Self {
            what,
            requests: tally.latency.len(),
            seconds,
            requests_per_second: per_second(tally.latency.len()),
            body_bytes_per_second: per_second(tally.body_bytes),
            body_bytes: tally.body_bytes,
            latency_ns,
            statuses: tally.statuses.clone(),
            failures: tally.failures.iter().map(|(kind, count)| (kind.name(), *count)).collect(),
            unsent: run.schedule.unsent(),
            reconnects: tally.reconnects,
        }
    }

    /// All failures.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<12}  {value}");
        row("requests", format!("{} in {:.2} s", grouped(self.requests), self.seconds))?;
        row("rate", format!("{} requests/s", grouped(self.requests_per_second as u64)))?;
        let bits = self.body_bytes_per_second * 8.0;
        let bytes = bytes(self.body_bytes_per_second);
        row("bodies", format!("{bytes}/s ({} bit/s)", scaled(bits, 1000.0, "")))?;
        for name in ["p50", "p90", "p99", "p99.9", "max"] {
            if let Some(ns) = self.latency_ns.get(name) {
                row(if name == "p50" { "latency p50" } else { name }, nanos(*ns as f64))?;
            }
        }
        for (status, count) in &self.statuses {
            row(&format!("status {status}"), grouped(*count))?;
        }
        if self.failures.is_empty() {
            row("failures", "none".to_owned())?;
        }
        for (kind, count) in &self.failures {
            row("failures", format!("{}  {kind}", grouped(*count)))?;
        }
        if self.unsent > 0 {
            let unsent = grouped(self.unsent);
            row("not sent", format!("{unsent} were due but no connection was free: lower --rate"))?;
        }
        if self.reconnects > 0 {
            row("reconnects", grouped(self.reconnects))?;
        }
        Ok(())
    }
}

/// A count with its thousands apart: 12,345.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A time with the unit that suits it: 12.3 us.
pub fn nanos(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{} us", three_digits(ns / 1e3)),
        ns if ns < 1e9 => format!("{} ms", three_digits(ns / 1e6)),
        ns => format!("{} s", three_digits(ns / 1e9)),
    }
}

fn bytes(count: f64) -> String {
    scaled(count, 1024.0, if count < 1024.0 { "B" } else { "iB" })
}

fn scaled(value: f64, step: f64, unit: &str) -> String {
    let prefixes = ["", if step == 1000.0 { "k" } else { "K" }, "M", "G", "T"];
    let (mut value, mut prefix) = (value, 0);
    while value >= step && prefix + 1 < prefixes.len() {
        value /= step;
        prefix += 1;
    }
    format!("{} {}{unit}", three_digits(value), prefixes[prefix])
}

fn three_digits(value: f64) -> String {
    match value {
        value if value >= 99.95 => format!("{value:.0}"),
        value if value >= 9.995 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(nanos(950.0), "950 ns");
        assert_eq!(nanos(12_340.0), "12.3 us");
        assert_eq!(nanos(1_234_000_000.0), "1.23 s");
        assert_eq!(bytes(512.0), "512 B");
        assert_eq!(bytes(3.5 * 1024.0 * 1024.0), "3.50 MiB");
        assert_eq!(scaled(9.4e9, 1000.0, ""), "9.40 G");
    }
}
