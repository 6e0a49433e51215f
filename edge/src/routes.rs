//! The router, and the layer around every route that turns errors into answers and completes headers.
//!
//! Routes return data or an [`EdgeError`]; only this module decides whether an error is HTML or JSON.

mod api;
mod health;
mod pages;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use axum::http::{StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;
use taskpipeline_contract::{Task, TaskId};

use crate::catalog::{self, Stored};
use crate::correlation::{self, Correlation};
use crate::errors::{EdgeError, ErrorBody, Fault};
use crate::query::ListQuery;
use crate::reader::TaskReader;
use crate::{assets, headers, links, report, views};

/// The edge over a store of tasks.
///
/// `GET` and `HEAD` of `/`, `/tasks/{id}`, `/api/tasks`, `/api/tasks/{id}`, `/health` and the assets.
pub fn router<R: TaskReader>(reader: R) -> Router {
    Router::new()
        .route("/", get(pages::list::<R>))
        .route("/tasks/{id}", get(pages::task::<R>))
        .route("/api/tasks", get(api::list::<R>))
        .route("/api/tasks/{id}", get(api::task::<R>))
        .route("/health", get(health::check::<R>))
        .route("/assets/{name}", get(assets::hashed))
        .route("/favicon.ico", get(assets::favicon))
        .method_not_allowed_fallback(|| async { EdgeError::MethodNotAllowed })
        .fallback(|| async { EdgeError::NoSuchPage })
        .layer(middleware::from_fn(around))
        .with_state(Arc::new(reader))
}

/// In whose language an error is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    People,
    Programs,
}

impl Audience {
    fn of_path(path: &str) -> Self {
        let programs = path == "/health" || path == "/api" || path.starts_with("/api/");
        if programs { Self::Programs } else { Self::People }
    }
}

async fn around(mut request: Request, next: Next) -> Response {
    let correlation = Correlation::of(request.headers());
    let audience = Audience::of_path(request.uri().path());
    request.extensions_mut().insert(correlation.clone());
    complete(next.run(request).await, audience, &correlation)
}

/// Gives the answer its error body, if it is an error, and its headers.
pub(crate) fn complete(response: Response, audience: Audience, correlation: &Correlation) -> Response {
    let mut response = say(response, audience, correlation);
    headers::complete(response.headers_mut());
    // What a shared cache gives to others must not carry one visitor's id.
    if !headers::is_shared(response.headers())
        && let Ok(id) = HeaderValue::from_str(correlation.as_str())
    {
        response.headers_mut().insert(correlation::HEADER, id);
    }
    response
}

fn say(mut response: Response, audience: Audience, correlation: &Correlation) -> Response {
    let Some(error) = response.extensions_mut().remove::<EdgeError>() else { return response };
    if error.status().is_server_error() {
        report::failure(&error, correlation);
    }
    let said = match audience {
        Audience::Programs => json(&Enveloped { error: error.body(correlation) }),
        Audience::People => views::error(&error, correlation).map(html),
    };
    // A page that cannot be rendered is reported by its status alone.
    if let Ok(said) = said {
        let (mut parts, body) = said.into_parts();
        parts.status = response.status();
        parts.headers.remove(CACHE_CONTROL);
        parts.headers.extend(response.headers().clone());
        response = Response::from_parts(parts, body);
    }
    response
}

#[derive(Serialize)]
struct Enveloped<'a> {
    error: ErrorBody<'a>,
}

fn html(page: String) -> Response {
    answer("text/html; charset=utf-8", page.into_bytes())
}

fn json(data: &impl Serialize) -> Result<Response, EdgeError> {
    let body = serde_json::to_vec(data).map_err(|error| EdgeError::Render(error.to_string()))?;
    Ok(answer("application/json", body))
}

fn answer(media_type: &'static str, body: Vec<u8>) -> Response {
    let headers = [(CONTENT_TYPE, HeaderValue::from_static(media_type)), (CACHE_CONTROL, headers::PRIVATE)];
    (StatusCode::OK, headers, body).into_response()
}

/// What a list is asked for.
fn list_query(uri: &Uri, default_limit: usize) -> Result<ListQuery, EdgeError> {
    ListQuery::parse(uri.query().unwrap_or_default(), default_limit).map_err(EdgeError::BadRequest)
}

/// The task that a path names.
async fn find_task(reader: &impl TaskReader, uri: &Uri, prefix: &str) -> Result<Box<Task>, EdgeError> {
    match catalog::task(reader, &task_id(uri, prefix)?).await? {
        Stored::Task(task) => Ok(task),
        Stored::Nothing => Err(EdgeError::NoSuchTask),
        Stored::Unreadable => Err(EdgeError::TaskUnreadable),
    }
}

/// The id a path names, decoded from the raw path: a router's own decoding would let broken escapes pass.
fn task_id(uri: &Uri, prefix: &str) -> Result<TaskId, EdgeError> {
    let bad = |problem: String| EdgeError::BadRequest(vec![Fault { field: "id", problem }]);
    let raw = uri.path().strip_prefix(prefix).ok_or(EdgeError::NoSuchPage)?;
    let text = links::decode(raw).map_err(|error| bad(error.to_string()))?;
    TaskId::new(text).map_err(|error| bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_cannot_be_rendered_is_a_500_that_keeps_its_cause_to_itself() {
        for (audience, media_type) in
            [(Audience::People, "text/html; charset=utf-8"), (Audience::Programs, "application/json")]
        {
            let error = EdgeError::Render("inner cause".to_owned());
            let response = complete(error.into_response(), audience, &Correlation::generate());
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(response.headers()[CONTENT_TYPE], media_type);
            assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
            let body =
                futures_util::FutureExt::now_or_never(axum::body::to_bytes(response.into_body(), 100_000));
            let text = String::from_utf8(body.unwrap().unwrap().to_vec()).unwrap();
            assert!(text.contains("internal_error") && !text.contains("inner cause"), "{text}");
        }
    }

    #[test]
    fn only_the_api_and_health_speak_to_programs() {
        for path in ["/api", "/api/", "/api/tasks", "/api/nothing", "/health"] {
            assert_eq!(Audience::of_path(path), Audience::Programs, "{path}");
        }
        for path in ["/", "/apis", "/tasks/api", "/healthy", "/assets/x"] {
            assert_eq!(Audience::of_path(path), Audience::People, "{path}");
        }
    }
}
