//! Pods with the images that `cargo xtask e2e` has loaded into the cluster, under "restricted" pod security.

use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use kube::api::{AttachParams, ListParams, LogParams, PostParams};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::{Namespace, eventually};

/// The label of the replicas of the pipeline `tasks`.
pub const PROCESSORS: &str = "taskpipeline.dev/pipeline=tasks";

/// Loaded images exist on the nodes; images of `--images` are pulled.
pub(crate) const PULL_POLICY: &str = "IfNotPresent";

/// Creates a Deployment with one container, and a Service of the same name for its ports.
///
/// `container` has image, command, args, env and ports. Pod security determines the rest.
///
/// # Errors
/// If the API server refuses it.
pub(crate) async fn run(
    namespace: &Namespace,
    name: &str,
    replicas: i32,
    mut container: Value,
    pod: &Value,
) -> anyhow::Result<Deployment> {
    let labels = json!({"app": name});
    let ports = container["ports"].clone();
    container["name"] = name.into();
    container["imagePullPolicy"] = PULL_POLICY.into();
    container["securityContext"] = security();
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

/// Runs a pod with one container to its end, without permissions, as the user of its image.
///
/// Returns whether it succeeded, and its log, or the reason why it did not start. `container` has image, command,
/// args and env; `volumes` are as in a pod's spec.
///
/// # Errors
/// If the API server refuses the pod, or it does not end.
pub async fn once(
    namespace: &Namespace,
    name: &str,
    mut container: Value,
    volumes: &Value,
) -> anyhow::Result<(bool, String)> {
    container["name"] = name.into();
    container["imagePullPolicy"] = PULL_POLICY.into();
    container["securityContext"] = security();
    let pod = json!({
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": volumes,
        },
    });
    let pods = namespace.api::<Pod>();
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    let ended = eventually(Duration::from_secs(60), async || {
        let status = pods.get(name).await?.status.unwrap_or_default();
        let phase = status.phase.clone().unwrap_or_default();
        ensure!(["Succeeded", "Failed"].contains(&phase.as_str()), "{name} is {phase}");
        Ok(status)
    })
    .await?;
    let containers = ended.container_statuses.unwrap_or_default();
    let end =
        containers.into_iter().find_map(|it| it.state?.terminated).context("the container has not ended")?;
    let said = match end.message {
        Some(why) => why,
        None => pods.logs(name, &LogParams::default()).await?,
    };
    Ok((end.exit_code == 0, said))
}

/// The result of a program that ran in a pod.
#[derive(Debug)]
pub struct Ended {
    /// Whether the exit code is 0.
    pub well: bool,
    /// The standard output.
    pub out: String,
    /// The standard error.
    pub err: String,
}

/// Runs a program in a running pod, like `kubectl exec`.
///
/// # Errors
/// If the program cannot be run.
pub async fn exec(namespace: &Namespace, pod: &str, command: &[&str]) -> anyhow::Result<Ended> {
    let params = AttachParams::default();
    let mut attached = namespace.api::<Pod>().exec(pod, command.iter().copied(), &params).await?;
    let (out, err) = (attached.stdout(), attached.stderr());
    let (mut out, mut err) = (out.context("no standard output")?, err.context("no standard error")?);
    let status = attached.take_status().context("no status")?;
    let (mut printed, mut complained) = (String::new(), String::new());
    tokio::try_join!(out.read_to_string(&mut printed), err.read_to_string(&mut complained))?;
    let status = status.await.context("the status of the program is missing")?;
    attached.join().await?;
    Ok(Ended { well: status.status.as_deref() == Some("Success"), out: printed, err: complained })
}

/// The security context that pod security requires of a container.
fn security() -> Value {
    json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
    })
}

/// Lists the pods with this label, including terminating and ended ones.
///
/// # Errors
/// If the API server does not answer.
pub async fn present(namespace: &Namespace, label: &str) -> anyhow::Result<Vec<Pod>> {
    Ok(namespace.api::<Pod>().list(&ListParams::default().labels(label)).await?.items)
}

/// Lists the ready pods with this label that are not terminating.
///
/// # Errors
/// If their number differs from `wanted`.
pub async fn ready(namespace: &Namespace, label: &str, wanted: usize) -> anyhow::Result<Vec<Pod>> {
    let pods = present(namespace, label).await?;
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
