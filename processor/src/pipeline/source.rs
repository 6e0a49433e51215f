//! Where events come from, in mode `Core`: NATS subscriptions that share a queue group. At most once: what
//! the server has handed over is gone from it.
//!
//! Nothing is decoded here.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_nats::{Client, ConnectOptions, Event as NatsEvent, HeaderMap, Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all};
use secrecy::ExposeSecret;
use taskpipeline_contract::{EventKind, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::RunError;
use super::buffer::Input;
use crate::config::{NatsAuth, NatsConnection, NatsSettings};
use crate::telemetry::health::{Health, NatsState};
use crate::telemetry::metrics::Metrics;

/// How many messages of one subject may wait in the client. It is emptied into our own buffer all the time;
/// should it overflow all the same, the client drops messages and reports a slow consumer.
const SUBSCRIPTION_CAPACITY: usize = 65_536;

/// The longest wait between two attempts to connect: while a replica waits, others or nobody get its events.
const MOST_DELAY: Duration = Duration::from_secs(2);

/// How often the log says that there is still no connection.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

/// How long the server may take for a round trip.
const ROUND_TRIP: Duration = Duration::from_secs(2);

/// A message as it was received: kept whole until its event has landed, for a dead letter must have it.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub(super) kind: EventKind,
    pub(super) subject: Subject,
    pub(super) headers: Option<HeaderMap>,
    pub(super) payload: Bytes,
    /// The wall clock's time, for the task's createdAt and updatedAt.
    pub(super) at: Timestamp,
    /// The same moment for measuring.
    pub(super) taken: Instant,
}

/// The subscriptions to the three subjects.
pub(super) struct Source {
    client: Client,
    kinds: Vec<(Subject, EventKind)>,
    messages: SelectAll<Subscriber>,
}

/// How to connect, whoever does: name, login, patience.
pub(crate) fn connect_options(connection: &NatsConnection) -> Result<ConnectOptions, std::io::Error> {
    let options = ConnectOptions::new()
        .name("taskpipeline")
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .reconnect_delay_callback(|attempts| reconnect_delay(attempts, rand::random()));
    Ok(match &connection.auth {
        NatsAuth::None => options,
        NatsAuth::UserAndPassword(user, password) => {
            options.user_and_password(user.clone(), password.expose_secret().to_owned())
        }
        NatsAuth::Credentials(text) => options.credentials(text.expose_secret())?,
    })
}

/// 0.1 s doubled with each attempt up to [`MOST_DELAY`], of which `dice` in 0.0..1.0 takes off up to half,
/// so that replicas do not all come back at the same moment.
fn reconnect_delay(attempts: usize, dice: f64) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
    let delay = (Duration::from_millis(100) * 2_u32.pow(doublings)).min(MOST_DELAY);
    delay.mul_f64(1.0 - dice / 2.0)
}

impl Source {
    /// Connects and subscribes; waits for a server that is away, for ever.
    pub(super) async fn connect(
        settings: &NatsSettings,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, RunError> {
        let url = settings.connection.to_string();
        let failed = |reason: String| RunError::Nats { url: url.clone(), reason };
        info!("connecting to NATS at {url}");
        let (shown, complaints) = (url.clone(), Complaints::default());
        let options = connect_options(&settings.connection)
            .map_err(|error| failed(format!("NATS_CREDS cannot be read: {error}")))?
            .retry_on_initial_connect()
            .max_reconnects(None)
            .event_callback(move |event| {
                note(&event, &shown, &complaints, &health, &metrics);
                std::future::ready(())
            });
        let client = options
            .connect(settings.connection.servers.as_slice())
            .await
            .map_err(|error| failed(error.to_string()))?;

        let mut subscribers = Vec::new();
        let mut kinds = Vec::new();
        for kind in EventKind::ALL {
            let subject = kind.subject(&settings.subject_prefix);
            let subscriber = client
                .queue_subscribe(subject.clone(), settings.queue_group.clone())
                .await
                .map_err(|error| failed(format!("cannot subscribe to {subject}: {error}")))?;
            subscribers.push(subscriber);
            kinds.push((Subject::from(subject), kind));
        }
        Ok(Self { client, kinds, messages: select_all(subscribers) })
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Moves messages into the buffer until `stop` turns true and the subscriptions are drained.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>, buffer: Input, metrics: Arc<Metrics>) {
        let mut drops = Drops::default();
        let mut draining = false;
        loop {
            let message = tokio::select! {
                message = self.messages.next() => message,
                () = stopped(&mut stop), if !draining => {
                    draining = true;
                    self.drain().await;
                    continue;
                }
            };
            let Some(message) = message else { break };
            // The server sends only what was subscribed to.
            let Some((_, kind)) = self.kinds.iter().find(|(subject, _)| *subject == message.subject) else {
                continue;
            };
            metrics.received(*kind);
            let received = Received {
                kind: *kind,
                subject: message.subject,
                headers: message.headers,
                payload: message.payload,
                at: Timestamp::from(SystemTime::now()),
                taken: Instant::now(),
            };
            if buffer.put(received).is_err() {
                metrics.events_dropped.inc();
                drops.count(Instant::now());
            }
        }
        drops.report();
    }

    /// Ends the subscriptions; their streams go on until what was received is handed out.
    async fn drain(&mut self) {
        // What the server sent before it answers this is in our buffers by then: the client forgets a
        // subscription soon after it has told the server so.
        if round_trip(&self.client).await.is_err() {
            warn!("NATS does not answer; what it has sent meanwhile is lost");
        }
        for subscriber in self.messages.iter_mut() {
            // Fails only where the connection is closed, and then nothing more comes anyway.
            let _ = subscriber.drain().await;
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which stops just as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Dropped events that were not reported yet: reported at once, and then once a second at the most.
#[derive(Debug, Default)]
struct Drops {
    unreported: u64,
    reported: Option<Instant>,
}

impl Drops {
    fn count(&mut self, now: Instant) {
        self.unreported += 1;
        if self.reported.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1)) {
            self.reported = Some(now);
            self.report();
        }
    }

    fn report(&mut self) {
        match std::mem::take(&mut self.unreported) {
            0 => {}
            count => warn!(
                "dropped {count} events: KV does not take them as fast as they come, and in mode Core NATS \
                 does not keep them"
            ),
        }
    }
}

/// Proves that the server has processed all this client sent before: it handles a connection's commands in
/// order, and this comes back last. (The client's `flush` only writes to the socket.)
pub(crate) async fn round_trip(client: &Client) -> Result<(), String> {
    let exchange = async {
        let inbox = client.new_inbox();
        let mut echo = client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
        client.publish(inbox, Bytes::new()).await.map_err(|error| error.to_string())?;
        client.flush().await.map_err(|error| error.to_string())?;
        echo.next().await.map(|_| ()).ok_or_else(|| "the connection is closed".to_owned())
    };
    match tokio::time::timeout(ROUND_TRIP, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", ROUND_TRIP.as_secs())),
    }
}

/// The same complaint again and again is said once in [`COMPLAINT_INTERVAL`].
#[derive(Debug, Default)]
struct Complaints(Mutex<Option<(String, Instant)>>);

impl Complaints {
    fn is_news(&self, complaint: &str, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last
            .as_ref()
            .is_some_and(|(said, at)| said == complaint && now.duration_since(*at) < COMPLAINT_INTERVAL);
        if !known {
            *last = Some((complaint.to_owned(), now));
        }
        !known
    }
}

fn note(event: &NatsEvent, url: &str, complaints: &Complaints, health: &Health, metrics: &Metrics) {
    match event {
        NatsEvent::Connected => {
            info!("connected to NATS at {url}");
            metrics.nats_connected.set(1);
            health.set_nats(NatsState::Connected);
        }
        NatsEvent::Disconnected => {
            warn!("lost the connection to NATS at {url}; reconnecting");
            metrics.nats_connected.set(0);
            health.set_nats(NatsState::Disconnected("reconnecting".to_owned()));
        }
        NatsEvent::SlowConsumer(_) => {
            metrics.slow_consumers.inc();
            warn!("events were dropped: they came faster than they could be taken in");
        }
        NatsEvent::ServerError(error) => {
            warn!("NATS at {url} reports: {error}");
            health.set_nats_error(&error.to_string());
        }
        NatsEvent::ClientError(error) => {
            let error = error.to_string();
            if complaints.is_news(&error, Instant::now()) {
                warn!(
                    "no connection to NATS at {url} ({error}). It is tried again all the time; is a server \
                     there, and are NATS_URL and the login right?"
                );
            }
            health.set_nats_error(&error);
        }
        NatsEvent::LameDuckMode => info!("the NATS server is about to stop; moving to another"),
        NatsEvent::Draining | NatsEvent::Closed => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_news_when_it_is_another_or_half_a_minute_has_passed() {
        let (complaints, now) = (Complaints::default(), Instant::now());
        assert!(complaints.is_news("refused", now));
        assert!(!complaints.is_news("refused", now + Duration::from_secs(29)));
        assert!(complaints.is_news("login", now + Duration::from_secs(29)));
        assert!(complaints.is_news("login", now + Duration::from_secs(59)));
    }

    #[test]
    fn reconnecting_slows_down_to_a_cap_and_is_spread() {
        assert_eq!(reconnect_delay(1, 0.0), Duration::from_millis(100));
        assert_eq!(reconnect_delay(4, 0.0), Duration::from_millis(800));
        assert_eq!(reconnect_delay(usize::MAX, 0.0), MOST_DELAY);
        assert_eq!(reconnect_delay(usize::MAX, 1.0), MOST_DELAY / 2);
    }
}
