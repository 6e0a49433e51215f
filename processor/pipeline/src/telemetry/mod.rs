//! The parts of a replica that can be seen from outside: metrics and health. Nothing here changes what the pipeline does.

pub mod health;
pub mod metrics;

use std::sync::Arc;

use self::health::Health;
use self::metrics::Metrics;

/// What a process shows of itself.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// What it last saw.
    pub health: Arc<Health>,
}

impl Telemetry {
    /// Begins with nothing counted and nothing seen.
    ///
    /// # Errors
    /// None, unless two metrics had one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        Ok(Self { metrics: Arc::new(Metrics::new()?), health: Arc::default() })
    }
}
