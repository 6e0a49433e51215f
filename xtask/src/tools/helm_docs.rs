//! helm-docs, which generates the chart's README from its values.

use super::download::{Archive, Release};
use super::go_program::GoProgram;
use super::version::Version;

const VERSION: Version = Version(1, 14, 2);

pub(super) const HELM_DOCS: GoProgram = GoProgram {
    name: "helm-docs",
    version: VERSION,
    // The output is kept in the clone and compared: an older version might generate a different one.
    oldest: VERSION,
    ask: &["--version"],
    package: "github.com/norwoodj/helm-docs/cmd/helm-docs",
    module: None,
    tags: "",
    as_part: false,
    stamp: Some("main.version"),
    release: &RELEASE,
};

pub(super) const RELEASE: Release = Release {
    base: "https://github.com/norwoodj/helm-docs/releases/download/v1.14.2",
    archives: &[
        Archive {
            platform: ("linux", "amd64"),
            name: "helm-docs_1.14.2_Linux_x86_64.tar.gz",
            sha256: "a8cf72ada34fad93285ba2a452b38bdc5bd52cc9a571236244ec31022928d6cc",
        },
        Archive {
            platform: ("linux", "arm64"),
            name: "helm-docs_1.14.2_Linux_arm64.tar.gz",
            sha256: "c3787212332386dcd122debef7848feb165aa701467ae3e3442df7638f3ac4e4",
        },
        Archive {
            platform: ("darwin", "amd64"),
            name: "helm-docs_1.14.2_Darwin_x86_64.tar.gz",
            sha256: "b2f1ffd0feef8dc0901a38a2053481d1d67b63ca30da4ac774166c6b52fa2245",
        },
        Archive {
            platform: ("darwin", "arm64"),
            name: "helm-docs_1.14.2_Darwin_arm64.tar.gz",
            sha256: "2d8399db5b33d240d5f8985241bcf5483563150b968e3229823822979f3e4b8b",
        },
    ],
};
