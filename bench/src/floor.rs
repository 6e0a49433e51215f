//! The floor: the least work of a program like ours. It takes events from a stream, keeps each in a ledger before the
//! ack, and writes to KV in bulk.
//!
//! It fetches 2,000 events and makes one pipelined put into a NATS bucket for each. It then acknowledges the event,
//! and sends bulk PUTs of 10,000. It does no other work: it does not decode or check an event, does not compare or
//! fold anything, respects no limit, and repeats nothing.
//!
//! The guarded floor does two things more, which are the cost of exactness. Each put succeeds only if the key has no
//! value, and a second consumer reads all values back.

use std::sync::Arc;

use anyhow::{Context, ensure};
use async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
use async_nats::jetstream::consumer::pull::Config as PullConfig;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer};
use async_nats::jetstream::{self, Message, kv};
use async_nats::{Client, HeaderMap, Subject};
use futures_util::StreamExt;
use serde_json::json;
use taskpipeline_testkit::http;
use tokio::sync::{Semaphore, mpsc};

/// The number of events in a fetch.
const FETCH: usize = 2_000;
/// The number of puts that may wait for their acks.
const PUTS_IN_FLIGHT: usize = 8_000;
/// The number of keys in a bulk PUT: the maximum of Cloudflare.
const BULK: usize = 10_000;
/// The number of bulk PUTs that may be in flight.
const REQUESTS_IN_FLIGHT: usize = 8;

/// The options of the process.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Connect to nats-server at this URL
    #[arg(long)]
    url: String,
    /// Send bulk PUTs to this address
    #[arg(long)]
    bulk_url: String,
    /// Send this token with the bulk PUTs
    #[arg(long)]
    token: String,
    /// Read the events of this existing stream
    #[arg(long, default_value = "TASKS")]
    stream: String,
    /// End after this many events
    #[arg(long)]
    events: usize,
    /// Compare at each put, and read the values back
    #[arg(long)]
    guarded: bool,
}

/// Returns the arguments for the process.
pub(crate) fn arguments(url: &str, bulk_url: &str, token: &str, events: u64) -> Vec<String> {
    vec![
        "floor".to_owned(),
        format!("--url={url}"),
        format!("--bulk-url={bulk_url}"),
        format!("--token={token}"),
        format!("--events={events}"),
    ]
}

/// Runs the floor in this process.
pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let client = async_nats::connect(&options.url).await.context("the floor cannot connect")?;
    let context = jetstream::new(client.clone());
    let bucket = kv::Config { bucket: "FLOOR".to_owned(), history: 1, ..kv::Config::default() };
    context.create_key_value(bucket).await.context("cannot create the bucket")?;
    let stream = context.get_stream_no_info(&options.stream).await.context("cannot get the stream")?;
    let pull = PullConfig {
        durable_name: Some("floor".to_owned()),
        // Acks are explicit, one by one: replicas share a consumer, so an ack of all earlier events would include
        // those of other replicas.
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: 50_000,
        ..PullConfig::default()
    };
    let consumer = stream.create_consumer(pull).await.context("cannot create the consumer")?;
    let mut messages = consumer.stream().max_messages_per_batch(FETCH).messages().await?;
    let (put, acknowledged) = mpsc::channel(PUTS_IN_FLIGHT);
    let inbox = client.new_inbox();
    let acks = client.subscribe(inbox.clone()).await?;
    let feed = match options.guarded {
        true => Some(tokio::spawn(read_back(feed(&context).await?, options.events))),
        false => None,
    };
    let second_half = tokio::spawn(finish(client.clone(), acks, acknowledged, options.clone()));
    for number in 0..options.events {
        let message = messages.next().await.context("the stream ended")??;
        let key = Subject::from(format!("$KV.FLOOR.task.{number}"));
        // The room comes first: the bound of the channel limits the puts in flight.
        let room = put.reserve().await.context("the second half failed")?;
        let payload = message.payload.clone();
        if options.guarded {
            let mut headers = HeaderMap::new();
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
            client.publish_with_reply_and_headers(key, inbox.clone(), headers, payload).await?;
        } else {
            client.publish_with_reply(key, inbox.clone(), payload).await?;
        }
        room.send(message);
    }
    drop(put);
    if let Some(feed) = feed {
        feed.await??;
    }
    second_half.await?
}

async fn feed(context: &jetstream::Context) -> anyhow::Result<PullConsumer> {
    let bucket =
        context.get_stream_no_info("KV_FLOOR").await.context("cannot get the stream of the bucket")?;
    let config = PullConfig {
        ack_policy: AckPolicy::None,
        filter_subject: "$KV.FLOOR.task.*".to_owned(),
        memory_storage: true,
        ..PullConfig::default()
    };
    bucket.create_consumer(config).await.context("cannot create the feed")
}

async fn read_back(consumer: PullConsumer, events: usize) -> anyhow::Result<()> {
    let mut messages = consumer.stream().max_messages_per_batch(FETCH).messages().await?;
    for _ in 0..events {
        messages.next().await.context("the feed ended")??;
    }
    Ok(())
}

/// Handles the acks of the puts, which come in the order of the puts.
async fn finish(
    client: Client,
    mut acks: async_nats::Subscriber,
    mut put: mpsc::Receiver<Message>,
    options: Options,
) -> anyhow::Result<()> {
    let (http, room) = (http(), Arc::new(Semaphore::new(REQUESTS_IN_FLIGHT)));
    let metadata = json!({"title": "Task number 1000000", "status": "pending",
        "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:00.000Z"})
    .to_string();
    let (mut body, mut keys, mut total, mut requests) = (Vec::new(), 0, 0_usize, Vec::new());
    while let Some(message) = put.recv().await {
        let ack = acks.next().await.context("the connection ended")?;
        ensure!(!ack.payload.starts_with(b"{\"error\""), "a put failed: {:?}", ack.payload);
        let reply = message.reply.clone().context("a message has no reply subject")?;
        client.publish(reply, "+ACK".into()).await?;
        // The value is as long as that of a task, escaped as JSON requires.
        let value = serde_json::to_string(std::str::from_utf8(&message.payload)?)?;
        body.extend_from_slice(if body.is_empty() { b"[" } else { b"," });
        body.extend_from_slice(
            format!(r#"{{"key":"tasks:task-{total:08}","value":{value},"metadata":{metadata}}}"#).as_bytes(),
        );
        (keys, total) = (keys + 1, total + 1);
        if keys == BULK || total == options.events {
            body.push(b']');
            let permit = Arc::clone(&room).acquire_owned().await?;
            let capacity = body.len();
            let full = std::mem::replace(&mut body, Vec::with_capacity(capacity));
            let request = http.put(&options.bulk_url).bearer_auth(&options.token).body(full);
            let request = request.header("content-type", "application/json");
            requests.push(tokio::spawn(async move {
                let answer = request.send().await.context("a bulk PUT failed")?.error_for_status();
                drop(permit);
                answer.map(drop).context("a bulk PUT was refused")
            }));
            keys = 0;
        }
    }
    client.flush().await?;
    for request in requests {
        request.await??;
    }
    Ok(())
}
