//! Parses a request's path, query and body to a [`Call`], and checks KV's limits. It does not access the namespace.

use std::collections::HashMap;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Multipart, Path, Query, Request};
use axum::http::{header, request};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::answer::ApiError;
use crate::operation::Operation;
use crate::store::Entry;
use crate::text::Text;

// <https://developers.cloudflare.com/kv/platform/limits/>, and the API's reference for the bulk calls.
const MAX_KEY_BYTES: usize = 512;
const MAX_METADATA_BYTES: usize = 1024;
const MAX_VALUE_BYTES: usize = 25 * 1024 * 1024;
const MAX_BULK_KEYS: usize = 10_000;
const MAX_BULK_GET_KEYS: usize = 100;
const MIN_TTL_SECONDS: u64 = 60;

/// A parsed request.
#[derive(Debug)]
pub(crate) enum Call {
    Write { changes: Vec<Change>, bulk: bool },
    Get(Arc<str>),
    BulkGet { keys: Vec<Arc<str>>, with_metadata: bool },
    List(List),
}

/// A key and its new entry; `None` deletes the key.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) key: Arc<str>,
    pub(crate) to: Option<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BulkGet {
    keys: Vec<Text<Arc<str>>>,
    #[serde(default)]
    with_metadata: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct List {
    #[serde(default)]
    pub(crate) prefix: String,
    #[serde(default = "List::longest")]
    pub(crate) limit: usize,
    #[serde(default)]
    pub(crate) cursor: String,
}

impl List {
    fn longest() -> usize {
        1_000
    }
}

#[derive(Deserialize)]
struct Pair {
    key: Text<Arc<str>>,
    value: Text<Box<str>>,
    metadata: Option<Box<RawValue>>,
    #[serde(default)]
    base64: bool,
    expiration_ttl: Option<u64>,
}

#[derive(Deserialize)]
struct WriteQuery {
    expiration_ttl: Option<u64>,
}

impl Call {
    /// Parses a request. The body may be empty if the operation has none.
    pub(crate) async fn read(
        operation: Operation,
        mut parts: request::Parts,
        body: Bytes,
    ) -> Result<Self, ApiError> {
        let path = Path::<HashMap<String, String>>::from_request_parts(&mut parts, &()).await;
        let Path(mut path) = path.map_err(|rejection| ApiError::BadRequest(rejection.body_text()))?;
        // Empty for paths without a key. `check_key` refuses an empty key.
        let key: Arc<str> = path.remove("key").unwrap_or_default().into();
        match operation {
            Operation::BulkPut => {
                let pairs: Vec<Pair> = json(&body)?;
                at_most(MAX_BULK_KEYS, pairs.len())?;
                let changes = pairs.into_iter().map(Pair::change).collect::<Result<_, _>>()?;
                Ok(Self::Write { changes, bulk: true })
            }
            Operation::BulkDelete => {
                let keys = checked_keys(json(&body)?, MAX_BULK_KEYS)?;
                let changes = keys.into_iter().map(|key| Change { key, to: None }).collect();
                Ok(Self::Write { changes, bulk: true })
            }
            Operation::BulkGet => {
                let BulkGet { keys, with_metadata } = json(&body)?;
                Ok(Self::BulkGet { keys: checked_keys(keys, MAX_BULK_GET_KEYS)?, with_metadata })
            }
            Operation::Put => {
                check_key(&key)?;
                let WriteQuery { expiration_ttl } = query(&mut parts).await?;
                let (value, metadata) = value_body(parts, body).await?;
                let to = Some(entry(value.as_ref().into(), metadata, expiration_ttl)?);
                Ok(Self::Write { changes: vec![Change { key, to }], bulk: false })
            }
            Operation::Delete => {
                check_key(&key)?;
                Ok(Self::Write { changes: vec![Change { key, to: None }], bulk: false })
            }
            Operation::Get => check_key(&key).map(|()| Self::Get(key)),
            Operation::List => {
                let list: List = query(&mut parts).await?;
                if !(10..=1_000).contains(&list.limit) {
                    return Err(ApiError::BadRequest("limit must be 10 to 1000".to_owned()));
                }
                Ok(Self::List(list))
            }
            // The path matched a route of the namespace, but the method did not.
            Operation::Other if path.contains_key("namespace") => Err(ApiError::UnknownMethod),
            Operation::Other => Err(ApiError::UnknownAccount),
        }
    }

    /// The keys of the call; a list has none.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Arc<str>> + Clone {
        let names = match self {
            Self::Get(key) => slice::from_ref(key),
            Self::BulkGet { keys, .. } => keys.as_slice(),
            Self::Write { .. } | Self::List(_) => &[],
        };
        self.changes().iter().map(|change| &change.key).chain(names)
    }

    /// The values that the call writes.
    pub(crate) fn values(&self) -> impl Iterator<Item = &[u8]> {
        self.changes().iter().filter_map(|change| Some(&*change.to.as_ref()?.value))
    }

    /// The changes of a write; empty for reads.
    pub(crate) fn changes(&self) -> &[Change] {
        if let Self::Write { changes, .. } = self { changes } else { &[] }
    }
}

impl Pair {
    fn change(self) -> Result<Change, ApiError> {
        if self.base64 {
            return Err(ApiError::BadRequest("base64 values are not supported".to_owned()));
        }
        check_key(&self.key.0)?;
        let to = entry(self.value.0.into(), self.metadata, self.expiration_ttl)?;
        Ok(Change { key: self.key.0, to: Some(to) })
    }
}

fn at_most(most: usize, count: usize) -> Result<(), ApiError> {
    if count > most { Err(ApiError::TooManyPairs(most)) } else { Ok(()) }
}

fn check_key(key: &str) -> Result<(), ApiError> {
    if key.is_empty() || key == "." || key == ".." {
        return Err(ApiError::BadRequest("a key must not be empty, . or ..".to_owned()));
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(ApiError::BadRequest(format!("a key must be at most {MAX_KEY_BYTES} bytes")));
    }
    Ok(())
}

fn checked_keys(keys: Vec<Text<Arc<str>>>, most: usize) -> Result<Vec<Arc<str>>, ApiError> {
    at_most(most, keys.len())?;
    keys.into_iter().map(|key| check_key(&key.0).map(|()| key.0)).collect()
}

fn entry(value: Box<[u8]>, metadata: Option<Box<RawValue>>, ttl: Option<u64>) -> Result<Entry, ApiError> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(ApiError::TooLarge("the value"));
    }
    if metadata.as_ref().is_some_and(|metadata| is_too_long(metadata.get())) {
        return Err(ApiError::BadRequest(format!("metadata must be at most {MAX_METADATA_BYTES} bytes")));
    }
    if ttl.is_some_and(|ttl| ttl < MIN_TTL_SECONDS) {
        return Err(ApiError::BadRequest(format!("expiration_ttl must be at least {MIN_TTL_SECONDS}")));
    }
    let expires = ttl.map(|ttl| Instant::now() + Duration::from_secs(ttl));
    Ok(Entry { value, metadata, expires })
}

/// Whether metadata is over the limit. Assumed: spaces between tokens and unnecessary escapes do not count.
fn is_too_long(metadata: &str) -> bool {
    let shortest = || serde_json::from_str::<Value>(metadata).map(|value| value.to_string().len());
    metadata.len() > MAX_METADATA_BYTES && !shortest().is_ok_and(|length| length <= MAX_METADATA_BYTES)
}

async fn query<T: DeserializeOwned>(parts: &mut request::Parts) -> Result<T, ApiError> {
    let query = Query::from_request_parts(parts, &()).await;
    query.map(|Query(query)| query).map_err(|rejection| ApiError::BadRequest(rejection.body_text()))
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::BadRequest(format!("invalid body: {error}")))
}

/// Reads a single value, either as the body or as a field of a form that can also have metadata.
async fn value_body(parts: request::Parts, body: Bytes) -> Result<(Bytes, Option<Box<RawValue>>), ApiError> {
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if content_type.is_some_and(|value| value.starts_with("multipart/form-data")) {
        form_body(Request::from_parts(parts, Body::from(body))).await
    } else {
        Ok((body, None))
    }
}

async fn form_body(request: Request) -> Result<(Bytes, Option<Box<RawValue>>), ApiError> {
    let bad = |what: &str| ApiError::BadRequest(format!("invalid form: {what}"));
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| bad(&error.body_text()))?;
    let (mut value, mut metadata) = (None, None);
    while let Some(field) = form.next_field().await.map_err(|error| bad(&error.body_text()))? {
        let name = field.name().unwrap_or_default().to_owned();
        let bytes = field.bytes().await.map_err(|error| bad(&error.body_text()))?;
        match name.as_str() {
            "value" => value = Some(bytes),
            "metadata" => {
                metadata = serde_json::from_slice(&bytes).map_err(|error| bad(&error.to_string()))?;
            }
            _ => {}
        }
    }
    Ok((value.ok_or_else(|| bad("no field named value"))?, metadata))
}
