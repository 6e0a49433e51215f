//! nats-server.

use super::download::Release;
use super::go_program::GoProgram;
use super::version::Version;

const VERSION: Version = Version(2, 15, 2);

pub(super) const NATS_SERVER: GoProgram = GoProgram {
    name: "nats-server",
    version: VERSION,
    // What the durable mode's streams need.
    oldest: Version(2, 11, 0),
    ask: &["--version"],
    package: "github.com/nats-io/nats-server/v2",
    as_part: false,
    stamp: None,
    release,
};

fn release(os: &str, arch: &str) -> Release {
    Release {
        base: format!("https://github.com/nats-io/nats-server/releases/download/v{VERSION}"),
        archive: format!("nats-server-v{VERSION}-{os}-{arch}.tar.gz"),
        sums: "SHA256SUMS".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_release_of_a_platform() {
        let release = super::release("linux", "amd64");
        assert_eq!(
            format!("{}/{}", release.base, release.archive),
            "https://github.com/nats-io/nats-server/releases/download/v2.15.2/\
             nats-server-v2.15.2-linux-amd64.tar.gz"
        );
    }
}
