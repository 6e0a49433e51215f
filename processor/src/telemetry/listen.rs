//! Where the endpoints of a process are: one address that was asked for, or every address of this machine.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::Router;
use tokio::net::TcpListener;
use tracing::error;

/// Serves until the process ends. `host`: nothing for every address, of IPv6 and of IPv4, as far as the machine has both.
/// Answers the address, which matters where the port is 0.
///
/// # Errors
/// The address that cannot be had, and why.
pub(crate) async fn serve(
    host: Option<IpAddr>,
    port: u16,
    routes: Router,
) -> Result<SocketAddr, (SocketAddr, io::Error)> {
    let listeners = match host {
        Some(host) => vec![bind(host, port).await?],
        None => bind_all(port).await?,
    };
    let address = listeners.first().map(TcpListener::local_addr);
    let address = address.unwrap_or_else(|| Err(ErrorKind::AddrNotAvailable.into()));
    let address = address.map_err(|error| (SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), error))?;
    for listener in listeners {
        let routes = routes.clone();
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, routes).await {
                error!("health and metrics are not served any more: {error}");
            }
        });
    }
    Ok(address)
}

/// A socket for IPv6 takes IPv4 too, unless the system says otherwise (`net.ipv6.bindv6only`): then there are two. Where
/// there is no IPv6 at all, one for IPv4 has to do.
async fn bind_all(port: u16) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let first = match bind(Ipv6Addr::UNSPECIFIED.into(), port).await {
        Ok(listener) => listener,
        Err((address, error)) if error.kind() == ErrorKind::AddrInUse => return Err((address, error)),
        Err(_) => return Ok(vec![bind(Ipv4Addr::UNSPECIFIED.into(), port).await?]),
    };
    let port = first.local_addr().map_or(port, |address| address.port());
    match bind(Ipv4Addr::UNSPECIFIED.into(), port).await {
        Ok(second) => Ok(vec![first, second]),
        // The first one has it.
        Err((_, error)) if error.kind() == ErrorKind::AddrInUse => Ok(vec![first]),
        Err(other) => Err(other),
    }
}

async fn bind(host: IpAddr, port: u16) -> Result<TcpListener, (SocketAddr, io::Error)> {
    let address = SocketAddr::from((host, port));
    TcpListener::bind(address).await.map_err(|error| (address, error))
}
