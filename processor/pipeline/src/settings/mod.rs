//! The settings of a pipeline: types, defaults and the rules between them. Each default is only
//! here.
//!
//! Settings come from the [`Environment`] or from a TaskPipeline (in the crate of the operator).
//! Both report an invalid [`Setting`] by its name there.

mod environment;
mod login;
mod named;
mod nats;
mod retry;
mod size;
mod tuning;

use std::num::NonZeroU32;
use std::time::Duration;

use taskpipeline_kv::KvSettings;

pub use environment::{ConfigError, Environment, Stored, format_duration, parse_duration};
pub(crate) use login::LoginFile;
pub use named::{Fault, Setting};
pub use nats::{NatsAuth, NatsConnection, NatsTls, scheme_fault};
pub use retry::RetryPolicy;
pub use size::{Room, Size, SizeError};
pub use tuning::Tuning;

/// The longest duration that a setting may have: ten years. Longer ones are mistakes, and their
/// sums overflow.
pub const LONGEST_DURATION: Duration = Duration::from_hours(10 * 365 * 24);

/// The bounds of [`DurableSettings::max_event_bytes`]. nats-server allows at most 64 MiB
/// (`max_payload`).
pub const EVENT_BYTES: std::ops::RangeInclusive<i32> = 1_024..=64 << 20;

/// All settings of a replica.
#[derive(Debug)]
pub struct Settings {
    /// The address of NATS, and the login there.
    pub connection: NatsConnection,
    /// The KV namespace, and its token.
    pub kv: KvSettings,
    /// All other settings. They contain no secret.
    pub pipeline: PipelineSettings,
}

/// The settings of a pipeline without its connections to NATS and KV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineSettings {
    /// The subjects and the queue group of the events.
    pub events: EventSettings,
    /// The delivery guarantee.
    pub delivery: Delivery,
    /// The pace and the retries of writes.
    pub tuning: Tuning,
    /// How long a drain may take.
    pub shutdown_grace: Duration,
}

/// The subjects of the events, and the replicas that share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSettings {
    /// The prefix of the subjects: `tasks` gives `tasks.created` and so on.
    pub subject_prefix: String,
    /// The name that the replicas share. NATS gives each event to one of them.
    pub queue_group: String,
}

impl Default for EventSettings {
    fn default() -> Self {
        Self { subject_prefix: "tasks".to_owned(), queue_group: "tasks-processor".to_owned() }
    }
}

/// The delivery guarantee.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// No event is lost: events wait in a stream, and tasks in a ledger.
    Durable(DurableSettings),
    /// At most once: NATS core, state in memory.
    Core(CoreSettings),
}

/// The settings of mode `Core`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreSettings {
    /// How many replicas share the request budget.
    pub replicas: NonZeroU32,
}

impl Default for CoreSettings {
    fn default() -> Self {
        Self { replicas: NonZeroU32::MIN }
    }
}

/// The stream that captures the events, and how it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableSettings {
    /// The name of the stream. A replica creates it if it is missing.
    pub stream: String,
    /// The number of servers that keep each created stream.
    pub replicas: usize,
    /// For a created stream: how long an event may wait to be taken in.
    pub max_age: Duration,
    /// For a created stream: the size of the largest event in bytes, with its headers; see
    /// [`EVENT_BYTES`].
    pub max_event_bytes: i32,
    /// The bytes that each stream may use.
    pub room: Room,
    /// The time after which NATS delivers an unacknowledged event to another replica.
    pub ack_wait: Duration,
    /// How long after its start a request may still take effect at Cloudflare. Then the writer
    /// writes tasks in doubt again.
    pub settle_after: Duration,
}

impl Default for DurableSettings {
    fn default() -> Self {
        Self {
            stream: "TASKS".to_owned(),
            replicas: 1,
            max_age: Duration::from_hours(72),
            // Far above titles and descriptions that people write, and small enough that a burst
            // fits into memory.
            max_event_bytes: 65_536,
            room: Room::default(),
            ack_wait: Duration::from_secs(30),
            settle_after: Duration::from_secs(30),
        }
    }
}

impl Default for PipelineSettings {
    fn default() -> Self {
        Self {
            events: EventSettings::default(),
            delivery: Delivery::Durable(DurableSettings::default()),
            tuning: Tuning::default(),
            shutdown_grace: Duration::from_secs(25),
        }
    }
}

impl Delivery {
    /// The longest time-out of a request to KV: in mode `Durable` a third of the settle time.
    ///
    /// A request that times out may have waited that long on its way, and may need that long again
    /// to take effect. After the settle time the pipeline counts it as over. A write that took
    /// effect later would stay in KV.
    #[must_use]
    pub fn longest_request(&self) -> Duration {
        match self {
            Self::Durable(durable) => durable.settle_after / 3,
            Self::Core(_) => Duration::MAX,
        }
    }

    /// The number of replicas that share the request budget without coordination.
    ///
    /// In mode `Durable` only the writer sends requests, and it has the whole budget.
    #[must_use]
    pub fn sharers(&self) -> NonZeroU32 {
        match self {
            Self::Durable(_) => NonZeroU32::MIN,
            Self::Core(core) => core.replicas,
        }
    }

    /// Checks whether these settings are valid with this delivery.
    ///
    /// # Errors
    /// If a setting is not; the fault says which one, and what to do.
    pub fn admits(&self, tuning: &Tuning) -> Result<(), Fault> {
        let (timeout, most) = (tuning.request_timeout, self.longest_request());
        if timeout.is_zero() {
            return Err(Setting::RequestTimeout.is("must be more than 0s"));
        }
        if timeout <= most {
            return Ok(());
        }
        let shown = format_duration;
        Err(Setting::RequestTimeout.is(format!(
            "must be at most a third of SETTLE_AFTER (spec.kv.settleAfter), which is {}, and is {}: a request that takes \
             effect later could overwrite a newer task permanently. Decrease it, or increase SETTLE_AFTER",
            shown(most.saturating_mul(3)),
            shown(timeout)
        )))
    }
}

impl PipelineSettings {
    /// Every setting that is invalid, by itself or with others. If there are none, a replica can
    /// start.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        faults.extend(self.events.fault());
        match &self.delivery {
            Delivery::Durable(durable) => faults.extend(durable.faults(&self.events.queue_group)),
            Delivery::Core(_) if !is_subject(&self.events.queue_group) => {
                faults.push(Setting::QueueGroup.is(SUBJECT_RULE));
            }
            Delivery::Core(_) => {}
        }
        if self.tuning.retry.delays.is_empty() {
            faults.push(Setting::RetryDelays.is("must hold at least one delay"));
        }
        if self.tuning.request_budget.period < Duration::from_secs(1) {
            faults.push(Setting::RequestBudget.is("must be a number of requests in at least 1s"));
        }
        faults.extend(self.delivery.admits(&self.tuning).err());
        faults
    }
}

impl EventSettings {
    /// The fault of the subject prefix. The rule of the queue group depends on the delivery.
    pub(crate) fn fault(&self) -> Option<Fault> {
        (!is_subject(&self.subject_prefix)).then(|| Setting::SubjectPrefix.is(SUBJECT_RULE))
    }
}

impl DurableSettings {
    /// The faults of these settings and of the queue group, which is part of the names of the
    /// consumer and the ledger.
    pub(crate) fn faults(&self, queue_group: &str) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (setting, text) in
            [(Setting::StreamName, self.stream.as_str()), (Setting::QueueGroup, queue_group)]
        {
            if !is_name(text) {
                faults.push(setting.is(
                    "must consist of letters, digits, _ and single - between them, because the names of streams, buckets and \
                     consumers contain it",
                ));
            }
        }
        if self.max_age <= self.settle_after {
            faults.push(Setting::StreamMaxAge.is(
                "must be longer than SETTLE_AFTER (spec.kv.settleAfter): deletes are remembered for about as long, and must \
                 outlive the requests that could undo them",
            ));
        }
        if !EVENT_BYTES.contains(&self.max_event_bytes) {
            let (least, most) = EVENT_BYTES.into_inner();
            faults.push(
                Setting::StreamMaxEventBytes
                    .is(format!("must be a whole number of bytes, {least} to {most}")),
            );
        }
        faults
    }
}

const SUBJECT_RULE: &str = "must consist of letters, digits, - and _, with single dots between";

/// Returns whether the text is a subject without wildcards.
fn is_subject(text: &str) -> bool {
    text.split('.').all(is_token)
}

fn is_token(token: &str) -> bool {
    !token.is_empty() && token.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

/// Returns whether the text can be the name of a stream, bucket or consumer. Two such names joined
/// by `--` stay distinct.
fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && is_token(text)
        && !text.contains("--")
        && !text.starts_with('-')
        && !text.ends_with('-')
}
