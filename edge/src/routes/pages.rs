//! The pages for people: the list and one task.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;

use crate::catalog;
use crate::errors::EdgeError;
use crate::reader::TaskReader;
use crate::{links, views};

const DEFAULT_LIMIT: usize = 50;

pub(super) async fn list<R: TaskReader>(
    State(reader): State<Arc<R>>,
    uri: Uri,
) -> Result<Response, EdgeError> {
    let query = super::list_query(&uri, DEFAULT_LIMIT)?;
    let page = catalog::page(reader.as_ref(), &query).await?;
    views::list(&query, page).map(super::html)
}

pub(super) async fn task<R: TaskReader>(
    State(reader): State<Arc<R>>,
    uri: Uri,
) -> Result<Response, EdgeError> {
    let task = super::find_task(reader.as_ref(), &uri, links::PAGE_PREFIX).await?;
    views::task(&task).map(super::html)
}
