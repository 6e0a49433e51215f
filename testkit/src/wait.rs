//! Waiting for what happens in its own time.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

/// Asks again and again until there is an answer.
///
/// # Errors
/// The last refusal, once `within` is over.
pub async fn eventually<T, F>(within: Duration, mut ask: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let deadline = Instant::now() + within;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not within {within:?}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
        }
    }
}
