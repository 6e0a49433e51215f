//! The two pages for people: the list and one task.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;

use crate::catalog::{self, Stored};
use crate::errors::EdgeError;
use crate::query::ListQuery;
use crate::reader::TaskReader;
use crate::{links, views};

const DEFAULT_LIMIT: usize = 50;

pub(super) async fn list<R: TaskReader>(
    State(reader): State<Arc<R>>,
    uri: Uri,
) -> Result<Response, EdgeError> {
    let query =
        ListQuery::parse(uri.query().unwrap_or_default(), DEFAULT_LIMIT).map_err(EdgeError::BadRequest)?;
    let page = catalog::page(reader.as_ref(), &query).await?;
    views::list(&query, page).map(super::html)
}

pub(super) async fn task<R: TaskReader>(
    State(reader): State<Arc<R>>,
    uri: Uri,
) -> Result<Response, EdgeError> {
    let id = super::task_id(&uri, links::PAGE_PREFIX)?;
    match catalog::task(reader.as_ref(), &id).await? {
        Stored::Task(task) => views::task(&task).map(super::html),
        Stored::Nothing => Err(EdgeError::NoSuchTask),
        Stored::Unreadable => Err(EdgeError::TaskUnreadable),
    }
}
