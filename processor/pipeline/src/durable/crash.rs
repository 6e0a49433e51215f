//! Where the fault suite lets the process die or stand still, between every two steps that something could be
//! lost between. Only with the feature `crash-points`; otherwise nothing.

#[cfg(feature = "crash-points")]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::{Signal, raise};

    /// `{point}:{n}` from a variable: the nth passage of a point.
    pub(crate) struct Armed {
        point: String,
        left: AtomicU64,
    }

    /// `TASKPIPELINE_CRASH_AT`
    pub(crate) static CRASH: LazyLock<Option<Armed>> =
        LazyLock::new(|| Armed::from_env("TASKPIPELINE_CRASH_AT"));

    /// `TASKPIPELINE_STOP_AT`
    pub(crate) static STOP: LazyLock<Option<Armed>> =
        LazyLock::new(|| Armed::from_env("TASKPIPELINE_STOP_AT"));

    impl Armed {
        fn from_env(name: &str) -> Option<Self> {
            let text = std::env::var(name).ok()?;
            let (point, times) = text.split_once(':')?;
            Some(Self { point: point.to_owned(), left: AtomicU64::new(times.parse().ok()?) })
        }

        /// Whether this is the passage.
        pub(crate) fn is_at(&self, point: &str) -> bool {
            self.point == point && self.left.fetch_sub(1, Ordering::SeqCst) == 1
        }
    }

    /// All threads stand still from here on, until SIGCONT comes.
    pub(crate) fn stand_still() {
        // To this very thread: a signal to the process is another thread's to take, and on a machine that has more to do
        // this one would go on meanwhile.
        let _ = raise(Signal::SIGSTOP);
    }
}

/// The process ends here, without a word to anyone, if `TASKPIPELINE_CRASH_AT` is `{point}:{n}` and this is the
/// nth time; with `TASKPIPELINE_STOP_AT` it stands still.
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

/// Nothing.
#[cfg(not(feature = "crash-points"))]
pub(crate) fn point(_name: &str) {}
