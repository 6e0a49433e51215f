//! The v4 envelope, the errors that the API answers with, and the answers of faults that no API should give.
//! It may not decide which of them a request gets, nor touch the namespace.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use crate::fault::Fault;

/// What a client gets.
#[derive(Debug)]
pub(crate) enum Reply {
    Answer(Response),
    /// No answer: the connection is closed.
    Closed,
    /// No answer ever: the connection stays open.
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

/// The reply of a fault that leaves a request without any effect; nothing where there is an effect.
pub(crate) fn instead(fault: &Fault, authorization: Option<&HeaderValue>) -> Option<Reply> {
    Some(match fault {
        Fault::RevokedToken => ApiError::Authentication.into(),
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
        Fault::Garbage => ([(header::CONTENT_TYPE, "application/json")], GARBAGE).into(),
        Fault::Slow { .. }
        | Fault::LostAnswer { .. }
        | Fault::Late { .. }
        | Fault::Partial { .. }
        | Fault::Stale { .. }
        | Fault::Truncated => return None,
    })
}

const PAGE: &str =
    "<!DOCTYPE html><html><head><title>Welcome</title></head><body>Please sign in</body></html>";
const GARBAGE: &[u8] = b"\x00\xff{\"success\": tru";

fn redirect(location: &str) -> Response {
    let mut response = StatusCode::FOUND.into_response();
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The same answer with the first half of its body.
pub(crate) async fn truncated(response: Response) -> Response {
    let (parts, body) = response.into_parts();
    // Made here and whole in memory, so it can be read.
    let bytes = to_bytes(body, usize::MAX).await.unwrap_or_default();
    Response::from_parts(parts, Body::from(bytes.slice(..bytes.len() / 2)))
}

/// An error with its status, Cloudflare's code and a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ApiError {
    /// A token that is missing or unknown.
    Authentication,
    /// The window is full; for how long.
    Throttled(Duration),
    UnknownAccount,
    UnknownNamespace,
    UnknownKey,
    UnknownMethod,
    TooManyPairs(usize),
    TooLarge(&'static str),
    BadRequest(String),
    /// What a fault says.
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
            // 1xx are no answers.
            Self::Injected { status, .. } => match StatusCode::from_u16(*status) {
                Ok(status) if !status.is_informational() => status,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            },
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
            // The real API has a code for each; a client sees the status first.
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
            // Rounded up: whoever waits so long must be let in.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// A good answer.
pub(crate) fn ok(result: impl Serialize) -> Response {
    Json(json!({"success": true, "errors": [], "messages": [], "result": result})).into_response()
}

/// A good answer that is a page.
pub(crate) fn page(result: &[Value], cursor: &str) -> Response {
    let info = json!({"count": result.len(), "cursor": cursor});
    Json(json!({"success": true, "errors": [], "messages": [], "result": result, "result_info": info}))
        .into_response()
}
