//! The previous release: its chart, and its processor built from its commit. Tests upgrade from it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Workshop;
use crate::run;
use crate::workspace::cargo;

/// The version of that release, and the last commit that had it.
const VERSION: &str = "0.1.0";
const COMMIT: &str = "9a916e240ab7d1bf557bf31af14e8a3f5ffcd547";

/// The folder of the release.
pub(crate) struct Earlier {
    folder: PathBuf,
}

impl Earlier {
    /// The path of its processor.
    pub(crate) fn processor(&self) -> PathBuf {
        self.folder.join("taskpipeline")
    }

    /// The path of its chart.
    pub(crate) fn chart(&self) -> PathBuf {
        self.folder.join("charts/taskpipeline")
    }
}

pub(super) fn find(shop: &Workshop) -> Result<Earlier> {
    let key = format!("taskpipeline-{VERSION}-{}", &COMMIT[..12]);
    let folder = shop.cache.entry(&key, |folder, _| {
        shop.progress.step(&format!("build taskpipeline {VERSION} from its commit"), || make(shop, folder))
    })?;
    Ok(Earlier { folder })
}

fn make(shop: &Workshop, folder: &Path) -> Result<()> {
    let source = folder.join("source");
    fs::create_dir_all(&source).with_context(|| format!("cannot create {}", source.display()))?;
    let archive = folder.join("source.tar");
    let mut git = Command::new("git");
    git.current_dir(&shop.workspace.root)
        .args(["archive", "--format=tar", "--output"])
        .arg(&archive)
        .arg(COMMIT);
    run::output(&mut git)
        .with_context(|| format!("this clone does not have {COMMIT}; run `git fetch --unshallow`"))?;
    let file = File::open(&archive).with_context(|| format!("cannot read {}", archive.display()))?;
    tar::Archive::new(file).unpack(&source).context("cannot unpack the archive of git")?;
    let target = folder.join("target");
    let mut build = cargo();
    // Not optimized: it builds in half the time, and processes only a few hundred events.
    build.args([
        "build",
        "--quiet",
        "--locked",
        "--package",
        "taskpipeline-processor",
        "--bin",
        "taskpipeline",
    ]);
    run::output(build.current_dir(&source).env("CARGO_TARGET_DIR", &target))?;
    for (from, to) in [
        (target.join("debug/taskpipeline"), folder.join("taskpipeline")),
        (source.join("charts"), folder.join("charts")),
    ] {
        fs::rename(&from, &to).with_context(|| format!("cannot keep {}", from.display()))?;
    }
    for gone in [&source, &target] {
        fs::remove_dir_all(gone).with_context(|| format!("cannot remove {}", gone.display()))?;
    }
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
}
