//! A connection to a nats-server on which a test sends bytes that no client library would send.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::task::JoinHandle;

use crate::eventually;

/// The time limit for a round trip.
const ROUND_TRIP: Duration = Duration::from_secs(10);

/// Header blocks that nats-server stores, and that cut the connection of a client.
pub const UNREADABLE_HEADERS: [&[u8]; 6] = [
    b"NATS/1.0\r\nX-User: M\xfcller\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\nbad name: x\r\n\r\n",
    b"NATS/1.0\r\nA: b\r\n\xff\xfe: x\r\n\r\n",
    b"NATS/2.0\r\nA: b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
];

/// A connection to a nats-server, line by line.
#[derive(Debug)]
pub struct RawClient {
    out: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    lines: Arc<Mutex<Vec<String>>>,
    reading: JoinHandle<()>,
}

impl Drop for RawClient {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl RawClient {
    /// Connects and logs in.
    ///
    /// # Errors
    /// If the server does not accept the login.
    pub async fn connect(port: u16, login: Option<(&str, &str)>) -> anyhow::Result<Self> {
        let (input, out) = TcpStream::connect(("127.0.0.1", port)).await?.into_split();
        let (out, lines) = (Arc::new(tokio::sync::Mutex::new(out)), Arc::<Mutex<Vec<String>>>::default());
        let reading = tokio::spawn({
            let (out, lines) = (Arc::clone(&out), Arc::clone(&lines));
            async move {
                let mut input = BufReader::new(input);
                let mut line = Vec::new();
                while input.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    line.clear();
                    if text == "PING" {
                        let _ = out.lock().await.write_all(b"PONG\r\n").await;
                    } else {
                        lines.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                    }
                }
            }
        });
        let client = Self { out, lines, reading };
        let mut options =
            json!({"verbose": false, "pedantic": false, "headers": true, "no_responders": true});
        if let Some((user, password)) = login {
            options["user"] = json!(user);
            options["pass"] = json!(password);
        }
        client.send(format!("CONNECT {options}\r\n").as_bytes()).await?;
        client.round_trip().await?;
        Ok(client)
    }

    /// Sends these bytes.
    ///
    /// # Errors
    /// If the connection is closed.
    pub async fn send(&self, bytes: &[u8]) -> anyhow::Result<()> {
        self.out.lock().await.write_all(bytes).await.context("the server has closed the connection")
    }

    /// Publishes a message; without a reply subject if `reply` is empty.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn publish(&self, subject: &str, reply: &str, payload: &[u8]) -> anyhow::Result<()> {
        let mut bytes = format!("PUB {subject} {reply} {}\r\n", payload.len()).into_bytes();
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\n");
        self.send(&bytes).await
    }

    /// Publishes with headers, which are sent as they are.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn publish_with(
        &self,
        subject: &str,
        reply: &str,
        headers: &[u8],
        payload: &[u8],
    ) -> anyhow::Result<()> {
        let all = headers.len() + payload.len();
        let mut bytes = format!("HPUB {subject} {reply} {} {all}\r\n", headers.len()).into_bytes();
        bytes.extend_from_slice(headers);
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\n");
        self.send(&bytes).await
    }

    /// Waits until the server has handled everything that was sent before.
    ///
    /// # Errors
    /// If the server refuses the login or does not answer.
    pub async fn round_trip(&self) -> anyhow::Result<()> {
        let pongs = self.count("PONG");
        self.send(b"PING\r\n").await?;
        eventually(ROUND_TRIP, async || {
            if self.count("PONG") > pongs {
                return Ok(());
            }
            if self.reading.is_finished() {
                bail!("the server has closed the connection: {:?}", self.lines().last());
            }
            bail!("the server does not answer")
        })
        .await
    }

    /// All lines that the server has sent.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, wanted: &str) -> usize {
        self.lines().iter().filter(|line| *line == wanted).count()
    }
}
