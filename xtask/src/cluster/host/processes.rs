//! Starts the node's processes and waits for them. Records each change that a node makes to the machine before the change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::found::{cgroup_hierarchies, look, started, sysctl};
use super::record::{Entry, Process, Record};
use super::{CGROUP, NODE, Node, command};
use crate::interrupt;

/// The time limit for a part to come up.
const PATIENCE: Duration = Duration::from_secs(90);

/// The values below /proc/sys that the node and a starting kubelet set.
const SYSCTLS: [(&str, &str); 7] = [
    ("net/ipv4/ip_forward", "1"),
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// The tables that kube-proxy creates. Their names are fixed.
const TABLES: [&str; 2] = ["ip kube-proxy", "ip6 kube-proxy"];

/// Paths that the node's programs create and no setting moves. A path in a folder precedes the folder.
const PATHS: [&str; 8] = [
    "/var/lib/cni/results",
    "/var/lib/cni",
    "/var/log/containers",
    "/var/lib/kubelet/device-plugins/kubelet.sock",
    "/var/lib/kubelet/device-plugins",
    "/var/lib/kubelet",
    "/run/containerd/s",
    "/run/containerd",
];

impl Node {
    /// Records the changes to the machine, and makes those that the node's programs do not make themselves.
    pub(super) fn change_the_machine(&self) -> Result<()> {
        let found = look(&Record::default());
        let address = format!("{NODE}/32");
        if !found.addresses.contains(&address) {
            self.recorder.add(&Entry::Address(address.clone()))?;
        }
        for table in TABLES {
            // The table does not exist yet: a node does not start over an existing one.
            self.recorder.add(&Entry::Table(table.to_owned()))?;
        }
        for path in PATHS.into_iter().filter(|path| !Path::new(path).exists()) {
            self.recorder.add(&Entry::Path(path.to_owned()))?;
        }
        for (path, after) in SYSCTLS {
            let Some(before) = sysctl(path).filter(|before| before != after) else { continue };
            let after = after.to_owned();
            self.recorder.add(&Entry::Sysctl { path: path.to_owned(), before, after })?;
        }
        command("ip", &["address", "replace", &address, "dev", "lo"])?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot forward packets")?;
        self.cgroups()
    }

    /// Makes the node's own cgroup in each hierarchy: every process in it is ours.
    fn cgroups(&self) -> Result<()> {
        for root in cgroup_hierarchies() {
            // In version 2 a cgroup gets its controllers from the cgroup above, and a kubelet requires all that it knows.
            let controllers = fs::read_to_string(format!("{root}/cgroup.controllers")).unwrap_or_default();
            for controller in controllers.split_whitespace() {
                let known = ["cpu", "cpuset", "memory", "hugetlb", "pids"].contains(&controller);
                if known {
                    let _ = fs::write(format!("{root}/cgroup.subtree_control"), format!("+{controller}"));
                }
            }
            let folder = PathBuf::from(&root).join(CGROUP);
            self.recorder.add(&Entry::Cgroup(folder.to_string_lossy().into_owned()))?;
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        Ok(())
    }

    pub(super) fn spawn(&mut self, name: &'static str, arguments: &[&str]) -> Result<()> {
        let program = self.programs.get(name)?;
        self.spawn_program(name, &program, arguments)
    }

    pub(super) fn spawn_program(
        &mut self,
        name: &'static str,
        program: &Path,
        arguments: &[&str],
    ) -> Result<()> {
        let log = self.home.join("logs").join(format!("{name}.log"));
        let log = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // A kept node outlives its terminal, so each program has its own session. setsid replaces itself by the program.
        let mut child = Command::new("setsid")
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share a log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let id = child.id();
        let started = started(id).with_context(|| format!("{name} ended as soon as it was started"))?;
        let process = Entry::Process(Process { name: name.to_owned(), id, started });
        if let Err(error) = self.recorder.add(&process) {
            // A clean-up would not find the process.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        self.running.push((name, child));
        Ok(())
    }

    pub(super) fn wait(&mut self, what: &str, ready: impl Fn(&Self) -> bool) -> Result<()> {
        let began = Instant::now();
        while !ready(self) {
            for (name, child) in &mut self.running {
                if let Ok(Some(status)) = child.try_wait() {
                    let log = self.home.join("logs").join(format!("{name}.log"));
                    bail!("{name} ended by itself ({status}); see {}", log.display());
                }
            }
            if interrupt::asked() {
                bail!("stopped while waiting until {what}");
            }
            if began.elapsed() > PATIENCE {
                bail!("timed out waiting until {what}; see {}", self.home.join("logs").display());
            }
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}
