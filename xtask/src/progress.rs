//! Shows the progress of steps: the name of each step, and how long it took.
//!
//! On a terminal each step has a spinner; elsewhere it has plain lines. All progress goes to stderr, so that stdout
//! has only results.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// The running steps; shared by the threads that run them.
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
}

impl Progress {
    /// Shows spinners if stderr is a terminal, and lines otherwise.
    pub(crate) fn new() -> Self {
        Self { bars: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// Runs a step and shows its name, its outcome and its time.
    ///
    /// # Errors
    /// If the step fails.
    pub(crate) fn step<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let bar = self.begin(name);
        let outcome = work();
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        self.end(name, outcome.is_ok(), started);
        outcome
    }

    /// Runs a step that prints lines itself, so that no spinner draws over them.
    ///
    /// # Errors
    /// If the step fails.
    pub(crate) fn step_aloud<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        self.line(&format!("  ...    {name}"));
        let outcome = work();
        self.end(name, outcome.is_ok(), started);
        outcome
    }

    fn end(&self, name: &str, well: bool, started: Instant) {
        let mark = if well { "ok    " } else { "FAILED" };
        self.line(&format!("  {mark} {name} ({})", seconds(started.elapsed())));
    }

    fn begin(&self, name: &str) -> Option<ProgressBar> {
        let Some(bars) = &self.bars else {
            self.line(&format!("  ...    {name}"));
            return None;
        };
        let bar = bars.add(ProgressBar::new_spinner().with_message(name.to_owned()));
        if let Ok(style) = ProgressStyle::with_template("  {spinner:.cyan}      {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Some(bar)
    }

    /// Prints a line above the spinners.
    pub(crate) fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) if bars.println(text).is_ok() => {}
            _ => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
    }
}

/// Prints a line of the result. If the reader has closed stdout, the line is dropped.
pub(crate) fn say(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Prints an error and its causes.
pub(crate) fn complain(error: &anyhow::Error) {
    let mut out = std::io::stderr().lock();
    let _ = writeln!(out, "error: {error}");
    for cause in error.chain().skip(1) {
        let _ = writeln!(out, "  because: {cause}");
    }
}

/// Formats a time for people: `0.3 s`, `74.2 s`.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
