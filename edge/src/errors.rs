//! The errors of a request: their statuses, codes and messages.
//!
//! A message never contains the request's input or an inner cause. The Worker logs the cause with the
//! correlation id. The outermost layer of the routes renders an error as HTML or JSON.

use axum::http::header::{ALLOW, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::correlation::Correlation;
use crate::cursor::UNKNOWN_CURSOR;
use crate::reader::ReadError;

/// An invalid part of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Fault {
    /// `id`, `status`, `limit`, `cursor` or `url`.
    pub(crate) field: &'static str,
    /// The rule that the part breaks, as the end of a sentence. Never contains the input.
    pub(crate) problem: String,
}

/// The reason why a request fails.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum EdgeError {
    #[error("bad request")]
    BadRequest(Vec<Fault>),
    #[error("page not found")]
    NoSuchPage,
    #[error("task not found")]
    NoSuchTask,
    #[error("method not allowed")]
    MethodNotAllowed,
    #[error("the value in KV is not this task")]
    TaskUnreadable,
    #[error(transparent)]
    Kv(ReadError),
    #[error("cannot render the answer: {0}")]
    Render(String),
}

impl EdgeError {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NoSuchPage | Self::NoSuchTask => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TaskUnreadable | Self::Kv(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Render(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The stable code of the error, for programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::NoSuchPage => "not_found",
            Self::NoSuchTask => "task_not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::TaskUnreadable => "task_unreadable",
            Self::Kv(_) => "kv_unavailable",
            Self::Render(_) => "internal_error",
        }
    }

    /// The heading of the error page.
    pub(crate) fn title(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "Invalid request",
            Self::NoSuchPage => "Page not found",
            Self::NoSuchTask => "Task not found",
            Self::MethodNotAllowed => "Method not allowed",
            Self::TaskUnreadable => "This task cannot be shown",
            Self::Kv(_) => "Tasks are unavailable",
            Self::Render(_) => "Internal error",
        }
    }

    /// The cause of the error and what to do, for people.
    pub(crate) fn message(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "Parts of the address are invalid.",
            Self::NoSuchPage => "There is no page at this address.",
            Self::NoSuchTask => {
                "The task was deleted, or never existed. A new task can take up to a minute to appear."
            }
            Self::MethodNotAllowed => "The Worker answers only GET and HEAD. Only events change tasks.",
            Self::TaskUnreadable => "The value in KV is not this task.",
            Self::Kv(_) => "The Worker cannot read from KV. Try again in a moment.",
            Self::Render(_) => "The Worker cannot render the answer. Try again in a moment.",
        }
    }

    /// The invalid parts of a bad request; empty for any other error.
    pub(crate) fn faults(&self) -> &[Fault] {
        match self {
            Self::BadRequest(faults) => faults,
            _ => &[],
        }
    }

    /// The JSON body of the error, for programs.
    pub(crate) fn body<'a>(&'a self, correlation: &'a Correlation) -> ErrorBody<'a> {
        ErrorBody {
            code: self.code(),
            message: self.message(),
            correlation_id: correlation.as_str(),
            fields: self.faults(),
        }
    }
}

impl From<ReadError> for EdgeError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::UnknownCursor => {
                Self::BadRequest(vec![Fault { field: "cursor", problem: UNKNOWN_CURSOR.to_owned() }])
            }
            ReadError::Unavailable(_) => Self::Kv(error),
        }
    }
}

impl IntoResponse for EdgeError {
    /// Status and headers. The error is in the extensions, where the outermost layer takes it to render it.
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        let headers = response.headers_mut();
        match self.status() {
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("10"));
            }
            _ => {}
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// The JSON of an error, under the key `error`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErrorBody<'a> {
    code: &'static str,
    message: &'static str,
    correlation_id: &'a str,
    #[serde(skip_serializing_if = "<[Fault]>::is_empty")]
    fields: &'a [Fault],
}
