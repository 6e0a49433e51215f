use super::download::{Archive, Release};
use super::go_program::GoProgram;
use super::version::Version;

const VERSION: Version = Version(4, 3, 0);

pub(super) const HELM: GoProgram = GoProgram {
    name: "helm",
    version: VERSION,
    // The first version that applies server-side, which the chart requires.
    oldest: Version(4, 0, 0),
    ask: &["version", "--template", "{{.Version}}"],
    package: "helm.sh/helm/v4/cmd/helm",
    module: None,
    tags: "",
    as_part: false,
    stamp: None,
    release: &RELEASE,
};

pub(super) const RELEASE: Release = Release {
    base: "https://get.helm.sh",
    archives: &[
        Archive {
            platform: ("linux", "amd64"),
            name: "helm-v4.3.0-linux-amd64.tar.gz",
            sha256: "86584a54def73570558f66f5111cc53dfed56689637ae32c1201205d494f54fb",
        },
        Archive {
            platform: ("linux", "arm64"),
            name: "helm-v4.3.0-linux-arm64.tar.gz",
            sha256: "31c5794dd55c66a51e6b7d2e2ac7a114ae8b1de41ff1d9ba51748ac973b06a08",
        },
        Archive {
            platform: ("darwin", "amd64"),
            name: "helm-v4.3.0-darwin-amd64.tar.gz",
            sha256: "347a784877e0e20eac865e8d1c36a80f6bb0861d6f29abd34defb6570ef95d92",
        },
        Archive {
            platform: ("darwin", "arm64"),
            name: "helm-v4.3.0-darwin-arm64.tar.gz",
            sha256: "d3870437e1e95b67f8edbde964156c84a26503f560821d40c542441658934fba",
        },
    ],
};
