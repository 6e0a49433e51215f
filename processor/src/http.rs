//! HTTP endpoints of a process, on one configured address or on every address of this machine.
//!
//! A replica serves `/health` for people, `/livez` and `/readyz` for probes, and `/metrics` for Prometheus.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use taskpipeline_pipeline::telemetry::Telemetry;
use taskpipeline_pipeline::telemetry::health::Overall;
use tokio::net::TcpListener;
use tracing::error;

/// The address for health and metrics is not available.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for health and metrics; set PORT to a free port")]
pub(crate) struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// Returns the endpoints of a replica.
pub(crate) fn replica(telemetry: Telemetry) -> Router {
    Router::new()
        .route("/health", get(report))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .with_state(telemetry)
}

async fn report(State(telemetry): State<Telemetry>) -> Response {
    let (overall, report) = telemetry.health.report();
    let code = if overall == Overall::Degraded { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, [(header::CACHE_CONTROL, "no-store")], Json(report)).into_response()
}

async fn ready(State(telemetry): State<Telemetry>) -> Response {
    match telemetry.health.ready().await {
        Ok(()) => "ready".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}")).into_response(),
    }
}

async fn scrape(State(telemetry): State<Telemetry>) -> Response {
    match telemetry.metrics.encode(&telemetry.health) {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Serves until the process ends, and returns the address, which matters if the port is 0.
///
/// If `host` is `None`, it serves on every address of IPv6 and IPv4, as far as the machine has both.
///
/// # Errors
/// Names the address that is not available, and the reason.
pub(crate) async fn serve(
    (host, port): (Option<IpAddr>, u16),
    routes: Router,
) -> Result<SocketAddr, ListenError> {
    let listeners = match host {
        Some(host) => vec![bind(host, port).await?],
        None => bind_all(port).await?,
    };
    let address = listeners.first().map(TcpListener::local_addr);
    let address = address.unwrap_or_else(|| Err(ErrorKind::AddrNotAvailable.into()));
    let address = address
        .map_err(|source| ListenError { address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), source })?;
    for listener in listeners {
        let routes = routes.clone();
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, routes).await {
                error!(%error, "stopped serving health and metrics");
            }
        });
    }
    Ok(address)
}

/// Binds the port on all addresses.
///
/// A socket for IPv6 takes IPv4 too, unless the system prevents it (`net.ipv6.bindv6only`): then there are two
/// sockets. If the machine has no IPv6, one socket for IPv4 is enough.
async fn bind_all(port: u16) -> Result<Vec<TcpListener>, ListenError> {
    let first = match bind(Ipv6Addr::UNSPECIFIED.into(), port).await {
        Ok(listener) => listener,
        Err(error) if error.source.kind() == ErrorKind::AddrInUse => return Err(error),
        Err(_) => return Ok(vec![bind(Ipv4Addr::UNSPECIFIED.into(), port).await?]),
    };
    let port = first.local_addr().map_or(port, |address| address.port());
    match bind(Ipv4Addr::UNSPECIFIED.into(), port).await {
        Ok(second) => Ok(vec![first, second]),
        // The first socket serves IPv4 too.
        Err(error) if error.source.kind() == ErrorKind::AddrInUse => Ok(vec![first]),
        Err(other) => Err(other),
    }
}

async fn bind(host: IpAddr, port: u16) -> Result<TcpListener, ListenError> {
    let address = SocketAddr::from((host, port));
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}
