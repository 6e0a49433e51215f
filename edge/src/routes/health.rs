//! The health of the edge: whether KV answers.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::correlation::Correlation;
use crate::errors::{EdgeError, ErrorBody};
use crate::reader::TaskReader;
use crate::report;

/// The key that a health check reads. The key has no task prefix, so it is never a task.
///
/// A health check is a get: a list costs ten times as much, and Cloudflare's free plan allows 1,000 lists a day.
/// A probe every minute would exceed that.
const PROBE_KEY: &str = "health-probe";

#[derive(Serialize)]
struct Health<'a> {
    status: &'static str,
    kv: Part,
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorBody<'a>>,
}

#[derive(Serialize)]
struct Part {
    status: &'static str,
}

pub(super) async fn check<R: TaskReader>(
    State(reader): State<Arc<R>>,
    Extension(correlation): Extension<Correlation>,
) -> Result<Response, EdgeError> {
    let failure = reader.get(PROBE_KEY).await.err().map(EdgeError::Kv);
    let status = if failure.is_some() { "unavailable" } else { "ok" };
    let mut response = super::json(&Health {
        status,
        kv: Part { status },
        version: env!("CARGO_PKG_VERSION"),
        error: failure.as_ref().map(|error| error.body(&correlation)),
    })?;
    // The layer around the routes adds `no-store` to an answer without a cache header.
    response.headers_mut().remove(CACHE_CONTROL);
    if let Some(error) = failure {
        report::failure(&error, &correlation);
        let (parts, ()) = error.into_response().map(drop).into_parts();
        *response.status_mut() = parts.status;
        response.headers_mut().extend(parts.headers);
    }
    Ok(response)
}
