//! The HTTP client of a namespace: bulk put, bulk delete, bulk get and list.
//!
//! The client sends each request at once. It does not retry, pace or wait: the caller does.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Url};
use secrecy::ExposeSecret;
use serde::Serialize;
use taskpipeline_contract::TaskKey;

use super::answer::{self, Entry, Failure, KeyPage};
use super::{Allowance, BulkApi, PutBody, Response};
use crate::settings::KvSettings;

/// The most keys in one page of a list (Cloudflare's limit).
const MOST_KEYS_PER_PAGE: &str = "1000";

/// The reason why a client cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The HTTP client cannot be set up.
    #[error(
        "cannot set up HTTPS: no CA certificates found. Install ca-certificates, or set SSL_CERT_FILE to a file of certificates"
    )]
    Http(#[from] reqwest::Error),
    /// The token has characters that an HTTP header cannot carry.
    #[error("invalid CF_API_TOKEN: it has characters that an HTTP header cannot carry")]
    Token,
}

/// A KV namespace behind its REST API.
#[derive(Clone, Debug)]
pub struct Namespace {
    http: reqwest::Client,
    url: Url,
    redact: Redact,
    allowance: Arc<Mutex<Option<Allowance>>>,
    /// The timeout of a request, in milliseconds.
    timeout: Arc<AtomicU64>,
}

impl Namespace {
    /// A client for the namespace of the settings. It connects with its first request.
    ///
    /// # Errors
    /// If the token does not fit a header, or TLS cannot be set up.
    pub fn new(settings: &KvSettings, request_timeout: Duration) -> Result<Self, ClientError> {
        // The provider is one for the whole process: a second call finds the first one installed.
        let _ = rustls::crypto::ring::default_provider().install_default();

        let token = settings.token.expose_secret();
        let mut authorization =
            HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| ClientError::Token)?;
        authorization.set_sensitive(true);
        let http = reqwest::Client::builder()
            .default_headers(HeaderMap::from_iter([(AUTHORIZATION, authorization)]))
            .user_agent(concat!("taskpipeline/", env!("CARGO_PKG_VERSION")))
            // A redirect would send the token to another address.
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let namespace = Self {
            http,
            url: settings.namespace_url.clone(),
            redact: Redact(settings.token.clone()),
            allowance: Arc::default(),
            timeout: Arc::default(),
        };
        namespace.set_request_timeout(request_timeout);
        Ok(namespace)
    }

    /// Lists at most 1,000 keys with this prefix from a cursor on, with their metadata.
    ///
    /// The answer may be a minute old.
    ///
    /// # Errors
    /// As [`BulkApi::bulk_get`].
    pub async fn list(&self, prefix: &str, cursor: Option<&str>) -> Result<KeyPage, Failure> {
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.push("keys");
        }
        url.query_pairs_mut()
            .append_pair("prefix", prefix)
            .append_pair("limit", MOST_KEYS_PER_PAGE)
            .extend_pairs(cursor.map(|cursor| ("cursor", cursor)));
        let request = self.http.request(Method::GET, url);
        self.exchange(request, answer::page).await.map_err(|failure| self.redact.failure(failure))
    }

    /// Reads values like [`BulkApi::bulk_get`], with their metadata if the server sends it.
    ///
    /// # Errors
    /// As [`BulkApi::bulk_get`].
    pub async fn bulk_get_whole(&self, keys: &[TaskKey]) -> Result<HashMap<String, Option<Entry>>, Failure> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body<'a> {
            keys: &'a [TaskKey],
            with_metadata: bool,
        }
        self.call(Method::POST, "bulk/get", &Body { keys, with_metadata: true }, answer::entries).await
    }

    async fn call<T>(
        &self,
        method: Method,
        path: &str,
        body: &(impl Serialize + Sync + ?Sized),
        read: impl FnOnce(&[u8]) -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Failure::Refused(format!("the request cannot be written: {error}")))?;
        self.call_with(method, path, body.into(), read).await
    }

    async fn call_with<T>(
        &self,
        method: Method,
        path: &str,
        body: reqwest::Body,
        read: impl FnOnce(&[u8]) -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        let request = self
            .http
            .request(method, format!("{}/{path}", self.url))
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        self.exchange(request, read).await.map_err(|failure| self.redact.failure(failure))
    }

    async fn exchange<T>(
        &self,
        request: reqwest::RequestBuilder,
        read: impl FnOnce(&[u8]) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let timeout = Duration::from_millis(self.timeout.load(Ordering::Relaxed));
        let response = request.timeout(timeout).send().await.map_err(|error| unanswered(&error))?;
        let status = response.status().as_u16();
        if let Some(value) = response.headers().get("ratelimit") {
            let allowance = value.to_str().ok().and_then(Allowance::parse);
            *self.allowance.lock().unwrap_or_else(PoisonError::into_inner) = allowance;
        }
        let retry_after = response.headers().get(RETRY_AFTER).cloned();
        let retry_after = retry_after.as_ref().and_then(|value| value.to_str().ok());
        let body = response.bytes().await.map_err(|error| unanswered(&error))?;
        Response { status, retry_after, body: &body }.read(SystemTime::now(), read)
    }
}

impl BulkApi for Namespace {
    async fn bulk_put(&self, body: PutBody) -> Result<HashSet<String>, Failure> {
        let (keys, body) = (body.keys(), reqwest::Body::wrap(body));
        self.call_with(Method::PUT, "bulk", body, |answer| answer::written(answer, keys)).await
    }

    async fn bulk_delete(&self, keys: &[TaskKey]) -> Result<HashSet<String>, Failure> {
        self.call(Method::POST, "bulk/delete", keys, |body| answer::written(body, keys.len())).await
    }

    async fn bulk_get(&self, keys: &[TaskKey]) -> Result<HashMap<String, Option<String>>, Failure> {
        #[derive(Serialize)]
        struct Body<'a> {
            keys: &'a [TaskKey],
        }
        self.call(Method::POST, "bulk/get", &Body { keys }, answer::values).await
    }

    fn set_request_timeout(&self, timeout: Duration) {
        self.timeout.store(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn allowance(&self) -> Option<Allowance> {
        self.allowance.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The failure of a request without an answer. Contains the causes, but not the URL, which names the account.
fn unanswered(error: &reqwest::Error) -> Failure {
    if error.is_timeout() {
        return Failure::TooSlow("KV did not answer in time".to_owned());
    }
    let mut what = String::from("no answer from KV");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        what.push_str(&format!(": {error}"));
        cause = error.source();
    }
    Failure::Transient(what)
}

/// Removes the token from a server's messages: a server that echoes the request must not put it into a log.
#[derive(Clone, Debug)]
struct Redact(secrecy::SecretString);

impl Redact {
    fn failure(&self, failure: Failure) -> Failure {
        match failure {
            Failure::Transient(what) => Failure::Transient(self.text(&what)),
            Failure::TooSlow(what) => Failure::TooSlow(self.text(&what)),
            Failure::Config(what) => Failure::Config(self.text(&what)),
            Failure::DailyQuota(what) => Failure::DailyQuota(self.text(&what)),
            Failure::Refused(what) => Failure::Refused(self.text(&what)),
            Failure::TooLarge(what) => Failure::TooLarge(self.text(&what)),
            Failure::Throttled(wait) => Failure::Throttled(wait),
        }
    }

    fn text(&self, what: &str) -> String {
        what.replace(self.0.expose_secret(), "[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_debug_nor_a_panic_shows_the_token() {
        let settings = KvSettings {
            namespace_url: Url::parse("http://127.0.0.1:1/namespaces/n").unwrap(),
            token: "marker-token".to_owned().into(),
        };
        let namespace = Namespace::new(&settings, Duration::from_secs(1)).unwrap();
        let printing = std::panic::AssertUnwindSafe(|| panic!("{settings:?} {namespace:?}"));
        let panic = std::panic::catch_unwind(printing).unwrap_err();
        let shown = panic.downcast_ref::<String>().unwrap();
        assert!(shown.contains("namespaces/n"), "{shown}");
        assert!(!shown.contains("marker-token"), "{shown}");
    }
}
