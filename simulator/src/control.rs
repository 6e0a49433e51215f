//! The control endpoint: other processes set faults, read counters and landings, and reset the simulator.
//!
//! The endpoint is not part of the API: it has no token, no latency, no rate limit and no faults, and its requests
//! are not counted.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::time::Instant;

use crate::fault::Rule;
use crate::seen::Seen;
use crate::shared::Shared;

type Control = State<Arc<Shared>>;

pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/control/faults", get(read).put(replace).post(add).delete(clear))
        .route("/control/faults/{name}", delete(remove))
        .route("/control/tokens", put(tokens))
        .route("/control/seen", get(seen))
        .route("/control/landings", get(landings))
        .route("/control/reset", post(reset))
        .with_state(shared)
}

impl Shared {
    pub(crate) fn faults(&self) -> Vec<Rule> {
        self.world().lock().rules.rules(Instant::now())
    }

    pub(crate) fn set_faults(&self, rules: impl IntoIterator<Item = Rule>) {
        let world = self.world();
        let mut inner = world.lock();
        inner.rules.clear();
        let now = Instant::now();
        rules.into_iter().for_each(|rule| inner.rules.add(rule, now));
    }

    pub(crate) fn set_tokens(&self, tokens: Vec<String>) {
        self.world().lock().tokens = tokens;
    }

    pub(crate) fn inject(&self, rule: Rule) {
        self.world().lock().rules.add(rule, Instant::now());
    }

    pub(crate) fn remove_faults(&self, name: &str) {
        self.world().lock().rules.remove(name);
    }
}

async fn read(State(shared): Control) -> Json<Vec<Rule>> {
    Json(shared.faults())
}

async fn replace(State(shared): Control, rules: Result<Json<Vec<Rule>>, JsonRejection>) -> Response {
    set(rules, |rules| shared.set_faults(rules))
}

async fn tokens(State(shared): Control, tokens: Result<Json<Vec<String>>, JsonRejection>) -> Response {
    set(tokens, |tokens| shared.set_tokens(tokens))
}

async fn add(State(shared): Control, rule: Result<Json<Rule>, JsonRejection>) -> Response {
    set(rule, |rule| shared.inject(rule))
}

async fn clear(State(shared): Control) -> StatusCode {
    shared.set_faults([]);
    StatusCode::NO_CONTENT
}

async fn remove(State(shared): Control, Path(name): Path<String>) -> StatusCode {
    shared.remove_faults(&name);
    StatusCode::NO_CONTENT
}

async fn seen(State(shared): Control) -> Json<Seen> {
    Json(shared.world().lock().seen())
}

/// The query of `GET /control/landings`.
#[derive(Deserialize)]
struct LandingsQuery {
    #[serde(default)]
    from: u64,
    #[serde(default = "LandingsQuery::most")]
    most: usize,
}

impl LandingsQuery {
    /// The default: about 6 MB of lines.
    fn most() -> usize {
        100_000
    }
}

async fn landings(State(shared): Control, Query(query): Query<LandingsQuery>) -> Response {
    // Serialized after the lock is released.
    let landings = shared.world().lock().landings(query.from, query.most);
    let mut lines = Vec::new();
    for landing in landings {
        if let Err(error) = serde_json::to_writer(&mut lines, &landing) {
            return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
        }
        lines.push(b'\n');
    }
    ([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response()
}

async fn reset(State(shared): Control) -> StatusCode {
    shared.reset();
    StatusCode::NO_CONTENT
}

/// Applies a parsed body, or answers 400 without any change.
fn set<T>(what: Result<Json<T>, JsonRejection>, apply: impl FnOnce(T)) -> Response {
    match what {
        Ok(Json(what)) => {
            apply(what);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(rejection) => (StatusCode::BAD_REQUEST, rejection.body_text()).into_response(),
    }
}
