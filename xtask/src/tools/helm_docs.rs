//! helm-docs, which makes the chart's README out of its values.

use super::download::Release;
use super::go_program::GoProgram;
use super::version::Version;

const VERSION: Version = Version(1, 14, 2);

pub(super) const HELM_DOCS: GoProgram = GoProgram {
    name: "helm-docs",
    version: VERSION,
    // What it makes is kept in the clone and compared: an older one might make something else of it.
    oldest: VERSION,
    ask: &["--version"],
    package: "github.com/norwoodj/helm-docs/cmd/helm-docs",
    as_part: false,
    stamp: Some("main.version"),
    release,
};

fn release(os: &str, arch: &str) -> Release {
    let os = if os == "darwin" { "Darwin" } else { "Linux" };
    let arch = if arch == "amd64" { "x86_64" } else { arch };
    Release {
        base: format!("https://github.com/norwoodj/helm-docs/releases/download/v{VERSION}"),
        archive: format!("helm-docs_{VERSION}_{os}_{arch}.tar.gz"),
        sums: "checksums.txt".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_release_of_a_platform() {
        assert_eq!(super::release("linux", "amd64").archive, "helm-docs_1.14.2_Linux_x86_64.tar.gz");
        assert_eq!(super::release("darwin", "arm64").archive, "helm-docs_1.14.2_Darwin_arm64.tar.gz");
    }
}
