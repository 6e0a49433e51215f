//! The pipeline: [`core`] and [`durable`] are its two modes; the rest is what they share, the [`fold`] of
//! events into tasks above all. This file starts one of them, nothing else.

mod connection;
mod core;
mod dead_letters;
mod durable;
mod fold;
#[cfg(test)]
mod fold_reference;
mod header_block;
mod message;
mod requests;
mod schedule;

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::{Delivery, Settings, Tuning};
use crate::kv::{ClientError, Namespace};
use crate::telemetry::{Telemetry, health};

pub(crate) use self::connection::{connect_options, round_trip};
pub(crate) use self::dead_letters::Reason;
pub(crate) use self::durable::letters;
pub(crate) use self::durable::resync;

/// Why the pipeline could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The KV client cannot be made.
    #[error(transparent)]
    Kv(#[from] ClientError),
    /// NATS cannot be used at all; a server that is merely away is waited for.
    #[error("cannot use NATS at {url}: {reason}")]
    Nats {
        /// The servers, without credentials.
        url: String,
        /// What the client says.
        reason: String,
    },
    /// The address for health and metrics cannot be had.
    #[error("cannot listen on {address} for health and metrics; set PORT to a free port")]
    Listen {
        /// The address asked for.
        address: std::net::SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The metrics cannot be registered.
    #[error("cannot register metrics")]
    Metrics(#[from] prometheus::Error),
    /// A part of the pipeline ended that must not.
    #[error("the {0} stopped unexpectedly; this is a fault of taskpipeline itself")]
    Stopped(&'static str),
}

/// Runs the pipeline until `shutdown` resolves, and drains it. `changes`: what of the settings may change meanwhile,
/// as it is now and whenever it changes. `telemetry`: where it shows what it does.
///
/// # Errors
/// Where it cannot start, or a part of it stops by itself.
pub async fn run(
    settings: Settings,
    changes: watch::Receiver<Tuning>,
    telemetry: Telemetry,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let Telemetry { metrics, health } = telemetry;
    let address = health::serve(settings.http, Arc::clone(&health), Arc::clone(&metrics)).await?;
    let namespace = Namespace::new(&settings.kv, settings.tuning.request_timeout)?;
    info!("taskpipeline {} serves health and metrics on http://{address}", env!("CARGO_PKG_VERSION"));

    if let Some(why) = settings.kv.unencrypted() {
        warn!("{why}");
    }

    tokio::pin!(shutdown);
    match settings.delivery.clone() {
        Delivery::Core(core) => {
            core::run(settings, core, changes, namespace, health, metrics, shutdown).await
        }
        Delivery::Durable(durable) => {
            let durable = durable.clone();
            durable::run(settings, durable, changes, namespace, health, metrics, shutdown).await
        }
    }
}
