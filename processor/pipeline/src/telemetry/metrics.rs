//! The Prometheus metrics, all under `taskpipeline_`. No ids among the labels: their number is bounded.

use std::time::Duration;

use prometheus::{
    Counter, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use taskpipeline_contract::EventKind;

use taskpipeline_kv::{Failure, Operation};

use super::health::{Health, NatsState};
use crate::reason::Reason;

/// "$5.00/million" for writes and for deletes. <https://developers.cloudflare.com/kv/platform/pricing/>
const DOLLARS_PER_KEY: f64 = 5e-6;

/// All metrics of one pipeline, in a registry of its own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    received: IntCounterVec,
    landed: Histogram,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    keys: IntCounterVec,
    /// Events dropped because KV did not take them as fast as they came.
    pub events_dropped: IntCounter,
    /// Messages that are no event.
    pub events_invalid: IntCounter,
    /// Events whose tasks are in the ledger.
    pub events_stored: IntCounter,
    /// Events that were delivered before.
    pub redeliveries: IntCounter,
    /// Events that the ledger or the dead letters' stream does not take at the moment.
    pub events_held: IntGauge,
    /// Messages on subjects that are not this pipeline's.
    pub events_foreign: IntCounter,
    /// Events that the stream dropped before they were taken in.
    pub events_lost: IntCounter,
    /// Writes to the ledger that another replica was ahead of.
    pub ledger_conflicts: IntCounter,
    /// How often a task's attempts were used up, and counted anew.
    pub attempts_used_up: IntCounter,
    /// 1 while this replica writes to KV.
    projector_active: IntGauge,
    /// How often this replica gave up writing to KV, since it did not move though work waited.
    pub projector_stalls: IntCounter,
    /// Tasks in the projector's hands that KV may not have as they are.
    pub unsettled_tasks: IntGauge,
    /// Those of them that wait in NATS, without their records in memory.
    pub deferred_tasks: IntGauge,
    /// How often a rest between two writes of a task was forgotten before its end.
    pub rests_forgotten: IntCounter,
    /// Changes of the ledger that the projector has not read yet.
    pub changes_behind: IntGauge,
    /// The age of the oldest event that is not in the ledger.
    oldest_event_age: Gauge,
    /// How long the stream keeps an event; 0: for ever.
    pub stream_max_age: Gauge,
    /// How many bytes each stream holds.
    pub stream_bytes: IntGaugeVec,
    /// How many bytes each stream may hold; 0: no limit.
    pub stream_max_bytes: IntGaugeVec,
    /// How many bytes all streams of the NATS account hold.
    pub account_bytes: IntGauge,
    /// How many they may hold; 0: no limit.
    pub account_max_bytes: IntGauge,
    /// Events in the ledger that were dropped from the stream, to keep room in it.
    pub events_trimmed: IntCounter,
    /// The age of the oldest change that KV may lack, to some seconds.
    oldest_change_age: Gauge,
    /// The settings in effect.
    settings: GaugeVec,
    /// How often new settings were refused.
    pub settings_refused: IntCounter,
    /// Updates of tasks that do not exist.
    pub updates_unknown: IntCounter,
    /// Failed attempts that were followed by another, by key.
    pub retries: IntCounter,
    /// Dead letters published, by reason.
    pub dead_letters: IntCounterVec,
    /// Dead letters that are there.
    dead_letters_stored: IntGauge,
    /// Events received that have not landed.
    pub events_waiting: IntGauge,
    /// Tasks in memory.
    pub tasks_in_memory: IntGauge,
    /// Requests to KV that are out.
    pub requests_in_flight: IntGauge,
    /// Requests that could be sent at once.
    pub budget_available: Gauge,
    /// How many keys a request takes at present.
    pub batch_keys: IntGauge,
    /// Requests of others with the same token.
    pub requests_of_others: IntCounter,
    /// What Cloudflare bills for the keys written.
    cost: Counter,
    /// 1 while connected.
    nats_connected: IntGauge,
    /// How often the client reported that it dropped events.
    pub slow_consumers: IntCounter,
    /// Messages on subjects where only answers belong that answer nothing.
    pub forged_answers: IntCounter,
    /// Messages whose headers no client can read, set aside.
    pub events_unreadable: IntCounter,
}

impl Metrics {
    /// Registers them all.
    ///
    /// # Errors
    /// None, unless two metrics here had one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("taskpipeline".to_owned()), None)?;
        let r = &registry;
        let labelled = |name: &str, help: &str, labels: &[&str]| {
            registered(r, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let counter = |name: &str, help: &str| registered(r, IntCounter::new(name, help)?);
        let gauge = |name: &str, help: &str| registered(r, IntGauge::new(name, help)?);
        let sizes =
            |name: &str, help: &str| registered(r, IntGaugeVec::new(Opts::new(name, help), &["stream"])?);
        // From 1 ms to 2 minutes: an idle pipeline lands an event in one request, a throttled one waits.
        let buckets = || prometheus::exponential_buckets(0.001, 2.0, 18);
        let metrics = Self {
            received: labelled("events_received_total", "Events received from NATS, by kind.", &["kind"])?,
            landed: registered(
                r,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "event_landing_seconds",
                        "From receiving an event to KV's answer that its task is written.",
                    )
                    .buckets(buckets()?),
                )?,
            )?,
            requests: labelled(
                "kv_requests_total",
                "Requests to Cloudflare KV, by operation and outcome.",
                &["operation", "outcome"],
            )?,
            request_seconds: registered(
                r,
                HistogramVec::new(
                    HistogramOpts::new("kv_request_duration_seconds", "How long requests to KV took.")
                        .buckets(buckets()?),
                    &["operation"],
                )?,
            )?,
            keys: labelled(
                "kv_keys_total",
                "Keys in requests that KV answered with success; Cloudflare bills each.",
                &["operation"],
            )?,
            events_dropped: counter(
                "events_dropped_total",
                "Events received and dropped for want of room: KV does not keep up, and Core cannot wait.",
            )?,
            events_invalid: counter("events_invalid_total", "Messages that are no valid event.")?,
            events_stored: counter(
                "events_stored_total",
                "Events taken into the ledger or the dead letters.",
            )?,
            redeliveries: counter(
                "events_redelivered_total",
                "Events that NATS delivered not for the first time.",
            )?,
            events_held: gauge(
                "events_held",
                "Events in this replica that NATS refuses to store in the ledger or the dead letters; they are retried.",
            )?,
            events_foreign: counter(
                "events_foreign_total",
                "Messages that the consumer delivered on subjects of another pipeline, acknowledged and left alone.",
            )?,
            events_lost: counter(
                "events_lost_total",
                "Messages that the stream dropped (max_msgs, max_bytes, max_age, a purge) before they were acknowledged.",
            )?,
            ledger_conflicts: counter(
                "ledger_conflicts_total",
                "Writes to the ledger that another replica was ahead of; they are read and folded again.",
            )?,
            attempts_used_up: counter(
                "kv_attempts_used_up_total",
                "How often a task's attempts to be written were used up; it is tried again later.",
            )?,
            projector_active: gauge("projector_active", "1 on the replica that writes to KV, else 0.")?,
            projector_stalls: counter(
                "projector_stalls_total",
                "How often this replica gave up writing to KV: nothing was written though work waited and nothing excused it.",
            )?,
            unsettled_tasks: gauge(
                "projector_unsettled_tasks",
                "Tasks in the projector's hands that KV may not have as the ledger has them.",
            )?,
            deferred_tasks: gauge(
                "projector_deferred_tasks",
                "Tasks that wait for their rest, their next attempt or the end of a doubt without being kept in memory.",
            )?,
            rests_forgotten: counter(
                "write_rests_forgotten_total",
                "Tasks that may be written sooner than minWriteInterval says: more than 450,000 were written within it.",
            )?,
            changes_behind: gauge(
                "projector_changes_behind",
                "Changes of the ledger that the projector has not read yet.",
            )?,
            oldest_event_age: registered(
                r,
                Gauge::new(
                    "oldest_event_age_seconds",
                    "Age of the oldest event that is not in the ledger yet.",
                )?,
            )?,
            stream_max_age: registered(
                r,
                Gauge::new(
                    "stream_max_age_seconds",
                    "How long the stream keeps an event that is not taken in; 0: for ever, or there is no stream.",
                )?,
            )?,
            stream_bytes: sizes(
                "stream_bytes",
                "Bytes that a stream holds: events, ledger or dead_letters.",
            )?,
            stream_max_bytes: sizes(
                "stream_max_bytes",
                "Bytes that a stream may hold: events, ledger or dead_letters; 0: it has no limit.",
            )?,
            account_bytes: gauge("nats_account_bytes", "Bytes that all streams of the NATS account hold.")?,
            account_max_bytes: gauge(
                "nats_account_max_bytes",
                "Bytes that all streams of the NATS account may hold; 0: it has no limit.",
            )?,
            events_trimmed: counter(
                "events_trimmed_total",
                "Events that are in the ledger, and were dropped from the stream to keep room in it.",
            )?,
            oldest_change_age: registered(
                r,
                Gauge::new(
                    "oldest_change_age_seconds",
                    "Age of the oldest change of the ledger that KV may lack, on the replica that writes to KV.",
                )?,
            )?,
            settings: registered(
                r,
                GaugeVec::new(
                    Opts::new(
                        "setting",
                        "The settings in effect, by their names in the resource; durations in seconds.",
                    ),
                    &["name"],
                )?,
            )?,
            settings_refused: counter(
                "settings_refused_total",
                "How often new settings were refused, and the last good ones stayed in effect.",
            )?,
            updates_unknown: counter(
                "updates_of_unknown_tasks_total",
                "Updates that changed nothing because their task does not exist.",
            )?,
            retries: counter(
                "kv_key_retries_total",
                "Failed attempts, counted for each key, to be repeated.",
            )?,
            dead_letters: labelled("dead_letters_total", "Dead letters published, by reason.", &["reason"])?,
            dead_letters_stored: gauge(
                "dead_letters_stored",
                "Dead letters in their stream, as counted last; large ones count for each part.",
            )?,
            events_waiting: gauge("events_waiting", "Events received that have not landed in KV.")?,
            tasks_in_memory: gauge("tasks_in_memory", "Tasks that are dirty, in a request or at rest.")?,
            requests_in_flight: gauge("kv_requests_in_flight", "Requests to KV without an answer yet.")?,
            budget_available: registered(
                r,
                Gauge::new("kv_budget_available_requests", "Requests the budget allows at once.")?,
            )?,
            batch_keys: gauge("kv_batch_keys", "Keys that one write request takes at present.")?,
            requests_of_others: counter(
                "kv_requests_of_others_total",
                "Requests that KV counted for the same token and this replica did not send, as far as noticed.",
            )?,
            cost: registered(
                r,
                Counter::new(
                    "kv_write_cost_dollars_total",
                    "What Cloudflare bills for the keys put and deleted, beyond what the plan includes.",
                )?,
            )?,
            nats_connected: gauge("nats_connected", "1 while connected to NATS, else 0.")?,
            slow_consumers: counter(
                "nats_slow_consumer_total",
                "How often the NATS client reported that it dropped events.",
            )?,
            forged_answers: counter(
                "nats_forged_answers_total",
                "Messages on this replica's answer subjects that answer nothing it asked; they are ignored.",
            )?,
            events_unreadable: counter(
                "events_unreadable_total",
                "Messages whose headers no NATS client can read; they are dead letters.",
            )?,
            registry,
        };
        // Known label values show as 0 from the start, so that a rate over the first event is right.
        for kind in EventKind::ALL {
            metrics.received.with_label_values(&[kind.as_str()]);
        }
        for stream in ["events", "ledger", "dead_letters"] {
            metrics.stream_bytes.with_label_values(&[stream]);
            metrics.stream_max_bytes.with_label_values(&[stream]);
        }
        for reason in Reason::ALL {
            metrics.dead_letters.with_label_values(&[reason.as_str()]);
        }
        for operation in Operation::ALL {
            metrics.keys.with_label_values(&[operation.label()]);
            metrics.request_seconds.with_label_values(&[operation.label()]);
            for outcome in OUTCOMES {
                metrics.requests.with_label_values(&[operation.label(), outcome]);
            }
        }
        Ok(metrics)
    }

    /// An event came in.
    pub fn received(&self, kind: EventKind) {
        self.received.with_label_values(&[kind.as_str()]).inc();
    }

    /// These settings are in effect now.
    pub fn set(&self, settings: impl IntoIterator<Item = (String, f64)>) {
        // A list may have become shorter.
        self.settings.reset();
        for (name, value) in settings {
            self.settings.with_label_values(&[&name]).set(value);
        }
    }

    /// An event landed this long after it was received.
    pub fn landed(&self, after: Duration) {
        self.landed.observe(after.as_secs_f64());
    }

    /// A request was answered, or was given up.
    pub fn request(&self, operation: Operation, keys: usize, failure: Option<&Failure>, took: Duration) {
        self.requests.with_label_values(&[operation.label(), outcome(failure)]).inc();
        self.request_seconds.with_label_values(&[operation.label()]).observe(took.as_secs_f64());
        if failure.is_none() {
            self.keys.with_label_values(&[operation.label()]).inc_by(u64::try_from(keys).unwrap_or(u64::MAX));
            if operation != Operation::Get {
                self.cost.inc_by(DOLLARS_PER_KEY * f64::from(u32::try_from(keys).unwrap_or(u32::MAX)));
            }
        }
    }

    /// All of it in Prometheus' text format, with what is seen of the replica at this moment.
    ///
    /// # Errors
    /// None in practice: it is written to memory.
    pub fn encode(&self, health: &Health) -> Result<Vec<u8>, prometheus::Error> {
        self.projector_active.set(health.is_writing().into());
        self.nats_connected.set((health.nats() == NatsState::Connected).into());
        self.oldest_event_age.set(health.oldest_event().as_secs_f64());
        self.oldest_change_age.set(health.oldest_change().as_secs_f64());
        let letters = health.dead_letters().unwrap_or_default();
        self.dead_letters_stored.set(i64::try_from(letters).unwrap_or(i64::MAX));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// All that [`outcome`] says.
const OUTCOMES: [&str; 8] =
    ["success", "transient", "too_slow", "throttled", "config", "daily_quota", "refused", "too_large"];

fn outcome(failure: Option<&Failure>) -> &'static str {
    match failure {
        None => "success",
        Some(Failure::Transient(_)) => "transient",
        Some(Failure::TooSlow(_)) => "too_slow",
        Some(Failure::Throttled(_)) => "throttled",
        Some(Failure::Config(_)) => "config",
        Some(Failure::DailyQuota(_)) => "daily_quota",
        Some(Failure::Refused(_)) => "refused",
        Some(Failure::TooLarge(_)) => "too_large",
    }
}

fn registered<C>(registry: &Registry, collector: C) -> Result<C, prometheus::Error>
where
    C: prometheus::core::Collector + Clone + 'static,
{
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
