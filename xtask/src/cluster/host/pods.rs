//! The parts that run pods, and let them find each other: containerd, the kubelet, the proxy and DNS.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::{CGROUP, DNS, NETWORK, NODE, Node, PODS, SOCKET, ctr, load};
use crate::images::Packed;

/// The image of the container that holds a pod's namespaces.
const PAUSE: &str = "taskpipeline.dev/pause:1";

/// The number of volumes. Each is used once. Their size is not enforced; it is large enough for the chart's claims.
const VOLUMES: usize = 48;

impl Node {
    pub(super) fn containerd(&mut self) -> Result<()> {
        let (root, state, networks) =
            (self.path("containerd"), self.path("containerd-state"), self.path("networks"));
        // Without the portmap plugin: it would add iptables rules, so `hostPort` has no effect.
        self.write(
            "cni/10-pods.conflist",
            &format!(
                r#"{{"cniVersion": "0.4.0", "name": "{NETWORK}", "plugins": [
  {{"type": "ptp", "ipMasq": false, "ipam": {{"type": "host-local", "dataDir": "{networks}", "ranges": [[{{"subnet": "{PODS}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}
"#
            ),
        )?;
        // Without CAP_SYS_RESOURCE a sandbox may not lower its OOM score, and runc would fail. The pods' network
        // namespaces are below the node's folder, where a clean-up can tell them from those of other software.
        self.write(
            "containerd.toml",
            &format!(
                "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\n\
                 [grpc]\n  address = \"{SOCKET}\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\"]\n  restrict_oom_score_adj = true\n  netns_mounts_under_state_dir = true\n  sandbox_image = \"{PAUSE}\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"/usr/lib/cni\"\n  conf_dir = \"{}\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n  Root = \"{}\"\n\
                 [plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{}\"\n",
                self.path("cni"),
                self.path("runc"),
                self.path("opt"),
            ),
        )?;
        let configuration = self.path("containerd.toml");
        self.spawn_program("containerd", Path::new("containerd"), &["--config", &configuration])?;
        self.wait("containerd answers", |_| ctr(&["version"]).is_ok())?;
        let pause = Packed {
            name: PAUSE,
            entrypoint: &["/pause"],
            user: "65535:65535",
            files: &[(self.programs.get("pause")?, "/pause")],
        };
        let archive = self.home.join("pause.tar");
        pause.write(&archive)?;
        load(&archive)
    }

    pub(super) fn kubelet(&mut self) -> Result<()> {
        // The kubelet's log and exec endpoints are for the API server, which has no certificate of its own here.
        self.write(
            "kubelet.yaml",
            &format!(
                "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                 address: {NODE}\nfailCgroupV1: false\nfailSwapOn: false\ncgroupDriver: cgroupfs\n\
                 containerRuntimeEndpoint: unix://{SOCKET}\ncgroupRoot: /{CGROUP}\n\
                 podLogsDir: {}\nvolumePluginDir: {}\nmakeIPTablesUtilChains: false\n\
                 authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}\n\
                 authorization: {{mode: AlwaysAllow}}\n\
                 clusterDNS: [\"{DNS}\"]\nclusterDomain: cluster.local\n\
                 enforceNodeAllocatable: []\nlocalStorageCapacityIsolation: false\n\
                 evictionHard: {{\"memory.available\": \"100Mi\"}}\nimageMinimumGCAge: 1000h\nhealthzPort: 0\n",
                self.path("pod-logs"),
                self.path("volume-plugins"),
            ),
        )?;
        let kubeconfig = format!("--kubeconfig={}", self.path("kubeconfig"));
        let configuration = format!("--config={}", self.path("kubelet.yaml"));
        let root = format!("--root-dir={}", self.path("kubelet"));
        let certificates = format!("--cert-dir={}", self.path("kubelet-pki"));
        let address = format!("--node-ip={NODE}");
        self.spawn(
            "kubelet",
            &[&configuration, &kubeconfig, "--hostname-override=node", &root, &certificates, &address],
        )?;
        let pods = format!("--cluster-cidr={PODS}");
        // The machine's limits of connections stay as they are.
        let limits = [
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ];
        let arguments = [&kubeconfig, "--proxy-mode=nftables", &pods, "--hostname-override=node"];
        self.spawn("kube-proxy", &[&arguments[..], &limits].concat())
    }

    /// Creates volumes for every claim in advance: this node has no provisioner.
    pub(super) fn volumes(&self) -> Result<()> {
        let mut manifests = String::new();
        for n in 0..VOLUMES {
            let folder = self.home.join(format!("volumes/{n}"));
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
            // Kubernetes does not change the group of such a folder, and the pods are not root.
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))
                .with_context(|| format!("cannot open {} to pods", folder.display()))?;
            manifests.push_str(&format!(
                "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: volume-{n}}}\n\
                 spec: {{capacity: {{storage: 16Gi}}, accessModes: [ReadWriteOnce], hostPath: {{path: \"{}\"}}}}\n---\n",
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
