//! Renders the settings of a pipeline as variables; [`super::pipeline`] reads them.

use super::super::{Delivery, PipelineSettings, Setting};
use super::format_duration;

impl PipelineSettings {
    /// The variables that give these settings to a replica. Settings without a value are left out.
    #[must_use]
    pub fn variables(&self) -> Vec<(Setting, String)> {
        let mut all = self.fixed_variables();
        let tuning = &self.tuning;
        let delays: Vec<_> = tuning.retry.delays.iter().copied().map(format_duration).collect();
        let budget = tuning.request_budget;
        all.extend([
            (Setting::RetryMaxAttempts, tuning.retry.max_attempts.to_string()),
            (Setting::RetryDelays, delays.join(",")),
            (Setting::RequestBudget, format!("{}/{}", budget.requests, format_duration(budget.period))),
            (Setting::RequestTimeout, format_duration(tuning.request_timeout)),
            (Setting::MinWriteInterval, format_duration(tuning.min_write_interval)),
            (Setting::BatchMaxKeys, tuning.max_keys.to_string()),
        ]);
        all
    }

    /// [`Self::variables`] without the settings that may change while a replica runs.
    #[must_use]
    pub fn fixed_variables(&self) -> Vec<(Setting, String)> {
        let mut all = vec![
            (Setting::SubjectPrefix, self.events.subject_prefix.clone()),
            (Setting::QueueGroup, self.events.queue_group.clone()),
        ];
        match &self.delivery {
            Delivery::Core(core) => {
                all.push((Setting::DeliveryMode, "Core".to_owned()));
                all.push((Setting::CoreReplicas, core.replicas.to_string()));
            }
            Delivery::Durable(durable) => {
                let room = durable.room;
                let rooms = [
                    (Setting::StreamMaxBytes, room.events),
                    (Setting::LedgerMaxBytes, room.ledger),
                    (Setting::DeadLettersMaxBytes, room.dead_letters),
                ];
                all.extend([
                    (Setting::DeliveryMode, "Durable".to_owned()),
                    (Setting::StreamName, durable.stream.clone()),
                    (Setting::StreamReplicas, durable.replicas.to_string()),
                    (Setting::StreamMaxAge, format_duration(durable.max_age)),
                    (Setting::StreamMaxEventBytes, durable.max_event_bytes.to_string()),
                    (Setting::AckWait, format_duration(durable.ack_wait)),
                    (Setting::SettleAfter, format_duration(durable.settle_after)),
                ]);
                all.extend(
                    rooms.into_iter().filter_map(|(setting, size)| Some((setting, size?.to_string()))),
                );
            }
        }
        all.push((Setting::ShutdownGrace, format_duration(self.shutdown_grace)));
        all
    }
}
