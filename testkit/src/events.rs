//! Creates events for tests and publishes them by plain NATS, as a producer would.

use anyhow::Context;
use async_nats::Client;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use taskpipeline_simulator::Simulator;

/// Returns a `tasks.created` of this task. Its correlation id is `c-` and the task's id.
#[must_use]
pub fn created(id: &str) -> Value {
    let data = json!({"id": id, "title": format!("Task {id}"), "description": "", "status": "pending"});
    json!({"correlationId": format!("c-{id}"), "data": data})
}

/// Publishes an event on `tasks.{kind}`. The server may not have it yet when this returns.
///
/// # Errors
/// If the client is closed.
pub async fn publish(client: &Client, kind: &str, event: &Value) -> anyhow::Result<()> {
    client.publish(format!("tasks.{kind}"), event.to_string().into()).await.context("cannot publish")
}

/// Publishes creates of `task-0`, `task-1` and so on, and waits until all are written to the socket.
///
/// # Errors
/// If the client is closed.
pub async fn publish_creates(client: &Client, count: u32) -> anyhow::Result<()> {
    for n in 0..count {
        publish(client, "created", &created(&format!("task-{n}"))).await?;
    }
    client.flush().await.context("cannot flush")
}

/// Decodes the original bytes from a dead letter of one part.
///
/// # Errors
/// If the letter has no payload in base64.
pub fn letter_payload(letter: &Value) -> anyhow::Result<Vec<u8>> {
    STANDARD.decode(letter["payload"].as_str().context("no payload")?).context("no base64")
}

/// Returns the task as the simulator stores it.
#[must_use]
pub fn stored_task(kv: &Simulator, id: &str) -> Option<Value> {
    serde_json::from_slice(&kv.get(&format!("tasks:{id}"))?.value).ok()
}
