//! The templates of the pages, and their data.
//!
//! Templates escape all texts. Each text from a task or a key is in its own element. So no character in it can change
//! the order of the text around it.

use askama::Template;
use taskpipeline_contract::{Status, Task, Timestamp};
use time::macros::format_description;

use crate::assets::{ICON_URL, STYLESHEET_URL};
use crate::catalog::{Page, Summary};
use crate::correlation::Correlation;
use crate::errors::{EdgeError, Fault};
use crate::links;
use crate::query::ListQuery;

/// Renders the list page.
pub(crate) fn list(query: &ListQuery, page: Page<Summary>) -> Result<String, EdgeError> {
    let rows: Vec<Row> = page.tasks.into_iter().map(Row::from).collect();
    let empty_state = if !rows.is_empty() {
        EmptyState::NotEmpty
    } else if page.cursor.is_some() {
        EmptyState::NoMatchYet
    } else if query.status.is_none() && query.cursor.is_none() && page.skipped.is_empty() {
        EmptyState::NoTasksYet
    } else {
        EmptyState::NoMatch
    };
    render(&ListView {
        shell: Shell::default(),
        heading: heading(query.status),
        filters: filters(query),
        rows,
        empty_state,
        skipped: page.skipped,
        all: query.status.is_some().then(|| query.of_status(None).link("/")),
        first: query.cursor.is_some().then(|| query.of_status(query.status).link("/")),
        next: page.cursor.map(|cursor| query.at_cursor(cursor).link("/")),
        json: query.link("/api/tasks"),
    })
}

/// Renders the page of one task.
pub(crate) fn task(task: &Task) -> Result<String, EdgeError> {
    render(&TaskView {
        shell: Shell::default(),
        id: task.id.as_str(),
        title: task.title.as_str(),
        description: task.description.as_str(),
        status: Badge(task.status),
        created: Time(task.created_at),
        updated: Time(task.updated_at),
        json: links::task_json(&task.id),
    })
}

/// Renders the page of an error.
pub(crate) fn error(error: &EdgeError, correlation: &Correlation) -> Result<String, EdgeError> {
    render(&ErrorView {
        shell: Shell::default(),
        status: error.status().as_u16(),
        title: error.title(),
        message: error.message(),
        faults: error.faults(),
        code: error.code(),
        correlation_id: correlation.as_str(),
    })
}

fn render(view: &impl Template) -> Result<String, EdgeError> {
    view.render().map_err(|error| EdgeError::Render(error.to_string()))
}

/// The URLs of the assets that every page links.
struct Shell {
    stylesheet: &'static str,
    icon: &'static str,
}

impl Default for Shell {
    fn default() -> Self {
        Self { stylesheet: &STYLESHEET_URL, icon: &ICON_URL }
    }
}

#[derive(Template)]
#[template(path = "list.html")]
struct ListView {
    shell: Shell,
    heading: &'static str,
    filters: Vec<Filter>,
    rows: Vec<Row>,
    empty_state: EmptyState,
    skipped: Vec<String>,
    /// The link to the tasks of all statuses, if the list has a filter.
    all: Option<String>,
    /// The link to the first page, unless this is the first page.
    first: Option<String>,
    next: Option<String>,
    json: String,
}

#[derive(Template)]
#[template(path = "task.html")]
struct TaskView<'a> {
    shell: Shell,
    id: &'a str,
    title: &'a str,
    description: &'a str,
    status: Badge,
    created: Time,
    updated: Time,
    json: String,
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorView<'a> {
    shell: Shell,
    status: u16,
    title: &'static str,
    message: &'static str,
    faults: &'a [Fault],
    code: &'static str,
    correlation_id: &'a str,
}

/// The reason why a list page shows no tasks.
enum EmptyState {
    /// The page shows tasks.
    NotEmpty,
    /// The store is empty.
    NoTasksYet,
    /// No task from the page's start to the end of the list passes the filter.
    NoMatch,
    /// No task so far passes the filter; the next page continues the search.
    NoMatchYet,
}

/// A link to the tasks of one status, or to all tasks.
struct Filter {
    label: &'static str,
    href: String,
    current: bool,
}

fn filters(query: &ListQuery) -> Vec<Filter> {
    let statuses = std::iter::once(None).chain(Status::ALL.map(Some));
    statuses
        .map(|status| Filter {
            label: status.map_or("All", label),
            href: query.of_status(status).link("/"),
            current: status == query.status,
        })
        .collect()
}

/// A row of the list.
struct Row {
    href: String,
    id: String,
    title: String,
    status: Badge,
    updated: Time,
}

impl From<Summary> for Row {
    fn from(summary: Summary) -> Self {
        Self {
            href: links::task_page(&summary.id),
            id: summary.id.to_string(),
            title: summary.metadata.title.to_string(),
            status: Badge(summary.metadata.status),
            updated: Time(summary.metadata.updated_at),
        }
    }
}

/// A status as text, shape and color.
struct Badge(Status);

impl Badge {
    fn label(&self) -> &'static str {
        label(self.0)
    }

    /// The name of the status in the stylesheet and in the sprite.
    fn name(&self) -> &'static str {
        self.0.as_str()
    }
}

fn label(status: Status) -> &'static str {
    match status {
        Status::Pending => "Pending",
        Status::InProgress => "In progress",
        Status::Completed => "Completed",
        Status::Cancelled => "Cancelled",
    }
}

fn heading(status: Option<Status>) -> &'static str {
    match status {
        None => "Tasks",
        Some(Status::Pending) => "Pending tasks",
        Some(Status::InProgress) => "Tasks in progress",
        Some(Status::Completed) => "Completed tasks",
        Some(Status::Cancelled) => "Cancelled tasks",
    }
}

/// A time, formatted for machines and for people.
struct Time(Timestamp);

impl Time {
    fn machine(&self) -> String {
        self.0.to_string()
    }

    fn short(&self) -> String {
        let format = format_description!("[day padding:none] [month repr:short] [year], [hour]:[minute] UTC");
        // If formatting fails, the machine format is readable too.
        self.0.to_offset_date_time().format(format).unwrap_or_else(|_| self.machine())
    }

    fn long(&self) -> String {
        let format =
            format_description!("[day padding:none] [month repr:long] [year], [hour]:[minute]:[second] UTC");
        self.0.to_offset_date_time().format(format).unwrap_or_else(|_| self.machine())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_short_a_long_and_a_machine_format() {
        let time = Time(Timestamp::parse("2026-03-05T08:09:07.5Z").unwrap());
        assert_eq!(time.short(), "5 Mar 2026, 08:09 UTC");
        assert_eq!(time.long(), "5 March 2026, 08:09:07 UTC");
        assert_eq!(time.machine(), "2026-03-05T08:09:07.500Z");
    }
}
