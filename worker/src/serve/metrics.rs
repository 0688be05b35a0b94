//! What the HTTP side counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// An answered request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    path: String,
    status: u16,
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    code: String,
}

/// Counters of requests.
#[derive(Clone, Debug, Default)]
pub(super) struct HttpMetrics {
    answered: Family<Answered, Counter>,
    refused: Family<Refused, Counter>,
}

impl HttpMetrics {
    /// Counts an answer.
    pub(super) fn count(&self, path: &str, status: u16, refused: Option<&str>) {
        let label = Answered {
            path: path.to_owned(),
            status,
        };
        self.answered.get_or_create(&label).inc();
        if let Some(code) = refused {
            let label = Refused {
                code: code.to_owned(),
            };
            self.refused.get_or_create(&label).inc();
        }
    }

    /// Makes everything visible under its name.
    pub(super) fn register(&self, to: &mut Registry) {
        let m = self.clone();
        to.register(
            "llava_worker_requests",
            "Answered requests by path and status",
            m.answered,
        );
        to.register(
            "llava_worker_refusals",
            "Refused requests by error code",
            m.refused,
        );
    }
}
