//! The environment of this process, as each command needs it.

use std::net::IpAddr;
use std::str::FromStr;

use taskpipeline_pipeline::settings::{ConfigError, Environment, NatsConnection, Settings, Stored};

/// The port of health and metrics.
const PORT: u16 = 3001;

/// The format of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// One line for each step, for people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be text or json".to_owned()),
        }
    }
}

impl LogFormat {
    /// Reads only `LOG_FORMAT`, so that logging can begin before the other settings are read. The default is JSON.
    pub(crate) fn from_env() -> Self {
        process("LOG_FORMAT").and_then(|text| text.trim().parse().ok()).unwrap_or(Self::Json)
    }
}

/// The settings of `taskpipeline run`.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) settings: Settings,
    /// The address of health and metrics: `HOST`, by default every address of this machine, and `PORT`, 0 for any free port.
    pub(crate) http: (Option<IpAddr>, u16),
}

/// Reads the settings of `taskpipeline run`. `lookup` returns a variable's value.
///
/// # Errors
/// Names every variable that is missing or invalid.
pub(crate) fn run(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Run, ConfigError> {
    let mut env = Environment::new(lookup);
    let settings = env.settings();
    let host = env.text("HOST");
    let parsed = host.as_ref().and_then(|text| text.parse().ok());
    if host.is_some() && parsed.is_none() {
        env.problem("HOST", "must be an IP address such as 0.0.0.0 or ::");
    }
    let port = env.parsed("PORT", "a port number", PORT);
    env.parsed("LOG_FORMAT", "text or json", LogFormat::Json);
    env.end(settings.map(|settings| Run { settings, http: (parsed, port) }))
}

/// Reads the settings of a command that uses NATS and KV.
///
/// # Errors
/// Names every variable that is missing or invalid.
pub(crate) fn settings() -> Result<Settings, ConfigError> {
    run(&process).map(|run| run.settings)
}

/// Reads the connection of a command that publishes.
///
/// # Errors
/// Names every variable that is invalid.
pub(crate) fn producer() -> Result<NatsConnection, ConfigError> {
    let mut env = Environment::new(&process);
    let connection = env.producer();
    env.end(Some(connection))
}

/// Reads the settings of a command that inspects a pipeline in NATS.
///
/// # Errors
/// Names every variable that is invalid.
pub(crate) fn stored() -> Result<Stored, ConfigError> {
    let mut env = Environment::new(&process);
    let stored = env.stored();
    env.end(Some(stored))
}

/// Reads a variable of this process.
pub(crate) fn process(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_at_fault_is_named() {
        let wrong = [
            ("NATS_URL", "http://x y"),
            ("CF_NAMESPACE_ID", " "),
            ("HOST", "here"),
            ("PORT", "70000"),
            ("LOG_FORMAT", "xml"),
            ("SHUTDOWN_GRACE", "soon"),
        ];
        let lookup =
            |name: &str| wrong.iter().find(|(key, _)| *key == name).map(|(_, text)| (*text).to_owned());
        let error = run(&lookup).unwrap_err();
        let named: Vec<_> = error.0.iter().map(|line| line.split(':').next().unwrap()).collect();
        assert_eq!(
            named,
            [
                "NATS_URL",
                "SHUTDOWN_GRACE",
                "CF_ACCOUNT_ID",
                "CF_NAMESPACE_ID",
                "CF_API_TOKEN",
                "HOST",
                "PORT",
                "LOG_FORMAT"
            ]
        );
    }

    #[test]
    fn health_and_metrics_are_on_every_address_unless_one_is_named() {
        let good = [
            ("NATS_URL", "nats://n"),
            ("CF_ACCOUNT_ID", "a"),
            ("CF_NAMESPACE_ID", "n"),
            ("CF_API_TOKEN", "t"),
        ];
        let read = |more: &[(&str, &str)]| {
            let lookup = |name: &str| {
                let mut all = more.iter().chain(&good);
                all.find(|(key, _)| *key == name).map(|(_, text)| (*text).to_owned())
            };
            run(&lookup).unwrap().http
        };
        assert_eq!(read(&[]), (None, 3001));
        assert_eq!(read(&[("HOST", "::1"), ("PORT", "0")]), (Some("::1".parse().unwrap()), 0));
    }
}
