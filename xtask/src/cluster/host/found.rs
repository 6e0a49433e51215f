//! Finds the things on the machine that a node may have created. Changes nothing, and decides nothing.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use super::record::{Entry, Record};
use super::{CGROUP, HOME, PORTS};

/// The tasks of the node's containerd, in the node's folder.
const TASKS: &str = "containerd-state/io.containerd.runtime.v2.task/k8s.io";

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Running {
    pub(super) id: u32,
    /// The start time, in the kernel's ticks.
    pub(super) started: u64,
    /// The program and its arguments.
    pub(super) arguments: Vec<String>,
}

/// A cgroup, of one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cgroup {
    pub(super) folder: String,
    /// Without the processes of the cgroups below it.
    pub(super) processes: Vec<u32>,
}

/// The result that CNI keeps for a pod in a network. Each pod is in the loopback network, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CniResult {
    pub(super) file: String,
    pub(super) network: String,
    pub(super) pod: String,
}

/// The things on the machine, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) running: Vec<Running>,
    pub(super) mounts: Vec<String>,
    /// nft tables, each with its family.
    pub(super) tables: Vec<String>,
    /// Whether a kube-proxy works by iptables.
    pub(super) iptables_proxy: bool,
    /// The addresses of the loopback interface.
    pub(super) addresses: Vec<String>,
    /// The cgroups with the node's name, and all cgroups below them.
    pub(super) cgroups: Vec<Cgroup>,
    /// The recorded values below /proc/sys.
    pub(super) sysctls: Vec<(String, String)>,
    pub(super) results: Vec<CniResult>,
    /// Links to the logs of containers, and where they point to.
    pub(super) links: Vec<(String, String)>,
    /// The sockets of the shims of the node's containerd.
    pub(super) shim_sockets: Vec<String>,
    /// The recorded paths that are files, sockets or links.
    pub(super) files: Vec<String>,
    /// The recorded paths that are empty folders.
    pub(super) empty_folders: Vec<String>,
    /// The node's ports on which another program listens.
    pub(super) taken_ports: Vec<u16>,
}

/// Lists everything. If the program that lists a kind of thing is missing, none exists: a machine without `nft` has no tables.
pub(super) fn look(record: &Record) -> Found {
    let mounts = mounts();
    let mut found = Found {
        running: running(),
        tables: lines_of("nft", &["list", "tables"], |line| line.strip_prefix("table ").map(str::to_owned)),
        addresses: lines_of("ip", &["-oneline", "address", "show", "dev", "lo"], |line| {
            line.split_whitespace().nth(3).map(str::to_owned)
        }),
        results: entries("/var/lib/cni/results").into_iter().filter_map(result).collect(),
        links: entries("/var/log/containers").into_iter().filter_map(link).collect(),
        shim_sockets: entries(&format!("{HOME}/{TASKS}"))
            .into_iter()
            .filter_map(|task| shim_socket(&task))
            .collect(),
        ..Found::default()
    };
    let roots: BTreeSet<_> = hierarchies(&mounts).map(|root| format!("{root}/{CGROUP}")).collect();
    roots.iter().for_each(|root| cgroups(Path::new(root), &mut found.cgroups));
    found.mounts = mounts.into_iter().map(|(point, _)| point).collect();
    for entry in &record.entries {
        match entry {
            Entry::Sysctl { path, .. } => {
                found.sysctls.extend(sysctl(path).map(|value| (path.clone(), value)));
            }
            Entry::Path(path) => match fs::symlink_metadata(path) {
                Ok(there) if !there.is_dir() => found.files.push(path.clone()),
                Ok(_) if entries(path).is_empty() => found.empty_folders.push(path.clone()),
                _ => {}
            },
            _ => {}
        }
    }
    found
}

/// Also looks for things of other software that keep a node from starting.
pub(super) fn look_before_start() -> Found {
    let chains = lines_of("nft", &["list", "chains"], |line| {
        line.trim().starts_with("chain KUBE-SERVICES ").then_some(())
    });
    Found {
        iptables_proxy: !chains.is_empty(),
        taken_ports: PORTS.into_iter().filter(|port| is_taken(*port)).collect(),
        ..look(&Record::default())
    }
}

/// Lists the machine's processes, without zombies.
pub(super) fn running() -> Vec<Running> {
    let ids = entries("/proc").into_iter().filter_map(|path| path.rsplit('/').next()?.parse().ok());
    ids.filter_map(|id| {
        let started = started(id)?;
        let arguments = fs::read(format!("/proc/{id}/cmdline")).ok()?;
        let arguments = String::from_utf8_lossy(&arguments);
        let arguments = arguments.split('\0').map(str::to_owned).collect();
        Some(Running { id, started, arguments })
    })
    .collect()
}

/// The start time of a process; `None` if it has ended.
pub(super) fn started(id: u32) -> Option<u64> {
    stat(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
}

/// Reads the start time from the text of `/proc/ID/stat`. The program's name in the text may contain spaces and brackets.
fn stat(text: &str) -> Option<u64> {
    let (_, fields) = text.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let has_ended = fields.next()? == "Z";
    let started = fields.nth(18)?.parse().ok()?;
    (!has_ended).then_some(started)
}

/// A value below /proc/sys.
pub(super) fn sysctl(path: &str) -> Option<String> {
    let value = fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    Some(value.trim().to_owned())
}

/// Lists the mount points of the cgroup hierarchies.
pub(super) fn cgroup_hierarchies() -> Vec<String> {
    hierarchies(&mounts()).map(str::to_owned).collect()
}

fn hierarchies(mounts: &[(String, String)]) -> impl Iterator<Item = &str> {
    let of_cgroups = |kind: &str| kind == "cgroup" || kind == "cgroup2";
    mounts.iter().filter(move |(_, kind)| of_cgroups(kind)).map(|(point, _)| point.as_str())
}

/// Lists the mount points, each with its file system's type.
fn mounts() -> Vec<(String, String)> {
    let text = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mount = |line: &str| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    text.lines().filter_map(mount).collect()
}

fn cgroups(folder: &Path, into: &mut Vec<Cgroup>) {
    let Ok(processes) = fs::read_to_string(folder.join("cgroup.procs")) else { return };
    let processes = processes.lines().filter_map(|id| id.parse().ok()).collect();
    into.push(Cgroup { folder: folder.to_string_lossy().into_owned(), processes });
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            cgroups(&entry.path(), into);
        }
    }
}

fn result(file: String) -> Option<CniResult> {
    let text = fs::read_to_string(&file).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    let text = |key| Some(json.get(key)?.as_str()?.to_owned());
    Some(CniResult { network: text("networkName")?, pod: text("containerId")?, file })
}

/// The socket of a task's shim. The socket's folder cannot be set and its name is a hash, but a file of the task
/// contains the address.
fn shim_socket(task: &str) -> Option<String> {
    let address = fs::read_to_string(format!("{task}/address")).ok()?;
    let socket = address.trim().strip_prefix("unix://")?;
    Path::new(socket).exists().then(|| socket.to_owned())
}

fn link(path: String) -> Option<(String, String)> {
    let target = fs::read_link(&path).ok()?.to_string_lossy().into_owned();
    Some((path, target))
}

/// Lists the paths in a folder; an empty list if the folder does not exist.
fn entries(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().to_string_lossy().into_owned()).collect()
}

/// Binding to all addresses fails if a program listens on any of them.
fn is_taken(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_err()
}

/// Does not use `run::output`, which kills its program after Ctrl-C: a clean-up runs after Ctrl-C.
fn lines_of<T>(program: &str, arguments: &[&str], take: impl Fn(&str) -> Option<T>) -> Vec<T> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter_map(take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_process_started_is_read_whatever_its_name_is() {
        let text = "12 (a) b) (c) S 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 4711 1000 10";
        assert_eq!(stat(text), Some(4711));
        assert_eq!(stat(&text.replace(" S 1 ", " Z 1 ")), None);
        assert_eq!(stat("12 (a"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_found_with_its_start() {
        let id = std::process::id();
        let found = running().into_iter().find(|process| process.id == id).unwrap();
        assert_eq!(Some(found.started), started(id));
        assert!(!found.arguments.is_empty());
    }
}
