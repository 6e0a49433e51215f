//! The settings that may change while the pipeline runs.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use taskpipeline_kv::{MAX_KEYS_PER_WRITE, RequestBudget};

use super::RetryPolicy;

/// The pace and the retries of the writes to KV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// When failed writes are retried.
    pub retry: RetryPolicy,
    /// How many requests KV may receive in a period.
    pub request_budget: RequestBudget,
    /// The time-out of one request.
    pub request_timeout: Duration,
    /// The least time between two writes of one task. KV allows about one a second.
    pub min_write_interval: Duration,
    /// The most keys of one bulk write. The projector starts with fewer.
    pub max_keys: NonZeroU16,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            retry: RetryPolicy::default(),
            request_budget: RequestBudget::default(),
            request_timeout: Duration::from_secs(10),
            min_write_interval: Duration::from_secs(1),
            max_keys: MAX_KEYS_PER_WRITE,
        }
    }
}

impl Tuning {
    /// The part of one of `replicas` replicas that share the request budget and cannot coordinate.
    #[must_use]
    pub fn shared_by(self, replicas: NonZeroU32) -> Self {
        Self { request_budget: self.request_budget.shared_by(replicas), ..self }
    }
}
