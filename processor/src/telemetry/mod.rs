//! What the outside can see: logs, metrics, health. Nothing here changes what the pipeline does.

pub mod health;
pub mod logs;
pub mod metrics;
