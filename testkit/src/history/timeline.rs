//! What the harness did and saw, and when: the first thing to read when a history fails.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// Lines with their moments.
#[derive(Debug)]
pub(crate) struct Timeline {
    start: Instant,
    lines: Mutex<Vec<String>>,
}

impl Timeline {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), lines: Mutex::default() }
    }

    /// When it began.
    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    /// Notes something that happens now.
    pub(crate) fn note(&self, what: impl std::fmt::Display) {
        let now = time_of_day();
        let line = format!("{:7.3} s ({now}) {what}", self.start.elapsed().as_secs_f64());
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// All of it.
    pub(crate) fn text(&self) -> String {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }
}

/// The time of day, as the processes' logs have it.
fn time_of_day() -> taskpipeline_contract::Timestamp {
    std::time::SystemTime::now().into()
}
