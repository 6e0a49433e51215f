//! A Kubernetes node on this very machine, without a container engine: etcd, the control plane, a kubelet and a proxy, built
//! from source, on Debian's containerd, runc and CNI plugins. Pods really run. For root on Debian, where kind cannot run.
//!
//! What is unusual about it is so because such machines are often containers themselves: they may not lower an OOM score,
//! have no systemd, and their addresses are not ours to bind.

mod control_plane;
mod pods;
mod processes;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result};

use super::is_there;
use crate::run;
use crate::tools::{Programs, Workshop};

/// The node's own address: on the loopback interface, so that nothing outside can reach it.
const NODE: &str = "10.88.255.1";
const PODS: &str = "10.88.0.0/24";
const SERVICES: &str = "10.96.0.0/16";
const DNS: &str = "10.96.0.10";
const PORT: u16 = 16_443;

/// What a node keeps while it is up, and its logs after it. The same for every clone, so that each finds what a killed run of
/// another has left behind; and not in the target folder, which may be removed at any time.
const HOME: &str = "/var/lib/taskpipeline-e2e";

/// One node at a time, whichever clone it is of.
const LOCK: &str = "/run/taskpipeline-e2e.lock";

/// Whether this machine can be a node.
pub(super) fn can_run() -> bool {
    let is_root = run::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    cfg!(target_os = "linux") && is_root && Path::new("/etc/debian_version").exists() && is_there("go")
}

/// The node. Dropped, it is stopped, and its pods with it.
pub(crate) struct Node {
    home: PathBuf,
    programs: Programs,
    running: Vec<(&'static str, Child)>,
    /// Held while it is up: its addresses and ports are always the same.
    _lock: File,
}

impl Node {
    /// Gets what it consists of, without starting it.
    pub(super) fn programs(shop: &Workshop) -> Result<Programs> {
        shop.debian(&[
            ("containerd", "containerd"),
            ("runc", "runc"),
            ("nft", "nftables"),
            ("iptables", "iptables"),
            ("ip", "iproute2"),
            ("conntrack", "conntrack"),
            ("openssl", "openssl"),
        ])?;
        if !Path::new("/usr/lib/cni/ptp").exists() {
            shop.debian_packages(&["containernetworking-plugins"])?;
        }
        shop.kubernetes()
    }

    pub(super) fn start(shop: &Workshop) -> Result<Self> {
        let programs = Self::programs(shop)?;
        let lock = File::create(LOCK).with_context(|| format!("cannot write {LOCK}"))?;
        shop.progress.step("wait for other nodes on this machine", || Ok(lock.lock()?))?;
        let mut node = Self { home: HOME.into(), programs, running: Vec::new(), _lock: lock };
        node.clean();
        shop.progress.step("start a Kubernetes node", || node.bring_up())?;
        Ok(node)
    }

    fn bring_up(&mut self) -> Result<()> {
        for folder in ["logs", "pki", "cni", "etcd"] {
            fs::create_dir_all(self.home.join(folder)).context("cannot make the node's folders")?;
        }
        command("ip", &["addr", "replace", &format!("{NODE}/32"), "dev", "lo"])?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot forward packets")?;
        self.keys()?;
        self.etcd()?;
        self.control_plane()?;
        self.containerd()?;
        self.kubelet()?;
        self.dns()?;
        self.volumes()?;
        self.wait("the node is ready", |node| {
            let status = "{.items[0].status.conditions[?(@.type==\"Ready\")].status}";
            node.kubectl(&["get", "nodes", "-o", &format!("jsonpath={status}")])
                .is_ok_and(|text| text == "True")
        })?;
        self.wait("service accounts are made", |node| {
            node.kubectl(&["-n", "default", "get", "serviceaccount", "default"]).is_ok()
        })
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.home.join("kubeconfig")
    }

    pub(super) fn load(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_string_lossy();
        self.ctr(&["-n", "k8s.io", "images", "import", &archive]).map(drop)
    }

    /// The process of the API server.
    pub(super) fn api_server(&self) -> Option<u32> {
        self.running.iter().find(|(name, _)| *name == "kube-apiserver").map(|(_, child)| child.id())
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let socket = self.socket();
        let mut all = vec!["-a", &socket];
        all.extend(arguments);
        command("ctr", &all)
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut kubectl = Command::new(self.programs.get("kubectl")?);
        run::output(kubectl.args(arguments).env("KUBECONFIG", self.kubeconfig()))
    }

    fn socket(&self) -> String {
        // A socket's path may have a hundred characters, and a clone may lie deep.
        "/run/taskpipeline-e2e/containerd.sock".to_owned()
    }

    fn path(&self, name: &str) -> String {
        self.home.join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let file = self.home.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.clean();
    }
}

fn command(program: &str, arguments: &[&str]) -> Result<String> {
    run::output(Command::new(program).args(arguments))
}
