//! The record of the changes that a node makes to this machine outside its own folder.
//!
//! Each line is written before its change, and the line of a process as soon as the process has an id. So a run that
//! is killed leaves a complete record.
//!
//! The record is in the node's folder, not in the cache: a machine has one node, whichever clone and cache started it.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};

/// A process that the node started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) name: String,
    pub(super) id: u32,
    /// The start time, in the kernel's ticks: the id alone may belong to another process by now.
    pub(super) started: u64,
}

/// A line of the record. Only the table's text contains a space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// `cargo xtask cluster up` started this node; it stays until `cluster down`.
    Kept,
    Process(Process),
    /// An address of the loopback interface, which was not there before.
    Address(String),
    /// An nft table, such as `ip kube-proxy`, which was not there before.
    Table(String),
    /// A value below /proc/sys, as it was before and as the node sets it.
    Sysctl {
        path: String,
        before: String,
        after: String,
    },
    /// The folder of a cgroup, which was not there before.
    Cgroup(String),
    /// A file or folder outside the node's own that was not there before.
    Path(String),
}

impl fmt::Display for Entry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept => write!(out, "kept"),
            Self::Process(Process { name, id, started }) => write!(out, "process {name} {id} {started}"),
            Self::Address(address) => write!(out, "address {address}"),
            Self::Table(table) => write!(out, "table {table}"),
            Self::Sysctl { path, before, after } => write!(out, "sysctl {path} {before} {after}"),
            Self::Cgroup(folder) => write!(out, "cgroup {folder}"),
            Self::Path(path) => write!(out, "path {path}"),
        }
    }
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut words = rest.split(' ');
        let mut word = || words.next().filter(|word| !word.is_empty()).map(str::to_owned);
        Some(match kind {
            "kept" => Self::Kept,
            "process" => Self::Process(Process {
                name: word()?,
                id: word()?.parse().ok()?,
                started: word()?.parse().ok()?,
            }),
            "address" => Self::Address(word()?),
            "table" => Self::Table(rest.to_owned()),
            "sysctl" => Self::Sysctl { path: word()?, before: word()?, after: word()? },
            "cgroup" => Self::Cgroup(word()?),
            "path" => Self::Path(word()?),
            _ => return None,
        })
    }
}

/// The content of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) entries: Vec<Entry>,
}

impl Record {
    /// Reads the text of a record. If the record is of another boot, only paths count: a table, process id or cgroup
    /// that a machine has after a reboot is not the recorded one.
    pub(super) fn parse(text: &str, boot: &str) -> Self {
        // A last line without a line end is incomplete.
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let mut lines = whole.lines();
        let same_boot = lines.next().and_then(|line| line.strip_prefix("boot ")) == Some(boot);
        let entries = lines.filter_map(Entry::parse);
        Self { entries: entries.filter(|entry| same_boot || matches!(entry, Entry::Path(_))).collect() }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.entries.contains(&Entry::Kept)
    }

    /// The node's processes, in the order in which they were started.
    pub(super) fn processes(&self) -> impl Iterator<Item = &Process> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Process(process) => Some(process),
            _ => None,
        })
    }
}

/// The record's file.
pub(super) struct Recorder {
    path: PathBuf,
    boot: String,
}

impl Recorder {
    pub(super) fn at(path: PathBuf) -> Result<Self> {
        let file = "/proc/sys/kernel/random/boot_id";
        let boot = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
        Ok(Self { path, boot: boot.trim().to_owned() })
    }

    /// Reads the record; `None` if the file does not exist.
    pub(super) fn read(&self) -> Result<Option<Record>> {
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(Some(Record::parse(&text, &self.boot))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", self.path.display())),
        }
    }

    /// Begins a new record.
    pub(super) fn begin(&self) -> Result<()> {
        let written = File::create(&self.path).and_then(|mut file| {
            writeln!(file, "boot {}", self.boot)?;
            file.sync_all()
        });
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Removes the record, after everything in it.
    pub(super) fn end(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.with_context(|| format!("cannot remove {}", self.path.display())),
        }
    }

    /// Records a change. Make the change after this.
    pub(super) fn add(&self, entry: &Entry) -> Result<()> {
        let written = OpenOptions::new().append(true).open(&self.path).and_then(|mut file| {
            file.write_all(format!("{entry}\n").as_bytes())?;
            file.sync_data()
        });
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every() -> Vec<Entry> {
        vec![
            Entry::Kept,
            Entry::Process(Process { name: "kubelet".into(), id: 12, started: 345 }),
            Entry::Address("10.88.255.1/32".into()),
            Entry::Table("ip6 kube-proxy".into()),
            Entry::Sysctl { path: "net/ipv4/ip_forward".into(), before: "0".into(), after: "1".into() },
            Entry::Cgroup("/sys/fs/cgroup/memory/taskpipeline-e2e".into()),
            Entry::Path("/var/lib/cni".into()),
        ]
    }

    #[test]
    fn what_is_recorded_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = Recorder { path: folder.path().join("record"), boot: "b-1".into() };
        assert_eq!(recorder.read().unwrap(), None);
        recorder.begin().unwrap();
        assert_eq!(recorder.read().unwrap(), Some(Record::default()));
        every().iter().for_each(|entry| recorder.add(entry).unwrap());
        assert_eq!(recorder.read().unwrap(), Some(Record { entries: every() }));
    }

    #[test]
    fn a_line_that_was_cut_off_or_is_unknown_counts_for_nothing() {
        let record =
            Record::parse("boot b-1\nkept\nsomething else\nprocess kubelet x 1\ntable ip kube", "b-1");
        assert_eq!(record.entries, [Entry::Kept]);
        assert_eq!(Record::parse("", "b-1"), Record::default());
    }

    #[test]
    fn of_a_record_of_another_boot_only_paths_are_left() {
        let text: String = every().iter().map(|entry| format!("{entry}\n")).collect();
        let record = Record::parse(&format!("boot b-1\n{text}"), "b-2");
        assert_eq!(record.entries, [Entry::Path("/var/lib/cni".into())]);
        assert!(!record.is_kept());
    }
}
