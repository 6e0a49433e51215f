//! Debian's podman as the engine of Docker Compose, over buildah's store of images.
//!
//! Starts and stops podman, with the settings for a machine that is a container itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::images::Buildah;
use crate::run;
use crate::tools::Workshop;

/// The programs of podman, each with its Debian package.
const PACKAGES: [(&str, &str); 5] = [
    ("podman", "podman"),
    ("runc", "runc"),
    ("catatonit", "catatonit"),
    ("/usr/lib/podman/netavark", "netavark"),
    ("/usr/lib/podman/aardvark-dns", "aardvark-dns"),
];

/// The default runtime refuses mixed cgroups, and the default limits are above those of a machine that is a container.
const CONFIGURATION: &str = r#"[containers]
default_ulimits = ["nofile=16384:16384", "nproc=4096:4096"]
init_path = "/usr/bin/catatonit"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"#;

/// The time limit for podman to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The interval of the health checks.
const CHECKS: Duration = Duration::from_secs(2);

/// A podman service that Docker Compose talks to. When it is dropped, it stops.
pub(super) struct Podman {
    home: PathBuf,
    pub(super) buildah: Buildah,
    service: Child,
    over: Arc<AtomicBool>,
    checks: Option<thread::JoinHandle<()>>,
}

impl Podman {
    /// Starts the service.
    ///
    /// # Errors
    /// If podman cannot be installed, or does not answer.
    pub(super) fn start(shop: &Workshop) -> Result<Self> {
        shop.debian(&PACKAGES)?;
        let buildah = Buildah::find(shop)?;
        let home = shop.cache_folder("podman")?;
        fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
        let file = home.join("containers.conf");
        fs::write(&file, CONFIGURATION).with_context(|| format!("cannot write {}", file.display()))?;
        let program = program(&home, &buildah);
        let socket = home.join("podman.sock");
        let _ = fs::remove_file(&socket);
        let mut service = command(&program);
        service.args(["system", "service", "--time", "0"]).arg(format!("unix://{}", socket.display()));
        let service = service.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let service = service.context("cannot start podman")?;
        let over = Arc::new(AtomicBool::new(false));
        let checks = thread::spawn({
            let over = Arc::clone(&over);
            move || check_health(&program, &over)
        });
        let podman = Self { home, buildah, service, over, checks: Some(checks) };
        let began = Instant::now();
        while !socket.exists() {
            if began.elapsed() > PATIENCE {
                bail!("podman does not answer within {PATIENCE:?}; run `podman system service` to see why");
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(podman)
    }

    /// The address of the service.
    pub(super) fn address(&self) -> String {
        format!("unix://{}", self.home.join("podman.sock").display())
    }

    /// The podman program, with the arguments that lead it to the same containers.
    pub(super) fn program(&self) -> Vec<String> {
        program(&self.home, &self.buildah)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(checks) = self.checks.take() {
            let _ = checks.join();
        }
        // A killed test may have left containers.
        let _ = run::output(command(&self.program()).args(["rm", "--all", "--force", "--volumes"]));
        let _ = self.service.kill();
        let _ = self.service.wait();
    }
}

fn program(home: &Path, buildah: &Buildah) -> Vec<String> {
    let configuration = format!("CONTAINERS_CONF={}", home.join("containers.conf").display());
    let mut program = vec!["env".to_owned(), configuration, "podman".to_owned()];
    program.extend(buildah.store());
    program
}

fn command(program: &[String]) -> Command {
    let mut command = Command::new(program.first().map_or("podman", String::as_str));
    command.args(program.iter().skip(1));
    command
}

/// Runs the health checks of all containers repeatedly. Podman leaves that to systemd, which is not everywhere.
fn check_health(program: &[String], over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let running = run::output(command(program).args(["ps", "--quiet"])).unwrap_or_default();
        for container in running.lines() {
            // A container without a health check returns an error, which is ignored.
            let _ = run::output(command(program).args(["healthcheck", "run", container]));
        }
        thread::sleep(CHECKS);
    }
}
