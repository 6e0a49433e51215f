//! Host mode: a Kubernetes node directly on this machine, without a container engine.
//!
//! The node consists of etcd, the control plane, a kubelet and a proxy, built from source. It uses Debian's
//! containerd, runc and CNI plugins, and its pods really run. Host mode is for root on Debian, where kind cannot run.
//!
//! Such machines are often containers themselves, which explains the unusual settings. They may not lower an OOM
//! score, have no systemd, and their addresses are not ours to bind.
//!
//! A node changes the machine. It keeps what it can in its own folder and under its own names, and records the rest
//! (`record`). `plan` decides what a clean-up removes, and `removal` removes it.

mod control_plane;
mod found;
mod keep;
mod plan;
mod pods;
mod processes;
mod record;
mod removal;

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};

use crate::progress::complain;
use crate::run;
use crate::tools::{Programs, Workshop};
pub(super) use keep::{State, down, environment, is_not_kept, state};
use record::{Entry, Recorder};

/// The changes that host mode makes to a machine, for the person who decides about `--host`.
pub(super) const CHANGES: &str = "\
While it runs, --host makes these changes, as root:
- apt-get installs those that are missing of Debian's containerd, runc, containernetworking-plugins, nftables, iptables, iproute2,
  conntrack and openssl; to build images, buildah and debootstrap; for the tests of docker-compose.yml, podman and its
  helpers. They stay installed
- etcd, the Kubernetes control plane, a kubelet, kube-proxy, CoreDNS and containerd run; any local user can reach them
- they listen on 10.88.255.1, an address that they add to the loopback interface, and on ports 12379, 12380 and 10249
- pods get network namespaces, veth links, routes in 10.88.0.0/24, mounts, and the cgroup taskpipeline-e2e
- kube-proxy makes the nft tables `ip kube-proxy` and `ip6 kube-proxy`
- IP forwarding and the kernel settings that a kubelet needs are turned on
At the end, everything but the packages is removed or set back. If a run was killed, the next run or
`cargo xtask cluster down` does this, by the killed run's record. Nothing that is not recorded is removed.";

/// The node's own address. It is on the loopback interface, so that nothing outside can reach it.
const NODE: &str = "10.88.255.1";
const PODS: &str = "10.88.0.0/24";
const SERVICES: &str = "10.96.0.0/16";
const DNS: &str = "10.96.0.10";
const PORT: u16 = 16_443;

/// The ports that must be free: two of etcd, and those of the API server, the kubelet and kube-proxy.
const PORTS: [u16; 5] = [12_379, 12_380, PORT, 10_250, 10_249];

/// The folder of the node's data, and of its logs after it has stopped.
///
/// Every clone uses this folder, so that each finds what a killed run of another has left behind. It is not in the
/// target folder, which may be removed at any time.
const HOME: &str = "/var/lib/taskpipeline-e2e";

/// The node's record, in [`HOME`].
const RECORD: &str = "record";

/// The folder of containerd's socket. The kernel limits the path of a socket to about a hundred characters.
const RUN: &str = "/run/taskpipeline-e2e";

/// The socket of containerd.
const SOCKET: &str = "/run/taskpipeline-e2e/containerd.sock";

/// The name of the pods' network, by which CNI keeps its results.
const NETWORK: &str = "taskpipeline-e2e";

/// The cgroup that all pods are in, in each hierarchy.
const CGROUP: &str = "taskpipeline-e2e";

/// The lock that allows one node at a time, over all clones.
const LOCK: &str = "/run/taskpipeline-e2e.lock";

/// A node. When it is dropped, it stops with its pods, unless it is kept.
pub(crate) struct Node {
    home: PathBuf,
    programs: Programs,
    recorder: Recorder,
    running: Vec<(&'static str, Child)>,
    kept: bool,
    /// Held while the node is up, or by the command that keeps it: its addresses and ports are always the same.
    _lock: File,
}

impl Node {
    /// Gets the programs of a node, without starting them.
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

    /// Starts a node for the tests, after the nodes of other runs have ended.
    pub(super) fn start(shop: &Workshop) -> Result<Self> {
        let programs = Self::programs(shop)?;
        let lock = lock_file()?;
        shop.progress.step("wait for other nodes on this machine", || Ok(lock.lock()?))?;
        is_not_kept()?;
        Self::start_locked(shop, programs, lock)
    }

    /// Starts a node that continues when this program ends.
    pub(super) fn keep(shop: &Workshop) -> Result<()> {
        let programs = Self::programs(shop)?;
        let helm = shop.helm()?;
        let lock = lock_file()?;
        ensure!(
            lock.try_lock().is_ok(),
            "another command has a node on this machine now, and there is room for one; wait until it ends"
        );
        let mut node = Self::start_locked(shop, programs, lock)?;
        node.link("kubectl", &node.programs.get("kubectl")?)?;
        node.link("helm", &helm)?;
        node.recorder.add(&Entry::Kept)?;
        node.kept = true;
        Ok(())
    }

    fn start_locked(shop: &Workshop, programs: Programs, lock: File) -> Result<Self> {
        let home = PathBuf::from(HOME);
        let recorder = Recorder::at(home.join(RECORD))?;
        // Files may exist without a record.
        let former = recorder.read()?.unwrap_or_default();
        shop.progress
            .step("remove what an earlier node has left", || removal::clean(&former, &mut Vec::new()))?;
        let obstacles = plan::obstacles(&found::look_before_start());
        ensure!(obstacles.is_empty(), "no node can start on this machine:\n- {}", obstacles.join("\n- "));
        fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
        recorder.begin()?;
        let mut node = Self { home, programs, recorder, running: Vec::new(), kept: false, _lock: lock };
        shop.progress.step("start a Kubernetes node", || node.bring_up())?;
        Ok(node)
    }

    fn bring_up(&mut self) -> Result<()> {
        for folder in ["logs", "pki", "cni", "etcd", "bin"] {
            fs::create_dir_all(self.home.join(folder)).context("cannot create the node's folders")?;
        }
        fs::create_dir_all(RUN).with_context(|| format!("cannot create {RUN}"))?;
        // Anyone who reads the keys is root on this machine.
        fs::set_permissions(self.home.join("pki"), fs::Permissions::from_mode(0o700))
            .context("cannot close the folder of the keys")?;
        self.change_the_machine()?;
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
        self.wait("service accounts exist", |node| {
            node.kubectl(&["-n", "default", "get", "serviceaccount", "default"]).is_ok()
        })
    }

    /// The process of the API server.
    pub(super) fn api_server(&self) -> Option<u32> {
        self.running.iter().find(|(name, _)| *name == "kube-apiserver").map(|(_, child)| child.id())
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut kubectl = Command::new(self.programs.get("kubectl")?);
        run::output(kubectl.args(arguments).env("KUBECONFIG", kubeconfig()))
    }

    /// Puts a program where `cargo xtask cluster env` finds it.
    fn link(&self, name: &str, program: &Path) -> Result<()> {
        let link = self.home.join("bin").join(name);
        symlink(program, &link).with_context(|| format!("cannot create {}", link.display()))
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
        if self.kept {
            return;
        }
        let mut children = self.running.drain(..).map(|(_, child)| child).collect();
        let record = self.recorder.read().map(Option::unwrap_or_default);
        let cleaned = record.and_then(|record| removal::clean(&record, &mut children));
        if let Err(error) = cleaned.and_then(|()| self.recorder.end()) {
            complain(&error);
        }
    }
}

/// The path of the node's kubeconfig.
pub(super) fn kubeconfig() -> PathBuf {
    Path::new(HOME).join("kubeconfig")
}

/// Loads an image into the node.
pub(super) fn load(archive: &Path) -> Result<()> {
    ctr(&["-n", "k8s.io", "images", "import", &archive.to_string_lossy()]).map(drop)
}

fn ctr(arguments: &[&str]) -> Result<String> {
    command("ctr", &[&["-a", SOCKET], arguments].concat())
}

fn command(program: &str, arguments: &[&str]) -> Result<String> {
    run::output(Command::new(program).args(arguments))
}

fn lock_file() -> Result<File> {
    File::create(LOCK).with_context(|| format!("cannot write {LOCK}: host mode takes root"))
}
