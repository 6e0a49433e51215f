//! nats-server as a pod.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use crate::{Forward, Image, Namespace, eventually, pods};

const PORT: u16 = 4222;
const MONITOR: u16 = 8222;

/// nats-server in a pod.
pub struct NatsPod {
    clients: Forward,
    monitor: Forward,
    login: Option<(String, String)>,
}

impl NatsPod {
    /// Starts nats-server with JetStream, named `nats`. `login` is the required user and password.
    ///
    /// # Errors
    /// If the pod does not become ready.
    pub async fn start(namespace: &Namespace, login: Option<(&str, &str)>) -> anyhow::Result<Self> {
        let authorization = login.map_or_else(String::new, |(user, password)| {
            format!("authorization {{ users: [{{user: \"{user}\", password: \"{password}\"}}] }}\n")
        });
        let config = format!("jetstream {{ store_dir: /data }}\nhttp_port: {MONITOR}\n{authorization}");
        namespace
            .apply::<ConfigMap>(json!({"metadata": {"name": "nats"}, "data": {"nats.conf": config}}))
            .await?;
        let container = json!({
            "image": Image::Tools.name()?,
            "command": ["/nats-server", "-c", "/etc/nats/nats.conf"],
            "ports": [{"name": "nats", "containerPort": PORT}, {"name": "monitor", "containerPort": MONITOR}],
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": MONITOR}, "periodSeconds": 1},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "config", "mountPath": "/etc/nats"}],
        });
        let pod = json!({"volumes": [
            {"name": "data", "emptyDir": {}},
            {"name": "config", "configMap": {"name": "nats"}},
        ]});
        pods::run(namespace, "nats", 1, container, &pod).await?;
        let pods =
            eventually(Duration::from_secs(60), async || pods::ready(namespace, "app=nats", 1).await).await?;
        let name = pods[0].metadata.name.clone().unwrap_or_default();
        Ok(Self {
            clients: Forward::to(namespace.api(), &name, PORT).await?,
            monitor: Forward::to(namespace.api(), &name, MONITOR).await?,
            login: login.map(|(user, password)| (user.to_owned(), password.to_owned())),
        })
    }

    /// Connects a client.
    ///
    /// # Errors
    /// If nats-server does not answer.
    pub async fn client(&self) -> anyhow::Result<async_nats::Client> {
        let mut options = async_nats::ConnectOptions::new();
        if let Some((user, password)) = &self.login {
            options = options.user_and_password(user.clone(), password.clone());
        }
        options
            .connect(self.clients.address.to_string())
            .await
            .context("nats-server in the cluster does not answer")
    }

    /// Reads a page of the monitoring port.
    ///
    /// # Errors
    /// If nats-server does not answer.
    pub async fn monitor(&self, page: &str) -> anyhow::Result<Value> {
        let url = format!("http://{}/{page}", self.monitor.address);
        let text = reqwest::get(url).await?.text().await?;
        serde_json::from_str(&text).with_context(|| format!("nats-server's {page} is not JSON"))
    }
}
