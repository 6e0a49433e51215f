//! The node's processes: started, waited for, and stopped with all that they leave behind.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::{NODE, Node, command};
use crate::interrupt;

/// How long a part may take to come up.
const PATIENCE: Duration = Duration::from_secs(90);

impl Node {
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
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share a log")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        // For the next run, should this one be killed.
        self.write(&format!("{name}.pid"), &child.id().to_string())?;
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
                bail!("waited in vain until {what}; see {}", self.home.join("logs").display());
            }
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Stops what runs, and removes what a node leaves behind, be it of a former run.
    pub(super) fn clean(&mut self) {
        // The kubelet first, or it starts again what is stopped.
        self.end(&["kubelet", "kube-proxy"]);
        if let Ok(tasks) = self.ctr(&["-n", "k8s.io", "tasks", "ls", "-q"]) {
            for task in tasks.lines() {
                let _ = self.ctr(&["-n", "k8s.io", "tasks", "kill", "-s", "KILL", task]);
            }
            thread::sleep(Duration::from_secs(1));
            for task in tasks.lines() {
                let _ = self.ctr(&["-n", "k8s.io", "tasks", "delete", "-f", task]);
            }
        }
        self.end(&[
            "coredns",
            "kube-scheduler",
            "kube-controller-manager",
            "kube-apiserver",
            "etcd",
            "containerd",
        ]);
        // Only where a killed run has left them behind.
        let shims = format!("containerd-shim.* -address {}", self.socket());
        let _ = command("pkill", &["-KILL", "-f", &shims]);
        let home = format!("{}/", self.home.display());
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let mut points: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        points.sort_unstable();
        for point in points.into_iter().rev().filter(|point| point.starts_with(&home)) {
            let _ = command("umount", &["-l", point]);
        }
        for family in ["ip", "ip6"] {
            let _ = command("nft", &["delete", "table", family, "kube-proxy"]);
        }
        let _ = command("ip", &["addr", "del", &format!("{NODE}/32"), "dev", "lo"]);
        // A dead pod's interface would keep its route.
        for namespace in command("ip", &["netns", "list"]).unwrap_or_default().lines() {
            if let Some(name) = namespace.split(' ').next().filter(|name| name.starts_with("cni-")) {
                let _ = command("ip", &["netns", "del", name]);
            }
        }
        for entry in fs::read_dir(&self.home).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && entry.file_name() != "logs" {
                let _ = fs::remove_dir_all(&path);
            } else {
                let _ = fs::remove_file(&path);
            }
        }
        let _ = fs::remove_dir_all("/var/lib/cni/networks/pods");
        let _ = fs::create_dir_all("/run/taskpipeline-e2e");
    }

    fn end(&mut self, names: &[&str]) {
        for name in names {
            let Some(place) = self.running.iter().position(|(running, _)| running == name) else {
                self.end_of_former_run(name);
                continue;
            };
            let (_, mut child) = self.running.remove(place);
            let Ok(id) = i32::try_from(child.id()) else { continue };
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(4) && matches!(child.try_wait(), Ok(None)) {
                thread::sleep(Duration::from_millis(50));
            }
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
            let _ = child.wait();
        }
    }

    /// What a run has left behind that was killed.
    fn end_of_former_run(&self, name: &str) {
        let Ok(id) = fs::read_to_string(self.home.join(format!("{name}.pid"))) else { return };
        // The number may be another's by now.
        let command = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let is_it = String::from_utf8_lossy(&command)
            .split('\0')
            .next()
            .is_some_and(|program| program.ends_with(name));
        if let (true, Ok(id)) = (is_it, id.parse()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
            thread::sleep(Duration::from_millis(200));
        }
    }
}
