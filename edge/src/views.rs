//! What the pages show, and the templates that show it.
//!
//! Templates escape everything; texts that are not ours stay in elements of their own, so that no
//! character in them can rearrange what is around.

use askama::Template;
use taskpipeline_contract::{Status, Task, Timestamp};
use time::macros::format_description;

use crate::assets::{ICON_URL, STYLESHEET_URL};
use crate::catalog::{Page, Summary};
use crate::correlation::Correlation;
use crate::errors::{EdgeError, Fault};
use crate::links;
use crate::query::ListQuery;

/// The list page.
pub(crate) fn list(query: &ListQuery, page: Page<Summary>) -> Result<String, EdgeError> {
    let rows: Vec<Row> = page.tasks.into_iter().map(Row::from).collect();
    let absence = if !rows.is_empty() {
        Absence::None
    } else if page.cursor.is_some() {
        Absence::SoFar
    } else if query.status.is_none() && query.cursor.is_none() && page.skipped.is_empty() {
        Absence::NoTasksYet
    } else {
        Absence::NoneHere
    };
    render(&ListView {
        shell: Shell::default(),
        heading: heading(query.status),
        filters: filters(query),
        rows,
        absence,
        skipped: page.skipped,
        first: query.cursor.is_some().then(|| query.of_status(query.status).link("/")),
        next: page.cursor.map(|cursor| query.at_cursor(cursor).link("/")),
        json: query.link("/api/tasks"),
    })
}

/// The page of one task.
pub(crate) fn task(task: &Task) -> Result<String, EdgeError> {
    render(&TaskView {
        shell: Shell::default(),
        id: task.id.as_str(),
        title: task.title.as_str(),
        description: task.description.as_str(),
        status: Badge(task.status),
        created: Moment(task.created_at),
        updated: Moment(task.updated_at),
        json: links::task_json(&task.id),
    })
}

/// The page of an error.
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

/// What every page has around its content.
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
    absence: Absence,
    skipped: Vec<String>,
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
    created: Moment,
    updated: Moment,
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

/// Why a list page has no tasks.
enum Absence {
    /// It has some.
    None,
    /// The store holds none at all.
    NoTasksYet,
    /// None of this kind, or none from here on.
    NoneHere,
    /// None among those looked at; there are more to look at.
    SoFar,
}

/// A link to the tasks of one status, or of all.
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

/// A task on the list.
struct Row {
    href: String,
    id: String,
    title: String,
    status: Badge,
    updated: Moment,
}

impl From<Summary> for Row {
    fn from(summary: Summary) -> Self {
        Self {
            href: links::task_page(&summary.id),
            id: summary.id.to_string(),
            title: summary.metadata.title.to_string(),
            status: Badge(summary.metadata.status),
            updated: Moment(summary.metadata.updated_at),
        }
    }
}

/// A status as text, shape and colour.
struct Badge(Status);

impl Badge {
    fn label(&self) -> &'static str {
        label(self.0)
    }

    /// The name that the stylesheet and the sprite know it by.
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

/// A moment, for machines and for people.
struct Moment(Timestamp);

impl Moment {
    fn machine(&self) -> String {
        self.0.to_string()
    }

    fn short(&self) -> String {
        let format = format_description!("[day padding:none] [month repr:short] [year], [hour]:[minute] UTC");
        // A format that fails shows the machine's form, which a person can read too.
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
    fn a_moment_reads_as_people_write_it() {
        let moment = Moment(Timestamp::parse("2026-03-05T08:09:07.5Z").unwrap());
        assert_eq!(moment.short(), "5 Mar 2026, 08:09 UTC");
        assert_eq!(moment.long(), "5 March 2026, 08:09:07 UTC");
        assert_eq!(moment.machine(), "2026-03-05T08:09:07.500Z");
    }
}
