//! Pipelines for the tests, and their conditions.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use taskpipeline_operator::api::TaskPipeline;

use crate::{Namespace, SimulatorPod};

/// A pipeline named `tasks`, from `nats` into the KV of the Secret `kv`, with additional fields in its spec.
#[must_use]
pub fn minimal(more: &Value) -> Value {
    let mut spec = json!({
        "nats": {"url": "nats://nats:4222"},
        "kv": {"secretRef": {"name": "kv"}},
        "processor": {
            "env": {"LOG_FORMAT": "text"},
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
        },
    });
    merge(&mut spec, more);
    json!({"metadata": {"name": "tasks"}, "spec": spec})
}

fn merge(into: &mut Value, more: &Value) {
    match more {
        Value::Object(fields) if into.is_object() => {
            for (name, value) in fields {
                merge(&mut into[name], value);
            }
        }
        _ => *into = more.clone(),
    }
}

/// Creates the Secret `kv` for the simulator of this name.
///
/// # Errors
/// If the API server refuses it.
pub async fn kv_secret(namespace: &Namespace, simulator: &str, token: &str) -> anyhow::Result<Secret> {
    let data = json!({
        "CF_ACCOUNT_ID": "account",
        "CF_NAMESPACE_ID": "namespace",
        "CF_API_TOKEN": token,
        "CF_API_BASE_URL": SimulatorPod::base_url(simulator),
        "pipelines": "*",
    });
    namespace.apply(json!({"metadata": {"name": "kv"}, "stringData": data})).await
}

/// Checks that a condition has this status, and returns its message.
///
/// # Errors
/// If the status differs; the error has it.
pub async fn condition(namespace: &Namespace, kind: &str, status: &str) -> anyhow::Result<String> {
    let pipeline = namespace.api::<TaskPipeline>().get("tasks").await?;
    let conditions = pipeline.status.map(|status| status.conditions).unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition.type_ == kind);
    let found = found.with_context(|| format!("the pipeline has no condition {kind}"))?;
    ensure!(found.status == status, "{kind} is {}: {} ({})", found.status, found.message, found.reason);
    Ok(found.message)
}
