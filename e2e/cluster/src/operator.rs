//! The operator alone, as the chart installs it with only the permissions of a namespace. All tests share the CRD.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use taskpipeline_operator::api::TaskPipeline;
use taskpipeline_operator::crd::crd;

use crate::{Chart, Forward, Helm, Namespace, eventually, pods, sum};

const PORT: u16 = 3002;

/// A release name that contains the chart's name, so that the chart's objects are named exactly like the release.
const RELEASE: &str = "taskpipeline";

/// Installs the CRD, and waits until it is served.
///
/// # Errors
/// If the API server refuses it.
pub async fn crd_is_installed(client: &Client) -> anyhow::Result<()> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let crd = crd();
    let name = crd.name_any();
    // The patch acts as Helm, which would not touch a CRD of another manager.
    crds.patch(&name, &PatchParams::apply("helm").force(), &Patch::Apply(&crd)).await?;
    crd_is_served(&crds, &name).await
}

/// Removes the CRD, for a test that begins without it.
///
/// # Errors
/// If the API server refuses, or pipelines of a user exist: they would be deleted with it.
pub async fn crd_is_removed() -> anyhow::Result<()> {
    let client = Namespace::client().await?;
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = crd().name_any();
    eventually(Duration::from_secs(60), async || {
        if crds.get_opt(&name).await?.is_none() {
            return Ok(());
        }
        let pipelines = Api::<TaskPipeline>::all(client.clone()).list(&ListParams::default()).await?;
        let all: Vec<_> =
            pipelines.iter().map(|it| it.namespace().unwrap_or_default() + "/" + &it.name_any()).collect();
        anyhow::ensure!(all.is_empty(), "the CRD stays for the pipelines {}", all.join(", "));
        crds.delete(&name, &DeleteParams::background()).await?;
        anyhow::bail!("the CRD still exists")
    })
    .await
}

/// Waits until a CRD is served.
///
/// # Errors
/// If it is not served in time.
pub(crate) async fn crd_is_served(crds: &Api<CustomResourceDefinition>, name: &str) -> anyhow::Result<()> {
    eventually(Duration::from_secs(20), async || {
        let conditions =
            crds.get(name).await?.status.and_then(|status| status.conditions).unwrap_or_default();
        let is_served = conditions.iter().any(|it| it.type_ == "Established" && it.status == "True");
        anyhow::ensure!(is_served, "the CRD {name} is not served yet");
        Ok(())
    })
    .await
}

/// The operator's pods, and the CRD that all tests share.
pub struct OperatorPods {
    pods: Vec<Pod>,
}

impl OperatorPods {
    /// The label of the operator's pods.
    pub const LABEL: &str = "app.kubernetes.io/component=operator";

    /// Starts this many replicas in a namespace.
    ///
    /// # Errors
    /// If they do not become ready.
    pub async fn start(namespace: &Namespace, replicas: usize) -> anyhow::Result<Self> {
        crd_is_installed(&namespace.client).await?;
        let replicas_wanted = format!("operator.replicas={replicas}");
        let values = [
            "pipeline.enabled=false",
            "nats.enabled=false",
            // Other tests use the CRD at the same time.
            "crds.upgrade=false",
            "operator.logFormat=text",
            "operator.allow.metadata[0]=*",
            "operator.allow.priorityClasses[0]=*",
            // The limit is higher than any test needs.
            "operator.allow.pipelines=1000",
            "operator.extraEnv[0].name=RUST_LOG",
            r"operator.extraEnv[0].value=info\,kube_lease_manager=warn",
            &replicas_wanted,
        ];
        Helm::new(namespace, RELEASE)?.install(&Chart::current(), &values).await?;
        Ok(Self { pods: Self::ready(namespace, replicas).await? })
    }

    async fn ready(namespace: &Namespace, replicas: usize) -> anyhow::Result<Vec<Pod>> {
        eventually(Duration::from_secs(60), async || pods::ready(namespace, Self::LABEL, replicas).await)
            .await
    }

    /// The names of the pods at the time when they became ready.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.pods.iter().map(ResourceExt::name_any).collect()
    }

    /// A metric of a pod; 0 if it is missing.
    ///
    /// # Errors
    /// If the pod does not answer.
    pub async fn metric(namespace: &Namespace, pod: &str, name: &str) -> anyhow::Result<f64> {
        let forward = Forward::to(namespace.api(), pod, PORT).await?;
        let text = reqwest::get(format!("http://{}/metrics", forward.address)).await?.text().await?;
        Ok(sum(&text, name))
    }

    /// The name of the pod that leads.
    ///
    /// # Errors
    /// If no pod leads.
    pub async fn leader(namespace: &Namespace) -> anyhow::Result<String> {
        let leases: Api<k8s_openapi::api::coordination::v1::Lease> = namespace.api();
        let lease = leases.get(&format!("{RELEASE}-operator")).await?;
        lease
            .spec
            .and_then(|spec| spec.holder_identity)
            .filter(|it| !it.is_empty())
            .context("no pod holds the Lease")
    }
}
