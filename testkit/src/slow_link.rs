//! A way to nats-server on which a client's taking back a subscription arrives late: the server has had the time to answer what
//! the client asked for just before, as happens by chance on a machine that has more to do.

use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The command by which a client takes a subscription back. In a payload it does no harm.
const UNSUBSCRIBE: &[u8] = b"UNSUB ";

/// See the module's head. It ends when it is dropped.
#[derive(Debug)]
pub struct SlowLink {
    port: u16,
    serving: JoinHandle<()>,
}

impl SlowLink {
    /// Leads to a port of this machine from now on; `late`: by how much.
    ///
    /// # Errors
    /// Where there is no port to be had.
    pub async fn to(port: u16, late: Duration) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port")?;
        let own = listener.local_addr()?.port();
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let _ = server.set_nodelay(true);
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(pass(from_client, to_server, late));
                tokio::spawn(pass(from_server, to_client, Duration::ZERO));
            }
        });
        Ok(Self { port: own, serving })
    }

    /// Where clients find it.
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

/// Until either side hangs up; then the other does.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, late: Duration) {
    let mut buffer = vec![0; 65_536];
    'open: while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let mut rest = &buffer[..read];
        while let Some(at) = rest.windows(UNSUBSCRIBE.len()).position(|bytes| bytes == UNSUBSCRIBE) {
            let (before, from_there) = rest.split_at(at);
            if to.write_all(before).await.is_err() {
                break 'open;
            }
            tokio::time::sleep(late).await;
            let (command, after) = from_there.split_at(UNSUBSCRIBE.len());
            if to.write_all(command).await.is_err() {
                break 'open;
            }
            rest = after;
        }
        if to.write_all(rest).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
