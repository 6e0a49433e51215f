//! The data path: task events from NATS into the ledger, and from there into Cloudflare KV.
//!
//! [`core`] and [`durable`] are the two modes. All other modules are shared by both, above all the
//! [`fold`] of events into tasks. Decisions (fold, classify, pace, when to retry) are pure and
//! apart from I/O. This crate does not know clusters, command-line arguments or HTTP servers.

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

/// Runs the pipeline until `shutdown` resolves, and then drains it.
///
/// `changes` holds the settings that may change, now and after each change. `telemetry` receives
/// metrics and health.
///
/// # Errors
/// If the pipeline cannot start, or a part of it stops by itself.
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
