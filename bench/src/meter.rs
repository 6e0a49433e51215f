//! CPU time and memory of all processes of a measurement, by their roles.
//!
//! It keeps the last known usage of each process, so that a killed process still counts.

use std::collections::BTreeMap;

use crate::usage::{self, Usage};

/// A watched process.
#[derive(Clone, Debug)]
struct Watched {
    pid: i32,
    /// The role, such as `replica`; several processes may have the same.
    role: String,
    /// The usage when the clock started.
    before: Usage,
    last: Usage,
    /// The highest resident memory seen, for systems that do not record it, in MB.
    most: f64,
    /// Whether the process existed at the last sample.
    there: bool,
}

/// The processes of a measurement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    watched: Vec<Watched>,
}

impl Meter {
    /// Watches one more process from now on; its earlier usage does not count.
    pub(crate) fn watch(&mut self, role: &str, pid: i32) {
        let before = usage::of(pid).unwrap_or_default();
        self.add(role, pid, before);
    }

    /// Watches a process whose usage counts from its start.
    pub(crate) fn watch_from_birth(&mut self, role: &str, pid: i32) {
        self.add(role, pid, Usage::default());
    }

    fn add(&mut self, role: &str, pid: i32, before: Usage) {
        let most = before.resident;
        self.watched.push(Watched { pid, role: role.to_owned(), before, last: before, most, there: true });
    }

    /// Samples all processes that still exist.
    pub(crate) fn look(&mut self) {
        for watched in &mut self.watched {
            // An ended process that was not waited for yet has no memory lines. A process id may also belong to
            // another process by now, which has used less.
            let now = usage::of(watched.pid).ok();
            let now = now.filter(|now| now.resident > 0.0 && now.cpu >= watched.last.cpu);
            watched.there = now.is_some();
            if let Some(now) = now {
                watched.last = Usage { peak: now.peak.max(watched.last.peak), ..now };
                watched.most = watched.most.max(now.resident);
            }
        }
    }

    /// CPU seconds by role.
    pub(crate) fn cpu(&self) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for watched in &self.watched {
            *sums.entry(watched.role.clone()).or_default() += watched.last.cpu - watched.before.cpu;
        }
        sums
    }

    /// CPU seconds of all processes with this role.
    pub(crate) fn cpu_of(&self, role: &str) -> f64 {
        self.cpu().get(role).copied().unwrap_or_default()
    }

    /// The highest memory of any single process of this role, in MB.
    pub(crate) fn peak_of(&self, role: &str) -> f64 {
        let peaks = self.of(role).map(|watched| watched.last.peak.max(watched.most));
        peaks.fold(0.0, f64::max)
    }

    /// The memory of each existing process of this role, in MB. The names number the processes in the order in which they came.
    pub(crate) fn resident_by_name(&self, role: &str) -> Vec<(String, f64)> {
        let numbered = self.of(role).enumerate().filter(|(_, watched)| watched.there);
        numbered.map(|(number, watched)| (format!("{}", number + 1), watched.last.resident)).collect()
    }

    fn of(&self, role: &str) -> impl Iterator<Item = &Watched> {
        self.watched.iter().filter(move |watched| watched.role == role)
    }
}
