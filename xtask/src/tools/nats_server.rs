use super::download::{Archive, Release};
use super::go_program::GoProgram;
use super::version::Version;

const VERSION: Version = Version(2, 15, 2);

pub(super) const NATS_SERVER: GoProgram = GoProgram {
    name: "nats-server",
    version: VERSION,
    // The streams of mode Durable need this version.
    oldest: Version(2, 11, 0),
    ask: &["--version"],
    package: "github.com/nats-io/nats-server/v2",
    module: None,
    tags: "",
    as_part: false,
    stamp: None,
    release: &RELEASE,
};

/// The newest release whose sums are known here, which is good enough for development.
pub(super) const RELEASE: Release = Release {
    base: "https://github.com/nats-io/nats-server/releases/download/v2.15.0",
    archives: &[
        Archive {
            platform: ("linux", "amd64"),
            name: "nats-server-v2.15.0-linux-amd64.tar.gz",
            sha256: "5d2c51caca950333aba84911df7d377f826f3a59ec36061c6539105084f65c92",
        },
        Archive {
            platform: ("linux", "arm64"),
            name: "nats-server-v2.15.0-linux-arm64.tar.gz",
            sha256: "cdc208f5a3f42963a52b6ab06ef65626bb870315dc936e26ba571780c6351112",
        },
        Archive {
            platform: ("darwin", "amd64"),
            name: "nats-server-v2.15.0-darwin-amd64.tar.gz",
            sha256: "5bd8b59ca5bf93fab3da2c5843cf564cd6e2e291e22ae3b861746e7ebe259b95",
        },
        Archive {
            platform: ("darwin", "arm64"),
            name: "nats-server-v2.15.0-darwin-arm64.tar.gz",
            sha256: "e1c4e22d70bd44abfa0bcb3c16f7cf0c66f648c2e728c58924e8a1ce88913cc8",
        },
    ],
};
