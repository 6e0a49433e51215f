//! Counts the signals that request a stop: SIGINT, SIGTERM and SIGHUP.
//!
//! Long waits check the count, so that each can clean up what it has started. A second signal skips the clean-up.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static ASKED: AtomicUsize = AtomicUsize::new(0);

/// Listens for the signals. Call it once, at the start.
pub(crate) fn listen() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot listen to signals")?;
    thread::spawn(move || {
        for _ in signals.forever() {
            ASKED.fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Whether a signal has requested a stop.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed) > 0
}

/// The number of signals so far.
pub(crate) fn count() -> usize {
    ASKED.load(Ordering::Relaxed)
}
