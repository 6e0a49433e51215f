//! The settings of a pipeline: types, defaults, and which of them go together. Each default stands here and nowhere else.
//!
//! Two sources bring them: the [`Environment`], and a TaskPipeline (in the crate of the operator). Both name what is wrong by
//! [`Setting`], each in its own words.

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

/// The longest duration that a setting may have: ten years. Longer ones are mistakes, and sums of them cannot be counted.
pub const LONGEST_DURATION: Duration = Duration::from_hours(10 * 365 * 24);

/// The bounds of [`DurableSettings::max_event_bytes`]: 64 MiB is the most that nats-server allows (`max_payload`).
pub const EVENT_BYTES: std::ops::RangeInclusive<i32> = 1_024..=64 << 20;

/// Everything a replica needs to know.
#[derive(Debug)]
pub struct Settings {
    /// Where events come from, and the login there.
    pub connection: NatsConnection,
    /// Where tasks go, and the token for it.
    pub kv: KvSettings,
    /// The rest, which holds no secret.
    pub pipeline: PipelineSettings,
}

/// The settings of a pipeline except its two ends and the logins there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineSettings {
    /// By which subjects and in which queue group events are taken.
    pub events: EventSettings,
    /// What is promised about events.
    pub delivery: Delivery,
    /// What paces and repeats the writes.
    pub tuning: Tuning,
    /// How long a drain may take.
    pub shutdown_grace: Duration,
}

/// By which subjects events come, and who shares them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSettings {
    /// `tasks` makes `tasks.created` and so on.
    pub subject_prefix: String,
    /// Each event goes to one of the replicas that share it.
    pub queue_group: String,
}

impl Default for EventSettings {
    fn default() -> Self {
        Self { subject_prefix: "tasks".to_owned(), queue_group: "tasks-processor".to_owned() }
    }
}

/// What is promised about events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Nothing is lost: events wait in a stream, tasks in a ledger.
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
    /// The stream's name: created if it is missing.
    pub stream: String,
    /// On how many servers streams are kept that are created.
    pub replicas: usize,
    /// For a stream that is created: how long an event may wait to be taken in.
    pub max_age: Duration,
    /// For a stream that is created: the largest event in bytes, with its headers; see [`EVENT_BYTES`].
    pub max_event_bytes: i32,
    /// How much room each stream may take up, as far as it is set.
    pub room: Room,
    /// After how long another replica gets an event that one has taken and not acknowledged.
    pub ack_wait: Duration,
    /// How long after it was sent a request may still take effect at Cloudflare's. What was in doubt is written again then.
    pub settle_after: Duration,
}

impl Default for DurableSettings {
    fn default() -> Self {
        Self {
            stream: "TASKS".to_owned(),
            replicas: 1,
            max_age: Duration::from_hours(72),
            // Far above any title and description that people write; few enough that a burst of them fits into memory.
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
    /// How long a request to KV may take at most: in mode `Durable` a third of the settle time. A request that times out may
    /// have waited as long on its way, and may take as long again to take effect: after the settle time it is taken for over,
    /// and a write that took effect later would stay.
    #[must_use]
    pub fn longest_request(&self) -> Duration {
        match self {
            Self::Durable(durable) => durable.settle_after / 3,
            Self::Core(_) => Duration::MAX,
        }
    }

    /// How many replicas share the request budget without a word between them: in mode `Durable` one writes to KV, and has
    /// all of it.
    #[must_use]
    pub fn sharers(&self) -> NonZeroU32 {
        match self {
            Self::Durable(_) => NonZeroU32::MIN,
            Self::Core(core) => core.replicas,
        }
    }

    /// Whether these settings go together with the delivery.
    ///
    /// # Errors
    /// Which does not, and what to do.
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
             effect later could put an old task over a newer one for good. Make it shorter, or SETTLE_AFTER longer",
            shown(most.saturating_mul(3)),
            shown(timeout)
        )))
    }
}

impl PipelineSettings {
    /// Every setting that cannot work, by itself or with the others; none, where a replica can be started with these.
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
    /// The fault of the subject prefix; that of the queue group depends on the delivery.
    pub(crate) fn fault(&self) -> Option<Fault> {
        (!is_subject(&self.subject_prefix)).then(|| Setting::SubjectPrefix.is(SUBJECT_RULE))
    }
}

impl DurableSettings {
    /// As [`PipelineSettings::faults`]; of the queue group too, after which the consumer and the ledger are named.
    pub(crate) fn faults(&self, queue_group: &str) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (setting, text) in
            [(Setting::StreamName, self.stream.as_str()), (Setting::QueueGroup, queue_group)]
        {
            if !is_name(text) {
                faults.push(setting.is(
                    "must be made of letters, digits, _ and single - between them, since the names of streams, buckets \
                     and consumers are made of it",
                ));
            }
        }
        if self.max_age <= self.settle_after {
            faults.push(Setting::StreamMaxAge.is(
                "must be longer than SETTLE_AFTER (spec.kv.settleAfter): deletes are remembered for about as long, and have \
                 to outlive the requests that could undo them",
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

const SUBJECT_RULE: &str = "must be made of letters, digits, - and _, with single dots between";

/// Whether it is made of tokens without wildcards.
fn is_subject(text: &str) -> bool {
    text.split('.').all(is_token)
}

fn is_token(token: &str) -> bool {
    !token.is_empty() && token.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

/// Whether a stream, bucket or consumer may be called so, and two such names joined by `--` can be told apart.
fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && is_token(text)
        && !text.contains("--")
        && !text.starts_with('-')
        && !text.ends_with('-')
}
