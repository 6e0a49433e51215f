//! A user who may edit pipelines gets no access to the Secrets and pipelines of others.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use taskpipeline_e2e_cluster::{
    Chart, Helm, Namespace, OperatorPods, crd_is_installed, eventually, minimal, ready,
};
use taskpipeline_operator::api::TaskPipeline;

const SOON: Duration = Duration::from_secs(60);

/// The reason and the message of a pipeline's condition Ready.
async fn said(namespace: &Namespace, pipeline: &str) -> anyhow::Result<(String, String)> {
    let pipeline = namespace.api::<TaskPipeline>().get(pipeline).await?;
    let conditions = pipeline.status.context("no status yet")?.conditions;
    let found = conditions.into_iter().find(|condition| condition.type_ == "Ready");
    found.map(|found| (found.reason, found.message)).context("no condition Ready yet")
}

async fn becomes(namespace: &Namespace, pipeline: &str, wanted: &str) -> String {
    eventually(SOON, async || {
        let (reason, message) = said(namespace, pipeline).await?;
        ensure!(reason == wanted, "{pipeline} is {reason}: {message}");
        Ok(message)
    })
    .await
    .unwrap()
}

async fn secret(namespace: &Namespace, name: &str, data: Value) {
    namespace.apply::<Secret>(json!({"metadata": {"name": name}, "stringData": data})).await.unwrap();
}

async fn pipeline(namespace: &Namespace, name: &str, more: &Value) {
    let mut pipeline = minimal(more);
    pipeline["metadata"]["name"] = name.into();
    pipeline["spec"]["suspend"] = true.into();
    namespace.apply::<TaskPipeline>(pipeline).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pipeline_gets_neither_the_secrets_of_the_first_nor_what_the_operator_does_not_allow() {
    let namespace = Namespace::new("tenants").await.unwrap();
    crd_is_installed(&namespace.client).await.unwrap();
    // The chart's defaults allow nothing.
    let values = ["pipeline.enabled=false", "nats.enabled=false", "crds.upgrade=false"];
    Helm::new(&namespace, "taskpipeline").unwrap().install(&Chart::current(), &values).await.unwrap();
    eventually(SOON, async || ready(&namespace, OperatorPods::LABEL, 1).await).await.unwrap();

    let kv = |base: &str| json!({"CF_NAMESPACE_ID": "n", "CF_API_TOKEN": "t", "CF_API_BASE_URL": base});
    let login = json!({"user": "processor", "password": "p", "hosts": "nats"});
    secret(&namespace, "kv", kv("http://kv/client/v4")).await;
    secret(&namespace, "login", login.clone()).await;
    secret(&namespace, "own", kv("http://thief/client/v4")).await;
    pipeline(&namespace, "tasks", &json!({"nats": {"authSecretRef": {"name": "login"}}})).await;
    becomes(&namespace, "tasks", "Suspended").await;
    // The API server's clock counts seconds.
    tokio::time::sleep(Duration::from_millis(1_100)).await;

    // The user exports all tasks to his own KV, and writes into the KV of others.
    let exports = json!({"nats": {"authSecretRef": {"name": "login"}}, "kv": {"secretRef": {"name": "own"}}});
    pipeline(&namespace, "exports", &exports).await;
    pipeline(&namespace, "writes", &json!({"nats": {"url": "nats://thief:4222"}})).await;
    let mut refusals = Vec::new();
    for name in ["exports", "writes"] {
        let message = becomes(&namespace, name, "SecretNotForThisPipeline").await;
        assert!(message.contains("is used by the pipeline tasks"), "{message}");
        refusals.push(message);
    }
    // The user lets others act for him.
    let own = json!({"name": "own"});
    for (name, more, reason) in [
        ("label", json!({"processor": {"labels": {"app": "shop"}}}), "MetadataNotAllowed"),
        (
            "annotation",
            json!({"processor": {"annotations": {"vault.hashicorp.com/agent-inject": "true"}}}),
            "MetadataNotAllowed",
        ),
        (
            "class",
            json!({"processor": {"priorityClassName": "system-cluster-critical"}}),
            "PriorityClassNotAllowed",
        ),
        ("many", json!({"replicas": 101}), "TooManyReplicas"),
        ("slow", json!({"processor": {"env": {"SHUTDOWN_GRACE": "11m"}}}), "InvalidSpec"),
    ] {
        let mut more = more;
        more["kv"] = json!({"secretRef": own});
        secret(&namespace, &format!("own-{name}"), kv("http://thief/client/v4")).await;
        more["kv"]["secretRef"]["name"] = format!("own-{name}").into();
        pipeline(&namespace, name, &more).await;
        refusals.push(becomes(&namespace, name, reason).await);
        let deployment = namespace.api::<Deployment>().get_opt(&format!("{name}-processor")).await.unwrap();
        assert!(deployment.is_none(), "{name} runs");
    }
    // The kubelet would replace this by the token.
    let expands = json!({"processor": {"env": {"RUST_LOG": "$(CF_API_TOKEN)"}}, "kv": {"secretRef": {"name": "own-env"}}});
    secret(&namespace, "own-env", kv("http://thief/client/v4")).await;
    pipeline(&namespace, "env", &expands).await;
    becomes(&namespace, "env", "Suspended").await;
    let deployment = namespace.api::<Deployment>().get("env-processor").await.unwrap();
    let container = &deployment.spec.unwrap().template.spec.unwrap().containers[0];
    let variable = container.env.iter().flatten().find(|variable| variable.name == "RUST_LOG").unwrap();
    assert_eq!(variable.value.as_deref(), Some("$$(CF_API_TOKEN)"));

    // A user with the permission to write the Secret allows its use.
    let mut named = login;
    named["pipelines"] = "tasks, exports".into();
    secret(&namespace, "login", named).await;
    let touch = json!({"metadata": {"annotations": {"e2e": "look"}}});
    let pipelines = namespace.api::<TaskPipeline>();
    for name in ["tasks", "exports"] {
        pipelines.patch(name, &PatchParams::default(), &Patch::Merge(&touch)).await.unwrap();
        becomes(&namespace, name, "Suspended").await;
    }
    println!("{} pipelines were refused:\n{}", refusals.len(), refusals.join("\n"));
}
