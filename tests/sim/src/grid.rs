//! Many seeds on all cores.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::oracle::{Measured, run};
use crate::scenario::Scenario;

/// Failures that are kept.
const FAILURES_MAX: usize = 20;

/// Seeds that have failed once, and are played ever after.
pub fn regressions() -> Vec<u64> {
    let lines = include_str!("../regressions.txt").lines();
    let numbers = lines.filter_map(|line| line.split('#').next()?.trim().parse().ok());
    numbers.collect()
}

/// What came of many seeds.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Seeds that were played.
    pub seeds: u64,
    /// Seeds without an oracle failing.
    pub seeds_ok: u64,
    /// Sums over those.
    pub frames: u64,
    /// Frames dropped.
    pub dropped: u64,
    /// Payload bytes that arrived.
    pub bytes: u64,
    /// Payload bytes sent again.
    pub again_bytes: u64,
    /// Virtual time of all runs.
    pub virtual_seconds: f64,
    /// Seeds that failed, each with what it said.
    pub failures: Vec<(u64, String)>,
}

impl Summary {
    fn add(&mut self, seed: u64, outcome: Result<Measured, String>) {
        self.seeds += 1;
        match outcome {
            Ok(measured) => {
                self.seeds_ok += 1;
                self.frames += measured.frames;
                self.dropped += measured.dropped;
                self.bytes += measured.bytes;
                self.again_bytes += measured.again_bytes;
                self.virtual_seconds += measured.end_nanos as f64 / 1e9;
            }
            Err(what) if self.failures.len() < FAILURES_MAX => self.failures.push((seed, what)),
            Err(_) => {}
        }
    }

    /// What to print about the failures.
    pub fn report(&self) -> String {
        let failures = self
            .failures
            .iter()
            .map(|(seed, what)| format!("seed {seed}: {what}\n  again: make soak SEED={seed}\n"));
        failures.collect()
    }
}

/// Plays seeds on all cores.
pub struct Grid {
    threads: usize,
    play: fn(u64) -> Result<Measured, String>,
}

impl Default for Grid {
    fn default() -> Self {
        Self::new(play)
    }
}

/// Plays one seed.
fn play(seed: u64) -> Result<Measured, String> {
    run(&Scenario::from_seed(seed)).map_err(|failure| failure.to_string())
}

impl Grid {
    /// With what plays one seed.
    pub fn new(play: fn(u64) -> Result<Measured, String>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { threads, play }
    }

    /// Plays `seeds`, as long as `goes_on` says so. It is told each seed that is done.
    pub fn play(
        &self,
        seeds: impl IntoIterator<Item = u64, IntoIter: Send>,
        goes_on: impl Fn(u64, &Result<Measured, String>) -> bool + Sync,
    ) -> Summary {
        let seeds = Mutex::new(seeds.into_iter());
        let summary = Mutex::new(Summary::default());
        let stop = AtomicBool::new(false);
        let played = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let next = seeds.lock().ok().and_then(|mut seeds| seeds.next());
                        let Some(seed) = next else { return };
                        let outcome = catch_unwind(AssertUnwindSafe(|| (self.play)(seed)));
                        let outcome = outcome.unwrap_or_else(|panic| {
                            let text = panic.downcast_ref::<String>().cloned();
                            let text = text.or_else(|| {
                                panic.downcast_ref::<&str>().map(|text| (*text).to_owned())
                            });
                            Err(format!("panic: {}", text.unwrap_or_default()))
                        });
                        played.fetch_add(1, Ordering::Relaxed);
                        if !goes_on(seed, &outcome) {
                            stop.store(true, Ordering::Relaxed);
                        }
                        if let Ok(mut summary) = summary.lock() {
                            summary.add(seed, outcome);
                        }
                    }
                });
            }
        });
        summary.into_inner().unwrap_or_default()
    }
}
