//! The progress bar; none where nobody looks.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::session::Run;

/// How often the bar moves, in nanoseconds.
pub const TICK_NS: u64 = 100_000_000;

/// Steps of the bar.
const STEPS: u64 = 1000;

/// A bar of so many steps, each with a message.
pub fn steps(count: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(count as u64), target());
    if let Ok(style) = ProgressStyle::with_template("{wide_bar:.cyan/238} {pos}/{len}  {msg}") {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.tick();
    bar
}

/// Where bars are drawn.
fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    }
}

/// Shows how far a run is, on a terminal.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar at its beginning.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(STEPS), target());
        if let Ok(style) = ProgressStyle::with_template("{wide_bar:.cyan/238} {percent:>3}%  {msg}")
        {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_message("connecting");
        Self(bar)
    }

    /// Shows the run as it is now.
    pub fn show(&self, run: &Run, now_ns: u64) {
        if self.0.is_hidden() {
            return;
        }
        let seconds = now_ns.saturating_sub(run.schedule.start_ns()) as f64 / 1e9;
        let rate = run.tally.latency.len() as f64 / seconds.max(1e-3);
        let failed = run.tally.failed_total();
        let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
        self.0.set_position((run.schedule.progress(now_ns) * STEPS as f64) as u64);
        self.0.set_message(format!("{rate:.0} requests/s{failed}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
