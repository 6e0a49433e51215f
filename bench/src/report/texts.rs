//! The texts of the report: the subject of each scenario's table, the method, and the limits of it.

use crate::measurement::Scenario;

/// A column: the figure's name in the findings, its heading, and the number of decimals.
pub(super) type Column = (&'static str, &'static str, usize);

/// How a scenario is reported.
pub(super) struct Text {
    pub(super) scenario: Scenario,
    pub(super) title: &'static str,
    pub(super) how: &'static str,
    pub(super) not: &'static str,
    pub(super) columns: &'static [Column],
}

/// All texts, in the order of the report.
pub(super) const TEXTS: &[Text] = &[
    Text {
        scenario: Scenario::Limit,
        title: "Events landed per second under Cloudflare's limit",
        how: "1,200 requests in 5 minutes, enforced by the simulator. A publisher keeps a backlog in front of the \
              system all the time. It creates distinct tasks and rotates over 2,000,000 ids, so that no task changes \
              again while it waits. In the rows with deletes, every tenth event deletes a task created long before. The \
              token bucket is full at the start, so the lasting figure is that of the second half of the run. If even \
              that half made more requests a second than the budget gives in the long run (1,100 in 5 minutes; the peer \
              1,170), the lasting figure is scaled down to it. After the run, the benchmark waits for all published \
              events. If the load has only creates, it compares every task with the last event about it. In the row \
              with a kill, the replica that writes gets a kill -9 in the middle of the run. Tasks that were then in \
              doubt are written twice, and the second write does not count as landed.",
        not: "How Cloudflare itself accepts batches of 10,000 keys at this rate: its latency is assumed. The machine \
              runs the publisher, nats-server and the simulator on the same cores, which a real installation does not.",
        columns: &[
            ("events/s that last", "events/s that last", 0),
            ("events/s, second half", "second half", 0),
            ("events/s", "whole run", 0),
            ("requests/s, second half", "requests/s, second half", 2),
            ("429s", "429s", 0),
            ("most requests in 5 minutes", "most requests in 5 min", 0),
            ("keys per request", "keys a request", 0),
            ("events published", "published", 0),
            ("events not landed", "not landed", 0),
            ("keys written twice", "written twice", 0),
            ("tasks that are not as their last event", "wrong", 0),
            ("peak memory of a replica, MB", "peak MB", 0),
        ],
    },
    Text {
        scenario: Scenario::Nolimit,
        title: "Events landed per second without a limit",
        how: "The same without a limit on requests, so that the machine is the limit. The events create distinct tasks. \
              In Durable and for the floors they are stored in the stream before the clock starts, so the time includes \
              the start of the replicas. In Core and for the peer, which have no stream, and in the rows with \
              \"published live\", they are published while the clock runs. The floor is a program that fetches 2,000 \
              events from the same stream, makes one pipelined NATS KV put for each, acknowledges it and sends bulk \
              PUTs of 10,000. It does nothing else: it does not decode, compare or fold anything. The guarded floor \
              does the same, but each put succeeds only if the key has no value yet, and a second consumer reads all \
              values back. A ledger that any replica may write, and a projector, need at least that. The peer's floor \
              is a loop of the peer's own PUTs with the peer's own client.",
        not: "The effect of more cores: everything shares these. Without a stream no event is stored on the way, which \
              is cheaper and loses events (see below).",
        columns: &[
            ("events/s", "events/s", 0),
            ("events/s, middle", "without start and end", 0),
            ("CPU seconds, replicas", "CPU s, replicas", 1),
            ("CPU seconds, nats-server", "CPU s, nats-server", 1),
            ("CPU seconds, simulator", "CPU s, simulator", 1),
            ("CPU seconds, publisher", "CPU s, publisher", 1),
            ("keys written per event", "keys an event", 2),
            ("peak memory of a replica, MB", "peak MB", 0),
        ],
    },
    Text {
        scenario: Scenario::Latency,
        title: "From publishing to KV",
        how: "Events at a steady rate, each about a new task. The time runs from just before the publish until the \
              simulator has the task, to a millisecond. The simulator takes 100 ms for every answer here, so the time \
              above 100 ms is the system's own. Ours respects Cloudflare's limit unless the row says otherwise. The \
              peer lands at most four events a second under the limit, so from 100 events/s on it is measured without \
              one. At 100 and 1,000 events/s only events of the second half count, when the bucket of requests is no \
              longer full.",
        not: "The internet. At 1 event/s the events are too few for more than the median and the maximum.",
        columns: &[
            ("p50, ms", "p50 ms", 1),
            ("p99, ms", "p99 ms", 1),
            ("p99.9, ms", "p99.9 ms", 1),
            ("p50 above KV's own, ms", "p50 above KV's", 1),
            ("p99 above KV's own, ms", "p99 above KV's", 1),
            ("requests per event", "requests an event", 3),
            ("events measured", "events", 0),
            ("events that never landed", "never landed", 0),
        ],
    },
    Text {
        scenario: Scenario::Cost,
        title: "What a steady load costs",
        how: "500 events a second over 3,000 ids, 50 % creates, 40 % updates and 10 % deletes, the same events for \
              every system. CPU time is that of all replicas together, from the first event until nothing more is \
              written, without nats-server's. Cloudflare charges $5 for a million keys written or deleted. The peer \
              runs without a limit, because it could not finish under it.",
        not: "The cost of nats-server beyond its CPU time. Reads are not in the price (the peer reads before every \
              update).",
        columns: &[
            ("CPU seconds per 100,000 events", "CPU s / 100,000 events", 1),
            ("CPU seconds, nats-server", "CPU s, nats-server", 1),
            ("requests per event", "requests an event", 3),
            ("keys written per event", "keys an event", 2),
            ("dollars per million events", "$ / million events", 2),
            ("peak memory of a replica, MB", "peak MB", 0),
        ],
    },
    Text {
        scenario: Scenario::Hot,
        title: "Differences from an in-order replay",
        how: "2,000 creates, updates and deletes of 10 tasks at 200 events a second by one connection to 4 replicas. \
              When nothing is written any more, each task in KV is compared with a replay of the events in the order of \
              their publishing.",
        not: "Stale reads: the simulator's reads are fresh here. Cloudflare's may be a minute old, which is worse for a \
              system that reads.",
        columns: &[
            ("tasks that differ", "tasks that differ", 0),
            ("tasks", "of", 0),
            ("written too soon", "writes to a key within 1 s", 0),
        ],
    },
    Text {
        scenario: Scenario::Kill,
        title: "Events lost after a kill -9",
        how: "500 creates a second to 2 replicas without a limit. In the middle, the replica that writes is killed and \
              another one started. Then the benchmark waits for the remaining events, longer than any retry or \
              redelivery takes.",
        not: "The loss of nats-server's disk.",
        columns: &[
            ("events published", "published", 0),
            ("events lost", "lost", 0),
            ("seconds until nothing was missing, or given up", "s until complete or given up", 0),
        ],
    },
    Text {
        scenario: Scenario::Malformed,
        title: "One malformed message",
        how: "A message that is cut off in the middle of its JSON, between two valid ones.",
        not: "Other kinds of malformed messages.",
        columns: &[
            ("good messages landed, of 2", "good ones landed, of 2", 0),
            ("malformed messages kept, of 1", "bad one kept, of 1", 0),
            ("replicas ready afterwards, of 1", "ready afterwards, of 1", 0),
        ],
    },
    Text {
        scenario: Scenario::Start,
        title: "Start to ready",
        how: "From the start of the process to the first response with status 200, of `/readyz` for ours and of \
              `/health` for the peer; median of 5 starts. Streams and consumers exist already.",
        not: "Pulling an image, and starting a pod.",
        columns: &[
            ("ms until ready", "ms", 0),
            ("ms until ready, least", "least", 0),
            ("ms until ready, most", "most", 0),
        ],
    },
    Text {
        scenario: Scenario::LedgerSize,
        title: "Cost per event by the size of the ledger",
        how: "The given number of tasks is created through the system. Then 30,000 events come, three times. A third of \
              them are updates, each of a different existing task; the others create new tasks. No limit applies.",
        not: "The time of a scan of the whole ledger, such as a resync makes.",
        columns: &[
            ("CPU µs per event, replicas", "CPU µs an event, replicas", 1),
            ("CPU µs per event, nats-server", "nats-server", 1),
            ("µs per event", "µs an event", 1),
            ("events/s", "events/s", 0),
            ("peak memory of a replica, MB", "peak MB", 0),
        ],
    },
    Text {
        scenario: Scenario::HotTask,
        title: "Many updates to one task",
        how: "1,000 updates a second to one task for 30 seconds.",
        not: "Cloudflare's reaction to a key that is written more than once a second: it answers 429, while the \
              simulator only counts.",
        columns: &[
            ("events", "events", 0),
            ("writes", "writes", 0),
            ("events per write", "events a write", 1),
            ("most writes in a second", "most writes in a second", 0),
            ("written too soon", "writes within 1 s", 0),
            ("the last one won (1: yes)", "the last one won (1: yes)", 0),
        ],
    },
];
