//! The JSON API: the list and one task, with all fields.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use serde::Serialize;
use taskpipeline_contract::Task;

use crate::catalog::{self, Page};
use crate::errors::EdgeError;
use crate::links;
use crate::reader::TaskReader;

const DEFAULT_LIMIT: usize = 100;

#[derive(Serialize)]
struct TaskList {
    tasks: Vec<Task>,
    cursor: Option<String>,
    skipped: Vec<String>,
}

pub(super) async fn list<R: TaskReader>(
    State(reader): State<Arc<R>>,
    uri: Uri,
) -> Result<Response, EdgeError> {
    let query = super::list_query(&uri, DEFAULT_LIMIT)?;
    let Page { tasks, cursor, skipped } = catalog::page(reader.as_ref(), &query).await?;
    let cursor = cursor.map(|cursor| cursor.to_string());
    super::json(&TaskList { tasks, cursor, skipped })
}

pub(super) async fn task<R: TaskReader>(
    State(reader): State<Arc<R>>,
    uri: Uri,
) -> Result<Response, EdgeError> {
    let task = super::find_task(reader.as_ref(), &uri, links::API_PREFIX).await?;
    super::json(&task)
}
