//! What lets a request in: token, rate limit, account and namespace, in this order and before anything of
//! its body is read. A fault about one of them applies at its place, where the real check has passed.

use axum::extract::Request;
use axum::http::header;
use tokio::time::Instant;

use crate::Config;
use crate::answer::{ApiError, Reply, instead};
use crate::fault::{Place, Rule};
use crate::operation::Operation;
use crate::rate_limit::Quota;
use crate::shared::Inner;

/// What a request gets that is not let in, and the rule that befell it, if it was one.
pub(crate) struct Refused {
    pub(crate) reply: Reply,
    pub(crate) rule: Option<Rule>,
}

impl From<ApiError> for Box<Refused> {
    fn from(error: ApiError) -> Self {
        Self::new(Refused { reply: error.into(), rule: None })
    }
}

/// Lets a request in or refuses it. `quota` is what is to be told of the rate limit; nothing to strangers.
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
        // A fault that has a place here refuses; one that did not would let the request in.
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
