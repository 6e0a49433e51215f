//! Whether NATS has taken in all that was sent to it.

use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt;

/// How long the server may take for a round trip.
const ROUND_TRIP: Duration = Duration::from_secs(2);

/// Proves that the server has processed all this client sent before: it handles a connection's commands in
/// order, and this comes back last. (The client's `flush` only writes to the socket.)
pub(crate) async fn round_trip(client: &Client) -> Result<(), String> {
    let exchange = async {
        let inbox = client.new_inbox();
        let mut echo = client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
        client.publish(inbox, Bytes::new()).await.map_err(|error| error.to_string())?;
        client.flush().await.map_err(|error| error.to_string())?;
        echo.next().await.map(|_| ()).ok_or_else(|| "the connection is closed".to_owned())
    };
    match tokio::time::timeout(ROUND_TRIP, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", ROUND_TRIP.as_secs())),
    }
}
