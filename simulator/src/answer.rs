//! The answers: the v4 envelope, the errors of the API, and the answers of faults.
//!
//! This module does not choose an answer for a request, and does not access the namespace.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use crate::fault::Fault;
use crate::rate_limit::Quota;

/// The reply to a client.
#[derive(Debug)]
pub(crate) enum Reply {
    Answer(Response),
    /// No answer: the simulator closes the connection.
    Closed,
    /// No answer: the connection remains open.
    Never,
}

impl Reply {
    pub(crate) fn status(&self) -> Option<u16> {
        if let Self::Answer(response) = self { Some(response.status().as_u16()) } else { None }
    }
}

impl<T: IntoResponse> From<T> for Reply {
    fn from(answer: T) -> Self {
        Self::Answer(answer.into_response())
    }
}

/// The reply of a fault that prevents the effect of a request; `None` for faults that keep the effect.
pub(crate) fn instead(fault: &Fault, authorization: Option<&HeaderValue>) -> Option<Reply> {
    Some(match fault {
        Fault::RevokedToken => ApiError::Authentication.into(),
        Fault::MalformedToken => malformed_token().into(),
        Fault::Throttled { retry_after } => ApiError::Throttled(*retry_after).into(),
        Fault::UnknownAccount => ApiError::UnknownAccount.into(),
        Fault::MissingNamespace => ApiError::UnknownNamespace.into(),
        Fault::Status { status, code, message } => {
            ApiError::Injected { status: *status, code: *code, message: message.clone() }.into()
        }
        Fault::EchoAuthorization { status } => {
            let quoted = authorization.map(|value| String::from_utf8_lossy(value.as_bytes()));
            let message = Some(format!("not allowed: authorization: {}", quoted.unwrap_or_default()));
            ApiError::Injected { status: *status, code: Some(10_000), message }.into()
        }
        Fault::Hang => Reply::Never,
        Fault::Redirect { location } => redirect(location).into(),
        Fault::Html => Html(PAGE).into(),
        Fault::Page { status } => (injected(*status), Html(PAGE)).into(),
        Fault::Garbage => ([(header::CONTENT_TYPE, "application/json")], GARBAGE).into(),
        Fault::Slow { .. }
        | Fault::LostAnswer { .. }
        | Fault::Late { .. }
        | Fault::Partial { .. }
        | Fault::Stale { .. }
        | Fault::Truncated
        | Fault::Nulls => return None,
    })
}

const PAGE: &str =
    "<!DOCTYPE html><html><head><title>Welcome</title></head><body>Please sign in</body></html>";
const GARBAGE: &[u8] = b"\x00\xff{\"success\": tru";

/// Cloudflare's answer to an invalid `Authorization` header: the reason is in the error's chain.
fn malformed_token() -> Response {
    let reason = json!([{"code": 6_111, "message": "Invalid format for Authorization header"}]);
    let errors = json!([{"code": 6_003, "message": "Invalid request headers", "error_chain": reason}]);
    let body = json!({"success": false, "errors": errors, "messages": [], "result": null});
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

/// A status that an answer can have; 500 instead of 1xx and invalid numbers.
fn injected(status: u16) -> StatusCode {
    match StatusCode::from_u16(status) {
        Ok(status) if !status.is_informational() => status,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn redirect(location: &str) -> Response {
    let mut response = StatusCode::FOUND.into_response();
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The answer with only the first half of its body.
pub(crate) async fn truncated(response: Response) -> Response {
    let (parts, body) = response.into_parts();
    // The body is in memory, so reading it cannot fail.
    let bytes = to_bytes(body, usize::MAX).await.unwrap_or_default();
    Response::from_parts(parts, Body::from(bytes.slice(..bytes.len() / 2)))
}

/// The answer to a bulk write, with null in the place of every empty list.
pub(crate) fn nulls(sent: usize) -> Response {
    let result = json!({"successful_key_count": sent, "unsuccessful_keys": null});
    let body = json!({"success": true, "errors": null, "messages": null, "result": result});
    Json(body).into_response()
}

/// An error with its status, Cloudflare's code and a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ApiError {
    /// The token is missing or unknown.
    Authentication,
    /// The window is full for this time.
    Throttled(Duration),
    UnknownAccount,
    UnknownNamespace,
    UnknownKey,
    UnknownMethod,
    TooManyPairs(usize),
    TooLarge(&'static str),
    BadRequest(String),
    /// The error of a fault.
    Injected {
        status: u16,
        code: Option<i64>,
        message: Option<String>,
    },
}

impl ApiError {
    /// A status without code and message.
    pub(crate) fn bare(status: u16) -> Self {
        Self::Injected { status, code: None, message: None }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Authentication => StatusCode::UNAUTHORIZED,
            Self::Throttled(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::UnknownNamespace | Self::UnknownKey => StatusCode::NOT_FOUND,
            Self::UnknownMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnknownAccount | Self::TooManyPairs(_) | Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Injected { status, .. } => injected(*status),
        }
    }

    fn code_and_message(self) -> (i64, String) {
        match self {
            Self::Authentication => (10_000, "Authentication error".to_owned()),
            Self::Throttled(_) => (971, "Please wait and consider throttling".to_owned()),
            Self::UnknownAccount => (7_003, "Could not route to this account".to_owned()),
            Self::UnknownNamespace => (10_013, "namespace not found".to_owned()),
            Self::UnknownKey => (10_009, "key not found".to_owned()),
            Self::UnknownMethod => (7_001, "Method not available for that URI".to_owned()),
            Self::TooManyPairs(most) => (10_012, format!("at most {most} are allowed in one request")),
            Self::TooLarge(what) => (10_033, format!("{what} is too large")),
            // The real API has a code for each case. One code is enough, because all of them come with 400.
            Self::BadRequest(message) => (10_026, message),
            Self::Injected { code, message, .. } => (code.unwrap_or_default(), message.unwrap_or_default()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let wait = if let Self::Throttled(wait) = self { Some(wait) } else { None };
        let errors = if matches!(self, Self::Injected { code: None, message: None, .. }) {
            json!([])
        } else {
            let (code, message) = self.code_and_message();
            json!([{"code": code, "message": message}])
        };
        let body = json!({"success": false, "errors": errors, "messages": [], "result": null});
        let mut response = (status, Json(body)).into_response();
        if let Some(wait) = wait {
            response.headers_mut().insert(header::RETRY_AFTER, whole_seconds(wait).into());
        }
        response
    }
}

/// A successful answer.
pub(crate) fn ok(result: impl Serialize) -> Response {
    envelope(result, None)
}

/// A successful answer with one page of a list.
pub(crate) fn page<T: Serialize>(result: &[T], cursor: &str) -> Response {
    envelope(result, Some(json!({"count": result.len(), "cursor": cursor})))
}

/// Serialized directly and not through a `Value`, because pages are long.
#[derive(Serialize)]
struct Envelope<T> {
    success: bool,
    errors: [(); 0],
    messages: [(); 0],
    result: T,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_info: Option<Value>,
}

fn envelope(result: impl Serialize, result_info: Option<Value>) -> Response {
    Json(Envelope { success: true, errors: [], messages: [], result, result_info }).into_response()
}

/// Adds the headers of the rate limit to a reply.
///
/// `"default";r=50;t=30` is the number of requests that are left, and the seconds until there are more.
/// `"default";q=1200;w=300` is the limit and its period.
/// <https://developers.cloudflare.com/fundamentals/api/reference/limits/>
///
/// A 429 of a fault has the same headers as a 429 of the rate limit: nothing is left until its `Retry-After`.
pub(crate) fn add_rate_limit_headers(quota: &Quota, reply: &mut Reply) {
    let Reply::Answer(response) = reply else { return };
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let left = match retry_after {
        Some(seconds) => format!("\"default\";r=0;t={seconds}"),
        None => format!("\"default\";r={};t={}", quota.remaining, whole_seconds(quota.resets)),
    };
    let policy = format!("\"default\";q={};w={}", quota.limit.requests, whole_seconds(quota.limit.period));
    for (name, value) in [("ratelimit", left), ("ratelimit-policy", policy)] {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(name, value);
        }
    }
}

/// A time in whole seconds, rounded up, so that a client that waits this long is admitted.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}
