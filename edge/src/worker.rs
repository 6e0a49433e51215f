//! The Worker's entry point, its KV binding and its cache, on the border to `JavaScript`.
//!
//! A request goes to the router, and a read goes to the binding. This module makes no other decisions.

use std::collections::HashMap;
use std::future::Future;

use axum::body::Body;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use tower_service::Service;
use worker::kv::{KvError, KvStore, ListResponse};
use worker::send::SendFuture;
use worker::{Cache, Context, Env, HttpRequest, event};

use crate::cached::{Cached, ListCache};
use crate::correlation::Correlation;
use crate::errors::{EdgeError, Fault};
use crate::reader::{KeyPage, ListedKey, ReadError, TaskReader};
use crate::routes::{self, Audience};

const BINDING: &str = "TASKS_KV";

/// The variable with the lifetime of cached list calls, in seconds. 0 turns the cache off.
const LIST_CACHE: &str = "LIST_CACHE_SECONDS";

/// The default of [`LIST_CACHE`], in seconds.
const LIST_CACHE_SECONDS: u32 = 30;

/// The lifetime of a value in KV's cache at the edge, in seconds: the least that Cloudflare allows.
const CACHE_TTL: u64 = 30;

#[event(start)]
fn start() {
    console_error_panic_hook::set_once();
}

#[event(fetch)]
async fn fetch(request: worker::Request, env: Env, _context: Context) -> worker::Result<Response> {
    // Not converted by the macro, which answers an invalid URL with a bare 500.
    let Ok(request) = HttpRequest::try_from(request) else {
        let fault = Fault { field: "url", problem: "must be a URL of at most 64 KiB".to_owned() };
        let error = EdgeError::BadRequest(vec![fault]).into_response();
        return Ok(routes::complete(error, Audience::People, &Correlation::generate()));
    };
    // No route reads a body.
    let request: Request<Body> = request.map(|_| Body::empty());
    let lists = Lists::new(&env, request.uri().authority().map_or("", |authority| authority.as_str()));
    let lists = Cached::new(KvReader::new(&env), lists);
    let Ok(response) = routes::router(lists).call(request).await;
    Ok(response)
}

/// Cloudflare's cache in this location. It caches on a custom domain, but not on `workers.dev`.
struct Lists {
    seconds: u32,
    /// The Worker's host: other Workers of the account, with other namespaces, may share the cache.
    host: String,
}

impl Lists {
    fn new(env: &Env, host: &str) -> Self {
        let seconds = env.var(LIST_CACHE).ok().and_then(|value| value.to_string().trim().parse().ok());
        Self { seconds: seconds.unwrap_or(LIST_CACHE_SECONDS), host: host.to_owned() }
    }

    /// The URL under which the cache keeps a key. `.invalid` never resolves to a host.
    fn address(&self, key: &str) -> String {
        format!("https://lists.taskpipeline.invalid/{}/{key}", self.host)
    }
}

impl ListCache for Lists {
    fn get(&self, key: &str) -> impl Future<Output = Option<String>> + Send {
        SendFuture::new(async move {
            if self.seconds == 0 {
                return None;
            }
            // A failure of the cache counts as a miss.
            let mut cached = Cache::default().get(self.address(key), true).await.ok()??;
            cached.text().await.ok()
        })
    }

    fn put(&self, key: &str, text: String) -> impl Future<Output = ()> + Send {
        SendFuture::new(async move {
            if self.seconds == 0 {
                return;
            }
            let Ok(response) = worker::Response::ok(text) else { return };
            let headers = worker::Headers::new();
            if headers.set("cache-control", &format!("public, max-age={}", self.seconds)).is_ok() {
                let _ = Cache::default().put(self.address(key), response.with_headers(headers)).await;
            }
        })
    }
}

/// The KV binding.
struct KvReader {
    /// An error if the Worker has no binding: the Worker then answers 503 and logs the cause.
    store: Result<KvStore, ReadError>,
}

impl KvReader {
    fn new(env: &Env) -> Self {
        Self { store: env.kv(BINDING).map_err(|error| ReadError::Unavailable(error.to_string())) }
    }
}

impl TaskReader for KvReader {
    fn list(
        &self,
        prefix: &str,
        limit: usize,
        cursor: Option<&str>,
    ) -> impl Future<Output = Result<KeyPage, ReadError>> + Send {
        SendFuture::new(async move {
            let mut list = self.store.clone()?.list().prefix(prefix.to_owned()).limit(limit as u64);
            if let Some(cursor) = cursor {
                list = list.cursor(cursor.to_owned());
            }
            list.execute().await.map(key_page).map_err(|error| list_error(&error, cursor.is_some()))
        })
    }

    fn get(&self, key: &str) -> impl Future<Output = Result<Option<String>, ReadError>> + Send {
        SendFuture::new(async move {
            self.store
                .clone()?
                .get(key)
                .cache_ttl(CACHE_TTL)
                .text()
                .await
                .map_err(|error| unavailable(&error))
        })
    }

    fn get_bulk(
        &self,
        keys: &[String],
    ) -> impl Future<Output = Result<HashMap<String, String>, ReadError>> + Send {
        SendFuture::new(async move {
            let values = self.store.clone()?.get_bulk(keys).cache_ttl(CACHE_TTL).text().await;
            let values = values.map_err(|error| unavailable(&error))?;
            Ok(values.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
        })
    }
}

fn key_page(listed: ListResponse) -> KeyPage {
    let key = |key: worker::kv::Key| ListedKey {
        name: key.name,
        metadata: key.metadata.map(|metadata| metadata.to_string()),
    };
    KeyPage {
        keys: listed.keys.into_iter().map(key).collect(),
        cursor: listed.cursor.filter(|_| !listed.list_complete),
    }
}

/// Classifies a failed list call.
///
/// The binding throws `KV LIST failed: 400 ...` for an unknown cursor. Only the cursor comes from the visitor.
fn list_error(error: &KvError, with_cursor: bool) -> ReadError {
    match unavailable(error) {
        ReadError::Unavailable(cause) if with_cursor && cause.contains("failed: 400") => {
            ReadError::UnknownCursor
        }
        error => error,
    }
}

fn unavailable(error: &KvError) -> ReadError {
    ReadError::Unavailable(error.to_string())
}
