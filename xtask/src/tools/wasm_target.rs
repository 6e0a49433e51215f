//! A standard library for wasm32: rustc has it, rustup installs it, or it is built from Debian's sources.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::download::reachable;
use super::{Workshop, debian};
use crate::run;
use crate::workspace::cargo;

const TARGET: &str = "wasm32-unknown-unknown";

/// The rustc that builds the Worker.
pub(crate) enum WasmRust {
    /// The rustc on PATH.
    Ordinary,
    /// Debian's rustc, with our own sysroot.
    Sysroot {
        /// The folder of the `rustc` that must be first on PATH.
        bin: PathBuf,
        /// The linker of the ordinary toolchain: Debian has none for wasm.
        linker: PathBuf,
    },
}

impl WasmRust {
    /// Sets up a command that calls cargo build. The caller sets `PATH`, with [`WasmRust::bin`] in front.
    pub(crate) fn apply(&self, command: &mut Command) {
        if let Self::Sysroot { bin, linker } = self {
            command.env("RUSTC", bin.join("rustc")).env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        }
    }

    /// The folder that must be first on PATH: worker-build calls the `rustc` there, not `$RUSTC`.
    pub(crate) fn bin(&self) -> Option<&Path> {
        match self {
            Self::Ordinary => None,
            Self::Sysroot { bin, .. } => Some(bin),
        }
    }
}

impl fmt::Display for WasmRust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bin() {
            None => f.write_str("in the ordinary rustc"),
            Some(bin) => write!(f, "{}", bin.join("rustc").display()),
        }
    }
}

pub(super) fn find(shop: &Workshop) -> Result<WasmRust> {
    if present()? {
        return Ok(WasmRust::Ordinary);
    }
    let mut tried = String::from("rustc has no standard library for wasm32");
    if let Some(rustup) = run::on_path("rustup") {
        let server =
            std::env::var("RUSTUP_DIST_SERVER").unwrap_or_else(|_| "https://static.rust-lang.org".into());
        if reachable(&server) {
            let add = || run::output(Command::new(&rustup).args(["target", "add", TARGET]));
            match shop.progress.step(&format!("rustup target add {TARGET}"), add) {
                Ok(_) if present()? => return Ok(WasmRust::Ordinary),
                Ok(_) => tried.push_str("; rustup added it to a toolchain that is not the one on PATH"),
                Err(error) => tried.push_str(&format!("; {error}")),
            }
        } else {
            tried.push_str(&format!("; rustup cannot reach {server}"));
        }
    }
    if !debian::installs() {
        bail!("{tried}; install it with `rustup target add {TARGET}` or the package of your system");
    }
    sysroot(shop).context(tried)
}

fn present() -> Result<bool> {
    // rustc prints the folder whether or not it exists.
    let folder = run::output(Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]))?;
    Ok(Path::new(folder.trim()).is_dir())
}

/// Builds a sysroot with a standard library for wasm32, from Debian's sources.
///
/// If rustup's server cannot be reached, Debian can be. Its `rustc-web` is the rustc that builds Firefox: recent and
/// with its sources (`rust-web-src`), but without a standard library for wasm32.
///
/// The library fits only that rustc. So the Worker alone uses this sysroot, and a `rustc` that knows it; the user's
/// rustc builds everything else.
fn sysroot(shop: &Workshop) -> Result<WasmRust> {
    let rustc = Path::new("/usr/bin/rustc");
    let sources = Path::new("/usr/lib/rustlib/src");
    if !(rustc.exists() && sources.exists()) {
        shop.progress.step("get Debian's rustc-web", || debian::install(&["rustc-web", "rust-web-src"]))?;
    }
    let about = run::output(Command::new(rustc).arg("-vV"))?;
    let field = |name| about.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let (Some(release), Some(host)) = (field("release:"), field("host:")) else {
        bail!("{} -vV does not print its release and host", rustc.display());
    };
    let entry = shop.cache.entry(&format!("wasm-sysroot-{release}"), |folder, place| {
        shop.progress.step(&format!("build a wasm32 standard library for rustc {release}"), || {
            fill(folder, place, host)
                .with_context(|| format!("cannot build the sysroot in {}", folder.display()))
        })
    })?;
    let own = run::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let own_host = host_of_ordinary()?;
    let linker = Path::new(own.trim()).join("lib/rustlib").join(own_host).join("bin/rust-lld");
    if !linker.exists() {
        bail!("the toolchain on PATH has no {}; use a toolchain of rustup", linker.display());
    }
    Ok(WasmRust::Sysroot { bin: entry.join("bin"), linker })
}

fn host_of_ordinary() -> Result<String> {
    let about = run::output(Command::new("rustc").arg("-vV"))?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV does not print its host")
}

fn fill(folder: &Path, place: &Path, host: &str) -> Result<()> {
    use std::os::unix::fs::symlink;
    let rustlib = folder.join("lib/rustlib");
    let libraries = rustlib.join(TARGET).join("lib");
    let (seed, bin) = (folder.join("seed"), folder.join("bin"));
    for dir in [&libraries, &bin, &seed.join("src")] {
        fs::create_dir_all(dir)?;
    }
    symlink(Path::new("/usr/lib/rustlib").join(host), rustlib.join(host))?;
    symlink("/usr/lib/rustlib/src", rustlib.join("src"))?;
    // An empty crate: cargo builds the standard library that the crate would be linked against.
    fs::write(
        seed.join("Cargo.toml"),
        "[package]\nname = \"seed\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[lib]\ncrate-type = [\"rlib\"]\n\
         [workspace]\n[profile.release]\npanic = \"abort\"\n",
    )?;
    fs::write(seed.join("src/lib.rs"), "")?;
    let mut build = cargo();
    build
        .args(["build", "--quiet", "--release", "-Zbuild-std=std,panic_abort", "--target", TARGET])
        .current_dir(&seed)
        .env("RUSTC", "/usr/bin/rustc")
        // -Zbuild-std is for nightly builds; this variable allows it in a release of rustc.
        .env("RUSTC_BOOTSTRAP", "1")
        // Without bitcode in the library, the Worker's LTO fails.
        .env("RUSTFLAGS", "-Cembed-bitcode=yes")
        .env("CARGO_TARGET_DIR", seed.join("target"));
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
        build.env_remove(name);
    }
    run::output(&mut build)?;
    for file in fs::read_dir(seed.join("target").join(TARGET).join("release/deps"))? {
        let file = file?;
        let name = file.file_name().to_string_lossy().into_owned();
        if name.ends_with(".rlib") && !name.starts_with("libseed-") {
            fs::copy(file.path(), libraries.join(&name))?;
        }
    }
    fs::remove_dir_all(&seed)?;
    let script = bin.join("rustc");
    fs::write(&script, format!("#!/bin/sh\nexec /usr/bin/rustc --sysroot '{}' \"$@\"\n", place.display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
