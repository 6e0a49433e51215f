//! Vale, which holds the docs to the house style.

use super::download::{Archive, Release};
use super::go_program::GoProgram;
use super::version::Version;

const VERSION: Version = Version(3, 21, 0);

pub(super) const VALE: GoProgram = GoProgram {
    name: "vale",
    version: VERSION,
    oldest: Version(3, 12, 0),
    ask: &["--version"],
    package: "github.com/vale-cli/vale/v3/cmd/vale",
    module: None,
    tags: "",
    as_part: false,
    stamp: Some("main.version"),
    release: &RELEASE,
};

/// The sums of other platforms are not known from two sources, so Go builds Vale there.
pub(super) const RELEASE: Release = Release {
    base: "https://github.com/vale-cli/vale/releases/download/v3.21.0",
    archives: &[Archive {
        platform: ("linux", "amd64"),
        name: "vale_3.21.0_Linux_64-bit.tar.gz",
        sha256: "96997d19a4ca6981673b0d4c5ca7f3ede4a9f97964a96edc29fba9e28a328336",
    }],
};
