//! Cloudflare KV's REST API v4 on this machine: its auth, envelope, error codes, limits and rate limit, for
//! tests, benchmarks and the demo. It also watches: what it saw is in [`Seen`].
//!
//! It holds everything in memory and is no database. What the real API does is in Cloudflare's
//! documentation; where that is silent, the comments say what was assumed.

mod answer;
mod api;
mod latency;
mod rate_limit;
mod seen;
mod store;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use latency::Latency;
pub use rate_limit::RateLimit;
pub use seen::Seen;
pub use store::Stored;

use api::Shared;

/// What the simulator pretends to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// The one account there is.
    pub account: String,
    /// The one namespace there is.
    pub namespace: String,
    /// The one token that is let in.
    pub token: String,
    /// How many requests are let through; none: all.
    pub rate_limit: Option<RateLimit>,
    /// How long an answer takes.
    pub latency: Latency,
}

impl Default for Config {
    /// On a free port of this machine, with Cloudflare's limits and a likely latency.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            account: "account".to_owned(),
            namespace: "namespace".to_owned(),
            token: "token".to_owned(),
            rate_limit: Some(RateLimit::CLOUDFLARE),
            latency: Latency::LIKELY,
        }
    }
}

/// A running simulator; it stops when this is dropped.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    config: Config,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

impl Simulator {
    /// Starts it.
    ///
    /// # Errors
    /// Where the address cannot be had.
    pub async fn start(config: Config) -> std::io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(config.clone()));
        let routes: Router = api::routes(Arc::clone(&shared));
        let serving = tokio::spawn(async move {
            // Ends only with the process or by `drop`.
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Self { address, config, shared, serving })
    }

    /// What to set `CF_API_BASE_URL` to.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/client/v4", self.address)
    }

    /// What it was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What it has seen so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.shared.seen()
    }

    /// The value under a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Stored> {
        self.shared.get(key)
    }

    /// All keys, in their order.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.shared.keys()
    }

    /// Puts a value there as if it had always been.
    pub fn seed(&self, key: &str, value: impl Into<Vec<u8>>) {
        self.shared.seed(key, value.into());
    }

    /// Waits until someone stops it.
    pub async fn serve(mut self) {
        let _ = (&mut self.serving).await;
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
