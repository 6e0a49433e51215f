//! Debian's buildah, which builds images without an engine, with its own store in the cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::run;
use crate::tools::Workshop;

/// Debian's buildah, with its own store in the cache.
pub(crate) struct Buildah {
    home: PathBuf,
    /// Held so that one build runs at a time: a build removes what a killed build has left.
    _lock: File,
}

/// The number of images that are kept, some gigabytes. Images without a name count too: builds continue from them.
const KEPT: usize = 200;

impl Buildah {
    pub(crate) fn find(shop: &Workshop) -> Result<Self> {
        shop.debian(&[("buildah", "buildah"), ("debootstrap", "debootstrap")])?;
        let home = shop.cache_folder("buildah")?;
        fs::create_dir_all(home.join("tmp"))
            .with_context(|| format!("cannot create a folder in {}", home.display()))?;
        let buildah = Self { home, _lock: shop.cache_lock("buildah")? };
        buildah.run(&["rm", "--all"])?;
        if buildah.run(&["images", "--all", "--quiet"])?.lines().count() > KEPT {
            buildah.run(&["rmi", "--prune", "--force"])?;
        }
        Ok(buildah)
    }

    /// The arguments by which buildah and podman use this store.
    pub(crate) fn store(&self) -> [String; 4] {
        let root = self.home.join("storage").to_string_lossy().into_owned();
        // The run root must not outlive the machine's next start, and does not.
        ["--root".to_owned(), root, "--runroot".to_owned(), "/run/taskpipeline-buildah".to_owned()]
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("buildah");
        command.args(self.store());
        command.env("STORAGE_DRIVER", "overlay");
        // Machines without an engine are often containers themselves, and may not create namespaces.
        command.env("BUILDAH_ISOLATION", "chroot");
        // The folder for the cache mounts of a Dockerfile.
        command.env("TMPDIR", self.home.join("tmp"));
        command
    }

    pub(super) fn run(&self, arguments: &[&str]) -> Result<String> {
        run::output(self.command().args(arguments))
    }

    /// Creates an image from the files that `fill` puts into an empty folder, unless the image exists.
    ///
    /// # Errors
    /// If `fill` or buildah fails.
    pub(crate) fn image(
        &self,
        name: &str,
        settings: &[&str],
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        if self.run(&["inspect", "--type", "image", name]).is_ok() {
            return Ok(());
        }
        let container = self.run(&["from", "scratch"])?;
        let container = container.trim();
        let made = self
            .run(&["mount", container])
            .and_then(|folder| fill(Path::new(folder.trim())))
            .and_then(|()| self.run(&[&["config"], settings, &[container]].concat()))
            .and_then(|_| self.run(&["commit", container, name]));
        let _ = self.run(&["rm", container]);
        made.map(drop)
    }
}
