//! A producer as a pod, which continues when this machine cannot reach the cluster. It counts the events that the
//! stream has acknowledged.

use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{Forward, Image, Namespace, eventually, pods, ready};

/// The port that returns its progress.
pub const LOAD_PORT: u16 = 4000;

const SOON: Duration = Duration::from_secs(60);

/// A producer in a pod, which counts the events that the stream has acknowledged.
pub struct Producer {
    asked: Forward,
}

impl Producer {
    /// Starts a producer that creates this many tasks a second, `{prefix}-0` and so on. `login` is a Secret with a
    /// user and a password.
    ///
    /// # Errors
    /// If its pod does not become ready.
    pub async fn start(
        namespace: &Namespace,
        url: &str,
        login: Option<&str>,
        prefix: &str,
        per_second: u32,
    ) -> anyhow::Result<Self> {
        let from = |name: &str, key: &str| {
            let of = login.map(|secret| json!({"secretKeyRef": {"name": secret, "key": key}}));
            of.map(|of| json!({"name": name, "valueFrom": of}))
        };
        let env: Vec<Value> =
            [from("NATS_USER", "user"), from("NATS_PASSWORD", "password")].into_iter().flatten().collect();
        let container = json!({
            "image": Image::Tools.name()?,
            "command": ["/e2e-load", url, prefix, per_second.to_string()],
            "env": env,
            "ports": [{"name": "asked", "containerPort": LOAD_PORT}],
        });
        pods::run(namespace, "producer", 1, container, &json!({})).await?;
        let pods = eventually(SOON, async || ready(namespace, "app=producer", 1).await).await?;
        let pod = pods[0].metadata.name.as_deref().context("a pod without a name")?;
        Ok(Self { asked: Forward::to(namespace.api(), pod, LOAD_PORT).await? })
    }

    /// The number of events that the stream has acknowledged.
    ///
    /// # Errors
    /// If the producer does not answer.
    pub async fn stored(&self) -> anyhow::Result<u32> {
        self.ask("stored").await
    }

    /// Waits until this many events are stored.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn reaches(&self, wanted: u32) -> anyhow::Result<()> {
        eventually(SOON, async || {
            let stored = self.stored().await?;
            anyhow::ensure!(stored >= wanted, "{stored} of {wanted} events are stored");
            Ok(())
        })
        .await
    }

    /// Stops the producer, and returns the number of stored events. A second call returns the same number.
    ///
    /// # Errors
    /// If the producer does not answer.
    pub async fn stop(&self) -> anyhow::Result<u32> {
        eventually(SOON, async || self.ask("stop").await).await
    }

    async fn ask(&self, question: &str) -> anyhow::Result<u32> {
        let mut stream = TcpStream::connect(self.asked.address).await?;
        stream.write_all(question.as_bytes()).await?;
        let mut answer = String::new();
        tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await??;
        answer.parse().context("the answer of the producer is not a number")
    }
}

/// A create in the format of a producer.
#[must_use]
pub fn create(id: &str) -> String {
    json!({
        "correlationId": "e2e",
        "data": {"id": id, "title": format!("Task {id}"), "description": "", "status": "pending"},
    })
    .to_string()
}
