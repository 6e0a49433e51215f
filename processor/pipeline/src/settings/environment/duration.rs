//! Durations in environment variables, arguments and resources: `25s`, `1h30m`.

use std::time::Duration;

use crate::settings::LONGEST_DURATION;

/// Parses a duration of at most [`LONGEST_DURATION`].
///
/// # Errors
/// If the text is not such a duration; the text of the error says what it must be.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let parsed = humantime::parse_duration(text).ok().filter(|duration| *duration <= LONGEST_DURATION);
    parsed.ok_or("must be a duration such as 25s or 1m, at most 87600h")
}

/// Formats a duration as Go and a TaskPipeline do, such as `1h30m`. Parts of a millisecond are left
/// out.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let parts = [
        (millis / 3_600_000, "h"),
        (millis / 60_000 % 60, "m"),
        (millis / 1_000 % 60, "s"),
        (millis % 1_000, "ms"),
    ];
    let shown: String = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect();
    if shown.is_empty() { "0s".to_owned() } else { shown }
}
