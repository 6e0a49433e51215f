//! Many pipelines and a steady state.
//!
//! This test is a separate program, because the API server counts the requests of the whole cluster.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Event, Secret};
use kube::Client;
use kube::api::ListParams;
use serde_json::{Value, json};
use taskpipeline_e2e_cluster::{
    Namespace, NatsPod, OperatorPods, SimulatorPod, condition, create, eventually, kv_secret, minimal,
    samples,
};
use taskpipeline_operator::api::TaskPipeline;
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(60);
const PIPELINES: usize = 200;
const STEADY: Duration = Duration::from_secs(120);
const RECONCILES: &str = "taskpipeline_operator_reconcile_duration_seconds_count";

/// The number of write requests to the API server so far, by kind of object.
///
/// It excludes writes of any cluster at rest (Leases for leaders and nodes), and questions that are sent by POST. It
/// also excludes Events, because Kubernetes' own controllers write some; see [`own_events`].
async fn writes(client: &Client) -> BTreeMap<String, f64> {
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let text = client.request_text(request).await.unwrap();
    let mut writes = BTreeMap::new();
    for sample in samples(&text).filter(|sample| sample.name == "apiserver_request_total") {
        let (verb, resource) = (sample.label("verb"), sample.label("resource"));
        let is_write = ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"].contains(&verb);
        let is_rest = resource.ends_with("reviews") || ["leases", "nodes", "events", ""].contains(&resource);
        let is_token = sample.label("subresource") == "token";
        if is_write && !is_rest && !is_token {
            *writes.entry(format!("{verb} {resource}/{}", sample.label("subresource"))).or_default() +=
                sample.value;
        }
    }
    writes
}

/// The number of Events that the operator and the processors have written.
async fn own_events(namespace: &Namespace) -> usize {
    let all = namespace.api::<Event>().list(&ListParams::default()).await.unwrap();
    let is_own = |it: &&Event| {
        it.reporting_component.as_ref().is_some_and(|component| component.starts_with("taskpipeline"))
    };
    all.iter().filter(is_own).count()
}

/// A suspended pipeline with every possible field, also in forms that the API server writes differently.
fn everything() -> Value {
    json!({
        "suspend": true,
        "nats": {"url": "tls://nats:4222", "authSecretRef": {"name": "login"}},
        "delivery": {"stream": {"name": "ORDERS", "replicas": 3, "maxAge": "24h"}},
        "processor": {
            "resources": {"requests": {"cpu": "0.1", "memory": "1024Mi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}},
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0}, {"operator": "Exists"}],
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}},
            ]}},
            "priorityClassName": "system-cluster-critical",
            "labels": {"team": "shop"},
            "annotations": {"note": ""},
            "env": {"RUST_LOG": "", "SHUTDOWN_GRACE": "10s"},
        },
    })
}

/// Checks that all pipelines are suspended.
async fn all_are_suspended(namespace: &Namespace) -> anyhow::Result<()> {
    let all = namespace.api::<TaskPipeline>().list(&ListParams::default()).await?;
    let ready = |it: &TaskPipeline| {
        let conditions = it.status.iter().flat_map(|status| &status.conditions);
        let ready = conditions.into_iter().find(|it| it.type_ == "Ready");
        ready.map_or_else(|| "not seen yet".to_owned(), |it| format!("{}: {}", it.reason, it.message))
    };
    let others: Vec<_> = all.iter().map(ready).filter(|said| !said.starts_with("Suspended")).collect();
    ensure!(others.is_empty(), "{} are not suspended, the first is {}", others.len(), others[0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_suspended_pipelines_are_reconciled_and_a_steady_state_makes_no_writes_for_2_minutes() {
    let namespace = Namespace::new("steady").await.unwrap();
    namespace.is_alone().await.unwrap();
    let (nats, kv, operator) = tokio::join!(
        NatsPod::start(&namespace, None),
        SimulatorPod::start(&namespace, "token-1"),
        OperatorPods::start(&namespace, 1),
    );
    let (nats, _kv, operator) = (nats.unwrap(), kv.unwrap(), operator.unwrap());
    kv_secret(&namespace, "kv", "token-1").await.unwrap();
    let login = json!({"creds": "none", "ca.crt": "none", "hosts": "nats", "pipelines": "*"});
    namespace.apply::<Secret>(json!({"metadata": {"name": "login"}, "stringData": login})).await.unwrap();
    let pod = &operator.names()[0];
    let metric = async |name: &str| OperatorPods::metric(&namespace, pod, name).await.unwrap();

    let began = Instant::now();
    for n in 0..PIPELINES {
        let mut pipeline = minimal(&if n % 2 == 0 { json!({"suspend": true}) } else { everything() });
        pipeline["metadata"]["name"] = format!("tasks-{n}").into();
        namespace.apply::<TaskPipeline>(pipeline).await.unwrap();
    }
    let applied = began.elapsed();
    eventually(Duration::from_secs(120), async || all_are_suspended(&namespace).await).await.unwrap();
    let all_done = began.elapsed();
    let (requests, reconciles) =
        (metric("taskpipeline_operator_api_requests_total").await, metric(RECONCILES).await);
    println!(
        "{PIPELINES} suspended pipelines: applied in {applied:.1?}, all reconciled after {all_done:.1?} by {reconciles} reconciles \
         of {:.1} API requests each",
        requests / reconciles
    );

    // One pipeline among them runs.
    namespace.apply::<TaskPipeline>(minimal(&json!({}))).await.unwrap();
    eventually(SOON, async || condition(&namespace, "Ready", "True").await).await.unwrap();
    let producer = nats.client().await.unwrap();
    producer.publish("tasks.created", create("steady").into()).await.unwrap();
    producer.flush().await.unwrap();
    for kind in ["KvReachable", "CaughtUp"] {
        eventually(SOON, async || condition(&namespace, kind, "True").await).await.unwrap();
    }
    // All changes from the start take effect first: Events of pods, endpoints, statuses.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let (before, requests, written, events) = (
        metric(RECONCILES).await,
        metric("taskpipeline_operator_api_requests_total").await,
        writes(&namespace.client).await,
        own_events(&namespace).await,
    );
    tokio::time::sleep(STEADY).await;
    let written_since: BTreeMap<_, _> = writes(&namespace.client)
        .await
        .into_iter()
        .map(|(what, count)| (what.clone(), count - written.get(&what).copied().unwrap_or(0.0)))
        .filter(|(_, count)| *count > 0.0)
        .collect();
    let reconciles = metric(RECONCILES).await - before;
    let requests = metric("taskpipeline_operator_api_requests_total").await - requests;
    let memory = metric("process_resident_memory_bytes").await / 1e6;
    println!(
        "then for {} s: {reconciles} reconciles of {:.1} API requests each, {memory:.1} MB, written: {written_since:?}",
        STEADY.as_secs(),
        requests / reconciles
    );
    assert!(reconciles >= 200.0, "{reconciles} reconciles: not every pipeline was reconciled again");
    assert!(!written.is_empty(), "the API server counts no writes: the test proves nothing");
    assert!(written_since.is_empty(), "written in a steady state: {written_since:?}");
    assert_eq!(own_events(&namespace).await, events, "Events are written in a steady state");
}
