//! The operator's metrics.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

/// The metrics of the operator.
#[derive(Clone)]
pub(crate) struct OperatorMetrics {
    pub(crate) registry: Registry,
    reconciles: HistogramVec,
    requests: IntCounterVec,
    pub(crate) leader: prometheus::IntGauge,
}

impl OperatorMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// If the registry refuses a metric.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let options = HistogramOpts::new(
            "taskpipeline_operator_reconcile_duration_seconds",
            "Duration of reconciles, by result: applied, invalid (a user has to correct something), failed (retried).",
        )
        .buckets(vec![0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]);
        let reconciles = HistogramVec::new(options, &["result"])?;
        let leader = prometheus::IntGauge::new(
            "taskpipeline_operator_leader",
            "1 while this operator is the leader, else 0.",
        )?;
        let requests = IntCounterVec::new(
            Opts::new(
                "taskpipeline_operator_api_requests_total",
                "Requests to the API server, by method and kind of object.",
            ),
            &["method", "resource"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        registry.register(Box::new(reconciles.clone()))?;
        registry.register(Box::new(leader.clone()))?;
        for result in ["applied", "invalid", "failed"] {
            let _ = reconciles.with_label_values(&[result]);
        }
        Ok(Self { registry, reconciles, requests, leader })
    }

    pub(crate) fn asked(&self, method: &str, resource: &str) {
        self.requests.with_label_values(&[method, resource]).inc();
    }

    pub(crate) fn reconciled(&self, result: &str, took: Duration) {
        self.reconciles.with_label_values(&[result]).observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prometheus::TextEncoder;

    use super::*;
    use taskpipeline_pipeline::telemetry::health::Health;
    use taskpipeline_pipeline::telemetry::metrics::Metrics;

    /// The files that use these metrics.
    const USERS: [(&str, &str); 3] = [
        ("alerts", include_str!("../../../../charts/taskpipeline/files/alerts.yaml")),
        ("the dashboard", include_str!("../../../../charts/taskpipeline/files/dashboard.json")),
        ("the example for KEDA", include_str!("../../../../manifests/examples/keda.yaml")),
    ];

    /// The names of all series of an operator and a replica.
    fn there() -> BTreeSet<String> {
        let (operator, replica) = (OperatorMetrics::new().unwrap(), Metrics::new().unwrap());
        operator.asked("get", "secrets");
        replica.set([("retry.maxAttempts".to_owned(), 5.0)]);
        let operator = TextEncoder::new().encode_to_string(&operator.registry.gather()).unwrap();
        let text = operator + &String::from_utf8(replica.encode(&Health::default()).unwrap()).unwrap();
        let series = text.lines().filter(|line| !line.starts_with('#'));
        series.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
    }

    fn named(text: &str) -> BTreeSet<&str> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| word.starts_with("taskpipeline_")).collect()
    }

    #[test]
    fn every_metric_that_alerts_and_the_dashboard_name_exists() {
        let there = there();
        for (user, text) in USERS {
            let named = named(text);
            let missing: Vec<_> = named.iter().filter(|name| !there.contains(**name)).collect();
            assert!(missing.is_empty(), "{user}: {missing:?}");
            assert!(!named.is_empty(), "{user} names no metric");
        }
    }

    #[test]
    fn the_dashboard_shows_every_metric() {
        let text = USERS[1].1;
        let hidden: Vec<_> = there()
            .into_iter()
            .filter(|name| name.starts_with("taskpipeline_"))
            .filter(|name| {
                !name.ends_with("_sum") && !name.ends_with("_count") && !named(text).contains(name.as_str())
            })
            .collect();
        assert!(hidden.is_empty(), "{hidden:?}");
    }
}
