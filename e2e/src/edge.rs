//! The edge as its visitors have it, and a way to put into its KV what no processor would.

use anyhow::{Context, anyhow, ensure};
use reqwest::StatusCode;
use scraper::{Html, Selector};
use serde_json::Value;
use taskpipeline_testkit::{Up, http};

/// Where wrangler serves the local KV as Cloudflare's API does.
const KV_API: &str = "/cdn-cgi/local/explorer/api/storage/kv/namespaces";

/// A client of a running edge.
#[derive(Debug)]
pub struct Edge {
    client: reqwest::Client,
    url: String,
}

impl Edge {
    /// Of this one.
    #[must_use]
    pub fn of(up: &Up) -> Self {
        Self::at(up.edge_url())
    }

    /// At this address.
    #[must_use]
    pub fn at(url: String) -> Self {
        Self { client: http(), url }
    }

    /// The whole address of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Status and body.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let response = self.client.get(self.url(path)).send().await?;
        Ok((response.status(), response.text().await?))
    }

    /// Status and body, which must be JSON.
    ///
    /// # Errors
    /// Where there is no answer, or it is no JSON.
    pub async fn json(&self, path: &str) -> anyhow::Result<(StatusCode, Value)> {
        let (status, text) = self.get(path).await?;
        Ok((status, serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))?))
    }

    /// What a person reads on a page.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn text(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let (status, page) = self.get(path).await?;
        let page = Html::parse_document(&page);
        let main = Selector::parse("main").map_err(|error| anyhow!("{error}"))?;
        let text: String = page.select(&main).flat_map(|main| main.text()).collect();
        Ok((status, text.split_whitespace().collect::<Vec<_>>().join(" ")))
    }

    /// Puts any value under any key of the KV, past the processor. The key must be percent-encoded.
    ///
    /// # Errors
    /// Where the KV does not take it.
    pub async fn put(&self, encoded_key: &str, value: Vec<u8>) -> anyhow::Result<()> {
        let (_, namespaces) = self.json(KV_API).await?;
        let namespace = namespaces["result"][0]["id"].as_str().context("there is no KV namespace")?;
        let url = self.url(&format!("{KV_API}/{namespace}/values/{encoded_key}"));
        let response = self.client.put(url).body(value).send().await?;
        let (status, text) = (response.status(), response.text().await?);
        ensure!(status == StatusCode::OK, "{encoded_key}: {status} {text}");
        Ok(())
    }
}
