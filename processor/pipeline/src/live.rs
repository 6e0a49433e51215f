//! The settings in effect while the pipeline runs. Every source of new settings (a file, the
//! resource of the pipeline) passes them on here.
//!
//! After refused settings, the last valid ones stay in effect.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::settings::{Delivery, Tuning, format_duration};
use crate::telemetry::metrics::Metrics;

/// The settings in effect, for the source of new ones.
pub struct Live {
    sender: watch::Sender<Tuning>,
    /// The delivery, which does not change while the process runs. The settings must be valid with
    /// it.
    delivery: Delivery,
    /// Why the newest settings were refused, or `None` if they were accepted.
    refused: watch::Sender<Option<String>>,
    metrics: Arc<Metrics>,
}

impl Live {
    /// Starts with these settings. In mode `Core` a replica gets its part of the request budget.
    #[must_use]
    pub fn new(tuning: Tuning, delivery: Delivery, metrics: Arc<Metrics>) -> (Self, watch::Receiver<Tuning>) {
        let tuning = tuning.shared_by(delivery.sharers());
        metrics.set(numbers(&tuning));
        let (sender, receiver) = watch::channel(tuning);
        (Self { sender, delivery, refused: watch::Sender::new(None), metrics }, receiver)
    }

    /// Why the newest settings are not in effect, as a channel.
    #[must_use]
    pub fn refused(&self) -> watch::Receiver<Option<String>> {
        self.refused.subscribe()
    }

    /// Applies new settings, and logs each that differs. Refuses settings that are not valid with
    /// the delivery of this process.
    pub fn accept(&self, new: Tuning) {
        self.accept_shared(new, self.delivery.sharers());
    }

    /// Like [`Self::accept`], with the present number of replicas, which matters in mode `Core`.
    pub fn accept_shared(&self, new: Tuning, replicas: NonZeroU32) {
        if let Err(fault) = self.delivery.admits(&new) {
            return self.refuse(&fault.by_path());
        }
        let new = match self.delivery {
            Delivery::Core(_) => new.shared_by(replicas),
            Delivery::Durable(_) => new,
        };
        self.refused.send_replace(None);
        let changes = differences(&self.sender.borrow(), &new);
        if changes.is_empty() {
            return;
        }
        for change in &changes {
            info!(%change, "applied new settings");
        }
        self.metrics.set(numbers(&new));
        self.sender.send_replace(new);
    }

    /// Refuses new settings; the last ones stay in effect.
    pub fn refuse(&self, why: &str) {
        // Each change of the status brings the same settings again, so a repeated refusal is not
        // logged.
        if self.refused.borrow().as_deref() == Some(why) {
            return;
        }
        warn!(error = %why, "refused the new settings; the last ones stay in effect");
        self.metrics.settings_refused.inc();
        self.refused.send_replace(Some(why.to_owned()));
    }
}

/// A line for each setting that differs, by its name in the resource.
fn differences(old: &Tuning, new: &Tuning) -> Vec<String> {
    let (old, new) = (texts(old), texts(new));
    let changed = old.into_iter().zip(new).filter(|(old, new)| old != new);
    changed.map(|((name, old), (_, new))| format!("{name} is {new} from now on; it was {old}")).collect()
}

fn texts(tuning: &Tuning) -> [(&'static str, String); 7] {
    let span = format_duration;
    let delays: Vec<_> = tuning.retry.delays.iter().copied().map(span).collect();
    [
        ("retry.maxAttempts", tuning.retry.max_attempts.to_string()),
        ("retry.delays", delays.join(", ")),
        ("kv.requestBudget.requests", tuning.request_budget.requests.to_string()),
        ("kv.requestBudget.period", span(tuning.request_budget.period)),
        ("kv.requestTimeout", span(tuning.request_timeout)),
        ("kv.minWriteInterval", span(tuning.min_write_interval)),
        ("kv.batch.maxKeys", tuning.max_keys.to_string()),
    ]
}

/// The values for the metric; durations in seconds.
fn numbers(tuning: &Tuning) -> Vec<(String, f64)> {
    let seconds = |name: &str, duration: Duration| (name.to_owned(), duration.as_secs_f64());
    let number = |name: &str, number: u32| (name.to_owned(), f64::from(number));
    let mut numbers = vec![
        number("retry.maxAttempts", tuning.retry.max_attempts.get()),
        number("kv.requestBudget.requests", tuning.request_budget.requests.get()),
        seconds("kv.requestBudget.period", tuning.request_budget.period),
        seconds("kv.requestTimeout", tuning.request_timeout),
        seconds("kv.minWriteInterval", tuning.min_write_interval),
        number("kv.batch.maxKeys", tuning.max_keys.get().into()),
    ];
    let delays = tuning.retry.delays.iter().enumerate();
    numbers.extend(delays.map(|(n, delay)| seconds(&format!("retry.delays[{n}]"), *delay)));
    numbers
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::settings::DurableSettings;
    use crate::telemetry::health::Health;

    #[test]
    fn what_differs_is_said_with_the_old_and_the_new_value() {
        let old = Tuning::default();
        let mut new = old.clone();
        assert_eq!(differences(&old, &new), Vec::<String>::new());
        new.retry.delays = vec![Duration::from_secs(1)];
        new.request_timeout = Duration::from_secs(5);
        assert_eq!(
            differences(&old, &new),
            [
                "retry.delays is 1s from now on; it was 1s, 3s, 10s, 20s, 30s",
                "kv.requestTimeout is 5s from now on; it was 10s"
            ]
        );
    }

    fn durable() -> Delivery {
        Delivery::Durable(DurableSettings::default())
    }

    #[test]
    fn a_time_out_that_could_outlast_the_settle_time_is_refused() {
        let (live, settings) = Live::new(Tuning::default(), durable(), Arc::new(Metrics::new().unwrap()));
        let refused = live.refused();
        live.accept(Tuning { request_timeout: Duration::from_millis(10_001), ..Tuning::default() });
        assert!(!settings.has_changed().unwrap());
        let why = refused.borrow().clone().unwrap();
        assert!(why.starts_with("spec.kv.requestTimeout: ") && why.contains("settleAfter"), "{why}");
        live.accept(Tuning { request_timeout: Duration::from_secs(9), ..Tuning::default() });
        assert!(settings.has_changed().unwrap() && refused.borrow().is_none());
    }

    #[test]
    fn what_is_refused_leaves_the_last_good_settings_in_effect_and_is_said_until_others_are_accepted() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let (live, settings) = Live::new(Tuning::default(), durable(), Arc::clone(&metrics));
        let refused = live.refused();
        live.refuse("spec.retry.delays: must hold at least one delay");
        live.refuse("spec.retry.delays: must hold at least one delay");
        assert!(!settings.has_changed().unwrap());
        assert!(refused.borrow().is_some());
        assert_eq!(metrics.settings_refused.get(), 1);
        live.accept(Tuning { request_timeout: Duration::from_secs(3), ..Tuning::default() });
        assert!(settings.has_changed().unwrap());
        assert!(refused.borrow().is_none());
        let text = String::from_utf8(metrics.encode(&Health::default()).unwrap()).unwrap();
        assert!(text.contains("taskpipeline_setting{name=\"kv.requestTimeout\"} 3"), "{text}");
    }
}
