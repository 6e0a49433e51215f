//! Helm.

use super::download::Release;
use super::go_program::GoProgram;
use super::version::Version;

const VERSION: Version = Version(4, 3, 1);

pub(super) const HELM: GoProgram = GoProgram {
    name: "helm",
    version: VERSION,
    // The first that applies server-side, which the chart is written for.
    oldest: Version(4, 0, 0),
    ask: &["version", "--template", "{{.Version}}"],
    package: "helm.sh/helm/v4/cmd/helm",
    as_part: false,
    stamp: None,
    release,
};

fn release(os: &str, arch: &str) -> Release {
    let archive = format!("helm-v{VERSION}-{os}-{arch}.tar.gz");
    Release { base: "https://get.helm.sh".to_owned(), sums: format!("{archive}.sha256sum"), archive }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_release_of_a_platform() {
        let release = super::release("darwin", "arm64");
        assert_eq!(release.archive, "helm-v4.3.1-darwin-arm64.tar.gz");
        assert_eq!(release.sums, "helm-v4.3.1-darwin-arm64.tar.gz.sha256sum");
    }
}
