//! The simulator as a program.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use taskpipeline_simulator::{Config, Latency, RateLimit, Simulator, Windows};

/// Cloudflare KV's REST API on this machine. For tests and demos: it keeps everything in memory.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8788")]
    listen: SocketAddr,
    /// The account's id
    #[arg(long, default_value = "account")]
    account: String,
    /// The namespace's id
    #[arg(long, default_value = "namespace")]
    namespace: String,
    /// The token that is let in
    #[arg(long, env = "SIMULATOR_TOKEN", default_value = "token", hide_env_values = true)]
    token: String,
    /// The most requests in five minutes; 0 for no limit
    #[arg(long, default_value_t = RateLimit::CLOUDFLARE.requests)]
    limit: usize,
    /// The windows that refuse: Cloudflare does not say which it uses
    #[arg(long, value_enum, default_value_t = Kind::Both)]
    windows: Kind,
    /// How long after the start a fixed window begins, in seconds
    #[arg(long, default_value_t = 0)]
    phase: u64,
    /// The least latency of an answer, in milliseconds
    #[arg(long, default_value_t = 80)]
    latency: u64,
    /// The mean of what comes on top of it, in milliseconds
    #[arg(long, default_value_t = 20)]
    latency_tail: u64,
    /// What each MiB of a request's body takes besides, in milliseconds
    #[arg(long, default_value_t = 100)]
    latency_per_mebibyte: u64,
    /// Note when each key's value lands: GET /control/landings
    #[arg(long)]
    record_landings: bool,
    /// Show the edge's pages over what it holds, too, at this address
    #[arg(long)]
    pages: Option<SocketAddr>,
    /// How many landings are kept, the latest
    #[arg(long, default_value_t = Config::default().most_landings)]
    most_landings: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// The five minutes that end now
    Sliding,
    /// Five minutes that follow each other
    Fixed,
    /// Either
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
        format!("cannot listen on {}; choose others with --listen and --pages", addresses.join(" and "))
    })?;
    // As the processor wants it. The token is whoever started this knows it to be.
    println!("CF_API_BASE_URL={}", simulator.base_url());
    println!("CF_ACCOUNT_ID={}", simulator.config().account);
    println!("CF_NAMESPACE_ID={}", simulator.config().namespace);
    if let Some(pages) = simulator.pages_url() {
        println!("The tasks are shown at {pages}");
    }
    simulator.serve().await;
    Ok(())
}
