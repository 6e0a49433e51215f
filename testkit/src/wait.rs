//! Waiting for what happens in its own time.

use std::time::Duration;

use tokio::time::Instant;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(50);

/// Asks again and again until there is an answer.
///
/// # Errors
/// The last refusal, once `patience` is over.
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

/// How long something takes to become so.
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
