//! Records what the harness did and saw, and when. Read it first if a history fails.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// Lines with their times.
#[derive(Debug)]
pub(crate) struct Timeline {
    start: Instant,
    lines: Mutex<Vec<String>>,
}

impl Timeline {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), lines: Mutex::default() }
    }

    /// The start of the timeline.
    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    /// Records an event now.
    pub(crate) fn note(&self, what: impl std::fmt::Display) {
        let now = time_of_day();
        let line = format!("{:7.3} s ({now}) {what}", self.start.elapsed().as_secs_f64());
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// The whole text.
    pub(crate) fn text(&self) -> String {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }
}

/// The time of day, in the format of the processes' logs.
fn time_of_day() -> taskpipeline_contract::Timestamp {
    std::time::SystemTime::now().into()
}
