//! Reads the properties of the machine and the versions of the programs of a run.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::macros::format_description;

/// The properties that could be determined.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The day, in UTC.
    pub(crate) date: String,
    /// Logical cores.
    pub(crate) cores: usize,
    /// The processor's name.
    pub(crate) cpu: String,
    /// Memory in GB (2^30 bytes).
    pub(crate) memory: f64,
    /// The operating system.
    pub(crate) os: String,
    /// Versions by program.
    pub(crate) versions: Vec<(String, String)>,
}

impl Machine {
    /// Returns the properties of this machine.
    pub(crate) fn here() -> Self {
        let program = |variable: &str, name: &str| {
            std::env::var_os(variable).unwrap_or_else(|| name.into()).to_string_lossy().into_owned()
        };
        let versions = [
            ("nats-server", program("TASKPIPELINE_NATS_SERVER", "nats-server"), "--version"),
            ("node", program("TASKPIPELINE_NODE", "node"), "--version"),
            ("rustc", "rustc".to_owned(), "--version"),
        ];
        let versions = versions.into_iter().filter_map(|(name, program, argument)| {
            let told = output(&program, &[argument])?;
            Some((name.to_owned(), version(&told)?.to_owned()))
        });
        Self {
            date: now(true),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            cpu: named("/proc/cpuinfo", "model name", ':')
                .or_else(|| output("sysctl", &["-n", "machdep.cpu.brand_string"]))
                .unwrap_or_else(|| "unknown".to_owned()),
            memory: memory().unwrap_or_default(),
            os: os(),
            versions: versions.collect(),
        }
    }
}

/// The current time in UTC: only the day, or date and time as the name of a folder.
pub(crate) fn now(day_only: bool) -> String {
    let now = OffsetDateTime::now_utc();
    let told = if day_only {
        now.format(format_description!("[year]-[month]-[day]"))
    } else {
        now.format(format_description!("[year][month][day]-[hour][minute][second]"))
    };
    told.unwrap_or_default()
}

/// The average number of processes that wanted a core in the last minute, if the system reports it.
pub(crate) fn load() -> Option<f64> {
    let text =
        std::fs::read_to_string("/proc/loadavg").ok().or_else(|| output("sysctl", &["-n", "vm.loadavg"]))?;
    text.trim_start_matches(['{', ' ']).split_ascii_whitespace().next()?.parse().ok()
}

fn memory() -> Option<f64> {
    let kilobytes = named("/proc/meminfo", "MemTotal", ':')
        .and_then(|text| text.split_ascii_whitespace().next()?.parse::<f64>().ok());
    let bytes = || output("sysctl", &["-n", "hw.memsize"])?.parse::<f64>().ok();
    Some(kilobytes.map(|it| it * 1_024.0).or_else(bytes)? / f64::from(1 << 30))
}

fn os() -> String {
    let name = named("/etc/os-release", "PRETTY_NAME", '=').map(|name| name.trim_matches('"').to_owned());
    let name = name.or_else(|| Some(format!("macOS {}", output("sw_vers", &["-productVersion"])?)));
    let kernel = output("uname", &["-sr"]);
    [name, kernel].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The value behind a name at the start of a line.
fn named(file: impl AsRef<Path>, name: &str, separator: char) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(separator)?;
        (found.trim() == name).then(|| value.trim().to_owned())
    })
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The first word of a version line that consists of digits and dots.
fn version(text: &str) -> Option<&str> {
    let words = text.split_ascii_whitespace().map(|word| word.trim_start_matches('v'));
    words.into_iter().find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_programs_tell_them() {
        assert_eq!(version("nats-server: v2.15.2"), Some("2.15.2"));
        assert_eq!(version("rustc 1.91.0 (f8297e351 2025-10-28)"), Some("1.91.0"));
        assert_eq!(version("v22.23.3"), Some("22.23.3"));
        assert_eq!(version("none"), None);
    }

    #[test]
    fn this_machine_has_cores() {
        assert!(Machine::here().cores > 0);
    }
}
