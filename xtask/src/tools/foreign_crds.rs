//! The CRDs of other projects whose objects our chart and examples contain, for dry runs against them.
//!
//! They are single files of other repositories, at pinned versions.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::download::fetch;
use super::version::Version;
use super::{Workshop, hex_sha256};
use crate::run;

/// A file of a repository.
struct Crd {
    /// The name of the repository on GitHub.
    repository: &'static str,
    /// The repository as a Go module.
    module: &'static str,
    version: Version,
    path: &'static str,
    sha256: &'static str,
}

const PROMETHEUS_OPERATOR: Version = Version(0, 94, 1);
const KEDA: Version = Version(2, 21, 0);
const CERT_MANAGER: Version = Version(1, 21, 2);

const CRDS: [Crd; 4] = [
    Crd {
        repository: "prometheus-operator/prometheus-operator",
        module: "github.com/prometheus-operator/prometheus-operator",
        version: PROMETHEUS_OPERATOR,
        path: "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        sha256: "62a3dd743ae8ea13f6817be3e8ab74e97e22fd59effc0704e1524dff8869fb43",
    },
    Crd {
        repository: "prometheus-operator/prometheus-operator",
        module: "github.com/prometheus-operator/prometheus-operator",
        version: PROMETHEUS_OPERATOR,
        path: "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
        sha256: "8e29b30e9353d593821ba4e61dc189ed7b3c4cf50a665e95d8c3d3aad3c4d484",
    },
    Crd {
        repository: "kedacore/keda",
        module: "github.com/kedacore/keda/v2",
        version: KEDA,
        path: "config/crd/bases/keda.sh_scaledobjects.yaml",
        sha256: "af35555862a83933b074af14ad439c4b4ceabaf4daa3e9338e9b23e36d308d80",
    },
    Crd {
        repository: "cert-manager/cert-manager",
        module: "github.com/cert-manager/cert-manager",
        version: CERT_MANAGER,
        path: "deploy/crds/cert-manager.io_certificates.yaml",
        sha256: "7ad91029c00ec959d54215b19d3b1a9b7e0247eaa60f987151c2b70d8661f8af",
    },
];

/// Returns the folder of the files.
pub(super) fn find(shop: &Workshop) -> Result<PathBuf> {
    let key = format!("foreign-crds-{PROMETHEUS_OPERATOR}-{KEDA}-{CERT_MANAGER}");
    shop.cache.entry(&key, |folder, _| {
        shop.progress.step("get the CRDs of the Prometheus operator, KEDA and cert-manager", || {
            CRDS.iter().try_for_each(|crd| crd.get(folder))
        })
    })
}

impl Crd {
    fn get(&self, folder: &Path) -> Result<()> {
        let name = self.path.rsplit('/').next().unwrap_or(self.path);
        let file = folder.join(name);
        if let Err(why) = fetch(&self.url(), &file) {
            self.copy_of_the_module(&file)
                .with_context(|| format!("{why:#}; getting the Go module failed, too"))?;
        }
        let found = File::open(&file).and_then(hex_sha256).with_context(|| format!("cannot read {name}"))?;
        if found != self.sha256 {
            bail!(
                "{name} of {} v{} has the SHA-256 {found}, not {}",
                self.repository,
                self.version,
                self.sha256
            );
        }
        Ok(())
    }

    fn url(&self) -> String {
        format!("https://raw.githubusercontent.com/{}/v{}/{}", self.repository, self.version, self.path)
    }

    /// Copies the file from the Go module, for machines that reach only the registries. Go keeps the whole repository unpacked.
    fn copy_of_the_module(&self, file: &Path) -> Result<()> {
        let go = run::on_path("go").context("Go is not on PATH")?;
        let module = format!("{}@v{}", self.module, self.version);
        // The folder must be outside our modules.
        let folder = file.parent().unwrap_or(Path::new("/"));
        let mut download = Command::new(go);
        let told = run::output(download.args(["mod", "download", "-json", &module]).current_dir(folder))?;
        let told: Value =
            serde_json::from_str(&told).context("Go does not print the folder of the module")?;
        let source = told["Dir"].as_str().context("Go does not print the folder of the module")?;
        let source = Path::new(source).join(self.path);
        let text = fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_pinned_and_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            CRDS.iter().filter_map(|crd| crd.path.rsplit('/').next()).collect();
        assert_eq!(names.len(), CRDS.len());
        assert!(CRDS.iter().all(|crd| crd.sha256.len() == 64));
        assert_eq!(
            CRDS[2].url(),
            format!(
                "https://raw.githubusercontent.com/kedacore/keda/v{KEDA}/config/crd/bases/keda.sh_scaledobjects.yaml"
            )
        );
    }
}
