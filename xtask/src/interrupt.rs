//! Whether somebody asked this program to stop: SIGINT, SIGTERM or SIGHUP, counted.
//!
//! Long waits look at it, so that each one can put away what it has started. The second request is for those
//! who do not want to wait for that.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static ASKED: AtomicUsize = AtomicUsize::new(0);

/// Begins to listen; once, at the start.
pub(crate) fn listen() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot listen to signals")?;
    thread::spawn(move || {
        for _ in signals.forever() {
            ASKED.fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Whether a signal to stop has come.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed) > 0
}

/// How many have come.
pub(crate) fn count() -> usize {
    ASKED.load(Ordering::Relaxed)
}
