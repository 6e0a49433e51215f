//! The edge as visitors see it, and a way to put values into its KV that no processor would write.

use anyhow::{Context, anyhow, ensure};
use reqwest::StatusCode;
use scraper::{Html, Selector};
use serde_json::Value;
use taskpipeline_testkit::{Up, http};

/// The path under which wrangler serves the local KV like Cloudflare's API.
const KV_API: &str = "/cdn-cgi/local/explorer/api/storage/kv/namespaces";

/// A client of a running edge.
#[derive(Debug)]
pub struct Edge {
    client: reqwest::Client,
    url: String,
}

impl Edge {
    /// Returns a client of the edge of this product.
    #[must_use]
    pub fn of(up: &Up) -> Self {
        Self::at(up.edge_url())
    }

    /// Returns a client of the edge at this address.
    #[must_use]
    pub fn at(url: String) -> Self {
        Self { client: http(), url }
    }

    /// The full URL of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Requests a path, and returns status and body.
    ///
    /// # Errors
    /// If the edge does not answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let response = self.client.get(self.url(path)).send().await?;
        Ok((response.status(), response.text().await?))
    }

    /// Requests a path, and returns status and JSON.
    ///
    /// # Errors
    /// If the edge does not answer, or the body is not JSON.
    pub async fn json(&self, path: &str) -> anyhow::Result<(StatusCode, Value)> {
        let (status, text) = self.get(path).await?;
        Ok((status, serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))?))
    }

    /// Requests a page, and returns status and visible text.
    ///
    /// # Errors
    /// If the edge does not answer.
    pub async fn text(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let (status, page) = self.get(path).await?;
        let page = Html::parse_document(&page);
        let main = Selector::parse("main").map_err(|error| anyhow!("{error}"))?;
        let text: String = page.select(&main).flat_map(|main| main.text()).collect();
        Ok((status, text.split_whitespace().collect::<Vec<_>>().join(" ")))
    }

    /// Puts any value under any key of the KV, bypassing the processor. The key must be percent-encoded.
    ///
    /// # Errors
    /// If the KV refuses it.
    pub async fn put(&self, encoded_key: &str, value: Vec<u8>) -> anyhow::Result<()> {
        let (_, namespaces) = self.json(KV_API).await?;
        let namespace = namespaces["result"][0]["id"].as_str().context("the local KV has no namespace")?;
        let url = self.url(&format!("{KV_API}/{namespace}/values/{encoded_key}"));
        let response = self.client.put(url).body(value).send().await?;
        let (status, text) = (response.status(), response.text().await?);
        ensure!(status == StatusCode::OK, "{encoded_key}: {status} {text}");
        Ok(())
    }
}
