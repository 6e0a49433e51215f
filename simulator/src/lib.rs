//! A simulator of Cloudflare KV's REST API v4: auth, envelope, error codes, limits and rate limit.
//!
//! It is for tests, benchmarks and demos. It counts and logs requests: see [`Seen`] and [`LoggedRequest`]. All data is
//! in memory. The simulator follows Cloudflare's documentation. Comments name every assumption beyond it.
//!
//! # Faults
//! A list of [`Rule`]s sets the faults: which [`Fault`], for which requests, how often and how long. At most one rule
//! applies to a request: at the earliest check (token, rate limit, account, namespace, contents), the first rule of
//! the list that matches. [`Simulator::inject`] adds a rule, and [`Simulator::set_faults`] replaces all rules.
//!
//! Other processes use the control endpoint. It is not part of the API: it checks no token, and its requests are not
//! counted.
//!
//! | Request | Effect |
//! |---|---|
//! | `GET /control/faults` | answers the rules that have not ended, with the times and the time that are left |
//! | `PUT /control/faults` | replaces all rules with a JSON list of rules |
//! | `POST /control/faults` | adds one rule |
//! | `DELETE /control/faults` | removes all rules |
//! | `DELETE /control/faults/{name}` | removes the rules with this name |
//! | `PUT /control/tokens` | admits only the tokens in a JSON list; for tests of a token's rotation |
//! | `GET /control/seen` | answers [`Seen`] as JSON |
//! | `GET /control/landings?from=0&most=100000` | answers one [`Landing`] a line, from this number on |
//! | `POST /control/reset` | resets the simulator: [`Simulator::reset`] |
//!
//! A change answers 204. Invalid JSON answers 400 with the reason, and changes nothing. [`Rule`] documents the JSON of
//! rules. This command makes three writes fail:
//!
//! ```sh
//! curl -X PUT 127.0.0.1:8788/control/faults -H 'content-type: application/json' \
//!   -d '[{"on": "writes", "times": 3, "fault": {"status": {"status": 503}}}]'
//! ```
//!
//! Requests with a fault count for the rate limit, except for [`Fault::RevokedToken`] and [`Fault::MalformedToken`]: a
//! request with an unknown token never counts.

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
use store::Entry;

/// The settings of a simulator.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen at; port 0 selects a free port.
    pub listen: SocketAddr,
    /// The id of the only account.
    pub account: String,
    /// The id of the only namespace.
    pub namespace: String,
    /// The token that is admitted, until [`Simulator::set_tokens`].
    pub token: String,
    /// The rate limit; `None` admits all requests.
    pub rate_limit: Option<RateLimit>,
    /// The latency of answers.
    pub latency: Latency,
    /// Whether to record the landings of keys: [`Simulator::landings`].
    pub record_landings: bool,
    /// The number of the latest landings to keep, with 24 bytes each.
    pub most_landings: usize,
    /// The address at which to serve the pages of the edge over the simulator's data, if any.
    pub pages: Option<SocketAddr>,
}

impl Default for Config {
    /// A free port of this machine, Cloudflare's limits, and [`Latency::LIKELY`].
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

/// A running simulator. Dropping it stops it.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    config: Config,
    shared: Arc<Shared>,
    /// The address of the pages, if they are served.
    pages: Option<SocketAddr>,
    serving: Vec<JoinHandle<()>>,
}

impl Simulator {
    /// Starts a simulator.
    ///
    /// # Errors
    /// If it cannot listen at an address.
    pub async fn start(config: Config) -> std::io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(config.clone()));
        let routes: Router = api::routes(Arc::clone(&shared)).merge(control::routes(Arc::clone(&shared)));
        // The tasks end only with the process, or on drop.
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

    /// The value for `CF_API_BASE_URL`.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/client/v4", self.address)
    }

    /// The root of the control endpoint, for other processes.
    #[must_use]
    pub fn control_url(&self) -> String {
        format!("http://{}/control", self.address)
    }

    /// The URL of the pages, if they are served.
    #[must_use]
    pub fn pages_url(&self) -> Option<String> {
        self.pages.map(|address| format!("http://{address}/"))
    }

    /// The settings of this simulator.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The counters so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.shared.world().lock().seen()
    }

    /// The latest 10,000 requests, refused requests included, in the order of their arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.shared.world().lock().log.requests()
    }

    /// Replaces all faults; an empty list removes all faults. Requests in flight keep their fault.
    pub fn set_faults(&self, rules: impl IntoIterator<Item = Rule>) {
        self.shared.set_faults(rules);
    }

    /// Admits only these tokens. For tests of a token's rotation.
    pub fn set_tokens(&self, tokens: impl IntoIterator<Item = String>) {
        self.shared.set_tokens(tokens.into_iter().collect());
    }

    /// Adds a fault. Earlier faults come first.
    pub fn inject(&self, rule: Rule) {
        self.shared.inject(rule);
    }

    /// Removes the faults with this name.
    pub fn remove_faults(&self, name: &str) {
        self.shared.remove_faults(name);
    }

    /// The faults that have not ended, with the times and the time that are left.
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

    /// Sets a value as if it had always existed. No read fault shows an older state.
    pub fn seed(&self, key: &str, value: impl Into<Vec<u8>>) {
        let entry = Entry { value: value.into().into(), metadata: None, expires: None };
        self.shared.world().lock().seed(key, entry);
    }

    /// The landings from this number on, in order; empty without [`Config::record_landings`].
    ///
    /// To get only new landings, pass the last number plus 1.
    #[must_use]
    pub fn landings(&self, from: u64) -> Vec<Landing> {
        self.shared.world().lock().landings(from, usize::MAX)
    }

    /// Resets the simulator to its state after the start.
    ///
    /// The store, the counters, the log, the landings, the windows of the rate limit and the faults are empty. The
    /// tokens are those of [`Config::token`]. Requests in flight are answered, but change nothing and are not
    /// counted.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// Serves until the process ends.
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
