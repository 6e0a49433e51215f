//! Everything that can go wrong with a request: its status, its code, and what the visitor is told.
//!
//! A message never holds the request's input or an inner cause; the cause goes to the log with the
//! correlation id. An error knows nothing of HTML or JSON until the routes' outermost layer renders it.

use axum::http::header::{ALLOW, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::correlation::Correlation;
use crate::cursor::UNKNOWN_CURSOR;
use crate::reader::ReadError;

/// One part of the request at fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Fault {
    /// `id`, `status`, `limit`, `cursor` or `url`.
    pub(crate) field: &'static str,
    /// What is wrong, as the end of a sentence; says the rule, not the input.
    pub(crate) problem: String,
}

/// Why a request is not answered with what it asked for.
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

    /// A stable name of the error, for programs.
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

    /// The error in a few words, for people.
    pub(crate) fn title(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "This request cannot be understood",
            Self::NoSuchPage => "There is no such page",
            Self::NoSuchTask => "There is no such task",
            Self::MethodNotAllowed => "This address can only be read",
            Self::TaskUnreadable => "This task cannot be shown",
            Self::Kv(_) => "Tasks cannot be read right now",
            Self::Render(_) => "Something went wrong here",
        }
    }

    /// What it means and what can be done, for people.
    pub(crate) fn message(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "The address holds something that is not allowed.",
            Self::NoSuchPage => "Nothing is found at this address.",
            Self::NoSuchTask => {
                "It may have been deleted, or it is new and has not arrived yet, which can take a minute."
            }
            Self::MethodNotAllowed => "Only GET and HEAD are answered. Tasks change by events, not here.",
            Self::TaskUnreadable => "Something is stored under its id, but it is not a task.",
            Self::Kv(_) => "The store did not answer. Please try again in a moment.",
            Self::Render(_) => "The fault is not yours. Please try again in a moment.",
        }
    }

    pub(crate) fn faults(&self) -> &[Fault] {
        match self {
            Self::BadRequest(faults) => faults,
            _ => &[],
        }
    }

    /// The body for programs.
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
    /// Status and headers; the error itself rides along for the layer that knows how to show it.
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

/// What a program is told of an error, under the key `error`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErrorBody<'a> {
    code: &'static str,
    message: &'static str,
    correlation_id: &'a str,
    #[serde(skip_serializing_if = "<[Fault]>::is_empty")]
    fields: &'a [Fault],
}
