//! Logs on standard output: one line a step for people, or one JSON object a line for collectors.
//!
//! What came from outside (ids, error texts) reaches these lines, so both forms escape control and
//! direction-changing characters.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogFormat;

/// What is shown where `RUST_LOG` says nothing: our steps, and what libraries think is wrong.
const DEFAULT_FILTER: &str = "warn,taskpipeline=info,taskpipeline_processor=info";

/// Starts logging, by `RUST_LOG`.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    // A second subscriber in one process is a test's; the first one stays.
    let _ = match format {
        LogFormat::Text => builder.event_format(OneLine).try_init(),
        LogFormat::Json => {
            builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
        }
    };
}

/// Starts logging for a command that has its result on standard output: on standard error, and only what is
/// wrong unless `RUST_LOG` says otherwise.
pub fn start_for_command() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = builder.event_format(OneLine).try_init();
}

/// `2026-11-22T08:00:00.000000Z  INFO [test-001] Received tasks.created`
struct OneLine;

impl<S, N> FormatEvent<S, N> for OneLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line::default();
        event.record(&mut line);
        SystemTime.format_time(&mut writer)?;
        write!(writer, " {:>5} ", event.metadata().level())?;
        if let Some(id) = &line.correlation_id {
            write!(writer, "[{}] ", Printable(id))?;
        }
        write!(writer, "{}", Printable(&line.message))?;
        // Where the message tells it already, a field is not told again.
        let fields = line.fields.iter().filter(|(name, _)| !TOLD.contains(name));
        for (name, value) in fields {
            write!(writer, " {name}={}", Printable(value))?;
        }
        writeln!(writer)
    }
}

/// The parts of an event that make the line.
#[derive(Default)]
struct Line {
    correlation_id: Option<String>,
    message: String,
    fields: Vec<(&'static str, String)>,
}

/// Fields of our own messages that stand in the message itself.
const TOLD: [&str; 3] = ["key", "subject", "attempt"];

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "correlation_id" => self.correlation_id = Some(value.to_owned()),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields.push((name, format!("{value:?}"))),
        }
    }
}

/// Text with whatever could change how a terminal shows it written as an escape.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut plain_from = 0;
        for (at, c) in self.0.char_indices().filter(|(_, c)| changes_display(*c)) {
            write!(f, "{}\\u{{{:x}}}", &self.0[plain_from..at], u32::from(c))?;
            plain_from = at + c.len_utf8();
        }
        f.write_str(&self.0[plain_from..])
    }
}

/// Control characters, line separators, and Unicode's direction controls and isolates.
fn changes_display(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_came_from_outside_can_change_a_line() {
        let text = "a\nb\u{1b}[31m\u{202e}c é 😀";
        assert_eq!(Printable(text).to_string(), r"a\u{a}b\u{1b}[31m\u{202e}c é 😀");
    }
}
