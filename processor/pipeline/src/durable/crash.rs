//! The points at which the fault suite kills or stops the process: between any two steps where data
//! could be lost.
//!
//! Without the feature `crash-points` they do nothing.

#[cfg(feature = "crash-points")]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::{Signal, raise};

    /// Parsed from a variable with `{point}:{n}`: the nth passage of a point.
    pub(crate) struct Armed {
        point: String,
        left: AtomicU64,
    }

    /// From `TASKPIPELINE_CRASH_AT`.
    pub(crate) static CRASH: LazyLock<Option<Armed>> =
        LazyLock::new(|| Armed::from_env("TASKPIPELINE_CRASH_AT"));

    /// From `TASKPIPELINE_STOP_AT`.
    pub(crate) static STOP: LazyLock<Option<Armed>> =
        LazyLock::new(|| Armed::from_env("TASKPIPELINE_STOP_AT"));

    impl Armed {
        fn from_env(name: &str) -> Option<Self> {
            let text = std::env::var(name).ok()?;
            let (point, times) = text.split_once(':')?;
            Some(Self { point: point.to_owned(), left: AtomicU64::new(times.parse().ok()?) })
        }

        /// Counts a passage, and returns whether it is the nth one of this point.
        pub(crate) fn is_at(&self, point: &str) -> bool {
            self.point == point && self.left.fetch_sub(1, Ordering::SeqCst) == 1
        }
    }

    /// Stops all threads until SIGCONT.
    pub(crate) fn stand_still() {
        // The signal goes to this very thread. Another thread would take a signal to the process,
        // and on a busy machine this thread would continue meanwhile.
        let _ = raise(Signal::SIGSTOP);
    }
}

/// Aborts the process if `TASKPIPELINE_CRASH_AT` is `{point}:{n}` and this is the nth passage. With
/// `TASKPIPELINE_STOP_AT` the process stops.
#[cfg(feature = "crash-points")]
pub(crate) fn point(name: &str) {
    if armed::CRASH.as_ref().is_some_and(|armed| armed.is_at(name)) {
        eprintln!("crash point {name}");
        std::process::abort();
    }
    if armed::STOP.as_ref().is_some_and(|armed| armed.is_at(name)) {
        eprintln!("stands still at {name}");
        armed::stand_still();
    }
}

/// Does nothing without the feature.
#[cfg(not(feature = "crash-points"))]
pub(crate) fn point(_name: &str) {}
