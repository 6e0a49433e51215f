//! Forwards a port of a pod to this machine through the API server. This works on any cluster, wherever its pods run.

use std::net::SocketAddr;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A forwarded port of a pod. It ends when it is dropped.
pub struct Forward {
    /// The address on this machine.
    pub address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Forward {
    /// Starts forwarding.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn to(pods: Api<Pod>, pod: &str, port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port")?;
        let address = listener.local_addr()?;
        let pod = pod.to_owned();
        let serving = tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let (pods, pod) = (pods.clone(), pod.clone());
                tokio::spawn(async move {
                    let Ok(mut forwarder) = pods.portforward(&pod, &[port]).await else { return };
                    let Some(mut there) = forwarder.take_stream(port) else { return };
                    let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                    drop(there);
                    let _ = forwarder.join().await;
                });
            }
        });
        Ok(Self { address, serving })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
