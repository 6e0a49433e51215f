//! Which cluster a command gets. Decides from the command's options and from what this machine has; starts nothing.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::{Wanted, host};
use crate::run;

/// A cluster that can be started or reached here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// In a container, by kind.
    Kind,
    /// Directly on this machine.
    Host,
    /// One that exists, by its context in the kubeconfig.
    Context(String),
}

/// The command that needs a cluster; an error names the flags of that command only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    Tests,
    Keep,
}

/// The programs and rights on this machine that a cluster needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// kind is on PATH.
    pub(super) kind: bool,
    /// Docker answers.
    pub(super) docker: bool,
    pub(super) linux: bool,
    pub(super) root: bool,
    pub(super) debian: bool,
    /// Go is on PATH.
    pub(super) go: bool,
}

impl Machine {
    pub(super) fn look() -> Self {
        Self {
            kind: run::on_path("kind").is_some(),
            docker: run::output(Command::new("docker").arg("info")).is_ok(),
            linux: cfg!(target_os = "linux"),
            root: run::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0"),
            debian: Path::new("/etc/debian_version").exists(),
            go: run::on_path("go").is_some(),
        }
    }
}

/// Chooses a cluster. Host mode changes the machine, so only `--host` chooses it.
///
/// # Errors
/// Names the missing parts and the ways to get a cluster.
pub(super) fn choose(wanted: &Wanted, machine: &Machine, caller: Caller) -> Result<Choice> {
    match wanted {
        Wanted::Context(name) => Ok(Choice::Context(name.clone())),
        Wanted::Host => {
            let missing = machine.lacks_for_host_mode();
            if !missing.is_empty() {
                bail!("--host cannot run here: {}", missing.join("; "));
            }
            Ok(Choice::Host)
        }
        Wanted::Harmless if machine.kind && machine.docker => Ok(Choice::Kind),
        Wanted::Harmless => {
            let context = match caller {
                Caller::Tests => "- name a cluster of yours with --context NAME --images PREFIX\n",
                Caller::Keep => "",
            };
            bail!(
                "no way to start a cluster without changing this machine: {}\n\n\
                 Do one of these:\n\
                 - start Docker and install kind (https://kind.sigs.k8s.io)\n{context}\
                 - pass --host to run a Kubernetes node directly on this machine, as root on Debian\n\n{}",
                machine.lacks_for_kind(),
                host::CHANGES
            );
        }
    }
}

impl Machine {
    fn lacks_for_kind(&self) -> String {
        let missing = [(self.docker, "Docker does not answer"), (self.kind, "kind is not on PATH")];
        let missing: Vec<_> = missing.iter().filter(|(has, _)| !has).map(|(_, what)| *what).collect();
        missing.join(", ")
    }

    fn lacks_for_host_mode(&self) -> Vec<&'static str> {
        let all = [
            (self.linux, "this machine does not run Linux"),
            (self.debian, "this machine does not run Debian; use Docker and kind instead"),
            (self.root, "this user is not root; run the command as root"),
            (self.go, "Go is not on PATH; install it to build the node's programs"),
        ];
        all.iter().filter(|(has, _)| !has).map(|(_, what)| *what).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every requirement except a container engine.
    const BARE: Machine =
        Machine { kind: false, docker: false, linux: true, root: true, debian: true, go: true };

    #[test]
    fn without_the_flag_host_mode_is_never_chosen() {
        for (kind, docker) in [(false, false), (true, false), (false, true)] {
            let machine = Machine { kind, docker, ..BARE };
            let error = choose(&Wanted::Harmless, &machine, Caller::Tests).unwrap_err().to_string();
            assert!(error.contains("pass --host"), "{error}");
            assert!(error.contains(host::CHANGES), "the error does not name the changes of --host: {error}");
            assert_eq!(error.contains("Docker does not answer"), !docker, "{error}");
            assert_eq!(error.contains("kind is not on PATH"), !kind, "{error}");
        }
        let machine = Machine { kind: true, docker: true, ..BARE };
        assert_eq!(choose(&Wanted::Harmless, &machine, Caller::Tests).unwrap(), Choice::Kind);
    }

    #[test]
    fn an_error_names_only_flags_that_the_command_has() {
        let names =
            |caller| choose(&Wanted::Harmless, &BARE, caller).unwrap_err().to_string().contains("--context");
        assert!(names(Caller::Tests) && !names(Caller::Keep));
    }

    #[test]
    fn with_the_flag_kind_is_not_looked_for() {
        let machine = Machine { kind: true, docker: true, ..BARE };
        assert_eq!(choose(&Wanted::Host, &machine, Caller::Tests).unwrap(), Choice::Host);
    }

    #[test]
    fn host_mode_names_all_that_it_lacks() {
        let machine = Machine { root: false, go: false, ..BARE };
        let error = choose(&Wanted::Host, &machine, Caller::Keep).unwrap_err().to_string();
        assert!(error.contains("as root") && error.contains("Go is not on PATH"), "{error}");
        assert!(!error.contains("Debian"), "{error}");
    }
}
