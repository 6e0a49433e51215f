//! Starts, watches and kills the replicas of a system under test. This module hides the differences between the systems.

use std::time::Duration;

use anyhow::{Context, bail};
use taskpipeline_simulator::Simulator;
use taskpipeline_testkit::{
    NatsServer, Process, Processor, ProcessorOptions, eventually, free_port, http, program,
};
use tokio::process::Command;

use crate::meter::Meter;
use crate::stage::Stage;
use crate::system::{Kind, System};

/// The time limit for a replica to come up.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// The requests to Cloudflare in five minutes to which the peer is paced. It has no token bucket that a burst could
/// empty. So it may come nearer to the limit of 1,200 than we do.
pub(crate) const PEER_REQUESTS: f64 = 1_170.0;

/// The requests in five minutes that our default budget allows.
pub(crate) const OUR_REQUESTS: f64 = 1_100.0;

/// A budget that never delays a request.
const NO_BUDGET: &str = "1000000/5m";

/// The settings of a system beyond its defaults.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    /// Whether the system must respect a limit on requests.
    pub(crate) limited: bool,
    /// Further variables, for experiments.
    pub(crate) env: Vec<(String, String)>,
}

/// A replica.
#[derive(Debug)]
enum Replica {
    Ours(Processor),
    Peer(Process, u16),
}

/// All replicas of a system.
#[derive(Debug)]
pub(crate) struct Fleet {
    replicas: Vec<Replica>,
    launch: Launch,
}

/// The parameters for the start of one replica.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    kind: Kind,
    ours: ProcessorOptions,
    peer: Vec<(&'static str, String)>,
}

impl Launch {
    pub(crate) fn new(system: System, setup: &Setup, nats: &NatsServer, kv: &Simulator) -> Self {
        // Logs of each step are not part of the comparison; the peer logs as little.
        let mut ours = ProcessorOptions::new(nats, kv).set("RUST_LOG", "warn");
        if system.kind == Kind::Core {
            ours = ours.core();
        }
        if !setup.limited {
            ours = ours.set("REQUEST_BUDGET", NO_BUDGET);
        } else if system.kind == Kind::Core && system.replicas > 1 {
            // In mode Core the replicas do not know of each other: the user divides the budget.
            ours = ours.set(
                "REQUEST_BUDGET",
                &format!("{:.0}/5m", (OUR_REQUESTS / crate::stats::count(system.replicas)).floor()),
            );
        }
        for (name, value) in &setup.env {
            ours = ours.set(name, value);
        }
        let config = kv.config();
        let mut peer = vec![
            ("NATS_URL", nats.url()),
            ("CF_API_BASE_URL", kv.base_url()),
            ("CF_ACCOUNT_ID", config.account.clone()),
            ("CF_NAMESPACE_ID", config.namespace.clone()),
            ("CF_API_TOKEN", config.token.clone()),
            ("QUEUE_GROUP", "tasks-processor".to_owned()),
            ("SUBJECT_PREFIX", "tasks".to_owned()),
            ("NODE_ENV", "production".to_owned()),
        ];
        if setup.limited {
            let replicas = crate::stats::count(system.replicas);
            peer.push(("REQUESTS_PER_SECOND", format!("{:.4}", PEER_REQUESTS / 300.0 / replicas)));
        }
        Self { kind: system.kind, ours, peer }
    }

    /// Starts a replica without waiting.
    fn spawn(&self) -> anyhow::Result<Replica> {
        match self.kind {
            Kind::Durable | Kind::Core => Ok(Replica::Ours(Processor::spawn(&self.ours)?)),
            Kind::Peer => {
                let port = free_port()?;
                let mut command = peer_command("main.js", &self.peer)?;
                command.env("PORT", port.to_string());
                Ok(Replica::Peer(Process::spawn("peer", &mut command)?, port))
            }
            Kind::Floor | Kind::GuardedFloor | Kind::PeerFloor => bail!("a floor has no replicas"),
        }
    }

    /// Starts the floor of the peer: the same requests in a plain loop.
    pub(crate) fn peer_floor(&self, count: u64) -> anyhow::Result<Process> {
        let mut command = peer_command("floor.js", &self.peer)?;
        Process::spawn("the peer's floor", command.env("COUNT", count.to_string()))
    }
}

/// Returns the command for a script of the peer, which `cargo xtask bench` has built.
fn peer_command(script: &str, env: &[(&'static str, String)]) -> anyhow::Result<Command> {
    let dist = std::env::var_os("TASKPIPELINE_PEER")
        .context("TASKPIPELINE_PEER is not set; run `cargo xtask bench`, which builds the peer")?;
    let mut command = Command::new(program("TASKPIPELINE_NODE", &["node"])?);
    command.arg(std::path::Path::new(&dist).join(script)).env_clear().envs(env.iter().cloned());
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    Ok(command)
}

impl Replica {
    fn process(&self) -> &Process {
        match self {
            Self::Ours(processor) => processor.process(),
            Self::Peer(process, _) => process,
        }
    }

    fn pid(&self) -> i32 {
        self.process().pid().as_raw()
    }

    /// The URL of our `/readyz`, or of the peer's `/health`.
    fn ready_url(&self) -> String {
        match self {
            Self::Ours(processor) => format!("http://127.0.0.1:{}/readyz", processor.port()),
            Self::Peer(_, port) => format!("http://127.0.0.1:{port}/health"),
        }
    }

    async fn is_ready(&self) -> anyhow::Result<()> {
        let answer = http().get(self.ready_url()).timeout(Duration::from_secs(5)).send().await;
        let status = answer.with_context(|| self.process().tail())?.status().as_u16();
        anyhow::ensure!(
            status == 200,
            "not ready: {status}
{}",
            self.process().tail()
        );
        Ok(())
    }
}

impl Fleet {
    /// Starts all replicas and waits until each is ready.
    pub(crate) async fn start(system: System, setup: &Setup, stage: &Stage) -> anyhow::Result<Self> {
        let fleet = Self::spawn(system, setup, stage)?;
        fleet.wait_ready().await?;
        Ok(fleet)
    }

    /// Starts all replicas without waiting.
    pub(crate) fn spawn(system: System, setup: &Setup, stage: &Stage) -> anyhow::Result<Self> {
        let launch = Launch::new(system, setup, &stage.nats, &stage.kv);
        let replicas = (0..system.replicas).map(|_| launch.spawn()).collect::<anyhow::Result<_>>()?;
        Ok(Self { replicas, launch })
    }

    /// Starts a system that keeps its events in a stream, so that it creates its streams, and ends it.
    pub(crate) async fn make_streams(kind: Kind, setup: &Setup, stage: &Stage) -> anyhow::Result<()> {
        if kind.has_stream() {
            let maker = System { kind: Kind::Durable, replicas: 1 };
            Self::start(maker, setup, stage).await?.terminate().await?;
        }
        Ok(())
    }

    /// Waits until each replica is ready.
    pub(crate) async fn wait_ready(&self) -> anyhow::Result<()> {
        for replica in &self.replicas {
            eventually(READY_WITHIN, || replica.is_ready()).await?;
        }
        Ok(())
    }

    /// Lets the meter watch all replicas. With `from_birth`, their time before this call counts as well.
    pub(crate) fn watch(&self, meter: &mut Meter, from_birth: bool) {
        for replica in &self.replicas {
            if from_birth {
                meter.watch_from_birth(REPLICA, replica.pid());
            } else {
                meter.watch(REPLICA, replica.pid());
            }
        }
    }

    /// The index of the replica that writes to KV, if one writes for all; otherwise the first.
    pub(crate) async fn active(&self) -> usize {
        for (index, replica) in self.replicas.iter().enumerate() {
            if let Replica::Ours(processor) = replica
                && processor.metric("taskpipeline_projector_active").await.is_ok_and(|active| active > 0.0)
            {
                return index;
            }
        }
        0
    }

    /// The URLs at which the replicas report that they are ready.
    pub(crate) fn ready_urls(&self) -> Vec<String> {
        self.replicas.iter().map(Replica::ready_url).collect()
    }

    /// The number of replicas that still run and report that they are ready.
    pub(crate) async fn how_many_ready(&self) -> usize {
        let mut ready = 0;
        for replica in &self.replicas {
            ready += usize::from(replica.is_ready().await.is_ok());
        }
        ready
    }

    /// Kills a replica as a crash would.
    pub(crate) async fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        anyhow::ensure!(index < self.replicas.len(), "replica {index} does not exist");
        let replica = self.replicas.remove(index);
        replica.process().signal(nix::sys::signal::Signal::SIGKILL)?;
        // Dropping the handle kills the replica without waiting.
        drop(replica);
        Ok(())
    }

    /// Starts one more replica and lets the meter watch it.
    pub(crate) async fn add(&mut self, meter: &mut Meter) -> anyhow::Result<()> {
        let replica = self.launch.spawn()?;
        meter.watch_from_birth(REPLICA, replica.pid());
        eventually(READY_WITHIN, || replica.is_ready()).await?;
        self.replicas.push(replica);
        Ok(())
    }

    /// Ends all replicas in order, so that they finish their events in flight.
    pub(crate) async fn terminate(self) -> anyhow::Result<()> {
        for replica in self.replicas {
            match replica {
                Replica::Ours(mut processor) => {
                    processor.terminate(READY_WITHIN).await?;
                }
                Replica::Peer(mut process, _) => {
                    process.signal(nix::sys::signal::Signal::SIGTERM)?;
                    process.wait(READY_WITHIN).await?;
                }
            }
        }
        Ok(())
    }

    /// The last lines of every replica, for an error message.
    pub(crate) fn tails(&self) -> String {
        let tails: Vec<_> = self.replicas.iter().map(|replica| replica.process().tail()).collect();
        tails.join("\n")
    }
}

/// The role of replicas in a [`Meter`].
pub(crate) const REPLICA: &str = "replicas";
