//! What the operator counts.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

/// See the module's head.
#[derive(Clone)]
pub(crate) struct OperatorMetrics {
    pub(crate) registry: Registry,
    reconciles: HistogramVec,
    requests: IntCounterVec,
    pub(crate) leader: prometheus::IntGauge,
}

impl OperatorMetrics {
    /// # Errors
    /// Where the registry does not take them.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let options = HistogramOpts::new(
            "taskpipeline_operator_reconcile_duration_seconds",
            "How long reconciles took, by result: applied, invalid (something has to be mended), failed (tried again).",
        )
        .buckets(vec![0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]);
        let reconciles = HistogramVec::new(options, &["result"])?;
        let leader = prometheus::IntGauge::new(
            "taskpipeline_operator_leader",
            "1 while this operator is the one that works.",
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
