//! The parts of a replica that are visible from outside: metrics and health.
//!
//! Nothing here changes what the pipeline does.

pub mod health;
pub mod metrics;

use std::sync::Arc;

use self::health::Health;
use self::metrics::Metrics;

/// The metrics and the health of one process.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// The counters and gauges.
    pub metrics: Arc<Metrics>,
    /// The last observed state of NATS, KV and the replica.
    pub health: Arc<Health>,
}

impl Telemetry {
    /// Starts with all counters at zero and an unknown state.
    ///
    /// # Errors
    /// If two metrics have the same name, which does not happen.
    pub fn new() -> Result<Self, prometheus::Error> {
        Ok(Self { metrics: Arc::new(Metrics::new()?), health: Arc::default() })
    }
}
