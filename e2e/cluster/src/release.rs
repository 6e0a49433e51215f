//! A release of the chart over a KV of the tests' own, ready; and the ways to its pods.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt;

use crate::{
    Chart, Forward, Helm, Namespace, Producer, SimulatorPod, condition, eventually, kv_secret, ready,
};

const SOON: Duration = Duration::from_secs(60);

/// What its name begins with, and those of all its objects.
const NAME: &str = "demo";

/// An installed release of the chart, and the ways to its pods.
pub struct Release {
    /// Where it is.
    pub namespace: Namespace,
    /// To upgrade it by.
    pub helm: Helm,
    /// Where its tasks land.
    pub kv: SimulatorPod,
}

impl Release {
    /// Installs the chart with these values.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub async fn install(prefix: &str, chart: &Chart, values: &[&str]) -> anyhow::Result<Self> {
        Self::install_in(Namespace::new(prefix).await?, chart, values).await
    }

    /// The same in a namespace that has something already.
    ///
    /// # Errors
    /// Where it does not get ready.
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

    /// A producer in the cluster, with its own login.
    ///
    /// # Errors
    /// Where its pod does not get ready.
    pub async fn producer(&self, per_second: u32) -> anyhow::Result<Producer> {
        let login = "demo-nats-producer";
        Producer::start(&self.namespace, "nats://demo-nats:4222", Some(login), "load", per_second).await
    }

    /// Ends the producer; everything that was stored gets to KV. Answers how many events that were.
    ///
    /// # Errors
    /// How many tasks are not in KV.
    pub async fn all_land(&self, producer: &Producer) -> anyhow::Result<u32> {
        let stored = producer.stop().await?;
        self.kv.has_all("load", stored, Duration::from_secs(90)).await?;
        Ok(stored)
    }
}

/// A port of the one pod of a component of the release.
///
/// # Errors
/// Where it does not get ready.
pub async fn forward(namespace: &Namespace, component: &str, port: u16) -> anyhow::Result<Forward> {
    let label = format!("app.kubernetes.io/component={component}");
    let pods = eventually(SOON, async || ready(namespace, &label, 1).await).await?;
    Forward::to(namespace.api::<Pod>(), &pods[0].name_any(), port).await
}

/// A client of the release's NATS with a login that is in a Secret.
///
/// # Errors
/// Where it is not let in.
pub async fn log_in(
    namespace: &Namespace,
    nats: &Forward,
    login: &str,
) -> anyhow::Result<async_nats::Client> {
    Ok(login_of(namespace, login).await?.connect(nats.address.to_string()).await?)
}

/// What such a client logs in by.
///
/// # Errors
/// Where there is no such Secret.
pub async fn login_of(namespace: &Namespace, login: &str) -> anyhow::Result<async_nats::ConnectOptions> {
    let secret = namespace.api::<Secret>().get(&format!("{NAME}-nats-{login}")).await?;
    let data = secret.data.context("an empty Secret")?;
    let text = |key: &str| -> anyhow::Result<String> {
        Ok(String::from_utf8(data.get(key).with_context(|| format!("no {key}"))?.0.clone())?)
    };
    let mut options = async_nats::ConnectOptions::new().user_and_password(text("user")?, text("password")?);
    if let Ok(prefix) = text("inboxPrefix") {
        options = options.custom_inbox_prefix(prefix);
    }
    Ok(options)
}
