//! Packs a few files as a container image, without an engine: an archive for `docker load`, `kind load` and containerd.
//!
//! The image has one layer and no base image.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::tools::hex_sha256;

/// The content of an image.
pub(crate) struct Packed<'a> {
    /// The name with its tag.
    pub(crate) name: &'a str,
    pub(crate) entrypoint: &'a [&'a str],
    /// The user that runs the image, such as `65532:65532`.
    pub(crate) user: &'a str,
    /// The path of each file on this machine, and in the image.
    pub(crate) files: &'a [(PathBuf, &'a str)],
}

impl Packed<'_> {
    /// Writes the archive.
    ///
    /// # Errors
    /// If a file cannot be read or the archive cannot be written.
    pub(crate) fn write(&self, archive: &Path) -> Result<()> {
        let layer = self.layer()?;
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "User": self.user, "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex_sha256(layer.as_slice())?)]},
        }))?;
        let config_name = format!("{}.json", hex_sha256(config.as_slice())?);
        let manifest = serde_json::to_vec(&json!([
            {"Config": config_name, "RepoTags": [self.name], "Layers": ["layer.tar"]}
        ]))?;
        let out = File::create(archive).with_context(|| format!("cannot write {}", archive.display()))?;
        let mut out = tar::Builder::new(out);
        for (name, bytes) in [("layer.tar", &layer), (&config_name, &config), ("manifest.json", &manifest)] {
            append(&mut out, name, bytes, 0o644)?;
        }
        out.finish().with_context(|| format!("cannot write {}", archive.display()))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = tar::Builder::new(Vec::new());
        let mut folders = BTreeSet::new();
        folder(&mut layer, &mut folders, Path::new("tmp"), 0o1777)?;
        for (from, to) in self.files {
            let to = Path::new(to.trim_start_matches('/'));
            if let Some(parent) = to.parent() {
                folder(&mut layer, &mut folders, parent, 0o755)?;
            }
            let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
            append(&mut layer, &to.to_string_lossy(), &bytes, mode(from)?)?;
        }
        Ok(layer.into_inner()?)
    }
}

/// Adds a folder and the folders above it, each once.
fn folder(
    layer: &mut tar::Builder<Vec<u8>>,
    made: &mut BTreeSet<PathBuf>,
    path: &Path,
    mode: u32,
) -> Result<()> {
    if path.as_os_str().is_empty() || !made.insert(path.to_owned()) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        folder(layer, made, parent, 0o755)?;
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(mode);
    layer.append_data(&mut header, path, std::io::empty())?;
    Ok(())
}

fn append<W: Write>(out: &mut tar::Builder<W>, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(bytes.len())?);
    header.set_mode(mode);
    out.append_data(&mut header, name, bytes).with_context(|| format!("cannot pack {name}"))
}

fn mode(file: &Path) -> Result<u32> {
    use std::os::unix::fs::PermissionsExt;
    Ok(file.metadata().with_context(|| format!("cannot read {}", file.display()))?.permissions().mode()
        & 0o777)
}

/// The processor architecture, as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}
