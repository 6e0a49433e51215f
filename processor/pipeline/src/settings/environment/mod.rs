//! Reads settings from environment variables, and renders them again. It only reads through a given
//! function, and checks.
//!
//! It reports every invalid variable at once, by name and with the expected form. It wraps secrets
//! where it reads them, so that no Debug output or log shows them.

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

/// The address of NATS for commands other than `run`, if `NATS_URL` is not set.
const LOCAL_NATS: &str = "nats://127.0.0.1:4222";

/// The invalid variables, one on each line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid environment:\n{}", .0.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// A pipeline in mode `Durable`, for commands that inspect it and do not run it.
#[derive(Debug)]
pub struct Stored {
    /// The address of NATS, and the login there.
    pub connection: NatsConnection,
    /// The names of its subjects and its queue group.
    pub events: EventSettings,
    /// The stream, from which all other names are derived.
    pub durable: DurableSettings,
}

/// The environment, with the problems found so far.
///
/// Each method returns a usable value even after a problem, so that one pass finds all problems.
pub struct Environment<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
}

impl<'a> Environment<'a> {
    /// Reads variables through `lookup`.
    #[must_use]
    pub fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { lookup, problems: Vec::new() }
    }

    /// The settings of a replica, or `None` if one is missing; [`Self::end`] then returns the
    /// problems.
    pub fn settings(&mut self) -> Option<Settings> {
        let connection = self.connection(None);
        let pipeline = self.pipeline();
        let kv = self.kv()?;
        Some(Settings { connection, kv, pipeline })
    }

    /// The settings of a command that only publishes. The default is a server on this machine.
    pub fn producer(&mut self) -> NatsConnection {
        self.connection(Some(LOCAL_NATS))
    }

    /// The settings of a command that inspects a pipeline in NATS and does not use KV. The default
    /// is a server on this machine.
    pub fn stored(&mut self) -> Stored {
        let connection = self.connection(Some(LOCAL_NATS));
        let events = self.events();
        let durable = self.durable();
        for fault in events.fault().into_iter().chain(durable.faults(&events.queue_group)) {
            self.fault(&fault);
        }
        Stored { connection, events, durable }
    }

    /// Returns `read` if every variable is valid.
    ///
    /// # Errors
    /// If a variable is missing or invalid; the error lists all of them.
    pub fn end<T>(self, read: Option<T>) -> Result<T, ConfigError> {
        match read {
            Some(read) if self.problems.is_empty() => Ok(read),
            _ => Err(ConfigError(self.problems)),
        }
    }

    /// Records that a variable is invalid.
    pub fn problem(&mut self, name: &str, what: impl fmt::Display) {
        self.problems.push(format!("{name}: {what}"));
    }

    fn fault(&mut self, fault: &super::Fault) {
        self.problems.push(fault.by_variable());
    }

    /// The text of a variable without surrounding white space, or `None` if it is empty or not set.
    ///
    /// A Secret made with `echo` ends in a line break.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// The value of a variable, or the default if it is not set or invalid. `what` says what it
    /// must be.
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
