//! A simulator without latency, and an HTTP client of it.

use reqwest::{Client, Method, StatusCode};
use serde_json::Value;
use taskpipeline_simulator::{Config, Latency, Simulator};

pub(crate) async fn start(config: Config) -> (Simulator, Api) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let simulator = Simulator::start(Config { latency: Latency::NONE, ..config }).await.unwrap();
    let root = format!("{}/accounts/account/storage/kv/namespaces/namespace", simulator.base_url());
    let client = Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    (simulator, Api { client, root, token: "token".to_owned() })
}

pub(crate) struct Api {
    pub(crate) client: Client,
    pub(crate) root: String,
    pub(crate) token: String,
}

impl Api {
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> (StatusCode, Value) {
        let response = self.request(method, path, body).send().await.unwrap();
        let status = response.status();
        let bytes = response.bytes().await.unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::String(text)))
    }

    pub(crate) fn request(
        &self,
        method: Method,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.root)).bearer_auth(&self.token);
        request.body(body)
    }

    pub(crate) async fn code(
        &self,
        method: Method,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> (u16, i64) {
        let (status, answer) = self.call(method, path, body).await;
        assert_eq!(answer["success"], false, "{answer}");
        (status.as_u16(), answer["errors"][0]["code"].as_i64().unwrap())
    }
}
