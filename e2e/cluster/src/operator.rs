//! The operator alone, as the chart installs it, with the rights of a namespace and no more; and the CRD, which all tests share.

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

/// The chart's objects have its name where it contains the chart's.
const RELEASE: &str = "taskpipeline";

/// Brings the CRD to the cluster, and waits until it is served.
///
/// # Errors
/// Where the API server does not take it.
pub async fn crd_is_installed(client: &Client) -> anyhow::Result<()> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let crd = crd();
    let name = crd.name_any();
    // As Helm does it: another's it would not touch.
    crds.patch(&name, &PatchParams::apply("helm").force(), &Patch::Apply(&crd)).await?;
    crd_is_served(&crds, &name).await
}

/// Takes the CRD away, for a test that begins without one.
///
/// # Errors
/// Where the API server does not do it, or there are pipelines of somebody's: they would go with it.
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
        anyhow::bail!("the CRD is still there")
    })
    .await
}

/// Waits until a CRD is served.
///
/// # Errors
/// Where that does not come.
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
    /// What its pods have.
    pub const LABEL: &str = "app.kubernetes.io/component=operator";

    /// Starts so many in a namespace.
    ///
    /// # Errors
    /// Where they do not get ready.
    pub async fn start(namespace: &Namespace, replicas: usize) -> anyhow::Result<Self> {
        crd_is_installed(&namespace.client).await?;
        let replicas_wanted = format!("operator.replicas={replicas}");
        let values = [
            "pipeline.enabled=false",
            "nats.enabled=false",
            // Tests beside this one use it.
            "crds.upgrade=false",
            "operator.logFormat=text",
            "operator.allow.metadata[0]=*",
            "operator.allow.priorityClasses[0]=*",
            // As many as a test likes.
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
        let lease = leases.get(&format!("{RELEASE}-operator")).await?;
        lease
            .spec
            .and_then(|spec| spec.holder_identity)
            .filter(|it| !it.is_empty())
            .context("nobody holds the Lease")
    }
}
