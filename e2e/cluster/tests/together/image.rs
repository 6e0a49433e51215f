//! The images of the Dockerfile on a node.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use serde_json::json;
use taskpipeline_e2e_cluster::{Image, Namespace, once};

#[tokio::test(flavor = "multi_thread")]
async fn the_dockerfiles_images_run_as_nobody_on_a_read_only_root_and_have_no_shell() {
    let namespace = Namespace::new("image").await.unwrap();
    for (image, name, says) in
        [(Image::Processor, "processor", env!("CARGO_PKG_VERSION")), (Image::Demo, "demo", "--listen")]
    {
        let image = image.name().unwrap();
        let arguments = if name == "demo" { "--help" } else { "--version" };
        // The node checks that the image's user is not root.
        let runs = json!({"image": image, "args": [arguments]});
        let (succeeded, said) = once(&namespace, &format!("{name}-runs"), runs, &json!([])).await.unwrap();
        assert!(succeeded && said.contains(says), "{said}");
        let mut missing = Vec::new();
        for shell in ["/bin/sh", "/bin/bash", "/bin/busybox", "apt-get"] {
            let shelled = json!({"image": image, "command": [shell, "-c", "true"]});
            let pod = format!("{name}-{}", shell.rsplit('/').next().unwrap());
            let (succeeded, said) = once(&namespace, &pod, shelled, &json!([])).await.unwrap();
            assert!(!succeeded && (said.contains("no such file") || said.contains("not found")), "{said}");
            missing.push(shell);
        }
        println!("{name}: prints {:?}, has none of {missing:?}", said.lines().next().unwrap_or_default());
    }
}
