//! The Prometheus metrics, all under `taskpipeline_`. Labels contain no ids, so their number is
//! bounded.

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
    /// Events dropped because KV accepted them more slowly than they came.
    pub events_dropped: IntCounter,
    /// Messages that are not events.
    pub events_invalid: IntCounter,
    /// Events whose tasks are in the ledger.
    pub events_stored: IntCounter,
    /// Events that NATS delivered before.
    pub redeliveries: IntCounter,
    /// Events that neither the ledger nor the stream of dead letters accepts at the moment.
    pub events_held: IntGauge,
    /// Messages on subjects that do not belong to this pipeline.
    pub events_foreign: IntCounter,
    /// Events that the stream dropped before a replica took them in.
    pub events_lost: IntCounter,
    /// Writes to the ledger that failed because another replica had written the record.
    pub ledger_conflicts: IntCounter,
    /// Times that the attempts of a task were exhausted, and counted again from one.
    pub retries_exhausted: IntCounter,
    /// 1 while this replica writes to KV.
    projector_active: IntGauge,
    /// Times that this replica stopped being the writer because it wrote nothing although work
    /// waited.
    pub projector_stalls: IntCounter,
    /// Tasks in the memory of the projector whose value in KV may differ from the ledger.
    pub unsettled_tasks: IntGauge,
    /// Those of the unsettled tasks that wait in NATS, without their records in memory.
    pub deferred_tasks: IntGauge,
    /// Times that the rest between two writes of a task was forgotten before its end.
    pub rests_forgotten: IntCounter,
    /// Changes of the ledger that the projector has not read yet.
    pub changes_behind: IntGauge,
    /// The age of the oldest event that is not in the ledger.
    oldest_event_age: Gauge,
    /// How long the stream keeps an event; 0 means indefinitely.
    pub stream_max_age: Gauge,
    /// The bytes in each stream.
    pub stream_bytes: IntGaugeVec,
    /// The limit of the bytes in each stream; 0 means no limit.
    pub stream_max_bytes: IntGaugeVec,
    /// The bytes in all streams of the NATS account.
    pub account_bytes: IntGauge,
    /// The limit of `account_bytes`; 0 means no limit.
    pub account_max_bytes: IntGauge,
    /// Events dropped from the stream to keep room in it, after the ledger had them.
    pub events_trimmed: IntCounter,
    /// The age of the oldest change that KV may lack, accurate to a few seconds.
    oldest_change_age: Gauge,
    /// The settings in effect.
    settings: GaugeVec,
    /// Times that new settings were refused.
    pub settings_refused: IntCounter,
    /// Updates of tasks that do not exist.
    pub updates_unknown: IntCounter,
    /// Failed attempts that were followed by another attempt, counted for each key.
    pub retries: IntCounter,
    /// Dead letters published, by reason.
    pub dead_letters: IntCounterVec,
    /// Dead letters in their stream.
    dead_letters_stored: IntGauge,
    /// Events received whose tasks are not in KV yet.
    pub events_waiting: IntGauge,
    /// Tasks in memory.
    pub tasks_in_memory: IntGauge,
    /// Requests to KV without an answer yet.
    pub requests_in_flight: IntGauge,
    /// Requests that the budget allows at this moment.
    pub budget_available: Gauge,
    /// The most keys that a request may have at present.
    pub batch_keys: IntGauge,
    /// Requests of other clients with the same token.
    pub external_requests: IntCounter,
    /// The price that Cloudflare bills for the keys written.
    cost: Counter,
    /// 1 while connected to NATS.
    nats_connected: IntGauge,
    /// Times that the NATS client reported dropped events.
    pub slow_consumers: IntCounter,
    /// Messages on the answer subjects of this replica that answer no request.
    pub forged_answers: IntCounter,
    /// Messages set aside because no client can read their headers.
    pub events_unreadable: IntCounter,
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    /// If two metrics have the same name, which does not happen.
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
        // From 1 ms to 2 minutes: an idle pipeline writes an event with one request, a throttled
        // one waits.
        let buckets = || prometheus::exponential_buckets(0.001, 2.0, 18);
        let metrics = Self {
            received: labelled("events_received_total", "Events received from NATS, by kind.", &["kind"])?,
            landed: registered(
                r,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "event_landing_seconds",
                        "Time from receiving an event until KV has confirmed the write of its task.",
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
                    HistogramOpts::new("kv_request_duration_seconds", "Duration of requests to KV.")
                        .buckets(buckets()?),
                    &["operation"],
                )?,
            )?,
            keys: labelled(
                "kv_keys_total",
                "Keys in successful requests to KV; Cloudflare bills each.",
                &["operation"],
            )?,
            events_dropped: counter(
                "events_dropped_total",
                "Events received and dropped because memory was full (mode Core only).",
            )?,
            events_invalid: counter("events_invalid_total", "Invalid messages.")?,
            events_stored: counter("events_stored_total", "Events stored in the ledger or as dead letters.")?,
            redeliveries: counter("events_redelivered_total", "Events that NATS delivered again.")?,
            events_held: gauge(
                "events_held",
                "Events in this replica that NATS refused to store in the ledger or as dead letters; they are retried.",
            )?,
            events_foreign: counter(
                "events_foreign_total",
                "Messages on subjects that do not belong to the pipeline; they are acknowledged and ignored.",
            )?,
            events_lost: counter(
                "events_lost_total",
                "Messages that the stream dropped (max_msgs, max_bytes, max_age, a purge) before a replica acknowledged them.",
            )?,
            ledger_conflicts: counter(
                "ledger_conflicts_total",
                "Writes to the ledger that failed because another replica had written the record; they are folded again.",
            )?,
            retries_exhausted: counter(
                "kv_retries_exhausted_total",
                "Tasks whose attempts were exhausted; they are retried later.",
            )?,
            projector_active: gauge(
                "projector_active",
                "1 on the replica that writes to KV (the writer), else 0.",
            )?,
            projector_stalls: counter(
                "projector_stalls_total",
                "Times that this replica stopped being the writer because it wrote nothing although work waited.",
            )?,
            unsettled_tasks: gauge(
                "projector_unsettled_tasks",
                "Tasks in the memory of the projector whose value in KV may differ from the ledger.",
            )?,
            deferred_tasks: gauge(
                "projector_deferred_tasks",
                "Tasks that wait for minWriteInterval, a retry or the settle time, and are not kept in memory.",
            )?,
            rests_forgotten: counter(
                "write_rests_forgotten_total",
                "Tasks that may be written before minWriteInterval has passed, because more than 450,000 tasks were \
                 written within it.",
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
                    "Time that the stream keeps an event; 0 if it keeps events indefinitely, or if there is no stream.",
                )?,
            )?,
            stream_bytes: sizes("stream_bytes", "Bytes in a stream: events, ledger or dead_letters.")?,
            stream_max_bytes: sizes(
                "stream_max_bytes",
                "Limit of the bytes in a stream: events, ledger or dead_letters; 0 if there is none.",
            )?,
            account_bytes: gauge("nats_account_bytes", "Bytes in all streams of the NATS account.")?,
            account_max_bytes: gauge(
                "nats_account_max_bytes",
                "Limit of the bytes in all streams of the NATS account; 0 if there is none.",
            )?,
            events_trimmed: counter(
                "events_trimmed_total",
                "Events that were dropped from the stream to keep room in it, after the ledger had them.",
            )?,
            oldest_change_age: registered(
                r,
                Gauge::new(
                    "oldest_change_age_seconds",
                    "Age of the oldest change of the ledger that may be missing in KV, on the writer.",
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
                "Times that new settings were refused; the last valid ones stay in effect.",
            )?,
            updates_unknown: counter(
                "updates_of_unknown_tasks_total",
                "Updates that changed nothing because their task does not exist.",
            )?,
            retries: counter(
                "kv_key_retries_total",
                "Failed attempts that are retried, counted for each key.",
            )?,
            dead_letters: labelled("dead_letters_total", "Dead letters published, by reason.", &["reason"])?,
            dead_letters_stored: gauge(
                "dead_letters_stored",
                "Dead letters in their stream at the last count; a large one counts for each of its parts.",
            )?,
            events_waiting: gauge("events_waiting", "Events received whose tasks are not in KV yet.")?,
            tasks_in_memory: gauge(
                "tasks_in_memory",
                "Tasks in memory: waiting, in a request, or within minWriteInterval.",
            )?,
            requests_in_flight: gauge("kv_requests_in_flight", "Requests to KV without an answer yet.")?,
            budget_available: registered(
                r,
                Gauge::new(
                    "kv_budget_available_requests",
                    "Requests that the budget allows at this moment.",
                )?,
            )?,
            batch_keys: gauge("kv_batch_keys", "Keys that one write request has at most at present.")?,
            external_requests: counter(
                "kv_external_requests_total",
                "Requests of other clients with the same token, estimated from the Ratelimit header.",
            )?,
            cost: registered(
                r,
                Counter::new(
                    "kv_write_cost_dollars_total",
                    "Cost of the keys written and deleted, by the price of Cloudflare, without what the plan includes.",
                )?,
            )?,
            nats_connected: gauge("nats_connected", "1 while connected to NATS, else 0.")?,
            slow_consumers: counter(
                "nats_slow_consumer_total",
                "Times that the NATS client reported dropped events (slow consumer).",
            )?,
            forged_answers: counter(
                "nats_forged_answers_total",
                "Messages on the answer subjects of this replica that answer no request of it; they are ignored.",
            )?,
            events_unreadable: counter(
                "events_unreadable_total",
                "Messages with headers that no NATS client can read; they become dead letters.",
            )?,
            registry,
        };
        // Known label values are 0 from the start, so that a rate over the first event is correct.
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

    /// Counts an event that was received.
    pub fn received(&self, kind: EventKind) {
        self.received.with_label_values(&[kind.as_str()]).inc();
    }

    /// Replaces the gauges of the settings in effect.
    pub fn set(&self, settings: impl IntoIterator<Item = (String, f64)>) {
        // A list setting may have become shorter.
        self.settings.reset();
        for (name, value) in settings {
            self.settings.with_label_values(&[&name]).set(value);
        }
    }

    /// Observes the time from the receipt of an event to its write in KV.
    pub fn landed(&self, after: Duration) {
        self.landed.observe(after.as_secs_f64());
    }

    /// Counts a request that was answered or given up.
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

    /// Renders all metrics in the text format of Prometheus, with the present health of the
    /// replica.
    ///
    /// # Errors
    /// If the text cannot be written; it is written to memory, so this does not happen.
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

/// All values that [`outcome`] returns.
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
