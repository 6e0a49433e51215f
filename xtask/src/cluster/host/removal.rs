//! Stops a node and removes what `plan` lists, repeatedly until the list is empty; an error names the rest.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::found::{look, running, started};
use super::plan::{Removal, removals, to_stop};
use super::record::{Process, Record};
use super::{HOME, RUN, SOCKET};

/// The time in which a process may end by itself.
const GRACE: Duration = Duration::from_secs(4);

/// The limit of rounds. More than one is needed: a cgroup exists for a moment longer than its processes.
const ROUNDS: u32 = 20;

/// These programs start containers again, so they stop first.
const FIRST: [&str; 2] = ["kubelet", "kube-proxy"];

/// The other programs, each before the programs that it needs.
const REST: [&str; 6] =
    ["coredns", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd", "containerd"];

/// Stops the node and removes everything that it created, except its logs and its record.
///
/// # Errors
/// Names the things that still exist.
pub(super) fn clean(record: &Record, children: &mut Vec<Child>) -> Result<()> {
    stop(record, &FIRST);
    if !to_stop(&running(), record, &["containerd"]).is_empty() {
        end_containers();
    }
    stop(record, &REST);
    for mut child in children.drain(..) {
        let _ = child.wait();
    }
    let mut left = removals(&look(record), record);
    for _ in 0..ROUNDS {
        left.iter().for_each(carry_out);
        left = removals(&look(record), record);
        if left.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(200));
    }
    ensure!(
        left.is_empty(),
        "cannot remove everything that the node created: {left:?}; run `cargo xtask cluster down` to try again"
    );
    remove_files()
}

/// Removes the node's folder with its logs and its record, after `clean`.
pub(super) fn forget() -> Result<()> {
    remove_folder(Path::new(HOME))
}

/// Removes the node's files except its logs and its record. Call it only when nothing is mounted below the folder: a
/// pod's volume may be a folder of the user.
fn remove_files() -> Result<()> {
    let entries = match fs::read_dir(HOME) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot read {HOME}"))?,
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {HOME}"))?;
        let (path, name) = (entry.path(), entry.file_name());
        if name == super::RECORD || name == "logs" {
            continue;
        }
        if path.is_dir() {
            remove_folder(&path)?;
        } else {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    remove_folder(Path::new(RUN))
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("cannot remove {}", folder.display())),
    }
}

fn stop(record: &Record, names: &[&str]) {
    for process in to_stop(&running(), record, names) {
        let Ok(id) = i32::try_from(process.id) else { continue };
        let id = Pid::from_raw(id);
        let _ = kill(id, Signal::SIGTERM);
        let began = Instant::now();
        while began.elapsed() < GRACE && runs(process) {
            thread::sleep(Duration::from_millis(50));
        }
        if runs(process) {
            let _ = killpg(id, Signal::SIGKILL);
        }
    }
}

fn runs(process: &Process) -> bool {
    started(process.id) == Some(process.started)
}

/// Ends containers by containerd, so that their shims end too. If containerd does not run, the plan kills both.
fn end_containers() {
    let ctr =
        |arguments: &[&str]| output("ctr", &[&["-a", SOCKET, "-n", "k8s.io", "tasks"], arguments].concat());
    let Some(tasks) = ctr(&["ls", "-q"]) else { return };
    for task in tasks.lines() {
        let _ = ctr(&["kill", "-s", "KILL", task]);
    }
    thread::sleep(Duration::from_secs(1));
    for task in tasks.lines() {
        let _ = ctr(&["delete", "-f", task]);
    }
}

/// Carries out one removal. Ignores failures: the next look finds what is left.
fn carry_out(removal: &Removal) {
    match removal {
        Removal::Kill(id) => {
            if let Ok(id) = i32::try_from(*id) {
                let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
            }
        }
        Removal::Unmount(point) => drop(output("umount", &["-l", point])),
        Removal::Table(table) => {
            let words: Vec<_> = ["delete", "table"].into_iter().chain(table.split(' ')).collect();
            drop(output("nft", &words));
        }
        Removal::Address(address) => drop(output("ip", &["address", "del", address, "dev", "lo"])),
        Removal::Sysctl { path, value } => drop(fs::write(format!("/proc/sys/{path}"), value)),
        // The kernel refuses to remove a cgroup with processes, or a folder with something in it.
        Removal::Cgroup(folder) | Removal::Folder(folder) => drop(fs::remove_dir(folder)),
        Removal::File(file) => drop(fs::remove_file(file)),
    }
}

/// Does not use `run::output`, which kills its program after Ctrl-C: a clean-up runs after Ctrl-C.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
