//! A producer as a pod: creates of distinct tasks, each acknowledged by the stream before the next, for ever. For where
//! tests cannot reach into the cluster.

use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream;
use taskpipeline_e2e_cluster::create;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (url, prefix) = (arguments.next().context("no URL")?, arguments.next().context("no prefix")?);
    let client = async_nats::ConnectOptions::new().retry_on_initial_connect().connect(url).await?;
    let jetstream = jetstream::new(client);
    let mut next = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let event = create(&format!("{prefix}-{next}"));
        let Ok(ack) = jetstream.publish("tasks.created", event.into()).await else { continue };
        if ack.await.is_ok() {
            next += 1;
        }
    }
}
