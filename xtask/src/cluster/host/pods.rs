//! What runs pods, and lets them find each other.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::{DNS, NODE, Node, PODS};
use crate::images::Packed;

/// What holds a pod's namespaces.
const PAUSE: &str = "taskpipeline.dev/pause:1";

/// How many volumes there are; one is used once.
const VOLUMES: usize = 48;

impl Node {
    pub(super) fn containerd(&mut self) -> Result<()> {
        let (root, state, socket) = (self.path("containerd"), self.path("containerd-state"), self.socket());
        self.write(
            "cni/10-pods.conflist",
            &format!(
                r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {{"type": "ptp", "ipMasq": false, "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{PODS}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}
"#
            ),
        )?;
        // Without CAP_SYS_RESOURCE a sandbox may not lower its OOM score, and runc would fail.
        self.write(
            "containerd.toml",
            &format!(
                "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\n\
                 [grpc]\n  address = \"{socket}\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\"]\n  restrict_oom_score_adj = true\n  sandbox_image = \"{PAUSE}\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"/usr/lib/cni\"\n  conf_dir = \"{}\"\n",
                self.path("cni")
            ),
        )?;
        let configuration = self.path("containerd.toml");
        self.spawn_program("containerd", Path::new("containerd"), &["--config", &configuration])?;
        self.wait("containerd answers", |node| node.ctr(&["version"]).is_ok())?;
        let pause = Packed {
            name: PAUSE,
            entrypoint: &["/pause"],
            user: "65535:65535",
            files: &[(self.programs.get("pause")?, "/pause")],
        };
        let archive = self.home.join("pause.tar");
        pause.write(&archive)?;
        self.load(&archive)
    }

    pub(super) fn kubelet(&mut self) -> Result<()> {
        // Its log and exec endpoints are for the API server, which has no certificate of its own here.
        self.write(
            "kubelet.yaml",
            &format!(
                "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                 address: {NODE}\nfailCgroupV1: false\nfailSwapOn: false\ncgroupDriver: cgroupfs\n\
                 containerRuntimeEndpoint: unix://{}\n\
                 authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}\n\
                 authorization: {{mode: AlwaysAllow}}\n\
                 clusterDNS: [\"{DNS}\"]\nclusterDomain: cluster.local\n\
                 enforceNodeAllocatable: []\nlocalStorageCapacityIsolation: false\n\
                 evictionHard: {{\"memory.available\": \"100Mi\"}}\nimageMinimumGCAge: 1000h\nhealthzPort: 0\n",
                self.socket()
            ),
        )?;
        let kubeconfig = format!("--kubeconfig={}", self.path("kubeconfig"));
        let configuration = format!("--config={}", self.path("kubelet.yaml"));
        let root = format!("--root-dir={}", self.path("kubelet"));
        let address = format!("--node-ip={NODE}");
        self.spawn("kubelet", &[&configuration, &kubeconfig, "--hostname-override=node", &root, &address])?;
        let pods = format!("--cluster-cidr={PODS}");
        self.spawn("kube-proxy", &[&kubeconfig, "--proxy-mode=nftables", &pods, "--hostname-override=node"])
    }

    /// Volumes for whoever claims one: there is nothing that would make them on demand.
    pub(super) fn volumes(&self) -> Result<()> {
        let mut manifests = String::new();
        for n in 0..VOLUMES {
            let folder = self.home.join(format!("volumes/{n}"));
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            // Kubernetes gives such a folder to no group, and the pods are not root.
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))
                .with_context(|| format!("cannot open {} to pods", folder.display()))?;
            manifests.push_str(&format!(
                "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: volume-{n}}}\n\
                 spec: {{capacity: {{storage: 1Gi}}, accessModes: [ReadWriteOnce], hostPath: {{path: \"{}\"}}}}\n---\n",
                folder.display()
            ));
        }
        self.write("volumes.yaml", &manifests)?;
        self.kubectl(&["apply", "-f", &self.path("volumes.yaml")]).map(drop)
    }

    pub(super) fn dns(&mut self) -> Result<()> {
        self.write(
            "Corefile",
            &format!(
                "cluster.local:53 in-addr.arpa:53 {{\n  bind {NODE}\n  errors\n  kubernetes cluster.local in-addr.arpa {{\n    \
                 kubeconfig {}\n    pods insecure\n  }}\n}}\n\
                 .:53 {{\n  bind {NODE}\n  errors\n  template ANY ANY . {{\n    rcode NXDOMAIN\n  }}\n}}\n",
                self.path("kubeconfig")
            ),
        )?;
        let corefile = self.path("Corefile");
        self.spawn("coredns", &["-conf", &corefile])?;
        self.write(
            "dns.yaml",
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: kube-dns, namespace: kube-system}}\n\
                 spec: {{clusterIP: {DNS}, ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]}}\n\
                 ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: kube-dns, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}\n\
                 addressType: IPv4\n\
                 ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]\n\
                 endpoints: [{{addresses: [\"{NODE}\"]}}]\n"
            ),
        )?;
        let manifest = self.path("dns.yaml");
        self.kubectl(&["apply", "-f", &manifest]).map(drop)
    }
}
