//! The simulator as a program: parses the flags, and serves until it is stopped.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use taskpipeline_simulator::{Config, Latency, RateLimit, Simulator, Windows};

/// Simulate Cloudflare KV's REST API for tests and demos; all data is in memory
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Listen at this address, for example 0.0.0.0:8788
    #[arg(long, default_value = "127.0.0.1:8788")]
    listen: SocketAddr,
    /// Simulate the account with this id
    #[arg(long, default_value = "account")]
    account: String,
    /// Simulate the namespace with this id
    #[arg(long, default_value = "namespace")]
    namespace: String,
    /// Admit requests with this token
    #[arg(long, env = "SIMULATOR_TOKEN", default_value = "token", hide_env_values = true)]
    token: String,
    /// Limit the requests in five minutes; 0 for no limit
    #[arg(long, default_value_t = RateLimit::CLOUDFLARE.requests)]
    limit: usize,
    /// Refuse by these windows; Cloudflare does not document its own
    #[arg(long, value_enum, default_value_t = Kind::Both)]
    windows: Kind,
    /// Begin a fixed window this many seconds after the start
    #[arg(long, default_value_t = 0)]
    phase: u64,
    /// Set the least latency of an answer, in milliseconds
    #[arg(long, default_value_t = 80)]
    latency: u64,
    /// Set the mean of the additional random latency, in milliseconds
    #[arg(long, default_value_t = 20)]
    latency_tail: u64,
    /// Set the additional latency for each MiB of a request's body, in milliseconds
    #[arg(long, default_value_t = 100)]
    latency_per_mebibyte: u64,
    /// Record the landings of keys for GET /control/landings
    #[arg(long)]
    record_landings: bool,
    /// Serve the pages of the edge at this address too, for example 127.0.0.1:8787
    #[arg(long)]
    pages: Option<SocketAddr>,
    /// Keep this many of the latest landings
    #[arg(long, default_value_t = Config::default().most_landings)]
    most_landings: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// The five minutes before each request
    Sliding,
    /// Consecutive windows of five minutes
    Fixed,
    /// Sliding and fixed windows
    Both,
}

impl Cli {
    fn config(self) -> Config {
        let phase = Duration::from_secs(self.phase);
        let windows = match self.windows {
            Kind::Sliding => Windows::Sliding,
            Kind::Fixed => Windows::Fixed { phase },
            Kind::Both => Windows::Both { phase },
        };
        let limit = RateLimit { requests: self.limit, windows, ..RateLimit::CLOUDFLARE };
        Config {
            listen: self.listen,
            account: self.account,
            namespace: self.namespace,
            token: self.token,
            rate_limit: (self.limit > 0).then_some(limit),
            latency: Latency {
                least: Duration::from_millis(self.latency),
                tail: Duration::from_millis(self.latency_tail),
                per_mebibyte: Duration::from_millis(self.latency_per_mebibyte),
            },
            record_landings: self.record_landings,
            most_landings: self.most_landings,
            pages: self.pages,
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Cli::parse().config();
    let addresses = [Some(config.listen), config.pages].into_iter().flatten();
    let addresses: Vec<_> = addresses.map(|address| address.to_string()).collect();
    let simulator = Simulator::start(config).await.with_context(|| {
        format!(
            "cannot listen at {}: choose other addresses with --listen and --pages",
            addresses.join(" and ")
        )
    })?;
    // Variables for the processor, without the token, which the user has set.
    println!("CF_API_BASE_URL={}", simulator.base_url());
    println!("CF_ACCOUNT_ID={}", simulator.config().account);
    println!("CF_NAMESPACE_ID={}", simulator.config().namespace);
    if let Some(pages) = simulator.pages_url() {
        println!("Tasks: {pages}");
    }
    simulator.serve().await;
    Ok(())
}
