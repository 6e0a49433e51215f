//! Waiting for what will be so.

use std::time::Duration;

use tokio::time::Instant;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(100);

/// Asks until it is so; answers what it was then.
///
/// # Errors
/// The last answer, where it does not become so in time.
pub async fn eventually<T>(
    patience: Duration,
    look: impl AsyncFn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        match look().await {
            Ok(seen) => return Ok(seen),
            Err(error) if began.elapsed() > patience => {
                return Err(error.context(format!("not so after {} s", patience.as_secs())));
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// How long something takes to become so.
///
/// # Errors
/// As [`eventually`].
pub async fn within(
    patience: Duration,
    look: impl AsyncFn() -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    eventually(patience, look).await?;
    Ok(began.elapsed())
}
