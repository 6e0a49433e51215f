//! The routes of the API, and the steps of a request: token, rate limit, account, namespace, contents.
//!
//! A fault applies at its place among these steps. A write takes effect at the end of its latency, just before its
//! answer.

use std::future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request};
use axum::handler::Handler;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use tokio::time::{Instant, sleep};

use crate::Latency;
use crate::answer::{ApiError, Reply, add_rate_limit_headers, instead, nulls, truncated};
use crate::body::{MAX_BODY_BYTES, whole};
use crate::call::Call;
use crate::effect::{carry_out, land};
use crate::fault::{Fault, Place, Rule};
use crate::gate::{Refused, admit};
use crate::keys::KeyId;
use crate::line::Line;
use crate::operation::Operation;
use crate::request_log::Number;
use crate::shared::{Inner, Shared, World};

pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    use Operation::{BulkDelete, BulkGet, BulkPut, Delete, Get, List, Other, Put};
    // Not nested: the gate needs the whole path.
    let path = |rest| format!("/client/v4/accounts/{{account}}/storage/kv/namespaces/{{namespace}}{rest}");
    Router::new()
        .route(&path("/values/{key}"), get(Get).put(Put).delete(Delete))
        .route(&path("/bulk"), put(BulkPut).delete(BulkDelete))
        .route(&path("/bulk/delete"), post(BulkDelete))
        .route(&path("/bulk/get"), post(BulkGet))
        .route(&path("/keys"), get(List))
        .fallback(Other)
        .method_not_allowed_fallback(Other)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(shared)
}

/// All operations share the same steps. They differ in what they read and do.
impl Handler<(), Arc<Shared>> for Operation {
    type Future = Pin<Box<dyn Future<Output = Response> + Send>>;

    fn call(self, request: Request, shared: Arc<Shared>) -> Self::Future {
        Box::pin(async move {
            let line = request.extensions().get::<ConnectInfo<Line>>().map(|info| info.0.clone());
            // In its own task, so that a client that disconnects does not stop its request.
            match tokio::spawn(exchange(shared, self, request)).await {
                Ok(Reply::Answer(response)) => response,
                Ok(Reply::Never) => future::pending().await,
                Ok(Reply::Closed) => {
                    if let Some(line) = line {
                        line.cut();
                    }
                    // Never sent: writing this answer to the cut line closes the connection.
                    StatusCode::NO_CONTENT.into_response()
                }
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }
        })
    }
}

/// Handles a request, and notes its arrival and its reply.
async fn exchange(shared: Arc<Shared>, operation: Operation, request: Request) -> Reply {
    let world = shared.world();
    let number = world.lock().log.arrived(operation, Instant::now());
    let mut quota = None;
    let admitted = admit(&world.config, &mut world.lock(), operation, &request, &mut quota);
    let answer = match admitted {
        Ok(()) => respond(&world, operation, number, request).await,
        Err(refused) => Err(refused),
    };
    let mut reply = answer.unwrap_or_else(|refused| {
        if let Some(rule) = &refused.rule {
            world.lock().applied(number, rule);
        }
        refused.reply
    });
    if let Some(quota) = &quota {
        add_rate_limit_headers(quota, &mut reply);
    }
    world.lock().answered(number, operation, &reply);
    reply
}

async fn respond(
    world: &Arc<World>,
    operation: Operation,
    number: Number,
    request: Request,
) -> Result<Reply, Box<Refused>> {
    let authorization = request.headers().get(header::AUTHORIZATION).cloned();
    let (parts, body) = request.into_parts();
    let body = if operation.has_body() { whole(&parts.headers, body).await? } else { Bytes::new() };
    let body_bytes = body.len();
    let call = Call::read(operation, parts, body).await?;
    let (ids, rule) = {
        let inner = &mut *world.lock();
        let ids = inner.begin(number, operation, &call, body_bytes);
        (ids, take_rule(inner, operation, number, &call))
    };
    let fault = rule.as_ref().map(Rule::fault);

    let latency = world.config.latency;
    if latency != Latency::NONE {
        sleep(latency.draw(rand::random(), body_bytes)).await;
    }
    if let Some(Fault::Slow { extra }) = fault {
        sleep(*extra).await;
    }
    // Even if no answer follows, because a client that gives up may send the keys again.
    world.lock().watch.end(&ids);

    if let Some(reply) = fault.and_then(|fault| instead(fault, authorization.as_ref())) {
        return Ok(reply);
    }
    if let Some(Fault::Late { after, status }) = fault {
        land_late(world, operation, call, ids, *after);
        return Ok(status.map_or(Reply::Never, |status| ApiError::bare(status).into()));
    }
    let sent = ids.len();
    let answer = carry_out(&mut world.lock(), operation, call, ids, rule.as_ref());
    Ok(match fault {
        Some(Fault::LostAnswer { status: None }) => Reply::Closed,
        Some(Fault::LostAnswer { status: Some(status) }) => ApiError::bare(*status).into(),
        Some(Fault::Nulls) => nulls(sent).into(),
        Some(Fault::Truncated) => truncated(answer.into_response()).await.into(),
        _ => answer.into(),
    })
}

/// Takes the rule that applies to a request at the place [`Place::Contents`].
fn take_rule(inner: &mut Inner, operation: Operation, number: Number, call: &Call) -> Option<Rule> {
    let rule = inner.rules.take(Place::Contents, operation, Some(call), Instant::now())?;
    inner.applied(number, &rule);
    Some(rule)
}

fn land_late(world: &Arc<World>, operation: Operation, call: Call, ids: Vec<KeyId>, after: Duration) {
    let Call::Write { changes, .. } = call else { return };
    world.lock().watch.wrote(&ids, Instant::now());
    let world = Arc::clone(world);
    tokio::spawn(async move {
        sleep(after).await;
        land(&mut world.lock(), operation, ids.into_iter().zip(changes));
    });
}
