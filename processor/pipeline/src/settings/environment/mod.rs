//! Settings from environment variables, and back. Reads through a function that it is given, checks, and does nothing else.
//!
//! Every variable at fault is reported at once, by name, with what it should be. Secrets are wrapped where they are read, so
//! that no Debug or log can show them.

mod connection;
mod duration;
mod kv;
mod pipeline;
#[cfg(test)]
mod tests;
mod variables;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{DurableSettings, EventSettings, NatsConnection, Settings, Size};

pub use duration::{format_duration, parse_duration};

/// Where commands other than `run` look for NATS.
const LOCAL_NATS: &str = "nats://127.0.0.1:4222";

/// Every variable at fault, one a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid environment:\n{}", .0.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// A pipeline in mode `Durable`, for commands that look at it and do not run it.
#[derive(Debug)]
pub struct Stored {
    /// Where its streams are, and the login there.
    pub connection: NatsConnection,
    /// By which names they are found.
    pub events: EventSettings,
    /// The stream, after which all else is named.
    pub durable: DurableSettings,
}

/// The environment, with the problems found in it so far. Each method answers something usable even where there is a problem,
/// so that one pass finds them all.
pub struct Environment<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
}

impl<'a> Environment<'a> {
    /// The variables are those that `lookup` knows.
    #[must_use]
    pub fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { lookup, problems: Vec::new() }
    }

    /// What a replica needs; nothing where some of it is missing, which [`Self::end`] says.
    pub fn settings(&mut self) -> Option<Settings> {
        let connection = self.connection(None);
        let pipeline = self.pipeline();
        let kv = self.kv()?;
        Some(Settings { connection, kv, pipeline })
    }

    /// What a command needs that only publishes, with a server on this machine as the default.
    pub fn producer(&mut self) -> NatsConnection {
        self.connection(Some(LOCAL_NATS))
    }

    /// What a command needs that looks at a pipeline in NATS, with a server on this machine as the default, and nothing of KV.
    pub fn stored(&mut self) -> Stored {
        let connection = self.connection(Some(LOCAL_NATS));
        let events = self.events();
        let durable = self.durable();
        for fault in events.fault().into_iter().chain(durable.faults(&events.queue_group)) {
            self.fault(&fault);
        }
        Stored { connection, events, durable }
    }

    /// Returns `read` if no variable is at fault.
    ///
    /// # Errors
    /// Every variable that is missing or wrong.
    pub fn end<T>(self, read: Option<T>) -> Result<T, ConfigError> {
        match read {
            Some(read) if self.problems.is_empty() => Ok(read),
            _ => Err(ConfigError(self.problems)),
        }
    }

    /// A variable is wrong.
    pub fn problem(&mut self, name: &str, what: impl fmt::Display) {
        self.problems.push(format!("{name}: {what}"));
    }

    fn fault(&mut self, fault: &super::Fault) {
        self.problems.push(fault.by_variable());
    }

    /// A variable's text without the white space around it: a Secret made with `echo` ends in a line break. An empty one counts
    /// as not set.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// A variable's value, or the default where it is not set or wrong. `what`: what it must be.
    pub fn parsed<T: FromStr>(&mut self, name: &str, what: &str, default: T) -> T {
        let Some(text) = self.text(name) else { return default };
        text.parse().unwrap_or_else(|_| {
            self.problem(name, format!("must be {what}"));
            default
        })
    }

    fn required(&mut self, name: &str, what: &str) -> String {
        self.text(name).unwrap_or_else(|| {
            self.problem(name, format!("is not set; it must be {what}"));
            String::new()
        })
    }

    fn duration(&mut self, name: &str, default: Duration) -> Duration {
        let Some(text) = self.text(name) else { return default };
        parse_duration(&text).unwrap_or_else(|what| {
            self.problem(name, what);
            default
        })
    }

    fn size(&mut self, name: &str) -> Option<Size> {
        let text = self.text(name)?;
        text.parse().map_err(|error| self.problem(name, error)).ok()
    }
}
