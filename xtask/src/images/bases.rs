//! The Dockerfile's base images for buildah, if no image registry can be reached.
//!
//! Debian's packages and this machine's Rust are assembled into them. For the Dockerfile, they equal the images that it names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::buildah::Buildah;
use crate::run;
use crate::tools::Workshop;

/// The paths of trusted CA certificates on different systems. Images use the first.
pub(super) const CERTIFICATES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// By default, Node trusts only its own authorities.
const AUTHORITIES: &str = "NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt";

/// The version of npm in the base with Node.
const NPM: &str = "10.9.4";

/// Raise this when the content of a base changes.
const REVISION: u32 = 2;

/// The packages of a distroless image with a C library.
const RUNTIME: [&str; 6] = ["base-files", "ca-certificates", "gcc-12-base", "libc6", "libgcc-s1", "tzdata"];

/// The names of the bases.
pub(super) struct Bases {
    pub(super) rust: String,
    pub(super) runtime: String,
    pub(super) node: String,
}

impl Bases {
    /// Assembles the bases.
    ///
    /// # Errors
    /// If Debian's packages cannot be obtained.
    pub(super) fn assembled(shop: &Workshop, buildah: &Buildah) -> Result<Self> {
        let debian = release()?;
        let rust = run::output(Command::new("rustc").arg("--version"))?;
        let rust = rust.split_whitespace().nth(1).context("rustc does not print its version")?.to_owned();
        let bases = Self {
            rust: format!("localhost/taskpipeline-rust:{rust}-{debian}-{REVISION}"),
            runtime: format!("localhost/taskpipeline-runtime:{debian}-{REVISION}"),
            node: format!("localhost/taskpipeline-node:{debian}-{REVISION}"),
        };
        shop.progress.step("the base with Rust", || {
            let path = "/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
            let (path, home) = (format!("PATH={path}"), "CARGO_HOME=/usr/local/cargo");
            let settings = ["--env", &path, "--env", home, "--env", AUTHORITIES];
            buildah.image(&bases.rust, &settings, |root| with_rust(root, &debian))
        })?;
        shop.progress.step("the base without anything", || {
            let nobody = ["--user", "65532:65532", "--workingdir", "/home/nonroot"];
            buildah.image(&bases.runtime, &nobody, |root| with_c_library(shop, root))
        })?;
        Ok(bases)
    }

    /// Assembles the base with Node, which only the image of the edge needs.
    ///
    /// # Errors
    /// If Debian's packages, Node or npm cannot be obtained.
    pub(super) fn with_node(&self, shop: &Workshop, buildah: &Buildah) -> Result<()> {
        let (node, debian) = (shop.node()?, release()?);
        shop.progress.step("the base with Node", || {
            buildah.image(&self.node, &["--cmd", "node", "--env", AUTHORITIES], |root| {
                with_node(root, &node, &debian)
            })
        })
    }
}

/// Assembles Debian with Node, npm and a user `node`, like Docker's image of Node.
fn with_node(root: &Path, node: &Path, debian: &str) -> Result<()> {
    debootstrap("ca-certificates,libstdc++6", debian, root)?;
    let local = root.join("usr/local");
    copy(node, &local.join("bin/node"))?;
    let npm = run::on_path("npm").context("npm is not on PATH")?;
    let mut install = Command::new(npm);
    install.args(["install", "--global", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"]);
    run::output(install.arg(&local).arg(format!("npm@{NPM}")).current_dir(&local))?;
    for (file, line) in [("passwd", "node:x:1000:1000::/home/node:/bin/sh\n"), ("group", "node:x:1000:\n")] {
        let file = root.join("etc").join(file);
        let known = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        write(&file, (known + line).as_bytes())?;
    }
    Ok(())
}

/// Creates a minimal Debian with these additional packages.
fn debootstrap(packages: &str, debian: &str, root: &Path) -> Result<()> {
    let include = format!("--include={packages}");
    run::output(Command::new("debootstrap").args(["--variant=minbase", &include, debian]).arg(root))?;
    // The image fetches from the same places as this machine, so it trusts the same authorities.
    copy(Path::new(CERTIFICATES[0]), &root.join(&CERTIFICATES[0][1..]))?;
    for part in ["var/cache/apt", "var/lib/apt/lists"] {
        fs::remove_dir_all(root.join(part)).with_context(|| format!("cannot clear {part}"))?;
    }
    Ok(())
}

/// Assembles Debian with a C compiler, and the Rust of this machine.
fn with_rust(root: &Path, debian: &str) -> Result<()> {
    debootstrap("ca-certificates,gcc,libc6-dev,libssl-dev,make,pkg-config", debian, root)?;
    let sysroot = run::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let into = root.join("usr/local/rust");
    fs::create_dir_all(&into).with_context(|| format!("cannot create {}", into.display()))?;
    for part in ["bin", "lib"] {
        run::output(Command::new("cp").arg("-a").arg(Path::new(sysroot.trim()).join(part)).arg(&into))?;
    }
    Ok(())
}

/// Assembles the C library, certificate authorities, time zones and a user who owns nothing.
fn with_c_library(shop: &Workshop, root: &Path) -> Result<()> {
    shop.debian_unpack(&RUNTIME, root)?;
    // The install script of the package would do this.
    let mut authorities = certificates(&root.join("usr/share/ca-certificates"))?;
    authorities.sort();
    ensure!(!authorities.is_empty(), "Debian's ca-certificates has no certificates");
    let mut bundle = Vec::new();
    for file in &authorities {
        bundle.extend(fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    write(&root.join(&CERTIFICATES[0][1..]), &bundle)?;
    let users =
        "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n";
    write(&root.join("etc/passwd"), users.as_bytes())?;
    write(&root.join("etc/group"), b"root:x:0:\nnonroot:x:65532:\n")?;
    fs::create_dir_all(root.join("home/nonroot")).context("cannot create a home")
}

/// Lists all `.crt` files below a folder.
fn certificates(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if path.is_dir() {
            found.extend(certificates(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "crt") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The code name of this machine's Debian, such as `bookworm`.
fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    match text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")) {
        Some(name) => Ok(name.to_owned()),
        None => bail!("/etc/os-release has no VERSION_CODENAME, so the release of Debian is unknown"),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}
