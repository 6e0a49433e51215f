//! Admits a request: checks token, rate limit, account and namespace, in this order, before its body is read.
//!
//! A fault of one of these checks applies after the real check has passed.

use axum::extract::Request;
use axum::http::header;
use tokio::time::Instant;

use crate::Config;
use crate::answer::{ApiError, Reply, instead};
use crate::fault::{Place, Rule};
use crate::operation::Operation;
use crate::rate_limit::Quota;
use crate::shared::Inner;

/// The reply to a refused request, and the rule that refused it, if any.
pub(crate) struct Refused {
    pub(crate) reply: Reply,
    pub(crate) rule: Option<Rule>,
}

impl From<ApiError> for Box<Refused> {
    fn from(error: ApiError) -> Self {
        Self::new(Refused { reply: error.into(), rule: None })
    }
}

/// Admits or refuses a request.
///
/// Sets `quota` for the headers of the rate limit. It remains `None` for a request with an unknown token.
pub(crate) fn admit(
    config: &Config,
    inner: &mut Inner,
    operation: Operation,
    request: &Request,
    quota: &mut Option<Quota>,
) -> Result<(), Box<Refused>> {
    let Inner { tokens, traffic, rules, .. } = inner;
    let now = Instant::now();
    let authorization = request.headers().get(header::AUTHORIZATION);
    let mut fault_at = |place| {
        let Some(rule) = rules.take(place, operation, None, now) else { return Ok(()) };
        let reply = instead(rule.fault(), authorization);
        // Every fault at these places has a reply. A fault without one would admit the request.
        reply.map_or(Ok(()), |reply| Err(Box::new(Refused { reply, rule: Some(rule) })))
    };

    let bearer = authorization.and_then(|value| value.to_str().ok());
    let token = bearer.and_then(|value| value.strip_prefix("Bearer "));
    if !token.is_some_and(|token| tokens.iter().any(|known| known == token)) {
        return Err(ApiError::Authentication.into());
    }
    fault_at(Place::Token)?;

    if let Some(limit) = config.rate_limit {
        let admitted = traffic.admit(limit, now);
        *quota = Some(traffic.quota(limit, now));
        admitted.map_err(ApiError::Throttled)?;
    } else {
        traffic.count(now);
    }
    fault_at(Place::RateLimit)?;

    let rest = request.uri().path().strip_prefix("/client/v4/accounts/").unwrap_or_default();
    let mut parts = rest.split('/');
    if parts.next() != Some(&config.account) {
        return Err(ApiError::UnknownAccount.into());
    }
    fault_at(Place::Account)?;

    if parts.nth(3) != Some(&config.namespace) {
        return Err(ApiError::UnknownNamespace.into());
    }
    fault_at(Place::Namespace)
}
