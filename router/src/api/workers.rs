//! `/workers` on the admin port: the table as dispatch sees it.

use std::time::Instant;

use serde::Serialize;

use crate::dispatch::estimate::UNIT;
use crate::dispatch::fleet::Fleet;
use crate::dispatch::pick::Preference;
use crate::dispatch::state::WorkerView;

/// All pools.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pools {
    pools: Vec<PoolRow>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolRow {
    key: String,
    waiting: u32,
    in_flight: u32,
    workers: Vec<WorkerRow>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkerRow {
    name: String,
    uid: String,
    address: String,
    /// `good`, `trial`, `stale`, `suspect`, `ejected`, `down`; `leaving` takes no new requests.
    state: &'static str,
    /// The estimate that dispatch compares, in requests of usual size.
    estimated_queue: f64,
    in_flight: u32,
    slots: u32,
    reported: Option<ReportRow>,
    picks: u64,
    last_error: Option<ErrorRow>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ReportRow {
    running: u32,
    waiting: u32,
    kv_used: f32,
    age_seconds: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorRow {
    message: String,
    seconds_ago: f64,
}

/// The table now.
pub(crate) fn table(fleet: &Fleet, now: Instant) -> Pools {
    let directory = fleet.directory();
    let pools = directory.pools.iter().map(|(key, pool)| {
        let demand = pool.demand();
        PoolRow {
            key: key.clone(),
            waiting: demand.waiting,
            in_flight: demand.in_flight,
            workers: pool
                .view(now)
                .into_iter()
                .map(|view| row(view, now))
                .collect(),
        }
    });
    Pools {
        pools: pools.collect(),
    }
}

fn row(view: WorkerView, now: Instant) -> WorkerRow {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let estimated_queue = view.queue.weight as f64 / UNIT as f64;
    WorkerRow {
        name: view.worker.name.clone(),
        uid: view.worker.uid.clone(),
        address: view.worker.links.target().to_owned(),
        state: match view.preference {
            Some(Preference::Good) if view.on_trial => "trial",
            preference => preference.map_or("leaving", state),
        },
        estimated_queue,
        in_flight: view.own.count,
        slots: view.slots,
        reported: view.reported.map(|reported| ReportRow {
            running: reported.load.running,
            waiting: reported.load.waiting,
            kv_used: reported.load.kv_used,
            age_seconds: reported.age(now).as_secs_f64(),
        }),
        picks: view.picks.iter().sum(),
        last_error: view.last_error.map(|(at, message)| ErrorRow {
            message,
            seconds_ago: now.saturating_duration_since(at).as_secs_f64(),
        }),
    }
}

fn state(preference: Preference) -> &'static str {
    match preference {
        Preference::Good => "good",
        Preference::Stale => "stale",
        Preference::Suspect => "suspect",
        Preference::Ejected => "ejected",
        Preference::Down => "down",
    }
}
