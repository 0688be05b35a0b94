//! What `/metrics` shows, read from where it is kept at the moment of asking.
//! Labels are bounded: models and workers that exist, and fixed vocabularies.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, LabelSetEncoder, MetricEncoder,
    NoLabelSet,
};
use prometheus_client::metrics::MetricType;

use crate::api::service::Gate;
use crate::dispatch::estimate::UNIT;
use crate::dispatch::pool::Pool;
use crate::dispatch::state::WorkerView;
use crate::metrics::Meter;
use crate::metrics::histogram::Histogram;
use crate::metrics::meter::{Count, PerReason, PickReason, Reason};
use crate::server::Connections;
use crate::table::record::Discovery;

/// Shows everything there is.
pub(crate) struct Everything {
    /// Pools, bodies, drain.
    pub(crate) gate: Arc<Gate>,
    /// Open connections.
    pub(crate) connections: Connections,
    /// The state of the table's source.
    pub(crate) discovery: Arc<Discovery>,
}

struct Sheet<'e, 'p> {
    encoder: DescriptorEncoder<'e>,
    pools: Vec<(&'p str, &'p Arc<Pool>)>,
}

impl Sheet<'_, '_> {
    fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let name = if name.starts_with(INFERENCE_POOL) {
            name.to_owned()
        } else {
            format!("{PREFIX}{name}")
        };
        let mut encoder = self.encoder.encode_descriptor(&name, help, None, kind)?;
        write(&mut encoder)
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, |e| e.encode_gauge(&value))
    }

    fn counter(&mut self, name: &str, help: &str, count: u64) -> fmt::Result {
        self.family(name, help, MetricType::Counter, |e| {
            e.encode_counter::<NoLabelSet, f64, f64>(&as_f64(count), None)
        })
    }

    fn per_pool<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        rows: impl Fn(&Pool) -> Vec<(L, f64)>,
    ) -> fmt::Result {
        let pools = self.pools.clone();
        let label = if name.starts_with(INFERENCE_POOL) {
            "name"
        } else {
            "pool"
        };
        self.family(name, help, kind, |encoder| {
            for (key, pool) in pools {
                for (labels, value) in rows(pool) {
                    write_row(encoder, &(Of(label, key), labels), kind, value)?;
                }
            }
            Ok(())
        })
    }

    fn count(&mut self, name: &str, help: &str, count: impl Fn(&Meter) -> &Count) -> fmt::Result {
        self.per_pool(name, help, MetricType::Counter, |pool| {
            vec![(NO_LABELS, as_f64(count(&pool.meter).get()))]
        })
    }

    fn reasons<R: Reason, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        counts: impl Fn(&Meter) -> &PerReason<R, N>,
    ) -> fmt::Result {
        self.per_pool(name, help, MetricType::Counter, |pool| {
            let all = counts(&pool.meter).all();
            all.map(|(reason, count)| ([(label, reason)], as_f64(count)))
                .collect()
        })
    }

    fn times(
        &mut self,
        name: &str,
        help: &str,
        times: impl Fn(&Meter) -> &Histogram,
    ) -> fmt::Result {
        let pools = self.pools.clone();
        self.family(name, help, MetricType::Histogram, |encoder| {
            for (key, pool) in pools {
                times(&pool.meter).encode(encoder.encode_family(&[("pool", key)])?)?;
            }
            Ok(())
        })
    }

    fn per_worker(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        now: Instant,
        value: impl Fn(&WorkerView) -> Option<f64>,
    ) -> fmt::Result {
        self.per_pool(name, help, kind, |pool| {
            let rows = pool
                .view(now)
                .into_iter()
                .filter_map(|view| Some(([("worker", view.worker.name.clone())], value(&view)?)));
            rows.collect::<Vec<_>>()
        })
    }
}

const PREFIX: &str = "llava_router_";
/// Names and label that others have chosen.
const INFERENCE_POOL: &str = "inference_pool";
const NO_LABELS: [(&str, &str); 0] = [];

/// The label that every row of a pool carries.
struct Of<'a>(&'static str, &'a str);

impl EncodeLabelSet for Of<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        [(self.0, self.1)].encode(encoder)
    }
}

fn write_row<L: EncodeLabelSet>(
    encoder: &mut MetricEncoder<'_>,
    labels: &L,
    kind: MetricType,
    value: f64,
) -> fmt::Result {
    let mut row = encoder.encode_family(labels)?;
    match kind {
        MetricType::Counter => row.encode_counter::<NoLabelSet, f64, f64>(&value, None),
        _ => row.encode_gauge(&value),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay below 2^53")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

impl Collector for Everything {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let directory = self.gate.fleet.directory();
        let pools = directory
            .pools
            .iter()
            .map(|(key, pool)| (key.as_str(), pool))
            .collect();
        let mut sheet = Sheet { encoder, pools };
        let now = shell::clock::now();
        requests(&mut sheet, &self.gate.meter)?;
        dispatch(&mut sheet, now)?;
        inference_pool(&mut sheet, now)?;
        sheet.gauge(
            "buffered_bytes",
            "Request bodies held",
            as_f64(self.gate.budget.used()),
        )?;
        sheet.counter(
            "buffers_full",
            "Requests refused because as many bytes were held as may be",
            self.gate.buffers_full.get(),
        )?;
        sheet.counter(
            "caller_aborts_outside",
            "Callers that left while their body came, before it said which model they want",
            self.gate.left_early.get(),
        )?;
        let keys = self.gate.keys.as_ref();
        sheet.counter(
            "api_key_file_errors",
            "Looks at the file of API keys that left those known so far valid",
            keys.map_or(0, |keys| keys.errors.get()),
        )?;
        sheet.gauge(
            "connections",
            "Open connections of clients",
            as_f64(self.connections.count() as u64),
        )?;
        let draining = self.gate.draining.load(Ordering::Relaxed);
        sheet.gauge(
            "draining",
            "1 while the router goes down",
            f64::from(u8::from(draining)),
        )?;
        sheet.gauge(
            "discovery_workers",
            "Workers known",
            as_f64(self.gate.fleet.worker_count() as u64),
        )?;
        let age = self.discovery.age(now).as_secs_f64();
        sheet.gauge(
            "discovery_last_event_age_seconds",
            "Since the table's source last spoke",
            age,
        )?;
        sheet.counter(
            "discovery_relists",
            "Lists taken anew",
            self.discovery.relists(),
        )
    }
}

fn requests(sheet: &mut Sheet<'_, '_>, outside: &Meter) -> fmt::Result {
    let code = |(code, count): (u16, u64)| {
        let code = if code == 0 {
            "other".to_owned()
        } else {
            code.to_string()
        };
        ([("code", code)], as_f64(count))
    };
    sheet.per_pool(
        "requests",
        "Answers by status; 499 is a caller that left",
        MetricType::Counter,
        |pool| pool.meter.codes().map(code).collect(),
    )?;
    sheet.family(
        "requests_outside",
        "Answers that concern no model",
        MetricType::Counter,
        |encoder| {
            for (labels, value) in outside.codes().map(code) {
                write_row(encoder, &labels, MetricType::Counter, value)?;
            }
            Ok(())
        },
    )?;
    sheet.times(
        "time_to_first_byte_seconds",
        "From a request's head to its answer's first byte",
        |m| &m.first_byte,
    )?;
    sheet.times(
        "request_duration_seconds",
        "From a request's head to its answer's end",
        |m| &m.duration,
    )?;
    sheet.times(
        "inter_chunk_seconds",
        "Between two pieces of a stream",
        |m| &m.gap,
    )?;
    sheet.times("queue_wait_seconds", "In the waiting room", |m| {
        &m.queue_wait
    })?;
    sheet.count("request_body_bytes", "Bytes of request bodies", |m| {
        &m.body_bytes
    })?;
    sheet.per_pool(
        "retries",
        "Retries by cause, and by what came of them",
        MetricType::Counter,
        |pool| {
            let all = pool.meter.retries.all();
            all.map(|([reason, outcome], count)| {
                ([("reason", reason), ("outcome", outcome)], as_f64(count))
            })
            .collect()
        },
    )?;
    sheet.count(
        "retry_budget_exhausted",
        "Retries that had to wait for the budget",
        |m| &m.retry_budget_waits,
    )?;
    sheet.count("ejections", "Workers ejected for a while", |m| &m.ejections)?;
    sheet.reasons("sheds", "Refused requests by cause", "reason", |m| &m.sheds)?;
    sheet.reasons(
        "caller_aborts",
        "Callers that left, by phase",
        "phase",
        |m| &m.caller_aborts,
    )?;
    sheet.count("upstream_aborts", "Streams that a worker broke off", |m| {
        &m.upstream_aborts
    })
}

fn dispatch(sheet: &mut Sheet<'_, '_>, now: Instant) -> fmt::Result {
    let gauge = MetricType::Gauge;
    sheet.per_worker(
        "in_flight",
        "Requests of this router at a worker",
        gauge,
        now,
        |w| Some(f64::from(w.own.count)),
    )?;
    sheet.per_worker(
        "estimated_queue",
        "The queue that dispatch compares",
        gauge,
        now,
        |w| Some(as_f64(w.queue.weight) / as_f64(UNIT)),
    )?;
    sheet.per_worker(
        "reported_queue",
        "Running and waiting, as the worker says",
        gauge,
        now,
        |w| Some(f64::from(w.reported.as_ref()?.load.queue_length())),
    )?;
    sheet.per_worker(
        "report_age_seconds",
        "Age of the worker's report",
        gauge,
        now,
        |w| Some(w.reported.as_ref()?.age(now).as_secs_f64()),
    )?;
    sheet.per_pool(
        "picks",
        "Requests sent to a worker, by what the choice went by",
        MetricType::Counter,
        |pool| {
            let rows = pool.view(now).into_iter().flat_map(|view| {
                let name = view.worker.name.clone();
                let picks = PickReason::ALL.iter().zip(view.picks);
                picks.map(move |((_, reason), count)| {
                    let labels = [("worker", name.clone()), ("reason", (*reason).to_owned())];
                    (labels, as_f64(count))
                })
            });
            rows.collect::<Vec<_>>()
        },
    )?;
    sheet.per_worker(
        "worker_open",
        "1 while a worker takes new requests",
        gauge,
        now,
        |w| Some(f64::from(u8::from(w.preference.is_some()))),
    )?;
    sheet.per_pool("waiting", "Requests in the waiting room", gauge, |pool| {
        vec![(NO_LABELS, f64::from(pool.demand().waiting))]
    })
}

/// The gauges that dashboards of the Gateway API Inference Extension draw.
fn inference_pool(sheet: &mut Sheet<'_, '_>, now: Instant) -> fmt::Result {
    let ready = |pool: &Pool| -> Vec<WorkerView> {
        pool.view(now)
            .into_iter()
            .filter(|w| w.preference.is_some())
            .collect()
    };
    let mean = |workers: &[WorkerView], of: &dyn Fn(&WorkerView) -> f64| {
        workers.iter().map(of).sum::<f64>() / as_f64(workers.len().max(1) as u64)
    };
    let waiting = |w: &WorkerView| {
        w.reported
            .as_ref()
            .map_or(0.0, |r| f64::from(r.load.waiting))
    };
    let kv = |w: &WorkerView| {
        w.reported
            .as_ref()
            .map_or(0.0, |r| f64::from(r.load.kv_used))
    };
    let gauge = MetricType::Gauge;
    sheet.per_pool(
        "inference_pool_ready_pods",
        "Workers that take requests",
        gauge,
        |pool| vec![(NO_LABELS, as_f64(ready(pool).len() as u64))],
    )?;
    sheet.per_pool(
        "inference_pool_average_queue_size",
        "Requests that wait at a worker, on average",
        gauge,
        |pool| vec![(NO_LABELS, mean(&ready(pool), &waiting))],
    )?;
    sheet.per_pool(
        "inference_pool_average_kv_cache_utilization",
        "Share of the KV memory in use, on average",
        gauge,
        |pool| vec![(NO_LABELS, mean(&ready(pool), &kv))],
    )?;
    let full = |w: &WorkerView| {
        let queue = as_f64(w.queue.count) / f64::from(w.slots.max(1));
        queue.max(kv(w))
    };
    sheet.per_pool(
        "saturation",
        "How full workers are, on average: the larger of queue per slot and share of the KV memory",
        gauge,
        |pool| vec![(NO_LABELS, mean(&ready(pool), &full))],
    )
}

impl fmt::Debug for Everything {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Everything").finish_non_exhaustive()
    }
}
