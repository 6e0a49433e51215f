//! The images that `cargo xtask e2e` has loaded into the cluster, or that the cluster can pull.

use anyhow::Context;

/// An image of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// The processor and the operator, from the Dockerfile.
    Processor,
    /// The simulator of Cloudflare KV, with the pages, from the Dockerfile.
    Demo,
    /// nats-server and a producer.
    Tools,
    /// The processor and the operator of the previous release.
    Earlier,
}

impl Image {
    /// The name with its tag.
    ///
    /// # Errors
    /// If `cargo xtask e2e` did not set it.
    pub fn name(self) -> anyhow::Result<String> {
        let variable = match self {
            Self::Processor => "TASKPIPELINE_E2E_PROCESSOR",
            Self::Demo => "TASKPIPELINE_E2E_DEMO",
            Self::Tools => "TASKPIPELINE_E2E_TOOLS",
            Self::Earlier => "TASKPIPELINE_E2E_EARLIER",
        };
        told(variable)
    }
}

/// Reads a variable that `cargo xtask e2e` sets.
pub(crate) fn told(variable: &str) -> anyhow::Result<String> {
    std::env::var(variable).with_context(|| format!("{variable} is not set; run `cargo xtask e2e`"))
}
