//! Stores, requests and answers for the tests of the edge.
#![allow(dead_code, unreachable_pub)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use scraper::{Html, Selector};
use serde_json::Value;
use taskpipeline_contract::{Status, Task, Timestamp};
use taskpipeline_edge::{Cached, KeyPage, ListCache, ListedKey, MemoryReader, ReadError, TaskReader, router};
use tower::ServiceExt;

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json", "{}", self.body);
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub fn html(&self) -> Html {
        assert_eq!(self.header("content-type"), "text/html; charset=utf-8", "{}", self.body);
        Html::parse_document(&self.body)
    }

    /// The texts of all elements that match the selector, as the visitor sees them.
    pub fn texts(&self, selector: &str) -> Vec<String> {
        let selector = Selector::parse(selector).unwrap();
        self.html().select(&selector).map(|element| element.text().collect()).collect()
    }

    pub fn attributes(&self, selector: &str, name: &str) -> Vec<String> {
        let selector = Selector::parse(selector).unwrap();
        self.html().select(&selector).map(|element| element.attr(name).unwrap().to_owned()).collect()
    }

    pub fn link(&self, selector: &str) -> Option<String> {
        self.attributes(selector, "href").pop()
    }

    /// The invalid fields in the answer to a bad request.
    pub fn faults(&self) -> Vec<String> {
        let body = self.json();
        let fields = body["error"]["fields"].as_array().expect("fields").clone();
        fields.iter().map(|fault| fault["field"].as_str().unwrap().to_owned()).collect()
    }
}

pub async fn send(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
}

pub async fn request(router: &Router, method: Method, uri: &str) -> Answer {
    send(router, Request::builder().method(method).uri(uri).body(Body::empty()).unwrap()).await
}

pub async fn get(router: &Router, uri: &str) -> Answer {
    request(router, Method::GET, uri).await
}

pub fn task(id: &str) -> Task {
    Task {
        id: id.parse().unwrap(),
        title: "My First Task".parse().unwrap(),
        description: "This is a test task".parse().unwrap(),
        status: Status::Pending,
        created_at: Timestamp::parse("2026-11-22T08:00:00.123Z").unwrap(),
        updated_at: Timestamp::parse("2026-11-22T09:30:05Z").unwrap(),
    }
}

pub fn store(tasks: &[Task]) -> MemoryReader {
    let store = MemoryReader::new();
    for task in tasks {
        store.put(task).unwrap();
    }
    store
}

/// Tasks with the ids `task-0000`, `task-0001` and so on, whose order is that of the numbers.
pub fn many(count: usize, status: impl Fn(usize) -> Status) -> MemoryReader {
    let tasks: Vec<Task> =
        (0..count).map(|n| Task { status: status(n), ..task(&format!("task-{n:04}")) }).collect();
    store(&tasks)
}

pub fn edge(tasks: &[Task]) -> Router {
    router(store(tasks))
}

/// The numbers of reads.
#[derive(Default)]
pub struct Counts {
    pub lists: AtomicUsize,
    pub listed_keys: AtomicUsize,
    pub gets: AtomicUsize,
    pub bulks: AtomicUsize,
    pub largest_bulk: AtomicUsize,
}

impl Counts {
    /// The numbers of lists, gets and bulk gets so far.
    pub fn seen(&self) -> (usize, usize, usize) {
        let [lists, gets, bulks] = [&self.lists, &self.gets, &self.bulks].map(|n| n.load(Ordering::SeqCst));
        (lists, gets, bulks)
    }
}

/// Counts reads.
pub struct CountingReader {
    store: MemoryReader,
    counts: Arc<Counts>,
}

pub fn counted(store: MemoryReader) -> (Router, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    (router(CountingReader { store, counts: counts.clone() }), counts)
}

/// A cache that keeps all texts.
#[derive(Default)]
pub struct MemoryCache(std::sync::Mutex<HashMap<String, String>>);

impl ListCache for MemoryCache {
    async fn get(&self, key: &str) -> Option<String> {
        self.0.lock().unwrap().get(key).cloned()
    }

    async fn put(&self, key: &str, text: String) {
        self.0.lock().unwrap().insert(key.to_owned(), text);
    }
}

/// Like [`counted`], with a cache of list calls.
pub fn counted_and_cached(store: MemoryReader) -> (Router, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let reader = CountingReader { store, counts: counts.clone() };
    (router(Cached::new(reader, MemoryCache::default())), counts)
}

impl TaskReader for CountingReader {
    async fn list(&self, prefix: &str, limit: usize, cursor: Option<&str>) -> Result<KeyPage, ReadError> {
        assert!((1..=1000).contains(&limit), "a list of {limit} keys");
        self.counts.lists.fetch_add(1, Ordering::SeqCst);
        let page = self.store.list(prefix, limit, cursor).await?;
        self.counts.listed_keys.fetch_add(page.keys.len(), Ordering::SeqCst);
        Ok(page)
    }

    async fn get(&self, key: &str) -> Result<Option<String>, ReadError> {
        self.counts.gets.fetch_add(1, Ordering::SeqCst);
        self.store.get(key).await
    }

    async fn get_bulk(&self, keys: &[String]) -> Result<HashMap<String, String>, ReadError> {
        assert!((1..=100).contains(&keys.len()), "a bulk get of {} values", keys.len());
        self.counts.bulks.fetch_add(1, Ordering::SeqCst);
        self.counts.largest_bulk.fetch_max(keys.len(), Ordering::SeqCst);
        self.store.get_bulk(keys).await
    }
}

/// A store whose operations fail as configured.
#[derive(Clone, Default)]
pub struct FailingReader {
    pub store: MemoryReader,
    pub lists_fail: bool,
    pub gets_fail: bool,
    pub bulks_fail: bool,
}

pub const SECRET_CAUSE: &str = "inner cause nobody should see";

impl FailingReader {
    fn fail(fails: bool) -> Result<(), ReadError> {
        if fails { Err(ReadError::Unavailable(SECRET_CAUSE.to_owned())) } else { Ok(()) }
    }
}

impl TaskReader for FailingReader {
    async fn list(&self, prefix: &str, limit: usize, cursor: Option<&str>) -> Result<KeyPage, ReadError> {
        Self::fail(self.lists_fail)?;
        self.store.list(prefix, limit, cursor).await
    }

    async fn get(&self, key: &str) -> Result<Option<String>, ReadError> {
        Self::fail(self.gets_fail)?;
        self.store.get(key).await
    }

    async fn get_bulk(&self, keys: &[String]) -> Result<HashMap<String, String>, ReadError> {
        Self::fail(self.bulks_fail)?;
        self.store.get_bulk(keys).await
    }
}

/// A store that lists these pages, one after the other, for any request. The cursor is the number of the next page.
pub struct ScriptedReader {
    pub pages: Vec<Vec<ListedKey>>,
    pub values: HashMap<String, String>,
}

impl TaskReader for ScriptedReader {
    async fn list(&self, _: &str, _: usize, cursor: Option<&str>) -> Result<KeyPage, ReadError> {
        let at: usize = cursor.map_or(Ok(0), str::parse).map_err(|_| ReadError::UnknownCursor)?;
        let keys = self.pages.get(at).cloned().ok_or(ReadError::UnknownCursor)?;
        Ok(KeyPage { keys, cursor: (at + 1 < self.pages.len()).then(|| (at + 1).to_string()) })
    }

    async fn get(&self, key: &str) -> Result<Option<String>, ReadError> {
        Ok(self.values.get(key).cloned())
    }

    async fn get_bulk(&self, keys: &[String]) -> Result<HashMap<String, String>, ReadError> {
        Ok(keys.iter().filter_map(|key| Some((key.clone(), self.values.get(key)?.clone()))).collect())
    }
}
