//! A kept node, seen by another command than the command that started it.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use super::found::running;
use super::plan::to_stop;
use super::record::{Record, Recorder};
use super::{HOME, RECORD, kubeconfig, lock_file, removal};

/// The state of the node of this machine, by its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// No record exists.
    None,
    /// The node is kept and runs.
    Up,
    /// The node is kept, and these of its processes have ended.
    Broken(Vec<String>),
    /// The node belongs to a test run that continues or was killed, or was kept before the machine's last boot.
    Other,
}

/// Reads the record and compares it with the running processes.
pub(crate) fn state() -> Result<State> {
    let record = recorder()?.read()?;
    Ok(record.map_or(State::None, |record| of(&record, &running())))
}

fn of(record: &Record, running: &[super::found::Running]) -> State {
    if !record.is_kept() {
        return State::Other;
    }
    let still: Vec<_> = record.processes().map(|process| process.name.as_str()).collect();
    let still: Vec<_> = to_stop(running, record, &still).into_iter().map(|process| process.id).collect();
    let ended = record.processes().filter(|process| !still.contains(&process.id));
    let ended: Vec<_> = ended.map(|process| process.name.clone()).collect();
    if ended.is_empty() { State::Up } else { State::Broken(ended) }
}

/// Refuses a node for tests while a node is kept: the machine has room for one.
///
/// # Errors
/// If a node is kept.
pub(crate) fn is_not_kept() -> Result<()> {
    match state()? {
        State::Up | State::Broken(_) => bail!(
            "`cargo xtask cluster up` keeps a cluster on this machine, and there is room for one: stop it with `cargo xtask \
             cluster down`"
        ),
        State::None | State::Other => Ok(()),
    }
}

/// The path of the kubeconfig, and the folder with kubectl and helm.
pub(crate) fn environment() -> (PathBuf, PathBuf) {
    (kubeconfig(), PathBuf::from(HOME).join("bin"))
}

/// Stops the node, kept or left behind, and removes everything that it created, its logs too.
///
/// # Errors
/// Names the things that could not be removed. Also if a test run uses the node.
pub(crate) fn down() -> Result<()> {
    let lock = lock_file()?;
    ensure!(
        lock.try_lock().is_ok(),
        "another command starts a node on this machine or tests on one now; it removes its node when it ends"
    );
    let record = recorder()?.read()?.unwrap_or_default();
    removal::clean(&record, &mut Vec::new())?;
    removal::forget()
}

fn recorder() -> Result<Recorder> {
    Recorder::at(PathBuf::from(HOME).join(RECORD))
}

#[cfg(test)]
mod tests {
    use super::super::found::Running;
    use super::super::record::{Entry, Process};
    use super::*;

    #[test]
    fn a_kept_node_is_up_while_all_its_processes_run() {
        let process = |name: &str, id| Entry::Process(Process { name: name.into(), id, started: 1 });
        let running = |ids: &[u32]| -> Vec<_> {
            ids.iter().map(|id| Running { id: *id, started: 1, arguments: Vec::new() }).collect()
        };
        let mut record = Record { entries: vec![process("etcd", 1), process("kubelet", 2)] };
        assert_eq!(of(&record, &running(&[1, 2])), State::Other);
        record.entries.push(Entry::Kept);
        assert_eq!(of(&record, &running(&[1, 2, 3])), State::Up);
        assert_eq!(of(&record, &running(&[1, 3])), State::Broken(vec!["kubelet".into()]));
    }
}
