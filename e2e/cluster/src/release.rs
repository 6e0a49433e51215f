//! An installed release of the chart that writes to the tests' own KV, and the ways to its pods.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt;

use crate::{
    Chart, Forward, Helm, Namespace, Producer, SimulatorPod, condition, eventually, kv_secret, ready,
};

const SOON: Duration = Duration::from_secs(60);

/// The prefix of the names of the release and its objects.
const NAME: &str = "demo";

/// An installed release of the chart, and the ways to its pods.
pub struct Release {
    /// The namespace of the release.
    pub namespace: Namespace,
    /// Helm, which can upgrade the release.
    pub helm: Helm,
    /// The KV that the release writes to.
    pub kv: SimulatorPod,
}

impl Release {
    /// Installs the chart with these values.
    ///
    /// # Errors
    /// If the release does not become ready.
    pub async fn install(prefix: &str, chart: &Chart, values: &[&str]) -> anyhow::Result<Self> {
        Self::install_in(Namespace::new(prefix).await?, chart, values).await
    }

    /// Installs the chart in an existing namespace.
    ///
    /// # Errors
    /// If the release does not become ready.
    pub async fn install_in(namespace: Namespace, chart: &Chart, values: &[&str]) -> anyhow::Result<Self> {
        let kv = SimulatorPod::start(&namespace, "token-1").await?;
        kv_secret(&namespace, "kv", "token-1").await?;
        let helm = Helm::new(&namespace, NAME)?;
        let mut all = vec!["kv.secretName=kv"];
        all.extend(values);
        helm.install(chart, &all).await?;
        eventually(SOON, async || condition(&namespace, "Ready", "True").await).await?;
        Ok(Self { namespace, helm, kv })
    }

    /// Starts a producer in the cluster, with its own login.
    ///
    /// # Errors
    /// If its pod does not become ready.
    pub async fn producer(&self, per_second: u32) -> anyhow::Result<Producer> {
        let login = "demo-nats-producer";
        Producer::start(&self.namespace, "nats://demo-nats:4222", Some(login), "load", per_second).await
    }

    /// Stops the producer, waits until all stored events are in KV, and returns their number.
    ///
    /// # Errors
    /// Names the number of tasks that are not in KV.
    pub async fn all_land(&self, producer: &Producer) -> anyhow::Result<u32> {
        let stored = producer.stop().await?;
        self.kv.has_all("load", stored, Duration::from_secs(90)).await?;
        Ok(stored)
    }
}

/// Forwards a port of the only pod of a component.
///
/// # Errors
/// If the pod does not become ready.
pub async fn forward(namespace: &Namespace, component: &str, port: u16) -> anyhow::Result<Forward> {
    let label = format!("app.kubernetes.io/component={component}");
    let pods = eventually(SOON, async || ready(namespace, &label, 1).await).await?;
    Forward::to(namespace.api::<Pod>(), &pods[0].name_any(), port).await
}

/// Connects a client to the release's NATS with the login in a Secret.
///
/// # Errors
/// If NATS refuses the login.
pub async fn log_in(
    namespace: &Namespace,
    nats: &Forward,
    login: &str,
) -> anyhow::Result<async_nats::Client> {
    Ok(login_of(namespace, login).await?.connect(nats.address.to_string()).await?)
}

/// Returns the options of a client with the login in a Secret.
///
/// # Errors
/// If the Secret does not exist.
pub async fn login_of(namespace: &Namespace, login: &str) -> anyhow::Result<async_nats::ConnectOptions> {
    let secret = namespace.api::<Secret>().get(&format!("{NAME}-nats-{login}")).await?;
    let data = secret.data.context("the Secret is empty")?;
    let text = |key: &str| -> anyhow::Result<String> {
        Ok(String::from_utf8(data.get(key).with_context(|| format!("the Secret has no {key}"))?.0.clone())?)
    };
    let mut options = async_nats::ConnectOptions::new().user_and_password(text("user")?, text("password")?);
    if let Ok(prefix) = text("inboxPrefix") {
        options = options.custom_inbox_prefix(prefix);
    }
    Ok(options)
}
