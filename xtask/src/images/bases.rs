//! The Dockerfile's bases where no registry of images can be reached: assembled of Debian's packages and this machine's Rust,
//! for buildah. They are images as those that the Dockerfile names are, as far as it can tell.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::buildah::Buildah;
use crate::run;
use crate::tools::Workshop;

/// Where systems keep the CA certificates that they trust; the first is where images have them.
pub(super) const CERTIFICATES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// Node knows no authorities but its own, unless it is told.
const AUTHORITIES: &str = "NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt";

/// The npm that the base with Node has.
const NPM: &str = "10.9.4";

/// Raised when what is put into a base changes.
const REVISION: u32 = 2;

/// What a distroless image with a C library has.
const RUNTIME: [&str; 6] = ["base-files", "ca-certificates", "gcc-12-base", "libc6", "libgcc-s1", "tzdata"];

/// The bases' names.
pub(super) struct Bases {
    pub(super) rust: String,
    pub(super) runtime: String,
    pub(super) node: String,
}

impl Bases {
    /// # Errors
    /// Where Debian's packages cannot be had.
    pub(super) fn assembled(shop: &Workshop, buildah: &Buildah) -> Result<Self> {
        let debian = release()?;
        let rust = run::output(Command::new("rustc").arg("--version"))?;
        let rust = rust.split_whitespace().nth(1).context("rustc does not say its version")?.to_owned();
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

    /// Makes that with Node, which the image of the edge alone needs.
    ///
    /// # Errors
    /// Where Debian's packages, Node or npm cannot be had.
    pub(super) fn with_node(&self, shop: &Workshop, buildah: &Buildah) -> Result<()> {
        let (node, debian) = (shop.node()?, release()?);
        shop.progress.step("the base with Node", || {
            buildah.image(&self.node, &["--cmd", "node", "--env", AUTHORITIES], |root| {
                with_node(root, &node, &debian)
            })
        })
    }
}

/// Debian with Node and npm, and a user `node`, as Docker's image of Node has them.
fn with_node(root: &Path, node: &Path, debian: &str) -> Result<()> {
    debootstrap("ca-certificates,libstdc++6", debian, root)?;
    let local = root.join("usr/local");
    copy(node, &local.join("bin/node"))?;
    let npm = run::on_path("npm").context("there is no npm")?;
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

/// A small Debian with these packages beside the least there is.
fn debootstrap(packages: &str, debian: &str, root: &Path) -> Result<()> {
    let include = format!("--include={packages}");
    run::output(Command::new("debootstrap").args(["--variant=minbase", &include, debian]).arg(root))?;
    // Whom this machine trusts is trusted in there: it fetches what it builds from the same places.
    copy(Path::new(CERTIFICATES[0]), &root.join(&CERTIFICATES[0][1..]))?;
    for part in ["var/cache/apt", "var/lib/apt/lists"] {
        fs::remove_dir_all(root.join(part)).with_context(|| format!("cannot clear {part}"))?;
    }
    Ok(())
}

/// Debian with a C compiler, and the Rust that builds here.
fn with_rust(root: &Path, debian: &str) -> Result<()> {
    debootstrap("ca-certificates,gcc,libc6-dev,libssl-dev,make,pkg-config", debian, root)?;
    let sysroot = run::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let into = root.join("usr/local/rust");
    fs::create_dir_all(&into).with_context(|| format!("cannot make {}", into.display()))?;
    for part in ["bin", "lib"] {
        run::output(Command::new("cp").arg("-a").arg(Path::new(sysroot.trim()).join(part)).arg(&into))?;
    }
    Ok(())
}

/// The C library, certificate authorities, time zones and a user who owns nothing.
fn with_c_library(shop: &Workshop, root: &Path) -> Result<()> {
    shop.debian_unpack(&RUNTIME, root)?;
    // What the package's own script does when it is installed.
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
    fs::create_dir_all(root.join("home/nonroot")).context("cannot make a home")
}

/// All `.crt` files below a folder.
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

/// The name of this machine's Debian, such as `bookworm`.
fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    match text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")) {
        Some(name) => Ok(name.to_owned()),
        None => bail!("/etc/os-release has no VERSION_CODENAME: which Debian is this?"),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}
