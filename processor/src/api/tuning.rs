//! From a spec to what may change in a running replica. Pure. The API server has checked most of it; a file has not been
//! near one.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::num::{NonZeroU16, NonZeroU32};

use super::{Mode, TaskPipelineSpec, defaults};
use crate::config::Tuning;
use crate::kv::{MAX_KEYS_PER_WRITE, RequestBudget};
use crate::retry::RetryPolicy;

/// Every field at fault, by its path, with what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct TuningError(pub Vec<String>);

impl TryFrom<&TaskPipelineSpec> for Tuning {
    type Error = TuningError;

    fn try_from(spec: &TaskPipelineSpec) -> Result<Self, TuningError> {
        let mut faults = Vec::new();
        let max_attempts = from_one("spec.retry.maxAttempts", spec.retry.max_attempts, &mut faults);
        let requests =
            from_one("spec.kv.requestBudget.requests", spec.kv.request_budget.requests, &mut faults);
        let max_keys = from_one("spec.kv.batch.maxKeys", spec.kv.batch.max_keys, &mut faults);
        if max_keys > u32::from(MAX_KEYS_PER_WRITE.get()).try_into().unwrap_or(NonZeroU32::MAX) {
            faults.push(format!("spec.kv.batch.maxKeys: must be at most {MAX_KEYS_PER_WRITE}"));
        }
        if spec.retry.delays.is_empty() {
            faults.push("spec.retry.delays: must hold at least one delay".to_owned());
        }
        if spec.kv.request_budget.period < defaults::shortest_period() {
            faults.push("spec.kv.requestBudget.period: must be at least 1s".to_owned());
        }
        if spec.kv.request_timeout.get().is_zero() {
            faults.push("spec.kv.requestTimeout: must be more than 0s".to_owned());
        }
        if spec.delivery.mode == Mode::Durable
            && spec.kv.request_timeout.get() > spec.kv.settle_after.get() / 3
        {
            faults.push(format!(
                "spec.kv.requestTimeout: must be at most a third of spec.kv.settleAfter ({}), got {}",
                spec.kv.settle_after, spec.kv.request_timeout
            ));
        }
        if !faults.is_empty() {
            return Err(TuningError(faults));
        }
        Ok(Self {
            retry: RetryPolicy {
                max_attempts,
                delays: spec.retry.delays.iter().map(|delay| delay.get()).collect(),
            },
            request_budget: RequestBudget { requests, period: spec.kv.request_budget.period.get() },
            request_timeout: spec.kv.request_timeout.get(),
            min_write_interval: spec.kv.min_write_interval.get(),
            max_keys: NonZeroU16::try_from(max_keys).unwrap_or(MAX_KEYS_PER_WRITE),
        })
    }
}

fn from_one(field: &str, number: i32, faults: &mut Vec<String>) -> NonZeroU32 {
    let checked = u32::try_from(number).ok().and_then(NonZeroU32::new);
    checked.unwrap_or_else(|| {
        faults.push(format!("{field}: must be at least 1, got {number}"));
        NonZeroU32::MIN
    })
}
