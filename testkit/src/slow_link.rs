//! A proxy before nats-server that delays a client's UNSUB.
//!
//! So the server has time to answer an earlier request of the client, as happens by chance on a busier machine.

use std::io;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The command that ends a subscription. In a payload it does no harm.
const UNSUBSCRIBE: &[u8] = b"UNSUB ";

/// A proxy before nats-server that delays a client's UNSUB. It ends when it is dropped.
#[derive(Debug)]
pub struct SlowLink {
    port: u16,
    serving: JoinHandle<()>,
}

impl SlowLink {
    /// Starts a proxy to a port of this machine, with this delay.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn to(port: u16, late: Duration) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port")?;
        let own = listener.local_addr()?.port();
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let _ = server.set_nodelay(true);
                let (from_client, mut to_client) = client.into_split();
                let (mut from_server, to_server) = server.into_split();
                tokio::spawn(pass(from_client, to_server, late));
                tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            }
        });
        Ok(Self { port: own, serving })
    }

    /// The port for clients.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Forwards bytes until the client hangs up, or the server accepts no more.
async fn pass(mut client: OwnedReadHalf, mut server: OwnedWriteHalf, late: Duration) -> io::Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        let read = client.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..read];
        while let Some(at) = rest.windows(UNSUBSCRIBE.len()).position(|bytes| bytes == UNSUBSCRIBE) {
            server.write_all(&rest[..at]).await?;
            tokio::time::sleep(late).await;
            server.write_all(UNSUBSCRIBE).await?;
            rest = &rest[at + UNSUBSCRIBE.len()..];
        }
        server.write_all(rest).await?;
    }
}
