//! Reads the events of a history from the stream: they are the truth that KV is checked against.
//!
//! The published events are not: a plain publish may be lost with the server, and an attempt that seemed to fail may
//! have been stored. This module only reads, and waits for a server that is down.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::jetstream::{self, consumer};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use taskpipeline_contract::Timestamp;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::{UNREADABLE_HEADERS, eventually};

/// The time limit for a read, including an outage of the server.
const PATIENCE: Duration = Duration::from_secs(30);

/// The number of messages that are read at a time.
const AT_A_TIME: usize = 64;

/// JetStream's error code for a sequence without a message.
const NO_MESSAGE: u64 = 10_037;

/// A stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Captured {
    /// The incarnation of the stream: 1, and one more each time the stream was recreated or lost its tail.
    pub(crate) incarnation: u32,
    /// The sequence in the stream.
    pub(crate) sequence: u64,
    /// The time of storage, in nanoseconds since the start of 1970.
    pub(crate) nanos: i128,
    /// The subject that the message was published on.
    pub(crate) subject: String,
    /// Whether no client can read the headers.
    pub(crate) unreadable: bool,
    /// The payload.
    pub(crate) payload: Bytes,
}

impl Captured {
    /// The time of storage in milliseconds, as in tasks.
    #[must_use]
    pub(crate) fn at(&self) -> Timestamp {
        let millis = i64::try_from(self.nanos.div_euclid(1_000_000)).unwrap_or_default();
        Timestamp::from_unix_millis(millis).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// The messages that were read from a stream so far, over all its incarnations.
#[derive(Debug)]
pub(crate) struct Capture {
    stream: String,
    incarnation: u32,
    next: u64,
    events: Vec<Captured>,
    /// How often the replicas were informed of the read position.
    told: u64,
}

impl Capture {
    /// Begins with no messages of this stream.
    #[must_use]
    pub(crate) fn new(stream: &str) -> Self {
        Self { stream: stream.to_owned(), incarnation: 1, next: 1, events: Vec::new(), told: 0 }
    }

    /// All messages read so far, in order.
    #[must_use]
    pub(crate) fn events(&self) -> &[Captured] {
        &self.events
    }

    /// The incarnation that is being read.
    #[must_use]
    pub(crate) fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// Begins a new incarnation, whose first new message has this sequence.
    pub(crate) fn begin_incarnation(&mut self, first: u64) {
        self.incarnation += 1;
        self.next = first;
    }

    /// Reads the messages since the last sweep.
    ///
    /// # Errors
    /// If the server does not answer for long.
    pub(crate) async fn sweep(&mut self, jetstream: &jetstream::Context) -> anyhow::Result<()> {
        let read = eventually(PATIENCE, || read(jetstream, &self.stream, self.next)).await;
        for mut event in read.with_context(|| format!("cannot read the stream {}", self.stream))? {
            event.incarnation = self.incarnation;
            self.next = event.sequence + 1;
            self.events.push(event);
        }
        Ok(())
    }

    /// Informs the replicas of the read position by a consumer that begins there. The replicas drop messages that
    /// every consumer has acknowledged.
    ///
    /// # Errors
    /// If the server does not create the consumer for long.
    pub(crate) async fn tell(&mut self, jetstream: &jetstream::Context) -> anyhow::Result<()> {
        self.told += 1;
        let name = |number: u64| format!("harness-{}", number % 2);
        let told = eventually(PATIENCE, async || {
            let stream = jetstream.get_stream(&self.stream).await?;
            // The server may have restarted with an older copy of the stream.
            let _ = stream.delete_consumer(&name(self.told)).await;
            let from = consumer::pull::Config {
                durable_name: Some(name(self.told)),
                deliver_policy: consumer::DeliverPolicy::ByStartSequence { start_sequence: self.next },
                ..Default::default()
            };
            stream.create_consumer(from).await?;
            let _ = stream.delete_consumer(&name(self.told - 1)).await;
            Ok(())
        });
        told.await.context("cannot inform the replicas of the read position")
    }

    /// Compares the messages that were read with the current content of the stream.
    ///
    /// If the server lost or changed any of them unnoticed, the harness would not know the truth.
    ///
    /// # Errors
    /// If they differ, or the server does not answer.
    pub(crate) async fn verify(&self, jetstream: &jetstream::Context) -> anyhow::Result<()> {
        let held = eventually(PATIENCE, || read(jetstream, &self.stream, 1)).await?;
        // The oldest messages may have expired since; the newest must still exist.
        let last = jetstream.get_stream(&self.stream).await?.cached_info().state.last_sequence;
        ensure!(
            last + 1 >= self.next,
            "the harness: {} ends at {last}, though it was read up to {}",
            self.stream,
            self.next - 1
        );
        // If several messages have the same sequence, the stream should contain the one that was read last.
        let known: HashMap<_, _> = self.events.iter().map(|event| (event.sequence, event)).collect();
        for event in held {
            let known = known.get(&event.sequence);
            ensure!(
                known.is_some_and(|known| known.nanos == event.nanos && known.payload == event.payload),
                "the harness: message {} of {} is not the one that was read before",
                event.sequence,
                self.stream
            );
        }
        Ok(())
    }
}

/// Reads all messages of a stream from this sequence on. Their incarnation is 0, which the caller replaces.
///
/// # Errors
/// If the server does not answer, or returns only some of them.
pub(crate) async fn read(
    jetstream: &jetstream::Context,
    stream: &str,
    from: u64,
) -> anyhow::Result<Vec<Captured>> {
    let mut stream = jetstream.get_stream(stream).await?;
    let last = stream.info().await?.state.last_sequence;
    let held = stream.cached_info().state.messages;
    let from = from.max(stream.cached_info().state.first_sequence).max(1);
    if last < from || held == 0 {
        return Ok(Vec::new());
    }
    // The messages are read as JSON: headers that no client can read would cut the connection.
    let name = stream.cached_info().config.name.clone();
    let reads = futures_util::stream::iter(from..=last).map(|sequence| message(jetstream, &name, sequence));
    let found: Vec<Option<Captured>> = reads.buffered(AT_A_TIME).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Reads the message with this sequence; `None` if it does not exist.
async fn message(
    jetstream: &jetstream::Context,
    stream: &str,
    sequence: u64,
) -> anyhow::Result<Option<Captured>> {
    let answer: Value =
        jetstream.request(format!("STREAM.MSG.GET.{stream}"), &json!({"seq": sequence})).await?;
    if answer["error"]["err_code"] == NO_MESSAGE {
        return Ok(None);
    }
    let found = &answer["message"];
    let text = |field: &str| found[field].as_str().unwrap_or_default();
    let subject = found["subject"].as_str().with_context(|| format!("message {sequence}: {answer}"))?;
    let time = OffsetDateTime::parse(text("time"), &Rfc3339)?;
    Ok(Some(Captured {
        incarnation: 0,
        sequence,
        nanos: time.unix_timestamp_nanos(),
        subject: subject.to_owned(),
        unreadable: is_unreadable(&STANDARD.decode(text("hdrs"))?),
        payload: STANDARD.decode(text("data"))?.into(),
    }))
}

/// Whether a header block is one of the unreadable ones, with or without additions of a server.
#[must_use]
pub(crate) fn is_unreadable(block: &[u8]) -> bool {
    UNREADABLE_HEADERS.iter().any(|bad| block.starts_with(&bad[..bad.len() - 2]))
}

#[cfg(test)]
mod tests {
    use taskpipeline_contract::EventKind;

    use super::*;
    use crate::NatsServer;
    use crate::history::events::Publication;
    use crate::history::publish::Producer;

    fn publications(count: usize) -> Vec<Publication> {
        let publication = |n| Publication { kind: EventKind::Created, payload: format!("{n}").into() };
        (0..count).map(publication).collect()
    }

    #[tokio::test]
    async fn what_was_acked_is_read_once_and_in_order_though_the_server_is_killed() {
        let mut nats = NatsServer::start().await.unwrap();
        let producer = Producer::new(&nats.url(), None, "test".to_owned()).await.unwrap();
        let (_, jetstream) = crate::history::publish::connect(&nats.url(), None).await.unwrap();
        let stream = jetstream::stream::Config {
            name: "TASKS".to_owned(),
            subjects: vec!["tasks.*".to_owned()],
            ..Default::default()
        };
        jetstream.create_stream(stream).await.unwrap();
        let all = publications(3_000);
        let mut capture = Capture::new("TASKS");
        let mut kills = 0;
        for burst in all.chunks(600) {
            let (killed, published) = tokio::join!(
                async {
                    nats.kill().await.unwrap();
                    nats.restart().await.unwrap();
                    1
                },
                producer.acked(burst)
            );
            published.unwrap();
            kills += killed;
            capture.sweep(&jetstream).await.unwrap();
        }
        println!("{kills} kills, {} publishes repeated", producer.repeated());
        capture.verify(&jetstream).await.unwrap();
        assert!(capture.events().len() >= all.len(), "{}", capture.events().len());
        assert_eq!(producer.stored_up_to(), capture.events().last().unwrap().sequence);
        let payloads: std::collections::HashSet<_> = capture.events().iter().map(|it| &it.payload).collect();
        assert_eq!(payloads.len(), all.len());
        assert!(capture.events().windows(2).all(|two| two[0].sequence + 1 == two[1].sequence));

        // The harness must find out events that it did not record.
        let last = capture.events().last().unwrap().sequence;
        jetstream.get_stream("TASKS").await.unwrap().purge().await.unwrap();
        capture.verify(&jetstream).await.unwrap();
        jetstream.delete_stream("TASKS").await.unwrap();
        let again = jetstream::stream::Config {
            name: "TASKS".to_owned(),
            subjects: vec!["tasks.*".to_owned()],
            ..Default::default()
        };
        jetstream.create_stream(again).await.unwrap();
        producer.acked(&publications(2)).await.unwrap();
        assert!(capture.verify(&jetstream).await.is_err());
        capture.begin_incarnation(1);
        capture.sweep(&jetstream).await.unwrap();
        let newest = capture.events().last().unwrap();
        assert_eq!((newest.incarnation, newest.sequence), (2, 2));
        assert!(newest.sequence < last);
    }
}
