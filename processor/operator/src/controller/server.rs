//! The operator's `/livez`, `/readyz` and `/metrics`, on the leader and on standby operators.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};

/// The cause of the wait, or none if the operator is ready.
#[derive(Debug)]
pub(crate) struct State(Mutex<Option<&'static str>>);

impl Default for State {
    fn default() -> Self {
        Self(Mutex::new(Some("the operator is starting")))
    }
}

impl State {
    pub(crate) fn waits_for(&self, what: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
    }

    pub(crate) fn ready(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn get(&self) -> Option<&'static str> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The endpoints.
pub(crate) fn routes(state: Arc<State>, registry: Registry) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(move || ready(Arc::clone(&state))))
        .route("/metrics", get(move || metrics(registry.clone())))
}

async fn ready(state: Arc<State>) -> (StatusCode, String) {
    match state.get() {
        None => (StatusCode::OK, "ok".to_owned()),
        Some(what) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {what}")),
    }
}

async fn metrics(registry: Registry) -> ([(header::HeaderName, &'static str); 1], String) {
    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap_or_default();
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], text)
}
