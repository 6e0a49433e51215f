//! Durations in environment variables, arguments and resources: `25s`, `1h30m`.

use std::time::Duration;

use crate::settings::LONGEST_DURATION;

/// A duration that can be counted.
///
/// # Errors
/// What it must be.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let parsed = humantime::parse_duration(text).ok().filter(|duration| *duration <= LONGEST_DURATION);
    parsed.ok_or("must be a duration such as 25s or 1m, at most 87600h")
}

/// As Go writes it, and a TaskPipeline: `1h30m`. Nothing finer than a millisecond is shown.
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
