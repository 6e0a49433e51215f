//! The two names of each setting: an environment variable, and a field of a TaskPipeline.

use std::fmt;

/// A setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Setting {
    /// Sets [`super::EventSettings::subject_prefix`].
    SubjectPrefix,
    /// Sets [`super::EventSettings::queue_group`].
    QueueGroup,
    /// Selects the [`super::Delivery`].
    DeliveryMode,
    /// Sets [`super::DurableSettings::stream`].
    StreamName,
    /// Sets [`super::DurableSettings::replicas`].
    StreamReplicas,
    /// Sets [`super::DurableSettings::max_age`].
    StreamMaxAge,
    /// Sets [`super::DurableSettings::max_event_bytes`].
    StreamMaxEventBytes,
    /// Sets [`super::Room::events`].
    StreamMaxBytes,
    /// Sets [`super::Room::ledger`].
    LedgerMaxBytes,
    /// Sets [`super::Room::dead_letters`].
    DeadLettersMaxBytes,
    /// Sets [`super::DurableSettings::ack_wait`].
    AckWait,
    /// Sets [`super::DurableSettings::settle_after`].
    SettleAfter,
    /// Sets [`super::CoreSettings::replicas`].
    CoreReplicas,
    /// Sets [`super::RetryPolicy::max_attempts`].
    RetryMaxAttempts,
    /// Sets [`super::RetryPolicy::delays`].
    RetryDelays,
    /// Sets [`super::Tuning::request_budget`].
    RequestBudget,
    /// Sets [`super::Tuning::request_timeout`].
    RequestTimeout,
    /// Sets [`super::Tuning::min_write_interval`].
    MinWriteInterval,
    /// Sets [`super::Tuning::max_keys`].
    BatchMaxKeys,
    /// Sets [`super::PipelineSettings::shutdown_grace`].
    ShutdownGrace,
}

/// An invalid setting, and its rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The setting at fault.
    pub setting: Setting,
    /// The rule that the setting breaks: what it must be.
    pub rule: String,
}

impl Setting {
    /// The name of the environment variable.
    #[must_use]
    pub fn variable(self) -> &'static str {
        self.names().0
    }

    /// The path of the field in a TaskPipeline.
    #[must_use]
    pub fn path(self) -> &'static str {
        self.names().1
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::SubjectPrefix => ("SUBJECT_PREFIX", "spec.nats.subjectPrefix"),
            Self::QueueGroup => ("QUEUE_GROUP", "spec.nats.queueGroup"),
            Self::DeliveryMode => ("DELIVERY_MODE", "spec.delivery.mode"),
            Self::StreamName => ("STREAM_NAME", "spec.delivery.stream.name"),
            Self::StreamReplicas => ("STREAM_REPLICAS", "spec.delivery.stream.replicas"),
            Self::StreamMaxAge => ("STREAM_MAX_AGE", "spec.delivery.stream.maxAge"),
            Self::StreamMaxEventBytes => ("STREAM_MAX_EVENT_BYTES", "spec.delivery.stream.maxEventBytes"),
            Self::StreamMaxBytes => ("STREAM_MAX_BYTES", "spec.delivery.room.events"),
            Self::LedgerMaxBytes => ("LEDGER_MAX_BYTES", "spec.delivery.room.ledger"),
            Self::DeadLettersMaxBytes => ("DEAD_LETTERS_MAX_BYTES", "spec.delivery.room.deadLetters"),
            Self::AckWait => ("ACK_WAIT", "spec.processor.env.ACK_WAIT"),
            Self::SettleAfter => ("SETTLE_AFTER", "spec.kv.settleAfter"),
            Self::CoreReplicas => ("CORE_REPLICAS", "spec.replicas"),
            Self::RetryMaxAttempts => ("RETRY_MAX_ATTEMPTS", "spec.retry.maxAttempts"),
            Self::RetryDelays => ("RETRY_DELAYS", "spec.retry.delays"),
            Self::RequestBudget => ("REQUEST_BUDGET", "spec.kv.requestBudget"),
            Self::RequestTimeout => ("REQUEST_TIMEOUT", "spec.kv.requestTimeout"),
            Self::MinWriteInterval => ("MIN_WRITE_INTERVAL", "spec.kv.minWriteInterval"),
            Self::BatchMaxKeys => ("BATCH_MAX_KEYS", "spec.kv.batch.maxKeys"),
            Self::ShutdownGrace => ("SHUTDOWN_GRACE", "spec.processor.env.SHUTDOWN_GRACE"),
        }
    }

    /// Returns a fault of this setting with this rule.
    #[must_use]
    pub fn is(self, rule: impl fmt::Display) -> Fault {
        Fault { setting: self, rule: rule.to_string() }
    }
}

impl Fault {
    /// The text for people who set environment variables.
    #[must_use]
    pub fn by_variable(&self) -> String {
        format!("{}: {}", self.setting.variable(), self.rule)
    }

    /// The text for people who edit a TaskPipeline.
    #[must_use]
    pub fn by_path(&self) -> String {
        format!("{}: {}", self.setting.path(), self.rule)
    }
}
