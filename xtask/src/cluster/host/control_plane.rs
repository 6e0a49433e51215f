//! etcd and the control plane, and the keys that they share.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};

use super::{NODE, Node, PORT, SERVICES, command, kubeconfig};

impl Node {
    pub(super) fn keys(&self) -> Result<()> {
        let (key, public) = (self.path("pki/sa.key"), self.path("pki/sa.pub"));
        command("openssl", &["genrsa", "-out", &key, "2048"])?;
        command("openssl", &["rsa", "-in", &key, "-pubout", "-out", &public])?;
        let token = command("openssl", &["rand", "-hex", "16"])?;
        let token = token.trim();
        self.write("pki/tokens.csv", &format!("{token},admin,admin,\"system:masters\"\n"))?;
        // Anyone who reads the token is root here, so the file is closed before it is filled.
        self.write("kubeconfig", "")?;
        fs::set_permissions(kubeconfig(), fs::Permissions::from_mode(0o600))
            .context("cannot close the kubeconfig")?;
        self.write(
            "kubeconfig",
            &format!(
                "apiVersion: v1\nkind: Config\n\
                 clusters: [{{name: node, cluster: {{server: \"https://{NODE}:{PORT}\", insecure-skip-tls-verify: true}}}}]\n\
                 users: [{{name: admin, user: {{token: \"{token}\"}}}}]\n\
                 contexts: [{{name: node, context: {{cluster: node, user: admin}}}}]\n\
                 current-context: node\n"
            ),
        )
    }

    pub(super) fn etcd(&mut self) -> Result<()> {
        let data = format!("--data-dir={}", self.path("etcd"));
        // Nothing is synced to disk: the machine loses only the data of a test.
        self.spawn(
            "etcd",
            &[
                &data,
                "--unsafe-no-fsync",
                "--listen-client-urls=http://127.0.0.1:12379",
                "--advertise-client-urls=http://127.0.0.1:12379",
                "--listen-peer-urls=http://127.0.0.1:12380",
                "--initial-advertise-peer-urls=http://127.0.0.1:12380",
                "--initial-cluster=default=http://127.0.0.1:12380",
            ],
        )
    }

    pub(super) fn control_plane(&mut self) -> Result<()> {
        self.start_api_server()?;
        let kubeconfig = format!("--kubeconfig={}", self.path("kubeconfig"));
        let key = format!("--service-account-private-key-file={}", self.path("pki/sa.key"));
        let ca = format!("--root-ca-file={}", self.path("pki/apiserver/apiserver.crt"));
        let plugins = format!("--flex-volume-plugin-dir={}", self.path("volume-plugins"));
        self.spawn(
            "kube-controller-manager",
            &[
                &kubeconfig,
                &key,
                &ca,
                "--use-service-account-credentials=true",
                "--leader-elect=false",
                &plugins,
                "--secure-port=0",
            ],
        )?;
        self.spawn("kube-scheduler", &[&kubeconfig, "--leader-elect=false", "--secure-port=0"])
    }

    /// Starts the API server, also for a test that has stopped it.
    fn start_api_server(&mut self) -> Result<()> {
        let arguments = [
            "--etcd-servers=http://127.0.0.1:12379".to_owned(),
            format!("--cert-dir={}", self.path("pki/apiserver")),
            format!("--service-account-key-file={}", self.path("pki/sa.pub")),
            format!("--service-account-signing-key-file={}", self.path("pki/sa.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-cluster-ip-range={SERVICES}"),
            format!("--token-auth-file={}", self.path("pki/tokens.csv")),
            "--authorization-mode=Node,RBAC".to_owned(),
            format!("--bind-address={NODE}"),
            format!("--advertise-address={NODE}"),
            format!("--secure-port={PORT}"),
            "--allow-privileged=true".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ];
        self.spawn("kube-apiserver", &arguments.each_ref().map(String::as_str))?;
        self.wait("the API server answers", |node| node.kubectl(&["get", "--raw", "/readyz"]).is_ok())
    }
}
