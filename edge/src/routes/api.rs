//! The same for programs: whole tasks, as JSON.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use serde::Serialize;
use taskpipeline_contract::Task;

use crate::catalog::{self, Page, Stored};
use crate::errors::EdgeError;
use crate::links;
use crate::query::ListQuery;
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
    let query =
        ListQuery::parse(uri.query().unwrap_or_default(), DEFAULT_LIMIT).map_err(EdgeError::BadRequest)?;
    let Page { tasks, cursor, skipped } = catalog::page(reader.as_ref(), &query).await?;
    super::json(&TaskList { tasks, cursor, skipped })
}

pub(super) async fn task<R: TaskReader>(
    State(reader): State<Arc<R>>,
    uri: Uri,
) -> Result<Response, EdgeError> {
    let id = super::task_id(&uri, links::API_PREFIX)?;
    match catalog::task(reader.as_ref(), &id).await? {
        Stored::Task(task) => super::json(&task),
        Stored::Nothing => Err(EdgeError::NoSuchTask),
        Stored::Unreadable => Err(EdgeError::TaskUnreadable),
    }
}
