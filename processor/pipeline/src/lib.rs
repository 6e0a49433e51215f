//! The data path: task events from NATS into the ledger, and from there into Cloudflare KV.
//!
//! [`core`] and [`durable`] are its two modes; the rest is what they share, the [`fold`] of events into tasks above all.
//! Decisions (fold, classify, pace, when to retry) are pure and apart from I/O. Knows nothing of clusters, arguments or HTTP
//! servers.

mod connection;
mod core;
mod dead_letters;
mod durable;
mod error;
mod fold;
#[cfg(test)]
mod fold_reference;
mod header_block;
pub mod live;
mod message;
mod reason;
mod requests;
mod round_trip;
mod schedule;
pub mod settings;
pub mod telemetry;

use std::future::Future;

use taskpipeline_kv::Namespace;
use tokio::sync::watch;
use tracing::warn;

use self::settings::{Delivery, Settings, Tuning};
use self::telemetry::Telemetry;

pub use self::connection::connect_options;
pub use self::durable::{letters, resync};
pub use self::error::RunError;
pub use self::reason::Reason;

/// Runs the pipeline until `shutdown` resolves, and drains it. `changes`: the settings that may change, as they are now and
/// whenever they change. `telemetry`: where it shows what it does.
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
    let timeout = changes.borrow().request_timeout;
    let namespace = Namespace::new(&settings.kv, timeout)?;
    if let Some(host) = settings.kv.unencrypted() {
        warn!(
            host,
            "the token is sent unencrypted: CF_API_BASE_URL begins with http:// and names another machine"
        );
    }

    tokio::pin!(shutdown);
    match settings.pipeline.delivery.clone() {
        Delivery::Core(_) => core::run(settings, changes, namespace, health, metrics, shutdown).await,
        Delivery::Durable(durable) => {
            durable::run(settings, durable, changes, namespace, health, metrics, shutdown).await
        }
    }
}
