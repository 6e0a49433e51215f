//! Events for tests, and how they are published: by plain NATS, as a producer would.

use anyhow::Context;
use async_nats::Client;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use taskpipeline_simulator::Simulator;

/// A `tasks.created` of this task; its correlation id is `c-` and the id.
#[must_use]
pub fn created(id: &str) -> Value {
    let data = json!({"id": id, "title": format!("Task {id}"), "description": "", "status": "pending"});
    json!({"correlationId": format!("c-{id}"), "data": data})
}

/// Publishes an event on `tasks.{kind}`; it is on its way, not yet with the server.
///
/// # Errors
/// Where the client is closed.
pub async fn publish(client: &Client, kind: &str, event: &Value) -> anyhow::Result<()> {
    client.publish(format!("tasks.{kind}"), event.to_string().into()).await.context("cannot publish")
}

/// Publishes creates of `task-0`, `task-1` and so on, and waits until all are written to the socket.
///
/// # Errors
/// Where the client is closed.
pub async fn publish_creates(client: &Client, count: u32) -> anyhow::Result<()> {
    for n in 0..count {
        publish(client, "created", &created(&format!("task-{n}"))).await?;
    }
    client.flush().await.context("cannot flush")
}

/// The original bytes that a dead letter of one part holds.
///
/// # Errors
/// Where the letter has no payload in base64.
pub fn letter_payload(letter: &Value) -> anyhow::Result<Vec<u8>> {
    STANDARD.decode(letter["payload"].as_str().context("no payload")?).context("no base64")
}

/// The task as the simulator holds it.
#[must_use]
pub fn stored_task(kv: &Simulator, id: &str) -> Option<Value> {
    serde_json::from_slice(&kv.get(&format!("tasks:{id}"))?.value).ok()
}
