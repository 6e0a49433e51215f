//! The routes of the API, and the way of a request through it: token, rate limit, account, namespace,
//! contents, and a fault at its place among them. A write takes effect at the end of its latency, just
//! before its answer.

use std::future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request};
use axum::handler::Handler;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use tokio::time::{Instant, sleep};

use crate::Latency;
use crate::answer::{ApiError, Reply, instead, truncated};
use crate::call::{Call, MAX_BULK_BYTES};
use crate::effect::{answered, carry_out, land};
use crate::fault::{Fault, Place, Rule};
use crate::gate::{Refused, admit};
use crate::line::Line;
use crate::operation::Operation;
use crate::request_log::Number;
use crate::shared::{Inner, Shared};

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
        .layer(DefaultBodyLimit::max(MAX_BULK_BYTES))
        .with_state(shared)
}

/// All operations go the same way; what differs is what they read and do.
impl Handler<(), Arc<Shared>> for Operation {
    type Future = Pin<Box<dyn Future<Output = Response> + Send>>;

    fn call(self, request: Request, shared: Arc<Shared>) -> Self::Future {
        Box::pin(async move {
            let line = request.extensions().get::<ConnectInfo<Line>>().map(|info| info.0.clone());
            // On a task of its own: a client that goes away does not stop what its request began.
            match tokio::spawn(exchange(shared, self, request)).await {
                Ok(Reply::Answer(response)) => response,
                Ok(Reply::Never) => future::pending().await,
                Ok(Reply::Closed) => {
                    if let Some(line) = line {
                        line.cut();
                    }
                    // Never sent: it is what runs into the cut.
                    StatusCode::NO_CONTENT.into_response()
                }
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }
        })
    }
}

/// A request from its arrival to its reply, both noted.
async fn exchange(shared: Arc<Shared>, operation: Operation, request: Request) -> Reply {
    let number = shared.lock().log.arrived(operation, Instant::now());
    let reply = match respond(&shared, operation, number, request).await {
        Ok(reply) => reply,
        Err(refused) => {
            if let Some(rule) = &refused.rule {
                shared.lock().befell(number, rule);
            }
            refused.reply
        }
    };
    shared.lock().answered(number, operation, &reply);
    reply
}

async fn respond(
    shared: &Arc<Shared>,
    operation: Operation,
    number: Number,
    request: Request,
) -> Result<Reply, Box<Refused>> {
    {
        let Inner { window, rules, .. } = &mut *shared.lock();
        admit(&shared.config, window, rules, operation, &request)?;
    }
    let authorization = request.headers().get(header::AUTHORIZATION).cloned();
    let call = Call::read(operation, request).await?;
    let rule = begin(&mut shared.lock(), operation, number, &call);
    let fault = rule.as_ref().map(Rule::fault);

    let latency = shared.config.latency;
    if latency != Latency::NONE {
        sleep(latency.draw(rand::random())).await;
    }
    if let Some(Fault::Slow { extra }) = fault {
        sleep(*extra).await;
    }
    // Also where no answer follows: the client that gives up may send the keys again.
    shared.lock().watch.end(call.keys());

    if let Some(reply) = fault.and_then(|fault| instead(fault, authorization.as_ref())) {
        return Ok(reply);
    }
    if let Some(Fault::Late { after, status }) = fault {
        land_late(shared, call, *after);
        return Ok(status.map_or(Reply::Never, |status| ApiError::bare(status).into()));
    }
    let answer = {
        let Inner { store, watch, .. } = &mut *shared.lock();
        carry_out(store, watch, call, rule.as_ref())
    };
    Ok(match fault {
        Some(Fault::LostAnswer { status: None }) => Reply::Closed,
        Some(Fault::LostAnswer { status: Some(status) }) => ApiError::bare(*status).into(),
        Some(Fault::Truncated) => truncated(answer.into_response()).await.into(),
        _ => answer.into(),
    })
}

/// Notes a request whose contents are known, and finds the rule that befalls it.
fn begin(inner: &mut Inner, operation: Operation, number: Number, call: &Call) -> Option<Rule> {
    inner.watch.begin(operation, call.keys());
    inner.log.keys(number, call.keys());
    let rule = inner.rules.take(Place::Contents, operation, Some(call), Instant::now())?;
    inner.befell(number, &rule);
    Some(rule)
}

fn land_late(shared: &Arc<Shared>, call: Call, after: Duration) {
    answered(&mut shared.lock().watch, call.changes());
    let Call::Write { changes, .. } = call else { return };
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        sleep(after).await;
        let Inner { store, watch, .. } = &mut *shared.lock();
        land(store, watch, changes);
    });
}
