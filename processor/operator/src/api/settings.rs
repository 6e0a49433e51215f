//! Converts a spec to the settings of a pipeline, for the operator and the replicas. Pure. Checks everything, because a spec
//! from a file has not passed an API server.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use taskpipeline_kv::{MAX_KEYS_PER_WRITE, RequestBudget};
use taskpipeline_pipeline::settings::{
    CoreSettings, Delivery, DurableSettings, EventSettings, Fault, PipelineSettings, RetryPolicy, Room,
    Setting, Tuning, parse_duration,
};

use super::{Mode, TaskPipelineSpec};

/// The invalid fields of a spec, each with its path and the rule that it breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct SpecError(pub Vec<String>);

impl TryFrom<&TaskPipelineSpec> for PipelineSettings {
    type Error = SpecError;

    fn try_from(spec: &TaskPipelineSpec) -> Result<Self, SpecError> {
        let mut faults = Faults::default();
        let default = Self::default();
        let settings = Self {
            events: EventSettings {
                subject_prefix: spec.nats.subject_prefix.clone(),
                queue_group: spec.nats.queue_group.clone(),
            },
            delivery: delivery(spec, &mut faults),
            tuning: tuning(spec, &mut faults),
            shutdown_grace: faults.duration(spec, Setting::ShutdownGrace, default.shutdown_grace),
        };
        faults.0.extend(settings.faults().iter().map(Fault::by_path));
        if faults.0.is_empty() { Ok(settings) } else { Err(SpecError(faults.0)) }
    }
}

fn delivery(spec: &TaskPipelineSpec, faults: &mut Faults) -> Delivery {
    let said = &spec.delivery;
    if said.mode == Mode::Core {
        for (field, is_set) in [("stream", said.stream.is_some()), ("room", said.room.is_some())] {
            if is_set {
                faults.0.push(format!("spec.delivery.{field}: has no meaning in mode Core"));
            }
        }
        // The replica count comes from the status, because it changes while the pipeline runs.
        return Delivery::Core(CoreSettings::default());
    }
    let stream = said.stream.clone().unwrap_or_default();
    let room = said.room.unwrap_or_default();
    let default = DurableSettings::default();
    Delivery::Durable(DurableSettings {
        stream: stream.name,
        replicas: usize::try_from(faults.at_least_one(Setting::StreamReplicas, stream.replicas).get())
            .unwrap_or(1),
        max_age: stream.max_age.get(),
        max_event_bytes: stream.max_event_bytes,
        room: Room {
            events: room.events.map(|size| size.0),
            ledger: room.ledger.map(|size| size.0),
            dead_letters: room.dead_letters.map(|size| size.0),
        },
        ack_wait: faults.duration(spec, Setting::AckWait, default.ack_wait),
        settle_after: spec.kv.settle_after.get(),
    })
}

fn tuning(spec: &TaskPipelineSpec, faults: &mut Faults) -> Tuning {
    let kv = &spec.kv;
    let max_keys = faults.at_least_one(Setting::BatchMaxKeys, kv.batch.max_keys);
    let max_keys = NonZeroU16::try_from(max_keys).ok().filter(|keys| *keys <= MAX_KEYS_PER_WRITE);
    if max_keys.is_none() {
        faults.add(&Setting::BatchMaxKeys.is(format!("must be at most {MAX_KEYS_PER_WRITE}")));
    }
    Tuning {
        retry: RetryPolicy {
            max_attempts: faults.at_least_one(Setting::RetryMaxAttempts, spec.retry.max_attempts),
            delays: spec.retry.delays.iter().map(|delay| delay.get()).collect(),
        },
        request_budget: RequestBudget {
            requests: faults.at_least_one(Setting::RequestBudget, kv.request_budget.requests),
            period: kv.request_budget.period.get(),
        },
        request_timeout: kv.request_timeout.get(),
        min_write_interval: kv.min_write_interval.get(),
        max_keys: max_keys.unwrap_or(MAX_KEYS_PER_WRITE),
    }
}

/// The faults so far. Each method returns a usable value even for an invalid field, so the check continues.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, fault: &Fault) {
        self.0.push(fault.by_path());
    }

    fn at_least_one(
        &mut self,
        setting: Setting,
        number: impl TryInto<u32> + fmt::Display + Copy,
    ) -> NonZeroU32 {
        let checked = number.try_into().ok().and_then(NonZeroU32::new);
        checked.unwrap_or_else(|| {
            self.add(&setting.is(format!("must be at least 1, got {number}")));
            NonZeroU32::MIN
        })
    }

    /// A duration among the environment variables of the pods.
    fn duration(&mut self, spec: &TaskPipelineSpec, setting: Setting, default: Duration) -> Duration {
        let Some(text) = spec.processor.env.get(setting.variable()).filter(|text| !text.trim().is_empty())
        else {
            return default;
        };
        parse_duration(text.trim()).unwrap_or_else(|what| {
            self.add(&setting.is(what));
            default
        })
    }
}
