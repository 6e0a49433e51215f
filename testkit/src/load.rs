//! Load: many events, stored in the stream as fast as it takes them. Each is acknowledged; none is lost on
//! the way, as plain publishes in such numbers would be.

use std::collections::VecDeque;
use std::future::IntoFuture;

use anyhow::Context;
use async_nats::Client;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::message::PublishMessage;
use serde_json::Value;

/// How many publishes wait for their acks at a time.
const IN_FLIGHT: usize = 4_000;

/// Stores these events, `(kind, event)`, in their order, and waits until the stream has acknowledged them all.
/// Answers how many there were.
///
/// # Errors
/// Where the stream does not take one of them.
pub async fn store<'a>(
    client: &Client,
    events: impl Iterator<Item = (&'a str, Value)>,
) -> anyhow::Result<u32> {
    let jetstream = ContextBuilder::new()
        .max_ack_inflight(2 * IN_FLIGHT)
        .backpressure_on_inflight(true)
        .build(client.clone());
    let (mut waiting, mut stored) = (VecDeque::with_capacity(IN_FLIGHT), 0);
    for (kind, event) in events {
        let message = PublishMessage::build().payload(event.to_string().into());
        let sent = jetstream.send_publish(format!("tasks.{kind}"), message).await;
        waiting.push_back(sent.context("an event cannot be published")?);
        if waiting.len() == IN_FLIGHT
            && let Some(ack) = waiting.pop_front()
        {
            ack.into_future().await.context("an event is not acknowledged")?;
            stored += 1;
        }
    }
    for ack in waiting {
        ack.into_future().await.context("an event is not acknowledged")?;
        stored += 1;
    }
    Ok(stored)
}
