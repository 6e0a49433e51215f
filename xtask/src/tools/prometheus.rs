//! Prometheus for its image in `cargo xtask compose-test`, if no image registry can be reached.

use super::go_program::GoProgram;
use super::promtool::{RELEASE, VERSION};
use super::version::Version;

pub(super) const PROMETHEUS: GoProgram = GoProgram {
    name: "prometheus",
    version: VERSION,
    // Another version than the one in docker-compose.yml would be another test.
    oldest: VERSION,
    ask: &["--version"],
    package: "github.com/prometheus/prometheus/cmd/prometheus",
    module: Some(Version(0, 300 + VERSION.1, VERSION.2)),
    // Without the clients of all clouds it builds in one minute instead of ten. docker-compose.yml needs no service discovery.
    tags: "remove_all_sd",
    as_part: true,
    stamp: Some("github.com/prometheus/common/version.Version"),
    release: &RELEASE,
};
