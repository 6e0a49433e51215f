//! Shows progress on standard error: a bar on a terminal, and elsewhere a line every few seconds.
//! Decides nothing.
//!
//! Standard output is for the report.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

/// The interval between two lines without a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

const BAR: &str =
    "{msg} [{bar:32}] {human_pos} of {human_len} ({percent} %), {per_sec}, {eta} left, {prefix}";
const SPINNER: &str = "{spinner} {msg}: {human_pos}, {prefix}";

/// Shows the progress of a command on standard error. Each count has one bar at a time.
pub(super) struct Progress {
    terminal: bool,
    now: Mutex<Step>,
}

struct Step {
    bar: ProgressBar,
    name: &'static str,
    line_due: Instant,
    /// Whether nothing was counted yet.
    fresh: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        let hidden = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let step = Step { bar: hidden, name: "", line_due: Instant::now(), fresh: true };
        Self { terminal: std::io::stderr().is_terminal(), now: Mutex::new(step) }
    }

    /// Starts a count; `length` if its end is known.
    pub(super) fn begin(&self, name: &'static str, length: Option<u64>) {
        let target = if self.terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(length, target).with_message(name);
        let template = if length.is_some() { BAR } else { SPINNER };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.bar.finish_and_clear();
        *now = Step { bar, name, line_due: Instant::now() + LINE_EVERY, fresh: true };
    }

    /// Shows the position, and the number of requests that this process has sent so far.
    pub(super) fn at(&self, position: u64, requests: u64) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = &now.bar;
        bar.set_prefix(format!("{} requests sent", HumanCount(requests)));
        bar.set_position(bar.length().map_or(position, |length| position.min(length)));
        if now.fresh {
            // Work from before does not count for the rate.
            bar.tick();
            bar.reset_eta();
        }
        now.fresh = false;
        if self.terminal || Instant::now() < now.line_due {
            return;
        }
        let bar = &now.bar;
        let (position, rate) = (HumanCount(bar.position()), bar.per_sec());
        let line = match bar.length() {
            Some(length) => format!(
                "{}: {position} of {}, {rate:.0}/s, {} left, {} requests sent",
                now.name,
                HumanCount(length),
                HumanDuration(bar.eta()),
                HumanCount(requests)
            ),
            None => format!("{}: {position}, {} requests sent", now.name, HumanCount(requests)),
        };
        print(&line);
        now.line_due = Instant::now() + LINE_EVERY;
    }

    /// Ends the count.
    pub(super) fn end(&self) {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).bar.finish_and_clear();
    }

    /// Prints a line of text.
    pub(super) fn print(&self, line: &str) {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).bar.suspend(|| print(line));
    }
}

/// Ignores errors, because somebody who closed standard error does not need the text.
fn print(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
