//! What a request asks for, read from its path, query and body and checked against KV's limits. It may not
//! touch the namespace.

use std::collections::HashMap;
use std::slice;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Multipart, Path, Query, Request};
use axum::http::{StatusCode, header, request};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use crate::answer::ApiError;
use crate::operation::Operation;
use crate::store::Stored;

/// <https://developers.cloudflare.com/kv/platform/limits/>, and the API's reference for the bulk calls.
const MAX_KEY_BYTES: usize = 512;
const MAX_METADATA_BYTES: usize = 1024;
const MAX_VALUE_BYTES: usize = 25 * 1024 * 1024;
const MAX_BULK_KEYS: usize = 10_000;
const MAX_BULK_GET_KEYS: usize = 100;
const MIN_TTL_SECONDS: u64 = 60;
pub(crate) const MAX_BULK_BYTES: usize = 100 * 1024 * 1024;

/// What a request asks for.
#[derive(Debug)]
pub(crate) enum Call {
    Write { changes: Vec<Change>, bulk: bool },
    Get(String),
    BulkGet(BulkGet),
    List(List),
}

/// A key and what it becomes; nothing: it is deleted.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) key: String,
    pub(crate) to: Option<Stored>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BulkGet {
    pub(crate) keys: Vec<String>,
    #[serde(default)]
    pub(crate) with_metadata: bool,
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
    key: String,
    value: String,
    metadata: Option<Value>,
    #[serde(default)]
    base64: bool,
    expiration_ttl: Option<u64>,
}

#[derive(Deserialize)]
struct WriteQuery {
    expiration_ttl: Option<u64>,
}

impl Call {
    pub(crate) async fn read(operation: Operation, request: Request) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let path = Path::<HashMap<String, String>>::from_request_parts(&mut parts, &()).await;
        let Path(mut path) = path.map_err(|rejection| ApiError::BadRequest(rejection.body_text()))?;
        // Only where the path needs one; an empty key is refused.
        let key = path.remove("key").unwrap_or_default();
        match operation {
            Operation::BulkPut => {
                let pairs: Vec<Pair> = json_body(Request::from_parts(parts, body)).await?;
                at_most(MAX_BULK_KEYS, pairs.len())?;
                let changes = pairs.into_iter().map(Pair::change).collect::<Result<_, _>>()?;
                Ok(Self::Write { changes, bulk: true })
            }
            Operation::BulkDelete => {
                let keys: Vec<String> = json_body(Request::from_parts(parts, body)).await?;
                at_most(MAX_BULK_KEYS, keys.len())?;
                keys.iter().try_for_each(|key| check_key(key))?;
                let changes = keys.into_iter().map(|key| Change { key, to: None }).collect();
                Ok(Self::Write { changes, bulk: true })
            }
            Operation::BulkGet => {
                let get: BulkGet = json_body(Request::from_parts(parts, body)).await?;
                at_most(MAX_BULK_GET_KEYS, get.keys.len())?;
                get.keys.iter().try_for_each(|key| check_key(key))?;
                Ok(Self::BulkGet(get))
            }
            Operation::Put => {
                check_key(&key)?;
                let WriteQuery { expiration_ttl } = query(&mut parts).await?;
                let (value, metadata) = value_body(Request::from_parts(parts, body)).await?;
                let to = Some(stored(value.to_vec(), metadata, expiration_ttl)?);
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
            // A route that names the namespace matched the path, but not the method.
            Operation::Other if path.contains_key("namespace") => Err(ApiError::UnknownMethod),
            Operation::Other => Err(ApiError::UnknownAccount),
        }
    }

    /// The keys it is about; a list has none.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> + Clone {
        let names = match self {
            Self::Get(key) => slice::from_ref(key),
            Self::BulkGet(get) => get.keys.as_slice(),
            Self::Write { .. } | Self::List(_) => &[],
        };
        self.changes().iter().map(|change| change.key.as_str()).chain(names.iter().map(String::as_str))
    }

    /// The values it writes.
    pub(crate) fn values(&self) -> impl Iterator<Item = &[u8]> {
        self.changes().iter().filter_map(|change| Some(change.to.as_ref()?.value.as_slice()))
    }

    /// What it changes; nothing where it only reads.
    pub(crate) fn changes(&self) -> &[Change] {
        if let Self::Write { changes, .. } = self { changes } else { &[] }
    }
}

impl Pair {
    fn change(self) -> Result<Change, ApiError> {
        if self.base64 {
            return Err(ApiError::BadRequest("base64 values are not simulated".to_owned()));
        }
        check_key(&self.key)?;
        let to = stored(self.value.into_bytes(), self.metadata, self.expiration_ttl)?;
        Ok(Change { key: self.key, to: Some(to) })
    }
}

fn at_most(most: usize, count: usize) -> Result<(), ApiError> {
    if count > most { Err(ApiError::TooManyPairs(most)) } else { Ok(()) }
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

fn stored(value: Vec<u8>, metadata: Option<Value>, ttl: Option<u64>) -> Result<Stored, ApiError> {
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

async fn query<T: DeserializeOwned>(parts: &mut request::Parts) -> Result<T, ApiError> {
    let query = Query::from_request_parts(parts, &()).await;
    query.map(|Query(query)| query).map_err(|rejection| ApiError::BadRequest(rejection.body_text()))
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

/// A single value, alone or in a form with its metadata.
async fn value_body(request: Request) -> Result<(Bytes, Option<Value>), ApiError> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if content_type.is_some_and(|value| value.starts_with("multipart/form-data")) {
        form_body(request).await
    } else {
        Ok((bytes(request).await?, None))
    }
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
