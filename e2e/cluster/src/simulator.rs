//! Cloudflare KV's simulator as a pod, and its control endpoint.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use taskpipeline_simulator::Rule;

use crate::{Forward, Image, Namespace, eventually, pods};

const PORT: u16 = 8788;

/// The tests' own token, which is always let in.
const READER: &str = "e2e";

/// Cloudflare KV's simulator in a pod, and its control endpoint.
pub struct SimulatorPod {
    control: Forward,
    client: reqwest::Client,
}

impl SimulatorPod {
    /// Starts one named `kv`, which lets this token in.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub async fn start(namespace: &Namespace, token: &str) -> anyhow::Result<Self> {
        Self::start_named(namespace, "kv", token).await
    }

    /// Starts one of this name.
    ///
    /// # Errors
    /// Where it does not get ready.
    pub async fn start_named(namespace: &Namespace, name: &str, token: &str) -> anyhow::Result<Self> {
        let container = json!({
            "image": Image::Demo.name()?,
            "args": ["--listen", format!("0.0.0.0:{PORT}"), "--limit", "0", "--latency", "20", "--latency-tail", "0", "--record-landings"],
            "env": [{"name": "SIMULATOR_TOKEN", "value": READER}],
            "ports": [{"name": "http", "containerPort": PORT}],
            "readinessProbe": {"httpGet": {"path": "/control/seen", "port": PORT}, "periodSeconds": 1},
        });
        pods::run(namespace, name, 1, container, &json!({})).await?;
        let label = format!("app={name}");
        let pods =
            eventually(Duration::from_secs(60), async || pods::ready(namespace, &label, 1).await).await?;
        let pod = pods[0].metadata.name.clone().unwrap_or_default();
        let started =
            Self { control: Forward::to(namespace.api(), &pod, PORT).await?, client: reqwest::Client::new() };
        started.let_in(&[token]).await?;
        Ok(started)
    }

    /// Where pods of the namespace find it.
    #[must_use]
    pub fn base_url(name: &str) -> String {
        format!("http://{name}:{PORT}/client/v4")
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.control.address)
    }

    /// Lets in these tokens of the pipeline's, and no others.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn let_in(&self, tokens: &[&str]) -> anyhow::Result<()> {
        let tokens: Vec<_> = tokens.iter().copied().chain([READER]).collect();
        let request = self.client.put(self.url("control/tokens")).header("content-type", "application/json");
        request.body(serde_json::to_string(&tokens)?).send().await?.error_for_status()?;
        Ok(())
    }

    /// From now on this befalls requests.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn inject(&self, rule: &Rule) -> anyhow::Result<()> {
        let body = serde_json::to_string(&[rule])?;
        let request = self.client.put(self.url("control/faults")).header("content-type", "application/json");
        let answer = request.body(body).send().await?;
        ensure!(answer.status().is_success(), "the simulator takes no rule: {}", answer.text().await?);
        Ok(())
    }

    /// Nothing befalls requests any more.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn mend(&self) -> anyhow::Result<()> {
        self.client.delete(self.url("control/faults")).send().await?.error_for_status()?;
        Ok(())
    }

    /// What it has seen.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn seen(&self) -> anyhow::Result<Value> {
        let text = self.client.get(self.url("control/seen")).send().await?.text().await?;
        serde_json::from_str(&text).context("what the simulator has seen is no JSON")
    }

    /// How many keys landed in each second, by the simulator's clock in whole seconds of Unix time.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn landings_by_second(&self) -> anyhow::Result<BTreeMap<u64, u32>> {
        let mut by_second = BTreeMap::new();
        let text =
            self.client.get(self.url("control/landings?from=0&most=1000000")).send().await?.text().await?;
        for line in text.lines() {
            let landing: Value = serde_json::from_str(line)?;
            let micros = landing[2].as_u64().context("a landing without a time")?;
            *by_second.entry(micros / 1_000_000).or_default() += 1;
        }
        Ok(by_second)
    }

    /// How many requests were answered with this status; all, if none is given.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn answers(&self, status: Option<u16>) -> anyhow::Result<u64> {
        let seen = self.seen().await?;
        let operations = seen["answers"].as_object().context("the simulator counts no answers")?;
        let by_status = operations.values().filter_map(Value::as_object).flatten();
        let wanted = status.map(|status| status.to_string());
        let counted = by_status.filter(|(status, _)| wanted.as_ref().is_none_or(|wanted| wanted == *status));
        Ok(counted.filter_map(|(_, count)| count.as_u64()).sum())
    }

    /// A task's value in KV, read as the API's users read it.
    ///
    /// # Errors
    /// Where it is not there.
    pub async fn task(&self, id: &str) -> anyhow::Result<Value> {
        let path = format!("client/v4/accounts/account/storage/kv/namespaces/namespace/values/tasks%3A{id}");
        let answer = self.client.get(self.url(&path)).bearer_auth(READER).send().await?;
        ensure!(answer.status().is_success(), "{id} is not in KV ({})", answer.status());
        Ok(serde_json::from_str(&answer.text().await?)?)
    }

    /// How many tasks are in KV whose ids begin like this.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn count(&self, prefix: &str) -> anyhow::Result<u32> {
        let (mut count, mut cursor) = (0_usize, String::new());
        loop {
            let path = format!(
                "client/v4/accounts/account/storage/kv/namespaces/namespace/keys?prefix=tasks%3A{prefix}&cursor={cursor}"
            );
            let answer = self.client.get(self.url(&path)).bearer_auth(READER).send().await?;
            let page: Value = serde_json::from_str(&answer.text().await?)?;
            count += page["result"].as_array().context("a list without a result")?.len();
            page["result_info"]["cursor"].as_str().unwrap_or_default().clone_into(&mut cursor);
            if cursor.is_empty() {
                return Ok(u32::try_from(count)?);
            }
        }
    }

    /// All of these tasks are in KV: `{prefix}-0` and so on.
    ///
    /// # Errors
    /// How many are not, where they do not get there in time.
    pub async fn has_all(&self, prefix: &str, tasks: u32, patience: Duration) -> anyhow::Result<()> {
        eventually(patience, async || {
            let there = self.count(&format!("{prefix}-")).await?;
            ensure!(there == tasks, "{there} of {tasks} tasks are in KV");
            Ok(())
        })
        .await
    }
}
