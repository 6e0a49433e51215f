//! The benchmarks' peer: installs and builds it outside the clone by npm, once for each state of its sources.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Workshop, hex_sha256, npm};
use crate::run;

/// The peer's folder in the clone.
const FOLDER: &str = "bench/peer";

/// The peer, ready to run.
pub(crate) struct Peer {
    /// The Node that runs it.
    pub(crate) node: PathBuf,
    /// The folder of the scripts `main.js` and `floor.js`.
    pub(crate) scripts: PathBuf,
}

pub(super) fn build(shop: &Workshop, node: &Path) -> Result<Peer> {
    let folder = shop.workspace.root.join(FOLDER);
    let mut files = Vec::new();
    sources(&folder, Path::new(""), &mut files)?;
    files.sort();
    let mut all = Vec::new();
    for file in &files {
        all.extend_from_slice(file.to_string_lossy().as_bytes());
        let path = folder.join(file);
        all.extend(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let sum = hex_sha256(&all[..]).context("cannot hash the peer's sources")?;
    let entry = shop.cache.entry(&format!("peer-{}", &sum[..16]), |partial, _| {
        shop.progress.step("build the peer (npm ci, tsc)", || {
            for file in &files {
                let to = partial.join(file);
                let parent = to.parent().unwrap_or(partial);
                fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
                fs::copy(folder.join(file), &to).with_context(|| format!("cannot write {}", to.display()))?;
            }
            npm::ci(node, partial)?;
            let mut build = npm::command(node)?;
            run::output(build.args(["run", "build"]).current_dir(partial)).map(drop)
        })
    })?;
    let scripts = entry.join("dist");
    if !scripts.join("main.js").is_file() {
        bail!("the peer's build does not create {}", scripts.join("main.js").display());
    }
    Ok(Peer { node: node.to_path_buf(), scripts })
}

/// Lists all files below `folder/inside`, except those that npm and the build create.
fn sources(folder: &Path, inside: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let here = folder.join(inside);
    for found in
        fs::read_dir(&here).with_context(|| format!("cannot read the peer's folder {}", here.display()))?
    {
        let found = found?;
        let name = inside.join(found.file_name());
        if found.file_type()?.is_dir() {
            if !["node_modules", "dist"].iter().any(|made| found.file_name() == *made) {
                sources(folder, &name, files)?;
            }
        } else {
            files.push(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_no_source() {
        let root = std::env::temp_dir().join(format!("taskpipeline-peer-{}", std::process::id()));
        for folder in ["src", "dist", "node_modules/x"] {
            fs::create_dir_all(root.join(folder)).unwrap();
            fs::write(root.join(folder).join("a.ts"), "").unwrap();
        }
        let mut files = Vec::new();
        sources(&root, Path::new(""), &mut files).unwrap();
        assert_eq!(files, [Path::new("src/a.ts")]);
        fs::remove_dir_all(root).unwrap();
    }
}
