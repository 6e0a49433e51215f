//! Images for docker-compose.yml if no registry can be reached.
//!
//! Our images come from the Dockerfile. Images of other projects are assembled from their programs. An override of
//! docker-compose.yml names them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::podman::Podman;
use crate::images::{self, Buildah};
use crate::run;
use crate::tools::Workshop;

/// Raise this when the content of one of the images changes.
const REVISION: u32 = 2;

/// Builds all images, and returns the override.
///
/// # Errors
/// If a part cannot be obtained or built.
pub(super) fn make(shop: &Workshop, podman: &Podman) -> Result<String> {
    let buildah = &podman.buildah;
    let mut services = String::from("services:\n  grafana: {profiles: [no-image-here]}\n");
    for (service, image) in [("nats", nats(shop, buildah)?), ("prometheus", prometheus(shop, buildah)?)] {
        services += &format!("  {service}: {{image: \"{image}\", pull_policy: never}}\n");
    }
    for (target, of) in [("taskpipeline", &["processor"][..]), ("edge", &["edge", "kv-api"])] {
        let image = shop.progress.step(&format!("build the image {target} by buildah"), || {
            images::by_buildah(shop, buildah, target)
        })?;
        for service in of {
            services +=
                &format!("  {service}: {{image: \"{image}\", build: !reset null, pull_policy: never}}\n");
        }
    }
    Ok(services)
}

fn nats(shop: &Workshop, buildah: &Buildah) -> Result<String> {
    let name = format!("localhost/taskpipeline-compose-nats:{REVISION}");
    let program = shop.nats_server()?;
    shop.progress.step("the image of NATS", || {
        buildah
            .image(&name, &["--entrypoint", r#"["/nats-server"]"#], |root| add(root, &program, "nats-server"))
    })?;
    Ok(name)
}

/// Prometheus and Debian's busybox, whose wget the health check needs.
fn prometheus(shop: &Workshop, buildah: &Buildah) -> Result<String> {
    let name = format!("localhost/taskpipeline-compose-prometheus:{REVISION}");
    let program = shop.prometheus()?;
    let settings = [
        "--entrypoint",
        r#"["/bin/prometheus"]"#,
        "--cmd",
        "--config.file=/etc/prometheus/prometheus.yml --storage.tsdb.path=/prometheus",
        "--workingdir",
        "/prometheus",
        "--user",
        "65534:65534",
    ];
    shop.progress.step("the image of Prometheus", || {
        buildah.image(&name, &settings, |root| {
            let packages = root.join("packages");
            fs::create_dir_all(&packages).with_context(|| format!("cannot create {}", packages.display()))?;
            shop.debian_unpack(&["busybox-static"], &packages)?;
            add(root, &program, "bin/prometheus")?;
            add(root, &packages.join("bin/busybox"), "bin/busybox")?;
            for program in ["sh", "wget"] {
                symlink("busybox", root.join("bin").join(program)).context("cannot link busybox")?;
            }
            fs::remove_dir_all(&packages).with_context(|| format!("cannot remove {}", packages.display()))?;
            for folder in ["etc/prometheus", "prometheus", "tmp"] {
                let folder = root.join(folder);
                fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
                fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))
                    .context("cannot open a folder")?;
            }
            run::output(Command::new("chown").args(["65534:65534"]).arg(root.join("prometheus"))).map(drop)
        })
    })?;
    Ok(name)
}

/// Adds a program of this machine to an image, with the shared libraries that it needs.
fn add(root: &Path, program: &Path, to: &str) -> Result<()> {
    let libraries = images::libraries(program)?.into_iter().map(|library| {
        let to = library.to_string_lossy().trim_start_matches('/').to_owned();
        (library, to)
    });
    for (from, to) in libraries.chain([(PathBuf::from(program), to.to_owned())]) {
        let to = root.join(to);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}
