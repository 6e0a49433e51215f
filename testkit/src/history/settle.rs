//! Observes from outside whether a pipeline has settled, by its consumer and its control records. It changes nothing.

use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::jetstream;
use async_nats::jetstream::consumer;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use futures_util::TryStreamExt;
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// The stream's default name. The other names follow from it and the default queue group.
pub(crate) const STREAM: &str = "TASKS";
const GROUP: &str = "tasks-processor";
pub(crate) const LEDGER: &str = "KV_TASKS--tasks-processor";
const TASK_RECORDS: &str = "$KV.TASKS--tasks-processor.task.>";
const CONTROL_RECORDS: &str = "$KV.TASKS--tasks-processor.control.>";
/// The stream of the dead letters.
pub(crate) const DEAD_LETTERS: &str = "TASKS-DEAD-LETTERS";

/// A snapshot of the progress of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Glance {
    /// The last sequence of the stream.
    pub(crate) stream_last: u64,
    /// The latest incarnation that has a consumer.
    pub(crate) incarnation: u32,
    /// The number of messages that were not yet delivered.
    pending: u64,
    /// The number of messages that were delivered and not yet acked.
    ack_pending: usize,
    /// The number of deliveries, and of delivered messages.
    delivered: (u64, u64),
}

impl Glance {
    /// Takes a snapshot.
    ///
    /// # Errors
    /// If the stream or the consumer does not exist, or the server does not answer.
    pub(crate) async fn take(jetstream: &jetstream::Context) -> anyhow::Result<Self> {
        let stream = jetstream.get_stream(STREAM).await.context("no stream")?;
        let names: Vec<String> = stream.consumer_names().try_collect().await?;
        let latest = names.iter().filter_map(|name| incarnation_of(name)).max();
        let incarnation = latest.with_context(|| format!("no consumer of the group among {names:?}"))?;
        let name = format!("{GROUP}-{incarnation}");
        let consumer: consumer::PullConsumer =
            stream.get_consumer(&name).await.map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        let info = consumer.cached_info();
        Ok(Self {
            stream_last: stream.cached_info().state.last_sequence,
            incarnation,
            pending: info.num_pending,
            ack_pending: info.num_ack_pending,
            delivered: (info.delivered.consumer_sequence, info.delivered.stream_sequence),
        })
    }

    /// Checks that every event of the stream was taken in.
    ///
    /// # Errors
    /// Names the missing part.
    pub(crate) fn consumed(&self, incarnation: u32) -> anyhow::Result<()> {
        ensure!(self.incarnation >= incarnation, "no consumer of incarnation {incarnation} yet: {self:?}");
        ensure!(self.pending == 0 && self.ack_pending == 0, "not every event was taken in: {self:?}");
        Ok(())
    }

    /// The number of deliveries beyond one for each message. Only differences of it have a meaning.
    pub(crate) fn repeats(&self) -> i128 {
        i128::from(self.delivered.0) - i128::from(self.delivered.1)
    }
}

fn incarnation_of(consumer: &str) -> Option<u32> {
    consumer.strip_prefix(GROUP)?.strip_prefix('-')?.parse().ok()
}

/// The progress of the projector.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Progress {
    /// The ledger's last task record.
    last: u64,
    /// The watermark in the control record.
    settled: u64,
}

impl Progress {
    /// Reads the smallest watermark of these control records.
    async fn take(jetstream: &jetstream::Context, controls: &[String]) -> anyhow::Result<Self> {
        let ledger = jetstream.get_stream(LEDGER).await.context("no ledger")?;
        let last = last_of(&ledger, TASK_RECORDS).await?.map_or(0, |(sequence, _)| sequence);
        let mut settled = u64::MAX;
        for control in controls {
            let control = last_of(&ledger, control).await?.context("no control record")?;
            let control: Value =
                serde_json::from_slice(&control.1).context("the control record is not JSON")?;
            let of_this =
                control["settled"].as_u64().with_context(|| format!("no `settled` in {control}"))?;
            settled = settled.min(of_this);
        }
        Ok(Self { last, settled })
    }
}

/// Lists the control records: one for each KV namespace.
///
/// # Errors
/// If the server does not answer, or the number of records differs from `count`.
pub(crate) async fn controls(jetstream: &jetstream::Context, count: usize) -> anyhow::Result<Vec<String>> {
    crate::eventually(Duration::from_secs(20), async || {
        let ledger = jetstream.get_stream(LEDGER).await.context("no ledger")?;
        let subjects: Vec<_> = ledger.info_with_subjects(CONTROL_RECORDS).await?.try_collect().await?;
        ensure!(subjects.len() == count, "{} control records, not {count}", subjects.len());
        Ok(subjects.into_iter().map(|(subject, _)| subject).collect())
    })
    .await
}

async fn last_of(stream: &Stream, subject: &str) -> anyhow::Result<Option<(u64, Vec<u8>)>> {
    match stream.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Some((message.sequence, message.payload.to_vec()))),
        Err(error) if matches!(error.kind(), RawMessageErrorKind::NoMessageFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Waits until every event was taken in.
///
/// # Errors
/// Names the part that is still missing at the end.
pub(crate) async fn consumed(
    jetstream: &jetstream::Context,
    incarnation: u32,
    within: Duration,
) -> anyhow::Result<()> {
    rest(within, Duration::from_millis(300), async || {
        let glance = Glance::take(jetstream).await?;
        glance.consumed(incarnation)?;
        Ok(glance)
    })
    .await
    .context("the events are not taken in")
}

/// Waits until every event was taken in and every task record is settled in KV.
///
/// # Errors
/// Names the part that is still missing at the end.
pub(crate) async fn settled(
    jetstream: &jetstream::Context,
    controls: &[String],
    incarnation: u32,
    within: Duration,
) -> anyhow::Result<()> {
    rest(within, Duration::from_secs(1), async || {
        let (glance, progress) = (Glance::take(jetstream).await?, Progress::take(jetstream, controls).await?);
        glance.consumed(incarnation)?;
        ensure!(progress.settled >= progress.last, "not settled: {progress:?}, {glance:?}");
        Ok((glance.stream_last, glance.incarnation, progress.last))
    })
    .await
    .context("the pipeline does not come to rest")
}

/// Repeats until two successive answers are good and equal.
async fn rest<T: PartialEq>(
    within: Duration,
    apart: Duration,
    ask: impl AsyncFn() -> anyhow::Result<T>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + within;
    let mut before = None;
    loop {
        let refusal = match ask().await {
            Ok(answer) if before.as_ref() == Some(&answer) => return Ok(()),
            Ok(answer) => {
                before = Some(answer);
                anyhow::anyhow!("the progress still changed")
            }
            Err(error) => {
                before = None;
                error
            }
        };
        if Instant::now() >= deadline {
            return Err(refusal.context(format!("not within {within:?}")));
        }
        sleep(if before.is_some() { apart } else { apart / 4 }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumers_name_ends_with_its_incarnation() {
        assert_eq!(incarnation_of("tasks-processor-12"), Some(12));
        for other in ["tasks-processor", "tasks-processor-", "tasks-processor-x", "other-1"] {
            assert_eq!(incarnation_of(other), None, "{other}");
        }
    }
}
