//! Lets the parts of a replica wait for a drain and for its deadline.

use tokio::sync::watch;
use tokio::time::Instant;

/// Resolves when the drain begins, or when its sender is gone, which also means stop.
pub(crate) async fn stopped(stop: &mut watch::Receiver<Option<Instant>>) {
    let _ = stop.wait_for(Option::is_some).await;
}

/// Resolves at the deadline of the drain.
pub(crate) async fn deadline(stop: &mut watch::Receiver<Option<Instant>>) {
    let at = stop.wait_for(Option::is_some).await.ok().and_then(|at| *at);
    tokio::time::sleep_until(at.unwrap_or_else(Instant::now)).await;
}
