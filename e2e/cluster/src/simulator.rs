//! The simulator of Cloudflare KV as a pod, and its control endpoint.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use taskpipeline_simulator::Rule;

use crate::{Forward, Image, Namespace, eventually, pods};

const PORT: u16 = 8788;

/// The tests' own token, which is always accepted.
const READER: &str = "e2e";

/// The simulator of Cloudflare KV in a pod, and its control endpoint.
pub struct SimulatorPod {
    control: Forward,
    client: reqwest::Client,
}

impl SimulatorPod {
    /// Starts a simulator named `kv` that accepts this token.
    ///
    /// # Errors
    /// If the pod does not become ready.
    pub async fn start(namespace: &Namespace, token: &str) -> anyhow::Result<Self> {
        Self::start_named(namespace, "kv", token).await
    }

    /// Starts a simulator with this name.
    ///
    /// # Errors
    /// If the pod does not become ready.
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

    /// The URL for pods of the namespace.
    #[must_use]
    pub fn base_url(name: &str) -> String {
        format!("http://{name}:{PORT}/client/v4")
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.control.address)
    }

    /// Accepts only these tokens of the pipeline.
    ///
    /// # Errors
    /// If the simulator does not answer.
    pub async fn let_in(&self, tokens: &[&str]) -> anyhow::Result<()> {
        let tokens: Vec<_> = tokens.iter().copied().chain([READER]).collect();
        let request = self.client.put(self.url("control/tokens")).header("content-type", "application/json");
        request.body(serde_json::to_string(&tokens)?).send().await?.error_for_status()?;
        Ok(())
    }

    /// Applies this rule to the following requests.
    ///
    /// # Errors
    /// If the simulator does not answer.
    pub async fn inject(&self, rule: &Rule) -> anyhow::Result<()> {
        let body = serde_json::to_string(&[rule])?;
        let request = self.client.put(self.url("control/faults")).header("content-type", "application/json");
        let answer = request.body(body).send().await?;
        ensure!(answer.status().is_success(), "the simulator refuses the rule: {}", answer.text().await?);
        Ok(())
    }

    /// Removes all rules.
    ///
    /// # Errors
    /// If the simulator does not answer.
    pub async fn mend(&self) -> anyhow::Result<()> {
        self.client.delete(self.url("control/faults")).send().await?.error_for_status()?;
        Ok(())
    }

    /// The simulator's counts of requests and answers.
    ///
    /// # Errors
    /// If the simulator does not answer.
    pub async fn seen(&self) -> anyhow::Result<Value> {
        let text = self.client.get(self.url("control/seen")).send().await?.text().await?;
        serde_json::from_str(&text).context("the counts of the simulator are not JSON")
    }

    /// The number of keys that landed in each second, by the simulator's clock in whole seconds of Unix time.
    ///
    /// # Errors
    /// If the simulator does not answer.
    pub async fn landings_by_second(&self) -> anyhow::Result<BTreeMap<u64, u32>> {
        let mut by_second = BTreeMap::new();
        let text =
            self.client.get(self.url("control/landings?from=0&most=1000000")).send().await?.text().await?;
        for line in text.lines() {
            let landing: Value = serde_json::from_str(line)?;
            let micros = landing[2].as_u64().context("a landing has no time")?;
            *by_second.entry(micros / 1_000_000).or_default() += 1;
        }
        Ok(by_second)
    }

    /// The number of requests that were answered with this status; all if it is `None`.
    ///
    /// # Errors
    /// If the simulator does not answer.
    pub async fn answers(&self, status: Option<u16>) -> anyhow::Result<u64> {
        let seen = self.seen().await?;
        let operations = seen["answers"].as_object().context("the simulator counts no answers")?;
        let by_status = operations.values().filter_map(Value::as_object).flatten();
        let wanted = status.map(|status| status.to_string());
        let counted = by_status.filter(|(status, _)| wanted.as_ref().is_none_or(|wanted| wanted == *status));
        Ok(counted.filter_map(|(_, count)| count.as_u64()).sum())
    }

    /// Reads a task's value from KV by the API.
    ///
    /// # Errors
    /// If the task is not in KV.
    pub async fn task(&self, id: &str) -> anyhow::Result<Value> {
        let path = format!("client/v4/accounts/account/storage/kv/namespaces/namespace/values/tasks%3A{id}");
        let answer = self.client.get(self.url(&path)).bearer_auth(READER).send().await?;
        ensure!(answer.status().is_success(), "{id} is not in KV ({})", answer.status());
        Ok(serde_json::from_str(&answer.text().await?)?)
    }

    /// The number of tasks in KV whose ids begin with this prefix.
    ///
    /// # Errors
    /// If the simulator does not answer.
    pub async fn count(&self, prefix: &str) -> anyhow::Result<u32> {
        let (mut count, mut cursor) = (0_usize, String::new());
        loop {
            let path = format!(
                "client/v4/accounts/account/storage/kv/namespaces/namespace/keys?prefix=tasks%3A{prefix}&cursor={cursor}"
            );
            let answer = self.client.get(self.url(&path)).bearer_auth(READER).send().await?;
            let page: Value = serde_json::from_str(&answer.text().await?)?;
            count += page["result"].as_array().context("a list has no result")?.len();
            page["result_info"]["cursor"].as_str().unwrap_or_default().clone_into(&mut cursor);
            if cursor.is_empty() {
                return Ok(u32::try_from(count)?);
            }
        }
    }

    /// Waits until these tasks are in KV: `{prefix}-0` and so on.
    ///
    /// # Errors
    /// If some are missing after `patience`; the error has their number.
    pub async fn has_all(&self, prefix: &str, tasks: u32, patience: Duration) -> anyhow::Result<()> {
        eventually(patience, async || {
            let there = self.count(&format!("{prefix}-")).await?;
            ensure!(there == tasks, "{there} of {tasks} tasks are in KV");
            Ok(())
        })
        .await
    }
}
