//! Cloudflare KV's REST API v4 on this machine: its auth, envelope, error codes, limits and rate limit, for
//! tests, benchmarks and the demo. It also watches: what it saw is in [`Seen`] and [`LoggedRequest`].
//!
//! It holds everything in memory and is no database. What the real API does is in Cloudflare's
//! documentation; where that is silent, the comments say what was assumed.
//!
//! # Faults
//! A list of [`Rule`]s says what goes wrong: which [`Fault`], for which requests, how often and how long. At
//! most one befalls a request: the first of the list that matches, at the earliest place in the order of the
//! checks (token, rate limit, account, namespace, contents). [`Simulator::inject`] adds one and
//! [`Simulator::set_faults`] replaces them all; other processes do the same by the control endpoint, which is
//! not part of the API: it wants no token, and its requests are not counted.
//!
//! | Request | What it does |
//! |---|---|
//! | `GET /control/faults` | the rules that are not over, with what is left of them |
//! | `PUT /control/faults` | replaces them by a JSON list of rules |
//! | `POST /control/faults` | adds one rule |
//! | `DELETE /control/faults` | takes all back |
//! | `DELETE /control/faults/{name}` | takes back those with this name |
//! | `PUT /control/tokens` | lets in these tokens and no others, a JSON list: as while one is rolled |
//! | `GET /control/seen` | [`Seen`] as JSON |
//! | `GET /control/landings?from=0&most=100000` | one [`Landing`] a line, from this number on |
//! | `POST /control/reset` | begins anew: [`Simulator::reset`] |
//!
//! Setting answers 204, or 400 with the reason and without any change. How a rule looks in JSON is at
//! [`Rule`]; three failures of writes are:
//!
//! ```sh
//! curl -X PUT 127.0.0.1:8788/control/faults -H 'content-type: application/json' \
//!   -d '[{"on": "writes", "times": 3, "fault": {"status": {"status": 503}}}]'
//! ```
//!
//! Faults change nothing about the rate limit: requests that a fault befalls count for it as others do, all
//! but those of [`Fault::RevokedToken`], whose token is not known any more.

mod active;
mod answer;
mod api;
mod body;
mod call;
mod control;
mod effect;
mod fault;
mod gate;
mod keys;
mod landings;
mod latency;
mod line;
mod operation;
mod pages;
mod rate_limit;
mod request_log;
mod seen;
mod shared;
mod spread;
mod store;
mod text;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use fault::{Fault, KeyMatch, Report, Rule};
pub use landings::Landing;
pub use latency::Latency;
pub use operation::{Operation, Scope};
pub use rate_limit::{RateLimit, Windows};
pub use request_log::LoggedRequest;
pub use seen::Seen;
pub use spread::Spread;
pub use store::Stored;

use line::{Line, Lines};
use pages::Pages;
use shared::Shared;
use store::Held;

/// What the simulator pretends to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// The one account there is.
    pub account: String,
    /// The one namespace there is.
    pub namespace: String,
    /// The token that is let in, until [`Simulator::set_tokens`].
    pub token: String,
    /// How many requests are let through; none: all.
    pub rate_limit: Option<RateLimit>,
    /// How long an answer takes.
    pub latency: Latency,
    /// Whether to note when each key's value lands: [`Simulator::landings`].
    pub record_landings: bool,
    /// How many landings are kept, the latest; 24 bytes each.
    pub most_landings: usize,
    /// Where the edge's pages over what it holds are shown, if they are.
    pub pages: Option<SocketAddr>,
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
            record_landings: false,
            most_landings: 4_000_000,
            pages: None,
        }
    }
}

/// A running simulator; it stops when this is dropped.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    config: Config,
    shared: Arc<Shared>,
    /// Where its pages are.
    pages: Option<SocketAddr>,
    serving: Vec<JoinHandle<()>>,
}

impl Simulator {
    /// Starts it.
    ///
    /// # Errors
    /// Where an address cannot be had.
    pub async fn start(config: Config) -> std::io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(config.clone()));
        let routes: Router = api::routes(Arc::clone(&shared)).merge(control::routes(Arc::clone(&shared)));
        // They end only with the process or by `drop`.
        let mut serving = vec![tokio::spawn(async move {
            let routes = routes.into_make_service_with_connect_info::<Line>();
            let _ = axum::serve(Lines(listener), routes).await;
        })];
        let mut pages = None;
        if let Some(listen) = config.pages {
            let listener = TcpListener::bind(listen).await?;
            pages = Some(listener.local_addr()?);
            let routes = taskpipeline_edge::router(Pages(Arc::clone(&shared)));
            serving.push(tokio::spawn(async move {
                let _ = axum::serve(listener, routes).await;
            }));
        }
        Ok(Self { address, config, shared, pages, serving })
    }

    /// What to set `CF_API_BASE_URL` to.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/client/v4", self.address)
    }

    /// The root of the control endpoint, for other processes.
    #[must_use]
    pub fn control_url(&self) -> String {
        format!("http://{}/control", self.address)
    }

    /// Where its pages are, if they are shown.
    #[must_use]
    pub fn pages_url(&self) -> Option<String> {
        self.pages.map(|address| format!("http://{address}/"))
    }

    /// What it was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What it has seen so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.shared.world().lock().seen()
    }

    /// The latest requests that arrived (10,000 at most), refused ones too, in the order of their arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.shared.world().lock().log.requests()
    }

    /// Sets these faults in place of all others; none mends everything. Requests that are under way keep
    /// what befell them.
    pub fn set_faults(&self, rules: impl IntoIterator<Item = Rule>) {
        self.shared.set_faults(rules);
    }

    /// Lets in these tokens and no others: as while one is rolled, and after it was.
    pub fn set_tokens(&self, tokens: impl IntoIterator<Item = String>) {
        self.shared.set_tokens(tokens.into_iter().collect());
    }

    /// Adds a fault; those set before it come first.
    pub fn inject(&self, rule: Rule) {
        self.shared.inject(rule);
    }

    /// Takes back the faults with this name.
    pub fn mend(&self, name: &str) {
        self.shared.mend(name);
    }

    /// The faults that are not over, with what is left of them.
    #[must_use]
    pub fn faults(&self) -> Vec<Rule> {
        self.shared.faults()
    }

    /// The value under a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Stored> {
        self.shared.world().lock().get(key)
    }

    /// All keys, in their order.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.shared.world().lock().keys()
    }

    /// Puts a value there as if it had always been.
    pub fn seed(&self, key: &str, value: impl Into<Vec<u8>>) {
        let held = Held { value: value.into().into(), metadata: None, expires: None };
        self.shared.world().lock().seed(key, held);
    }

    /// What has landed, from this number on and in this order; nothing unless
    /// [`Config::record_landings`] is set. Whoever asks often goes on behind the last number it has seen.
    #[must_use]
    pub fn landings(&self, from: u64) -> Vec<Landing> {
        self.shared.world().lock().landings(from, usize::MAX)
    }

    /// Begins anew, as if just started: nothing stored, seen, logged or landed, the rate limit's windows
    /// empty, and no faults. Requests that are under way are answered, but change nothing any more and are
    /// not counted.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// Waits until someone stops it.
    pub async fn serve(mut self) {
        for serving in &mut self.serving {
            let _ = serving.await;
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.serving.iter().for_each(JoinHandle::abort);
    }
}
