//! How the parts of a replica learn that it drains, and until when they may take.

use tokio::sync::watch;
use tokio::time::Instant;

/// Resolves when the drain has begun; or when nobody is left to begin one, which stops just as well.
pub(crate) async fn stopped(stop: &mut watch::Receiver<Option<Instant>>) {
    let _ = stop.wait_for(Option::is_some).await;
}

/// Resolves when the drain has to be over.
pub(crate) async fn deadline(stop: &mut watch::Receiver<Option<Instant>>) {
    let at = stop.wait_for(Option::is_some).await.ok().and_then(|at| *at);
    tokio::time::sleep_until(at.unwrap_or_else(Instant::now)).await;
}
