//! A hostile producer beside the others: no NATS client can read its headers. It sends about a thousand messages a
//! minute, and once an event that becomes an oversized dead letter.
//!
//! If producers have accounts, every second message is a valid event. All its messages have a reply subject under
//! which an ack could do harm. Besides the faults, only this part of the harness ignores whether its messages arrive.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::time::{sleep, timeout};

use super::capture::Captured;
use super::replay::decoded;
use super::stage::Stage;
use crate::{NatsServer, RawClient, UNREADABLE_HEADERS, created, forgery};

/// The interval between two of its messages.
const EVERY: Duration = Duration::from_millis(60);

/// The time limit for a server to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The number of its message that is invalid and, as a dead letter, too large for a message of NATS.
const OVERSIZED: usize = 20;

/// The prefix of the ids of its valid events.
const FORGED: &str = "forged-";

/// The size of the oversized payload without headers: nearly the limit of a stream.
pub(crate) const OVERSIZED_PAYLOAD: usize = 800_000;

/// Headers that JSON makes twice as long.
fn quotes() -> Vec<u8> {
    [b"NATS/1.0\r\nX-Quotes: ".as_slice(), &[b'"'; 60_000], b"\r\n\r\n"].concat()
}

/// The number of messages between two looks at the subscriptions of the replicas.
const LOOK: usize = 50;

/// Whether the event is one of those with a forged reply subject.
#[must_use]
pub(crate) fn is_forged(event: &Captured) -> bool {
    decoded(event).is_some_and(|event| event.task_id().as_str().starts_with(FORGED))
}

impl Stage {
    /// Publishes until `over` is set.
    ///
    /// # Errors
    /// If no server has an address.
    pub(crate) async fn hostile_lane(&self, over: &AtomicBool) -> anyhow::Result<()> {
        if !self.plan.hostile {
            return Ok(());
        }
        let (ports, login) = {
            let nats = self.nats.lock().await;
            let ports: Vec<_> = nats.nodes().into_iter().map(NatsServer::port).collect();
            (ports, nats.producer())
        };
        let (mut client, mut replies): (Option<RawClient>, _) = (None, Vec::new());
        for n in 0_usize.. {
            if over.load(Ordering::Relaxed) {
                break;
            }
            if login.is_some() && n.is_multiple_of(LOOK) {
                replies = self.replies().await;
            }
            {
                let _open = self.gate.read().await;
                let port = ports.get(n % ports.len().max(1)).context("no nats-server has a port")?;
                let sent = timeout(PATIENCE, async {
                    let to = match client.take() {
                        Some(client) => client,
                        None => RawClient::connect(*port, login).await?,
                    };
                    let reply = replies.get(n / 2 % replies.len().max(1)).map_or("", String::as_str);
                    // In a stream with little room, nothing else would fit.
                    if n == OVERSIZED && !self.plan.little_room {
                        let payload = vec![b'x'; OVERSIZED_PAYLOAD];
                        to.publish_with("tasks.created", reply, &quotes(), &payload).await?;
                    } else if login.is_some() && n % 2 == 1 {
                        let event = created(&format!("{FORGED}{n}")).to_string();
                        to.publish("tasks.created", reply, event.as_bytes()).await?;
                    } else {
                        let payload = created(&format!("unreadable-{n}")).to_string();
                        let block = UNREADABLE_HEADERS[n / 2 % UNREADABLE_HEADERS.len()];
                        to.publish_with("tasks.created", reply, block, payload.as_bytes()).await?;
                    }
                    to.round_trip().await?;
                    anyhow::Ok(to)
                });
                // The stream shows whether the message was stored.
                client = sent.await.ok().and_then(Result::ok);
            }
            sleep(EVERY).await;
        }
        Ok(())
    }

    /// The reply subjects that could do harm now; none while the server is down.
    async fn replies(&self) -> Vec<String> {
        let mut seen = Vec::new();
        for server in self.nats.lock().await.nodes() {
            if let Ok(Ok(shown)) = timeout(PATIENCE, forgery::subscriptions(server)).await {
                seen.extend(shown);
            }
        }
        forgery::reply_subjects(&seen)
    }
}

#[cfg(test)]
mod tests {
    use super::super::capture::is_unreadable;
    use super::*;

    #[test]
    fn a_block_is_known_again_with_what_a_server_adds() {
        for block in UNREADABLE_HEADERS {
            let added = [&block[..block.len() - 2], b"Nats-Request-Info: {}\r\n\r\n"].concat();
            assert!(is_unreadable(block) && is_unreadable(&added));
        }
        assert!(!is_unreadable(b"NATS/1.0\r\nNats-Msg-Id: history-1-2\r\n\r\n"));
    }
}
