//! Reads the settings of a pipeline from variables; [`super::variables`] renders them.

use std::num::NonZeroU8;
use std::time::Duration;

use taskpipeline_kv::{MAX_KEYS_PER_WRITE, RequestBudget};

use super::super::{
    CoreSettings, Delivery, DurableSettings, EventSettings, PipelineSettings, RetryPolicy, Room, Setting,
    Tuning,
};
use super::{Environment, parse_duration};

impl Environment<'_> {
    pub(super) fn pipeline(&mut self) -> PipelineSettings {
        let events = self.events();
        let delivery = self.delivery();
        let tuning = self.tuning(&delivery);
        let shutdown_grace =
            self.duration_of(Setting::ShutdownGrace, PipelineSettings::default().shutdown_grace);
        let settings = PipelineSettings { events, delivery, tuning, shutdown_grace };
        for fault in settings.faults() {
            self.fault(&fault);
        }
        settings
    }

    pub(super) fn events(&mut self) -> EventSettings {
        let default = EventSettings::default();
        let text = |setting: Setting, default| self.text(setting.variable()).unwrap_or(default);
        EventSettings {
            subject_prefix: text(Setting::SubjectPrefix, default.subject_prefix),
            queue_group: text(Setting::QueueGroup, default.queue_group),
        }
    }

    pub(super) fn durable(&mut self) -> DurableSettings {
        let default = DurableSettings::default();
        let copies = self.parsed(Setting::StreamReplicas.variable(), "1, 3 or 5", NonZeroU8::MIN);
        DurableSettings {
            stream: self.text(Setting::StreamName.variable()).unwrap_or(default.stream),
            replicas: usize::from(copies.get()),
            max_age: self.duration_of(Setting::StreamMaxAge, default.max_age),
            max_event_bytes: self.parsed(
                Setting::StreamMaxEventBytes.variable(),
                "a whole number of bytes",
                default.max_event_bytes,
            ),
            room: Room {
                events: self.size(Setting::StreamMaxBytes.variable()),
                ledger: self.size(Setting::LedgerMaxBytes.variable()),
                dead_letters: self.size(Setting::DeadLettersMaxBytes.variable()),
            },
            ack_wait: self.duration_of(Setting::AckWait, default.ack_wait),
            settle_after: self.duration_of(Setting::SettleAfter, default.settle_after),
        }
    }

    fn delivery(&mut self) -> Delivery {
        let durable = self.durable();
        match self.text(Setting::DeliveryMode.variable()).as_deref() {
            Some("Core") => {
                let replicas = self.parsed(
                    Setting::CoreReplicas.variable(),
                    "a number from 1",
                    CoreSettings::default().replicas,
                );
                Delivery::Core(CoreSettings { replicas })
            }
            Some("Durable") | None => Delivery::Durable(durable),
            Some(_) => {
                self.fault(&Setting::DeliveryMode.is("must be Durable or Core"));
                Delivery::Durable(durable)
            }
        }
    }

    fn tuning(&mut self, delivery: &Delivery) -> Tuning {
        let default = Tuning::default();
        // If only SETTLE_AFTER is set, the default of the time-out follows it.
        let request_timeout = default.request_timeout.min(delivery.longest_request());
        let max_attempts =
            self.parsed(Setting::RetryMaxAttempts.variable(), "a number from 1", default.retry.max_attempts);
        Tuning {
            retry: RetryPolicy { max_attempts, delays: self.delays(default.retry.delays) },
            request_budget: self.request_budget(default.request_budget),
            request_timeout: self.duration_of(Setting::RequestTimeout, request_timeout),
            min_write_interval: self.duration_of(Setting::MinWriteInterval, default.min_write_interval),
            max_keys: self
                .parsed(Setting::BatchMaxKeys.variable(), "a number from 1 to 10000", default.max_keys)
                .min(MAX_KEYS_PER_WRITE),
        }
    }

    fn delays(&mut self, default: Vec<Duration>) -> Vec<Duration> {
        let Some(text) = self.text(Setting::RetryDelays.variable()) else { return default };
        let delays: Result<Vec<_>, _> = text.split(',').map(|part| parse_duration(part.trim())).collect();
        delays.unwrap_or_else(|_| {
            self.fault(&Setting::RetryDelays.is("must be durations such as 1s,3s,10s, each at most 87600h"));
            default
        })
    }

    fn request_budget(&mut self, default: RequestBudget) -> RequestBudget {
        let Some(text) = self.text(Setting::RequestBudget.variable()) else { return default };
        let parsed = text.split_once('/').and_then(|(requests, period)| {
            let period = parse_duration(period.trim()).ok()?;
            Some(RequestBudget { requests: requests.trim().parse().ok()?, period })
        });
        parsed.unwrap_or_else(|| {
            self.fault(&Setting::RequestBudget.is("must be requests in a time, such as 1100/5m"));
            default
        })
    }

    fn duration_of(&mut self, setting: Setting, default: Duration) -> Duration {
        self.duration(setting.variable(), default)
    }
}
