//! The routes of the API, and the order in which a request is checked: token, rate limit, account,
//! namespace, contents. A write takes effect at the end of its latency, just before its answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::answer::{ApiError, ok};
use crate::rate_limit::Window;
use crate::seen::{Seen, Watch};
use crate::store::{Store, Stored};
use crate::{Config, Latency};

/// <https://developers.cloudflare.com/kv/platform/limits/>, and the API's reference for the bulk calls.
const MAX_KEY_BYTES: usize = 512;
const MAX_METADATA_BYTES: usize = 1024;
const MAX_VALUE_BYTES: usize = 25 * 1024 * 1024;
const MAX_BULK_KEYS: usize = 10_000;
const MAX_BULK_BYTES: usize = 100 * 1024 * 1024;
const MAX_BULK_GET_KEYS: usize = 100;
const MIN_TTL_SECONDS: u64 = 60;

#[derive(Debug)]
pub(crate) struct Shared {
    config: Config,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    store: Store,
    window: Window,
    watch: Watch,
}

type Answer = Result<Response, ApiError>;
type Api = State<Arc<Shared>>;

impl Shared {
    pub(crate) fn new(config: Config) -> Self {
        Self { config, inner: Mutex::default() }
    }

    pub(crate) fn seen(&self) -> Seen {
        let inner = self.lock();
        Seen { most_in_a_window: inner.window.most(), ..inner.watch.seen.clone() }
    }

    pub(crate) fn get(&self, key: &str) -> Option<Stored> {
        self.lock().store.get(key, Instant::now()).cloned()
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.lock().store.keys()
    }

    pub(crate) fn seed(&self, key: &str, value: Vec<u8>) {
        self.lock().store.put(key.to_owned(), Stored { value, metadata: None, expires: None });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a request over these keys while it takes its time, and then does what it is for.
    async fn perform<T>(
        &self,
        operation: &'static str,
        keys: &[&str],
        effect: impl FnOnce(&mut Store, &mut Watch) -> T,
    ) -> T {
        self.lock().watch.begin(operation, keys.iter().copied());
        let latency = self.config.latency;
        if latency != Latency::NONE {
            tokio::time::sleep(latency.draw(rand::random())).await;
        }
        let mut inner = self.lock();
        let Inner { store, watch, .. } = &mut *inner;
        watch.end(keys.iter().copied());
        effect(store, watch)
    }
}

pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    let namespace = Router::new()
        .route("/values/{key}", get(read_value).put(write_value).delete(delete_value))
        .route("/bulk", put(bulk_put).delete(bulk_delete))
        .route("/bulk/delete", post(bulk_delete))
        .route("/bulk/get", post(bulk_get))
        .route("/keys", get(list_keys));
    Router::new()
        .nest("/client/v4/accounts/{account}/storage/kv/namespaces/{namespace}", namespace)
        .fallback(async || ApiError::UnknownAccount)
        .layer(DefaultBodyLimit::max(MAX_BULK_BYTES))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), check))
        .with_state(shared)
}

/// Token, rate limit, account and namespace, before anything of the body is read.
async fn check(State(shared): Api, request: Request, next: Next) -> Response {
    let admitted = {
        let mut inner = shared.lock();
        let admitted = admit(&shared.config, &mut inner.window, &request);
        match &admitted {
            Err(ApiError::Throttled(_)) => inner.watch.seen.throttled += 1,
            Err(_) => inner.watch.seen.refused += 1,
            Ok(()) => {}
        }
        admitted
    };
    match admitted {
        Err(error) => error.into_response(),
        Ok(()) => {
            // On a task of its own: a client that goes away does not stop what its request began.
            let Ok(response) = tokio::spawn(next.run(request)).await else {
                return StatusCode::INTERNAL_SERVER_ERROR.into_response();
            };
            if !response.status().is_success() {
                shared.lock().watch.seen.refused += 1;
            }
            response
        }
    }
}

fn admit(config: &Config, window: &mut Window, request: &Request) -> Result<(), ApiError> {
    let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if bearer.and_then(|value| value.strip_prefix("Bearer ")) != Some(&config.token) {
        return Err(ApiError::Authentication);
    }
    if let Some(limit) = config.rate_limit {
        window.admit(limit, Instant::now()).map_err(ApiError::Throttled)?;
    }
    let rest = request.uri().path().strip_prefix("/client/v4/accounts/").unwrap_or_default();
    let mut parts = rest.split('/');
    if parts.next() != Some(&config.account) {
        return Err(ApiError::UnknownAccount);
    }
    match parts.nth(3) {
        Some(namespace) if namespace == config.namespace => Ok(()),
        _ => Err(ApiError::UnknownNamespace),
    }
}

#[derive(Deserialize)]
struct Pair {
    key: String,
    value: String,
    metadata: Option<Value>,
    #[serde(default)]
    base64: bool,
    expiration_ttl: Option<u64>,
}

async fn bulk_put(State(shared): Api, body: Request) -> Answer {
    let pairs: Vec<Pair> = json_body(body).await?;
    if pairs.len() > MAX_BULK_KEYS {
        return Err(ApiError::TooManyPairs(MAX_BULK_KEYS));
    }
    let mut keys = Vec::with_capacity(pairs.len());
    let mut entries = Vec::with_capacity(pairs.len());
    for pair in pairs {
        if pair.base64 {
            return Err(ApiError::BadRequest("base64 values are not simulated".to_owned()));
        }
        let stored = stored(&pair.key, pair.value.into_bytes(), pair.metadata, pair.expiration_ttl)?;
        keys.push(pair.key);
        entries.push(stored);
    }
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    let count = shared
        .perform("bulk_put", &names, |store, watch| {
            let now = Instant::now();
            for (key, stored) in names.iter().zip(entries) {
                watch.wrote(key, now);
                store.put((*key).to_owned(), stored);
            }
            watch.seen.keys_put += names.len() as u64;
            names.len()
        })
        .await;
    Ok(ok(json!({"successful_key_count": count, "unsuccessful_keys": []})))
}

async fn bulk_delete(State(shared): Api, body: Request) -> Answer {
    let keys: Vec<String> = json_body(body).await?;
    if keys.len() > MAX_BULK_KEYS {
        return Err(ApiError::TooManyPairs(MAX_BULK_KEYS));
    }
    keys.iter().try_for_each(|key| check_key(key))?;
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    shared.perform("bulk_delete", &names, |store, watch| delete(store, watch, &names)).await;
    Ok(ok(json!({"successful_key_count": names.len(), "unsuccessful_keys": []})))
}

fn delete(store: &mut Store, watch: &mut Watch, keys: &[&str]) {
    let now = Instant::now();
    for key in keys {
        watch.wrote(key, now);
        store.delete(key);
    }
    watch.seen.keys_deleted += keys.len() as u64;
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BulkGet {
    keys: Vec<String>,
    #[serde(default)]
    with_metadata: bool,
}

async fn bulk_get(State(shared): Api, body: Request) -> Answer {
    let BulkGet { keys, with_metadata } = json_body(body).await?;
    if keys.len() > MAX_BULK_GET_KEYS {
        return Err(ApiError::TooManyPairs(MAX_BULK_GET_KEYS));
    }
    keys.iter().try_for_each(|key| check_key(key))?;
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    let values = shared
        .perform("bulk_get", &names, |store, _| {
            let now = Instant::now();
            let value = |key: &&str| {
                let stored = store.get(key, now)?;
                let text = String::from_utf8_lossy(&stored.value);
                Some(if with_metadata {
                    json!({"value": text, "metadata": stored.metadata})
                } else {
                    json!(text)
                })
            };
            names.iter().map(|key| ((*key).to_owned(), value(key))).collect::<HashMap<_, _>>()
        })
        .await;
    Ok(ok(json!({"values": values})))
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    prefix: String,
    limit: Option<usize>,
    #[serde(default)]
    cursor: String,
}

async fn list_keys(State(shared): Api, Query(query): Query<ListQuery>) -> Answer {
    let limit = query.limit.unwrap_or(1_000);
    if !(10..=1_000).contains(&limit) {
        return Err(ApiError::BadRequest("limit must be 10 to 1000".to_owned()));
    }
    let page = shared
        .perform("list", &[], |store, _| store.list(&query.prefix, &query.cursor, limit, Instant::now()))
        .await;
    let keys: Vec<_> = page
        .keys
        .into_iter()
        .map(|(name, metadata)| match metadata {
            Some(metadata) => json!({"name": name, "metadata": metadata}),
            None => json!({"name": name}),
        })
        .collect();
    let info = json!({"count": keys.len(), "cursor": page.cursor.unwrap_or_default()});
    Ok(axum::Json(json!({
        "success": true, "errors": [], "messages": [], "result": keys, "result_info": info
    }))
    .into_response())
}

async fn read_value(State(shared): Api, Path(path): Path<HashMap<String, String>>) -> Answer {
    let key = key_of(&path)?;
    let found = shared.perform("get", &[key], |store, _| store.get(key, Instant::now()).cloned()).await;
    let stored = found.ok_or(ApiError::UnknownKey)?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], stored.value).into_response())
}

#[derive(Deserialize)]
struct WriteQuery {
    expiration_ttl: Option<u64>,
}

async fn write_value(
    State(shared): Api,
    Path(path): Path<HashMap<String, String>>,
    Query(query): Query<WriteQuery>,
    request: Request,
) -> Answer {
    let key = key_of(&path)?;
    let is_form = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("multipart/form-data"));
    let (value, metadata) = if is_form { form_body(request).await? } else { (bytes(request).await?, None) };
    let stored = stored(key, value.to_vec(), metadata, query.expiration_ttl)?;
    shared
        .perform("put", &[key], |store, watch| {
            watch.wrote(key, Instant::now());
            watch.seen.keys_put += 1;
            store.put(key.to_owned(), stored);
        })
        .await;
    Ok(ok(Value::Null))
}

async fn delete_value(State(shared): Api, Path(path): Path<HashMap<String, String>>) -> Answer {
    let key = key_of(&path)?;
    shared.perform("delete", &[key], |store, watch| delete(store, watch, &[key])).await;
    Ok(ok(Value::Null))
}

fn key_of(path: &HashMap<String, String>) -> Result<&str, ApiError> {
    let key = path.get("key").map(String::as_str).unwrap_or_default();
    check_key(key).map(|()| key)
}

fn check_key(key: &str) -> Result<(), ApiError> {
    if key.is_empty() || key == "." || key == ".." {
        return Err(ApiError::BadRequest("a key may not be empty, . or ..".to_owned()));
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(ApiError::BadRequest(format!("a key may have at most {MAX_KEY_BYTES} bytes")));
    }
    Ok(())
}

fn stored(key: &str, value: Vec<u8>, metadata: Option<Value>, ttl: Option<u64>) -> Result<Stored, ApiError> {
    check_key(key)?;
    if value.len() > MAX_VALUE_BYTES {
        return Err(ApiError::TooLarge("the value"));
    }
    if metadata.as_ref().is_some_and(|metadata| metadata.to_string().len() > MAX_METADATA_BYTES) {
        return Err(ApiError::BadRequest(format!("metadata may have at most {MAX_METADATA_BYTES} bytes")));
    }
    if ttl.is_some_and(|ttl| ttl < MIN_TTL_SECONDS) {
        return Err(ApiError::BadRequest(format!("expiration_ttl must be at least {MIN_TTL_SECONDS}")));
    }
    let expires = ttl.map(|ttl| Instant::now() + Duration::from_secs(ttl));
    Ok(Stored { value, metadata, expires })
}

async fn bytes(request: Request) -> Result<Bytes, ApiError> {
    Bytes::from_request(request, &()).await.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge("the body"),
        _ => ApiError::BadRequest("the body cannot be read".to_owned()),
    })
}

async fn json_body<T: DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    let bytes = bytes(request).await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::BadRequest(format!("the body is not what was expected: {error}")))
}

async fn form_body(request: Request) -> Result<(Bytes, Option<Value>), ApiError> {
    let bad = |what: &str| ApiError::BadRequest(format!("the form cannot be read: {what}"));
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| bad(&error.body_text()))?;
    let (mut value, mut metadata) = (None, None);
    while let Some(field) = form.next_field().await.map_err(|error| bad(&error.body_text()))? {
        let name = field.name().unwrap_or_default().to_owned();
        let bytes = field.bytes().await.map_err(|error| bad(&error.body_text()))?;
        match name.as_str() {
            "value" => value = Some(bytes),
            "metadata" => {
                metadata = Some(serde_json::from_slice(&bytes).map_err(|error| bad(&error.to_string()))?);
            }
            _ => {}
        }
    }
    Ok((value.ok_or_else(|| bad("no field named value"))?, metadata))
}
