//! The operator's client of the API server, which counts its requests.

use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::util::MapRequestLayer;

use super::OperatorError;
use super::metrics::OperatorMetrics;

/// A client of the cluster that this process runs in, or of the kubeconfig's.
///
/// # Errors
/// If no cluster is configured.
pub(crate) async fn client(metrics: &OperatorMetrics) -> Result<Client, OperatorError> {
    // One crypto provider for the whole process; a second call finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config::infer().await?;
    let metrics = metrics.clone();
    let count = MapRequestLayer::new(move |request: http::Request<Body>| {
        metrics.asked(request.method().as_str(), resource(request.uri().path()));
        request
    });
    Ok(ClientBuilder::try_from(config)?.with_layer(&count).build())
}

/// The resource in a path: `deployments` for `/apis/apps/v1/namespaces/shop/deployments/tasks`.
fn resource(path: &str) -> &str {
    let mut parts = path.trim_matches('/').split('/');
    let rest = match parts.next() {
        Some("api") => parts.nth(1),
        Some("apis") => parts.nth(2),
        _ => return "",
    };
    match rest {
        // The path of a namespace itself ends here.
        Some("namespaces") => parts.nth(1).unwrap_or("namespaces"),
        rest => rest.unwrap_or(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_path_is_about() {
        for (path, about) in [
            ("/api/v1/namespaces/shop/secrets/kv", "secrets"),
            ("/apis/apps/v1/namespaces/shop/deployments", "deployments"),
            ("/apis/taskpipeline.dev/v1alpha1/taskpipelines", "taskpipelines"),
            ("/apis/taskpipeline.dev/v1alpha1/namespaces/shop/taskpipelines/tasks/status", "taskpipelines"),
            ("/api/v1/namespaces/shop", "namespaces"),
            ("/version", ""),
            ("/apis", ""),
        ] {
            assert_eq!(resource(path), about, "{path}");
        }
    }
}
