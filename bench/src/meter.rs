//! CPU time and memory of all processes of a measurement, by what they are. It remembers what a process had
//! used when it was last seen, so that one that is killed is not forgotten.

use std::collections::BTreeMap;

use crate::usage::{self, Usage};

/// One process under watch.
#[derive(Clone, Debug)]
struct Watched {
    pid: i32,
    /// What it is, such as `replica`; several may be the same.
    role: String,
    /// When the clock started.
    before: Usage,
    last: Usage,
    /// The most resident memory seen, for systems that do not keep it, in MB.
    most: f64,
    /// Whether it was there at the last look.
    there: bool,
}

/// The processes of a measurement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    watched: Vec<Watched>,
}

impl Meter {
    /// Watches one more process from now on; what it used before does not count.
    pub(crate) fn watch(&mut self, role: &str, pid: i32) {
        let before = usage::of(pid).unwrap_or_default();
        self.add(role, pid, before);
    }

    /// Watches a process all of whose life counts.
    pub(crate) fn watch_from_birth(&mut self, role: &str, pid: i32) {
        self.add(role, pid, Usage::default());
    }

    fn add(&mut self, role: &str, pid: i32, before: Usage) {
        let most = before.resident;
        self.watched.push(Watched { pid, role: role.to_owned(), before, last: before, most, there: true });
    }

    /// Looks at all that are still there.
    pub(crate) fn look(&mut self) {
        for watched in &mut self.watched {
            // One that has ended and was not waited for yet tells no memory any more; and a process id may be
            // another's by now, which has used less.
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

    /// The most memory that any one process of this role has occupied, in MB.
    pub(crate) fn peak_of(&self, role: &str) -> f64 {
        let peaks = self.of(role).map(|watched| watched.last.peak.max(watched.most));
        peaks.fold(0.0, f64::max)
    }

    /// The memory of each process of this role that is still there, in MB, with a name for each: they are numbered
    /// as they came.
    pub(crate) fn resident_by_name(&self, role: &str) -> Vec<(String, f64)> {
        let numbered = self.of(role).enumerate().filter(|(_, watched)| watched.there);
        numbered.map(|(number, watched)| (format!("{}", number + 1), watched.last.resident)).collect()
    }

    fn of(&self, role: &str) -> impl Iterator<Item = &Watched> {
        self.watched.iter().filter(move |watched| watched.role == role)
    }
}
