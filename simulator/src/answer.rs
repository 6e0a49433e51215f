//! The v4 envelope and the errors that the API answers with.

use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

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
    TooManyPairs(usize),
    TooLarge(&'static str),
    BadRequest(String),
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code, message) = match &self {
            Self::Authentication => (StatusCode::UNAUTHORIZED, 10_000, "Authentication error".to_owned()),
            Self::Throttled(_) => {
                (StatusCode::TOO_MANY_REQUESTS, 971, "Please wait and consider throttling".to_owned())
            }
            Self::UnknownAccount => {
                (StatusCode::BAD_REQUEST, 7_003, "Could not route to this account".to_owned())
            }
            Self::UnknownNamespace => (StatusCode::NOT_FOUND, 10_013, "namespace not found".to_owned()),
            Self::UnknownKey => (StatusCode::NOT_FOUND, 10_009, "key not found".to_owned()),
            Self::TooManyPairs(most) => {
                (StatusCode::BAD_REQUEST, 10_012, format!("at most {most} are allowed in one request"))
            }
            Self::TooLarge(what) => (StatusCode::PAYLOAD_TOO_LARGE, 10_033, format!("{what} is too large")),
            // The real API has a code for each; a client sees the status first.
            Self::BadRequest(message) => (StatusCode::BAD_REQUEST, 10_026, message.clone()),
        };
        let body = Json(json!({
            "success": false,
            "errors": [{"code": code, "message": message}],
            "messages": [],
            "result": null,
        }));
        let mut response = (status, body).into_response();
        if let Self::Throttled(wait) = self {
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
