//! Logs on standard output: one line for each step for people, or one JSON object a line for collectors.
//!
//! Data from outside (ids, error texts) reaches these lines. So both formats escape control characters and characters
//! that change the direction of text.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::environment::LogFormat;

/// The default of `RUST_LOG`: the steps of the pipeline, and warnings of libraries.
const DEFAULT_FILTER: &str = "warn,taskpipeline=info";

/// Starts logging, filtered by `RUST_LOG`.
pub(crate) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    // Only a test starts logging twice in one process; the first subscriber stays.
    let _ = match format {
        LogFormat::Text => builder.event_format(OneLine).try_init(),
        LogFormat::Json => builder.fmt_fields(JsonFields::new()).event_format(SafeJson::new()).try_init(),
    };
}

/// Starts logging for a command whose result is on standard output.
///
/// Logs go to standard error, and by default only warnings and errors are logged.
pub(crate) fn start_for_command() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = builder.event_format(OneLine).try_init();
}

/// Formats an event as one JSON object a line.
///
/// JSON allows raw characters that change how a terminal or a browser shows the line. This format escapes them.
struct SafeJson(Format<Json>);

impl SafeJson {
    fn new() -> Self {
        let format = tracing_subscriber::fmt::format().json();
        Self(format.flatten_event(true).with_current_span(false).with_span_list(false))
    }
}

impl<S, N> FormatEvent<S, N> for SafeJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        let mut plain_from = 0;
        // Such a character can only be in a string: outside of strings JSON has none, except the line end.
        for (at, c) in line.char_indices().filter(|(_, c)| changes_display(*c) && *c != '\n') {
            write!(writer, "{}\\u{:04x}", &line[plain_from..at], u32::from(c))?;
            plain_from = at + c.len_utf8();
        }
        writer.write_str(&line[plain_from..])
    }
}

/// Formats an event as one line: `2026-11-22T08:00:00.000000Z  INFO [test-001] Received tasks.created`
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
            write!(writer, "[{}] ", Id(id))?;
        }
        write!(writer, "{}", Printable(&line.take_message()))?;
        for (name, value) in &line.fields {
            write!(writer, " {name}={}", Value(value))?;
        }
        writeln!(writer)
    }
}

/// The parts of an event that form the line.
#[derive(Default)]
struct Line {
    correlation_id: Option<String>,
    message: String,
    fields: Vec<(&'static str, String)>,
}

/// Messages that the text format shows as the replaced system did, because its users search their logs for these lines.
///
/// A name in braces stands for the value of that field.
const REPLACED: [(&str, &str); 5] = [
    ("received", "Received {subject}"),
    ("writing", "{operation} {key}"),
    ("attempt", "Attempt {attempt}/{max_attempts}"),
    ("attempt failed", "Attempt {attempt}/{max_attempts} failed"),
    ("written", "{operation} {key} successful"),
];

impl Line {
    /// Takes the message, with the fields that belong into it.
    fn take_message(&mut self) -> String {
        let Some((_, template)) = REPLACED.iter().find(|(message, _)| *message == self.message) else {
            return std::mem::take(&mut self.message);
        };
        let is_there = |name: &str| self.fields.iter().any(|(known, _)| *known == name);
        let names = || template.split('{').skip(1).filter_map(|part| part.split('}').next());
        // A library may log the same word.
        if !names().all(is_there) {
            return std::mem::take(&mut self.message);
        }
        let mut text = (*template).to_owned();
        self.fields.retain(|(name, value)| {
            let place = format!("{{{name}}}");
            let belongs = template.contains(&place);
            if belongs {
                text = text.replace(&place, value.trim_matches('"'));
            }
            !belongs
        });
        text
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "correlation_id" => self.correlation_id = Some(value.to_owned()),
            _ => self.record_debug(field, &value),
        }
    }

    /// Rounds seconds, because a person needs no more.
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.record_debug(field, &format_args!("{value:.1}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields.push((name, format!("{value:?}"))),
        }
    }
}

/// Shows an id between brackets, and escapes brackets in the id, so that it does not end early.
struct Id<'a>(&'a str);

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.split_inclusive(['[', ']']) {
            match part.strip_suffix(['[', ']']) {
                Some(plain) if part.ends_with('[') => write!(f, "{}\\u{{5b}}", Printable(plain))?,
                Some(plain) => write!(f, "{}\\u{{5d}}", Printable(plain))?,
                None => Printable(part).fmt(f)?,
            }
        }
        Ok(())
    }
}

/// Shows a field's value, in quotes if it could be read as several fields.
struct Value<'a>(&'a str);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_quoted = self.0.len() > 1 && self.0.starts_with('"') && self.0.ends_with('"');
        if !is_quoted && self.0.contains(|c: char| c.is_whitespace() || c == '=' || c == '"') {
            return Printable(&format!("{:?}", self.0)).fmt(f);
        }
        Printable(self.0).fmt(f)
    }
}

/// Shows text with escapes for all characters that could change how a terminal shows it.
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

/// Whether the character is a control character, a line separator, or one of Unicode's direction controls and isolates.
fn changes_display(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::{info, warn};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns the text or JSON that `log` logs.
    fn logged(json: bool, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let builder = tracing_subscriber::fmt().with_writer(move || writer.clone());
        if json {
            let subscriber = builder.fmt_fields(JsonFields::new()).event_format(SafeJson::new()).finish();
            tracing::subscriber::with_default(subscriber, log);
        } else {
            tracing::subscriber::with_default(builder.event_format(OneLine).finish(), log);
        }
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_logs_escape_what_changes_how_a_line_is_shown_and_stay_json() {
        let id = "a\u{202e}b\u{2028}c\u{85}d\u{7f}e\u{1b}[31m";
        let line = logged(true, || warn!(task_id = id, "Refused {id}"));
        assert!(!line.trim_end_matches('\n').contains(changes_display), "{line:?}");
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["task_id"], id);
        assert_eq!(object["message"], format!("Refused {id}"));
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn an_id_or_a_value_does_not_look_like_another_field() {
        let forged = "c]  ERROR [x";
        let error = "no route task_id=other level=ERROR";
        let line =
            logged(false, || info!(correlation_id = forged, error = %error, path = "a=b c", "received"));
        assert!(line.contains(r"[c\u{5d}  ERROR \u{5b}x] received"), "{line}");
        assert!(line.contains(r#" error="no route task_id=other level=ERROR""#), "{line}");
        assert!(line.contains(r#" path="a=b c""#), "{line}");
        let plain = logged(false, || info!(correlation_id = "test-001", count = 3, "received"));
        assert!(plain.ends_with("INFO [test-001] received count=3\n"), "{plain}");
    }

    #[test]
    fn text_logs_have_the_lines_of_the_replaced_system_and_json_logs_have_fields() {
        let line = |json, log: fn()| logged(json, log).trim_end().to_owned();
        let received = || info!(correlation_id = "test-001", subject = "tasks.created", "received");
        assert!(line(false, received).ends_with("INFO [test-001] Received tasks.created"));
        let attempt = || info!(correlation_id = "test-001", attempt = 1, max_attempts = 5, "attempt");
        assert!(line(false, attempt).ends_with("[test-001] Attempt 1/5"));
        let failed = || {
            warn!(
                attempt = 2,
                max_attempts = 5,
                error = "status 500",
                retry_in_seconds = 1.25,
                "attempt failed"
            );
        };
        let text = line(false, failed);
        assert!(
            text.ends_with(r#"WARN Attempt 2/5 failed error="status 500" retry_in_seconds=1.2"#),
            "{text}"
        );
        let written = || info!(operation = "PUT", key = "tasks:1", "written");
        assert!(line(false, written).ends_with("INFO PUT tasks:1 successful"));
        // A library's line with the same word stays as it is.
        assert!(line(false, || info!("received")).ends_with("INFO received"));
        let json: serde_json::Value = serde_json::from_str(&line(true, received)).unwrap();
        assert_eq!((&json["message"], &json["subject"]), (&"received".into(), &"tasks.created".into()));
    }

    #[test]
    fn nothing_that_came_from_outside_can_change_a_line() {
        let text = "a\nb\u{1b}[31m\u{202e}c é 😀";
        assert_eq!(Printable(text).to_string(), r"a\u{a}b\u{1b}[31m\u{202e}c é 😀");
    }
}
