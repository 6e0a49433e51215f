//! The connection to NATS: the login, the time-outs, and the reports of its changes. Does not know
//! any subject.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event as NatsEvent};
use secrecy::ExposeSecret;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::error::RunError;
use crate::settings::LoginFile;
use crate::settings::{NatsAuth, NatsConnection};
use crate::telemetry::health::{Health, NatsState};
use crate::telemetry::metrics::Metrics;

/// The most messages of one subscription in the client. The pipeline moves them into its own buffer
/// all the time.
///
/// If the client's buffer still overflows, the client drops messages and reports a slow consumer.
const SUBSCRIPTION_CAPACITY: usize = 3 * 65_536;

/// The longest wait between two attempts to connect. While a replica waits, its events go to other
/// replicas or to none.
const MOST_DELAY: Duration = Duration::from_secs(2);

/// How long a server may take to connect and to send its first line.
///
/// Behind the sidecar of a service mesh, which waits for the client to speak first, that can take
/// 10 s.
const FIRST_WORD: Duration = Duration::from_secs(20);

/// The least time between two log lines about the same error.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

/// The options of every connection: name, login, encryption, time-outs.
#[must_use]
pub fn connect_options(connection: &NatsConnection) -> ConnectOptions {
    let options = match &connection.auth {
        NatsAuth::None => ConnectOptions::new(),
        NatsAuth::UserAndPassword(user, password) => {
            ConnectOptions::with_user_and_password(user.clone(), password.expose_secret().to_owned())
        }
        NatsAuth::Token(token) => ConnectOptions::with_token(token.expose_secret().to_owned()),
        NatsAuth::TokenFile(file) => by_file(LoginFile::Token(file.clone())),
        NatsAuth::CredentialsFile(file) => by_file(LoginFile::Credentials(file.clone())),
        NatsAuth::NkeyFile(file) => by_file(LoginFile::Nkey(file.clone())),
    };
    let mut options = options
        .name("taskpipeline")
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .connection_timeout(FIRST_WORD)
        .require_tls(connection.must_encrypt())
        .reconnect_delay_callback(|attempts| reconnect_delay(attempts, rand::random()));
    if let Some(file) = &connection.tls.ca {
        options = options.add_root_certificates(file.clone());
    }
    if let Some((certificate, key)) = &connection.tls.client {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    if connection.tls.first {
        options = options.tls_first();
    }
    // The first line of a server, before TLS, names other servers. An attacker who can change it
    // could send the login to any host. Servers also name one another without a scheme, which the
    // client treats as plain TCP.
    options = options.ignore_discovered_servers();
    match &connection.inbox_prefix {
        Some(prefix) => options.custom_inbox_prefix(prefix),
        None => options,
    }
}

fn by_file(file: LoginFile) -> ConnectOptions {
    ConnectOptions::with_auth_callback(move |nonce| file.clone().login(nonce))
}

/// The delay before an attempt to connect: 0.1 s, doubled with each attempt up to [`MOST_DELAY`].
///
/// `dice` in 0.0..1.0 reduces it by up to half, so that replicas do not all return at once.
fn reconnect_delay(attempts: usize, dice: f64) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
    let delay = (Duration::from_millis(100) * 2_u32.pow(doublings)).min(MOST_DELAY);
    delay.mul_f64(1.0 - dice / 2.0)
}

/// Connects. Waits indefinitely for a server that is unreachable.
///
/// Changes of the connection go to the log, health and metrics. `connections` counts each new
/// connection.
pub(super) async fn connect(
    connection: &NatsConnection,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    connections: watch::Sender<u64>,
) -> Result<Client, RunError> {
    let (url, complaints) = (connection.to_string(), Complaints::default());
    info!(%url, "connecting to NATS");
    open(connection, connect_options(connection), move |event| {
        if matches!(event, NatsEvent::Connected) {
            connections.send_modify(|count| *count += 1);
        }
        note(event, &url, &complaints, &health, &metrics);
    })
    .await
}

/// Opens a second connection, only for pulls: a message that the client cannot read cuts only this
/// connection.
///
/// `is_up` changes each time the connection opens or ends, in that order.
pub(super) async fn connect_for_pulls(
    connection: &NatsConnection,
    health: Arc<Health>,
    is_up: watch::Sender<bool>,
) -> Result<Client, RunError> {
    let (url, complaints) = (connection.to_string(), Complaints::default());
    let options = connect_options(connection).name("taskpipeline pulls");
    open(connection, options, move |event| {
        match event {
            NatsEvent::Connected => {
                is_up.send_replace(true);
            }
            NatsEvent::Disconnected => {
                is_up.send_replace(false);
            }
            _ => {}
        }
        note_pulls(event, &url, &complaints, &health);
    })
    .await
}

async fn open(
    connection: &NatsConnection,
    options: ConnectOptions,
    told: impl Fn(&NatsEvent) + Send + Sync + 'static,
) -> Result<Client, RunError> {
    let options = options.retry_on_initial_connect().max_reconnects(None).event_callback(move |event| {
        told(&event);
        std::future::ready(())
    });
    options
        .connect(connection.servers.as_slice())
        .await
        .map_err(|error| RunError::Nats { url: connection.to_string(), reason: error.to_string() })
}

/// Errors that are logged once in [`COMPLAINT_INTERVAL`] while they repeat.
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
            info!(%url, "connected to NATS");
            health.set_nats(NatsState::Connected);
        }
        NatsEvent::Disconnected => {
            warn!(%url, "lost the connection to NATS; reconnecting");
            health.set_nats(NatsState::Disconnected("reconnecting".to_owned()));
        }
        NatsEvent::SlowConsumer(_) => {
            metrics.slow_consumers.inc();
            warn!("events were dropped: they arrived faster than the processor read them");
        }
        NatsEvent::ServerError(error) => {
            warn!(%url, %error, "NATS reported an error");
            health.set_nats_error(&error.to_string());
        }
        NatsEvent::ClientError(error) => {
            let error = error.to_string();
            if complaints.is_news(&error, Instant::now()) {
                warn!(%url, %error, "cannot connect to NATS; retrying. Check that a server runs there, and check NATS_URL \
                                     and the login");
            }
            health.set_nats_error(&error);
        }
        NatsEvent::LameDuckMode => info!("the NATS server is shutting down; moving to another server"),
        NatsEvent::Draining | NatsEvent::Closed => {}
    }
}

/// Reports changes of the connection for pulls that the other connection does not report.
fn note_pulls(event: &NatsEvent, url: &str, complaints: &Complaints, health: &Health) {
    match event {
        NatsEvent::Connected => health.set_pulls(None),
        NatsEvent::Disconnected => {
            debug!(%url, "lost the connection for pulls to NATS; reconnecting");
            health.set_pulls(Some("reconnecting"));
        }
        NatsEvent::ServerError(error) => {
            warn!(%url, %error, "NATS reported an error on the connection for pulls");
        }
        NatsEvent::ClientError(error) => {
            let error = error.to_string();
            health.set_pulls(Some(&error));
            if health.nats() == NatsState::Connected && complaints.is_news(&error, Instant::now()) {
                warn!(%url, %error, "cannot open the second connection to NATS, which pulls events; retrying. Check the \
                                     connection limits of the account and of the login");
            }
        }
        NatsEvent::SlowConsumer(_) | NatsEvent::LameDuckMode | NatsEvent::Draining | NatsEvent::Closed => {}
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
