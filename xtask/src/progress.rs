//! What a person sees while something takes time: each step's name and how long it took.
//!
//! On a terminal a spinner a step, elsewhere plain lines. All of it goes to stderr, so that stdout carries
//! results only.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// The steps that run; shared by the threads that run them.
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
}

impl Progress {
    /// Spinners when stderr is a terminal, lines when it is not.
    pub(crate) fn new() -> Self {
        Self { bars: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// Runs one step and shows its name, its end and its time.
    ///
    /// # Errors
    /// Whatever the step fails with.
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

    /// The same for a step that prints by itself: no spinner to draw over it.
    ///
    /// # Errors
    /// Whatever the step fails with.
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

    /// A line of its own, above the spinners.
    pub(crate) fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) if bars.println(text).is_ok() => {}
            _ => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
    }
}

/// Prints a line of the result. A reader that has gone away is no reason to fall over.
pub(crate) fn say(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Prints an error and what caused it.
pub(crate) fn complain(error: &anyhow::Error) {
    let mut out = std::io::stderr().lock();
    let _ = writeln!(out, "error: {error}");
    for cause in error.chain().skip(1) {
        let _ = writeln!(out, "  because: {cause}");
    }
}

/// A time for people: `0.3 s`, `74.2 s`.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
