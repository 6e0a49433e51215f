//! Where the fault suite lets the process die, between every two steps that something could be lost between.
//! Only with the feature `crash-points`; otherwise nothing.

/// The process ends here, without a word to anyone, if `TASKPIPELINE_CRASH_AT` is `{point}:{n}` and this is the
/// nth time.
#[cfg(feature = "crash-points")]
pub(super) fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("TASKPIPELINE_CRASH_AT").ok()?;
        let (name, times) = text.split_once(':')?;
        Some((name.to_owned(), AtomicU64::new(times.parse().ok()?)))
    });
    if let Some((wanted, left)) = wanted
        && wanted == name
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        eprintln!("crash point {name}");
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(feature = "crash-points"))]
pub(super) fn point(_name: &str) {}
