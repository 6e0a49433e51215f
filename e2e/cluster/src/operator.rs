//! The operator as pods, with the rights of a namespace and no more; and the CRD, which all tests share.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, CustomResourceExt, ResourceExt};
use serde_json::{Value, json};
use taskpipeline_processor::api::TaskPipeline;

use crate::{Forward, Namespace, eventually, image, pods, sum};

const PORT: u16 = 3002;

/// What the operator may do in its namespace: what it makes, what it reads, and what it grants.
fn rules() -> Value {
    let ours = ["get", "list", "watch", "create", "patch"];
    json!([
        {"apiGroups": ["taskpipeline.dev"], "resources": ["taskpipelines"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["taskpipeline.dev"], "resources": ["taskpipelines/status"], "verbs": ["get", "patch"]},
        {"apiGroups": ["taskpipeline.dev"], "resources": ["taskpipelines/finalizers"], "verbs": ["update"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ours},
        {"apiGroups": [""], "resources": ["services", "serviceaccounts"], "verbs": ours},
        {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "verbs": ours},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": ours},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "patch"]},
    ])
}

/// Brings the CRD to the cluster, and waits until it is served.
///
/// # Errors
/// Where the API server does not take it.
pub async fn crd_is_installed(client: &Client) -> anyhow::Result<()> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let crd = TaskPipeline::crd();
    let name = crd.name_any();
    crds.patch(&name, &PatchParams::apply("e2e").force(), &Patch::Apply(&crd)).await?;
    eventually(Duration::from_secs(20), async || {
        let conditions =
            crds.get(&name).await?.status.and_then(|status| status.conditions).unwrap_or_default();
        let is_served = conditions.iter().any(|it| it.type_ == "Established" && it.status == "True");
        anyhow::ensure!(is_served, "the CRD is not served yet");
        Ok(())
    })
    .await
}

/// See the module's head.
pub struct OperatorPods {
    pods: Vec<Pod>,
}

impl OperatorPods {
    /// Starts so many in a namespace.
    ///
    /// # Errors
    /// Where they do not get ready.
    pub async fn start(namespace: &Namespace, replicas: usize) -> anyhow::Result<Self> {
        crd_is_installed(&namespace.client).await?;
        let metadata = json!({"name": "operator"});
        namespace.apply::<ServiceAccount>(json!({"metadata": metadata})).await?;
        namespace.apply::<Role>(json!({"metadata": metadata, "rules": rules()})).await?;
        namespace
            .apply::<RoleBinding>(json!({
                "metadata": metadata,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
                "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": namespace.name}],
            }))
            .await?;
        let own =
            |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let container = json!({
            "args": ["operator"],
            "env": [
                own("POD_NAME", "metadata.name"),
                own("POD_NAMESPACE", "metadata.namespace"),
                {"name": "PROCESSOR_IMAGE", "value": image()?},
                {"name": "PROCESSOR_IMAGE_PULL_POLICY", "value": pods::PULL_POLICY},
                {"name": "LOG_FORMAT", "value": "text"},
                {"name": "RUST_LOG", "value": "info,kube_lease_manager=warn"},
            ],
            "ports": [{"name": "http", "containerPort": PORT}],
            "livenessProbe": {"httpGet": {"path": "/livez", "port": PORT}},
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": PORT}, "periodSeconds": 1},
        });
        let pod = json!({"serviceAccountName": "operator"});
        pods::run(namespace, "operator", i32::try_from(replicas)?, container, &pod).await?;
        Ok(Self { pods: Self::ready(namespace, replicas).await? })
    }

    async fn ready(namespace: &Namespace, replicas: usize) -> anyhow::Result<Vec<Pod>> {
        eventually(Duration::from_secs(60), async || pods::ready(namespace, "app=operator", replicas).await)
            .await
    }

    /// Its pods, as they were when they got ready.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.pods.iter().map(ResourceExt::name_any).collect()
    }

    /// A metric of one of the pods; 0 if it is not there.
    ///
    /// # Errors
    /// Where the pod does not answer.
    pub async fn metric(namespace: &Namespace, pod: &str, name: &str) -> anyhow::Result<f64> {
        let forward = Forward::to(namespace.api(), pod, PORT).await?;
        let text = reqwest::get(format!("http://{}/metrics", forward.address)).await?.text().await?;
        Ok(sum(&text, name))
    }

    /// The one that works.
    ///
    /// # Errors
    /// Where nobody does.
    pub async fn leader(namespace: &Namespace) -> anyhow::Result<String> {
        let leases: Api<k8s_openapi::api::coordination::v1::Lease> = namespace.api();
        let lease = leases.get("taskpipeline-operator").await?;
        lease
            .spec
            .and_then(|spec| spec.holder_identity)
            .filter(|it| !it.is_empty())
            .context("nobody holds the Lease")
    }
}
