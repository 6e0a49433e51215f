//! Proves that NATS has processed everything that this client sent.

use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt;

/// The longest time that the server may take for a round trip.
const ROUND_TRIP: Duration = Duration::from_secs(2);

/// Waits until the server has processed everything that this client sent before.
///
/// The server handles the commands of a connection in order, and the message of the round trip
/// comes back last. The `flush` of the client only writes to the socket.
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
