//! The router, and the layer around all routes that renders errors and completes headers.
//!
//! Routes return data or an [`EdgeError`]. Only this layer chooses HTML or JSON for an error.

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

/// The router of the edge over a store of tasks.
///
/// It answers `GET` and `HEAD` of `/`, `/tasks/{id}`, `/api/tasks`, `/api/tasks/{id}`, `/health` and the assets.
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

/// The reader of an error: `People` get HTML, `Programs` get JSON.
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

/// Renders the body of an error, and adds the headers that every answer has.
pub(crate) fn complete(response: Response, audience: Audience, correlation: &Correlation) -> Response {
    let mut response = render_error(response, audience, correlation);
    headers::complete(response.headers_mut());
    // A shared cache would give the id of one visitor to others.
    if !headers::is_shared(response.headers())
        && let Ok(id) = HeaderValue::from_str(correlation.as_str())
    {
        response.headers_mut().insert(correlation::HEADER, id);
    }
    response
}

fn render_error(mut response: Response, audience: Audience, correlation: &Correlation) -> Response {
    let Some(error) = response.extensions_mut().remove::<EdgeError>() else { return response };
    if error.status().is_server_error() {
        report::failure(&error, correlation);
    }
    let rendered = match audience {
        Audience::Programs => json(&Enveloped { error: error.body(correlation) }),
        Audience::People => views::error(&error, correlation).map(html),
    };
    // If rendering fails, the answer is only the status.
    if let Ok(rendered) = rendered {
        let (mut parts, body) = rendered.into_parts();
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

/// Parses the query of a list.
fn list_query(uri: &Uri, default_limit: usize) -> Result<ListQuery, EdgeError> {
    ListQuery::parse(uri.query().unwrap_or_default(), default_limit).map_err(EdgeError::BadRequest)
}

/// Reads the task that a path names.
async fn find_task(reader: &impl TaskReader, uri: &Uri, prefix: &str) -> Result<Box<Task>, EdgeError> {
    match catalog::task(reader, &task_id(uri, prefix)?).await? {
        Stored::Task(task) => Ok(task),
        Stored::Nothing => Err(EdgeError::NoSuchTask),
        Stored::Unreadable => Err(EdgeError::TaskUnreadable),
    }
}

/// Decodes the task id in a raw path. The router's own decoding accepts broken escapes.
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
    fn an_answer_that_cannot_be_rendered_is_a_500_without_its_cause() {
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
    fn only_the_api_and_health_answer_errors_as_json() {
        for path in ["/api", "/api/", "/api/tasks", "/api/nothing", "/health"] {
            assert_eq!(Audience::of_path(path), Audience::Programs, "{path}");
        }
        for path in ["/", "/apis", "/tasks/api", "/healthy", "/assets/x"] {
            assert_eq!(Audience::of_path(path), Audience::People, "{path}");
        }
    }
}
