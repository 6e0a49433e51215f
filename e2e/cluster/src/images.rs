//! The images that `cargo xtask e2e` has brought to the cluster, or that the cluster can pull.

use anyhow::Context;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// The processor and the operator, by the Dockerfile.
    Processor,
    /// Cloudflare KV, simulated, with the pages; by the Dockerfile.
    Demo,
    /// nats-server and a producer.
    Tools,
    /// The processor and the operator of the release before this one.
    Earlier,
}

impl Image {
    /// Its name, with a tag.
    ///
    /// # Errors
    /// Where `cargo xtask e2e` did not say.
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

/// What `cargo xtask e2e` says in an environment variable.
pub(crate) fn told(variable: &str) -> anyhow::Result<String> {
    std::env::var(variable).with_context(|| format!("{variable} is not set: run `cargo xtask e2e`"))
}
