//! Waits for conditions that take their own time.

use std::time::Duration;

use tokio::time::Instant;

/// The interval between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Repeats until the function succeeds, and returns its value.
///
/// # Errors
/// The last error, after `patience`.
pub async fn eventually<T>(
    patience: Duration,
    mut ask: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not within {patience:?}")));
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Measures how long a condition takes to become true.
///
/// # Errors
/// As [`eventually`].
pub async fn within(
    patience: Duration,
    ask: impl AsyncFnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    eventually(patience, ask).await?;
    Ok(began.elapsed())
}
