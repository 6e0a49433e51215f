//! The simulator as a program.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use taskpipeline_simulator::{Config, Latency, RateLimit, Simulator};

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
    /// The least latency of an answer, in milliseconds
    #[arg(long, default_value_t = 80)]
    latency: u64,
    /// The mean of what comes on top of it, in milliseconds
    #[arg(long, default_value_t = 20)]
    latency_tail: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let simulator = Simulator::start(Config {
        listen: cli.listen,
        account: cli.account,
        namespace: cli.namespace,
        token: cli.token,
        rate_limit: (cli.limit > 0).then_some(RateLimit { requests: cli.limit, ..RateLimit::CLOUDFLARE }),
        latency: Latency {
            least: Duration::from_millis(cli.latency),
            tail: Duration::from_millis(cli.latency_tail),
        },
    })
    .await
    .with_context(|| format!("cannot listen on {}; choose another address with --listen", cli.listen))?;
    println!("CF_API_BASE_URL={}", simulator.base_url());
    simulator.serve().await;
    Ok(())
}
