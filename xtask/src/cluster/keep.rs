//! `cargo xtask cluster`: keeps a cluster such as the tests use, for manual work.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use super::kind::Kind;
use super::{Caller, Choice, Wanted, choose, host};
use crate::images::{self, Names};
use crate::progress::say;
use crate::run as program;
use crate::tools::Workshop;

/// The options of `cluster`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start a cluster by kind, or with --host directly on this machine, and leave it running
    Up {
        /// Run a Kubernetes node directly on this machine; requires root and Debian
        #[arg(long)]
        host: bool,
    },
    /// Print shell commands that point kubectl and helm to the cluster: `eval "$(cargo xtask cluster env)"`
    Env,
    /// Build the images of this clone and load them into the cluster, under the names that the chart uses
    Load,
    /// Stop the cluster and remove everything that was created for it
    Down,
}

/// The cluster that is kept.
enum Kept {
    Host,
    Kind(Kind),
}

/// Runs the action.
///
/// # Errors
/// If no cluster exists and none can be started, or something does not build.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    match options.action {
        Action::Up { host } => up(shop, host)?,
        Action::Env => {
            let (kubeconfig, programs) = match kept(shop)? {
                Kept::Host => {
                    let (kubeconfig, programs) = host::environment();
                    (kubeconfig, Some(programs))
                }
                // A machine with kind usually has kubectl. Helm may be only in the cache.
                Kept::Kind(kind) => {
                    let helm = program::on_path("helm").is_none().then(|| shop.helm()).transpose()?;
                    (kind.kubeconfig(), helm.and_then(|helm| helm.parent().map(Path::to_path_buf)))
                }
            };
            say(environment(&kubeconfig, programs.as_deref())?);
        }
        Action::Load => load(shop, &kept(shop)?)?,
        Action::Down => down(shop)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(shop: &Workshop, host: bool) -> Result<()> {
    if let Some(kept) = find(shop)? {
        let already = match (kept, host) {
            (Kept::Kind(_), true) => "A cluster by kind is up already; `cargo xtask cluster down` stops it.",
            _ => "The cluster is up already.",
        };
        say(already);
        say(USAGE);
        return Ok(());
    }
    let wanted = if host { Wanted::Host } else { Wanted::Harmless };
    let how = match choose(&wanted, Caller::Keep)? {
        Choice::Host => {
            host::Node::keep(shop)?;
            "directly on this machine, and stays until `cluster down` or the next boot"
        }
        Choice::Kind | Choice::Context(_) => {
            Kind::keep(shop)?;
            "in a container of kind, and stays until `cluster down`"
        }
    };
    say(format_args!("The cluster is up, {how}."));
    say(USAGE);
    Ok(())
}

const USAGE: &str = r#"
  eval "$(cargo xtask cluster env)"    # points kubectl and helm to it
  cargo xtask cluster load             # builds the images of this clone and loads them, for some minutes the first time
  helm install demo charts/taskpipeline --namespace demo --create-namespace --set demo.enabled=true
  kubectl --namespace demo get pods
  cargo xtask cluster down             # stops it and removes everything that was made for it"#;

/// Loads the images under the chart's default names, so that `helm install` needs no values for images.
fn load(shop: &Workshop, kept: &Kept) -> Result<()> {
    let mut all = images::built(shop, &Names::released())?;
    if matches!(kept, Kept::Host) {
        // The machine may reach no image registry. A node of kind pulls this image by itself.
        all.push(images::bundled_nats(shop)?);
    }
    for image in &all {
        shop.progress.step(&format!("load {}", image.name), || match kept {
            Kept::Host => host::load(&image.archive),
            Kept::Kind(kind) => kind.load(&image.archive),
        })?;
        say(format_args!("{:<50}{:>9}", image.name, image.size()?));
    }
    Ok(())
}

fn down(shop: &Workshop) -> Result<()> {
    let mut done = Vec::new();
    match host::state()? {
        host::State::None => {}
        host::State::Up | host::State::Broken(_) => {
            shop.progress.step("stop the node on this machine", host::down)?;
            done.push("The cluster is down. All changes of its node on this machine are reverted.");
        }
        host::State::Other => {
            shop.progress.step("remove the rest of an earlier node", host::down)?;
            done.push("No cluster was up. The rest of an earlier node is removed from this machine.");
        }
    }
    if let Some(kind) = Kind::kept(shop)? {
        shop.progress.step("delete the cluster of kind", || kind.delete())?;
        done.push("The cluster is down.");
    }
    say(if done.is_empty() { "No cluster is up.".to_owned() } else { done.join("\n") });
    Ok(())
}

/// The cluster that is kept; `None` if no cluster is up.
fn find(shop: &Workshop) -> Result<Option<Kept>> {
    match host::state()? {
        host::State::Up => return Ok(Some(Kept::Host)),
        host::State::Broken(ended) => bail!(
            "the cluster on this machine no longer works: {} ended by itself; run `cargo xtask cluster down`, then `up` again",
            ended.join(", ")
        ),
        host::State::None | host::State::Other => {}
    }
    Ok(Kind::kept(shop)?.map(Kept::Kind))
}

fn kept(shop: &Workshop) -> Result<Kept> {
    find(shop)?.context("no cluster is up: start one with `cargo xtask cluster up`")
}

/// Returns commands for a POSIX shell.
fn environment(kubeconfig: &Path, programs: Option<&Path>) -> Result<String> {
    let quoted = |path: &Path| -> Result<String> {
        let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        Ok(format!("'{}'", text.replace('\'', r"'\''")))
    };
    let mut text = format!("export KUBECONFIG={}", quoted(kubeconfig)?);
    if let Some(programs) = programs {
        text += &format!("\nexport PATH={}:\"$PATH\"", quoted(programs)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_for_a_shell_whatever_the_paths_are() {
        let text = environment(Path::new("/it's here/kubeconfig"), Some(Path::new("/a b"))).unwrap();
        let script = format!("{text}\nprintf '%s|%s' \"$KUBECONFIG\" \"${{PATH%%:*}}\"");
        let shown = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(shown.stdout).unwrap(), "/it's here/kubeconfig|/a b");
        assert!(!environment(Path::new("/k"), None).unwrap().contains("PATH"));
    }
}
