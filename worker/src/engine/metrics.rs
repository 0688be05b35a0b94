//! What the engine counts. The set follows vLLM's, so that dashboards carry
//! over; names begin with `llava_`. Nothing here depends on what users write.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FinishLabel {
    /// `stop`, `length`, `abort` (the caller left), `expired` or `error`.
    pub finished_reason: &'static str,
}

/// The engine's figures.
#[derive(Clone, Debug)]
pub struct EngineMetrics {
    /// Sequences that hold a slot.
    pub running: Gauge,
    /// Sequences in the engine's queue.
    pub waiting: Gauge,
    /// Share of the KV memory that running sequences hold.
    pub kv_usage: Gauge<f64, AtomicU64>,
    /// Prompt tokens of admitted requests.
    pub prompt_tokens: Counter,
    /// Prompt tokens that an earlier request had computed.
    pub cached_tokens: Counter,
    /// Tokens sampled.
    pub generation_tokens: Counter,
    /// Images that a request needed.
    pub image_queries: Counter,
    /// Of those, found encoded already.
    pub image_hits: Counter,
    /// Images that went through the tower.
    pub images: Counter,
    /// Sequences sent back to the queue for want of KV memory.
    pub preemptions: Counter,
    /// Ended requests by reason.
    pub finished: Family<FinishLabel, Counter>,
    /// From arrival into the engine's queue: body, images, tokens.
    pub preparation_time: Histogram,
    /// From the engine's queue to a slot.
    pub queue_time: Histogram,
    /// From arrival to the first token.
    pub first_token: Histogram,
    /// Between two tokens of one answer.
    pub inter_token: Histogram,
    /// From a slot to the first token.
    pub prefill_time: Histogram,
    /// From the first to the last token.
    pub decode_time: Histogram,
    /// From arrival to the end.
    pub request_time: Histogram,
    /// Whole steps.
    pub step_seconds: Counter<f64, AtomicU64>,
    /// The part of the steps that the model took.
    pub model_seconds: Counter<f64, AtomicU64>,
    /// Steps.
    pub steps: Counter,
}

impl Default for EngineMetrics {
    fn default() -> Self {
        let waits = || Histogram::new(exponential_buckets(0.005, 2.0, 17));
        Self {
            running: Gauge::default(),
            waiting: Gauge::default(),
            kv_usage: Gauge::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            image_queries: Counter::default(),
            image_hits: Counter::default(),
            images: Counter::default(),
            preemptions: Counter::default(),
            finished: Family::default(),
            preparation_time: waits(),
            queue_time: waits(),
            first_token: waits(),
            inter_token: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            prefill_time: waits(),
            decode_time: waits(),
            request_time: waits(),
            step_seconds: Counter::default(),
            model_seconds: Counter::default(),
            steps: Counter::default(),
        }
    }
}

impl EngineMetrics {
    /// Counts the end of a request.
    pub fn finish(&self, reason: &'static str) {
        let label = FinishLabel {
            finished_reason: reason,
        };
        self.finished.get_or_create(&label).inc();
    }

    /// Makes everything visible under its name.
    pub fn register(&self, to: &mut Registry) {
        let m = self.clone();
        to.register(
            "llava_num_requests_running",
            "Sequences that hold a slot",
            m.running,
        );
        to.register(
            "llava_num_requests_waiting",
            "Sequences in the engine's queue",
            m.waiting,
        );
        to.register(
            "llava_kv_cache_usage",
            "Share of the KV memory that running sequences hold",
            m.kv_usage,
        );
        to.register(
            "llava_prompt_tokens",
            "Prompt tokens of admitted requests",
            m.prompt_tokens,
        );
        to.register(
            "llava_prefix_cache_hit_tokens",
            "Prompt tokens that an earlier request had computed",
            m.cached_tokens,
        );
        to.register(
            "llava_generation_tokens",
            "Tokens sampled",
            m.generation_tokens,
        );
        to.register(
            "llava_image_cache_queries",
            "Images that requests needed",
            m.image_queries,
        );
        to.register(
            "llava_image_cache_hits",
            "Images found encoded already",
            m.image_hits,
        );
        to.register(
            "llava_images_encoded",
            "Images that went through the vision tower",
            m.images,
        );
        to.register(
            "llava_num_preemptions",
            "Sequences sent back to the queue for want of KV memory",
            m.preemptions,
        );
        to.register(
            "llava_request_finished",
            "Ended requests by reason",
            m.finished,
        );
        let seconds = || Unit::Seconds;
        to.register_with_unit(
            "llava_request_preparation_time",
            "From arrival into the engine's queue: body, images, tokens",
            seconds(),
            m.preparation_time,
        );
        to.register_with_unit(
            "llava_request_queue_time",
            "From the engine's queue to a slot",
            seconds(),
            m.queue_time,
        );
        to.register_with_unit(
            "llava_time_to_first_token",
            "From arrival to the first token",
            seconds(),
            m.first_token,
        );
        to.register_with_unit(
            "llava_inter_token_latency",
            "Between two tokens of one answer",
            seconds(),
            m.inter_token,
        );
        to.register_with_unit(
            "llava_request_prefill_time",
            "From a slot to the first token",
            seconds(),
            m.prefill_time,
        );
        to.register_with_unit(
            "llava_request_decode_time",
            "From the first to the last token",
            seconds(),
            m.decode_time,
        );
        to.register_with_unit(
            "llava_e2e_request_latency",
            "From arrival to the end",
            seconds(),
            m.request_time,
        );
        to.register_with_unit(
            "llava_engine_step",
            "Time in steps of the engine",
            seconds(),
            m.step_seconds,
        );
        to.register_with_unit(
            "llava_engine_model",
            "The part of the steps that the model took",
            seconds(),
            m.model_seconds,
        );
        to.register("llava_engine_steps", "Steps of the engine", m.steps);
    }
}
