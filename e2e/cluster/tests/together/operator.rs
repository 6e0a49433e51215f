//! The operator in the cluster: several replicas, and drift.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use taskpipeline_e2e_cluster::{Image, Namespace, OperatorPods, eventually, kv_secret, minimal, within};
use taskpipeline_operator::api::TaskPipeline;

const SOON: Duration = Duration::from_secs(60);
const RECONCILES: &str = "taskpipeline_operator_reconcile_duration_seconds_count";

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leading_operator_is_killed_another_takes_over_and_drift_is_put_right_within_5_s() {
    let namespace = Namespace::new("leader").await.unwrap();
    OperatorPods::start(&namespace, 2).await.unwrap();
    kv_secret(&namespace, "kv", "token-1").await.unwrap();
    namespace.apply::<TaskPipeline>(minimal(&json!({"replicas": 0}))).await.unwrap();
    let deployments = namespace.api::<Deployment>();
    eventually(SOON, async || Ok(deployments.get("tasks-processor").await?)).await.unwrap();

    let first = OperatorPods::leader(&namespace).await.unwrap();
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    namespace.api::<Pod>().delete(&first, &now).await.unwrap();
    let took = within(SOON, async || {
        let leader = OperatorPods::leader(&namespace).await?;
        ensure!(leader != first, "{leader} still leads");
        Ok(())
    })
    .await
    .unwrap();
    let second = OperatorPods::leader(&namespace).await.unwrap();
    eventually(SOON, async || {
        let reconciles = OperatorPods::metric(&namespace, &second, RECONCILES).await?;
        ensure!(reconciles > 0.0, "the new leader has done nothing yet");
        Ok(())
    })
    .await
    .unwrap();

    deployments.delete("tasks-processor", &DeleteParams::background()).await.unwrap();
    let made_anew = within(SOON, async || {
        let found = deployments.get("tasks-processor").await?;
        ensure!(found.metadata.deletion_timestamp.is_none(), "the Deployment is still being deleted");
        Ok(())
    })
    .await
    .unwrap();
    let edit = json!({"spec": {"template": {"spec": {"containers": [{"name": "processor", "image": "somebody-elses:1"}]}}}});
    deployments.patch("tasks-processor", &PatchParams::default(), &Patch::Strategic(&edit)).await.unwrap();
    let put_right = within(SOON, async || {
        let found = deployments.get("tasks-processor").await?;
        let is = found.spec.unwrap().template.spec.unwrap().containers[0].image.clone();
        ensure!(is.as_deref() == Some(Image::Processor.name()?.as_str()), "{is:?}");
        Ok(())
    })
    .await
    .unwrap();
    // A field that is removed from the pipeline is also removed from the pods.
    let pipelines = namespace.api::<TaskPipeline>();
    for class in [Some("system-cluster-critical"), None] {
        let edit = json!({"spec": {"processor": {"priorityClassName": class}}});
        pipelines.patch("tasks", &PatchParams::default(), &Patch::Merge(&edit)).await.unwrap();
        eventually(SOON, async || {
            let pods = deployments.get("tasks-processor").await?.spec.unwrap().template.spec.unwrap();
            ensure!(pods.priority_class_name.as_deref() == class, "{:?}", pods.priority_class_name);
            Ok(())
        })
        .await
        .unwrap();
    }
    println!(
        "another replica leads {took:?} after the kill; a deleted object exists again after {made_anew:?}; \
         an edit is reverted after {put_right:?}"
    );
    assert!(
        made_anew <= Duration::from_secs(5) && put_right <= Duration::from_secs(5),
        "{made_anew:?} {put_right:?}"
    );
}
