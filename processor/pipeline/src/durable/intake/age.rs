//! Watches how long events wait to be taken in, so that a person learns of it before events age out
//! and are lost. Also counts the dead letters.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{error, info};

use crate::durable::bucket::raw::{self, Raw};
use crate::durable::clock::now;
use crate::durable::dead_letters::DeadLetters;
use crate::durable::stream::session::Session;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

/// The longest interval between two checks.
const LOOK: Duration = Duration::from_secs(10);

/// Checks until the session ends.
pub(crate) fn watch(
    session: Arc<Session>,
    letters: DeadLetters,
    health: Arc<Health>,
    metrics: &Metrics,
) -> JoinHandle<()> {
    // Often enough to see an event get old, however short the max_age of the stream is.
    let look = session.max_age.map_or(LOOK, |age| (age / 20).clamp(Duration::from_millis(500), LOOK));
    metrics.stream_max_age.set(session.max_age.unwrap_or_default().as_secs_f64());
    tokio::spawn(async move {
        let mut late = false;
        loop {
            tokio::time::sleep(look).await;
            if let Some(count) = letters.count().await {
                health.set_dead_letters(count);
            }
            // While NATS does not answer, health reports that instead.
            let Ok(age) = oldest(&session).await else { continue };
            health.set_oldest_event(age);
            let nearing = session.max_age.filter(|most| age > *most / 2);
            match nearing {
                Some(most) if !late => {
                    let (age, most) = (age.as_secs(), most.as_secs());
                    error!(
                        age_seconds = age,
                        max_age_seconds = most,
                        "the oldest event that waits is about to expire from the stream: add replicas, or raise the \
                         max_age of the stream, before events are lost"
                    );
                    late = true;
                }
                None if late => {
                    info!("no event waits longer than half the max_age of the stream any more");
                    late = false;
                }
                _ => {}
            }
            health.set_late(nearing.map(|most| {
                format!(
                    "the oldest event has waited {} s, and expires after {} s",
                    age.as_secs(),
                    most.as_secs()
                )
            }));
        }
    })
}

/// The age of the oldest event that is not acknowledged to the consumer.
async fn oldest(session: &Session) -> Result<Duration, ()> {
    let info = session.consumer.get_info().await.map_err(|_| ())?;
    if info.num_pending == 0 && info.num_ack_pending == 0 {
        return Ok(Duration::ZERO);
    }
    let name = &session.streams.events.cached_info().config.name;
    let next =
        raw::next(&session.jetstream, name, info.ack_floor.stream_sequence + 1).await.map_err(|_| ())?;
    let Some(Raw { time, .. }) = next else { return Ok(Duration::ZERO) };
    Ok(Duration::from_millis(u64::try_from(now().saturating_sub(time / 1_000_000)).unwrap_or(0)))
}
