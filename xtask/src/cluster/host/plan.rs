//! Decides what a clean-up removes, from the things found on the machine and from the record. Changes nothing.
//!
//! A thing is ours if it belongs to the node's own folder or name, or if the record names it. The folder and name
//! cover mounts below the folder, and the shims of its containerd with their sockets. They also cover results of pods
//! in its CNI network, and links to its logs. Everything else stays, whatever its name: other software that runs pods
//! also names its namespaces `cni-*` and its tables `kube-proxy`.

use std::collections::BTreeSet;

use super::found::{Found, Running};
use super::record::{Entry, Process, Record};
use super::{CGROUP, HOME, NETWORK, SOCKET};

/// A thing to remove.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Removal {
    Kill(u32),
    Unmount(String),
    Table(String),
    Address(String),
    /// Restore a value below /proc/sys.
    Sysctl {
        path: String,
        value: String,
    },
    /// The folder of a cgroup.
    Cgroup(String),
    File(String),
    /// An empty folder.
    Folder(String),
}

/// Lists the recorded processes with these names that still run, in the order of the names.
pub(super) fn to_stop<'a>(running: &[Running], record: &'a Record, names: &[&str]) -> Vec<&'a Process> {
    let runs = |process: &Process| {
        running.iter().any(|found| found.id == process.id && found.started == process.started)
    };
    let named = |name: &&str| {
        let name = (*name).to_owned();
        record.processes().filter(move |process| process.name == name && runs(process))
    };
    names.iter().flat_map(named).collect()
}

/// Lists everything to remove, in order, after the node's own processes have stopped.
pub(super) fn removals(found: &Found, record: &Record) -> Vec<Removal> {
    let mut removals = Vec::new();
    let recorded = |entry: Entry| record.entries.contains(&entry);

    // Containers outlive the shims and the containerd that started them.
    let ours = |folder: &str| {
        record.entries.iter().any(|entry| match entry {
            Entry::Cgroup(root) => folder == root || is_below(folder, root),
            _ => false,
        })
    };
    let cgroups: Vec<_> = found.cgroups.iter().filter(|cgroup| ours(&cgroup.folder)).collect();
    let mut processes: BTreeSet<u32> =
        cgroups.iter().flat_map(|cgroup| cgroup.processes.iter().copied()).collect();
    processes.extend(found.running.iter().filter(|process| is_our_shim(process)).map(|process| process.id));
    removals.extend(processes.into_iter().map(Removal::Kill));

    // The inner mounts come first.
    let mut mounts: Vec<_> = found.mounts.iter().filter(|point| is_below(point, HOME)).collect();
    mounts.sort_unstable();
    removals.extend(mounts.into_iter().rev().map(|point| Removal::Unmount(point.clone())));

    let tables = found.tables.iter().filter(|table| recorded(Entry::Table((*table).clone())));
    removals.extend(tables.map(|table| Removal::Table(table.clone())));
    let addresses = found.addresses.iter().filter(|address| recorded(Entry::Address((*address).clone())));
    removals.extend(addresses.map(|address| Removal::Address(address.clone())));
    removals.extend(record.entries.iter().filter_map(|entry| sysctl(entry, found)));

    let mut folders: Vec<_> = cgroups.iter().map(|cgroup| &cgroup.folder).collect();
    folders.sort_unstable();
    removals.extend(folders.into_iter().rev().map(|folder| Removal::Cgroup(folder.clone())));

    let pods: Vec<_> = found.results.iter().filter(|result| result.network == NETWORK).collect();
    let results = found.results.iter().filter(|result| pods.iter().any(|pod| pod.pod == result.pod));
    removals.extend(results.map(|result| Removal::File(result.file.clone())));
    removals.extend(found.shim_sockets.iter().map(|socket| Removal::File(socket.clone())));
    let links = found.links.iter().filter(|(_, target)| is_below(target, HOME));
    removals.extend(links.map(|(link, _)| Removal::File(link.clone())));
    for entry in &record.entries {
        let Entry::Path(path) = entry else { continue };
        if found.files.contains(path) {
            removals.push(Removal::File(path.clone()));
        } else if found.empty_folders.contains(path) {
            removals.push(Removal::Folder(path.clone()));
        }
    }
    removals
}

/// Lists the things of other software that a node would take over, each with the way out. A node does not start while
/// one exists.
pub(super) fn obstacles(found: &Found) -> Vec<String> {
    let mut obstacles = Vec::new();
    for table in found.tables.iter().filter(|table| table.ends_with(" kube-proxy")) {
        obstacles.push(format!(
            "the nft table `{table}` is there and host mode would overwrite it; stop the Kubernetes node that made it, or, if \
             none runs, remove it with `nft delete table {table}`"
        ));
    }
    if found.iptables_proxy {
        obstacles.push(
            "there are KUBE-SERVICES chains of a kube-proxy and host mode would remove them; stop that Kubernetes node"
                .to_owned(),
        );
    }
    for cgroup in found.cgroups.iter().filter(|cgroup| cgroup.folder.ends_with(&format!("/{CGROUP}"))) {
        obstacles.push(format!(
            "the cgroup {} is there and not recorded; if none of its processes is of use, remove it with `rmdir`",
            cgroup.folder
        ));
    }
    for port in &found.taken_ports {
        obstacles.push(format!("port {port} is taken; stop what listens there (`ss -ltnp` shows it)"));
    }
    obstacles
}

/// Restores a value only if it is still the node's: another value was set by someone since, and stays.
fn sysctl(entry: &Entry, found: &Found) -> Option<Removal> {
    let Entry::Sysctl { path, before, after } = entry else { return None };
    let now = found.sysctls.iter().find(|(found, _)| found == path).map(|(_, value)| value)?;
    (now == after && now != before).then(|| Removal::Sysctl { path: path.clone(), value: before.clone() })
}

fn is_our_shim(process: &Running) -> bool {
    let is_shim =
        |program: &String| program.rsplit('/').next().is_some_and(|name| name.starts_with("containerd-shim"));
    let ours = |pair: &[String]| pair[0] == "-address" && pair[1] == SOCKET;
    process.arguments.first().is_some_and(is_shim) && process.arguments.windows(2).any(ours)
}

/// Whether a path is below a folder, and not the folder itself.
fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
}

#[cfg(test)]
mod tests {
    use super::super::found::{Cgroup, CniResult};
    use super::*;

    const OURS: &str = "/sys/fs/cgroup/memory/taskpipeline-e2e";

    fn text(value: &str) -> String {
        value.to_owned()
    }

    fn cgroup(folder: &str, processes: &[u32]) -> Cgroup {
        Cgroup { folder: text(folder), processes: processes.to_vec() }
    }

    fn running(id: u32, started: u64, arguments: &[&str]) -> Running {
        Running { id, started, arguments: arguments.iter().copied().map(text).collect() }
    }

    fn result(file: &str, network: &str, pod: &str) -> CniResult {
        CniResult { file: format!("/var/lib/cni/results/{file}"), network: text(network), pod: text(pod) }
    }

    fn process(name: &str, id: u32, started: u64) -> Entry {
        Entry::Process(Process { name: text(name), id, started })
    }

    fn record(entries: &[Entry]) -> Record {
        Record { entries: entries.to_vec() }
    }

    /// A machine on which other software runs pods, too.
    fn foreign() -> Found {
        Found {
            running: vec![
                running(7, 70, &["/usr/bin/kubelet"]),
                running(
                    8,
                    80,
                    &["/usr/bin/containerd-shim-runc-v2", "-address", "/run/containerd/containerd.sock"],
                ),
                running(9, 90, &["vi", "-address", SOCKET]),
            ],
            mounts: vec![
                text("/"),
                text("/run/netns/cni-1234"),
                text("/var/lib/kubelet/pods/x/volumes"),
                text("/var/lib/taskpipeline-e2e-of-somebody/x"),
            ],
            tables: vec![text("ip kube-proxy"), text("ip6 kube-proxy"), text("inet cni-foreign")],
            addresses: vec![text("127.0.0.1/8"), text("10.88.255.1/32")],
            cgroups: vec![cgroup("/sys/fs/cgroup/memory/kubepods", &[7]), cgroup(&format!("{OURS}-x"), &[9])],
            sysctls: vec![(text("net/ipv4/ip_forward"), text("1"))],
            results: vec![
                result("pods-1-eth0", "pods", "1"),
                result("cni-loopback-1-lo", "cni-loopback", "1"),
            ],
            links: vec![(text("/var/log/containers/a.log"), text("/var/log/pods/a/0.log"))],
            files: vec![text("/var/lib/kubelet/device-plugins/kubelet.sock")],
            empty_folders: vec![text("/var/lib/cni/results")],
            ..Found::default()
        }
    }

    #[test]
    fn without_a_record_everything_of_others_stays() {
        assert_eq!(removals(&foreign(), &Record::default()), []);
        assert_eq!(to_stop(&foreign().running, &Record::default(), &["kubelet"]), Vec::<&Process>::new());
    }

    #[test]
    fn what_is_recorded_and_what_is_below_the_nodes_folder_is_removed_and_the_rest_stays() {
        let mut found = foreign();
        let pod = format!("{OURS}/kubepods/pod1");
        found.cgroups.extend([cgroup(OURS, &[]), cgroup(&pod, &[21])]);
        found.mounts.extend([
            format!("{HOME}/containerd-state/netns/cni-5"),
            format!("{HOME}/containerd-state/netns"),
        ]);
        found.tables.push(text("inet more"));
        found.running.push(running(
            22,
            220,
            &["/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io", "-address", SOCKET],
        ));
        found.results.push(result("cni-loopback-2-lo", "cni-loopback", "2"));
        found.results.push(result("ours", NETWORK, "2"));
        found.shim_sockets.push(text("/run/containerd/s/2"));
        found.links.push((text("/var/log/containers/b.log"), format!("{HOME}/pod-logs/b/0.log")));
        let record = record(&[
            Entry::Address(text("10.88.255.1/32")),
            Entry::Table(text("ip kube-proxy")),
            // Recorded before the change, which never happened.
            Entry::Table(text("ip6 nothing")),
            Entry::Cgroup(text(OURS)),
            Entry::Sysctl { path: text("net/ipv4/ip_forward"), before: text("0"), after: text("1") },
            Entry::Path(text("/var/lib/cni/results")),
            Entry::Path(text("/var/lib/cni")),
        ]);
        assert_eq!(
            removals(&found, &record),
            [
                Removal::Kill(21),
                Removal::Kill(22),
                Removal::Unmount(format!("{HOME}/containerd-state/netns/cni-5")),
                Removal::Unmount(format!("{HOME}/containerd-state/netns")),
                Removal::Table(text("ip kube-proxy")),
                Removal::Address(text("10.88.255.1/32")),
                Removal::Sysctl { path: text("net/ipv4/ip_forward"), value: text("0") },
                Removal::Cgroup(pod),
                Removal::Cgroup(text(OURS)),
                Removal::File(text("/var/lib/cni/results/cni-loopback-2-lo")),
                Removal::File(text("/var/lib/cni/results/ours")),
                Removal::File(text("/run/containerd/s/2")),
                Removal::File(text("/var/log/containers/b.log")),
                Removal::Folder(text("/var/lib/cni/results")),
            ]
        );
    }

    #[test]
    fn a_value_that_somebody_has_changed_since_stays() {
        let recorded = |before, after| {
            record(&[Entry::Sysctl { path: text("kernel/panic"), before: text(before), after: text(after) }])
        };
        let found = |now| Found { sysctls: vec![(text("kernel/panic"), text(now))], ..Found::default() };
        let back = [Removal::Sysctl { path: text("kernel/panic"), value: text("1") }];
        assert_eq!(removals(&found("10"), &recorded("1", "10")), back);
        assert_eq!(removals(&found("30"), &recorded("1", "10")), []);
        assert_eq!(removals(&found("10"), &recorded("10", "10")), []);
    }

    #[test]
    fn a_number_that_is_another_process_by_now_is_not_stopped() {
        let record =
            record(&[process("etcd", 5, 50), process("kubelet", 6, 60), process("kube-proxy", 7, 70)]);
        let found = [running(5, 50, &["etcd"]), running(6, 61, &["bash"]), running(7, 70, &["kube-proxy"])];
        let stopped: Vec<_> = to_stop(&found, &record, &["kubelet", "kube-proxy", "etcd"])
            .iter()
            .map(|process| process.id)
            .collect();
        assert_eq!(stopped, [7, 5]);
    }

    #[test]
    fn a_node_does_not_start_over_what_is_somebody_elses() {
        let mut found = Found { taken_ports: vec![10_250], iptables_proxy: true, ..foreign() };
        found.cgroups.push(cgroup(OURS, &[]));
        let obstacles = obstacles(&found);
        let named = |what: &str| obstacles.iter().filter(|text| text.contains(what)).count();
        assert_eq!(named("`ip kube-proxy`"), 1);
        assert_eq!(named("`ip6 kube-proxy`"), 1);
        assert_eq!(named("inet cni-foreign"), 0);
        assert_eq!(named("port 10250"), 1);
        assert_eq!(named("KUBE-SERVICES"), 1);
        assert_eq!((named("the cgroup"), named(OURS)), (1, 1));
    }
}
