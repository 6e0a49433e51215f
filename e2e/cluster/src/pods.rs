//! Pods of the image that `cargo xtask e2e` has brought to the cluster, under "restricted" pod security.

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::Namespace;

/// One that was brought to the nodes is there; one that was named by `--image` is pulled.
pub(crate) const PULL_POLICY: &str = "IfNotPresent";

/// The image with everything that the tests run in pods.
///
/// # Errors
/// Where `cargo xtask e2e` did not say.
pub fn image() -> anyhow::Result<String> {
    std::env::var("TASKPIPELINE_E2E_IMAGE")
        .context("TASKPIPELINE_E2E_IMAGE is not set: run `cargo xtask e2e`")
}

/// Runs a Deployment of one container, and a Service of its name for its ports. `container`: command, args, env, ports;
/// the rest is as pod security wants it.
///
/// # Errors
/// Where the API server does not take it.
pub async fn run(
    namespace: &Namespace,
    name: &str,
    replicas: i32,
    mut container: Value,
    pod: &Value,
) -> anyhow::Result<Deployment> {
    let labels = json!({"app": name});
    let ports = container["ports"].clone();
    container["name"] = name.into();
    container["image"] = image()?.into();
    container["imagePullPolicy"] = PULL_POLICY.into();
    container["securityContext"] = json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
    });
    let mut spec = json!({
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 5,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    });
    if let (Value::Object(spec), Value::Object(more)) = (&mut spec, pod) {
        spec.extend(more.clone());
    }
    if let Some(ports) = ports.as_array() {
        let ports: Vec<_> = ports
            .iter()
            .map(|port| json!({"name": port["name"], "port": port["containerPort"], "protocol": "TCP"}))
            .collect();
        let service = json!({"metadata": {"name": name}, "spec": {"selector": labels, "ports": ports}});
        namespace.apply::<Service>(service).await?;
    }
    let deployment = json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    });
    namespace.apply(deployment).await
}

/// The pods with this label that are ready and not on their way out.
///
/// # Errors
/// Where there are not as many.
pub async fn ready(namespace: &Namespace, label: &str, wanted: usize) -> anyhow::Result<Vec<Pod>> {
    let pods = namespace.api::<Pod>().list(&ListParams::default().labels(label)).await?.items;
    let is_ready = |pod: &&Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        pod.metadata.deletion_timestamp.is_none()
            && conditions.is_some_and(|all| all.iter().any(|it| it.type_ == "Ready" && it.status == "True"))
    };
    let ready: Vec<Pod> = pods.iter().filter(is_ready).cloned().collect();
    let names: Vec<_> = pods.iter().map(ResourceExt::name_any).collect();
    ensure!(
        ready.len() == wanted,
        "{} of {wanted} pods of {label} are ready ({})",
        ready.len(),
        names.join(", ")
    );
    Ok(ready)
}
